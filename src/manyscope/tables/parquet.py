"""Reading and writing Parquet tables with named, checked columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from manyscope.errors import DataError, did_you_mean
from manyscope.tables.whole import whole_file


def write_table(
    path: Path, table: pl.DataFrame, metadata: Mapping[str, str] | None = None, group_rows: int | None = None
) -> None:
    """Write whole. The same table and metadata give the same bytes.

    Args:
        group_rows: rows that a reader of any of them has to read; None leaves it to polars.
    """
    with whole_file(path) as partial:
        table.write_parquet(
            partial, compression="zstd", statistics=True, metadata=dict(metadata or {}), row_group_size=group_rows
        )


def read_table(
    path: Path, required: Mapping[str, type[pl.DataType]] | None = None, without: Sequence[str] = ()
) -> pl.DataFrame:
    """Read a table and check that it has the required columns with their types.

    Args:
        without: names of columns that are not read.

    Raises:
        DataError: the file is missing or broken, or a column is missing or of another type.
    """
    with _readable(path):
        schema = pl.read_parquet_schema(path)
        _check_columns(path, schema, required or {})
        return pl.read_parquet(path, columns=[name for name in schema if name not in without])


def read_column(path: Path, name: str) -> pl.Series:
    """One column of text; nothing else is read.

    Raises:
        DataError: the file is missing or broken, or the column is missing or not text.
    """
    with _readable(path):
        _check_columns(path, pl.read_parquet_schema(path), {name: pl.String})
        return pl.read_parquet(path, columns=[name])[name]


def read_slice(path: Path, row: int, rows: int = 1, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Some rows that follow each other, with all columns or some: of a large file only their row groups are read.

    Raises:
        DataError: the file is missing or broken.
    """
    with _readable(path):
        table = pl.scan_parquet(path)
        return (table if columns is None else table.select(columns)).slice(row, rows).collect()


def read_rows(
    path: Path, column: str, values: Sequence[str], required: Mapping[str, type[pl.DataType]] | None = None
) -> pl.DataFrame:
    """The rows that have one of these values in a column, in the order of the table, with the columns of single
    values: little of a large file is read.

    Raises:
        DataError: the file is missing or broken, or a column is missing or of another type.
    """
    with _readable(path):
        table = pl.scan_parquet(path)
        schema = table.collect_schema()
        _check_columns(path, schema, required or {})
        single = [name for name, dtype in schema.items() if not (dtype.is_nested() or dtype in (pl.Binary, pl.Object))]
        return table.filter(pl.col(column).is_in(list(values))).select(single).collect()


def read_schema(path: Path) -> dict[str, pl.DataType]:
    """The names of the columns with their types.

    Raises:
        DataError: the file is missing or broken.
    """
    with _readable(path):
        return dict(pl.read_parquet_schema(path))


def read_metadata(path: Path) -> dict[str, str]:
    """The key-value metadata of a Parquet file."""
    return {k: v for k, v in pl.read_parquet_metadata(path).items() if not k.startswith("ARROW:")}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError("the file is missing", place=path, remedy="run the stage that makes it") from error
    except Exception as error:  # polars raises several unrelated types, and some bare ones, for a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"not a readable Parquet file ({reason})", place=path, remedy="delete it and run the stage that makes it"
        ) from error


def _check_columns(path: Path, schema: Mapping[str, pl.DataType], required: Mapping[str, type[pl.DataType]]) -> None:
    for name, wanted in required.items():
        if name not in schema:
            hint = did_you_mean(name, list(schema)) or f"it has {', '.join(schema)}"
            raise DataError(f"column {name!r} is missing", place=path, remedy=hint)
        if not isinstance(schema[name], wanted):
            raise DataError(f"column {name!r} has type {schema[name]}", place=path, allowed=str(wanted))
