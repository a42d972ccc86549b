"""Filters by the columns that are stored with the vectors: `class = spiral and snr > 20`.

A filter is one or several comparisons, joined by `and`: a column, one of = != < <= > >= and a value, or `in` and
values in parentheses. A column or a text that holds spaces or signs is quoted, by ' or by ". An object without a value
passes no comparison, not even !=. Text is ordered by its characters; times are stored as text, whose order is theirs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import NoReturn

import numpy as np
import polars as pl
from polars import selectors

from manyscope.errors import DataError, did_you_mean

TYPES: dict[str, type[pl.DataType]] = {
    "text": pl.String,
    "integer": pl.Int64,
    "float32": pl.Float32,
    "float64": pl.Float64,
    "boolean": pl.Boolean,
}
"""What a stored column may hold."""
OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "in")

Value = str | int | float | bool


@dataclass(frozen=True)
class Comparison:
    """One column against one value, or against several of which one must be equal (`in`); `known` is passed by every
    value."""

    column: str
    operator: str
    values: tuple[Value, ...]


Filter = tuple[Comparison, ...]
"""Comparisons that an object must pass, all of them."""

_TOKEN = re.compile(
    r"""\s*(?: (?P<quoted> "(?:[^"]|"")*" | '(?:[^']|'')*' ) | (?P<sign> [!<>]=|[=<>] ) | (?P<mark> [(),] )
    | (?P<word> [^\s"'=!<>(),]+ ) )""",
    re.VERBOSE,
)
_MOST_NAMED = 20
_BEYOND = 2.0**63  # of no integer column


def parse(texts: Sequence[str], columns: Mapping[str, str]) -> Filter:
    """The comparisons of some filters, of which an object must pass all.

    Args:
        columns: that can be filtered by, each with its type, a key of `TYPES`.

    Raises:
        DataError: not a filter, an unknown column, or a value that the column cannot hold.
    """
    return tuple(comparison for text in texts for comparison in _Reader(text, columns).filter())


def as_expression(wanted: Filter) -> pl.Expr:
    """A filter that is not empty for polars, over columns with their own names."""
    return reduce(and_, [_compared(comparison) for comparison in wanted])


def as_sql(wanted: Filter, names: Mapping[str, str]) -> str:
    """A filter that is not empty as an SQL condition.

    Args:
        names: of the columns, as the table has them: plain words.
    """
    terms = []
    for comparison in wanted:
        values = [_literal(value) for value in comparison.values]
        name = names[comparison.column]
        match comparison.operator:
            case "known":
                terms.append(f"{name} IS NOT NULL")
            case "in":
                terms.append(f"{name} IN ({', '.join(values)})" if values else "FALSE")
            case _:
                terms.append(f"{name} {comparison.operator} {values[0]}")
    return " AND ".join(terms)


def filterable(table: pl.DataFrame, names: Sequence[str] | None) -> pl.DataFrame:
    """The columns as they are stored with vectors: text, integers, floats and truth values, missing ones null.

    A time becomes text, a duration seconds, a decimal or very large integer a float, NaN a missing value.

    Args:
        names: of the columns that are wanted; None for all that hold one plain value for each object.

    Raises:
        DataError: a column that is wanted is not there, or does not hold plain values.
    """
    plain = [name for name in table.columns if not (table[name].dtype.is_nested() or table[name].dtype in _OPAQUE)]
    for name in names or ():
        if name not in plain:
            found = "does not hold plain values" if name in table.columns else "is not among the objects' columns"
            raise DataError(
                f"column {name!r} {found}", place="index.columns", allowed=_listed(plain), remedy=_hint(name, plain)
            )
    return pl.DataFrame([_stored(table[name]) for name in (plain if names is None else dict.fromkeys(names))])


def types_of(columns: pl.DataFrame) -> dict[str, str]:
    """Of stored columns, by their names in `TYPES`."""
    known = {dtype: name for name, dtype in TYPES.items()}
    return {name: known[type(dtype)] for name, dtype in columns.schema.items()}


_OPAQUE = (pl.Binary, pl.Object, pl.Null)


def _stored(series: pl.Series) -> pl.Series:
    dtype = series.dtype
    if isinstance(dtype, pl.Duration):
        units = {"ms": 1e3, "us": 1e6, "ns": 1e9}
        return series.to_physical().cast(pl.Float64) / units[dtype.time_unit]
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone:
            series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        # As people write them: no fraction where there is none. The order of the text stays that of the times.
        return series.dt.to_string("%Y-%m-%d %H:%M:%S%.f")
    if dtype.is_temporal():
        return series.dt.to_string("%H:%M:%S%.f" if isinstance(dtype, pl.Time) else "iso")
    if dtype.is_float():
        wide = series if dtype in (pl.Float32, pl.Float64) else series.cast(pl.Float32)
        return wide.fill_nan(None)
    if dtype.is_integer():
        whole = series.cast(pl.Int64, strict=False)
        return whole if whole.null_count() == series.null_count() else series.cast(pl.Float64)
    if dtype.is_decimal():
        return series.cast(pl.Float64)
    return series if dtype in (pl.Boolean, pl.String) else series.cast(pl.String)


def _compared(comparison: Comparison) -> pl.Expr:
    if comparison.operator == "in" and not comparison.values:
        return pl.lit(False)
    # `pl.col` would take a name like ^a.*$ for a pattern.
    column = selectors.by_name(comparison.column).as_expr()
    if comparison.operator == "known":
        return column.is_not_null()
    first = pl.lit(comparison.values[0])
    match comparison.operator:
        case "!=":
            return column != first
        case "<":
            return column < first
        case "<=":
            return column <= first
        case ">":
            return column > first
        case ">=":
            return column >= first
        case _:
            return reduce(or_, [column == pl.lit(value) for value in comparison.values])


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"CAST('{value}' AS DOUBLE)"
    return str(value)


class _Reader:
    """One filter, token by token."""

    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        self.text, self.columns = text, columns
        self.tokens, self.at = list[tuple[str, str]](), 0
        place, end = 0, len(text.rstrip())
        while place < end:
            token = _TOKEN.match(text, place)
            if token is None:
                self._fail(f"{text[place:].strip()!r} cannot be read", "quotes in pairs, = != < <= > >= in and")
            kind = str(token.lastgroup)
            self.tokens.append((kind, token[kind]))
            place = token.end()

    def filter(self) -> list[Comparison]:
        found = [self._comparison()]
        while self.at < len(self.tokens):
            kind, word = self._next("'and', or the end")
            if kind != "word" or word.lower() != "and":
                self._fail(f"{word!r} stands where 'and' was expected", "a text of several words in quotes")
            found.append(self._comparison())
        return found

    def _comparison(self) -> Comparison:
        kind, column = self._next("a column")
        if kind not in ("word", "quoted"):
            self._fail(f"{column!r} stands where a column was expected", _listed(list(self.columns)))
        column = _unquoted(kind, column)
        if column not in self.columns:
            known = list(self.columns)
            self._fail(f"column {column!r} is unknown", _listed(known), _hint(column, known))
        kind, operator = self._next("= != < <= > >= or in")
        operator = operator.lower()
        if operator not in OPERATORS or kind == "quoted":
            self._fail(f"{operator!r} stands where a comparison was expected", " ".join(OPERATORS))
        if self.columns[column] == "boolean" and operator not in ("=", "!=", "in"):
            self._fail(f"column {column!r} holds true and false, which {operator!r} does not compare", "= != in")
        if operator != "in":
            compared = Comparison(column, operator, (self._value(column),))
            return _whole(compared) if self.columns[column] == "integer" else compared
        values = list[Value]()
        mark = self._mark("(")
        while mark != ")":
            values.append(self._value(column))
            mark = self._mark(",", ")")
        if self.columns[column] == "integer":
            values = [value for value in values if isinstance(value, int)]
        return Comparison(column, operator, tuple(values))

    def _value(self, column: str) -> Value:
        kind, word = self._next("a value")
        if kind not in ("word", "quoted"):
            self._fail(f"{word!r} stands where a value of {column!r} was expected")
        stored = self.columns[column]
        if stored == "text":
            return _unquoted(kind, word)
        if stored == "boolean":
            if word.lower() not in ("true", "false"):
                self._fail(f"column {column!r} holds true and false, found {word}", "true, false")
            return word.lower() == "true"
        number = _number(word)
        if kind == "quoted" or number is None:
            self._fail(f"column {column!r} holds numbers, found {word}", "a number; missing values pass no filter")
        # A column of float32 does not hold 0.1 but the number beside it that is shown as such.
        return _narrow(number) if stored == "float32" else number

    def _mark(self, *allowed: str) -> str:
        _, mark = self._next(" or ".join(allowed))
        if mark not in allowed:
            self._fail(f"{mark!r} stands where {' or '.join(allowed)} was expected", "in (A, B, …)")
        return mark

    def _next(self, expected: str) -> tuple[str, str]:
        if self.at == len(self.tokens):
            self._fail(
                f"it ends where {expected} was expected", "COLUMN = VALUE, with != < <= > >= or in (…), and 'and'"
            )
        self.at += 1
        return self.tokens[self.at - 1]

    def _fail(self, found: str, allowed: str | None = None, remedy: str | None = None) -> NoReturn:
        raise DataError(found, place=f"filter {self.text.strip()!r}", allowed=allowed, remedy=remedy)


def _whole(comparison: Comparison) -> Comparison:
    """The same comparison of an integer column with an integer: not every engine compares it with 2.5 or 1e30."""
    column, operator, value = comparison.column, comparison.operator, comparison.values[0]
    if isinstance(value, int):
        return comparison
    assert isinstance(value, float)
    if operator in ("=", "!="):
        return Comparison(column, "in" if operator == "=" else "known", ())
    if abs(value) >= _BEYOND:
        return Comparison(column, "known" if (operator in ("<", "<=")) == (value > 0) else "in", ())
    if operator in ("<", "<="):
        return Comparison(column, "<=", (math.floor(value),))
    return Comparison(column, ">=", (math.ceil(value),))


def _unquoted(kind: str, word: str) -> str:
    return word[1:-1].replace(word[0] * 2, word[0]) if kind == "quoted" else word


def _number(word: str) -> int | float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    if math.isnan(number):
        return None
    if number.is_integer() and abs(number) < _BEYOND:
        try:
            return int(word)
        except ValueError:  # 1e3
            return int(number)
    return number


def _narrow(number: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(number))


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "no column is stored with this index"
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _hint(name: str, known: Sequence[str]) -> str | None:
    return did_you_mean(name, list(known)) or None
