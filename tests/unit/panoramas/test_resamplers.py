"""Resamplers: shapes, grids, arguments, and what each of them is."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

from forked import SAMPLES, on_processes
from manyscope.errors import ManyscopeError, MissingDependencyError, SettingsError
from manyscope.nn.across import Share, sharing
from manyscope.scopes.panoramas.model.resamplers import Resampler, build_resampler
from manyscope.scopes.panoramas.settings import ResamplerSettings

cloudpickle.register_pickle_by_value(sys.modules[__name__])

GRID, INPUTS, WIDTH = 4, 8, 6
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 10},
    "qformer": {"queries": 5, "depth": 2, "heads": 2},
    "perceiver": {"latents": 5, "depth": 2, "heads": 2, "head_width": 4},
    "c_abstractor": {"hidden": 8, "blocks": 1},
    "spatial_pool": {"factor": 2},
    "masked_drop": {},
    "bimamba": {"hidden": 8, "depth": 2},
}


class Cumulative(nn.Module):
    """Stands for a causal model of a row: what is behind does not matter."""

    def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__()
        self.args = (d_model, d_state, d_conv, expand)
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1) * self.weight


@pytest.fixture(autouse=True)
def mamba(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("mamba_ssm")
    package.Mamba = Cumulative  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    torch.manual_seed(0)


def build(name: str, grid: int = GRID, width: int = WIDTH, **args: Any) -> Resampler:
    settings = ResamplerSettings(name=name, width=width, args={**SMALL.get(name, {}), **args})
    return build_resampler(settings, INPUTS, grid)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "args", "grid", "tokens"),
    [
        ("mlp", {}, 4, 16),
        ("mlp", {"depth": 1}, 4, 16),
        ("mlp", {"pool_tokens": 3}, None, 3),
        ("qformer", {}, None, 5),
        ("perceiver", {}, None, 5),
        ("c_abstractor", {}, 4, 16),
        ("c_abstractor", {"queries": 9}, 3, 9),
        ("spatial_pool", {}, 2, 4),
        ("spatial_pool", {"mode": "max"}, 2, 4),
        ("spatial_pool", {"mode": "conv", "factor": 4}, 1, 1),
        ("masked_drop", {}, 4, 16),
        ("bimamba", {}, 4, 16),
    ],
)
def test_shapes_gradients_and_grids(name: str, args: dict[str, Any], grid: int | None, tokens: int) -> None:
    made = build(name, **args)
    assert (made.grid, made.tokens, made.width) == (grid, tokens, WIDTH)
    x = numbers(3, GRID, GRID, INPUTS).requires_grad_()
    assert made(x).shape == (3, tokens, WIDTH)
    out = made.eval()(x)
    assert out.shape == (3, tokens, WIDTH)
    out.square().sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    # Views of a sample are as good as samples, and none sees another.
    views = numbers(2, 3, GRID, GRID, INPUTS)
    torch.testing.assert_close(made(views), made(views.flatten(0, 1)).unflatten(0, (2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made(views)[1, 2], made(views[1:, 2])[0], atol=1e-5, rtol=1e-5)


def test_the_perceptron_of_the_rooms() -> None:
    made = build("mlp", width=5, depth=2, hidden=7, norm=False)
    kinds = [(type(layer).__name__, getattr(layer, "out_features", None)) for layer in made.layers]
    assert kinds == [("Linear", 7), ("GELU", None), ("Linear", 5)]
    usual = build_resampler(ResamplerSettings(width=WIDTH), INPUTS, GRID).layers
    assert [type(layer).__name__ for layer in usual] == ["Linear", "LayerNorm", "GELU"] * 2 + ["Linear"]
    assert usual[0].out_features == 2 * WIDTH


def test_grids_are_in_rows_downwards() -> None:
    x = torch.zeros(1, GRID, GRID, INPUTS)
    x[0, 1, 2] = 1
    for name, changed in (("mlp", {6}), ("spatial_pool", {1})):
        made = build(name).eval()
        difference = (made(x) - made(torch.zeros_like(x)))[0].abs().sum(-1)
        assert set(difference.nonzero()[:, 0].tolist()) == changed


def test_pooling_is_that_of_its_mode() -> None:
    x = numbers(2, GRID, GRID, INPUTS)
    blocks = x.unflatten(1, (2, 2)).unflatten(3, (2, 2))
    for mode, expected in (("average", blocks.mean((2, 4))), ("max", blocks.amax((2, 4)))):
        made = build("spatial_pool", mode=mode)
        torch.testing.assert_close(made(x), made.layers(expected.flatten(1, 2)))


def test_a_dropping_resampler_shows_a_random_share_while_training() -> None:
    made = build("masked_drop", keep=0.25)
    x = numbers(2, 3, GRID, GRID, INPUTS)
    assert torch.equal(made.train()(x), made.eval()(x))  # each at its place
    cpu = torch.device("cpu")
    assert made.unseen(2, 3, 16, device=cpu) is None
    hidden = made.train().unseen(2, 3, 16, device=cpu)
    assert hidden is not None
    assert hidden.shape == (2, 3, 16)
    assert ((~hidden).sum(-1) == 4).all()
    assert len({tuple(row) for row in hidden.flatten(0, 1).tolist()}) > 1  # not the same of each view
    between = build("masked_drop", keep=[0.3, 0.7])
    found = [between.unseen(2, 3, 16, device=cpu) for _ in range(40)]
    counts = {int((~some).sum()) / 6 for some in found if some is not None}
    assert min(counts) >= 5
    assert max(counts) <= 11
    assert len(counts) > 3
    single = build("masked_drop", keep=0.01).unseen(5, 1, device=cpu)
    assert single is not None
    assert not single.any()  # at least one of each view is shown
    assert build("mlp").unseen(2, 3, 16, device=cpu) is None


def test_what_is_dropped_does_not_depend_on_the_process(tmp_path: Path) -> None:
    def work(share: Share) -> dict[str, Any]:
        torch.manual_seed(0)
        made = build("masked_drop", keep=[0.3, 0.7])
        own = len(range(SAMPLES)[share.mine])
        return {"hidden": made.unseen(own, 2, 16, device=torch.device("cpu"))}

    whole = Share(0, 1, SAMPLES, seed=5)
    with sharing(whole):
        alone = work(whole)["hidden"]
    assert alone.any()
    for rank, part in enumerate(on_processes(2, tmp_path, work)):
        assert torch.equal(part["hidden"], alone[rank::2])


def test_queries_read_all_tokens() -> None:
    for name in ("qformer", "perceiver"):
        made = build(name).eval()
        x = numbers(1, GRID, GRID, INPUTS)
        moved = x.flip(1)  # they do not know the order of what they read
        torch.testing.assert_close(made(x), made(moved), atol=1e-5, rtol=1e-5)
        assert (made(x) - made(x[:, :1].expand_as(x))).abs().max() > 1e-4


def test_bimamba_looks_both_ways() -> None:
    made = build("bimamba", state=3, conv=2, expand=4).eval()
    assert made.blocks[0]["forth"].args == (8, 3, 2, 4)
    x = numbers(1, GRID, GRID, INPUTS)
    for row, column in ((0, 0), (3, 3)):
        changed = x.clone()
        changed[0, row, column] += 1
        assert ((made(changed) - made(x)).abs().amax(-1) > 1e-6).all()


def test_bimamba_without_its_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(MissingDependencyError, match=r"^model\.resampler\.name: .*mamba_ssm.*install mamba-ssm"):
        build("bimamba")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("mlp", {"depht": 2}, "depht"),
        ("mlp", {"depth": 0}, "depth 0 is below 1"),
        ("qformer", {"heads": 3}, "width 8 is no multiple of heads 3"),
        ("c_abstractor", {"queries": 8}, "queries 8 is no square number"),
        ("spatial_pool", {"factor": 3}, "grid of 4 x 4 tokens is no multiple of factor 3"),
        ("spatial_pool", {"mode": "median"}, "mode 'median' is none of average, max, conv"),
        ("masked_drop", {"keep": 0}, "keep 0 is no share"),
        ("masked_drop", {"keep": [0.7, 0.3]}, r"keep \[0.7, 0.3\] is no share"),
    ],
)
def test_arguments_that_do_not_fit(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=rf"^model\.resampler\.args: .*{message}"):
        build(name, **args)


class Mean(Resampler):
    def __init__(self, inputs: int, grid: int, width: int) -> None:
        super().__init__(None, 1, width)
        self.layer = nn.Linear(inputs, width)

    def mix(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens.mean((1, 2)))[:, None]


def test_names_and_import_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ManyscopeError, match=r"resampler 'qforner' is unknown.*did you mean 'qformer'"):
        build("qforner")
    package = types.ModuleType("my_resamplers")
    package.Mean = Mean  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_resamplers", package)
    with pytest.raises(ManyscopeError, match=r"^model\.resampler\.name: 'torch\.nn:Bilinear' makes no resampler"):
        build("torch.nn:Bilinear")
    assert build("my_resamplers:Mean")(numbers(2, 3, GRID, GRID, INPUTS)).shape == (2, 3, 1, WIDTH)
