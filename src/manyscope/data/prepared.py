"""What every scope asks of samples.parquet: the rows of a split, of ids, and of the training samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manyscope.data.loading import Schedule
from manyscope.data.schedule import ShuffledSchedule
from manyscope.errors import DataError
from manyscope.tables.samples import read_samples


class PreparedSamples(ABC):
    """The prepared folder of a scope: its samples, in the order of its arrays. A scope says what a batch is.

    Raises:
        DataError: samples.parquet is missing or broken.
    """

    def __init__(self, prepared: Path) -> None:
        self.folder = prepared
        self.samples = read_samples(prepared / "samples.parquet")

    @abstractmethod
    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        """The samples at these positions."""

    def rows(self, split: str) -> np.ndarray:
        """Positions of a split's samples, (n,) int64, in the order of samples.parquet."""
        return np.flatnonzero((self.samples["split"] == split).to_numpy())

    def rows_of(self, sample_ids: Sequence[str]) -> np.ndarray:
        """Positions of the named samples, (n,) int64.

        Raises:
            DataError: an id is unknown.
        """
        wanted = pl.DataFrame({"sample_id": list(sample_ids)}, schema={"sample_id": pl.String})
        known = self.samples.select("sample_id").with_row_index("row")
        rows = wanted.join(known, on="sample_id", how="left", maintain_order="left")
        if rows["row"].null_count():
            unknown = rows.filter(pl.col("row").is_null())["sample_id"][0]
            raise DataError(f"sample {unknown!r} is unknown", place=self.folder / "samples.parquet")
        return rows["row"].to_numpy().astype(np.int64)

    def ids(self, rows: np.ndarray) -> list[str]:
        """The ids at these positions."""
        return self.samples["sample_id"].gather(rows).to_list()

    @cached_property
    def train_rows(self) -> np.ndarray:
        return self.rows("train")

    @property
    def train_size(self) -> int:
        return len(self.train_rows)

    def train_schedule(self, batch_size: int, seed: int) -> Schedule:
        """Samples in random order, in batches of one size; a scope whose samples differ in size brings its own."""
        return ShuffledSchedule(self.train_size, batch_size, seed)

    def train_batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        return self.batch(self.train_rows[np.asarray(indices, np.int64)])

    def validation_schedule(self, batch_size: int) -> Iterable[np.ndarray]:
        rows = self.rows("validation")
        return (rows[first : first + batch_size] for first in range(0, len(rows), batch_size))

    def validation_batch(self, positions: Sequence[int] | np.ndarray) -> dict[str, Any]:
        return self.batch(np.asarray(positions, np.int64))

    def predict_batches(self, sample_ids: Sequence[str], batch_size: int) -> Iterable[dict[str, Any]]:
        """Batches of exactly `batch_size` rows: the last one repeats its first row beyond its ids, because the last
        digit of a matrix product may depend on the number of rows, and a shard must not change any digit.

        Raises:
            DataError: an id is unknown.
        """
        rows = self.rows_of(sample_ids)
        for first in range(0, len(rows), batch_size):
            some = rows[first : first + batch_size]
            batch = self.batch(np.concatenate([some, np.full(batch_size - len(some), some[0])]))
            yield {**batch, "sample_id": batch["sample_id"][: len(some)]}
