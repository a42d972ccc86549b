"""Codes of directions have no seam, and every place has one owner."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyscope.scopes.panoramas.model.positions import DirectionCode, nearest_owner
from manyscope.scopes.panoramas.views.geometry import View, Views, rays


def towards(yaw: float, pitch: float) -> torch.Tensor:
    y, p = math.radians(yaw), math.radians(pitch)
    return torch.tensor([math.cos(p) * math.sin(y), math.sin(p), math.cos(p) * math.cos(y)])


def tiles(
    yaws: tuple[float, ...], pitches: tuple[float, ...] = (0.0,), fov: float = 90.0, with_global: bool = False
) -> Views:
    whole = (View("strip", 0.0, 0.0, 360.0, 180.0, is_global=True),) if with_global else ()
    return Views((*whole, *(View("perspective", y, p, fov, fov) for p in pitches for y in yaws)), 32)


RING = tuple(-180.0 + 45 * i for i in range(8))


@given(st.floats(-89, 89))
def test_the_code_has_no_seam(pitch: float) -> None:
    torch.manual_seed(0)
    code = DirectionCode(4, 8)
    left, right = (code(towards(yaw, pitch), torch.tensor(False)) for yaw in (-180.0, 180.0))
    torch.testing.assert_close(left, right, atol=1e-6, rtol=0)


def test_the_code_is_linear_in_the_harmonics() -> None:
    code = DirectionCode(3, 9)
    code.linear.weight.data = torch.eye(9)
    lon, lat = math.radians(130), math.radians(-35)
    found = code(towards(130, -35)[None, None], torch.ones(1, 1, dtype=torch.bool))
    expected = [*(math.sin(k * lon) for k in (1, 2, 3)), *(math.cos(k * lon) for k in (1, 2, 3))]
    expected += [math.sin(lat), math.cos(lat), 1.0]
    assert found.shape == (1, 1, 9)
    torch.testing.assert_close(found[0, 0], torch.tensor(expected), atol=2e-6, rtol=0)


def test_at_a_pole_no_longitude_is_preferred() -> None:
    code = DirectionCode(2, 7)
    code.linear.weight.data = torch.eye(7)
    at_pole = code(torch.tensor([0.0, 1.0, 0.0]), torch.tensor(0))
    torch.testing.assert_close(at_pole, torch.tensor([0.0, 0, 0, 0, 1, 0, 0]))


def test_neighbouring_codes_are_as_far_apart_everywhere() -> None:
    code = DirectionCode(4, 8)
    code.linear.weight.data = torch.eye(8, 11)
    ring = torch.stack([code(towards(yaw, 0), torch.tensor(False)) for yaw in range(-180, 180, 45)])
    steps = (ring - ring.roll(-1, 0)).norm(dim=1)
    assert float(steps.detach().std()) < 1e-5
    assert float(steps.detach().mean()) > 1


@pytest.mark.parametrize(
    "views",
    [
        tiles(RING),
        tiles(RING, with_global=True),
        tiles(RING, (-45.0, 0.0, 45.0)),
        tiles((10.0, 100.0, 200.0), fov=110.0),
        Views(tuple(View("strip", yaw, 0.0, 90.0, 120.0) for yaw in (0.0, 45.0, 90.0, -100.0)), 32),
    ],
    ids=["ring", "global", "rows", "uneven", "strips"],
)
def test_a_place_has_one_owner(views: Views) -> None:
    """Around the middle of each kept token no other view of those that see it is nearer; of a dropped one, one is."""
    grid = 7
    kept, directions = nearest_owner(views, grid), views.token_rays(grid)
    middles = np.stack([rays(view, np.zeros(()), np.zeros(())) for view in views.views])
    parts = [i for i, view in enumerate(views.views) if not view.is_global]
    assert kept.shape == (len(views), grid, grid)
    for i, view in enumerate(views.views):
        if view.is_global:
            assert kept[i].all()
    for i in parts:
        nearness = directions[i] @ middles.T
        for row, column in np.ndindex(grid, grid):
            rivals = [
                nearness[row, column, j] for j in parts if j != i and inside(views.views[j], directions[i, row, column])
            ]
            own = nearness[row, column, i]
            nearest = max(rivals, default=-2.0)
            if abs(own - nearest) > 1e-8:
                assert kept[i, row, column] == (own > nearest)


def inside(view: View, ray: np.ndarray) -> bool:
    """By the definition of a view, without `project`."""
    yaw = math.degrees(math.atan2(ray[0], ray[2]))
    pitch = math.degrees(math.atan2(ray[1], math.hypot(ray[0], ray[2])))
    turn = math.radians(view.yaw_deg)
    if view.kind == "strip":
        beside = (yaw - view.yaw_deg + 180) % 360 - 180
        return abs(beside) <= view.width_deg / 2 + 1e-9 and abs(pitch - view.pitch_deg) <= view.height_deg / 2 + 1e-9
    x = ray[0] * math.cos(turn) - ray[2] * math.sin(turn)
    z = ray[0] * math.sin(turn) + ray[2] * math.cos(turn)
    tilt = math.radians(view.pitch_deg)
    y, z = ray[1] * math.cos(tilt) - z * math.sin(tilt), ray[1] * math.sin(tilt) + z * math.cos(tilt)
    half = math.tan(math.radians(view.width_deg / 2)) * (1 + 1e-9)
    return bool(z > 0 and abs(x / z) <= half and abs(y / z) <= half)


def test_equally_near_views_leave_it_to_the_first() -> None:
    # Two equal views: the second keeps nothing.
    twice = Views((View("perspective", 0.0, 0.0, 90.0, 90.0),) * 2, 32)
    kept = nearest_owner(twice, 4)
    assert kept[0].all()
    assert not kept[1].any()


def test_a_ring_keeps_each_direction_about_once() -> None:
    kept = nearest_owner(tiles(RING), 16)
    per_view = kept.sum((1, 2))
    assert (per_view == per_view[0]).all()
    assert 8 * kept[0, 8].sum() == 48  # of 128 in a middle row: tan 22.5 degrees of 16 columns, in whole pairs
