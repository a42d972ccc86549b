"""What is kept of an image's masks, and what is said of each cell: its shape, its features, its picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from manyscope.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

_OUTLINE = (230, 159, 0)  # orange of Okabe and Ito, Color Universal Design (2008)
_CHANNELS = 32  # pooled at a time: all of them together would take gigabytes of a large image
_PROPERTIES = (
    *("label", "area", "centroid", "bbox", "axis_major_length", "axis_minor_length", "eccentricity", "perimeter"),
    *("solidity", "intensity_mean", "intensity_std"),
)


def object_ids(sample_id: str, masks: np.ndarray) -> list[str]:
    """The ids of the cells of a sample, in the order of their labels."""
    return [f"{sample_id}/{label}" for label in np.unique(masks) if label]


def postprocess(masks: np.ndarray, min_area_px: int, border_margin_px: int, largest: int | None) -> np.ndarray:
    """Drop small cells, then those near the border, then all but the largest; number the rest 1 … K in their order.

    Args:
        masks: (h, w) integers not below 0, 0 is background.
        border_margin_px: cells with a pixel nearer than this to the border are dropped; those that touch it have a
            distance of 0. With 0 none is dropped.
        largest: most cells that are kept; of two of the same area the one with the smaller label. None keeps all.

    Returns:
        (h, w) uint32.
    """
    label, compact, area = np.unique(masks, return_inverse=True, return_counts=True)
    keep = (label > 0) & (area >= min_area_px)
    if border_margin_px:
        m, near = border_margin_px, np.ones(masks.shape, bool)
        near[m:-m, m:-m] = False
        keep[np.unique(compact.reshape(masks.shape)[near])] = False
    if largest is not None:
        kept = np.flatnonzero(keep)
        keep[kept[np.argsort(-area[kept], kind="stable")[largest:]]] = False
    number = np.where(keep, np.cumsum(keep), 0).astype(np.uint32)
    return number[compact].reshape(masks.shape)


def measure(masks: np.ndarray, image: np.ndarray, confidence: np.ndarray) -> dict[str, np.ndarray]:
    """One value for each cell, in the order of the labels, as scikit-image's regionprops defines it.

    Args:
        masks: (h, w) integers not below 0, 0 is background.
        image: (h, w) uint8.
        confidence: (h, w) of each pixel.

    Returns:
        label; area_px; centroid_y_px, centroid_x_px; top_px, left_px, box_height_px, box_width_px of the bounding box;
        major_axis_px, minor_axis_px and eccentricity of the ellipse with the same second moments; perimeter_px;
        solidity, the share of the convex hull that is cell; mean_intensity, std_intensity in grey values; confidence,
        its mean; touches_border.
    """
    from skimage.measure import regionprops_table

    of_pixels = np.stack([image, confidence], axis=-1, dtype=np.float64)
    found = regionprops_table(masks, of_pixels, properties=_PROPERTIES, separator=" ")
    top, left, bottom, right = (found[f"bbox {i}"].astype(np.int64) for i in range(4))
    return {
        "label": found["label"].astype(np.int64),
        "area_px": found["area"].astype(np.int64),
        "centroid_y_px": found["centroid 0"],
        "centroid_x_px": found["centroid 1"],
        "top_px": top,
        "left_px": left,
        "box_height_px": bottom - top,
        "box_width_px": right - left,
        "major_axis_px": found["axis_major_length"],
        "minor_axis_px": found["axis_minor_length"],
        "eccentricity": found["eccentricity"],
        "perimeter_px": found["perimeter"],
        "solidity": found["solidity"],
        "mean_intensity": found["intensity_mean 0"],
        "std_intensity": found["intensity_std 0"],
        "confidence": found["intensity_mean 1"],
        "touches_border": (top == 0) | (left == 0) | (bottom == masks.shape[0]) | (right == masks.shape[1]),
    }


def minor_axes(masks: np.ndarray) -> np.ndarray:
    """The width of each cell: the minor axis in pixels of the ellipse with its second moments, (cells,)."""
    from skimage.measure import regionprops_table

    return regionprops_table(masks, properties=("axis_minor_length",))["axis_minor_length"]


def pool(features: np.ndarray, masks: np.ndarray, stride_px: float, pooling: Sequence[str]) -> np.ndarray:
    """The features of each cell, summed up: over the points of the feature grid that lie in it, or, for a cell that
    lies between the points, over the grid's fields that its pixels fall into, once for each pixel.

    Args:
        features: (channels, gh, gw); the field (i, j) stands for the pixels from (i, j) to (i + 1, j + 1) strides.
        masks: (h, w) integers not below 0, 0 is background.
        stride_px: pixels of the masks in a step of the grid.
        pooling: any of mean, std, max.

    Returns:
        (cells, channels * len(pooling)) float32, in the order of the labels; all channels of the first pooling first.
    """
    cells = _Cells.of(masks)
    channels, gh, gw = features.shape
    if not len(cells.label):
        return np.empty((0, channels * len(pooling)), np.float32)
    y, x = (((np.arange(n) + 0.5) * stride_px).astype(np.int64) for n in (gh, gw))
    y, x = y[y < masks.shape[0]], x[x < masks.shape[1]]  # the grid of a padded image is larger than the masks
    at_points = masks[np.ix_(y, x)]
    row, column = np.nonzero(at_points)
    member = np.searchsorted(cells.label, at_points[row, column])
    field = row * gw + column

    vanished = np.bincount(member, minlength=len(cells.label)) == 0
    of_pixel = np.repeat(np.arange(len(cells.label)), cells.area)
    some = cells.each(vanished)
    fy = np.minimum((cells.y[some] / stride_px).astype(np.int64), gh - 1)
    fx = np.minimum((cells.x[some] / stride_px).astype(np.int64), gw - 1)
    member, field = np.concatenate([member, of_pixel[some]]), np.concatenate([field, fy * gw + fx])

    order = np.argsort(member, kind="stable")
    field = field[order]
    count = np.bincount(member)
    first = np.cumsum(count) - count
    pooled = {how: np.empty((len(count), channels), np.float32) for how in pooling}
    flat = features.reshape(channels, gh * gw)
    for c in range(0, channels, _CHANNELS):
        values = flat[c : c + _CHANNELS, field]
        mean = np.add.reduceat(values, first, axis=1, dtype=np.float64) / count
        for how, into in pooled.items():
            if how == "mean":
                result = mean
            elif how == "max":
                result = np.maximum.reduceat(values, first, axis=1)
            else:
                squares = (values - np.repeat(mean, count, axis=1)) ** 2
                result = np.sqrt(np.add.reduceat(squares, first, axis=1) / count)
            into[:, c : c + _CHANNELS] = result.T
    return np.concatenate([pooled[how] for how in pooling], axis=1)


def crop(image: np.ndarray, masks: np.ndarray, label: int, size_px: int = 64, margin: float = 0.3) -> Image:
    """A square picture of a cell and what is around it, with the cell's outline.

    Args:
        image: (h, w) uint8.
        masks: (h, w) integers.
        size_px: width and height of the picture.
        margin: what is shown on each side of the cell, as a share of the longer side of its bounding box.

    Raises:
        DataError: no pixel has the label.
    """
    from PIL import Image as PillowImage

    inside = masks == label
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        raise DataError(f"there is no cell {label}", allowed=f"labels up to {masks.max(initial=0)}")
    box = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
    side = max(3, round(max(high - low for low, high in box) * (1 + 2 * margin)))
    window = tuple(
        _window((low + high) / 2, side, length) for (low, high), length in zip(box, image.shape, strict=True)
    )
    around = [(max(0, -low), max(0, low + side - length)) for low, length in zip(window, image.shape, strict=True)]
    here = tuple(slice(max(0, low), low + side) for low in window)
    # Cubic interpolation would leave rims that look like those of a cell.
    picture, shape = (
        PillowImage.fromarray(np.pad(pixels[here], around)).resize((size_px, size_px), how)
        for pixels, how in ((image, PillowImage.Resampling.BILINEAR), (inside, PillowImage.Resampling.NEAREST))
    )
    shown = np.repeat(np.asarray(picture)[..., None], 3, axis=2)
    shown[outline(np.asarray(shape))] = _OUTLINE
    return PillowImage.fromarray(shown)


def outline(masks: np.ndarray) -> np.ndarray:
    """Pixels of a cell that have another label, or none, above, below, left or right of them; (h, w) bool."""
    padded = np.pad(masks, 1)
    inner = padded[1:-1, 1:-1]
    sides = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (inner > 0) & np.logical_or.reduce([side != inner for side in sides])


def _window(centre: float, side: int, length: int) -> int:
    """Where a window of this side begins, about the centre; moved inside the image if it fits there."""
    start = round(centre - side / 2)
    return min(max(start, 0), length - side) if side <= length else (length - side) // 2


@dataclass(frozen=True)
class _Cells:
    """The pixels of all cells, one cell after another, each from top left to bottom right.

    Attributes:
        label: (cells,) increasing.
        area: (cells,) int64 pixels.
        pixel: (pixels,) positions in the flat image.
        y, x: (pixels,) their rows and columns.
    """

    label: np.ndarray
    area: np.ndarray
    pixel: np.ndarray
    y: np.ndarray
    x: np.ndarray

    @classmethod
    def of(cls, masks: np.ndarray) -> _Cells:
        pixel = np.flatnonzero(masks)
        of_pixel = masks.ravel()[pixel]
        order = np.argsort(of_pixel, kind="stable")
        label, area = np.unique(of_pixel, return_counts=True)
        pixel = pixel[order]
        return cls(label, area, pixel, *np.divmod(pixel, max(1, masks.shape[1])))

    def each(self, values: np.ndarray) -> np.ndarray:
        """A value of each cell, for each of its pixels."""
        return np.repeat(values, self.area)
