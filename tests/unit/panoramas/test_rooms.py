"""Turns follow from what stands where, and a room that is turned or mirrored has the turns of the changed picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.scopes.panoramas.data.room import (
    COLOURS,
    SHAPES,
    TYPES,
    Item,
    Room,
    read_rooms,
    texts,
    wrapped,
    write_rooms,
)
from manyscope.scopes.panoramas.data.turns import DIRECTIONS, WORD, Turn
from manyscope.tables.parquet import write_table

ALL = ("cube", "ball", "cone")


def room(*items: tuple[float, str] | tuple[float, str, float]) -> Room:
    """Items from (yaw, name) or (yaw, name, distance)."""
    made = [Item(item[0], item[2] if len(item) > 2 else 2.0, 0.5, *item[1].split()) for item in items]
    return Room(tuple(sorted(made)), ALL, TYPES)


def asked(where: Room, *types: str, seed: int = 0) -> dict[str, str]:
    return {turn.question: turn.answer for turn in where.turns(types, np.random.default_rng(seed))}


NORTH = room((3, "blue cube"), (-178, "red ball"), (88, "green cone"), (130, "red ball"), (-95, "blue ball"))

items = st.lists(
    st.tuples(st.integers(-1799, 1799), st.sampled_from(COLOURS), st.sampled_from(ALL), st.floats(1.9, 5)),
    min_size=1,
    max_size=9,
    unique_by=lambda item: item[0],
)


@st.composite
def rooms(draw: st.DrawFn) -> Room:
    """Tenths of degrees, off the borders between directions."""
    made = [Item(yaw / 10 + 0.03, d, 0.5, colour, shape) for yaw, colour, shape, d in draw(items)]
    return Room(tuple(sorted(made)), ALL, TYPES)


# ---------------------------------------------------------------------------------------------------------- turns
def test_look_and_where() -> None:
    assert asked(NORTH, "look") == {
        "look front": "blue cube",
        "look front-right": "nothing",
        "look right": "green cone",
        "look back-right": "red ball",
        "look back": "red ball",
        "look back-left": "nothing",
        "look left": "blue ball",
        "look front-left": "nothing",
    }
    # The red balls are two, and "the red ball" names neither.
    assert asked(NORTH, "where") == {
        "where is the blue cube ?": "front",
        "where is the green cone ?": "right",
        "where is the blue ball ?": "left",
    }


def test_several_in_one_direction_are_named_from_left_to_right() -> None:
    crowd = room((-170, "red cube"), (175, "green ball"), (179, "blue cone"), (-20, "red ball"), (15, "blue ball"))
    found = asked(crowd, "look", "colour", "shape")
    assert found["look back"] == "green ball , blue cone , red cube"
    assert found["look front"] == "red ball , blue ball"
    assert not any(question.startswith("what") for question in found)  # neither direction has one object alone


def test_sides() -> None:
    turns = NORTH.turns(("colour", "shape"), np.random.default_rng(0))
    assert turns == [
        Turn("colour", "what color is the object in front of you ?", "blue", "front"),
        Turn("colour", "what color is the object to your right ?", "green", "right"),
        Turn("colour", "what color is the object behind you ?", "red", "back"),
        Turn("colour", "what color is the object to your left ?", "blue", "left"),
        Turn("shape", "what shape is the object in front of you ?", "cube", "front"),
        Turn("shape", "what shape is the object to your right ?", "cone", "right"),
        Turn("shape", "what shape is the object behind you ?", "ball", "back"),
        Turn("shape", "what shape is the object to your left ?", "ball", "left"),
    ]


def test_counts() -> None:
    assert asked(NORTH, "count") == {
        "how many cube objects are there ?": "one",
        "how many ball objects are there ?": "three",
        "how many cone objects are there ?": "one",
    }
    found = asked(NORTH, "count_colour")
    assert [found[f"how many {colour} objects are there ?"] for colour in COLOURS] == [
        "two", "one", "two", "zero", "zero", "zero",
    ]  # fmt: skip


def test_opposite() -> None:
    assert asked(NORTH, "opposite") == {
        "what color is the object opposite the blue cube ?": "red",
        "what color is the object opposite the green cone ?": "blue",
        "what color is the object opposite the blue ball ?": "green",
    }
    two = room((0, "blue cube"), (170, "red ball"), (-165, "green ball"))
    assert "what color is the object opposite the blue cube ?" not in asked(two, "opposite")


def test_beside() -> None:
    assert asked(NORTH, "left_of") == {
        "what is left of the blue ball ?": "red ball",  # across the seam
        "what is left of the green cone ?": "blue cube",
    }
    assert asked(NORTH, "right_of") == {
        "what is right of the blue cube ?": "green cone",
        "what is right of the green cone ?": "red ball",
    }


def test_nearer() -> None:
    some = room((0, "blue cube", 2), (90, "red ball", 2.2), (180, "green cone", 3), (-90, "red cube", 4))
    asked_of: dict[str, str] = {}
    for seed in range(40):
        turns = some.turns(("nearer",), np.random.default_rng(seed))
        assert len(turns) == len({frozenset(turn.question.split()) for turn in turns}) == 3
        asked_of.update({turn.question: turn.answer for turn in turns})
    distance = {item.name: item.distance for item in some.items}
    for question, answer in asked_of.items():
        one, other = question.removeprefix("is the ").removesuffix(" ?").split(" nearer than the ")
        assert answer == ("yes" if distance[one] < distance[other] else "no")
        assert {one, other} != {"blue cube", "red ball"}  # too near to one another to be told
    assert len(asked_of) == 2 * 5


def test_exists_is_balanced_and_never_repeated() -> None:
    answers = []
    for seed in range(400):
        turns = NORTH.turns(("exists",), np.random.default_rng(seed))
        assert len({turn.question for turn in turns}) == 2
        for turn in turns:
            name = turn.question.removeprefix("is there a ").removesuffix(" ?")
            assert turn.answer == ("yes" if any(item.name == name for item in NORTH.items) else "no")
            answers.append(turn.answer)
    assert abs(answers.count("yes") - 400) < 4 * math.sqrt(800 / 4)


def test_exists_where_everything_or_little_is_there() -> None:
    full = room(*[(5.0 * i, f"{c} {s}") for i, (c, s) in enumerate((c, s) for c in COLOURS for s in ALL)])
    assert set(asked(full, "exists", seed=1).values()) <= {"yes"}
    single = room((0, "red cube"))
    for seed in range(20):
        assert list(asked(single, "exists", seed=seed).values()).count("yes") <= 1


def test_unknown_type() -> None:
    with pytest.raises(DataError, match=r"no turns of the type 'color'; allowed: across, colour, count"):
        NORTH.turns(("color",), np.random.default_rng(0))


# -------------------------------------------------------------------------------------------------------- changed
def test_changed() -> None:
    changed = NORTH.changed(90, mirror=True)
    assert asked(changed, "look")["look right"] == "blue cube"  # front, mirrored, then turned to the right
    assert asked(changed, "look")["look left"] == "red ball"
    assert asked(changed, "look")["look front"] == "green cone"
    assert asked(changed, "look")["look back"] == "blue ball"


@given(rooms(), st.integers(-8, 8), st.integers(-8, 8), st.booleans(), st.booleans())
def test_changes_are_a_group(before: Room, one: int, two: int, mirror: bool, again: bool) -> None:
    """Mirrors and turns follow one another as those of a circle do, and the counts never change."""
    twice = before.changed(45 * one, mirror).changed(45 * two, again)
    once = before.changed(45 * (two - one if again else two + one), mirror != again)
    assert [item[1:] for item in twice.items] == [item[1:] for item in once.items]
    np.testing.assert_allclose([i.yaw_deg for i in twice.items], [i.yaw_deg for i in once.items], atol=1e-9)
    assert all(-180 <= item.yaw_deg < 180 for item in twice.items)
    assert asked(twice, "count", "count_colour") == asked(before, "count", "count_colour")


@given(rooms(), st.integers(0, 7), st.booleans())
def test_turns_of_a_changed_room_are_those_of_its_directions(before: Room, turn: int, mirror: bool) -> None:
    sign = -1 if mirror else 1
    old, new = asked(before, "look"), asked(before.changed(45 * turn, mirror), "look")
    for place, direction in enumerate(DIRECTIONS):
        moved = DIRECTIONS[(turn + sign * place) % 8]
        names = old[f"look {direction}"].split(" , ")
        assert new[f"look {moved}"].split(" , ") == names[::sign]
    left, right = (
        asked(before, "left_of"),
        asked(before.changed(45 * turn, mirror), "right_of" if mirror else "left_of"),
    )
    assert {q.replace("left", "right") if mirror else q: a for q, a in left.items()} == right


def test_every_word_is_known() -> None:
    known = {word for text in texts([NORTH]) for word in WORD.findall(text)}
    for turn in range(8):
        for mirror in (False, True):
            for said in NORTH.changed(45 * turn, mirror).turns(TYPES, np.random.default_rng(turn)):
                assert set(WORD.findall(said.question) + WORD.findall(said.answer)) <= known
    assert "cylinder" not in known


def test_wrapped() -> None:
    assert [wrapped(angle) for angle in (-180, 180, 540, 190, -190, 0)] == [-180, -180, -180, -170, 170, 0]


# ----------------------------------------------------------------------------------------------------------- files
def test_file(tmp_path: Path) -> None:
    path = tmp_path / "rooms.parquet"
    others = [NORTH, NORTH.changed(33.3, True), Room(NORTH.items[:1], SHAPES, ("count",))]
    write_rooms(path, ["a", "b", "c"], others)
    assert read_rooms(path, ["c", "a"]) == [others[2], others[0]]
    assert read_rooms(path, ["b"]) == [others[1]]
    with pytest.raises(DataError, match="picture 'd' has no room; run the stage that makes it again"):
        read_rooms(path, ["a", "d"])


def test_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "rooms.parquet"
    empty = {"shapes": [["cube"]], "questions": [["count"]]}
    write_table(path, pl.DataFrame({"picture": ["a"], "items": [[1.0]], **empty}))
    with pytest.raises(DataError, match="column 'items' has type"):
        read_rooms(path, ["a"])
    write_table(path, pl.DataFrame({"picture": ["a"], **empty}))
    with pytest.raises(DataError, match="column 'items' is missing"):
        read_rooms(path, ["a"])


def test_what_is_near_a_border_is_not_asked_about() -> None:
    def asked(yaw: float) -> list[str]:
        items = (Item(yaw, 2.0, 0.5, "red", "cube"), Item(170.0, 2.0, 0.5, "blue", "ball"))
        room = Room(items, ("cube", "ball"), ("colour", "opposite"))
        return [turn.question for turn in room.turns(("colour", "opposite"), np.random.default_rng(0))]

    front = "what color is the object in front of you ?"
    assert front in asked(10.0)
    assert front in asked(18.0)
    assert front not in asked(19.0)  # 22.5 degrees is the border
    assert front not in asked(26.0)
    opposite = "what color is the object opposite the blue ball ?"
    assert opposite in asked(8.0)  # 18 degrees beside what is opposite
    assert opposite not in asked(9.0)
    assert opposite not in asked(16.0)
