"""Strategies: which views they give, what those cover, and which settings they refuse."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyscope.errors import ManyscopeError, SettingsError
from manyscope.scopes.panoramas.settings import ViewSettings
from manyscope.scopes.panoramas.views.geometry import View, angles, project
from manyscope.scopes.panoramas.views.strategies import STRATEGIES, find_views

WHOLE = View("strip", 0, 0, 360, 180, is_global=True)
ALL_AROUND = [0, 45, 90, 135, 180, -135, -90, -45]


def views_of(**given: Any) -> tuple[View, ...]:
    return find_views(ViewSettings(**given)).views


def seen_by(views: tuple[View, ...], directions: np.ndarray) -> np.ndarray:
    """How many of the views, the global one apart, see each of the directions."""
    return np.sum([project(view, directions)[1] for view in views if not view.is_global], axis=0)


def everywhere(number: int = 4000) -> np.ndarray:
    directions = np.random.default_rng(0).normal(size=(number, 3))
    return np.concatenate([directions, np.eye(3), -np.eye(3)])


def test_resize_is_the_whole_panorama_alone() -> None:
    assert views_of(strategy="resize") == (View("strip", 0, 0, 360, 180),)


def test_e2p_looks_all_around_from_the_front_to_the_right() -> None:
    assert views_of(strategy="e2p") == tuple(View("perspective", yaw, 0, 90, 90) for yaw in ALL_AROUND)


def test_e2p_looks_up_and_keeps_the_rows_around_the_middle() -> None:
    views = views_of(strategy="e2p", pitch_deg=30, keep_rows=0.9)
    assert {(view.pitch_deg, view.width_deg) for view in views} == {(30, 90)}
    assert {round(view.height_deg, 6) for view in views} == {round(math.degrees(2 * math.atan(0.9)), 6)}


def test_windows_are_centred_on_their_middles_without_a_twelfth_above_and_below() -> None:
    views = views_of(strategy="sliding_window")
    assert views == tuple(View("strip", yaw, 0, 90, 150) for yaw in ALL_AROUND)
    directions = everywhere()
    assert (seen_by(views, directions)[np.abs(angles(directions)[1]) < 75] >= 2).all()


def test_cubemap_has_four_faces_that_meet() -> None:
    views = views_of(strategy="cubemap")
    assert views == tuple(View("perspective", yaw, 0, 90, 90) for yaw in (0, 90, 180, -90))
    directions = everywhere()
    x, y, z = np.abs(directions[:4000].T)
    np.testing.assert_array_equal(seen_by(views, directions[:4000]), y < np.maximum(x, z))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["e2p", "sliding_window"]), st.floats(5, 175), st.floats(0, 0.9))
def test_steps_all_around_are_equal_and_no_larger_than_asked(strategy: str, fov: float, overlap: float) -> None:
    yaws = np.array([view.yaw_deg for view in views_of(strategy=strategy, fov_deg=fov, overlap=overlap)])
    step = fov * (1 - overlap)
    assert yaws[0] == 0
    assert ((yaws > -180) & (yaws <= 180)).all()
    np.testing.assert_allclose(np.diff(yaws, append=0) % 360 if len(yaws) > 1 else 360, 360 / len(yaws), atol=1e-9)
    assert 360 / len(yaws) <= step * (1 + 1e-6)
    assert len(yaws) == 1 or 360 / (len(yaws) - 1) > step


def test_rounding_adds_no_view() -> None:
    assert len(views_of(strategy="e2p", fov_deg=72, overlap=0.9)) == 50  # 72 * (1 - 0.9) is a bit below 7.2


def test_anyres_has_columns_of_the_middle_half_columns_and_cameras() -> None:
    views = views_of(strategy="anyres", most_patches=9, keep_rows=0.8)
    yaws = (0, 90, 180, -90)
    assert views[:9] == (
        WHOLE,
        *(View("strip", yaw, 0, 90, 90) for yaw in yaws),
        *(View("strip", yaw, 0, 90, 180) for yaw in yaws),
    )
    (last,) = views[9:]
    assert (last.kind, last.yaw_deg, last.width_deg) == ("perspective", 0, 90)
    assert last.height_deg == pytest.approx(math.degrees(2 * math.atan(0.8)))
    rest = views_of(strategy="anyres", most_patches=15)[13:]  # of six columns, twice
    assert [view.yaw_deg for view in rest] == [0, 120, -120]
    assert seen_by(views_of(strategy="anyres"), everywhere()).min() >= 1


@pytest.mark.parametrize("strategy", ["anyres", "anyres_max"])
@pytest.mark.parametrize("number", [1, 2, 3, 7, 12, 20, 40])
def test_anyres_has_as_many_views_as_patches_beside_the_global_one(strategy: str, number: int) -> None:
    views = views_of(strategy=strategy, most_patches=number)
    assert [view.is_global for view in views] == [True] + [False] * number


@pytest.mark.parametrize(("number", "columns", "rows"), [(2, 1, 2), (9, 4, 2), (12, 6, 2), (20, 6, 3)])
def test_the_grid_of_anyres_max_sees_every_place_once(number: int, columns: int, rows: int) -> None:
    views = views_of(strategy="anyres_max", most_patches=number)
    grid = views[1 : 1 + columns * rows]
    assert {(view.kind, view.width_deg, view.height_deg) for view in grid} == {("strip", 360 / columns, 180 / rows)}
    assert (seen_by(grid, everywhere()[:4000]) == 1).all()
    assert [view.pitch_deg for view in grid] == sorted((view.pitch_deg for view in grid), reverse=True)
    assert {view.kind for view in views[1 + columns * rows :]} <= {"perspective"}


def test_anyres_e2p_has_rows_of_pitch_and_the_global_view_first() -> None:
    assert views_of(strategy="anyres_e2p") == (WHOLE, *(View("perspective", yaw, 0, 90, 90) for yaw in ALL_AROUND))
    views = views_of(strategy="anyres_e2p", pitch_min_deg=-90, pitch_max_deg=90)
    assert [(view.pitch_deg, view.yaw_deg) for view in views[1:]] == [
        (pitch, yaw) for pitch in (-45, 0, 45) for yaw in ALL_AROUND
    ]


def test_anyres_e2p_from_pole_to_pole_sees_the_whole_sphere() -> None:
    directions = everywhere(20000)
    assert seen_by(views_of(strategy="anyres_e2p", pitch_min_deg=-90, pitch_max_deg=90), directions).min() >= 1
    assert seen_by(views_of(strategy="anyres_e2p"), directions).min() == 0


def test_anyres_e2p_spaces_rows_evenly_between_its_edges() -> None:
    views = views_of(strategy="anyres_e2p", fov_deg=60, overlap=0.25, pitch_min_deg=-90, pitch_max_deg=80)
    pitches = sorted({view.pitch_deg for view in views[1:]})
    assert (pitches[0], pitches[-1]) == (-60, 50)
    np.testing.assert_allclose(np.diff(pitches), 110 / 3)


def test_anyres_e2p_with_one_pitch_has_one_row() -> None:
    views = views_of(strategy="anyres_e2p", pitch_min_deg=20, pitch_max_deg=20)
    assert {view.pitch_deg for view in views[1:]} == {20}


def test_an_open_row_begins_and_ends_at_the_seam() -> None:
    views = views_of(strategy="anyres_e2p", closed=False)
    assert [view.yaw_deg for view in views[1:]] == [-135, -90, -45, 0, 45, 90, 135]
    views = views_of(strategy="anyres_e2p", closed=False, fov_deg=80, overlap=0.2, pitch_min_deg=0, pitch_max_deg=0)
    yaws = [view.yaw_deg for view in views[1:]]
    np.testing.assert_allclose(yaws, [-140, -84, -28, 28, 84, 140])  # 64 would not fit: 56
    yaw = np.radians(np.linspace(-180, 180, 100))
    horizon = np.stack([np.sin(yaw), 0 * yaw, np.cos(yaw)], axis=-1)
    assert (seen_by(views, horizon) >= 1).all()
    assert all(abs(view.yaw_deg) + view.width_deg / 2 <= 180 + 1e-9 for view in views[1:])


@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_every_strategy_gives_views_with_size_and_pixels_of_the_settings(strategy: str) -> None:
    found = find_views(ViewSettings(strategy=strategy, size_px=40, pixels="borders"))
    assert (found.size_px, found.pixels) == (40, "borders")
    assert len(set(found.views)) == len(found)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strategy": "cubemap", "fov_deg": 80}, "preprocess.views.fov_deg: 80 is no face of a cube"),
        (
            {"strategy": "anyres_e2p", "fov_deg": 100},
            "pitch_min_deg -45 to pitch_max_deg 45 is narrower than fov_deg 100",
        ),
        (
            {"strategy": "anyres_e2p", "renderer": "py360convert", "antialias": False, "pixels": "borders"},
            "strategy 'anyres_e2p' 1 of 9 are not",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as error:
        views_of(**given)
    assert "\n" not in str(error.value)
    assert "allowed" in str(error.value)


def test_py360convert_draws_what_is_in_perspective() -> None:
    for strategy in ("e2p", "cubemap"):
        assert views_of(strategy=strategy, renderer="py360convert", antialias=False, pixels="borders")


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ManyscopeError, match="did you mean 'sliding_window'"):
        views_of(strategy="sliding_windows")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ((), "allowed: a tuple of views"),
        ([View("strip", 0, 0, 360, 180)], "allowed: a tuple of views"),
        ((View("perspective", 0, 0, 180, 90),), "a perspective of width 180 degrees; allowed: above 0, below 180"),
        ((View("strip", 0, 0, 90, 200),), "a strip of height 200 degrees; allowed: above 0, at most 360 x 180"),
    ],
)
def test_a_strategy_by_import_path_is_used_or_refused(monkeypatch: pytest.MonkeyPatch, made: Any, says: str) -> None:
    module = ModuleType("own_views")
    own = (View("perspective", 10, 20, 50, 60),)
    module.good, module.bad = lambda settings: own, lambda settings: made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_views", module)
    assert views_of(strategy="own_views:good") == own
    with pytest.raises(SettingsError, match=says):
        views_of(strategy="own_views:bad")
