"""A small picture of each cell, with its outline."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyscope.scopes.cells.masks import MASKS, read_masks
from manyscope.scopes.cells.objects import crop

if TYPE_CHECKING:
    import polars as pl
    from PIL.Image import Image

_SIDE_PX = 96
_KEPT = 8  # images in memory at once; the objects of one image mostly follow each other


def thumbnails(prepared: Path, files: Path, objects: pl.DataFrame) -> Iterator[Image | None]:
    """The picture of each object in these rows of the predictions.

    Raises:
        DataError: the image or the masks of a sample are missing.
    """
    from manyscope.scopes.cells.data.images import CellImages

    data = CellImages(prepared)
    row = {name: number for number, name in enumerate(data.samples["sample_id"])}

    @lru_cache(_KEPT)
    def opened(sample_id: str) -> tuple[np.ndarray, np.ndarray]:
        return data.image(row[sample_id]), read_masks(files / MASKS, sample_id)

    for sample_id, label in objects.select("sample_id", "label").iter_rows():
        image, masks = opened(sample_id)
        yield crop(image, masks, label, _SIDE_PX)
