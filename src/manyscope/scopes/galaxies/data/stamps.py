"""Prepared stamps, cut into batches."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manyscope.data.prepared import PreparedSamples
from manyscope.errors import DataError
from manyscope.scopes.galaxies.data.transforms import Transforms
from manyscope.tables.arrays import map_array
from manyscope.tables.whole import read_json

Batch = dict[str, Any]

STAMPS = "stamps.npy"
META = "stamps.json"
# Units of stamps that something depends on: how a picture is made of them, and how a query becomes one of them.
SKY_RMS = "rms of the sky"
GREY_LEVELS = "grey levels from -1 to 1"
FEATURE = "feature"


class StampData(PreparedSamples):
    """The prepared folder as training, validation and prediction batches.

    A batch is a dict: `stamps`, (n, bands, stamp_px, stamp_px) float32 in rms of the sky, for models that make views
    of their own; `images`, (n, *image_shape) float32, the stamps after the prepared transforms, for all others;
    `labels`, (n,) int64, the number of each sample's class in `classes`, or -1 where it is unknown, if there are
    classes; and `sample_id`, a list of as many ids or, in a padded batch, of fewer.

    Attributes:
        stamps: (samples, bands, stamp_px, stamp_px) float32, mapped: memory holds no more than what is looked at.
        classes: names, sorted; none without labels.
        unit: of the stamps.
        top_down: the first row of a stamp is the top of its picture, not the bottom.
        meta: the whole of stamps.json.

    Raises:
        DataError: a prepared file is missing, broken, or of another number of samples than samples.parquet.
    """

    def __init__(self, prepared: Path) -> None:
        super().__init__(prepared)
        meta = read_json(prepared / META)
        self.transforms = Transforms(meta["transforms"])
        self.shape: tuple[int, int, int] = tuple(meta["image_shape"])
        self.bands: list[str] = meta["bands"]
        self.unit: str = meta["unit"]
        self.top_down: bool = meta["top_down"]
        self.classes: list[str] = meta["classes"]
        self.meta: dict[str, Any] = meta
        self._label: str = meta["label"]
        path = prepared / STAMPS
        self.stamps = map_array(path)
        if len(self.stamps) != len(self.samples):
            raise DataError(
                f"{len(self.stamps)} stamps for {len(self.samples)} samples",
                place=path,
                remedy="run the stage 'preprocess' again",
            )

    @cached_property
    def labels(self) -> np.ndarray:
        """The number of each sample's class, (samples,) int64; -1 where it is unknown."""
        if not self.classes:
            return np.full(len(self.samples), -1)
        number = {name: i for i, name in enumerate(self.classes)}
        names = self.samples[self._label].cast(pl.String)
        return np.array([number.get(name, -1) for name in names], np.int64)

    def batch(self, rows: np.ndarray) -> Batch:
        """The samples at these positions, in this order; positions may repeat."""
        import torch

        stamps = torch.from_numpy(np.ascontiguousarray(self.stamps[rows]))
        batch = {"stamps": stamps, "images": self.transforms(stamps), "sample_id": self.ids(rows)}
        if self.classes:
            batch["labels"] = torch.from_numpy(self.labels[rows])
        return batch

    def images(self, rows: np.ndarray) -> np.ndarray:
        """The images at these positions as a model sees them, (n, *shape) float32."""
        import torch

        return self.transforms(torch.from_numpy(np.ascontiguousarray(self.stamps[rows]))).numpy()
