"""What there is to see of an experiment: columns by kind, what a page is told of them, and the tables behind."""

from __future__ import annotations

import json
import math
import os
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.explorer.contents import (
    MOST_LEVELS,
    Column,
    Contents,
    plain_columns,
    read_contents,
    version,
)
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.objects import object_columns
from manyscope.tables.parquet import write_table


def contents(**changes: Any) -> Contents:
    parts: dict[str, Any] = {
        "experiment": "e",
        "scope": "s",
        "title": "t",
        "object_ids": ["a", "b", "c"],
        "coordinates": np.array([[0, 5], [1, -3], [0.5, 2]], np.float32),
        "columns": (),
    }
    return Contents(**{**parts, **changes})


def test_columns_are_sorted_into_kinds():
    n = 300
    table = pl.DataFrame(
        {
            "float": np.linspace(0, 1, n),
            "day": 58849.0 + np.arange(n) / 1e6,
            "count": np.arange(n),
            "large": np.arange(n) + 2**40,
            "few": [10, 9, 2] * 100,
            "flag": [True, None, False] * 100,
            "level": ["b", "a", None] * 100,
            "levels": [f"l{i % MOST_LEVELS:03d}" for i in range(n)],
            "name": [f"n{i}" for i in range(n)],
            "date": [date(2020, 1, 1) + timedelta(days=i) for i in range(n)],
            "price": [Decimal(i) / 4 for i in range(n)],
            "none": [None] * n,
            "empty": pl.Series([None] * n, dtype=pl.Float64),
            "vector": np.zeros((n, 3)),
            "list": [[1]] * n,
            "struct": [{"a": 1}] * n,
            "bytes": [b"x"] * n,
        }
    )
    columns = {column.name: column for column in plain_columns(table)}
    assert {name: column.kind for name, column in columns.items()} == {
        **dict.fromkeys(["float", "day", "count", "large", "price", "empty"], "number"),
        **dict.fromkeys(["few", "flag", "level", "levels", "none"], "category"),
        **dict.fromkeys(["name", "date"], "text"),
    }
    values: dict[str, Any] = {name: column.values for name, column in columns.items()}
    assert (values["float"].dtype, values["day"].dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(values["large"], np.arange(n) + 2.0**40)
    np.testing.assert_array_equal(values["price"], np.arange(n) / 4)
    assert columns["few"].levels == ("2", "9", "10")
    assert values["few"][:3].tolist() == [2, 1, 0]
    assert columns["flag"].levels == ("false", "true")
    assert values["flag"][:3].tolist() == [1, -1, 0]
    assert values["levels"].dtype == np.int16
    assert (columns["none"].levels, set(values["none"])) == ((), {-1})
    assert np.isnan(values["empty"]).all()
    assert values["date"][1] == "2020-01-02"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), min_size=1, max_size=20))
def test_numbers_keep_six_digits_of_their_range_and_missing_ones_stay_missing(values: list[float | None]):
    (column,) = plain_columns(pl.DataFrame({"x": pl.Series(values, dtype=pl.Float64)}))
    wanted = np.array([np.nan if v is None else v for v in values])
    found = np.asarray(column.values, np.float64)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~finite], wanted[~finite])
    with np.errstate(over="ignore"):
        span = np.ptp(wanted[finite]) if finite.any() else 0.0
    assert (np.abs(found[finite] - wanted[finite]) <= 1e-6 * span).all()


INTEGERS = st.one_of(
    st.integers(-9, 9), st.integers(0, 2**25), st.integers(-(2**53), 2**53), st.integers(-(2**63), 2**64 - 1)
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.none() | INTEGERS, min_size=1, max_size=30, unique=True),
    st.sampled_from([pl.Int128, pl.Decimal(38, 0), pl.Int64, pl.UInt64, pl.Float64]),
)
def test_integers_keep_every_digit(values: list[int | None], dtype: pl.DataType):
    try:
        series = pl.Series("x", values, dtype=pl.Int128).cast(dtype)
    except pl.exceptions.InvalidOperationError:
        assume(False)  # not of this type
    assume(series.cast(pl.Int128).to_list() == values)
    (column,) = plain_columns(series.to_frame())
    found: list[Any] = np.asarray(column.values).tolist()
    if column.kind == "category":
        assert [None if code < 0 else int(column.levels[code]) for code in found] == values
        return
    beyond = any(abs(value) > 2**53 for value in values if value is not None)
    assert not beyond or dtype == pl.Float64
    assert column.whole == column.about["whole"] == (not beyond and any(value is not None for value in values))
    if column.whole:
        assert [None if math.isnan(value) else int(value) for value in found] == values


@pytest.mark.parametrize("type_", [pl.Int64, pl.Float64])
def test_numbers_of_runs_are_not_rounded(type_: type[pl.DataType]):
    runs = [67326551 + i for i in range(20)] + [None]
    (column,) = plain_columns(pl.DataFrame({"run": pl.Series(runs, dtype=type_)}))
    assert (column.kind, column.whole, np.asarray(column.values).dtype) == ("number", True, np.float64)
    assert np.asarray(column.values)[:20].tolist() == runs[:20]
    (narrow,) = plain_columns(pl.DataFrame({"bits": [2**24 - i for i in range(20)]}))
    assert (narrow.whole, np.asarray(narrow.values).dtype) == (True, np.float32)


def test_what_is_not_whole_and_identifiers_beyond_what_numbers_hold():
    n = 300
    table = pl.DataFrame(
        {
            "half": np.arange(n) / 2,
            "infinite": [*np.arange(n - 1.0), math.inf],
            "narrow": np.full(
                n, 2**25, np.float32
            ),  # the type lacks its neighbour: digits beyond the seventh are noise
            "missing": [None] * (n - 1) + [math.nan],
            "id": [4997209935789211092 + i for i in range(n)],
            "most": [2**53 + i for i in range(20)] * 15,
        }
    )
    columns = {column.name: column for column in plain_columns(table)}
    assert [name for name, column in columns.items() if column.kind == "number"] == list(columns)[:4]
    assert not any(column.whole for column in columns.values())
    assert columns["id"].values[1] == "4997209935789211093"
    assert columns["most"].levels[1] == "9007199254740993"
    assert "whole" not in columns["most"].about


INSTANT = datetime(2024, 10, 27, 0, 30, tzinfo=UTC)  # the same hour comes again an hour later in Berlin


@pytest.mark.parametrize(
    ("series", "shown"),
    [
        (pl.Series([True, False, None]), ["true", "false", None]),
        (pl.Series([-1, 127, None], dtype=pl.Int8), ["-1", "127", None]),
        (pl.Series([2**64 - 1, 2**63, None], dtype=pl.UInt64), [str(2**64 - 1), str(2**63), None]),
        (pl.Series([2**100, -(2**100), None], dtype=pl.Int128), [str(2**100), str(-(2**100)), None]),
        (pl.Series([2**127, 1, None], dtype=pl.UInt128), [str(2**127), "1", None]),
        (pl.Series([0.5, 3, None], dtype=pl.Float16), [0.5, 3.0, None]),
        (pl.Series([Decimal("1.50"), Decimal("-0.25"), None]), [1.5, -0.25, None]),
        (pl.Series([Decimal(10**30), Decimal(1), None]), [str(10**30), "1", None]),
        (pl.Series([date(2020, 2, 29), date(1, 1, 1), None]), ["2020-02-29", "0001-01-01", None]),
        (
            pl.Series([INSTANT, INSTANT + timedelta(hours=1), None]).cast(pl.Datetime("ms", "Europe/Berlin")),
            ["2024-10-27 02:30:00.000+02:00", "2024-10-27 02:30:00.000+01:00", None],
        ),
        (
            pl.Series([datetime(2024, 1, 2, 3), datetime(1969, 1, 1), None]),
            ["2024-01-02 03:00:00.000000", "1969-01-01 00:00:00.000000", None],
        ),
        (pl.Series([time(1, 2, 3, 4), time(1, 2, 3), None]), ["01:02:03.000004", "01:02:03", None]),
        (pl.Series([timedelta(seconds=1.5), timedelta(days=-1), None]), [1.5, -86400.0, None]),
        (pl.Series([1, 2, None]).cast(pl.Duration("ns")), [1e-9, 2e-9, None]),
        (pl.Series([1, 2, None]).cast(pl.Duration("ms")), [1e-3, 2e-3, None]),
        (pl.Series(["b", "a", None], dtype=pl.Categorical), ["b", "a", None]),
        (pl.Series(["b", "a", None], dtype=pl.Enum(["b", "a"])), ["b", "a", None]),
        (pl.Series([None, None, None]), [None, None, None]),
        (pl.Series(["\0", "🔭", None]), ["\0", "🔭", None]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pl.Series) else "",
)
@pytest.mark.parametrize("copies", [1, 100])
def test_values_of_every_type_are_shown(series: pl.Series, shown: list[Any], copies: int):
    series = pl.concat([series] * copies).alias("x")
    (column,) = plain_columns(series.to_frame())
    found: Any = column.values
    if column.kind == "category":
        found = [None if code < 0 else column.levels[code] for code in found]
    elif column.kind == "number":
        found = [None if math.isnan(value) else pytest.approx(value, rel=1e-6) for value in found.tolist()]
    assert found == shown * copies


def test_levels_are_in_the_order_of_the_values():
    table = pl.DataFrame(
        {
            "enum": pl.Series(["b", "a", "c"], dtype=pl.Enum(["c", "b", "a"])),
            "time": [time(10), time(9), time(9, 0, 0, 1)],
            "large": pl.Series([2**64 - 1, 5, 2**63], dtype=pl.UInt64),
        }
    )
    assert [column.levels for column in plain_columns(table)] == [
        ("c", "b", "a"),
        ("09:00:00", "09:00:00.000001", "10:00:00"),
        ("5", str(2**63), str(2**64 - 1)),
    ]


def test_what_has_no_plain_value_is_left_out():
    table = pl.DataFrame(
        {
            "list": [[1], [2]],
            "struct": [{"a": 1}, {"a": 2}],
            "array": np.zeros((2, 2)),
            "bytes": [b"x", None],
            "object": pl.Series([object(), object()], dtype=pl.Object),
        }
    )
    assert plain_columns(table) == ()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_times_and_durations_are_told_apart(data: st.DataObject):
    times = data.draw(st.lists(st.none() | st.times(), min_size=1, max_size=9))
    unit = data.draw(st.sampled_from(["ms", "us", "ns"]))
    lengths = data.draw(st.lists(st.none() | st.integers(-(2**62), 2**62), min_size=len(times), max_size=len(times)))
    table = pl.DataFrame(
        {"time": pl.Series(times, dtype=pl.Time), "length": pl.Series(lengths, dtype=pl.Int64).cast(pl.Duration(unit))}
    )
    clock, length = plain_columns(table)
    found = [None if code < 0 else time.fromisoformat(clock.levels[code][:15]) for code in clock.values]
    assert found == times
    seconds = [math.nan if v is None else v / {"ms": 1e3, "us": 1e6, "ns": 1e9}[unit] for v in lengths]
    known = [s for s in seconds if not math.isnan(s)]
    np.testing.assert_allclose(
        np.asarray(length.values, float), seconds, rtol=0, atol=1e-6 * (max(known) - min(known)) if known else 0
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=12))
def test_levels_counts_and_codes_agree(values: list[str | None]):
    (column,) = plain_columns(pl.DataFrame({"x": pl.Series(values, dtype=pl.String)}))
    about = column.about
    assert about["missing"] == values.count(None)
    assert [values.count(level) for level in about["levels"]] == about["counts"]
    assert [None if code < 0 else about["levels"][code] for code in column.values] == values


def test_a_number_is_told_by_its_finite_values():
    values = np.array([3, np.nan, -1, np.inf, 7, -np.inf], np.float32)
    about = Column("x", "number", values).about
    assert (about["low"], about["high"], about["missing"], about["distinct"]) == (-1, 7, 1, True)
    assert -1 <= about["first"] < about["last"] <= 7
    empty = Column("x", "number", np.full(4, np.nan, np.float32)).about
    assert [empty[name] for name in ("low", "high", "first", "last")] == [None] * 4
    assert (empty["missing"], empty["distinct"]) == (4, False)
    assert Column("x", "number", np.ones(3, np.float32)).about["distinct"] is False


def test_about_is_json_and_holds_no_object():
    columns = (
        Column("flux", "number", np.array([1, math.nan, math.inf], np.float32)),
        Column("kind", "category", np.array([0, -1, 0], np.int16), ("a",)),
        Column("note", "text", ["secret", None, "secret"]),
    )
    about = contents(columns=columns, card=("flux",)).about()
    text = json.dumps(about, allow_nan=False)
    assert "secret" not in text
    assert about["objects"] == 3
    assert (about["axes"], about["extent"]) == (2, [(0, 1), (-3, 5)])
    assert [column["kind"] for column in about["columns"]] == ["number", "category", "text"]
    assert about["columns"][2] == {"name": "note", "kind": "text", "missing": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"object_ids": ["a", "b"]},
        {"coordinates": np.zeros((3, 4), np.float32)},
        {"coordinates": np.zeros(3, np.float32)},
        {"columns": (Column("x", "text", ["a"]),)},
    ],
)
def test_parts_that_do_not_fit_are_an_error(changes: dict[str, Any]):
    with pytest.raises(DataError, match="objects, but coordinates"):
        contents(**changes)


def test_columns_that_only_repeat_the_id_are_left_out():
    ids = ["a", "b"]
    samples = pl.DataFrame({"sample_id": ids, "group": ids, "split": ["test", "train"]})
    predictions = pl.DataFrame({"object_id": ids, "sample_id": ids, "embedding": np.zeros((2, 2))})
    assert object_columns(predictions, samples, repeats=False).columns == ["split"]


NAMES = st.sampled_from(
    ["", "object_id", "map_x", "map_z", "a", "a (predicted)", "a (predicted 2)", "map_x (sample)", "split"]
)


@settings(deadline=None, max_examples=100)
@given(st.lists(NAMES.filter(lambda name: name != "split"), unique=True), st.lists(NAMES, unique=True))
def test_every_column_has_a_name_of_its_own_that_the_page_does_not_need(described: list[str], own: list[str]):
    """Whatever the tables are called, all their columns are there, and those that need no other name keep theirs."""
    own = [name for name in own if name != "object_id"]
    names = {"sample_id": ["s", "t"], "group": ["g", "g"], "split": ["test", "train"]}
    samples = pl.DataFrame({**names, **{name: [i, i] for i, name in enumerate(described)}})
    predicted = {name: [100 + i] * 2 for i, name in enumerate(own)}
    predictions = pl.DataFrame({**predicted, "sample_id": ["t", "s"], "object_id": ["a", "b"]})
    found = object_columns(predictions, samples)
    assert not {"", "object_id", "map_x", "map_y", "map_z"} & set(found.columns)
    assert found.row(0) == (*range(len(described)), *range(100, 100 + len(own)), "train", "g", "t")
    renamed = dict(zip([*described, *own], found.columns, strict=False))
    assert renamed.get("a", "a").startswith("a")
    for name, place in [(name, found.columns[i]) for i, name in enumerate(described)]:
        assert place == name or (name in ("", "object_id", "map_x", "map_z") and "(sample" in place)
    for name, place in [(name, found.columns[len(described) + i]) for i, name in enumerate(own)]:
        clashes = name in ("", "object_id", "map_x", "map_z", "split") or name in described
        assert (place != name) == clashes
        assert not clashes or place.startswith(f"{name} (predicted".lstrip())


def test_names_that_collide_are_changed_predictably():
    names = {"sample_id": ["s"], "group": ["g"], "split": ["test"]}
    samples = pl.DataFrame({**names, "object_id": [1], "score": [2], "score (predicted)": [3], "map_x": [4]})
    predictions = pl.DataFrame({"object_id": ["a"], "sample_id": ["s"], "score": [5], "map_x": [6], "split": [7]})
    found = object_columns(predictions, samples).row(0, named=True)
    assert found == {
        "object_id (sample)": 1,
        "score": 2,
        "score (predicted)": 3,
        "map_x (sample)": 4,
        "score (predicted 2)": 5,
        "map_x (predicted)": 6,
        "split (predicted)": 7,
        "split": "test",
        "group": "g",
        "sample_id": "s",
    }


@pytest.fixture
def tables(tmp_path: Path) -> ExperimentPaths:
    """Three objects of two samples; the map is in another order."""
    paths = ExperimentPaths.of(tmp_path, "tiny")
    names = {"sample_id": ["s0", "s1"], "group": ["g", "h"], "split": ["test", "train"]}
    write_table(paths.samples, pl.DataFrame({**names, "flux": [1.0, 2.0], "shape": np.zeros((2, 2))}))
    own = {"object_id": ["a", "b", "c"], "sample_id": ["s1", "s0", "s1"], "embedding": np.zeros((3, 2), np.float32)}
    write_table(paths.predictions, pl.DataFrame({**own, "flux": [5.0, 6.0, 7.0], "score": [1.0, None, 3.0]}))
    write_table(paths.map, pl.DataFrame({"object_id": ["c", "a", "b"], "x": [2.0, 0.0, 1.0], "y": [5.0, 3.0, 4.0]}))
    return paths


def test_tables_are_joined_in_the_order_of_the_predictions(tables: ExperimentPaths):
    found = read_contents(tables, "s", card=("score", "absent", "flux"))
    assert (found.title, found.card) == ("tiny", ("score", "flux"))
    assert found.object_ids == ["a", "b", "c"]
    np.testing.assert_array_equal(found.coordinates, [[0, 3], [1, 4], [2, 5]])
    columns = {column.name: column.values for column in found.columns}
    assert list(columns) == ["flux", "flux (predicted)", "score", "split", "group", "sample_id"]
    np.testing.assert_array_equal(columns["flux"], [2, 1, 2])
    np.testing.assert_array_equal(columns["flux (predicted)"], [5, 6, 7])
    np.testing.assert_array_equal(columns["score"], [1, np.nan, 3])
    assert read_contents(tables, "s", "Title").title == "Title"


def test_a_card_names_only_what_is_shown(tables: ExperimentPaths):
    assert read_contents(tables, "s", card=("shape", "score")).card == ("score",)


def test_no_object_at_all_is_an_error_with_a_remedy(tables: ExperimentPaths):
    for path in (tables.predictions, tables.map):
        write_table(path, pl.read_parquet(path).clear())
    with pytest.raises(DataError, match=r"predictions\.parquet: no objects; train longer or on more data"):
        read_contents(tables, "s")


@pytest.mark.parametrize("change", ["lost", "twice", "axes", "infinite"])
def test_a_map_that_does_not_fit_is_an_error(tables: ExperimentPaths, change: str):
    table = pl.read_parquet(tables.map)
    changed = {
        "lost": table.head(-1),
        "twice": pl.concat([table, table.head(1)]),
        "axes": table.drop("y"),
        "infinite": table.with_columns(y=math.inf),
    }
    write_table(tables.map, changed[change])
    with pytest.raises(DataError, match="does not hold each object"):
        read_contents(tables, "s")


def test_another_run_is_another_version_and_a_missing_table_is_an_error(tables: ExperimentPaths):
    first = version(tables)
    assert version(tables) == first
    seen = {first}
    for path in (tables.samples, tables.predictions, tables.map):
        write_table(path, pl.read_parquet(path))
        os.utime(path, ns=(0, len(seen)))
        seen.add(version(tables))
    assert len(seen) == 4
    tables.map.unlink()
    with pytest.raises(DataError, match="is missing"):
        version(tables)
