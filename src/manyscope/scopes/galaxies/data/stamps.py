"""Prepared stamps, cut into batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from manyscope.data.prepared import PreparedSamples
from manyscope.errors import DataError
from manyscope.scopes.galaxies.data.prepare import META, STAMPS
from manyscope.scopes.galaxies.data.transforms import Transforms
from manyscope.tables.arrays import map_array
from manyscope.tables.whole import read_json

Batch = dict[str, Any]


class StampData(PreparedSamples):
    """The prepared folder as training, validation and prediction batches.

    A batch is a dict: `stamps`, (n, bands, stamp_px, stamp_px) float32 in rms of the sky, for models that make views
    of their own; `images`, (n, *image_shape) float32, the stamps after the prepared transforms, for all others; and
    `sample_id`, a list of as many ids or, in a padded batch, of fewer.

    Raises:
        DataError: a prepared file is missing, broken, or of another number of samples than samples.parquet.
    """

    def __init__(self, prepared: Path) -> None:
        super().__init__(prepared)
        meta = read_json(prepared / META)
        self.transforms = Transforms(meta["transforms"])
        self.shape: tuple[int, int, int] = tuple(meta["image_shape"])
        self.bands: list[str] = meta["bands"]
        path = prepared / STAMPS
        self.stamps = map_array(path)
        if len(self.stamps) != len(self.samples):
            raise DataError(
                f"{len(self.stamps)} stamps for {len(self.samples)} samples",
                place=path,
                remedy="run the stage 'preprocess' again",
            )

    def batch(self, rows: np.ndarray) -> Batch:
        import torch

        stamps = torch.from_numpy(np.ascontiguousarray(self.stamps[rows]))
        return {"stamps": stamps, "images": self.transforms(stamps), "sample_id": self.ids(rows)}

    def images(self, rows: np.ndarray) -> np.ndarray:
        """The images at these positions as a model sees them, (n, *shape) float32."""
        import torch

        return self.transforms(torch.from_numpy(np.ascontiguousarray(self.stamps[rows]))).numpy()
