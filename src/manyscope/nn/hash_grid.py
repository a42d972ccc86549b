"""Multiresolution hash grids and small networks whose parameters are laid out as tiny-cuda-nn lays them out.

A grid (Müller et al. 2022, arXiv:2201.05989) holds feature vectors at the vertices of several regular grids and
interpolates between them. The entries of all levels are one flat vector in the order of tiny-cuda-nn, so the same
weights serve its CUDA kernels and the form in torch that is here. `backend` says which of them runs.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from manyscope.errors import MissingDependencyError
from manyscope.log import logger

Interpolation = Literal["linear", "smoothstep"]
Backend = Literal["tinycudann", "torch"]

# Factors of the hash, one for each dimension, and the other numbers that the layout depends on, as in tiny-cuda-nn.
_FACTORS = (1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737)
_MOST_ENTRIES = (2**32 - 1) // 2
_PADDING = 16
_MOST_KERNEL_DIMENSIONS = 4

_INITIAL = 1e-4
# Levels are treated together up to so many points times levels, since a call of torch costs as much as some thousand
# numbers; points are cut into blocks, so that what lies between table and output stays in a cache. Both by measurement.
_TOGETHER = 32_768
_BLOCK = 65_536
_MOST_CYCLES = 4


@dataclass(frozen=True)
class Level:
    """Where one level of a grid lies.

    Attributes:
        scale: cells along an axis from coordinate 0 to 1, a float32.
        resolution: vertices along an axis.
        size: entries of its table.
        dense: whether each vertex has an entry of its own, instead of one by its hash.
        offset: its first entry among those of all levels.
    """

    scale: float
    resolution: int
    size: int
    dense: bool
    offset: int


def level_layout(dimensions: int, levels: int, log2_table: int, base: int, scale: float) -> tuple[Level, ...]:
    """The levels of a grid, in the float32 arithmetic of tiny-cuda-nn.

    Args:
        dimensions: of the coordinates, 2 to 7.
        levels: number of them, at least 1.
        log2_table: logarithm of the most entries of a level, 3 to 24.
        base: vertices along an axis of the first level.
        scale: ratio of the resolutions of two levels, positive.

    Raises:
        ValueError: a number outside of these ranges.
    """
    if not (2 <= dimensions <= len(_FACTORS) and levels >= 1 and 3 <= log2_table <= 24 and base >= 1 and scale > 0):
        raise ValueError(f"no grid: {dimensions=}, {levels=}, {log2_table=}, {base=}, {scale=}")
    log2_scale = np.log2(np.float32(scale))
    layout: list[Level] = []
    offset = 0
    for number in range(levels):
        cells = np.exp2(np.float32(number) * log2_scale) * np.float32(base) - np.float32(1)
        resolution = int(np.ceil(cells)) + 1
        vertices = resolution**dimensions
        size = min(_rounded_up(min(vertices, _MOST_ENTRIES), 8), 2**log2_table)
        layout.append(Level(float(cells), resolution, size, vertices <= size, offset))
        offset += size
    return tuple(layout)


def backend(device: torch.device | str) -> Backend:
    """What computes the grids of up to four dimensions on a device: tinycudann on CUDA where it can be imported."""
    return "tinycudann" if torch.device(device).type == "cuda" and _tinycudann() is not None else "torch"


class HashGrid(nn.Module):
    """Features at points, interpolated in a multiresolution hash grid.

    The one parameter `params` (entries * features,) float32 has the order of tiny-cuda-nn: levels, in them entries, in
    them features. It starts uniform in [-1e-4, 1e-4], by the seed.

    On a CPU gradients are the same bits again. On a GPU their parts are summed in no fixed order, as tiny-cuda-nn does
    it, even where torch is asked for deterministic algorithms: repeated trainings there agree to rounding only.

    Attributes:
        layout: the levels.
        outputs: levels * features.

    Args:
        features: of an entry: 1, 2, 4 or 8.
        interpolation: "linear", or "smoothstep", whose gradient is continuous.
        seed: of the initial parameters; grids with different seeds differ.

    The other arguments are those of `level_layout`, which raises ValueError, as this does.
    """

    def __init__(
        self,
        dimensions: int,
        levels: int,
        features: int,
        log2_table: int,
        base: int,
        scale: float,
        interpolation: Interpolation = "linear",
        *,
        seed: int,
    ) -> None:
        super().__init__()
        if features not in (1, 2, 4, 8):
            raise ValueError(f"{features} features of an entry; there may be 1, 2, 4 or 8")
        if interpolation not in ("linear", "smoothstep"):
            raise ValueError(f"interpolation {interpolation!r} is neither linear nor smoothstep")
        self.dimensions, self.features, self.interpolation = dimensions, features, interpolation
        self.layout = level_layout(dimensions, levels, log2_table, base, scale)
        self.outputs = levels * features
        self._config = {
            "otype": "HashGrid",
            "type": "Hash",
            "n_features_per_level": features,
            "log2_hashmap_size": log2_table,
            "base_resolution": base,
            "per_level_scale": float(scale),
            "interpolation": interpolation.capitalize(),
        }
        self._encodings: dict[tuple[int, torch.device], nn.Module] = {}  # in a dict: no submodules
        generator = torch.Generator().manual_seed(seed)
        entries = self.layout[-1].offset + self.layout[-1].size
        self.params = nn.Parameter(torch.empty(entries * features).uniform_(-_INITIAL, _INITIAL, generator=generator))

    def forward(self, x: Tensor, visible: int | None = None) -> Tensor:
        """Features (n, outputs), in the order of the levels, of points x (n, dimensions).

        The grid spans [0, 1] along each axis and goes on beyond, with other entries. Gradients reach the parameters and
        the points. There are no second derivatives.

        Args:
            x: floating point, taken in the dtype of the parameters.
            visible: only so many of the first features are computed, and the others are 0; None: all.
        """
        seen = self.outputs if visible is None else min(max(visible, 0), self.outputs)
        x = x.to(self.params.dtype)
        chosen = backend(x.device) if self.dimensions <= _MOST_KERNEL_DIMENSIONS else "torch"
        _log_once(chosen, x.device.type)
        if chosen == "tinycudann" and seen and len(x) and x.dtype == torch.float32:
            return self._by_kernels(x, seen)
        out: Tensor = _Interpolation.apply(x, self.params, self, seen)
        return out

    def _by_kernels(self, x: Tensor, seen: int) -> Tensor:
        """The same by tinycudann, with as many levels as are seen: their entries come first in the parameters."""
        levels = -(-seen // self.features)
        last = self.layout[levels - 1]
        flat = self.params.narrow(0, 0, (last.offset + last.size) * self.features)
        with torch.cuda.device_of(x):
            key = (levels, x.device)
            if key not in self._encodings:
                self._encodings[key] = self._encoding(levels, flat.numel())
            out: Tensor = torch.func.functional_call(self._encodings[key], {"params": flat}, (x,))
        return nn.functional.pad(out[:, :seen], (0, self.outputs - seen))

    def _encoding(self, levels: int, parameters: int) -> nn.Module:
        module: Any = _tinycudann()
        encoding = module.Encoding(self.dimensions, {**self._config, "n_levels": levels}, dtype=torch.float32)
        if encoding.params.numel() != parameters:
            raise MissingDependencyError(
                f"its hash grid has {encoding.params.numel()} parameters instead of {parameters}",
                place="tinycudann",
                remedy="build it as envs/scenes-cuda.post-deploy.sh does, or remove it to compute in PyTorch",
            )
        encoding.params = nn.Parameter(torch.empty(0), requires_grad=False)  # ours take its place in each call
        result: nn.Module = encoding
        return result


class Network(nn.Module):
    """A multilayer perceptron without biases, with ReLU between its layers, as tiny-cuda-nn has it.

    The one parameter `params` holds the matrices row after row: (width, inputs'), (width, width) for each further
    hidden layer, (outputs', width), where a prime rounds up to a multiple of 16. The inputs that this adds are 1, and
    so serve as biases; the outputs that it adds are dropped.

    Args:
        width: neurons of a hidden layer.
        layers: number of hidden layers, at least 1.
        seed: of the initial parameters: uniform after Glorot and Bengio (2010), with the sizes of the matrices.
        zero_last: whether the last matrix starts as zeros, and with it every output.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, layers: int, *, seed: int, zero_last: bool = True
    ) -> None:
        super().__init__()
        if min(inputs, outputs, width, layers) < 1:
            raise ValueError(f"no network: {inputs=}, {outputs=}, {width=}, {layers=}")
        self.inputs, self.outputs = inputs, outputs
        last = (_rounded_up(outputs, _PADDING), width)
        self.shapes = ((width, _rounded_up(inputs, _PADDING)), *((width, width),) * (layers - 1), last)
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for shape in self.shapes:
            bound = math.sqrt(6 / sum(shape))
            parts.append(torch.empty(shape).uniform_(-bound, bound, generator=generator).flatten())
        if zero_last:
            parts[-1].zero_()
        self.params = nn.Parameter(torch.cat(parts))

    def matrices(self) -> tuple[Tensor, ...]:
        """Views of the parameters, one for each layer, (out, in)."""
        parts = self.params.split([rows * columns for rows, columns in self.shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, self.shapes, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n, outputs) of inputs x (n, inputs)."""
        first, *others, last = self.matrices()
        bias = first[:, self.inputs :].sum(1) if first.shape[1] > self.inputs else None
        hidden = nn.functional.linear(x, first[:, : self.inputs], bias).relu_()
        for matrix in others:
            hidden = nn.functional.linear(hidden, matrix).relu_()
        return nn.functional.linear(hidden, last[: self.outputs])


class _Interpolation(torch.autograd.Function):
    """Levels one after another, or as many at once as make a good number of points.

    Gathers and scatters are one-dimensional, one for each feature: for rows of two they take several times as long on a
    CPU. What depends on the points alone is computed again in the backward: that is faster than to write it down and
    read it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, params: Tensor, grid: HashGrid, seen: int) -> Tensor:
        points = x.t().contiguous()  # (dimensions, n)
        walk = _Walk(points, grid, seen)
        flat = params.contiguous()
        out = points.new_empty(grid.outputs, points.shape[1])
        out[seen:].zero_()
        # The derivatives along each axis are by-products here, and would cost all gathers again in the backward.
        slopes = points.new_empty(grid.dimensions, *out.shape) if ctx.needs_input_grad[0] else None
        for part in walk.parts:
            table = part.spread(flat)
            for where in walk.blocks():
                index, weights, bends = part.corners(where)
                values = part.values(where)
                for number in range(len(values)):
                    torch.index_select(_from(table, number), 0, index, out=values[number].view(-1))
                if slopes is None:
                    _blend(values, weights, part.of(out, where))
                else:
                    _blend_with_slopes(values, weights, part.of(out, where), part.of(slopes, where), bends)
        walk.pause()
        ctx.save_for_backward(points, slopes)
        ctx.walk, ctx.size = walk, len(params)
        return out.t()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        points, slopes = ctx.saved_tensors
        walk: _Walk = ctx.walk
        grads = grad_out.t().contiguous()  # (outputs, n)
        grad_points = grad_params = None
        if slopes is not None:
            grad_points = torch.zeros_like(points)
            for row in range(walk.seen):
                scale = walk.layout[row // walk.features].scale
                grad_points.addcmul_(slopes[:, row], grads[row], value=scale)
            grad_points = grad_points.t()
        if ctx.needs_input_grad[1]:
            grad_params = points.new_zeros(ctx.size)
            for part in walk.parts:
                table = part.room(grad_params)
                for where in walk.blocks():
                    index, weights, _ = part.corners(where)
                    index = walk.wide(index)  # else each scatter would convert it
                    shares = part.values(where)
                    _share(part.of(grads, where), weights, shares)
                    with _in_any_order(points.device):
                        for number in range(len(shares)):
                            _from(table, number).scatter_add_(0, index, shares[number].view(-1))
                part.gather_up(table, grad_params)
        return grad_points, grad_params, None, None


class _Walk:
    """The way of one call through levels and points, and the memory that all parts of it use in turn.

    Attributes:
        parts: neighbouring levels of one kind, so many that they make a block with the points of the call.
    """

    def __init__(self, points: Tensor, grid: HashGrid, seen: int) -> None:
        self.points, self.seen = points, seen
        self.dimensions, self.features, self.layout = grid.dimensions, grid.features, grid.layout
        self.smooth = grid.interpolation == "smoothstep"
        self.n = points.shape[1]
        on_cpu = points.device.type == "cpu"  # elsewhere the range would be waited for, and all points are a block
        turns = -(-self.n // _BLOCK) if on_cpu and self.n else 1
        self.block = -(-self.n // turns)
        low, high = map(float, torch.aminmax(points)) if on_cpu and self.n else (-math.inf, math.inf)
        self.parts = self._parts(low, high, most=max(1, _TOGETHER // max(self.n, 1)))
        self._largest = self.block * 2**self.dimensions * max((len(part.levels) for part in self.parts), default=0)
        self._memory: dict[torch.dtype, Tensor] = {}

    def _parts(self, low: float, high: float, most: int) -> list[_Part]:
        parts: list[_Part] = []
        for number in range(-(-self.seen // self.features)):
            level = self.layout[number]
            copied = _reach(level, self.dimensions, self.n, low, high) if level.dense else None
            features = min(self.features, self.seen - number * self.features)
            if not (parts and len(parts[-1].levels) < most and parts[-1].accepts(level, features, copied)):
                parts.append(_Part(self, number, features))
            parts[-1].append(level, copied)
        return parts

    def blocks(self) -> Iterator[slice]:
        for start in range(0, self.n, max(self.block, 1)):
            yield slice(start, min(start + self.block, self.n))

    def room(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Memory for a number of that dtype at each corner, with any contents; the same at each call."""
        if dtype not in self._memory:
            each = self.features if dtype.is_floating_point else 1
            self._memory[dtype] = self.points.new_empty(each * self._largest, dtype=dtype)
        return self._memory[dtype][: math.prod(shape)].view(shape)

    def wide(self, index: Tensor) -> Tensor:
        """The index as int64."""
        if index.dtype == torch.int64:
            return index
        return self.room(torch.int64, *index.shape).copy_(index)

    def pause(self) -> None:
        """Give the memory back until it is asked for again."""
        self._memory.clear()


@dataclass(frozen=True)
class _Copy:
    """A table of a dense level that goes on, cycle after cycle, as far as the vertices around the points do.

    The index of a vertex in a dense level is taken modulo the size of the table, and divisions of integers are the
    slowest of all steps. With this copy there are none.

    Attributes:
        first: the index with which it begins.
        cycles: the stretches (first entry, entries) of the table that it consists of.
    """

    first: int
    cycles: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return sum(count for _, count in self.cycles)


def _reach(level: Level, dimensions: int, n: int, low: float, high: float) -> _Copy | None:
    """The copy for n points with coordinates between low and high; None where it would cost more than it saves."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    step = sum(level.resolution**axis for axis in range(dimensions))
    # One vertex more than it takes on either side, but at 0, since positions are rounded.
    first = 0 if low >= 0 else (math.floor(low * level.scale + 0.5) - 1) * step
    beyond = max(0, (math.floor(high * level.scale + 0.5) + 2) * step + 1)
    if beyond - first > _MOST_CYCLES * min(level.size, 2**dimensions * n):
        return None
    below = _cycles(first % 2**32 % level.size, -first, level.size)  # indices wrap around as uint32 do
    return _Copy(first, (*below, *_cycles(0, beyond, level.size)))


class _Part:
    """Some neighbouring levels in one call, all hashed, all dense with copies, or all dense without."""

    def __init__(self, walk: _Walk, first: int, features: int) -> None:
        self.walk, self.first, self.features = walk, first, features
        self.levels: list[Level] = []
        self.copies: list[_Copy] = []
        self._entries = 0

    def accepts(self, level: Level, features: int, copied: _Copy | None) -> bool:
        """Whether a level can be treated together with these; indices have to remain below 2**31."""
        same = self.levels[0].dense == level.dense and bool(self.copies) == (copied is not None)
        return same and self.features == features and self._entries * self.walk.features < 2**29

    def append(self, level: Level, copied: _Copy | None) -> None:
        self.levels.append(level)
        if copied is not None:
            self.copies.append(copied)
        self._entries += level.size if copied is None else len(copied)

    def of(self, rows: Tensor, where: slice) -> Tensor:
        """Of values (..., outputs, n) these (..., features, 1, levels, block)."""
        of_level = rows.unflatten(-2, (-1, self.walk.features))[..., where]
        here = slice(self.first, self.first + len(self.levels))
        return of_level[..., here, : self.features, :].transpose(-3, -2).unsqueeze(-3)

    def values(self, where: slice) -> Tensor:
        """Room for a number (features, corners, levels, block) of each feature at each corner."""
        shape = (self.features, 2**self.walk.dimensions, len(self.levels), where.stop - where.start)
        return self.walk.room(self.walk.points.dtype, *shape)

    def _own(self, flat: Tensor) -> Tensor:
        """The part of the parameters, or of a gradient, that is these levels'."""
        features, first, last = self.walk.features, self.levels[0], self.levels[-1]
        return flat.narrow(0, first.offset * features, (last.offset + last.size - first.offset) * features)

    def _stretches(self, flat: Tensor) -> Iterator[Tensor]:
        features = self.walk.features
        for level, copied in zip(self.levels, self.copies, strict=True):
            for start, count in copied.cycles:
                yield flat.narrow(0, (level.offset + start) * features, count * features)

    def spread(self, flat: Tensor) -> Tensor:
        """What the indices of `corners` are of: these levels' parameters, or the copies."""
        return torch.cat(list(self._stretches(flat))) if self.copies else self._own(flat)

    def room(self, flat: Tensor) -> Tensor:
        """The same for a gradient: these levels' part of it, or zeros that `gather_up` adds to it."""
        return flat.new_zeros(self._entries * self.walk.features) if self.copies else self._own(flat)

    def gather_up(self, table: Tensor, flat: Tensor) -> None:
        """Bring what was added to `room` to the gradient."""
        start = 0
        for stretch in self._stretches(flat) if self.copies else ():
            stretch += table.narrow(0, start, len(stretch))
            start += len(stretch)

    def corners(self, where: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of each point and level the corners of its cell, and where it is between them.

        Returns:
            Flat indices (corners * levels * n,) of the first feature, int32 or int64; bit d of a corner's number is its
            side along axis d. Weights (dimensions, levels, n) of the upper sides. Their derivative by the place in the
            cell, where it is not 1.
        """
        points = self.walk.points[:, where]
        dimensions, n = points.shape
        half = torch.tensor(0.5, dtype=points.dtype)  # one number on the CPU goes with any device
        weights = points.new_empty(dimensions, len(self.levels), n)
        for number, level in enumerate(self.levels):
            # With a factor `add` rounds once (fused multiply-add), as the kernels do.
            torch.add(half, points, alpha=level.scale, out=weights[:, number])
        floors = weights.floor()
        cells = floors.to(torch.int32)
        weights -= floors
        bends = None
        if self.walk.smooth:
            rest = 1 - weights
            bends = weights * rest * 6
            weights = weights * weights * (rest * 2 + 1)
        index = self.walk.room(torch.int32, 2**dimensions, len(self.levels), n)
        if not self.levels[0].dense:
            self._hash(cells, index)
        elif self.copies:
            self._count(cells, index, self.walk.features)
            ends = accumulate(map(len, self.copies))
            begins = [end - len(copied) - copied.first for end, copied in zip(ends, self.copies, strict=True)]
            self._shift(index, begins)
        else:
            self._count(cells, index, 1)
            sizes = torch.tensor([[level.size] for level in self.levels], device=points.device)
            index = self.walk.wide(index).bitwise_and_(2**32 - 1).remainder_(sizes).mul_(self.walk.features)
            self._shift(index, [level.offset - self.levels[0].offset for level in self.levels])
        return index.view(-1), weights, bends

    def _shift(self, index: Tensor, entries: list[int]) -> None:
        """Add to the indices (corners, levels, n) so many entries in each level."""
        if any(entries):
            by = torch.tensor(entries, dtype=index.dtype, device=index.device) * self.walk.features
            index += by[:, None]

    def _hash(self, cells: Tensor, index: Tensor) -> None:
        """Hashes of the corners, times the number of features, which is a power of two as is the size of the table."""
        features, size = self.walk.features, self.levels[0].size
        mask = (size - 1) * features
        for axis, lower in enumerate(cells):
            factor = _as_int32(_FACTORS[axis] * features)
            upper = lower.mul_(factor) + factor
            lower.bitwise_and_(mask)
            upper.bitwise_and_(mask)
            known = 2**axis
            if axis:
                torch.bitwise_xor(index[:known], upper, out=index[known : 2 * known])
                index[:known].bitwise_xor_(lower)
            else:
                index[0], index[1] = lower, upper
        self._shift(index, [number * size for number in range(len(self.levels))])

    def _count(self, cells: Tensor, index: Tensor, features: int) -> None:
        """Numbers of the corners in a dense level, times `features`, in the arithmetic of int32."""
        strides = [
            [_as_int32(level.resolution**axis * features) for level in self.levels] for axis in range(len(cells))
        ]
        steps = torch.tensor(strides, dtype=torch.int32, device=cells.device)[:, :, None]
        cells.mul_(steps)
        torch.add(cells[0], cells[1], out=index[0])
        for cell in cells[2:]:
            index[0].add_(cell)
        for axis, step in enumerate(steps):
            known = 2**axis
            torch.add(index[:known], step, out=index[known : 2 * known])


def _blend(values: Tensor, weights: Tensor, out: Tensor) -> None:
    """Interpolate values (features, corners, levels, n) with weights (dimensions, levels, n) into out, with one corner.

    What is between is written over the values.
    """
    for axis in reversed(range(len(weights))):
        low, high = values[:, : 2**axis], values[:, 2**axis : 2 ** (axis + 1)]
        torch.lerp(low, high, weights[axis], out=low if axis else out)


def _blend_with_slopes(values: Tensor, weights: Tensor, out: Tensor, slopes: Tensor, bends: Tensor | None) -> None:
    """The same, and the derivatives by the place in the cell into slopes (dimensions, features, 1, levels, n)."""
    derived: dict[int, Tensor] = {}
    for axis in reversed(range(len(weights))):
        low, high = values[:, : 2**axis], values[:, 2**axis : 2 ** (axis + 1)]
        for other, slope in derived.items():
            into = None if axis else slopes[other]
            derived[other] = torch.lerp(slope[:, : 2**axis], slope[:, 2**axis :], weights[axis], out=into)
        derived[axis] = torch.sub(high, low, out=None if axis else slopes[0])
        torch.lerp(low, high, weights[axis], out=low if axis else out)
    if bends is not None:
        slopes *= bends[:, None, None]


def _share(grads: Tensor, weights: Tensor, shares: Tensor) -> None:
    """What each corner has of the gradients (features, 1, levels, n), into shares (features, corners, levels, n)."""
    first = shares[:, :1]
    first.copy_(grads)
    for axis, weight in enumerate(weights):
        low, high = shares[:, : 2**axis], shares[:, 2**axis : 2 ** (axis + 1)]
        torch.mul(low, weight, out=high)
        low.sub_(high)


@contextmanager
def _in_any_order(device: torch.device) -> Iterator[None]:
    """Let a GPU add as it likes: the deterministic form of a scatter sorts all indices, for each feature again."""
    if device.type != "cuda" or not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


def _cycles(start: int, count: int, size: int) -> Iterator[tuple[int, int]]:
    """Stretches (first, length) of a table of `size` entries that is read `count` entries on, over and over."""
    while count > 0:
        length = min(count, size - start)
        yield start, length
        start, count = 0, count - length


def _from(table: Tensor, number: int) -> Tensor:
    """The table from its feature `number` on: indices of first features are then indices of these."""
    return table.narrow(0, number, len(table) - number)


def _as_int32(number: int) -> int:
    """The number modulo 2**32, as a signed one."""
    return (number + 2**31) % 2**32 - 2**31


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@cache
def _tinycudann() -> ModuleType | None:
    try:
        return importlib.import_module("tinycudann")
    except (ImportError, OSError):  # OSError: there is no GPU, or the library was built for another
        return None


@cache
def _log_once(chosen: Backend, device: str) -> None:
    logger.info("hash grids on %s: %s", device, chosen)
