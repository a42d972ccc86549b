"""What there is to see of one experiment: its objects, their places on the map, and what is known of each.

The page that stands alone embeds it, the served one asks for parts of it; both show the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.annotations import annotated, annotation_files
from manyscope.tables.objects import object_columns
from manyscope.tables.parquet import read_table
from manyscope.tables.predictions import SCHEMA as PREDICTIONS
from manyscope.tables.samples import read_samples

Kind = Literal["number", "category", "text"]

MOST_LEVELS = 200
"""A text column with more different values than this is shown and sought in, but not offered as a colour."""
BARS = 30
"""Bars of a histogram of numbers."""
_FEW_INTEGERS = 12
_MOST_WHOLE = 2**53  # beyond it a float64 does not hold every whole number
_MOST_WHOLE_NARROW = 2**24  # the same of a float32
_OPAQUE = (pl.Binary, pl.Object)


@dataclass(frozen=True)
class Column:
    """One plain value of each object.

    Attributes:
        kind: `number`; `category`: a few different values; `text`: many.
        values: number: (n,) float32 or float64, NaN where missing. category: (n,) int16, the place in `levels`, -1
            where missing. text: n strings, None where missing.
        levels: the different values of a category as text, in the order of the values.
        whole: every number is a whole one, or missing, and held with all its digits.
    """

    name: str
    kind: Kind
    values: np.ndarray | list[str | None]
    levels: tuple[str, ...] = ()
    whole: bool = False

    @cached_property
    def about(self) -> dict[str, Any]:
        """What a page needs to offer the column: `name`, `kind`, `missing` (objects without a value); of a category
        `levels` and `counts`; of a number `low` and `high`, `first` and `last` (its 1st and 99th percentile), all over
        finite values and null if there are none, `distinct` (whether it has two different finite values) and
        `whole` (whether all its digits are to be shown)."""
        if self.kind == "text":
            return {"name": self.name, "kind": "text", "missing": sum(value is None for value in self.values)}
        values = np.asarray(self.values)
        if self.kind == "category":
            counts = np.bincount(values[values >= 0], minlength=len(self.levels)).tolist()
            missing = int((values < 0).sum())
            return {"name": self.name, "kind": "category", "missing": missing, "levels": self.levels, "counts": counts}
        finite = values[np.isfinite(values)].astype(np.float64)
        low, first, last, high = np.quantile(finite, [0, 0.01, 0.99, 1]).tolist() if len(finite) else [None] * 4
        return {
            "name": self.name,
            "kind": "number",
            "missing": int(np.isnan(values).sum()),
            "low": low,
            "high": high,
            "first": first,
            "last": last,
            "distinct": len(finite) > 0 and low != high,
            "whole": self.whole,
        }


@dataclass(frozen=True)
class Contents:
    """One experiment as it is shown.

    Attributes:
        experiment, scope, title: names, and the heading.
        object_ids: (n,) unique; an object's row is its place here.
        coordinates: (n, 2) or (n, 3) float32, finite: the map.
        columns: what is known of each object, in the order in which it is listed.
        card: names of the columns that say the most, for the card at the pointer.
    """

    experiment: str
    scope: str
    title: str
    object_ids: Sequence[str]
    coordinates: np.ndarray
    columns: tuple[Column, ...]
    card: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.object_ids)
        lengths = {len(self.coordinates), *(len(column.values) for column in self.columns)}
        if lengths != {n} or self.coordinates.ndim != 2 or self.coordinates.shape[1] not in (2, 3):
            raise DataError(
                f"{n} objects, but coordinates {self.coordinates.shape} and columns of {sorted(lengths)} values",
                place=self.experiment,
            )

    def about(self) -> dict[str, Any]:
        """Everything but the objects themselves, as JSON: `experiment`, `scope`, `title`, `objects` (their number),
        `axes` (2 or 3), `extent` (for each axis its least and greatest coordinate), `columns` (see `Column.about`),
        `card`, `bars` (of a histogram of numbers)."""
        low, high = self.coordinates.min(0).tolist(), self.coordinates.max(0).tolist()
        return {
            "experiment": self.experiment,
            "scope": self.scope,
            "title": self.title,
            "objects": len(self.object_ids),
            "axes": self.coordinates.shape[1],
            "extent": list(zip(low, high, strict=True)),
            "columns": [column.about for column in self.columns],
            "card": self.card,
            "bars": BARS,
        }


def read_contents(paths: ExperimentPaths, scope: str, title: str = "", card: Sequence[str] = ()) -> Contents:
    """The contents of one experiment, from the tables of preprocess, infer and umap and from the user's annotations.
    Latent vectors are not read.

    Args:
        title: of the page; the experiment's name if it is empty.
        card: names of columns; those that are not shown are left out.

    Raises:
        DataError: a table is missing or broken, there is no object, or the map does not hold every object once.
    """
    predictions = read_table(paths.predictions, PREDICTIONS, without=("embedding",))
    if predictions.is_empty():
        raise DataError(
            "no objects", place=paths.predictions, remedy="train longer or on more data, or see section infer"
        )
    known = object_columns(predictions, read_samples(paths.samples), repeats=False)
    columns = plain_columns(annotated(known, predictions, paths.annotations))
    return Contents(
        experiment=paths.experiment,
        scope=scope,
        title=title or paths.experiment,
        object_ids=predictions["object_id"].to_list(),
        coordinates=_coordinates(paths, predictions["object_id"]),
        columns=columns,
        card=tuple(name for name in card if name in {column.name for column in columns}),
    )


def version(paths: ExperimentPaths) -> str:
    """A short name of the present state of the tables that `read_contents` reads; another after each of their runs,
    and after an annotation was added, replaced or removed.

    Raises:
        DataError: a table is missing.
    """
    digest = hashlib.sha256()
    for path in (paths.predictions, paths.samples, paths.map):
        try:
            digest.update(f"{state_of(path)}\n".encode())
        except OSError as error:
            raise DataError("the file is missing", place=path, remedy="run the stage that makes it") from error
    for path in annotation_files(paths.annotations):
        with suppress(FileNotFoundError):  # it was removed just now
            digest.update(f"{path.name} {state_of(path)}\n".encode())
    return digest.hexdigest()[:16]


def state_of(file: Path) -> str:
    """Another text after each time that the file was written.

    Raises:
        OSError: it is not there.
    """
    state = file.stat()
    return f"{state.st_ino} {state.st_size} {state.st_mtime_ns}"


def plain_columns(table: pl.DataFrame) -> tuple[Column, ...]:
    """Every column that holds one plain value for each object; lists, arrays, structs and bytes are left out.

    Numbers are floats, integers with more than a few different values, and durations, in seconds. Whole numbers keep
    all their digits: a column with an integer beyond 2^53, which no number of JavaScript holds, is treated as text.
    """
    return tuple(_column(series) for series in table if not (series.dtype.is_nested() or series.dtype in _OPAQUE))


def _column(series: pl.Series) -> Column:
    if isinstance(series.dtype, pl.Decimal):
        return _column(series.cast(pl.Int128 if series.dtype.scale == 0 else pl.Float64))
    if isinstance(series.dtype, pl.Duration):
        units = {"ms": 1e3, "us": 1e6, "ns": 1e9}
        # NumPy divides; polars multiplies by the inverse, which shows as noise in the last digit.
        return _column(pl.Series(series.name, _wide(series.to_physical()) / units[series.dtype.time_unit]))
    if series.dtype.is_float() or (series.dtype.is_integer() and _is_number(series)):
        values, whole = _numbers(series)
        return Column(series.name, "number", values, whole=whole)
    words = _texts(series)
    # Sorted before they become texts, so that the levels of integers are in the order of the numbers.
    levels = _texts(series.drop_nulls().unique().sort()).unique(maintain_order=True).to_list()
    if len(levels) > MOST_LEVELS:
        return Column(series.name, "text", words.to_list())
    codes = words.replace_strict(levels, range(len(levels)), default=-1, return_dtype=pl.Int16) if levels else None
    values = np.full(len(series), -1, np.int16) if codes is None else codes.fill_null(-1).to_numpy()
    return Column(series.name, "category", values, tuple(levels))


def _is_number(integers: pl.Series) -> bool:
    ends = (integers.min(), integers.max())
    return integers.n_unique() > _FEW_INTEGERS and all(abs(int(end)) <= _MOST_WHOLE for end in ends)  # type: ignore[arg-type]


def _texts(series: pl.Series) -> pl.Series:
    """Values as text; a cast would drop the part of a second of a time."""
    return series.dt.to_string("iso") if series.dtype == pl.Time else series.cast(pl.String)


def _numbers(series: pl.Series) -> tuple[np.ndarray, bool]:
    """(n,) float32 where it holds whole numbers exactly, and others to a millionth of the column's range, else
    float64; and whether all are whole. Floats are whole numbers too, as far as their type holds each of these: integers
    with missing values often come as such."""
    wide = _wide(series)
    known = wide[~np.isnan(wide)]
    finite = known[np.isfinite(known)]
    most = _MOST_WHOLE if series.dtype == pl.Float64 or series.dtype.is_integer() else _MOST_WHOLE_NARROW
    whole = len(known) > 0 and bool(((np.abs(known) <= most) & (known == np.rint(known))).all())
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
        lost = np.abs(finite - finite.astype(np.float32)).max(initial=0.0)
        allowed = 0.0 if whole or not len(finite) else 1e-6 * np.ptp(finite)
    return (narrow if lost <= allowed else wide), whole


def _wide(series: pl.Series) -> np.ndarray:
    return series.cast(pl.Float64).fill_null(math.nan).to_numpy()


def _coordinates(paths: ExperimentPaths, object_ids: pl.Series) -> np.ndarray:
    """The map in the order of the predictions, (objects, 2 or 3)."""
    table = read_table(paths.map, {"object_id": pl.String})
    axes = [axis for axis in ("x", "y", "z") if axis in table.columns]
    ordered = object_ids.to_frame().join(table, on="object_id", how="left", maintain_order="left")
    coordinates = ordered.select(axes).to_numpy().astype(np.float32)
    if len(axes) < 2 or len(ordered) != len(object_ids) or not np.isfinite(coordinates).all():
        raise DataError(
            "the map does not hold each object of the predictions once", place=paths.map, remedy="run the umap stage"
        )
    return coordinates
