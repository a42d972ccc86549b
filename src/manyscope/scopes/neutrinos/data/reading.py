"""What the sources that read existing files share: links to the user's files, and every rule that these must keep.

Rows are counted from 0 in all messages, as `first_pulse_index` of the Kaggle files counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manyscope.errors import DataError, did_you_mean

# UInt64 is left out: its upper half does not fit the int64 that indices and ids are kept in.
_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
_FLOATS = (pl.Float32, pl.Float64)
KINDS: dict[str, tuple[type[pl.DataType], ...]] = {
    "an integer type": _INTEGERS,
    "Int64": (pl.Int64,),
    "a float type": _FLOATS,
    "Boolean": (pl.Boolean,),
    "a type of numbers": (*_INTEGERS, *_FLOATS),
    "an integer type or Boolean": (*_INTEGERS, pl.Boolean),
}

PULSE_COLUMNS = {
    "sensor_id": "an integer type",
    "time": "Int64",
    "charge": "a float type",
    "auxiliary": "Boolean",
    "event_id": "an integer type",
}
META_COLUMNS = {
    "batch_id": "an integer type",
    "event_id": "an integer type",
    "first_pulse_index": "an integer type",
    "last_pulse_index": "an integer type",
}
ANGLE_COLUMNS = {"azimuth": "a float type", "zenith": "a float type"}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    # Polars panics on some broken files, and a panic is not an Exception.
    except (Exception, pl.exceptions.PanicException) as error:
        if isinstance(error, DataError):
            raise
        if not path.exists():
            raise DataError("the file is missing", place=path, remedy="run the stage 'download' again") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"not a readable Parquet file ({reason})",
            place=path,
            remedy="it may be cut short; fetch or copy it again",
        ) from error


def read_schema(path: Path, required: Mapping[str, str]) -> pl.Schema:
    """The columns of a Parquet file, after checking that it has rows and the required columns.

    Args:
        required: name -> what its type must be, a key of `KINDS`.

    Raises:
        DataError: missing, broken or empty file; a column is missing or of another type.
    """
    with _explained(path):
        table = pl.scan_parquet(path, glob=False)
        schema, rows = table.collect_schema(), table.select(pl.len()).collect().item()
    for name, kind in required.items():
        if name not in schema:
            hint = did_you_mean(name, list(schema)) or f"it has {', '.join(schema)}"
            raise DataError(f"column {name!r} is missing", place=path, remedy=hint)
        if not isinstance(schema[name], KINDS[kind]):
            raise DataError(f"column {name!r} has type {schema[name]}", place=path, allowed=kind)
    if not rows:
        raise DataError("the file has no rows", place=path, allowed="at least one row", remedy="leave it out")
    return schema


def read_column(path: Path, name: str) -> np.ndarray:
    """One column, (rows,), without nulls; columns are read one by one, since a file of 34 million pulses is large.

    Raises:
        DataError: the file is broken or a value is null.
    """
    with _explained(path):
        values = pl.read_parquet(path, columns=[name], glob=False).to_series()
    _refuse_null(values, path)
    return values.to_numpy()


def _refuse_null(values: pl.Series, path: Path, rows: np.ndarray | None = None) -> None:
    if values.null_count():
        refuse(values.is_null().to_numpy(), path, lambda _: f"{values.name} is null", "a value in every row", rows)


def refuse(
    wrong: np.ndarray, path: Path, found: Callable[[int], str], allowed: str, rows: np.ndarray | None = None
) -> None:
    """
    Args:
        wrong: (rows,) bool, where a rule is broken.
        found: what to say of the first such position.
        rows: (rows,) row in the file of each position, if they differ.

    Raises:
        DataError: any is true; the place is `file:row`.
    """
    if not wrong.any():
        return
    first, count = int(wrong.argmax()), int(wrong.sum())
    place = first if rows is None else int(rows[first])
    more = f" ({count:,} such rows)" if count > 1 else ""
    raise DataError(
        found(first) + more,
        place=f"{path}:{place}",
        allowed=allowed,
        remedy="mend the file or leave it out; rows count from 0",
    )


def refuse_value(
    wrong: np.ndarray, path: Path, name: str, values: np.ndarray, allowed: str, rows: np.ndarray | None = None
) -> None:
    """As `refuse`, for a rule about the values of one column."""
    refuse(wrong, path, lambda i: f"{name} is {values[i]}", allowed, rows)


def check_charge(charge: np.ndarray, path: Path) -> np.ndarray:
    """(pulses,) float32, photoelectrons.

    Raises:
        DataError: one is not finite or not above 0, or leaves the range of single precision.
    """
    with np.errstate(over="ignore"):
        charge = charge.astype(np.float32, copy=False)
    # NaN fails the comparison too
    refuse_value(~((charge > 0) & (charge < np.inf)), path, "charge", charge, "finite and above 0")
    return charge


def check_angles(azimuth: np.ndarray, zenith: np.ndarray, path: Path, rows: np.ndarray | None = None) -> None:
    """
    Args:
        azimuth, zenith: (events,) radians.

    Raises:
        DataError: an angle is not finite or out of its range.
    """
    # NaN fails both comparisons
    fine = (azimuth >= 0) & (azimuth < 2 * np.pi)
    refuse_value(~fine, path, "azimuth", azimuth, "finite, in [0, 2 pi) radians", rows)
    fine = (zenith >= 0) & (zenith <= np.pi)
    refuse_value(~fine, path, "zenith", zenith, "finite, in [0, pi] radians", rows)


def check_unique(ids: np.ndarray, name: str, path: Path, rows: np.ndarray | None = None) -> None:
    """
    Raises:
        DataError: an id occurs twice.
    """
    repeated = np.ones(len(ids), bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    refuse(repeated, path, lambda i: f"{name} {ids[i]} occurs a second time", "every event once", rows)


@dataclass(frozen=True)
class Pulses:
    """The columns of one pulse file, each (pulses,); types as in `sources.Events`, event_id int64."""

    sensor_id: np.ndarray
    time_ns: np.ndarray
    charge: np.ndarray
    auxiliary: np.ndarray
    event_id: np.ndarray


def read_pulses(path: Path, sensors: int) -> Pulses:
    """The pulses of a file in the Kaggle schema (sensor_id, time in ns, charge, auxiliary, event_id).

    Args:
        sensors: number of modules of the detector.

    Raises:
        DataError: missing, broken or empty file; a column is missing, of another type or has nulls; a sensor_id is
            not of the detector; a charge is not finite and positive.
    """
    read_schema(path, PULSE_COLUMNS)
    sensor = read_column(path, "sensor_id")
    wrong = (sensor < 0) | (sensor >= sensors)
    refuse_value(wrong, path, "sensor_id", sensor, f"0 to {sensors - 1}, the rows of the detector's geometry")
    return Pulses(
        sensor.astype(np.int32, copy=False),
        read_column(path, "time").astype(np.float64),
        check_charge(read_column(path, "charge"), path),
        read_column(path, "auxiliary"),
        read_column(path, "event_id").astype(np.int64, copy=False),
    )


def read_meta(path: Path, batch: int, angles: bool) -> pl.DataFrame:
    """The rows of one batch in a meta file; the file may hold 132 million, of which only these are kept in memory.

    Returns:
        row (in the meta file), event_id, first_pulse_index, last_pulse_index (inclusive) int64 and, with `angles`,
        azimuth, zenith float64.

    Raises:
        DataError: missing or broken file; a column is missing, of another type or has nulls; the batch has no rows;
            an angle is out of range.
    """
    required = {**META_COLUMNS, **(ANGLE_COLUMNS if angles else {})}
    read_schema(path, required)
    names = [name for name in required if name != "batch_id"]
    with _explained(path):
        table = (
            pl.scan_parquet(path, glob=False, row_index_name="row")
            .filter(pl.col("batch_id") == batch)
            .select("row", *(pl.col(n).cast(pl.Float64 if n in ANGLE_COLUMNS else pl.Int64) for n in names))
            .collect()
        )
    if table.is_empty():
        raise DataError(
            f"no row has batch_id {batch}", place=path, remedy=f"leave out batch_{batch}.parquet or mend the file"
        )
    rows = table["row"].to_numpy()
    for name in names:
        _refuse_null(table[name], path, rows)
    if angles:
        check_angles(table["azimuth"].to_numpy(), table["zenith"].to_numpy(), path, rows)
    return table


def check_events(pulses: Pulses, path: Path, meta: pl.DataFrame, meta_path: Path) -> tuple[pl.DataFrame, np.ndarray]:
    """Check that the slices of the meta table cut a pulse file into events, each pulse in exactly one.

    Args:
        pulses: content of `path`.
        meta: as `read_meta` gives it.

    Returns:
        The meta table in the order of the pulses, and offsets, (events + 1,) int64.

    Raises:
        DataError: a slice is reversed or reaches out of the file; slices overlap or leave a gap; an event_id is
            repeated or differs from that of the pulses; the pulses of an event are not in the order of time.
    """
    pulses_n, rows = len(pulses.event_id), meta["row"].to_numpy()
    first, last = meta["first_pulse_index"].to_numpy(), meta["last_pulse_index"].to_numpy()
    refuse(
        first > last,
        meta_path,
        lambda i: f"first_pulse_index {first[i]} is above last_pulse_index {last[i]}",
        "first_pulse_index <= last_pulse_index",
        rows,
    )
    allowed = f"0 to {pulses_n - 1}, the rows of {path.name}"
    # in order, so that these two bounds hold for both
    refuse_value(first < 0, meta_path, "first_pulse_index", first, allowed, rows)
    refuse_value(last >= pulses_n, meta_path, "last_pulse_index", last, allowed, rows)
    check_unique(meta["event_id"].to_numpy(), "event_id", meta_path, rows)

    if (first[1:] < first[:-1]).any():
        meta = meta.sort("first_pulse_index", maintain_order=True)
    rows, ids = meta["row"].to_numpy(), meta["event_id"].to_numpy()
    first, last = meta["first_pulse_index"].to_numpy(), meta["last_pulse_index"].to_numpy()
    offsets = np.append(first, pulses_n)
    before = np.concatenate([[-1], last])  # last pulse of the event before; of the whole file at the end
    refuse(
        offsets[:-1] <= before[:-1],
        meta_path,
        lambda i: f"event {ids[i]} starts at row {first[i]}, inside event {ids[i - 1]} up to row {before[i]}",
        f"slices of {path.name} without overlap",
        rows,
    )
    gap = offsets > before + 1
    refuse(
        gap,
        path,
        lambda i: f"rows {before[i] + 1} to {offsets[i] - 1} belong to no event of {meta_path.name}",
        "every pulse in exactly one event",
        before + 1,
    )
    _check_slices(pulses, path, offsets, ids, rows, meta_path)
    return meta, offsets


def _check_slices(
    pulses: Pulses, path: Path, offsets: np.ndarray, ids: np.ndarray, rows: np.ndarray, meta_path: Path
) -> None:
    def event(pulse: int) -> int:
        return int(np.searchsorted(offsets, pulse, "right")) - 1

    def mismatch(pulse: int) -> str:
        i = event(pulse)
        return f"event_id is {pulses.event_id[pulse]} in the slice of event {ids[i]} ({meta_path.name}:{rows[i]})"

    # The first pulse of each event has its id, and inside an event the id never changes.
    wrong = np.zeros(len(pulses.event_id), bool)
    np.not_equal(pulses.event_id[1:], pulses.event_id[:-1], out=wrong[1:])
    starts = offsets[:-1]
    wrong[starts] = pulses.event_id[starts] != ids
    refuse(wrong, path, mismatch, f"the event_id of the slice in {meta_path.name}")

    np.less(pulses.time_ns[1:], pulses.time_ns[:-1], out=wrong[1:])
    wrong[starts] = False
    refuse(
        wrong,
        path,
        lambda p: (
            f"unsorted events: time {pulses.time_ns[p]:.0f} comes after {pulses.time_ns[p - 1]:.0f} "
            f"in event {ids[event(p)]}"
        ),
        "ascending time inside an event",
    )


def read_truth(path: Path, id_column: str, ids: np.ndarray) -> pl.DataFrame:
    """The row of each event in a table of truth, all its scalar columns.

    Args:
        id_column: name of the column with event ids.
        ids: (events,) int64, events wanted, in this order.

    Raises:
        DataError: missing or broken file; an event is missing from it or occurs twice.
    """
    schema = read_schema(path, {id_column: "an integer type"})
    found = read_column(path, id_column).astype(np.int64, copy=False)
    check_unique(found, id_column, path)
    order = np.argsort(found)
    at = np.searchsorted(found, ids, sorter=order)
    row = order[np.minimum(at, len(found) - 1)]
    absent = found[row] != ids
    if absent.any():
        raise DataError(
            f"{id_column} {ids[absent.argmax()]} is missing ({absent.sum():,} of {len(ids):,} events are)",
            place=path,
            allowed="a row for every event that has pulses",
        )
    scalar = [name for name, kind in schema.items() if not (kind.is_nested() or kind in (pl.Binary, pl.Object))]
    with _explained(path):
        return pl.read_parquet(path, columns=scalar, glob=False)[row]


def typed(table: pl.DataFrame, types: Mapping[str, type[pl.DataType]], path: Path) -> pl.DataFrame:
    """Cast those of the named columns that are there.

    Raises:
        DataError: a column holds something else.
    """
    for name, kind in types.items():
        if name not in table.columns:
            continue
        try:
            table = table.with_columns(pl.col(name).cast(kind))
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"column {name!r} has type {table.schema[name]}", place=path, allowed=f"values that {kind} can hold"
            ) from error
    return table


def unknown(events: int) -> Any:
    """Angles of events whose direction is not known, (events,) float64 of NaN."""
    return np.full(events, np.nan)
