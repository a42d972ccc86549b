"""Reading and writing Parquet tables with named, checked columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from manyscope.errors import DataError, did_you_mean
from manyscope.tables.whole import whole_file


def write_table(path: Path, table: pl.DataFrame, metadata: Mapping[str, str] | None = None) -> None:
    """Write whole. The same table and metadata give the same bytes."""
    with whole_file(path) as partial:
        table.write_parquet(partial, compression="zstd", statistics=True, metadata=dict(metadata or {}))


def read_table(path: Path, required: Mapping[str, type[pl.DataType]] | None = None) -> pl.DataFrame:
    """Read a table and check that it has the required columns with their types.

    Raises:
        DataError: the file is missing or broken, or a column is missing or of another type.
    """
    try:
        table = pl.read_parquet(path)
    except FileNotFoundError as error:
        raise DataError("the file is missing", place=path, remedy="run the stage that makes it") from error
    except Exception as error:  # polars raises several unrelated types, and some bare ones, for a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"not a readable Parquet file ({reason})", place=path, remedy="delete it and run the stage that makes it"
        ) from error
    for name, wanted in (required or {}).items():
        if name not in table.columns:
            hint = did_you_mean(name, table.columns) or f"it has {', '.join(table.columns)}"
            raise DataError(f"column {name!r} is missing", place=path, remedy=hint)
        found = table.schema[name]
        if not isinstance(found, wanted):
            raise DataError(f"column {name!r} has type {found}", place=path, allowed=str(wanted))
    return table


def read_metadata(path: Path) -> dict[str, str]:
    """The key-value metadata of a Parquet file."""
    return {k: v for k, v in pl.read_parquet_metadata(path).items() if not k.startswith("ARROW:")}
