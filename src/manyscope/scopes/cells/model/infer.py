"""From trained weights to objects: every cell of every image, with its mask, its measures and its vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from manyscope.errors import DataError
from manyscope.log import progress
from manyscope.scopes.cells.masks import MASKS, write_masks
from manyscope.scopes.cells.model.segment import Segmenter
from manyscope.scopes.cells.objects import measure, object_ids, pool, postprocess
from manyscope.tables.predictions import Objects
from manyscope.training.memory import keep_freed_memory

if TYPE_CHECKING:
    from manyscope.scopes.cells.data.images import CellImages
    from manyscope.scopes.cells.model.networks import CellSegmenter
    from manyscope.scopes.cells.settings import CellsInfer, CellsSettings


def predict(
    settings: CellsSettings, data: CellImages, model: CellSegmenter, sample_ids: Sequence[str], files: Path
) -> Iterator[Objects]:
    """Segment the named images, write the masks of each under `files/masks`, and give its cells as objects.

    Raises:
        DataError: a sample is unknown, or the masks cannot be written.
        ManyscopeError: infer's tiles or arguments do not fit the model.
    """
    keep_freed_memory()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    segmenter = Segmenter.of(model, settings.model, settings.infer)
    rows = data.rows_of(sample_ids)
    for sample_id, row in zip(progress(sample_ids, "infer", len(sample_ids)), rows, strict=True):
        image = data.image(int(row))
        masks, vectors, foreground = described(segmenter, settings.infer, image)
        write_masks(files / MASKS, sample_id, masks, settings.infer.masks, image)
        columns = measure(masks, image, foreground)
        ids = object_ids(sample_id, masks)
        yield Objects([sample_id], [sample_id] * len(ids), ids, vectors, columns)


def described(segmenter: Segmenter, infer: CellsInfer, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Args:
        image: (height, width) uint8.

    Returns:
        masks (height, width) uint32 of the objects 1..K, their vectors (K, 256 times the poolings) float32, and how
        likely each pixel is of a cell (height, width) float32.
    """
    found = segmenter(image)
    smallest = int(segmenter.model.chosen[3]) if infer.min_area_px is None else infer.min_area_px
    masks = postprocess(found.masks, smallest, infer.border_margin_px, infer.largest)
    embedded = found.embedded
    return masks, pool(embedded.features, masks, embedded.stride_px, infer.pooling), found.foreground


def embed_image(settings: CellsSettings, data: CellImages, model: CellSegmenter, query: Path | str) -> np.ndarray:
    """The vector of the cell nearest to the centre of an image file, (dimensions,) float32.

    Raises:
        DataError: the file is no image that the scope can read, or no cell is found in it.
    """
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    image = data.normalised(Path(query))
    masks, vectors, _ = described(Segmenter.of(model, settings.model, settings.infer), settings.infer, image)
    if not len(vectors):
        raise DataError("no cell is found in this image", place=Path(query), remedy="give an image that shows a cell")
    y, x = np.nonzero(masks)
    middle = [(side - 1) / 2 for side in masks.shape]
    nearest = np.hypot(y - middle[0], x - middle[1]).argmin()
    return vectors[masks[y[nearest], x[nearest]] - 1]
