"""Pairs of tokens that see the same, and the losses that compare them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from torch import Tensor

from forked import SAMPLES, on_processes
from manyscope.errors import ManyscopeError, SettingsError
from manyscope.nn.across import Share, sharing
from manyscope.scopes.panoramas.model.overlap import Correspondence, Head, build_loss
from manyscope.scopes.panoramas.settings import OverlapSettings, ViewSettings
from manyscope.scopes.panoramas.views.geometry import View, Views, project, rays
from manyscope.scopes.panoramas.views.strategies import find_views

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def ring(fov: float, stride: float, pitches: tuple[float, ...] = (0.0,), size_px: int = 96, **more: Any) -> Views:
    yaws = [(i * stride + 180) % 360 - 180 for i in range(round(360 / stride))]
    return Views(tuple(View("perspective", yaw, p, fov, fov) for p in pitches for yaw in yaws), size_px, **more)


def strips(width: float, stride: float) -> Views:
    return Views(tuple(View("strip", i * stride, 0.0, width, 150.0) for i in range(round(360 / stride))), 96)


GLOBAL = View("strip", 0.0, 0.0, 360.0, 180.0, is_global=True)
LAYOUTS = {
    "ring": ring(90, 45),
    "tilted": ring(60, 45, (-15.0,)),
    "rows": ring(90, 45, (-45.0, 0.0, 45.0)),
    "borders": ring(90, 45, pixels="borders"),
    "strips": strips(90, 45),
    "with a global view": Views((GLOBAL, *ring(90, 45).views), 96),
}


def interpolated_rays(pairs: Correspondence, views: Views, grid: int) -> np.ndarray:
    """Where the places look: bilinear in the plane of the picture (or in yaw and pitch of a strip), then as rays."""
    places = views.token_places(grid)
    v, u = np.meshgrid(places, places, indexing="ij")
    flat = np.stack([u, v], -1).reshape(-1, 2)
    spots = (flat[pairs.corners % grid**2] * pairs.shares[..., None]).sum(1)
    return np.stack([rays(views.views[b], *spot) for (_, b), spot in zip(pairs.views, spots, strict=True)])


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("grid", [6, 9])
def test_exact_pairs_look_into_the_same_direction(name: str, grid: int) -> None:
    views = LAYOUTS[name]
    pairs = Correspondence.exact(views, grid)
    own = views.token_rays(grid).reshape(-1, 3)[pairs.tokens]
    assert np.abs(interpolated_rays(pairs, views, grid) - own).max() < 1e-5  # shares are float32
    np.testing.assert_allclose(pairs.shares.sum(1), 1, atol=1e-6)
    assert (pairs.shares >= 0).all()
    assert (pairs.tokens // grid**2 == pairs.views[:, 0]).all()
    assert (pairs.corners // grid**2 == pairs.views[:, 1:]).all()
    assert not any(views.views[index].is_global for index in np.unique(pairs.views))
    assert pairs.weights.mean() == pytest.approx(1, rel=1e-5)


def test_exact_pairs_join_every_two_views_that_overlap() -> None:
    joined = {tuple(pair) for pair in Correspondence.exact(ring(90, 45), 8).views.tolist()}
    assert joined == {(i, (i + step) % 8) for i in range(8) for step in (1, -1)}  # over the seam, too
    rows = Correspondence.exact(ring(90, 45, (-45.0, 0.0, 45.0)), 8).views
    assert {8, 0} <= set(rows[:, 0].tolist())
    assert [0, 8] in rows.tolist()  # one above the other


def test_exact_pairs_are_all_there_are() -> None:
    views, grid = ring(90, 45), 8
    pairs = Correspondence.exact(views, grid)
    where, inside = project(views.views[1], views.token_rays(grid)[0])
    edge = 1 - 1 / grid  # middles of the outermost tokens
    expected = np.flatnonzero((inside & (np.abs(where) <= edge + 1e-6).all(-1)).reshape(-1))
    found = pairs.tokens[(pairs.views == [0, 1]).all(1)]
    np.testing.assert_array_equal(np.sort(found), expected)
    assert 10 < len(found) < grid**2


def token_errors(pairs: Correspondence, views: Views, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs whose place is one token: how far, in tokens of b, it is from where b really sees a's token; and in
    how many b sees it at all."""
    apart = 2 / grid
    errors, seen = [], []
    directions = views.token_rays(grid).reshape(-1, 3)
    v, u = np.meshgrid(views.token_places(grid), views.token_places(grid), indexing="ij")
    places = np.stack([u, v], -1).reshape(-1, 2)
    for (_, b), token, corners in zip(pairs.views, pairs.tokens, pairs.corners, strict=True):
        where, inside = project(views.views[b], directions[token])
        errors.append(np.linalg.norm(where - places[corners[0] % grid**2]) / apart)
        seen.append(bool(inside))
    return np.array(errors), np.array(seen)


def test_columns_do_not_look_into_the_same_direction() -> None:
    """The figures of the usual setting: 90 degrees, stepped by 45, 16 x 16 tokens, half of the columns."""
    views, grid = ring(90, 45), 16
    errors, seen = token_errors(Correspondence.columns(views, grid, force=False), views, grid)
    assert seen.mean() == pytest.approx(0.94, abs=0.01)
    assert errors[seen].mean() == pytest.approx(1.25, abs=0.02)
    assert errors[seen].max() == pytest.approx(2.04, abs=0.02)
    assert (errors[seen] < 0.5).mean() < 0.07


def test_columns_pair_the_last_with_the_first() -> None:
    pairs = Correspondence.columns(ring(90, 45), 4, force=False)
    assert len(pairs) == 8 * 4 * 2
    first = (pairs.views == [0, 1]).all(1)
    assert pairs.tokens[first].tolist() == [2, 3, 6, 7, 10, 11, 14, 15]
    assert pairs.corners[first, 0].tolist() == [16 + t for t in (0, 1, 4, 5, 8, 9, 12, 13)]
    assert [7, 0] in pairs.views.tolist()


def test_columns_go_to_the_right_within_a_row_of_views() -> None:
    views = Views((GLOBAL, *ring(90, 90, (-30.0, 30.0)).views[::-1]), 96)
    pairs = Correspondence.columns(views, 4, force=True)
    for a, b in np.unique(pairs.views, axis=0):
        assert views.views[a].pitch_deg == views.views[b].pitch_deg
        assert (views.views[b].yaw_deg - views.views[a].yaw_deg) % 360 == 90


def test_columns_are_as_many_as_two_views_have_in_common() -> None:
    """Strips of two heights at pitch 0, which only stand side by side, and views in perspective that overlap by two
    thirds."""
    views = find_views(ViewSettings(strategy="anyres", most_patches=24, size_px=96))
    kinds = [(view.kind, view.height_deg) for view in views.views[1:]]
    assert kinds == [("strip", 90.0)] * 6 + [("strip", 180.0)] * 6 + [("perspective", 90.0)] * 12
    pairs = Correspondence.columns(views, 6, force=False)
    assert set(map(tuple, pairs.views.tolist())) == {(13 + i, 13 + (i + 1) % 12) for i in range(12)}
    assert len(pairs) == 12 * 6 * 4
    forced = Correspondence.columns(views, 6, force=True)
    assert len(forced) == 12 * 6 * 4 + 12 * 6
    side_by_side = find_views(ViewSettings(strategy="anyres", size_px=96))
    with pytest.raises(ManyscopeError, match="share no place"):
        Correspondence.columns(side_by_side, 6, force=False)


def test_columns_do_not_go_over_a_gap() -> None:
    """Views that end at the seam: the last and the first have an edge in common there, and nothing else."""
    views = find_views(ViewSettings(strategy="anyres_e2p", closed=False, size_px=96))
    pairs = Correspondence.columns(views, 4, force=False)
    assert set(map(tuple, pairs.views.tolist())) == {(i, i + 1) for i in range(1, len(views) - 1)}
    assert len(pairs) == (len(views) - 2) * 4 * 2


def test_views_that_share_nothing_are_refused() -> None:
    """Such is a published setting: 45 degrees, stepped by 45."""
    views = ring(45, 45)
    with pytest.raises(ManyscopeError, match=r"^model\.overlap: no view sees .*; set model\.overlap\.loss to none"):
        Correspondence.exact(views, 16)
    with pytest.raises(ManyscopeError, match=r"^model\.overlap: views share no place.*force"):
        Correspondence.columns(views, 16, force=False)
    forced = Correspondence.columns(views, 16, force=True)
    _, seen = token_errors(forced, views, 16)
    assert not seen.any()
    settings = OverlapSettings(correspondence="columns", force=True)
    assert build_loss(settings, views, 16) is not None


def test_one_view_alone_has_nothing_to_agree_with() -> None:
    alone = Views((GLOBAL, View("perspective", 0.0, 0.0, 90.0, 90.0)), 96)
    with pytest.raises(ManyscopeError, match="no view sees"):
        Correspondence.exact(alone, 4)
    with pytest.raises(ManyscopeError, match="no view has a next one"):
        Correspondence.columns(alone, 4, force=True)
    with pytest.raises(ManyscopeError, match="no view sees"):
        Correspondence.exact(ring(90, 45), 1)  # one token of each view: no two look into the same direction


def test_a_resampler_without_a_grid_is_refused() -> None:
    with pytest.raises(ManyscopeError, match=r"^model\.overlap: the resampler keeps no grid"):
        build_loss(OverlapSettings(), ring(90, 45), None)
    assert build_loss(OverlapSettings(loss="none"), ring(90, 45), None) is None


def test_unknown_losses_and_those_of_an_import_path() -> None:
    with pytest.raises(ManyscopeError, match=r"overlap loss 'vicrag' is unknown.*did you mean 'vicreg'"):
        build_loss(OverlapSettings(loss="vicrag"), ring(90, 45), 4)
    path = "manyscope.scopes.panoramas.model.overlap:DenseCL"
    assert type(build_loss(OverlapSettings(loss=path), ring(90, 45), 4)).__name__ == "DenseCL"
    with pytest.raises(SettingsError, match=r"model\.overlap\.loss"):
        build_loss(OverlapSettings(loss="builtins:len"), ring(90, 45), 4)


def made(loss: str, grid: int = 6, **more: Any) -> torch.nn.Module:
    module = build_loss(OverlapSettings(loss=loss, **more), ring(90, 45), grid)
    assert module is not None
    return module


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_vicreg_is_what_its_paper_says() -> None:
    """Against numpy, pair by pair."""
    grid, width = 5, 3
    pairs = Correspondence.exact(ring(90, 45), grid)
    tokens = numbers(2, 8, grid * grid, width).double() * torch.tensor([0.2, 1.0, 2.0])
    flat = tokens.numpy().reshape(2, -1, width)
    first = flat[:, pairs.tokens].reshape(-1, width)
    second = sum(flat[:, pairs.corners[:, i]] * pairs.shares[:, i, None] for i in range(4)).reshape(-1, width)
    weights = np.tile(pairs.weights, 2).astype(float)
    variances, covariances = [], []
    for side in (first, second):
        mean = (side * weights[:, None]).sum(0) / len(side)
        covariance = ((side - mean) * weights[:, None]).T @ (side - mean) / (len(side) - 1)
        variances.append(np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean())
        covariances.append((covariance**2).sum() / width - (np.diag(covariance) ** 2).sum() / width)
    invariance = (((first - second) ** 2).mean(1) * weights).mean()
    found = made("vicreg", grid, invariance=10, variance=7, covariance=3)(tokens)
    assert found["invariance"].item() == pytest.approx(invariance, rel=1e-6)
    assert found["variance"].item() == pytest.approx(np.mean(variances), rel=1e-6)
    assert found["covariance"].item() == pytest.approx(np.mean(covariances), rel=1e-6)
    expected = 10 * invariance + 7 * np.mean(variances) + 3 * np.mean(covariances)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert found["variance"].item() > 0.1  # of the first feature


def test_vicreg_without_weights_is_numpys_covariance() -> None:
    grid = 4
    tokens = numbers(3, 8, grid * grid, 5).double()
    module = build_loss(OverlapSettings(correspondence="columns"), ring(90, 45), grid)
    pairs = Correspondence.columns(ring(90, 45), grid, force=False)
    assert module is not None
    total = 0.0
    for index in (pairs.tokens, pairs.corners[:, 0]):
        covariance = np.cov(tokens.flatten(1, 2)[:, index].reshape(-1, 5).T.numpy())
        total += (np.square(covariance).sum() - np.square(np.diag(covariance)).sum()) / 5 / 2
    assert module(tokens)["covariance"].item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("loss", ["vicreg", "infonce", "densecl"])
def test_gradients_flow_and_state_is_empty(loss: str) -> None:
    module, head = made(loss), Head(8, 16)
    found = module(head(numbers(2, 8, 36, 8)))
    found["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in head.parameters())
    assert all(part.dim() == 0 and not part.requires_grad for name, part in found.items() if name != "loss")
    assert not module.state_dict()


@pytest.mark.parametrize("loss", ["vicreg", "infonce", "densecl"])
def test_half_precision_is_computed_in_full(loss: str) -> None:
    module = made(loss).eval()
    tokens = numbers(2, 8, 36, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(tokens)["loss"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, module(tokens.float())["loss"])


def of_direction(views: Views, grid: int, width: int = 16) -> Tensor:
    """Features that only depend on where a token looks: (1, views, grid², width), smooth, but for each view alike."""
    directions = torch.from_numpy(views.token_rays(grid)).float().flatten(1, 2)
    return torch.sin(3 * directions @ numbers(3, width, seed=3) + numbers(width, seed=4))[None]


@pytest.mark.parametrize("loss", ["vicreg", "infonce", "densecl"])
def test_features_of_directions_agree(loss: str) -> None:
    """What a perfect encoder would answer has a lower loss with exact pairs than the same features of other views."""
    views = ring(90, 45)
    module = made(loss, 12).eval()
    good = of_direction(views, 12)
    shuffled = good[:, torch.tensor([3, 6, 1, 4, 7, 2, 5, 0])]
    part = {"vicreg": "invariance", "infonce": "between", "densecl": "loss"}[loss]
    assert module(good)[part] < 0.3 * module(shuffled)[part]
    if loss == "vicreg":
        assert module(good)[part] < 1e-3


def test_columns_pull_apart_what_is_equal() -> None:
    views, grid = ring(90, 45), 12
    good = of_direction(views, grid)
    exact, columns = (build_loss(OverlapSettings(correspondence=kind), views, grid) for kind in ("exact", "columns"))
    assert exact is not None
    assert columns is not None
    assert columns(good)["invariance"] > 20 * exact(good)["invariance"]


def test_infonce_drops_only_while_training() -> None:
    module, tokens = made("infonce"), numbers(2, 8, 36, 8)
    torch.manual_seed(0)
    one, other = module(tokens)["loss"], module(tokens)["loss"]
    assert one != other
    assert module.eval()(tokens)["loss"] == module(tokens)["loss"]


@pytest.mark.parametrize("loss", ["vicreg", "infonce", "densecl"])
def test_several_processes_compare_the_whole_batch(loss: str, tmp_path: Path) -> None:
    def work(share: Share) -> dict[str, Any]:
        module = made(loss, 4)
        tokens = numbers(SAMPLES, 8, 16, 6)[share.mine].requires_grad_()
        found = module(tokens)
        found["loss"].backward()
        return {**{name: part.detach() for name, part in found.items()}, "gradient": tokens.grad}

    whole = Share(0, 1, SAMPLES, seed=5)
    with sharing(whole):
        alone = work(whole)
    parts = on_processes(2, tmp_path, work)
    shared = {"vicreg": ("variance", "covariance"), "infonce": ("between",), "densecl": ("loss",)}[loss]
    for rank, part in enumerate(parts):
        for name in shared:
            torch.testing.assert_close(part[name], alone[name], atol=1e-5, rtol=1e-5)
        if loss == "densecl":  # the mean over processes of gradients is that of one process
            torch.testing.assert_close(part["gradient"] / 2, alone["gradient"][rank::2], atol=1e-6, rtol=1e-4)
    own = [len(range(SAMPLES)[rank::2]) / SAMPLES for rank in range(2)]
    mean = {"vicreg": "invariance", "infonce": "within"}.get(loss)
    if mean:
        together = sum(w * part[mean] for w, part in zip(own, parts, strict=True))
        torch.testing.assert_close(together, alone[mean], atol=1e-5, rtol=1e-5)
