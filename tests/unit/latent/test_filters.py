"""Filters: what can be written, what it means to each engine, and what is refused."""

from __future__ import annotations

import datetime
import math
import operator
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.latent.filters import TYPES, Comparison, Filter, as_expression, as_sql, filterable, parse, types_of

COLUMNS = {
    "class": "text", "snr": "float64", "magnitude": "float32", "count": "integer", "clean": "boolean",
    "flux (predicted)": "float32", "it's": "text", "and": "integer",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("class = spiral", [("class", "=", ("spiral",))]),
        ("class='early spiral'", [("class", "=", ("early spiral",))]),
        ('class != "it\'s"', [("class", "!=", ("it's",))]),
        ("class = 'it''s'", [("class", "=", ("it's",))]),
        ("class = ''", [("class", "=", ("",))]),
        ("class = 3", [("class", "=", ("3",))]),
        ("snr>20", [("snr", ">", (20,))]),
        ("snr <= -2.5e-3 and count>=4", [("snr", "<=", (-0.0025,)), ("count", ">=", (4,))]),
        ("count > 2.5", [("count", ">=", (3,))]),
        ("count <= -2.5 and count < 3e0", [("count", "<=", (-3,)), ("count", "<", (3,))]),
        ("count != 2.5 and count < 1e30", [("count", "known", ()), ("count", "known", ())]),
        ("count in (1, 2.5)", [("count", "in", (1,))]),
        ("snr < inf", [("snr", "<", (math.inf,))]),
        ("class in (spiral, 'ring, faint' ,x)", [("class", "in", ("spiral", "ring, faint", "x"))]),
        ("count IN (1,2) AND clean = True", [("count", "in", (1, 2)), ("clean", "=", (True,))]),
        ('"flux (predicted)" < 0.5', [("flux (predicted)", "<", (0.5,))]),
        ("\"it's\" = a and 'and' = 1", [("it's", "=", ("a",)), ("and", "=", (1,))]),
        ("count = 99999999999999999999", [("count", "in", ())]),
        ("count = 9007199254740993", [("count", "=", (9007199254740993,))]),
    ],
)
def test_what_can_be_written(text: str, wanted: list[tuple[str, str, tuple[Any, ...]]]) -> None:
    assert parse([text], COLUMNS) == tuple(Comparison(*parts) for parts in wanted)


def test_several_filters_are_joined() -> None:
    assert parse(["snr > 1", "count = 2 and clean = true"], COLUMNS) == parse(
        ["snr > 1 and count = 2 and clean = true"], COLUMNS
    )
    assert parse([], COLUMNS) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clas = spiral", "column 'clas' is unknown; allowed: class, snr, .*did you mean 'class'"),
        ("class spiral", "'spiral' stands where a comparison was expected; allowed: = != < <= > >= in"),
        (
            "class = early spiral",
            "'spiral' stands where 'and' was expected; allowed: a text of several words in quotes",
        ),
        ("class =", "ends where a value was expected"),
        ("class = spiral and", "ends where a column was expected"),
        ("", "ends where a column was expected"),
        ("= 3", "'=' stands where a column was expected; allowed: class"),
        ("snr > bright", "column 'snr' holds numbers, found bright"),
        ("snr > '20'", "column 'snr' holds numbers, found '20'"),
        ("snr = nan", "column 'snr' holds numbers, found nan"),
        ("clean > false", "column 'clean' holds true and false, which '>' does not compare"),
        ("clean = 1", "column 'clean' holds true and false, found 1"),
        ("class = 'open", "cannot be read"),
        ("class in spiral", "'spiral' stands where [(] was expected"),
        ("class in (a b)", "'b' stands where , or [)] was expected"),
        ("class in ()", "'[)]' stands where a value of 'class' was expected"),
        ("count in (1, two)", "column 'count' holds numbers, found two"),
        ("class == a", "'=' stands where a value"),
        ("class = a or class = b", "'or' stands where 'and' was expected"),
        ("class = a; drop", "'drop' stands where 'and' was expected"),
    ],
)
def test_what_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        parse([text], COLUMNS)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("filter '") or 'filter "' in str(caught.value)


def test_an_index_without_columns_says_so() -> None:
    with pytest.raises(DataError, match="no column is stored with this index"):
        parse(["class = a"], {})


_ASK: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_WORDS = ["", "a", "b's", 'say "x"', "Ä", "a b"]
_TABLE = pl.DataFrame(
    {
        "text": [None, *_WORDS, "a"],
        "whole": [None, -3, 0, 2**53 + 1, 4, 4, 5, 6],
        "narrow": [0.1, None, -1.5, math.inf, 0.2, math.nan, 0.1, 7],
        "wide": [0.1, 0.2, None, math.nan, -math.inf, 5, 0.1, 1e300],
        "truth": [True, False, None, True, True, False, False, True],
    },
    schema={"text": pl.String, "whole": pl.Int64, "narrow": pl.Float32, "wide": pl.Float64, "truth": pl.Boolean},
)


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    column = draw(st.sampled_from(_TABLE.columns))
    several = draw(st.booleans())
    ask = "in" if several else draw(st.sampled_from(["=", "!="] if column == "truth" else sorted(_ASK)))
    values = {
        "text": st.sampled_from(_WORDS).map(lambda word: "'" + word.replace("'", "''") + "'"),
        "whole": st.sampled_from(["-3", "4", "4.5", "5", str(2**53 + 1), str(2**53), "1e30", "-inf"]),
        "narrow": st.sampled_from(["0.1", "0.2", "-1.5", "7", "inf"]),
        "wide": st.sampled_from(["0.1", "0.2", "5", "1e300", "-inf"]),
        "truth": st.sampled_from(["true", "FALSE"]),
    }[column]
    if several:
        return f"{column} in ({', '.join(draw(st.lists(values, min_size=1, max_size=3)))})"
    return f"{column} {ask} {draw(values)}"


def passes(row: dict[str, Any], wanted: Filter) -> bool:
    for comparison in wanted:
        value = row[comparison.column]
        if value is None:
            return False
        if comparison.operator == "known":
            continue
        ask = _ASK.get(comparison.operator)
        if not (value in comparison.values if ask is None else ask(value, comparison.values[0])):
            return False
    return True


@given(st.sampled_from(sorted(_ASK)), st.sampled_from([-1e30, -2.5, -0.0, 2.0, 3.5, 2.0**63, math.inf]))
def test_an_integer_is_compared_with_any_number(ask: str, number: float) -> None:
    wanted = parse([f"count {ask} {number!r}"], COLUMNS)
    for value in (-(2**63), -3, -2, 0, 2, 3, 4, 2**63 - 1):
        assert passes({"count": value}, wanted) == _ASK[ask](value, number)
    assert not passes({"count": None}, wanted)


@given(st.lists(comparisons(), min_size=1, max_size=3))
def test_polars_and_sql_agree_with_plain_python(texts: list[str]) -> None:
    table = filterable(_TABLE, None)
    wanted = parse(texts, types_of(table))
    rows = [number for number, row in enumerate(table.iter_rows(named=True)) if passes(row, wanted)]
    assert table.with_row_index("n").filter(as_expression(wanted))["n"].to_list() == rows
    names = {name: f"c{number}" for number, name in enumerate(table.columns)}
    renamed = table.rename(names).with_row_index("n")
    if not any(
        isinstance(v, float) and math.isinf(v) for c in wanted for v in c.values
    ):  # polars' SQL has no such CAST
        found = pl.SQLContext(t=renamed).execute(f"SELECT n FROM t WHERE {as_sql(wanted, names)}", eager=True)
        assert found["n"].to_list() == rows


def test_a_number_as_it_is_shown_is_found_in_float32() -> None:
    table = filterable(pl.DataFrame({"x": pl.Series([0.1, 0.3], dtype=pl.Float32)}), None)
    assert table.filter(as_expression(parse(["x = 0.1"], types_of(table)))).height == 1
    assert table.filter(as_expression(parse(["x <= 0.1"], types_of(table)))).height == 1


def test_a_column_called_like_a_pattern_is_only_itself() -> None:
    table = filterable(pl.DataFrame({"^a.*$": [1, 2], "ab": [2, 1]}), None)
    assert table.filter(as_expression(parse(["'^a.*$' = 2"], types_of(table))))["ab"].to_list() == [1]


def test_every_plain_column_can_be_filtered_by() -> None:
    day, hour = datetime.datetime(2024, 5, 1, 12), datetime.time(3, 4, 5)
    table = pl.DataFrame(
        {
            "day": [day, None], "date": [day.date(), None], "time": [hour, None],
            "zone": pl.Series([day, None]).dt.replace_time_zone("Europe/Vienna"),
            "span": [datetime.timedelta(seconds=90.5), None], "money": [Decimal("1.5"), None],
            "large": pl.Series([2**63, 5], dtype=pl.UInt64), "small": pl.Series([3, None], dtype=pl.Int8),
            "kind": pl.Series(["a", None], dtype=pl.Categorical), "nothing": [None, None], "list": [[1], [2]],
            "bytes": [b"x", b"y"], "struct": [{"a": 1}, {"a": 2}], "x": [math.nan, 1.0],
        }
    )  # fmt: skip
    stored = filterable(table, None)
    assert types_of(stored) == {
        "day": "text", "date": "text", "time": "text", "zone": "text", "span": "float64", "money": "float64",
        "large": "float64", "small": "integer", "kind": "text", "x": "float64",
    }  # fmt: skip
    assert stored["x"].to_list() == [None, 1.0]
    assert stored["span"].to_list() == [90.5, None]
    assert stored["zone"][0].startswith("2024-05-01 10:00")
    for text in ("day >= 2024-05-01", "date = 2024-05-01", "time < 04:00", "day < '2024-05-02'"):
        assert stored.filter(as_expression(parse([text], types_of(stored)))).height == 1
    assert set(types_of(stored).values()) <= set(TYPES)


def test_times_are_found_as_people_write_them() -> None:
    noon = datetime.datetime(2024, 5, 1, 12)
    later = noon.replace(microsecond=500_000)
    table = filterable(pl.DataFrame({"taken": [noon, later], "clock": [noon.time(), later.time()]}), None)
    zoned = filterable(pl.DataFrame({"taken": pl.Series([noon, later]).dt.replace_time_zone("UTC")}), None)
    for found, wanted in (
        (table, {"taken = '2024-05-01 12:00:00'": 1, "taken <= '2024-05-01 12:00:00'": 1, "clock = 12:00:00": 1}),
        (table, {"taken > '2024-05-01 12:00:00'": 1, "taken = '2024-05-01 12:00:00.500'": 1, "clock > 12:00:00": 1}),
        (zoned, {"taken = '2024-05-01 12:00:00'": 1, "taken >= 2024-05-01": 2}),
    ):
        for text, count in wanted.items():
            assert found.filter(as_expression(parse([text], types_of(found)))).height == count, text


def test_columns_that_are_wanted_must_be_there() -> None:
    table = pl.DataFrame({"size": [1], "box": [[1, 2]]})
    assert filterable(table, ("size",)).columns == ["size"]
    assert filterable(table, ()).columns == []
    with pytest.raises(DataError, match=r"index\.columns: column 'sise' is not among .*did you mean 'size'"):
        filterable(table, ("sise",))
    with pytest.raises(DataError, match="column 'box' does not hold plain values"):
        filterable(table, ("box",))
