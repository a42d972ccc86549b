"""Views: `project` is the inverse of `rays`, all around and over the poles."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.scopes.panoramas.views.geometry import View, Views, angles, project, rays

YAWS, PITCHES = st.floats(-180, 180), st.floats(-90, 90)
PLACES = st.floats(-1, 1)


@st.composite
def perspectives(draw: st.DrawFn) -> View:
    return View("perspective", draw(YAWS), draw(PITCHES), draw(st.floats(1, 170)), draw(st.floats(1, 170)))


@st.composite
def strips(draw: st.DrawFn) -> View:
    height = draw(st.floats(1, 180))
    pitch = draw(st.floats(height / 2 - 90, 90 - height / 2))
    return View("strip", draw(YAWS), pitch, draw(st.floats(1, 360)), height)


def towards(yaw_deg: float, pitch_deg: float) -> np.ndarray:
    yaw, pitch = math.radians(yaw_deg), math.radians(pitch_deg)
    return np.array([math.cos(pitch) * math.sin(yaw), math.sin(pitch), math.cos(pitch) * math.cos(yaw)])


@settings(max_examples=200, deadline=None)
@given(st.one_of(perspectives(), strips()), PLACES, PLACES, st.floats(0.01, 100))
def test_a_place_is_found_again_from_its_ray(view: View, u: float, v: float, length: float) -> None:
    ray = rays(view, np.array(u), np.array(v))
    assert np.linalg.norm(ray) == pytest.approx(1)
    places, inside = project(view, ray * length)
    assert inside
    np.testing.assert_allclose(rays(view, *places), ray, atol=1e-8)
    if view.kind == "perspective" or (abs(angles(ray)[1]) < 89.9 and abs(u) * view.width_deg < 359.9):
        np.testing.assert_allclose(places, [u, v], atol=1e-6)  # else the yaw, or the side of the seam, is any


@settings(max_examples=200, deadline=None)
@given(st.one_of(perspectives(), strips()), YAWS, PITCHES)
def test_a_ray_is_found_again_from_its_place_and_inside_is_between_the_borders(
    view: View, yaw: float, pitch: float
) -> None:
    ray = towards(yaw, pitch)
    places, inside = project(view, ray)
    assert np.isfinite(places).all()
    if inside:
        assert np.abs(places).max() <= 1 + 1e-8
        np.testing.assert_allclose(rays(view, *places), ray, atol=1e-8)
    elif view.kind == "strip":
        assert np.abs(places).max() > 1
    else:
        middle = towards(view.yaw_deg, view.pitch_deg)
        assert np.abs(places).max() > 1 or ray @ middle < 1e-6


@pytest.mark.parametrize("kind", ["perspective", "strip"])
@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (180, 10), (-135, -30), (90, 45)])
def test_the_middle_looks_along_yaw_and_pitch_right_is_right_and_up_is_up(kind: str, yaw: float, pitch: float) -> None:
    view = View(kind, yaw, pitch, 60, 60)  # type: ignore[arg-type]
    np.testing.assert_allclose(rays(view, np.array(0.0), np.array(0.0)), towards(yaw, pitch), atol=1e-12)
    right_yaw, _ = angles(rays(view, np.array(0.1), np.array(0.0)))
    assert 0 < (right_yaw - yaw + 180) % 360 - 180 < 10
    _, up_pitch = angles(rays(view, np.array(0.0), np.array(-0.1)))
    assert pitch < up_pitch < pitch + 10


def test_edges_of_a_camera_lie_at_half_its_fields() -> None:
    view = View("perspective", 20, 0, 90, 60)
    yaw, pitch = angles(rays(view, np.array([1.0, 0.0]), np.array([0.0, -1.0])))
    np.testing.assert_allclose(yaw, [65, 20])
    np.testing.assert_allclose(pitch, [0, 30])


def test_places_of_a_strip_are_linear_in_yaw_and_pitch_and_wrap() -> None:
    view = View("strip", 170, 10, 80, 100)
    directions = np.stack([towards(-170, 10), towards(-150, 60), towards(-149.9, 0), towards(130, -40), towards(0, 0)])
    places, inside = project(view, directions)
    np.testing.assert_allclose(places[[0, 1, 3]], [[0.5, 0], [1, -1], [-1, 1]], atol=1e-9)
    assert inside.tolist() == [True, True, False, True, False]


def test_a_strip_all_around_sees_everything() -> None:
    whole = View("strip", 0, 0, 360, 180)
    directions = np.random.default_rng(0).normal(size=(1000, 3))
    directions = np.concatenate([directions, np.eye(3), -np.eye(3), [[-0.0, 0.0, -1.0]]])
    for yaw in (0.0, 77.0, 180.0):
        assert project(replace(whole, yaw_deg=yaw), directions)[1].all()


def test_behind_a_camera_nothing_is_inside() -> None:
    view = View("perspective", 30, 20, 170, 170)
    ahead = rays(view, *np.random.default_rng(0).uniform(-1, 1, (2, 500)))
    places, inside = project(view, -ahead)
    assert np.isfinite(places).all()
    assert not inside.any()


def test_over_a_pole_a_camera_sees_all_yaws() -> None:
    up = View("perspective", 0, 90, 60, 60)
    places, inside = project(up, np.stack([towards(yaw, 75) for yaw in (0, 90, 180, -90)]))
    assert inside.all()
    edge = math.tan(math.radians(15)) / math.tan(math.radians(30))
    np.testing.assert_allclose(places, [[0, edge], [edge, 0], [0, -edge], [-edge, 0]], atol=1e-12)


@pytest.mark.parametrize("pixels", ["centres", "borders"])
@pytest.mark.parametrize("grid", [1, 4, 16])
def test_rays_of_tokens_are_means_of_the_places_of_their_pixels(pixels: str, grid: int) -> None:
    view = View("perspective", 45, 30, 90, 70)
    views = Views((view, replace(view, kind="strip")), 16, pixels)  # type: ignore[arg-type]
    one = (2 * np.arange(16) + 1) / 16 - 1 if pixels == "centres" else 2 * np.arange(16) / 15 - 1
    means = one.reshape(grid, -1).mean(1)
    found = views.token_rays(grid)
    assert found.shape == (2, grid, grid, 3)
    for view, directions in zip(views.views, found, strict=True):
        places, inside = project(view, directions)
        assert inside.all()
        np.testing.assert_allclose(places[..., 0], np.broadcast_to(means, (grid, grid)), atol=1e-9)
        np.testing.assert_allclose(places[..., 1], np.broadcast_to(means[:, None], (grid, grid)), atol=1e-9)


def test_views_are_read_as_they_were_written(tmp_path: Path) -> None:
    views = Views((View("strip", 0, 0, 360, 180, is_global=True), View("perspective", 1 / 3, -5, 90, 84.0)), 32)
    views.save(tmp_path / "views.json")
    assert Views.load(tmp_path / "views.json") == views
    with pytest.raises(DataError):
        Views.load(tmp_path / "none.json")
