"""Drawn rooms: what the labels say is where they say, whatever the settings."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manyscope.errors import SettingsError
from manyscope.scopes.panoramas import simulate
from manyscope.scopes.panoramas.data.room import COLOURS, SHAPES, Item, Room, read_rooms, wrapped
from manyscope.scopes.panoramas.data.sources import find_source
from manyscope.scopes.panoramas.settings import PanoramasDownload, PanoramasPreprocess, RoomsSettings
from manyscope.scopes.panoramas.simulate import draw_room, half_width_deg, middle_pitch_deg, render
from manyscope.tables.manifest import describe

HARD: dict[str, Any] = {
    "shapes": SHAPES, "slots": 16, "objects_min": 8, "objects_max": 12, "jitter_deg": 8.0,
    "distance_min": 1.8, "distance_max": 4.0, "radius_min": 0.35, "radius_max": 0.75,
}  # fmt: skip
RGB = np.array([simulate._RGB[colour] for colour in COLOURS], np.float64)
RGB /= np.linalg.norm(RGB, axis=1, keepdims=True)


def colour_at(picture: np.ndarray, yaw_deg: float, pitch_deg: float) -> str:
    """The colour of which a pixel is a shade, or "none"."""
    height = len(picture)
    row, column = int((90 - pitch_deg) / 180 * height), int((yaw_deg + 180) / 180 * height) % (2 * height)
    pixel = picture[row, column].astype(float)
    like = RGB @ pixel / np.linalg.norm(pixel)
    return COLOURS[int(like.argmax())] if like.max() > 0.999 else "none"


@pytest.mark.parametrize("own", [RoomsSettings(height_px=128), RoomsSettings(height_px=256, **HARD)])
def test_the_middle_of_every_item_is_seen(own: RoomsSettings) -> None:
    seen = 0
    for index in range(60):
        room = draw_room(own, 0, "train", index)
        picture = render(room, own.height_px, np.random.default_rng(index))
        for item in room.items:
            assert colour_at(picture, item.yaw_deg, middle_pitch_deg(item)) == item.colour
            seen += 1
    assert seen >= 60 * own.objects_min


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("yaw_deg", [0.0, 179.0, -97.0])
def test_extent(shape: str, yaw_deg: float) -> None:
    """An item ends where its width says, on both sides of the seam, and stands on the floor."""
    item = Item(yaw_deg, 2.2, 0.7, "purple", shape)
    room = Room((item,), SHAPES, ())
    full, bare = (render(each, 512, np.random.default_rng(1)) for each in (room, Room((), SHAPES, ())))
    rows, columns = np.nonzero((full != bare).any(-1))
    yaws = np.array([wrapped((column + 0.5) / 512 * 180 - 180 - yaw_deg) for column in columns])
    assert yaws.max() == pytest.approx(half_width_deg(item), abs=0.5)
    assert yaws.min() == pytest.approx(-half_width_deg(item), abs=0.5)
    pitches = 90 - (rows + 0.5) / 512 * 180
    height = simulate._BODIES[shape].height * 0.7
    front = 2.2 - simulate._BODIES[shape].foot * 0.7
    # The touching point of a ball is hidden behind its front.
    if shape != "ball":
        assert pitches.min() == pytest.approx(np.degrees(np.arctan2(-1.2, front)), abs=0.5)
    if shape == "cone":
        assert pitches.max() == pytest.approx(np.degrees(np.arctan2(height - 1.2, 2.2)), abs=0.5)


@pytest.mark.parametrize(("turn_deg", "mirror"), [(45, False), (-90, True), (180, False), (0, True)])
def test_changed_room_is_the_changed_picture(turn_deg: int, mirror: bool) -> None:
    """But for the checker of the floor and the light, which stay where they are: so the outlines are compared."""

    def outlines(room: Room) -> np.ndarray:
        full, bare = (render(each, 128, np.random.default_rng(1)) for each in (room, Room((), SHAPES, ())))
        return (full != bare).any(-1)

    for index in range(10):
        room = draw_room(RoomsSettings(**HARD), 0, "train", index)
        before = outlines(room)
        wanted = np.roll(before[:, ::-1] if mirror else before, turn_deg * 128 // 180, 1)
        found = outlines(room.changed(turn_deg, mirror))
        assert (found != wanted).sum() < 0.01 * wanted.sum()  # rays that just touch


def test_far_low_cylinder_shows_its_lid() -> None:
    """From above, the lid is lit more than the side that faces away from the light."""
    item = Item(0.0, 2.0, 0.3, "red", "cylinder")
    picture = render(Room((item,), SHAPES, ()), 512, np.random.default_rng(0))
    top = simulate._BODIES["cylinder"].height * 0.3
    lid = np.degrees(np.arctan2(top - 1.2, 2.0))
    side = np.degrees(np.arctan2(top / 2 - 1.2, 2.0 - 0.21))
    rows = [int((90 - pitch) / 180 * 512) for pitch in (lid, side)]
    assert picture[rows[0], 512, 0] > picture[rows[1], 512, 0] > 40
    assert (picture[rows[0], 512] == picture[rows[0], 520]).all()  # it is flat


def test_nearer_hides_farther() -> None:
    near, far = Item(0.0, 2.0, 0.6, "red", "ball"), Item(20.0, 4.0, 0.7, "blue", "cube")
    for items in ((near, far), (far, near)):
        picture = render(Room(items, SHAPES, ()), 256, np.random.default_rng(0))
        assert colour_at(picture, 14.0, -10) == "red"
        assert colour_at(picture, 20.0, middle_pitch_deg(far)) == "blue"


@settings(max_examples=30)
@given(
    st.integers(0, 2**40),
    st.integers(0, 1000),
    st.sampled_from(["train", "validation", "test"]),
    st.sampled_from([(8, 1, 8, 6.0), (16, 6, 10, 10.0), (16, 2, 12, 0.0)]),
)
def test_rooms_keep_to_their_settings(seed: int, index: int, split: str, layout: tuple[int, int, int, float]) -> None:
    slots, least, most, jitter = layout
    own = RoomsSettings(
        **{**HARD, "slots": slots, "objects_min": least, "objects_max": most, "jitter_deg": jitter, "radius_max": 0.5}
    )
    room = draw_room(own, seed, split, index)
    assert draw_room(own, seed, split, index) == room
    assert least <= len(room.items) <= most
    taken = set()
    for item in room.items:
        middle = 0.5 if slots == 16 else 0.0  # two slots in each direction, none between two
        slot = round(item.yaw_deg * slots / 360 - middle) % slots
        assert abs(wrapped(item.yaw_deg - (slot + middle) * 360 / slots)) <= jitter + 1e-9
        taken.add(slot)
        assert own.distance_min <= item.distance <= own.distance_max
        assert own.radius_min <= item.radius <= own.radius_max
    assert len(taken) == len(room.items)
    assert list(room.items) == sorted(room.items)


def test_splits_and_seeds_share_no_room() -> None:
    own = RoomsSettings()
    found = [
        draw_room(own, seed, split, index)
        for seed in (0, 1)
        for split in ("train", "validation", "test")
        for index in range(50)
    ]
    assert len({room.items for room in found}) == len(found)


def test_what_does_not_fit_is_refused() -> None:
    crowded = RoomsSettings(**{**HARD, "objects_min": 16, "objects_max": 16, "radius_min": 0.7, "distance_max": 2.0})
    with pytest.raises(SettingsError, match=r"download.rooms: 16 objects do not fit .*; lower objects_max"):
        draw_room(crowded, 0, "train", 0)
    near = RoomsSettings(distance_min=0.9)
    with pytest.raises(SettingsError, match=r"download.rooms.distance_min: 0.9 lets objects .* at least 1.25 times"):
        draw_room(near, 0, "train", 0)
    for own in (crowded, near):
        [problem] = find_source("rooms").problems(PanoramasDownload(rooms=own), PanoramasPreprocess())
        assert problem.startswith("download.rooms")


# ---------------------------------------------------------------------------------------------------------- source
def test_source(tmp_path: Path) -> None:
    own = PanoramasDownload(seed=3, rooms=RoomsSettings(train=3, validation=1, test=2, height_px=32))
    source = find_source("rooms")
    manifest = describe(tmp_path, source.download(own, tmp_path))
    assert not list(source.problems(own, PanoramasPreprocess()))
    tables, rooms = source.tables(own, tmp_path, manifest), source.rooms(own, tmp_path)
    assert [table.split for table in tables] == ["train", "validation", "test"]
    room = rooms["pictures/room-test-00001.png"]
    assert room == draw_room(own.rooms, 3, "test", 1)
    assert read_rooms(tmp_path / "rooms.parquet", ["room-test-00001"]) == [room]
    with (tmp_path / "test.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["url", "query", "annotation", "type", "direction"]
    rows = tables[2].rows
    assert [[row.url, row.query, row.answer, row.type, row.direction] for row in rows] == lines[1:]
    assert [row.line for row in rows] == list(range(2, len(lines) + 1))
    assert {row.picture for row in rows} == {f"pictures/room-test-0000{i}.png" for i in range(2)}
    # All but the drawn types follow from the room again.
    fixed = {t for t in own.rooms.questions if t != "exists"}
    again = [
        (t.question, t.answer) for t in room.turns(own.rooms.questions, np.random.default_rng(9)) if t.type in fixed
    ]
    assert [(r.query, r.answer) for r in rows if r.url == "pictures/room-test-00001.png" and r.type in fixed] == again
    assert np.asarray(Image.open(tmp_path / "pictures/room-test-00001.png")).shape == (32, 64, 3)


def test_source_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = PanoramasDownload(rooms=RoomsSettings(train=3, validation=1, test=1, height_px=32))
    source = find_source("rooms")
    first = describe(tmp_path, source.download(own, tmp_path))
    picture, other = (tmp_path / f"pictures/room-train-0000{i}.png" for i in (1, 2))
    picture.unlink()
    before = other.stat().st_mtime_ns
    assert describe(tmp_path, source.download(own, tmp_path)).equals(first)
    assert other.stat().st_mtime_ns == before
    more = own.model_copy(update={"rooms": own.rooms.model_copy(update={"train": 4})})
    assert set(first["path"]) < set(describe(tmp_path, source.download(more, tmp_path))["path"])
    assert other.stat().st_mtime_ns == before
    another = own.model_copy(update={"seed": 1})
    changed = describe(tmp_path, source.download(another, tmp_path))
    assert set(changed["sha256"]).isdisjoint(first["sha256"])
    other.write_bytes(b"drawn otherwise")
    monkeypatch.setattr(simulate, "DRAWN_WITH", simulate.DRAWN_WITH + 1)
    again = describe(tmp_path, source.download(another, tmp_path))
    pictures = pl.col("path").str.ends_with(".png")
    assert again.filter(pictures).equals(changed.filter(pictures))
