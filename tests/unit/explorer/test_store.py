"""The answers of the store, beside plain loops over the same values."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from manyscope.errors import DataError
from manyscope.explorer.contents import BARS, Column, Contents
from manyscope.explorer.store import Among, Between, Containing, Shape, Store, javascript

LEVELS = ("a", "b,c", 'd"e')
NUMBERS = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 0.1, 1e300, 5e-324]), st.floats(width=32), st.floats()
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('aAİßſΣς\U0001f52d￮\n,"'), max_size=6)


@st.composite
def contents(draw: st.DrawFn) -> Contents:
    n = draw(st.integers(1, 25))
    numbers = draw(some.arrays(draw(st.sampled_from([np.float32, np.float64])), n, elements={"allow_subnormal": False}))
    codes = draw(some.arrays(np.int16, n, elements=st.integers(-1, len(LEVELS) - 1)))
    texts = draw(st.lists(st.none() | TEXTS, min_size=n, max_size=n))
    ids = draw(st.lists(TEXTS, min_size=n, max_size=n, unique=True))
    axes = draw(st.sampled_from([2, 3]))
    places = some.arrays(np.float32, (n, axes), elements=st.floats(-9, 9, width=32) | st.integers(-2, 2).map(float))
    columns = (
        Column("number", "number", numbers),
        Column("kind", "category", codes, LEVELS),
        Column("text", "text", texts),
    )
    return Contents("one", "made up", "One", ids, draw(places), columns)


def value(made: Contents, name: str, row: int) -> float | str | None:
    """As a page shows it."""
    if name == "object_id":
        return made.object_ids[row]
    column = next(column for column in made.columns if column.name == name)
    found = column.values[row]
    if column.kind == "category":
        return None if found < 0 else column.levels[found]
    if column.kind == "number":
        return None if math.isnan(found) else float(found)
    return found


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "number": st.builds(
            Between, st.none() | NUMBERS.filter(math.isfinite), st.none() | st.just(0.1) | st.floats(-3, 3)
        ),
        "kind": st.builds(Among, st.lists(st.sampled_from([*LEVELS, None, "unknown"]))),
        "text": st.builds(Containing, TEXTS) | st.builds(Among, st.lists(st.none() | TEXTS)),
        "object_id": st.builds(Containing, TEXTS),
    },
)


def passes(made: Contents, row: int, name: str, wanted: Between | Among | Containing) -> bool:
    found = value(made, name, row)
    if isinstance(wanted, Among):
        return found in wanted.levels
    if found is None:
        return False
    if isinstance(wanted, Containing):
        return wanted.part.lower() in str(found).lower()
    assert isinstance(found, float)
    return (wanted.low is None or found >= wanted.low) and (wanted.high is None or found <= wanted.high)


@settings(max_examples=60)
@given(contents(), FILTERS)
def test_found_are_those_that_pass_every_filter(made: Contents, filters: dict) -> None:
    found = Store(made).find(filters)
    rows = range(len(made.object_ids))
    assert found.tolist() == [r for r in rows if all(passes(made, r, *one) for one in filters.items())]
    assert found.dtype == np.int32


def test_numbers_are_compared_in_double_precision() -> None:
    """As JavaScript does: 0.1 as a float32 is more than 0.1."""
    store = small(number=np.array([0.1, 0.2], np.float32))
    assert store.find({"number": Between(None, 0.1)}).tolist() == []
    assert store.find({"number": Between(None, float(np.float32(0.1)))}).tolist() == [0]


def test_a_part_is_sought_in_what_is_shown_of_any_column() -> None:
    store = small(number=np.array([1e21, 0.5, 12.0, math.nan]), kind=["a", None, "BA", "c"])
    assert store.find({"number": Containing("E+2")}).tolist() == [0]
    assert store.find({"number": Containing("2")}).tolist() == [0, 2]
    assert store.find({"kind": Containing("A")}).tolist() == [0, 2]


def small(**columns: np.ndarray | list[str | None]) -> Store:
    n = len(next(iter(columns.values())))
    made = []
    for name, values in columns.items():
        if isinstance(values, np.ndarray):
            made.append(Column(name, "number", values))
        else:
            levels = tuple(sorted({v for v in values if v is not None}))
            codes = np.array([-1 if v is None else levels.index(v) for v in values], np.int16)
            made.append(Column(name, "category", codes, levels))
    ids = [f"id {i}" for i in range(n)]
    return Store(Contents("one", "made up", "One", ids, np.zeros((n, 2), np.float32), tuple(made)))


def inside(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    crossings = 0
    for (x0, y0), (x1, y1) in zip(corners, [corners[-1], *corners[:-1]], strict=True):
        if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
            crossings += 1
    return crossings % 2 == 1


CORNER = st.tuples(*[st.floats(-10, 10) | st.integers(-2, 2).map(float)] * 2)


@settings(max_examples=60)
@given(contents(), st.lists(CORNER, min_size=1, max_size=12))
def test_a_lasso_holds_what_the_even_odd_rule_says(made: Contents, corners: list[tuple[float, float]]) -> None:
    found = Store(made).within(Shape("lasso", corners))
    xs, ys = zip(*corners, strict=True)
    places = made.coordinates[:, :2].astype(float).tolist()
    assert found.tolist() == [
        row
        for row, (x, y) in enumerate(places)
        if min(xs) <= x <= max(xs) and min(ys) <= y <= max(ys) and inside(x, y, corners)
    ]


@settings(max_examples=60)
@given(contents(), CORNER, CORNER)
def test_the_edge_of_a_box_is_inside(made: Contents, one: tuple[float, float], other: tuple[float, float]) -> None:
    (x0, x1), (y0, y1) = (sorted(ends) for ends in zip(one, other, strict=True))
    found = Store(made).within(Shape("box", [one, other]))
    places = made.coordinates.tolist()
    assert found.tolist() == [row for row, (x, y, *_) in enumerate(places) if x0 <= x <= x1 and y0 <= y <= y1]


@settings(max_examples=60)
@given(contents(), some.arrays(float, 16, elements=st.floats(-2, 2)), CORNER, CORNER)
def test_a_camera_shows_what_is_before_the_eye(made: Contents, camera: np.ndarray, one: tuple, other: tuple) -> None:
    (x0, x1), (y0, y1) = (sorted(ends) for ends in zip(one, other, strict=True))
    found = Store(made).within(Shape("box", [one, other], camera.tolist())).tolist()
    expected, unsure = [], set()
    for row, (x, y, *z) in enumerate(made.coordinates.astype(float).tolist()):
        clip = camera.reshape(4, 4).T @ [x, y, z[0] if z else 0, 1]
        seen = clip[:2] / clip[3] if clip[3] > 1e-9 else [math.nan, math.nan]
        if x0 <= seen[0] <= x1 and y0 <= seen[1] <= y1:
            expected.append(row)
        near = [abs(seen[0] - e) < 1e-9 for e in (x0, x1)] + [abs(seen[1] - e) < 1e-9 for e in (y0, y1)]
        if any(near) or abs(clip[3]) < 1e-9:
            unsure.add(row)  # the order of a sum decides
    assert set(found) - unsure == set(expected) - unsure
    assert found == sorted(found)


@settings(max_examples=60)
@given(contents(), st.sampled_from(["number", "kind", "text", "object_id"]), st.booleans(), st.data())
def test_sorting_keeps_the_rows_and_puts_missing_ones_last(
    made: Contents, name: str, descending: bool, data: st.DataObject
) -> None:
    n = len(made.object_ids)
    rows = data.draw(st.none() | st.lists(st.integers(0, n - 1), unique=True))
    given_rows = None if rows is None else np.array(rows, np.int32)
    found = Store(made).sorted(given_rows, name, descending).tolist()

    def key(row: int) -> object:
        known = value(made, name, row)
        if name == "kind":
            return LEVELS.index(known)  # type: ignore[arg-type]
        return known.encode("utf-16-be") if isinstance(known, str) else known  # as JavaScript compares texts

    wanted = sorted(range(n) if rows is None else rows)
    known = sorted((r for r in wanted if value(made, name, r) is not None), key=key)  # type: ignore[arg-type]
    if descending:  # equal ones stay in the order of the rows
        known.sort(key=key, reverse=True)  # type: ignore[arg-type]
    assert found == known + [r for r in wanted if value(made, name, r) is None]


@settings(max_examples=60)
@given(contents(), st.data())
def test_every_value_is_in_one_bar(made: Contents, data: st.DataObject) -> None:
    store, n = Store(made), len(made.object_ids)
    rows = data.draw(st.none() | st.lists(st.integers(0, n - 1), unique=True))
    given_rows = None if rows is None else np.array(rows, np.int32)
    for name, bars in (("number", BARS), ("kind", len(LEVELS))):
        found = store.histogram(name, given_rows)
        values = [value(made, name, row) for row in range(n)]
        assert found["missing"] == values.count(None)
        if name == "number" and not any(v is not None and math.isfinite(v) for v in values):
            assert found["all"] == found["chosen"] == []
            assert found["low"] is found["high"] is None
            continue
        chosen = [values[row] for row in (range(n) if rows is None else rows)]
        assert len(found["all"]) == len(found["chosen"]) == bars
        assert sum(found["all"]) == n - values.count(None)
        assert sum(found["chosen"]) == len(chosen) - chosen.count(None)
        assert all(some <= every for some, every in zip(found["chosen"], found["all"], strict=True))


def test_bars_lie_between_the_percentiles() -> None:
    values = np.concatenate([np.arange(1000.0), [1e9, -1e9, math.inf, math.nan]])
    found = small(number=values).histogram("number", np.array([0, 999, 1000, 1001, 1002, 1003], np.int32))
    assert (found["low"], found["high"]) == tuple(np.quantile(values[:1002], [0.01, 0.99]))
    edges = np.linspace(found["low"], found["high"], BARS + 1)
    middle = np.histogram(values[:1000], edges)[0].tolist()
    assert found["all"][1:-1] == middle[1:-1]
    assert found["chosen"] == [2] + [0] * (BARS - 2) + [3]
    assert found["missing"] == 1


def test_bars_of_equal_values_and_of_values_as_far_apart_as_can_be() -> None:
    same = small(number=np.full(5, 3.0)).histogram("number")
    assert (same["low"], same["high"], Counter(same["all"])) == (2.5, 3.5, {0: BARS - 1, 5: 1})
    assert same["all"][BARS // 2] == 5
    far = small(number=np.array([-1.7e308, 0.0, 1.7e308])).histogram("number")
    assert sum(far["all"]) == 3
    assert far["all"][BARS // 2] == 1


def test_counts_of_levels() -> None:
    found = small(kind=["b", "a", "b", None]).histogram("kind", np.array([0, 3], np.int32))
    assert found == {"all": [1, 2], "chosen": [0, 1], "missing": 1}


def scattered(n: int, most: int) -> Store:
    rng = np.random.default_rng(3)
    values = Column("number", "number", np.arange(n, dtype=np.float32))
    kinds = Column("kind", "category", (np.arange(n) % 4 - 1).astype(np.int16), ("a", "b", "c"))
    ids = [str(i) for i in range(n)]
    places = rng.uniform(size=(n, 2)).astype(np.float32)
    return Store(Contents("one", "made up", "One", ids, places, (values, kinds)), most_points=most)


def test_all_points_where_all_can_be_drawn() -> None:
    store = scattered(100, 100)
    found = store.points([[0, 0.1], [0, 0.1]], "kind", "number", {"number": Between(3, 4)})
    assert store.draws_all
    assert found.rows.tolist() == list(range(100))
    np.testing.assert_array_equal(np.stack(found.axes, 1), store.contents.coordinates)
    np.testing.assert_array_equal(found.size, np.arange(100))
    assert found.colour is not None
    np.testing.assert_array_equal(found.colour, np.arange(100) % 4 - 1)


def test_a_closer_view_shows_more_and_panning_keeps_what_is_seen() -> None:
    store = scattered(4000, 200)

    def drawn(x0: float, x1: float) -> set[int]:
        found = store.points([[x0, x1], [0, 1]])
        x = store.contents.coordinates[found.rows, 0]
        assert ((x >= x0) & (x <= x1)).all()
        assert found.rows.tolist() == sorted(set(found.rows.tolist()))
        return set(found.rows.tolist())

    def within(rows: set[int], x0: float, x1: float) -> set[int]:
        return {row for row in rows if x0 <= store.contents.coordinates[row, 0] <= x1}

    whole, half, quarter = drawn(0, 1), drawn(0.25, 0.75), drawn(0.5, 0.75)
    assert len(whole) == len(half) == len(quarter) == 200
    assert within(whole, 0.25, 0.75) < half
    assert within(half, 0.5, 0.75) < quarter
    beside = drawn(0.3, 0.8)
    shared = within(half, 0.3, 0.75), within(beside, 0.3, 0.75)
    # Of one order by chance, one of the two shows a first part of what the other shows.
    assert shared[0] <= shared[1] or shared[1] <= shared[0]
    narrow = drawn(0.5, 0.51)
    assert narrow == within(set(range(4000)), 0.5, 0.51)


def test_points_that_pass_come_first_and_some_are_always_drawn() -> None:
    store = scattered(4000, 200)
    few = store.points(None, filters={"number": Between(100, 150)}).rows
    assert set(range(100, 151)) <= set(few.tolist())
    assert len(few) == 200
    many = store.points(None, filters={"number": Between(1000, 2000)}).rows
    assert ((many >= 1000) & (many <= 2000)).all()
    kept = store.points([[0, 0.1], [0, 0.1]], always=np.array([3999, 7, 7], np.int32)).rows.tolist()
    assert {7, 3999} <= set(kept)
    assert kept == sorted(set(kept))


@settings(max_examples=60)
@given(contents())
def test_records_say_what_is_known(made: Contents) -> None:
    rows = np.arange(len(made.object_ids), dtype=np.int32)[::-1]
    names = ["text", "number", "kind"]
    expected = [
        {"row": row, "id": made.object_ids[row], "values": [value(made, name, row) for name in names]}
        for row in rows.tolist()
    ]
    assert Store(made).records(rows, names) == expected


@settings(max_examples=60)
@given(contents())
def test_an_id_has_its_row(made: Contents) -> None:
    store = Store(made)
    assert [store.row_of(name) for name in made.object_ids] == list(range(len(made.object_ids)))
    assert store.row_of("not there at all") is None


@settings(max_examples=60)
@given(contents(), st.data())
def test_csv_can_be_read_back(made: Contents, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(made.object_ids) - 1)))
    text = "".join(Store(made).csv(np.array(rows, np.int32)))
    header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    axes = ["map_x", "map_y", "map_z"][: made.coordinates.shape[1]]
    assert header == ["object_id", *axes, "number", "kind", "text"]
    assert text.endswith("\r\n")
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        assert line[0] == made.object_ids[row]
        np.testing.assert_allclose([float(cell) for cell in line[1:-3]], made.coordinates[row], rtol=1e-6, atol=1e-30)
        number, kind, caption = (value(made, name, row) for name in ("number", "kind", "text"))
        assert (line[-2], line[-1]) == (kind or "", caption or "")
        if number is None:
            assert line[-3] == ""
        elif abs(number) < 1.79e308:  # fifteen digits of the largest double may be rounded up to infinity
            tolerance = 1e-6 if made.columns[0].values.dtype == np.float32 else 1e-14  # type: ignore[union-attr]
            assert float(line[-3]) == pytest.approx(number, rel=tolerance)


def test_cells_of_a_csv() -> None:
    """Digits by the type, forms as JavaScript writes them, and text that stays data."""
    numbers = [0.1, 1 / 3, 12345678, 1e-5, 2e-7, 3e21, -0.0, math.inf, math.nan, 4.0]
    narrow, wide = np.array(numbers, np.float32), np.array(numbers)
    made = Contents(
        "one", "made up", "One", ["=1+1", "+a", "-b", "@c", "a,b", 'q"q', "n\nn", "r\rr", "ü", "x"],
        np.zeros((10, 2), np.float32), (Column("n, narrow", "number", narrow), Column("wide", "number", wide)),
    )  # fmt: skip
    text = "".join(Store(made).csv(np.arange(10, dtype=np.int32)))
    assert text == (
        'object_id,map_x,map_y,"n, narrow",wide\r\n'
        "=1+1,0,0,0.1,0.1\r\n"
        "+a,0,0,0.3333333,0.333333333333333\r\n"
        "-b,0,0,12345680,12345678\r\n"
        "@c,0,0,0.00001,0.00001\r\n"
        '"a,b",0,0,2e-7,2e-7\r\n'
        '"q""q",0,0,3e+21,3e+21\r\n'
        '"n\nn",0,0,0,0\r\n'
        '"r\rr",0,0,Infinity,Infinity\r\n'
        "ü,0,0,,\r\n"
        "x,0,0,4,4\r\n"
    )


@settings(max_examples=60)
@given(st.data())
def test_whole_numbers_have_all_their_digits_everywhere(data: st.DataObject) -> None:
    dtype, most = data.draw(st.sampled_from([(np.float32, 2**24), (np.float64, 2**53)]))
    numbers = data.draw(st.lists(st.none() | st.integers(-most, most), min_size=1, max_size=9))
    values = np.array([math.nan if v is None else v for v in numbers], dtype)
    ids = [str(i) for i in range(len(numbers))]
    column = Column("run", "number", values, whole=True)
    store = Store(Contents("one", "made up", "One", ids, np.zeros((len(ids), 2), np.float32), (column,)))
    rows = np.arange(len(ids), dtype=np.int32)
    records = [record["values"][0] for record in store.records(rows, ["run"])]
    assert records == numbers
    assert {type(value) for value in records} <= {int, type(None)}
    lines = "".join(store.csv(rows)).splitlines()[1:]
    assert lines == [f"{i},0,0,{'' if v is None else v}" for i, v in enumerate(numbers)]
    for value in [v for v in numbers if v is not None]:
        same = [i for i, v in enumerate(numbers) if v == value]
        assert store.find({"run": Between(value, value)}).tolist() == same
        assert set(same) <= set(store.find({"run": Containing(str(value))}).tolist())


def test_cells_may_hold_any_text_of_a_table() -> None:
    """NUL needs no quotes; a text of a table is always UTF-8, so that half of a pair of UTF-16 cannot be there."""
    with pytest.raises(UnicodeEncodeError):
        pl.DataFrame({"text": ["\ud800"]})
    texts: list[str | None] = ["a\0b", "\0,", '\0"', "\u2028", " a ", "\ufeff", "􏿿"]
    column = Column("\0", "text", texts)
    ids = [f"{i}\0" for i in range(len(texts))]
    made = Contents("one", "made up", "One", ids, np.zeros((len(texts), 2), np.float32), (column,))
    text = "".join(Store(made).csv(np.arange(len(texts), dtype=np.int32)))
    header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert header[-1] == "\0"
    assert [(line[0], line[-1]) for line in lines] == list(zip(ids, texts, strict=True))
    assert text.startswith("object_id,map_x,map_y,\0\r\n0\0,0,0,a\0b\r\n")
    assert text.encode().decode() == text


def test_halves_are_rounded_as_javascript_rounds_them() -> None:
    """Away from zero; Python's own formats would take the even digit."""
    narrow = np.array([0.22265625, -347.28125, 648092.25], np.float32)
    wide = np.array([562949953421312.5, -0.5, 2.5])
    columns = (Column("narrow", "number", narrow), Column("wide", "number", wide))
    made = Contents("one", "made up", "One", ["a", "b", "c"], np.zeros((3, 2), np.float32), columns)
    lines = "".join(Store(made).csv(np.arange(3, dtype=np.int32))).split()[1:]
    assert lines == ["a,0,0,0.2226563,562949953421313", "b,0,0,-347.2813,-0.5", "c,0,0,648092.3,2.5"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.0, "1"), (-0.0, "0"), (0.000001, "0.000001"), (1.5e-7, "1.5e-7"), (123e18, "123000000000000000000"),
        (1e21, "1e+21"), (1.25e100, "1.25e+100"), (math.nan, "NaN"), (-math.inf, "-Infinity"), (5e-324, "5e-324"),
        (0.1 + 0.2, "0.30000000000000004"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_javascript_does(number: float, text: str) -> None:
    assert javascript(number) == text


def test_one_clear_sentence() -> None:
    store = small(number=np.arange(3.0), kind=["a", "b", "c"])
    texts = Store(Contents("one", "s", "t", ["a"], np.zeros((1, 2), np.float32), (Column("t", "text", ["x"]),)))
    with pytest.raises(DataError, match=r"there is no column 'numbre'; did you mean 'number'\?"):
        store.find({"numbre": Between(0, 1)})
    with pytest.raises(DataError, match="column 'kind' holds no numbers"):
        store.find({"kind": Between(0, 1)})
    with pytest.raises(DataError, match="column 'number' holds numbers"):
        store.find({"number": Among(["1"])})
    with pytest.raises(DataError, match="column 'object_id' holds no numbers"):
        store.find({"object_id": Between(0, 1)})
    with pytest.raises(DataError, match="holds text, which has no histogram"):
        texts.histogram("t")
    with pytest.raises(DataError, match="holds text, which cannot be drawn"):
        texts.points(colour="t")
    for rows in ([3], [-1]):
        with pytest.raises(DataError, match="a row is unknown; allowed: 0 to 2"):
            store.records(np.array(rows, np.int32), [])
        with pytest.raises(DataError, match="a row is unknown"):
            store.csv(np.array(rows, np.int32))
