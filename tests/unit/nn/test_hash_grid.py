"""Hash grids and networks in the layout of tiny-cuda-nn: known values, an independent form, gradients, backends."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from manyscope.errors import MissingDependencyError
from manyscope.nn import hash_grid
from manyscope.nn.hash_grid import HashGrid, Network, backend, level_layout

PRIMES = np.array([1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737], np.uint32)
LARGE = (16, 17, 4, 1.61)  # levels, log2_table, base and scale of Neural Atlas Graphs


def hashed(*vertex: int) -> int:
    value = np.uint32(0)
    with np.errstate(over="ignore"):
        for axis, coordinate in enumerate(vertex):
            value ^= np.uint32(coordinate % 2**32) * PRIMES[axis]
    return int(value)


def plain(x: np.ndarray, params: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """The same features in numpy: corner by corner, indices in uint32, sums in float64."""
    log2_scale = np.log2(np.float32(config["per_level_scale"]))
    features, base = config["n_features_per_level"], np.float32(config["base_resolution"])
    outputs, offset = [], 0
    for number in range(config["n_levels"]):
        scale = np.float32(np.exp2(np.float32(number) * log2_scale) * base - np.float32(1))
        resolution = int(np.ceil(scale)) + 1
        size = min(-(-(resolution ** x.shape[1]) // 8) * 8, 2 ** config["log2_hashmap_size"])
        table = params[offset * features : (offset + size) * features].reshape(size, features).astype(np.float64)
        offset += size
        # The product of two float32 is exact in float64, so this rounds once.
        position = (x.astype(np.float64) * np.float64(scale) + 0.5).astype(x.dtype)
        cell = np.floor(position)
        weight = (position - cell).astype(np.float64)
        if config["interpolation"] == "Smoothstep":
            weight = weight**2 * (3 - 2 * weight)
        vertex = cell.astype(np.int64)
        total = np.zeros((len(x), features))
        for upper in itertools.product((0, 1), repeat=x.shape[1]):
            factor = np.where(upper, weight, 1 - weight).prod(1)
            corner = (vertex + upper).astype(np.uint32)
            if resolution ** x.shape[1] <= size:
                strides = np.array([resolution**axis % 2**32 for axis in range(x.shape[1])], np.uint32)
                index = (corner * strides).sum(1, dtype=np.uint32)
            else:
                index = np.bitwise_xor.reduce(corner * PRIMES[: x.shape[1]], axis=1)
            total += factor[:, None] * table[index % np.uint32(size)]
        outputs.append(total)
    return np.concatenate(outputs, 1)


def config_of(grid: HashGrid) -> dict[str, Any]:
    return {**grid._config, "n_levels": len(grid.layout)}


def filled(grid: HashGrid, seed: int = 0) -> HashGrid:
    with torch.no_grad():
        grid.params.uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
    return grid


def points(n: int, dimensions: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    """Points with the ends of the range among them."""
    x = torch.rand(n, dimensions, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    x[0], x[1] = low, high
    x[2, 0] = high
    return x


def between_vertices(grid: HashGrid, n: int) -> Tensor:
    """Points that are off the borders of their cells in every level, in float64."""
    x = torch.rand(4000, grid.dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scales = torch.tensor([level.scale for level in grid.layout], dtype=torch.float64)
    place = (x[:, :, None] * scales + 0.5).frac()
    return x[((place > 0.05) & (place < 0.95)).all(2).all(1)][:n]


# ------------------------------------------------------------------------------------------------------ the layout
def test_layout_in_two_dimensions() -> None:
    layout = level_layout(2, 4, 10, 16, 2.0)
    assert [level.scale for level in layout] == [15, 31, 63, 127]
    assert [level.resolution for level in layout] == [16, 32, 64, 128]
    assert [level.size for level in layout] == [256, 1024, 1024, 1024]
    assert [level.offset for level in layout] == [0, 256, 1280, 2304]
    assert [level.dense for level in layout] == [True, True, False, False]
    assert HashGrid(2, 4, 2, 10, 16, 2.0, seed=0).params.shape == (6656,)


def test_layout_in_three_dimensions() -> None:
    layout = level_layout(3, 4, 10, 4, 2.0)
    assert [level.resolution for level in layout] == [4, 8, 16, 32]
    assert [level.size for level in layout] == [64, 512, 1024, 1024]
    assert [level.dense for level in layout] == [True, True, False, False]


@pytest.mark.parametrize(("dimensions", "dense", "parameters"), [(2, 10, 3698944), (3, 6, 5689024), (4, 4, 6694816)])
def test_layout_of_neural_atlas_graphs(dimensions: int, dense: int, parameters: int) -> None:
    layout = level_layout(dimensions, *LARGE)
    assert [level.resolution for level in layout] == [
        4, 7, 11, 17, 27, 44, 70, 113, 181, 291, 469, 754, 1214, 1954, 3146, 5064,
    ]  # fmt: skip
    assert [level.dense for level in layout] == [True] * dense + [False] * (16 - dense)
    assert (layout[-1].offset + layout[-1].size) * 4 == parameters


def test_sizes_are_capped_before_they_are_rounded() -> None:
    """A level with more vertices than 32 bits count is hashed all the same."""
    last = level_layout(4, 2, 12, 16, 1000.0)[-1]
    assert (last.resolution, last.size, last.dense) == (16000, 4096, False)


@pytest.mark.parametrize(
    "wrong",
    [(1, 4, 10, 16, 2.0), (8, 4, 10, 16, 2.0), (2, 0, 10, 16, 2.0), (2, 4, 2, 16, 2.0), (2, 4, 25, 16, 2.0),
     (2, 4, 10, 0, 2.0), (2, 4, 10, 16, 0.0)],
)  # fmt: skip
def test_layouts_that_cannot_be(wrong: tuple[int, int, int, int, float]) -> None:
    with pytest.raises(ValueError, match="no grid"):
        level_layout(*wrong)


def test_grids_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="3 features"):
        HashGrid(2, 4, 3, 10, 16, 2.0, seed=0)
    with pytest.raises(ValueError, match="'cubic'"):
        HashGrid(2, 4, 2, 10, 16, 2.0, "cubic", seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("vertex", "value", "entry"),
    [((5, 7), 1401181138, 21458), ((100, 200), 2606174764, 70188), ((5, 7, 9), 3817949167, 83951),
     ((100, 200, 300), 3655970992, 110768)],
)  # fmt: skip
def test_hash(vertex: tuple[int, ...], value: int, entry: int) -> None:
    """At a vertex the output is that of one entry; here each entry holds its own number."""
    assert hashed(*vertex) == value
    grid = HashGrid(len(vertex), 1, 1, 17, 513, 2.0, seed=0)
    grid.params = nn.Parameter(torch.arange(2.0**17))
    assert not grid.layout[0].dense
    x = (torch.tensor([vertex]) - 0.5) / 512  # exact in binary
    assert grid(x).item() == entry


# -------------------------------------------------------------------------------------------- an independent form
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("dimensions", [2, 3, 4, 7])
def test_output_is_that_of_the_plain_form(dimensions: int, features: int, interpolation: Any) -> None:
    grid = filled(HashGrid(dimensions, 7, features, 10, 2, 1.7, interpolation, seed=0))
    assert {level.dense for level in grid.layout} == {True, False}
    for low, high in ((0.0, 1.0), (-0.04, 1.02), (-9.0, 5.0), (0.3, 0.31)):
        x = points(60, dimensions, low, high)
        expected = plain(x.numpy(), grid.params.detach().numpy(), config_of(grid))
        assert np.abs(grid(x).detach().numpy() - expected).max() < 1e-6


@settings(max_examples=60, deadline=None)
@given(
    dimensions=st.integers(2, 4),
    levels=st.integers(1, 5),
    log2_table=st.integers(3, 12),
    base=st.integers(1, 20),
    scale=st.floats(1.0, 2.5),
    low=st.floats(-3, 1),
    width=st.floats(0, 4),
    n=st.integers(3, 40),
    block=st.integers(1, 50),
    together=st.integers(1, 200),
)
def test_any_grid_is_that_of_the_plain_form(
    dimensions: int, levels: int, log2_table: int, base: int, scale: float, low: float, width: float, n: int,
    block: int, together: int,
) -> None:  # fmt: skip
    """However points and levels are cut into turns."""
    grid = filled(HashGrid(dimensions, levels, 2, log2_table, base, scale, seed=0))
    x = points(n, dimensions, low, low + width)
    expected = plain(x.numpy(), grid.params.detach().numpy(), config_of(grid))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hash_grid, "_BLOCK", block)
        patch.setattr(hash_grid, "_TOGETHER", together)
        assert np.abs(grid(x).detach().numpy() - expected).max() < 1e-6


def test_large_grid_is_that_of_the_plain_form() -> None:
    """With tables and positions of real size."""
    levels, log2_table, base, scale = LARGE
    grid = filled(HashGrid(2, levels, 4, log2_table, base, scale, seed=0))
    x = points(2000, 2)
    expected = plain(x.numpy(), grid.params.detach().numpy(), config_of(grid))
    assert np.abs(grid(x).detach().numpy() - expected).max() < 1e-6


def test_points_that_are_no_numbers_do_not_reach_the_others() -> None:
    grid = filled(HashGrid(2, 5, 2, 8, 4, 2.0, seed=0))
    x = points(20, 2)
    x[4, 0], x[9, 1], x[11] = torch.nan, torch.inf, -torch.inf
    sound = torch.ones(20, dtype=torch.bool)
    sound[[4, 9, 11]] = False
    out = grid(x)
    torch.testing.assert_close(out[sound], grid(x[sound]))
    assert out[~sound].isnan().any(1).all()


def test_no_points() -> None:
    grid = HashGrid(3, 4, 2, 8, 4, 2.0, seed=0)
    x = torch.empty(0, 3, requires_grad=True)
    out = grid(x)
    out.sum().backward()
    assert out.shape == (0, 8)
    assert grid.params.grad is not None
    assert not grid.params.grad.any()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_points_are_taken_in_the_dtype_of_the_parameters(dtype: torch.dtype) -> None:
    grid = filled(HashGrid(2, 4, 2, 8, 4, 2.0, seed=0))
    x = points(30, 2).to(dtype)
    assert grid(x).dtype == torch.float32
    assert torch.equal(grid(x), grid(x.float()))
    assert grid.double()(x).dtype == torch.float64


# --------------------------------------------------------------------------------------------------- the gradients
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize(("dimensions", "features"), [(2, 1), (2, 4), (3, 2), (4, 2)])
def test_gradients(dimensions: int, features: int, interpolation: Any) -> None:
    grid = HashGrid(dimensions, 3, features, 5, 2, 1.9, interpolation, seed=0).double()
    assert {level.dense for level in grid.layout} == {True, False}
    x = between_vertices(grid, 5).requires_grad_()
    params = torch.randn_like(grid.params, requires_grad=True)

    def features_at(x: Tensor, params: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(grid, {"params": params}, (x,))
        return out

    assert torch.autograd.gradcheck(features_at, (x, params))
    assert torch.autograd.gradcheck(lambda x: features_at(x, params.detach()), (x,))
    assert torch.autograd.gradcheck(lambda params: features_at(x.detach(), params), (params,))


@pytest.mark.parametrize("low", [-0.3, -4.0])
def test_gradients_beyond_the_unit_cube(low: float) -> None:
    grid = HashGrid(2, 3, 2, 5, 2, 1.9, seed=0).double()
    x = between_vertices(grid, 6)
    x[:3] += round(low)
    x[3:] -= round(low) - 1
    params = torch.randn_like(grid.params, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, params: torch.func.functional_call(grid, {"params": params}, (x,)), (x.requires_grad_(), params)
    )


def test_gradients_do_not_depend_on_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = filled(HashGrid(3, 7, 2, 9, 3, 1.6, "smoothstep", seed=0)).double()
    x = points(50, 3).double().requires_grad_()
    weights = torch.randn(50, grid.outputs, dtype=torch.float64)
    whole = torch.autograd.grad(grid(x), (x, grid.params), weights)
    monkeypatch.setattr(hash_grid, "_BLOCK", 7)
    monkeypatch.setattr(hash_grid, "_TOGETHER", 150)
    for turns, once in zip(torch.autograd.grad(grid(x), (x, grid.params), weights), whole, strict=True):
        torch.testing.assert_close(turns, once)


def test_there_are_no_second_derivatives() -> None:
    grid = HashGrid(2, 2, 2, 8, 4, 2.0, seed=0)
    x = points(5, 2).requires_grad_()
    (slope,) = torch.autograd.grad(grid(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_step_gives_the_same_bits_again() -> None:
    x, weights = points(5000, 2), torch.randn(5000, 16)
    first, second = (
        torch.autograd.grad(grid(at), (at, grid.params), weights)
        for grid in (HashGrid(2, 8, 2, 10, 4, 1.8, seed=3) for _ in range(2))
        for at in [x.clone().requires_grad_()]
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def restored() -> Iterator[None]:
    """What torch was asked for of deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.parametrize("warn_only", [True, False])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_only_a_gpu_may_add_in_any_order(restored: None, device: str, warn_only: bool) -> None:
    torch.use_deterministic_algorithms(True, warn_only=warn_only)

    def state() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    with pytest.raises(RuntimeError, match="from inside"), hash_grid._in_any_order(torch.device(device)):
        assert state()[0] == (device == "cpu")
        raise RuntimeError("from inside")
    assert state() == (True, warn_only)
    torch.use_deterministic_algorithms(False)
    with hash_grid._in_any_order(torch.device(device)):
        assert not state()[0]
    assert not state()[0]


def test_the_scatter_of_a_gradient_is_what_may_be_in_any_order(restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but for the sums."""
    torch.use_deterministic_algorithms(True)
    during: list[bool] = []
    plainly, freely = torch.Tensor.scatter_add_, hash_grid._in_any_order

    def scatter(self: Tensor, *arguments: Any) -> Tensor:
        during.append(torch.are_deterministic_algorithms_enabled())
        return plainly(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "scatter_add_", scatter)
    grid, x = HashGrid(2, 4, 2, 8, 4, 1.8, seed=0), points(50, 2)
    grid(x).sum().backward()
    assert during
    assert all(during)
    during.clear()
    monkeypatch.setattr(hash_grid, "_in_any_order", lambda _: freely(torch.device("cuda")))
    grid(x).sum().backward()
    assert during
    assert not any(during)
    assert torch.are_deterministic_algorithms_enabled()


# ------------------------------------------------------------------------------------------- parameters, visibility
def test_initial_parameters_are_small_and_of_the_seed() -> None:
    grid, again, other = (HashGrid(2, 8, 2, 12, 16, 1.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(grid.params, again.params)
    assert not torch.equal(grid.params, other.params)
    assert 0.99e-4 < float(grid.params.detach().abs().max()) <= 1e-4
    assert abs(float(grid.params.detach().mean())) < 2e-6


def test_making_a_grid_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    HashGrid(2, 4, 2, 8, 4, 2.0, seed=5)
    Network(3, 3, 8, 1, seed=5)
    assert torch.equal(torch.rand(1), expected)


def test_state_is_one_flat_vector() -> None:
    grid, other = HashGrid(2, 4, 2, 10, 16, 2.0, seed=0), HashGrid(2, 4, 2, 10, 16, 2.0, seed=1)
    assert {name: value.shape for name, value in grid.state_dict().items()} == {"params": (6656,)}
    other.load_state_dict(grid.state_dict())
    x = points(30, 2)
    assert torch.equal(grid(x), other(x))


@pytest.mark.parametrize("visible", [0, 1, 4, 7, 12, 99, None])
def test_hidden_features_are_zero_and_learn_nothing(visible: int | None) -> None:
    grid = filled(HashGrid(2, 4, 4, 7, 4, 2.0, seed=0))
    seen = 16 if visible is None else min(visible, 16)
    x = points(40, 2).requires_grad_()
    out = grid(x, visible)
    torch.testing.assert_close(out[:, :seen], grid(x)[:, :seen])
    assert not out[:, seen:].any()
    weights = torch.ones_like(out)
    found = torch.autograd.grad(out, (x, grid.params), weights)
    expected = torch.autograd.grad(grid(x), (x, grid.params), weights * (torch.arange(16) < seen))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_hidden_levels_cost_no_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = []
    real = torch.index_select

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = real(*args, **kwargs)
        gathered.append(result.numel())
        return result

    monkeypatch.setattr(torch, "index_select", counted)
    grid = HashGrid(2, 4, 2, 7, 4, 2.0, seed=0)
    grid(points(10, 2), 3)
    assert sum(gathered) == 3 * 4 * 10


# -------------------------------------------------------------------------------------------------- the CUDA kernels
class StandIn(nn.Module):
    """What `tinycudann.Encoding` promises, computed by the plain form of above"""

    made: list[StandIn] = []  # noqa: RUF012

    def __init__(
        self, n_input_dims: int, encoding_config: dict[str, Any], seed: int = 1337, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        assert dtype == torch.float32
        self.n_input_dims, self.config = n_input_dims, encoding_config
        levels = level_layout(
            n_input_dims,
            encoding_config["n_levels"],
            encoding_config["log2_hashmap_size"],
            encoding_config["base_resolution"],
            encoding_config["per_level_scale"],
        )
        entries = sum(level.size for level in levels)
        self.params = nn.Parameter(torch.zeros(entries * encoding_config["n_features_per_level"]))
        self.made.append(self)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        at = x.detach().numpy()
        # The output is linear in the parameters: its matrix, column by column.
        basis = np.eye(len(self.params))
        matrix = np.stack([plain(at, column, self.config) for column in basis])
        return torch.einsum("pnf,p->nf", torch.from_numpy(matrix).float(), self.params)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StandIn]]:
    """Grids on a CPU take the way that they take on CUDA, to a stand-in."""
    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=StandIn))
    hash_grid._tinycudann.cache_clear()
    assert backend("cuda") == "tinycudann"
    monkeypatch.setattr(hash_grid, "backend", lambda device: "tinycudann")
    StandIn.made.clear()
    yield StandIn.made
    hash_grid._tinycudann.cache_clear()


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
def test_kernels_get_the_configuration_and_our_parameters(kernels: list[StandIn], interpolation: Any) -> None:
    grid = filled(HashGrid(2, 3, 2, 4, 3, 1.5, interpolation, seed=0))
    x, weights = points(12, 2), torch.randn(12, 6)
    out = grid(x)
    assert torch.equal(grid(x), out)
    (encoding,) = kernels
    assert encoding.n_input_dims == 2
    assert encoding.config == {
        "otype": "HashGrid",
        "type": "Hash",
        "n_levels": 3,
        "n_features_per_level": 2,
        "log2_hashmap_size": 4,
        "base_resolution": 3,
        "per_level_scale": 1.5,
        "interpolation": interpolation.capitalize(),
    }
    (found,) = torch.autograd.grad(out, grid.params, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hash_grid, "backend", lambda device: "torch")
        ours = grid(x)
    torch.testing.assert_close(out, ours)
    torch.testing.assert_close(found, torch.autograd.grad(ours, grid.params, weights)[0])


def test_kernels_leave_no_trace_in_the_state(kernels: list[StandIn]) -> None:
    grid = HashGrid(2, 3, 2, 4, 3, 1.5, seed=0)
    before = grid.state_dict()
    grid(points(5, 2))
    assert kernels[0].params.numel() == 0  # no second table lies on the GPU
    assert list(grid.modules()) == [grid]
    assert [name for name, _ in grid.named_parameters()] == ["params"] == list(grid.state_dict())
    assert torch.equal(grid.state_dict()["params"], before["params"])


def test_kernels_compute_no_hidden_levels(kernels: list[StandIn]) -> None:
    grid = filled(HashGrid(2, 3, 2, 4, 3, 1.5, seed=0))
    x = points(7, 2)
    whole, part = grid(x), grid(x, 3)
    assert [encoding.config["n_levels"] for encoding in kernels] == [3, 2]
    torch.testing.assert_close(part[:, :3], whole[:, :3])
    assert part.shape == whole.shape
    assert not part[:, 3:].any()
    (grad,) = torch.autograd.grad(part.sum(), grid.params)
    second, third = grid.layout[1], grid.layout[2]
    assert grad[second.offset * 2 : third.offset * 2].any()
    assert not grad[third.offset * 2 :].any()


def test_kernels_are_not_asked_for_what_they_do_not_have(kernels: list[StandIn]) -> None:
    """More than four dimensions, other precisions, no points."""
    HashGrid(5, 2, 2, 4, 2, 1.5, seed=0)(points(5, 5))
    HashGrid(2, 2, 2, 4, 2, 1.5, seed=0).double()(points(5, 2))
    HashGrid(2, 2, 2, 4, 2, 1.5, seed=0)(torch.empty(0, 2))
    assert not kernels


def test_kernels_with_another_layout_are_refused(kernels: list[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(StandIn):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.params = nn.Parameter(torch.zeros(3))

    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=Other))
    hash_grid._tinycudann.cache_clear()
    with pytest.raises(MissingDependencyError, match="3 parameters instead of 48"):
        HashGrid(2, 2, 1, 5, 3, 1.5, seed=0)(points(5, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("chosen", ["torch", "tinycudann"])
def test_on_a_gpu_the_values_are_those_of_the_cpu(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if chosen == "tinycudann" and backend("cuda") == "torch":
        pytest.skip("needs tinycudann")
    monkeypatch.setattr(hash_grid, "backend", lambda device: chosen if torch.device(device).type == "cuda" else "torch")
    grid, weights = filled(HashGrid(3, 8, 2, 12, 4, 1.8, seed=0)), torch.randn(300, 16)
    x = between_vertices(grid, 300).float()
    found = {}
    for device in ("cpu", "cuda"):
        at = x.to(device).requires_grad_()
        out = grid.to(device)(at)
        found[device] = [out, *torch.autograd.grad(out, (at, grid.params), weights[: len(x)].to(device))]
    for there, here in zip(found["cuda"], found["cpu"], strict=True):
        torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("Unknown compute capability")])
def test_without_kernels_torch_computes(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == "tinycudann":
            raise error
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    hash_grid._tinycudann.cache_clear()
    assert backend("cuda") == backend(torch.device("cpu")) == "torch"
    hash_grid._tinycudann.cache_clear()


def test_the_log_says_once_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    monkeypatch.setattr(hash_grid.logger, "info", lambda text, *values: said.append(text % values))
    hash_grid._log_once.cache_clear()
    grid = HashGrid(2, 2, 2, 4, 2, 1.5, seed=0)
    grid(points(5, 2))
    grid(points(5, 2))
    assert said == ["hash grids on cpu: torch"]


# ------------------------------------------------------------------------------------------------------ the network
@pytest.mark.parametrize("inputs", [5, 16, 30])
@pytest.mark.parametrize("layers", [1, 3])
def test_network_is_a_product_of_matrices(inputs: int, layers: int) -> None:
    network = Network(inputs, 3, 24, layers, seed=0, zero_last=False).double()
    padded = -(-inputs // 16) * 16
    flat = network.params.detach().numpy()
    assert len(flat) == 24 * padded + (layers - 1) * 24 * 24 + 16 * 24
    x = np.random.default_rng(0).normal(size=(11, inputs))
    hidden = np.concatenate([x, np.ones((11, padded - inputs))], 1)
    start = 0
    for columns in [padded] + [24] * (layers - 1):
        matrix = flat[start : start + 24 * columns].reshape(24, columns)
        hidden = np.maximum(hidden @ matrix.T, 0)
        start += 24 * columns
    expected = hidden @ flat[start:].reshape(16, 24)[:3].T
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-12)
    assert list(network.state_dict()) == ["params"]


def test_network_has_the_right_gradient() -> None:
    network = Network(5, 2, 8, 2, seed=0, zero_last=False).double()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    params = network.params.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, params: torch.func.functional_call(network, {"params": params}, (x,)), (x, params)
    )


def test_network_starts_as_nothing_and_learns() -> None:
    network = Network(6, 3, 16, 2, seed=0)
    out = network(torch.rand(9, 6))
    assert not out.any()
    out.sum().backward()
    assert network.params.grad is not None
    assert network.params.grad[-16 * 16 : -13 * 16].any()


def test_initial_matrices_are_uniform_by_their_padded_sizes() -> None:
    network = Network(20, 3, 64, 2, seed=1, zero_last=False)
    for matrix, sizes in zip(network.matrices(), (64 + 32, 64 + 64, 16 + 64), strict=True):
        bound = (6 / sizes) ** 0.5
        assert 0.95 * bound < float(matrix.detach().abs().max()) <= bound
    assert torch.equal(network.params, Network(20, 3, 64, 2, seed=1, zero_last=False).params)
    assert not torch.equal(network.params, Network(20, 3, 64, 2, seed=2, zero_last=False).params)


def test_networks_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="layers=0"):
        Network(3, 3, 16, 0, seed=0)


def test_grid_and_network_learn_a_picture_together() -> None:
    grid, network = HashGrid(2, 6, 2, 10, 4, 1.7, seed=0), Network(12, 1, 16, 1, seed=1)
    x = points(800, 2)
    target = torch.sin(9 * x[:, :1]) * torch.cos(7 * x[:, 1:])
    optimizer = torch.optim.Adam([*grid.parameters(), *network.parameters()], lr=1e-2, eps=1e-15)
    for _ in range(60):
        loss = (network(grid(x)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01 * float(target.square().mean())
