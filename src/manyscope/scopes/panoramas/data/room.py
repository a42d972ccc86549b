"""A room: what stands around the camera, and the turns whose answers follow from that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.scopes.panoramas.data.turns import DIRECTIONS, Turn
from manyscope.tables.parquet import read_table, write_table

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("cube", "ball", "cone", "cylinder")
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen",
)  # fmt: skip

_STEP_DEG = 360 / len(DIRECTIONS)
_CLEAR_DEG = 4.0  # nobody could say on which side of a border nearer objects are
_SIDES = {0: "in front of you", 2: "to your right", 4: "behind you", 6: "to your left"}
_BESIDE_DEG = 90.0  # farther away, something is no longer "left of" or "right of"
_NEARER = 1.15  # one distance over another, at least, for a difference that can be seen
_PAIRS = 3
_DRAWS = 2
_ITEMS = pl.List(
    pl.Struct(
        {"yaw_deg": pl.Float64, "distance": pl.Float64, "radius": pl.Float64, "colour": pl.String, "shape": pl.String}
    )
)


class Item(NamedTuple):
    """An object.

    Attributes:
        yaw_deg: from -180 to 180, of its middle.
        distance: of its axis from the camera, on the ground.
        radius: half its width.
        colour: one of COLOURS.
        shape: cube, ball, cone or cylinder.
    """

    yaw_deg: float
    distance: float
    radius: float
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Room:
    """Objects around the camera.

    Attributes:
        items: sorted by yaw.
        shapes: that the objects of all rooms may have.
        questions: types of questions that are asked of it.
    """

    items: tuple[Item, ...]
    shapes: tuple[str, ...]
    questions: tuple[str, ...]

    def changed(self, turn_deg: float, mirror: bool) -> Room:
        """The room whose panorama is this one's, first mirrored left to right if asked for, then turned: what was at
        yaw a is then at a + turn_deg, or at turn_deg - a."""
        sign = -1 if mirror else 1
        items = [item._replace(yaw_deg=wrapped(turn_deg + sign * item.yaw_deg)) for item in self.items]
        return Room(tuple(sorted(items)), self.shapes, self.questions)

    def turns(self, types: Sequence[str], rng: np.random.Generator) -> list[Turn]:
        """Every turn of these types; those that need a choice, such as what does not exist, draw it from `rng`.

        Args:
            types: of `questions`, or look, where, across.

        Raises:
            DataError: a type is unknown.
        """
        found: list[Turn] = []
        for kind in types:
            if kind not in _MAKERS:
                raise DataError(
                    f"rooms have no turns of the type {kind!r}", place="types", allowed=", ".join(sorted(_MAKERS))
                )
            found += _MAKERS[kind](self, rng)
        return found

    @cached_property
    def _around(self) -> list[list[Item]]:
        """For each direction, the items of which it is the nearest, from left to right."""
        found: list[list[Item]] = [[] for _ in DIRECTIONS]
        for item in self.items:
            found[_direction(item.yaw_deg)].append(item)
        for middle, items in enumerate(found):
            items.sort(key=lambda item: wrapped(item.yaw_deg - middle * _STEP_DEG))
        return found

    @cached_property
    def _unique(self) -> list[Item]:
        """The items that their colour and shape name."""
        times = Counter(item.name for item in self.items)
        return [item for item in self.items if times[item.name] == 1]

    def _look(self, rng: np.random.Generator) -> Iterator[Turn]:
        for direction, items in zip(DIRECTIONS, self._around, strict=True):
            answer = " , ".join(item.name for item in items) or "nothing"
            yield Turn("look", f"look {direction}", answer, direction)

    def _where(self, rng: np.random.Generator) -> Iterator[Turn]:
        for item in self._unique:
            yield Turn("where", f"where is the {item.name} ?", DIRECTIONS[_direction(item.yaw_deg)])

    def _across(self, rng: np.random.Generator) -> Iterator[Turn]:
        """What the questions `opposite` build on, asked of every object that can be named."""
        for item in self._unique:
            others = self._facing(item)
            yield Turn("across", f"what is opposite the {item.name} ?", " , ".join(o.name for o in others) or "nothing")

    def _facing(self, item: Item) -> list[Item]:
        """The items on the other side of the camera, from left to right."""
        apart = [(wrapped(other.yaw_deg - item.yaw_deg - 180), other) for other in self.items]
        return [other for angle, other in sorted(apart) if abs(angle) <= _STEP_DEG / 2]

    def _colour(self, rng: np.random.Generator) -> Iterator[Turn]:
        for side, item in self._alone():
            yield Turn("colour", f"what color is the object {_SIDES[side]} ?", item.colour, DIRECTIONS[side])

    def _shape(self, rng: np.random.Generator) -> Iterator[Turn]:
        for side, item in self._alone():
            yield Turn("shape", f"what shape is the object {_SIDES[side]} ?", item.shape, DIRECTIONS[side])

    def _is_clear(self, yaw_deg: float) -> bool:
        """Whether each object is plainly in the direction or plainly not."""
        apart = (abs(wrapped(item.yaw_deg - yaw_deg)) for item in self.items)
        return all(abs(angle - _STEP_DEG / 2) >= _CLEAR_DEG for angle in apart)

    def _alone(self) -> Iterator[tuple[int, Item]]:
        for side in _SIDES:
            if len(self._around[side]) == 1 and self._is_clear(side * _STEP_DEG):
                yield side, self._around[side][0]

    def _count(self, rng: np.random.Generator) -> Iterator[Turn]:
        for shape in self.shapes:
            count = sum(item.shape == shape for item in self.items)
            yield Turn("count", f"how many {shape} objects are there ?", NUMBERS[count])

    def _count_colour(self, rng: np.random.Generator) -> Iterator[Turn]:
        for colour in COLOURS:
            count = sum(item.colour == colour for item in self.items)
            yield Turn("count_colour", f"how many {colour} objects are there ?", NUMBERS[count])

    def _exists(self, rng: np.random.Generator) -> Iterator[Turn]:
        here = {item.name for item in self.items}
        known = [f"{colour} {shape}" for colour in COLOURS for shape in self.shapes]
        left = {"yes": [name for name in known if name in here], "no": [name for name in known if name not in here]}
        for _ in range(_DRAWS):
            answer = "yes" if rng.random() < 0.5 else "no"
            names = left[answer]
            if names:
                yield Turn("exists", f"is there a {names.pop(int(rng.integers(len(names))))} ?", answer)

    def _opposite(self, rng: np.random.Generator) -> Iterator[Turn]:
        for item in self._unique:
            others = self._facing(item)
            if len(others) == 1 and self._is_clear(item.yaw_deg + 180):
                yield Turn("opposite", f"what color is the object opposite the {item.name} ?", others[0].colour)

    def _left_of(self, rng: np.random.Generator) -> Iterator[Turn]:
        yield from self._beside("left", -1)

    def _right_of(self, rng: np.random.Generator) -> Iterator[Turn]:
        yield from self._beside("right", 1)

    def _beside(self, word: str, sign: int) -> Iterator[Turn]:
        for item in self._unique:
            away = [(sign * (other.yaw_deg - item.yaw_deg) % 360, other.name) for other in self.items if other != item]
            nearest = min(away, default=None)
            if nearest and 0 < nearest[0] <= _BESIDE_DEG - _CLEAR_DEG:
                yield Turn(f"{word}_of", f"what is {word} of the {item.name} ?", nearest[1])

    def _nearer(self, rng: np.random.Generator) -> Iterator[Turn]:
        some = self._unique
        pairs = [(a, b) for a in some for b in some if a.distance * _NEARER <= b.distance]
        for pick in rng.permutation(len(pairs))[:_PAIRS]:
            near, far = pairs[pick]
            if rng.random() < 0.5:
                yield Turn("nearer", f"is the {near.name} nearer than the {far.name} ?", "yes")
            else:
                yield Turn("nearer", f"is the {far.name} nearer than the {near.name} ?", "no")


_MAKERS: dict[str, Callable[[Room, np.random.Generator], Iterator[Turn]]] = {
    "look": Room._look,
    "where": Room._where,
    "across": Room._across,
    "colour": Room._colour,
    "shape": Room._shape,
    "count": Room._count,
    "count_colour": Room._count_colour,
    "exists": Room._exists,
    "opposite": Room._opposite,
    "left_of": Room._left_of,
    "right_of": Room._right_of,
    "nearer": Room._nearer,
}
TYPES = tuple(_MAKERS)
"""Every type of turn that a room has."""


def wrapped(angle_deg: float) -> float:
    """The same angle, from -180 to below 180."""
    return (angle_deg + 180) % 360 - 180


def texts(rooms: Iterable[Room]) -> list[str]:
    """Texts that have every word of every turn of these rooms, however they are changed, and of all rooms drawn with
    the same settings."""
    shapes = sorted({shape for room in rooms for shape in room.shapes})
    return [
        "look where is the ? what color shape object",
        "how many objects are there ? is there a ? opposite left of right of nearer than",
        "nothing , yes no",
        *_SIDES.values(),
        *DIRECTIONS,
        *COLOURS,
        *shapes,
        *NUMBERS,
    ]


def write_rooms(path: Path, pictures: Sequence[str], rooms: Sequence[Room]) -> None:
    """Write a table with a row for each room, whole.

    Args:
        pictures: the name of each room's picture.
    """
    columns = {
        "picture": list(pictures),
        "items": [[item._asdict() for item in room.items] for room in rooms],
        "shapes": [list(room.shapes) for room in rooms],
        "questions": [list(room.questions) for room in rooms],
    }
    schema: dict[str, Any] = {
        "picture": pl.String,
        "items": _ITEMS,
        "shapes": pl.List(pl.String),
        "questions": pl.List(pl.String),
    }
    write_table(path, pl.DataFrame(columns, schema=schema))


def read_rooms(path: Path, pictures: Sequence[str]) -> list[Room]:
    """
    Args:
        pictures: names, in the order that is wanted.

    Raises:
        DataError: the file is broken, or a picture is missing.
    """
    columns: dict[str, type[pl.DataType]] = {"items": pl.List, "shapes": pl.List, "questions": pl.List}
    table = read_table(path, {"picture": pl.String, **columns})
    if table.schema["items"] != _ITEMS:
        raise DataError(f"column 'items' has type {table.schema['items']}", place=path, allowed=str(_ITEMS))
    rows = {name: rest for name, *rest in table.select("picture", *columns).iter_rows()}
    missing = [name for name in pictures if name not in rows]
    if missing:
        raise DataError(f"picture {missing[0]!r} has no room", place=path, remedy="run the stage that makes it again")
    found = []
    for name in pictures:
        items, shapes, questions = rows[name]
        found.append(Room(tuple(Item(**item) for item in items), tuple(shapes), tuple(questions)))
    return found


def _direction(yaw_deg: float) -> int:
    """Position in DIRECTIONS of the nearest."""
    return int((yaw_deg + _STEP_DEG / 2) // _STEP_DEG) % len(DIRECTIONS)
