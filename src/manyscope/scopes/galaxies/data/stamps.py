"""Prepared stamps, cut into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manyscope.data.schedule import ShuffledSchedule
from manyscope.errors import DataError
from manyscope.scopes.galaxies.data.prepare import META, STAMPS
from manyscope.scopes.galaxies.data.transforms import Transforms
from manyscope.tables.samples import read_samples
from manyscope.tables.whole import read_json

Batch = dict[str, Any]


class StampData:
    """The prepared folder as training, validation and prediction batches.

    A batch is a dict: `stamps`, (n, bands, stamp_px, stamp_px) float32 in rms of the sky, for models that make views
    of their own; `images`, (n, *image_shape) float32, the stamps after the prepared transforms, for all others; and
    `sample_id`, a list of as many ids or, in a padded batch, of fewer.

    Raises:
        DataError: a prepared file is missing, broken, or of another number of samples than samples.parquet.
    """

    def __init__(self, prepared: Path) -> None:
        self.folder = prepared
        self.samples = read_samples(prepared / "samples.parquet")
        meta = read_json(prepared / META)
        self.transforms = Transforms(meta["transforms"])
        self.shape: tuple[int, int, int] = tuple(meta["image_shape"])
        self.bands: list[str] = meta["bands"]
        path = prepared / STAMPS
        try:
            self.stamps: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(
                f"not a readable array ({error})", place=path, remedy="run the stage 'preprocess' again"
            ) from error
        if len(self.stamps) != len(self.samples):
            raise DataError(
                f"{len(self.stamps)} stamps for {len(self.samples)} samples",
                place=path,
                remedy="run the stage 'preprocess' again",
            )

    def rows(self, split: str) -> np.ndarray:
        """Positions of a split's samples, (n,) int64, in the order of samples.parquet."""
        return np.flatnonzero((self.samples["split"] == split).to_numpy())

    @cached_property
    def train_rows(self) -> np.ndarray:
        return self.rows("train")

    @property
    def train_size(self) -> int:
        return len(self.train_rows)

    def train_schedule(self, batch_size: int, seed: int) -> ShuffledSchedule:
        return ShuffledSchedule(self.train_size, batch_size, seed)

    def train_batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        return self.batch(self.train_rows[np.asarray(indices, np.int64)])

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        rows = self.rows("validation")
        for first in range(0, len(rows), batch_size):
            yield self.batch(rows[first : first + batch_size])

    def predict_batches(self, sample_ids: Sequence[str], batch_size: int) -> Iterator[Batch]:
        """Batches of exactly `batch_size` rows: the last one repeats its first row beyond its ids, because the last
        digit of a matrix product may depend on the number of rows, and a shard must not change any digit.

        Raises:
            DataError: an id is unknown.
        """
        rows = self.rows_of(sample_ids)
        for first in range(0, len(rows), batch_size):
            some = rows[first : first + batch_size]
            padded = np.concatenate([some, np.full(batch_size - len(some), some[0])])
            yield self.batch(padded, real=len(some))

    def batch(self, rows: np.ndarray, real: int | None = None) -> Batch:
        """The samples at these positions; `real` of them carry an id."""
        import torch

        stamps = torch.from_numpy(np.ascontiguousarray(self.stamps[rows]))
        ids = self.samples["sample_id"].gather(rows[:real]).to_list()
        return {"stamps": stamps, "images": self.transforms(stamps), "sample_id": ids}

    def images(self, rows: np.ndarray) -> np.ndarray:
        """The images at these positions as a model sees them, (n, *shape) float32."""
        import torch

        return self.transforms(torch.from_numpy(np.ascontiguousarray(self.stamps[rows]))).numpy()

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
