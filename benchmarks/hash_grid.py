"""The hash grid beside the way it is plainly written in PyTorch, and beside tinycudann where there is a GPU with it.

2-D, 16 levels of 2 features and at most 2^17 entries, 65,536 points. CPU seconds of one thread, in turns, the median.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.measure import Row, side_by_side
from manyscope.nn import hash_grid
from manyscope.nn.hash_grid import HashGrid, backend
from manyscope.training.memory import keep_freed_memory

_POINTS, _TIMES, _TIMES_GPU = 65_536, 15, 50
_NAIVE = "table[index] and autograd"
_UNIT, _UNIT_GPU = "CPU ms", "GPU ms"
_FACTOR = 2654435761
_AGREE, _AGREE_GPU = 1e-6, 1e-3


def run() -> list[Row]:
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = _beside(lambda grid, x: _naive(grid, x), _NAIVE, "cpu", _AGREE)
    return [*rows, *_on_gpu()]


def _on_gpu() -> list[Row]:
    if not torch.cuda.is_available() or backend("cuda") == "torch":
        return []

    def ours(grid: HashGrid, x: Tensor) -> Tensor:
        with patch.object(hash_grid, "backend", lambda device: "torch"):
            return grid(x)

    return _beside(lambda grid, x: grid(x), "tinycudann", "cuda", _AGREE_GPU, ours)


def _beside(
    peer: Callable[[HashGrid, Tensor], Tensor],
    peer_name: str,
    device: str,
    agree: float,
    ours: Callable[[HashGrid, Tensor], Tensor] = lambda grid, x: grid(x),
) -> list[Row]:
    """A row for the forward, and one for each way through the backward.

    Raises:
        RuntimeError: the outputs differ by more than `agree`.
    """
    generator = torch.Generator().manual_seed(0)
    grid = HashGrid(2, 16, 2, 17, 16, 1.38, seed=0).to(device)
    x = torch.rand(_POINTS, 2, generator=generator).to(device)
    grad = torch.randn(_POINTS, grid.outputs, generator=generator).to(device)
    with torch.no_grad():
        grid.params.mul_(1 / grid.params.abs().max())
        differ = float((ours(grid, x) - peer(grid, x)).abs().max())
    if differ > agree:
        raise RuntimeError(f"{peer_name}: outputs differ by {differ:.1e}")

    def forward(side: Callable[[HashGrid, Tensor], Tensor]) -> Callable[[], object]:
        return torch.no_grad()(lambda: side(grid, x))

    def backward(side: Callable[[HashGrid, Tensor], Tensor], points: bool) -> Callable[[], object]:
        at = x.clone().requires_grad_(points)
        wanted = [grid.params, at] if points else [grid.params]
        return lambda: torch.autograd.grad(side(grid, at), wanted, grad)

    unit, clock, times = (_UNIT, _cpu_ms, _TIMES) if device == "cpu" else (_UNIT_GPU, _gpu_ms, _TIMES_GPU)
    rows = []
    for what, work in (
        ("forward", forward),
        ("forward and backward of the table", lambda side: backward(side, points=False)),
        ("forward and backward of table and points", lambda side: backward(side, points=True)),
    ):
        of_ours, of_peer = work(ours), work(peer)
        found = side_by_side(times, ours=lambda: clock(of_ours), peer=lambda: clock(of_peer))  # noqa: B023
        rows.append(Row(f"{what}, {_POINTS:,} points", found["ours"], found["peer"], peer_name, unit))
    return rows


def _cpu_ms(work: Callable[[], object]) -> float:
    start = time.process_time_ns()
    work()
    return (time.process_time_ns() - start) / 1e6


def _gpu_ms(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def _naive(grid: HashGrid, x: Tensor) -> Tensor:
    """The same features, level by level, from a table that is indexed with (n, 4) corners."""
    outputs = []
    for level in grid.layout:
        start, end = (entry * grid.features for entry in (level.offset, level.offset + level.size))
        table = grid.params[start:end].view(-1, grid.features)
        # Rounded once, as by the others: else positions of the finest level differ by 1e-4 of a cell.
        position = torch.add(x.new_tensor(0.5), x, alpha=level.scale)
        cell = position.floor()
        right, up = (position - cell).unbind(1)
        column, row = cell.long().unbind(1)
        corners = [(column + i, row + j) for j in (0, 1) for i in (0, 1)]
        if level.dense:
            indices = [(i + j * level.resolution) % level.size for i, j in corners]
        else:
            indices = [(i ^ j * _FACTOR) & (level.size - 1) for i, j in corners]
        weights = [(1 - right) * (1 - up), right * (1 - up), (1 - right) * up, right * up]
        outputs.append((table[torch.stack(indices, 1)] * torch.stack(weights, 1)[..., None]).sum(1))
    return torch.cat(outputs, 1)
