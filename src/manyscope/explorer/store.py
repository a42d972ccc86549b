"""The questions of the page about the objects, answered from arrays in memory: what static.js does in the page that
stands alone, for a page that asks a server. The questions are described in assets/core.js.

Rows are int32, in ascending order unless said otherwise. Numbers are compared as JavaScript would compare them: in
double precision, so that both pages choose the same objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, localcontext
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from manyscope.errors import DataError, did_you_mean
from manyscope.explorer.contents import BARS, Column, Contents

MOST_CROSSINGS = 500_000_000
"""Comparisons of an object with an edge of a lasso at its height: seconds. A circle around a million objects needs two
million."""
_LONG = 10_000  # letters; Polars makes a pattern even of a literal text, and that must not grow too large
_LINES = 2_000  # of a CSV that are joined into one text
_BEYOND_UTF16_UNIT = "[\U00010000-\U0010ffff]"
_EXPONENT = re.compile(r"e([+-])0*(\d)")

Outline = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Between:
    """Numbers from `low` to `high`, both included; None is no bound. A missing number is never between."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Among:
    """One of these values as text, None for a missing one."""

    levels: Sequence[str | None]


@dataclass(frozen=True)
class Containing:
    """Values whose text contains a part, both in lower case."""

    part: str


Filter = Between | Among | Containing


@dataclass(frozen=True)
class Shape:
    """An outline over the map.

    Attributes:
        kind: "box": the outline is two opposite corners, its edges are inside; "lasso": the outline is closed, and
            what is inside is said by the even-odd rule.
        camera: (16,), column-major, from the map to clip space: the outline is then in x/w and y/w, and objects
            behind the eye are outside.
    """

    kind: str
    outline: Outline
    camera: Sequence[float] | None = None


@dataclass(frozen=True)
class Points:
    """Objects to draw.

    Attributes:
        axes: x, y and perhaps z of the rows.
        colour, size: the values of a column for the rows.
    """

    rows: np.ndarray
    axes: list[np.ndarray]
    colour: np.ndarray | None
    size: np.ndarray | None


class Store:
    """One experiment's contents, and the answers about them.

    What takes long to find and is asked for again, such as the order of a column of texts, is kept.

    Args:
        most_points: objects that are drawn at once.
    """

    def __init__(self, contents: Contents, most_points: int = 50_000) -> None:
        self.contents, self.most_points = contents, most_points
        self.columns = {column.name: column for column in contents.columns}
        self.objects = len(contents.object_ids)
        self._lowered: dict[str, pl.Series] = {}
        self._ranks: dict[str, np.ndarray] = {}
        self._bars: dict[str, np.ndarray] = {}

    @cached_property
    def about(self) -> dict[str, Any]:
        return self.contents.about()

    @property
    def draws_all(self) -> bool:
        """Whether all objects are drawn at once."""
        return self.objects <= self.most_points

    def find(self, filters: Mapping[str, Filter]) -> np.ndarray:
        """Rows of the objects that pass every filter; the name "object_id" filters by id.

        Raises:
            DataError: a column is unknown, or does not hold what its filter asks for.
        """
        return _rows_of(self._passing(filters))

    def within(self, shape: Shape) -> np.ndarray:
        """Rows of the objects inside a shape.

        Raises:
            DataError: a lasso whose edges are beside more than `MOST_CROSSINGS` objects, each edge counted by itself.
        """
        xs, ys = np.asarray(shape.outline, np.float64).T
        rows, x, y = self._seen(shape.camera)
        inside = (x >= xs.min()) & (x <= xs.max()) & (y >= ys.min()) & (y <= ys.max())
        rows, x, y = rows[inside], x[inside], y[inside]
        return rows if shape.kind == "box" else rows[_inside_lasso(x, y, xs, ys)]

    def points(
        self,
        view: Outline | None = None,
        colour: str | None = None,
        size: str | None = None,
        filters: Mapping[str, Filter] | None = None,
        always: np.ndarray | None = None,
    ) -> Points:
        """The objects to draw: all where `draws_all`.

        Of more, those in the view that come first in an order by chance that never changes: a closer view shows
        more of its objects, and one beside it keeps those of the part that both show.

        Args:
            view: ends of x and of y; None is the whole map.
            filters: objects that pass come before all others.
            always: rows that are drawn in any case.

        Raises:
            DataError: a column is unknown or holds text.
        """
        rows = np.arange(self.objects, dtype=np.int32)
        if not self.draws_all:
            if view is not None:
                (x0, x1), (y0, y1) = (sorted(map(np.float64, ends)) for ends in view)
                x, y = self.contents.coordinates.T[:2]
                rows = _rows_of((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1))
            place = self._order[rows]
            if filters:
                place = place + np.where(self._passing(filters)[rows], 0, self.objects)
            if len(rows) > self.most_points:
                rows = rows[np.argpartition(place, self.most_points)[: self.most_points]]
            rows = np.union1d(rows, self.checked(always)) if always is not None else np.sort(rows)
        axes = [axis[rows] for axis in self.contents.coordinates.T]
        return Points(rows, axes, *(self._drawn(name, rows) for name in (colour, size)))

    def records(self, rows: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
        """`{"row", "id", "values"}` of each of the rows, in their order; None where a value is missing. Values of a
        column of whole numbers are integers.

        Raises:
            DataError: a row or a column is unknown.
        """
        rows = self.checked(rows)
        values = [self._values(self.column(name), rows) for name in names]
        return [
            {"row": row, "id": self.contents.object_ids[row], "values": [column[i] for column in values]}
            for i, row in enumerate(rows.tolist())
        ]

    def sorted(self, rows: np.ndarray | None, name: str, descending: bool = False) -> np.ndarray:
        """The same rows (None: all) by a column or "object_id"; missing ones last, equal ones by row.

        Raises:
            DataError: a row or the column is unknown.
        """
        rows = np.arange(self.objects, dtype=np.int32) if rows is None else np.sort(self.checked(rows))
        column = None if name == "object_id" else self.column(name)
        if column is not None and column.kind == "number":
            values = np.asarray(column.values)[rows]
            return rows[np.argsort(-values if descending else values, kind="stable")]  # NaN is last either way
        if column is not None and column.kind == "category":
            values = np.asarray(column.values)[rows].astype(np.int32)
        else:
            values = self._rank(name)[rows]
        last = np.int32(2**31 - 1)
        return rows[np.argsort(np.where(values < 0, last, -values if descending else values), kind="stable")]

    def histogram(self, name: str, rows: np.ndarray | None = None) -> dict[str, Any]:
        """Counts of all objects and of some (None: all).

        Returns:
            `all` and `chosen`, and how many values are `missing`. Of a category the counts are in the order of its
            levels. Of a number they are of `BARS` bars from `low` to `high`: its 1st and 99th percentile, or where
            these are equal its ends; values beyond count with the first and last bar. Without a finite value `low`
            and `high` are None and there are no bars.

        Raises:
            DataError: a row or the column is unknown, or it holds text.
        """
        column = self.column(name)
        if column.kind == "text":
            raise DataError(f"column {name!r} holds text, which has no histogram")
        about = self._about(name)
        ends: dict[str, Any] = {}
        if column.kind == "number":
            low, high = _histogram_ends(about)
            ends = {"low": low, "high": high}
            if low is None:
                return {**ends, "all": [], "chosen": [], "missing": about["missing"]}
            bars = BARS
        else:
            bars = len(column.levels)
        if name not in self._bars:
            self._bars[name] = _bars_of(column, ends)
        place = self._bars[name]
        # -1, for a missing value, becomes a first count that is not told.
        every = np.bincount(place + 1, minlength=bars + 1)[1:].tolist()
        chosen = every if rows is None else np.bincount(place[self.checked(rows)] + 1, minlength=bars + 1)[1:].tolist()
        return {**ends, "all": every, "chosen": chosen, "missing": about["missing"]}

    def row_of(self, object_id: str) -> int | None:
        return self._row_of.get(object_id)

    def csv(self, rows: np.ndarray) -> Iterator[str]:
        """A CSV table by RFC 4180, some lines at a time: object_id, the place on the map, then every column.

        Whole numbers have all their digits, others those that their type holds. Values are data, also those that a
        spreadsheet would take for a formula.

        Raises:
            DataError: a row is unknown.
        """
        rows = self.checked(rows)
        axes = [f"map_{axis}" for axis in "xyz"[: self.contents.coordinates.shape[1]]]

        def lines() -> Iterator[str]:
            yield _line(_quoted(name) for name in ("object_id", *axes, *self.columns))
            for start in range(0, len(rows), _LINES):
                some = rows[start : start + _LINES]
                columns = [[_quoted(self.contents.object_ids[row]) for row in some.tolist()]]
                columns += [_number_cells(axis[some]) for axis in self.contents.coordinates.T]
                columns += [self._cells(column, some) for column in self.columns.values()]
                yield "".join(map(_line, zip(*columns, strict=True)))

        return lines()

    def column(self, name: str) -> Column:
        """
        Raises:
            DataError: there is no such column.
        """
        if name not in self.columns:
            raise DataError(f"there is no column {name!r}", remedy=did_you_mean(name, list(self.columns)))
        return self.columns[name]

    def checked(self, rows: np.ndarray) -> np.ndarray:
        """
        Raises:
            DataError: a row is unknown.
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= self.objects):
            raise DataError("a row is unknown", allowed=f"0 to {self.objects - 1}")
        return rows

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.contents.object_ids)}

    @cached_property
    def _order(self) -> np.ndarray:
        return np.random.default_rng(0).permutation(self.objects)

    def _about(self, name: str) -> dict[str, Any]:
        columns: list[dict[str, Any]] = self.about["columns"]
        return columns[list(self.columns).index(name)]

    def _passing(self, filters: Mapping[str, Filter]) -> np.ndarray:
        passing = np.ones(self.objects, bool)
        for name, wanted in filters.items():
            passing &= self._passes(name, wanted)
        return passing

    def _passes(self, name: str, wanted: Filter) -> np.ndarray:
        column = None if name == "object_id" else self.column(name)
        kind = "text" if column is None else column.kind
        if isinstance(wanted, Between):
            if column is None or kind != "number":
                raise DataError(f"column {name!r} holds no numbers", allowed="levels, or a part of the text")
            values = np.asarray(column.values)
            passing = ~np.isnan(values)
            if wanted.low is not None:
                passing &= values >= np.float64(wanted.low)
            if wanted.high is not None:
                passing &= values <= np.float64(wanted.high)
            return passing
        if isinstance(wanted, Containing):
            part = _lowered([wanted.part])[0]
            if column is not None and kind == "category":
                table = [part in (level or "") for level in _lowered(column.levels)] + [part == ""]
                return np.array(table)[np.asarray(column.values)]  # the last entry is that of -1, a missing value
            if column is not None and kind == "number":
                return _containing(_number_texts(np.asarray(column.values)), part, missing=part == "")
            if name not in self._lowered:
                self._lowered[name] = _lowered(self._texts(name))
            return _containing(self._lowered[name], part, missing=False)
        if column is not None and kind == "category":
            table = [level in wanted.levels for level in (*column.levels, None)]
            return np.array(table)[np.asarray(column.values)]
        if kind == "number":
            raise DataError(f"column {name!r} holds numbers", allowed="low and high")
        some = set(wanted.levels)
        return np.fromiter((text in some for text in self._texts(name)), bool, self.objects)

    def _texts(self, name: str) -> Sequence[str | None]:
        return self.contents.object_ids if name == "object_id" else list(self.column(name).values)

    def _rank(self, name: str) -> np.ndarray:
        """The place of each text in the order of all different ones, -1 for a missing one."""
        if name not in self._ranks:
            self._ranks[name] = _text_ranks(self._texts(name))
        return self._ranks[name]

    def _seen(self, camera: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows before the eye, and where they are seen; x and y of the map without a camera."""
        rows = np.arange(self.objects, dtype=np.int32)
        axes = self.contents.coordinates.T.astype(np.float64)
        if camera is None:
            return rows, axes[0], axes[1]
        x, y = axes[:2]
        z = axes[2] if len(axes) == 3 else np.zeros(self.objects)
        m = np.asarray(camera, np.float64)
        with np.errstate(all="ignore"):  # a camera may be so strange that nothing is seen
            clip = [m[i] * x + m[i + 4] * y + m[i + 8] * z + m[i + 12] for i in (0, 1, 3)]
            before = clip[2] > 0
            w = clip[2][before]
            return rows[before], clip[0][before] / w, clip[1][before] / w

    def _drawn(self, name: str | None, rows: np.ndarray) -> np.ndarray | None:
        if name is None:
            return None
        column = self.column(name)
        if column.kind == "text":
            raise DataError(f"column {name!r} holds text, which cannot be drawn")
        return np.asarray(column.values)[rows]

    def _values(self, column: Column, rows: np.ndarray) -> list[Any]:
        if column.kind == "number":
            kept: type = int if column.whole else float
            return [None if math.isnan(value) else kept(value) for value in np.asarray(column.values)[rows].tolist()]
        if column.kind == "category":
            levels = (*column.levels, None)
            return [levels[code] for code in np.asarray(column.values)[rows].tolist()]
        return [column.values[row] for row in rows.tolist()]

    def _cells(self, column: Column, rows: np.ndarray) -> list[str]:
        if column.kind == "number" and not column.whole:
            return _number_cells(np.asarray(column.values)[rows])
        return ["" if value is None else _quoted(str(value)) for value in self._values(column, rows)]


def _rows_of(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(mask).astype(np.int32)


def _lowered(texts: Sequence[str | None]) -> pl.Series:
    return pl.Series(texts, dtype=pl.String).str.to_lowercase()


def _containing(texts: pl.Series, part: str, missing: bool) -> np.ndarray:
    if len(part) > _LONG:
        return np.fromiter((missing if text is None else part in text for text in texts), bool, len(texts))
    return texts.str.contains(part, literal=True).fill_null(missing).to_numpy()


def _number_texts(values: np.ndarray) -> pl.Series:
    """Each number as JavaScript writes it, in lower case; null where it is missing."""
    texts = [None if math.isnan(value) else javascript(value).lower() for value in values.tolist()]
    return pl.Series(texts, dtype=pl.String)


def _text_ranks(texts: Sequence[str | None]) -> np.ndarray:
    series = pl.Series(texts, dtype=pl.String)
    if series.str.contains(_BEYOND_UTF16_UNIT).any():
        # JavaScript compares the units of UTF-16, which puts these characters before some of one unit.
        known = sorted({text for text in texts if text is not None}, key=lambda text: text.encode("utf-16-be"))
        place = {text: i for i, text in enumerate(known)}
        return np.fromiter((-1 if text is None else place[text] for text in texts), np.int32, len(texts))
    return series.rank("dense").cast(pl.Int32).fill_null(-1).to_numpy()


def _inside_lasso(x: np.ndarray, y: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """The even-odd rule for each point, by the crossings of a ray to greater x.

    Only the points at the height of an edge can cross it: in the order of y these stand together, so that the work
    grows with the length of the outline and not with its corners.
    """
    order = np.argsort(y, kind="stable")
    x, y = x[order], y[order]
    inside = np.zeros(len(x), bool)
    x0, y0 = np.roll(xs, 1), np.roll(ys, 1)
    # An edge is crossed at y where one end is above y and the other is not: min <= y < max.
    firsts = np.searchsorted(y, np.minimum(ys, y0), side="left")
    lasts = np.searchsorted(y, np.maximum(ys, y0), side="left")
    if (lasts - firsts).sum() > MOST_CROSSINGS:
        raise DataError("the lasso goes to and fro too often over too many objects", remedy="draw a simpler one")
    with np.errstate(all="ignore"):
        for i in np.flatnonzero(lasts > firsts):
            part = slice(firsts[i], lasts[i])
            inside[part] ^= x[part] < (x0[i] - xs[i]) * (y[part] - ys[i]) / (y0[i] - ys[i]) + xs[i]
    answer = np.empty_like(inside)
    answer[order] = inside
    return answer


def _histogram_ends(about: Mapping[str, Any]) -> tuple[float | None, float | None]:
    low, high, first, last = (about[name] for name in ("low", "high", "first", "last"))
    if low is None:
        return None, None
    if first < last:
        return first, last
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _bars_of(column: Column, ends: Mapping[str, float]) -> np.ndarray:
    """The bar of each value, int16, -1 where it is missing."""
    values = np.asarray(column.values)
    if column.kind == "category":
        return values
    # Halves, since the distance between the ends of a column may be more than a double holds.
    low, high = np.float64(ends["low"]) / 2, np.float64(ends["high"]) / 2
    missing = np.isnan(values)
    if not low < high:  # of numbers so large that the ends of their one bar are equal
        return np.where(missing, -1, BARS // 2).astype(np.int16)
    share = (np.where(missing, 0, values) / np.float64(2) - low) / (high - low)
    return np.where(missing, -1, np.clip(np.floor(share * BARS), 0, BARS - 1)).astype(np.int16)


def _line(cells: Any) -> str:
    return ",".join(cells) + "\r\n"


def _quoted(text: str) -> str:
    if '"' in text or "," in text or "\n" in text or "\r" in text:
        return '"' + text.replace('"', '""') + '"'
    return text


def _number_cells(values: np.ndarray) -> list[str]:
    """Numbers with the digits that their type holds; those of a float32 beyond the seventh would be noise."""
    digits = 7 if values.dtype == np.float32 else 15
    return [_cell(_rounded(value, digits)) for value in values.tolist()]


def _rounded(value: float, digits: int) -> str:
    """A number with so many digits. Halves go away from zero, as in JavaScript; Python alone takes the even one."""
    text, longer = f"{value:.{digits}g}", f"{value:.{digits + 1}g}"
    if longer == text or not longer.partition("e")[0].endswith("5") or Decimal(longer) != Decimal(value):
        return text
    with localcontext(rounding=ROUND_HALF_UP):
        return f"{float(format(Decimal(value), f'.{digits}g')):.{digits}g}"


def _cell(text: str) -> str:
    if "e" not in text and "n" not in text and text != "-0":
        return text
    return "" if text == "nan" else javascript(float(text))


def javascript(value: float) -> str:
    """A number as JavaScript's String() writes it."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value == 0:
        return "0"
    if 1e-6 <= abs(value) < 1e21:
        text = repr(value)
        return (format(Decimal(text), "f") if "e" in text else text).removesuffix(".0")
    return _EXPONENT.sub(r"e\1\2", repr(value).replace(".0e", "e"))
