"""Small pictures of events: the light where it was, from early to late, from left to right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.scopes.neutrinos.data.shards import Shard
from manyscope.scopes.neutrinos.data.thumbnails import SIZE, _Arrays, longest_axis, picture, thumbnails

X, Z = np.meshgrid(np.arange(-500, 501, 50.0), np.arange(-500, 501, 50.0))


def array_of(heading_deg: float = 0.0) -> _Arrays:
    """A square wall of modules, 1 km wide, that stands along a heading."""
    heading = np.radians(heading_deg)
    table = np.zeros((X.size, 7), np.float32)
    table[:, 0], table[:, 1], table[:, 2] = X.ravel() * np.cos(heading), X.ravel() * np.sin(heading), Z.ravel()
    return _Arrays(table, [len(table)])


def event(sensor: np.ndarray, time: np.ndarray, charge: np.ndarray, near: int) -> Shard:
    """A shard of one event, of whose modules the first are near it."""
    n = len(sensor)
    nothing = np.zeros((1, 4), np.float32)
    modules = np.zeros((n, 6), np.float32)
    modules[:, 0], modules[:, 1] = time, charge
    offsets = np.array([0, n], np.int64)
    shown = np.array([[near, near]], np.int32)
    return Shard(
        offsets, shown, nothing, nothing[:, :3], nothing[:, :3], sensor.astype(np.int32), np.arange(n + 1), modules,
        np.zeros((n, 4), np.int32), np.zeros((n, 3), np.float32),
    )  # fmt: skip


def sensors_at(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.array([np.argmin(np.hypot(X.ravel() - a, Z.ravel() - b)) for a, b in zip(x, z, strict=True)])


def lit(pixels: np.ndarray) -> np.ndarray:
    """Whether a pixel has a colour, (64, 64) bool: grey, the outline and the ground have none."""
    return np.ptp(pixels.astype(int), axis=2) > 40


def test_each_id_has_its_picture_and_unknown_ones_have_none(prepared_events: Path) -> None:
    ids = pl.read_parquet(prepared_events / "samples.parquet")["sample_id"].to_list()
    asked = [ids[250], "no such event", ids[3], ids[250]]
    pictures = list(thumbnails(prepared_events, asked))
    assert [p is None for p in pictures] == [False, True, False, False]
    first, other, again = (np.asarray(p) for p in (pictures[0], pictures[2], pictures[3]))
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert (first == again).all()
    assert (first != other).any()


def test_every_event_shows_its_light(prepared_events: Path) -> None:
    ids = pl.read_parquet(prepared_events / "samples.parquet")["sample_id"].to_list()
    for image in thumbnails(prepared_events, ids[::10]):
        assert lit(np.asarray(image)).sum() >= 4


@pytest.mark.parametrize("heading_deg", [0, 37, 90, 200])
def test_light_runs_from_left_to_right_whatever_its_heading(heading_deg: float) -> None:
    """A falling track along a wall of modules: the picture shows it from the side, unchanged by the heading."""
    along = np.arange(-400, 401, 50.0)
    shard = event(sensors_at(along, -along / 2), along * 3.3, np.full(len(along), 5.0), len(along))
    pixels = np.asarray(picture(shard, 0, array_of(heading_deg))).astype(int)
    rows, columns = np.nonzero(lit(pixels))
    assert columns.min() < 15
    assert columns.max() > 48
    assert np.corrcoef(columns, rows)[0, 1] > 0.95  # rows count from the top: the track falls
    early, late = columns < 20, columns > 44
    green = pixels[rows, columns, 1]
    assert green[late].mean() > green[early].mean() + 60  # from blue to yellow
    blue = pixels[rows, columns, 2]
    assert blue[early].mean() > blue[late].mean() + 40


def test_more_charge_is_a_larger_disc() -> None:
    one = sensors_at(np.array([0.0]), np.array([0.0]))
    sizes = [
        int(lit(np.asarray(picture(event(one, np.zeros(1), np.array([q]), 1), 0, array_of()))).sum())
        for q in (0.5, 10.0, 1000.0)
    ]
    assert 0 < sizes[0] < sizes[1] < sizes[2] < SIZE * SIZE / 10


def test_isolated_modules_far_away_are_small_and_grey() -> None:
    place = sensors_at(np.array([-300.0, 300.0]), np.array([0.0, 0.0]))
    pixels = np.asarray(picture(event(place, np.zeros(2), np.array([50.0, 50.0]), 1), 0, array_of())).astype(int)
    inside = pixels[14:50]  # without the upper and lower side of the outline
    coloured = lit(inside)
    grey = (inside.min(axis=2) > 40) & ~coloured & (np.ptp(inside, axis=2) < 12)
    assert coloured.any()
    assert 0 < grey.sum() < coloured.sum()
    halves = {bool(c < SIZE / 2) for c in np.nonzero(coloured)[1]}
    assert halves == {not bool(c < SIZE / 2) for c in np.nonzero(grey)[1]}  # each in a half of its own


def test_the_detector_is_outlined_and_fits() -> None:
    one = sensors_at(np.array([0.0]), np.array([0.0]))
    pixels = np.asarray(picture(event(one, np.zeros(1), np.ones(1), 1), 0, array_of())).astype(int)
    ground = pixels[0, 0]
    assert (pixels[[0, -1]] == ground).all()
    assert (pixels[:, [0, -1]] == ground).all()
    outline = (pixels != ground).any(axis=2)
    assert outline.any(axis=1).sum() > 50  # rows that it crosses
    assert outline.any(axis=0).sum() > 50


@given(st.floats(-np.pi, np.pi), st.floats(1, 1000), st.floats(0, 0.3))
def test_the_longest_axis_is_found_with_the_sense_of_time(heading: float, length: float, width: float) -> None:
    along = np.linspace(-length, length, 9)
    axis, side = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    bulge = width * length * np.array([1, -1, 0, 1, 0, 1, 0, -1, 1]) / 2  # symmetric: turns no axis
    where = along[:, None] * axis + bulge[:, None] * side + [30, -70]
    assert longest_axis(where, np.ones(9), along * 3.3) == pytest.approx(axis, abs=1e-6)


def test_one_module_has_some_axis() -> None:
    axis = longest_axis(np.array([[3.0, 4.0]]), np.ones(1), np.zeros(1))
    assert np.linalg.norm(axis) == pytest.approx(1)
