"""Finding one object of a large table in a time that does not grow with the table.

Beside the table lies a sorted file of hashes of its ids with their rows. It is made when the first object is looked up,
and again after the table has changed; without it every look-up would read all ids.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl

from manyscope.errors import DataError, did_you_mean
from manyscope.tables.parquet import read_column, read_slice
from manyscope.tables.whole import whole_file

_HINTS = 20_000  # ids among which a similar one is looked for


def look_up(table: Path, column: str, name: str) -> pl.DataFrame:
    """The row of `table` that has `name` in a column of unique text, with all columns, (1 row).

    Raises:
        DataError: the table is missing or broken, or has no such row.
    """
    places = _places(table, column)
    wanted = _hash(name)
    first = int(np.searchsorted(places[1:, 0], wanted)) + 1
    for place in range(first, len(places)):
        if places[place, 0] != wanted:
            break
        found = read_slice(table, int(places[place, 1]))
        if found[column].to_list() == [name]:  # two ids may have the same hash
            return found
    hint = did_you_mean(name, read_column(table, column).head(_HINTS).to_list())
    raise DataError(f"{column} {name!r} is unknown", place=table, remedy=hint)


def _places(table: Path, column: str) -> np.ndarray:
    """(rows + 1, 2) uint64: first the state of the table that the others were made of, then hash and row of each id, in
    the order of the hashes. Mapped, so that a search reads a few pages."""
    file = table.with_name(f".{table.stem}.{column}.npy")
    state = _state(table)
    with suppress(OSError, ValueError):
        places = np.load(file, mmap_mode="r", allow_pickle=False)
        if places.dtype == np.uint64 and places.ndim == 2 and places[0].tolist() == state:
            return places
    names = read_column(table, column).to_list()
    hashes = np.fromiter(map(_hash, names), np.uint64, len(names))
    order = np.argsort(hashes, kind="stable")
    places = np.concatenate([np.array([state], np.uint64), np.stack([hashes[order], order.astype(np.uint64)], 1)])
    # A folder for readers only, or another process that makes the same file: it is there to save time, and no more.
    with suppress(DataError, OSError), whole_file(file, sweep=False) as partial, partial.open("wb") as opened:
        np.save(opened, places, allow_pickle=False)
    return places


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _state(table: Path) -> list[int]:
    """
    Raises:
        DataError: there is no such file.
    """
    try:
        state = table.stat()
    except FileNotFoundError as error:
        raise DataError("the file is missing", place=table, remedy="run the stage that makes it") from error
    return [_hash(f"{state.st_ino} {state.st_size}"), state.st_mtime_ns]
