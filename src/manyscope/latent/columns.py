"""The columns of the objects of an index in one Parquet file, for stores that keep none themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from manyscope.latent.filters import Filter, as_expression
from manyscope.latent.stores import unreadable

_GROUP_ROWS = 2**15
_ROW = "row of the index"  # no name of a column, since none of the objects' is made of it


class ObjectTable:
    """object_id and columns, one row for each vector. Nothing of it stays in memory between two questions."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "objects.parquet"

    def write(self, ids: Sequence[str], columns: pl.DataFrame) -> None:
        """Append rows."""
        rows = _table(ids, columns)
        self._write(pl.concat([pl.read_parquet(self.path), rows]) if self.path.exists() else rows)

    def update(self, ids: Sequence[str], columns: pl.DataFrame) -> None:
        """Give rows that are there other values."""
        before = pl.read_parquet(self.path)
        self._write(before.update(_table(ids, columns), on="object_id", include_nulls=True, maintain_order="left"))

    def count(self) -> int:
        """
        Raises:
            DataError: the file is missing or broken.
        """
        return int(self._collect(pl.scan_parquet(self.path).select(pl.len())).item())

    def ids(self, rows: Sequence[int] | np.ndarray | None = None) -> list[str]:
        """Of some rows, in their order; of all."""
        table = pl.scan_parquet(self.path).select("object_id")
        if rows is None:
            return self._collect(table)["object_id"].to_list()
        wanted = np.unique(np.asarray(rows, np.int64))
        found = self._collect(table.with_row_index(_ROW).filter(pl.col(_ROW).is_in(wanted.tolist())))["object_id"]
        return found.gather(np.searchsorted(wanted, rows)).to_list()

    def table(self) -> pl.DataFrame:
        """object_id and the columns of all."""
        return self._collect(pl.scan_parquet(self.path))

    def slice(self, start: int, rows: int) -> list[str]:
        return self._collect(pl.scan_parquet(self.path).select("object_id").slice(start, rows))["object_id"].to_list()

    def rows_of(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Those of the ids that are there, in the order of the table, and their rows, (found,) int64."""
        table = pl.scan_parquet(self.path).select("object_id").with_row_index(_ROW)
        found = self._collect(table.filter(pl.col("object_id").is_in(list(ids))))
        return found["object_id"].to_list(), found[_ROW].cast(pl.Int64).to_numpy()

    def rows_passing(self, wanted: Filter) -> np.ndarray:
        """(passing,) int64, in order."""
        passing = pl.scan_parquet(self.path).select(as_expression(wanted).arg_true())
        return self._collect(passing).to_series().cast(pl.Int64).to_numpy()

    def ids_passing(self, wanted: Filter) -> list[str]:
        return self._collect(pl.scan_parquet(self.path).filter(as_expression(wanted)).select("object_id"))[
            "object_id"
        ].to_list()

    def _write(self, rows: pl.DataFrame) -> None:
        partial = self.path.with_name(".objects.partial")
        rows.rechunk().write_parquet(partial, compression="zstd", row_group_size=_GROUP_ROWS)
        partial.replace(self.path)

    def _collect(self, table: pl.LazyFrame) -> pl.DataFrame:
        try:
            return table.collect()
        except Exception as error:  # polars raises several unrelated types for a broken file
            raise unreadable(self.path.parent, error) from error


def _table(ids: Sequence[str], columns: pl.DataFrame) -> pl.DataFrame:
    names = pl.DataFrame({"object_id": list(ids)}, schema={"object_id": pl.String})
    return names.with_columns(columns.get_columns())
