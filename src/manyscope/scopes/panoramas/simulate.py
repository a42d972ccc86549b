"""Rooms with objects around the camera: drawn by ray casting, with every answer known."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from manyscope.errors import DataError, SettingsError
from manyscope.log import progress
from manyscope.scopes.panoramas.data.room import COLOURS, Item, Room, read_rooms, wrapped, write_rooms
from manyscope.scopes.panoramas.data.sources import PICTURES, Table
from manyscope.scopes.panoramas.data.turns import DIRECTIONS
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.samples import SPLITS
from manyscope.tables.whole import explaining_full_disk, read_json, whole_file, write_json

if TYPE_CHECKING:
    import polars as pl

    from manyscope.scopes.panoramas.settings import PanoramasDownload, PanoramasPreprocess, RoomsSettings

ROOMS, NOTE = "rooms.parquet", "rooms.json"
# A part of the signature of the raw data. Raise it with every change of this module or of `Room` after which the same
# settings give another room or another picture: pictures that were drawn before are then drawn again.
DRAWN_WITH = 1
CAMERA = 1.2  # height above the floor, in the unit of the distances

_RGB = dict(
    zip(
        COLOURS,
        ((220, 40, 40), (40, 180, 60), (50, 80, 220), (230, 210, 50), (150, 60, 190), (240, 140, 40)),
        strict=True,
    )
)
_LIGHT = np.array([0.4, 0.8, -0.45], np.float32) / np.float32(math.sqrt(0.4**2 + 0.8**2 + 0.45**2))
_AMBIENT = 0.45
_CLEAR_DEG = 2.0  # between the edge of an object and the middle of one that it could hide
_LEAST_GAP = 1.25  # least distance over largest radius: the corner of a cube is at 1.2 radii
_TRIES, _ROOMS_TRIED = 20, 100
_TINY = 1e-6


class _Body(NamedTuple):
    """Proportions of a shape, in radii: height; half the width of its foot; and how far its surface, at the height of
    its middle, is from its axis towards the camera."""

    height: float
    foot: float
    front: float


_BODIES = {
    "cube": _Body(1.7, 0.85, 0.85),
    "ball": _Body(2.0, 1.0, 1.0),
    "cone": _Body(2.1, 1.0, 0.5),
    "cylinder": _Body(2.2, 0.7, 0.7),
}


class Rooms:
    """The drawn rooms as a source: raw/pictures/room-SPLIT-00012.png, raw/SPLIT.csv and raw/rooms.parquet."""

    def download(self, settings: PanoramasDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Draw the pictures that are not there yet. rooms.json says what the files were drawn with, and is written
        first; with another one all are drawn again.

        Raises:
            SettingsError: the objects do not fit into a room.
        """
        drawn, seed = settings.rooms, settings.seed
        look = drawn.model_dump(mode="json", exclude={*SPLITS, "questions"})
        _begin(raw, {"drawn_with": DRAWN_WITH, "seed": seed, **look})
        names: list[str] = []
        rooms: list[Room] = []
        for split in SPLITS:
            rows = io.StringIO()
            table = csv.writer(rows, lineterminator="\n")
            table.writerow(("url", "query", "annotation", "type", "direction"))
            for index in progress(range(getattr(drawn, split)), f"drawing rooms ({split})"):
                name = f"room-{split}-{index:05d}"
                room = draw_room(drawn, seed, split, index)
                path = f"{PICTURES}/{name}.png"
                if not (raw / path).exists():
                    _write_png(raw / path, render(room, drawn.height_px, _random(seed, split, index, "light")))
                for turn in room.turns(drawn.questions, _random(seed, split, index, "questions")):
                    table.writerow((path, turn.question, turn.answer, turn.type, turn.direction))
                yield ManifestEntry(path, f"rooms, seed {seed}, {split} {index}")
                names.append(name)
                rooms.append(room)
            with whole_file(raw / f"{split}.csv") as partial:
                partial.write_text(rows.getvalue(), encoding="utf-8")
        write_rooms(raw / ROOMS, names, rooms)
        for path in (*(f"{split}.csv" for split in SPLITS), ROOMS, NOTE):
            yield ManifestEntry(path, f"rooms, seed {seed}")

    def tables(self, settings: PanoramasDownload, raw: Path, manifest: pl.DataFrame) -> list[Table]:
        """
        Raises:
            DataError: the manifest is not of rooms.
        """
        from manyscope.scopes.panoramas.data.csv_tables import read_csv

        paths = set(manifest["path"])
        if ROOMS not in paths:
            raise DataError("the raw data are no rooms", place=raw, remedy="run the stage 'download' again")
        return [
            Table(str(raw / f"{split}.csv"), split, tuple(row._replace(picture=row.url) for row in rows))
            for split in SPLITS
            for rows in [read_csv(raw / f"{split}.csv")]
        ]

    def rooms(self, settings: PanoramasDownload, raw: Path) -> dict[str, Room]:
        """
        Raises:
            DataError: raw/rooms.parquet is broken, or of other rooms.
        """
        names = [f"room-{split}-{index:05d}" for split in SPLITS for index in range(getattr(settings.rooms, split))]
        found = read_rooms(raw / ROOMS, names)
        return {f"{PICTURES}/{name}.png": room for name, room in zip(names, found, strict=True)}

    def problems(self, settings: PanoramasDownload, checks: PanoramasPreprocess) -> Iterator[str]:
        """Draws one room of each split."""
        try:
            for split in SPLITS:
                draw_room(settings.rooms, settings.seed, split, 0)
        except SettingsError as error:
            yield str(error)


def draw_room(settings: RoomsSettings, seed: int, split: str, index: int) -> Room:
    """A room that depends on (seed, split, index) and the settings alone.

    Objects stand in different slots, and the middle of each can be seen: one that is nearer to the camera, at least in
    part, is at least half its own width and 2 degrees away in yaw.

    Raises:
        SettingsError: the objects do not fit.
    """
    if settings.distance_min < _LEAST_GAP * settings.radius_max:
        raise SettingsError(
            f"download.rooms.distance_min: {settings.distance_min} lets objects of radius_max {settings.radius_max}"
            f" touch the camera; allowed: at least {_LEAST_GAP} times radius_max"
        )
    rng = _random(seed, split, index, "room")
    count = int(rng.integers(settings.objects_min, settings.objects_max + 1))
    for _ in range(_ROOMS_TRIED):
        items = _place(settings, count, rng)
        if len(items) == count:
            return Room(tuple(sorted(items)), settings.shapes, settings.questions)
    raise SettingsError(
        f"download.rooms: {count} objects do not fit around the camera so that the middle of each is seen; lower"
        " objects_max, radius_max or jitter_deg, or raise distance_min"
    )


def _place(settings: RoomsSettings, count: int, rng: np.random.Generator) -> list[Item]:
    """At most `count` objects, each in the next slot of a random order in which it fits."""
    items: list[Item] = []
    # Sixteen slots are two for each of the eight directions that have names, and none lies between two of these.
    offset = 0.5 if settings.slots > len(DIRECTIONS) else 0.0
    for slot in rng.permutation(settings.slots):
        for _ in range(_TRIES):
            if len(items) == count:
                return items
            middle_deg = (float(slot) + offset) * 360 / settings.slots
            item = Item(
                wrapped(middle_deg + rng.uniform(-settings.jitter_deg, settings.jitter_deg)),
                float(rng.uniform(settings.distance_min, settings.distance_max)),
                float(rng.uniform(settings.radius_min, settings.radius_max)),
                COLOURS[rng.integers(len(COLOURS))],
                settings.shapes[rng.integers(len(settings.shapes))],
            )
            if not any(_hides(item, other) or _hides(other, item) for other in items):
                items.append(item)
                break
    return items


def middle_pitch_deg(item: Item) -> float:
    """The pitch at which the camera sees the middle of an object's height."""
    return math.degrees(math.atan2(_BODIES[item.shape].height * item.radius / 2 - CAMERA, item.distance))


def half_width_deg(item: Item) -> float:
    """The largest departure in yaw of an object's surface from its middle."""
    foot = _BODIES[item.shape].foot * item.radius
    if item.shape == "cube":  # it turns a face to the camera
        return math.degrees(math.atan2(foot, item.distance - foot))
    return math.degrees(math.asin(foot / item.distance))


def _hides(item: Item, other: Item) -> bool:
    """Whether an object may hide the middle of another, which it may if any of it is nearer than that."""
    nearest = item.distance - _BODIES[item.shape].foot * item.radius
    if nearest > other.distance - _BODIES[other.shape].front * other.radius:
        return False
    return abs(wrapped(item.yaw_deg - other.yaw_deg)) < half_width_deg(item) + _CLEAR_DEG


def render(room: Room, height_px: int, rng: np.random.Generator) -> np.ndarray:
    """The panorama, (height_px, 2 height_px, 3) uint8: one ray through the middle of each pixel.

    Args:
        rng: draws the colours of floor and sky.
    """
    rays, above, shade, floor_distance = _surroundings(height_px)
    floor, sky = rng.uniform(90, 150, 3).astype(np.float32), rng.uniform(150, 230, 3).astype(np.float32)
    picture = np.where(above[:, None, None], sky, floor) * shade[..., None]
    nearest = floor_distance.copy()
    for item in room.items:
        top, bottom, columns = _window(item, height_px)
        window = rays[top:bottom, columns]
        distance, light = _cast(item, window.reshape(-1, 3))
        distance, light = distance.reshape(window.shape[:2]), light.reshape(window.shape[:2])
        before = nearest[top:bottom, columns]
        seen = distance < before
        nearest[top:bottom, columns] = np.where(seen, distance, before)
        colour = np.array(_RGB[item.colour], np.float32) * light[..., None]
        picture[top:bottom, columns] = np.where(seen[..., None], colour, picture[top:bottom, columns])
    return picture.clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def _surroundings(height_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unit rays (h, w, 3); whether a row looks at the sky (h,); the shade of floor and sky (h, w); the distance of the
    floor (h, w), infinite in the sky. The floor has a checker of one unit."""
    yaw = ((np.arange(2 * height_px) + 0.5) / height_px - 1) * np.pi
    pitch = (0.5 - (np.arange(height_px) + 0.5) / height_px) * np.pi
    up = np.sin(pitch)[:, None]
    flat = np.cos(pitch)[:, None]
    rays = np.stack([flat * np.sin(yaw), np.broadcast_to(up, (height_px, 2 * height_px)), flat * np.cos(yaw)], -1)
    above = pitch >= 0
    distance = np.where(above[:, None], np.inf, CAMERA / np.maximum(-up, _TINY)) + np.zeros_like(yaw)
    ground = np.where(np.isfinite(distance), distance, 0)
    checker = (np.floor(rays[..., 0] * ground) + np.floor(rays[..., 2] * ground)) % 2
    shade = np.where(above[:, None], 1 - 0.35 * np.abs(up), 0.75 + 0.25 * checker)
    return rays.astype(np.float32), above, shade.astype(np.float32), distance.astype(np.float32)


def _window(item: Item, height_px: int) -> tuple[int, int, np.ndarray]:
    """The rows from, to, and the columns that an object can cover."""
    body = _BODIES[item.shape]
    near = item.distance - body.foot * item.radius
    above = body.height * item.radius - CAMERA
    highest = math.degrees(math.atan2(above, near if above > 0 else 2 * item.distance - near))
    lowest = math.degrees(math.atan2(-CAMERA, near))
    per_deg = height_px / 180
    top = max(int((90 - highest) * per_deg), 0)
    bottom = min(math.ceil((90 - lowest) * per_deg) + 1, height_px)
    width = half_width_deg(item)
    first = math.floor((item.yaw_deg - width + 180) * per_deg)
    last = math.ceil((item.yaw_deg + width + 180) * per_deg)
    return top, bottom, np.arange(first, last + 1) % (2 * height_px)


def _cast(item: Item, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays meet an object.

    Args:
        rays: (n, 3) unit rays from the camera.

    Returns:
        the distance, infinite for those that miss; and the light there, from 0 to 1; both (n,) float32.
    """
    yaw = math.radians(item.yaw_deg)
    foot = np.array([item.distance * math.sin(yaw), -CAMERA, item.distance * math.cos(yaw)], np.float32)
    if item.shape == "ball":
        distance, normal = _cast_ball(foot, item.radius, rays)
    elif item.shape == "cube":
        distance, normal = _cast_cube(foot, item.radius, yaw, rays)
    else:
        distance, normal = _cast_round(foot, item, rays)
    return distance, _AMBIENT + (1 - _AMBIENT) * (normal @ _LIGHT).clip(0, 1)


def _cast_ball(foot: np.ndarray, radius: float, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre = foot + np.array([0, radius, 0], np.float32)
    along = rays @ centre
    inside = along**2 - np.float32(centre @ centre - radius**2)
    distance = along - np.sqrt(np.maximum(inside, 0))
    return np.where(inside > 0, distance, np.inf), (rays * distance[:, None] - centre) / np.float32(radius)


def _cast_cube(foot: np.ndarray, radius: float, yaw: float, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By slabs: a ray is within the cube from where it has entered all pairs of planes to where it leaves one."""
    half = np.float32(_BODIES["cube"].foot * radius)
    c, s = math.cos(yaw), math.sin(yaw)
    turn = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]], np.float32)  # the world's axes to those of the cube
    start = -(turn @ (foot + np.array([0, half, 0], np.float32)))
    along = rays @ turn.T
    along = np.where(np.abs(along) < _TINY, np.float32(_TINY), along)
    one, two = (-half - start) / along, (half - start) / along
    enters, leaves = np.minimum(one, two), np.maximum(one, two).min(1)
    axis = enters.argmax(1)
    rows = np.arange(len(rays))
    distance = enters[rows, axis]
    normal = np.zeros_like(rays)
    normal[rows, axis] = -np.sign(along[rows, axis])
    return np.where((distance < leaves) & (distance > 0), distance, np.inf), normal @ turn


def _cast_round(foot: np.ndarray, item: Item, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A cone or a cylinder: at the height y above its foot the radius is wide - taper * y."""
    body = _BODIES[item.shape]
    height, wide = np.float32(body.height * item.radius), np.float32(body.foot * item.radius)
    taper = wide / height if item.shape == "cone" else np.float32(0)
    level = wide - taper * np.float32(CAMERA)  # the radius at the height of the camera
    x, y, z = rays.T
    a = x * x + z * z - (taper * y) ** 2
    b = x * foot[0] + z * foot[2] - taper * level * y
    c = foot[0] ** 2 + foot[2] ** 2 - level**2
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    a = np.where(np.abs(a) < _TINY, np.float32(_TINY), a)
    distance = np.full(len(rays), np.inf, np.float32)
    for side in ((b - root) / a, (b + root) / a):
        up = y * side + np.float32(CAMERA)
        right = (inside > 0) & (side > 0) & (up > 0) & (up < height) & (side < distance)
        distance = np.where(right, side, distance)
    reached = np.where(np.isfinite(distance), distance, 0)
    normal = np.stack([x * reached - foot[0], taper * (level - taper * y * reached), z * reached - foot[2]], -1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + _TINY
    if item.shape == "cylinder" and height < CAMERA:  # its lid is seen
        lid = (height - np.float32(CAMERA)) / np.minimum(y, -np.float32(_TINY))
        on = (y < 0) & (np.hypot(x * lid - foot[0], z * lid - foot[2]) < wide) & (lid < distance)
        distance = np.where(on, lid, distance)
        normal[on] = (0, 1, 0)
    return distance, normal


def _random(seed: int, split: str, index: int, what: str) -> np.random.Generator:
    """Random numbers of one room's own; what is asked of it does not move what is in it."""
    purpose = ("room", "light", "questions").index(what)
    return np.random.default_rng(np.random.SeedSequence((seed, SPLITS.index(split), index, purpose)))


def _begin(raw: Path, signature: dict[str, object]) -> None:
    """Let rooms.json say what the pictures are drawn with; those drawn with something else are removed."""
    if (raw / NOTE).exists() and read_json(raw / NOTE) == signature:
        return
    for picture in (raw / PICTURES).glob("room-*.png"):
        picture.unlink()
    write_json(raw / NOTE, signature)


def _write_png(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    partial = path.with_name(f".{path.name}.partial")
    with explaining_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(partial, format="PNG", compress_level=1)
        partial.replace(path)
