"""Classical segmentation of cells, as good as a choice of its parameters on labelled images can make it.

Every method smooths the image, takes what is darker than a threshold for cells, opens it, fills holes or does not, and
cuts it at the watersheds of its distance transform, one basin for each maximum of some height (Vincent and Soille,
IEEE PAMI 13, 583, 1991; Soille, Morphological Image Analysis, 2004, chapters 6 and 9). The methods differ in the
threshold:

- otsu_watershed: that of Otsu (IEEE SMC 9, 62, 1979) for the whole image;
- flat_otsu_watershed: the same after division by the light, which a wide Gaussian estimates;
- local_threshold: the mean of a square window about each pixel.

All lengths are in units of the typical cell of the labelled images, so that one grid serves images of any scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import polars as pl
from scipy import ndimage

from manyscope.errors import DataError
from manyscope.log import logger, progress
from manyscope.scopes.cells.data.normalize import cells_are_bright, invert
from manyscope.scopes.cells.evaluate.matching import match
from manyscope.scopes.cells.objects import minor_axes

_FIRST = ("shift", "window", "fill_holes")
_FEWEST_IMAGES, _MOST_IMAGES = 2, 8
_MOST_PX = 8 * 512 * 512  # of all images that parameters are chosen on: what is tried takes some 0.2 µs a pixel


@dataclass(frozen=True)
class TypicalCell:
    """Medians of the widths (minor axes) and of the areas, and whether cells are brighter than what surrounds them in
    most images, which happens where the settings keep every image as it is."""

    width_px: float
    area_px: float
    bright: bool

    @classmethod
    def of(cls, images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> TypicalCell:
        """
        Args:
            images, labels: as of `choose`.
        """
        width = np.concatenate([minor_axes(cells) for cells in labels])
        area = np.concatenate([np.unique(cells[cells > 0], return_counts=True)[1] for cells in labels])
        bright = [cells_are_bright(image, cells) for image, cells in zip(images, labels, strict=True)]
        return cls(max(1.0, float(np.median(width))), float(np.median(area)), 2 * sum(bright) > len(bright))


@dataclass(frozen=True)
class Parameters:
    """What a method can be told.

    Attributes:
        shift: added to the threshold, in standard deviations of the smoothed image.
        window: width of the square, or standard deviation of the wide Gaussian, in widths of a cell.
        fill_holes: whether what a cell encloses is cell.
        marker_height: of the maxima of the distance transform that become cells, in widths of a cell.
        opening: radius of the disk, in widths of a cell.
        min_area: of what is kept, in areas of a cell.
        max_area: of what is kept, in areas of a cell.
        smoothing: standard deviation of the Gaussian, in widths of a cell.
    """

    shift: float = 0.0
    window: float = 1.5
    fill_holes: bool = True
    marker_height: float = 0.07
    opening: float = 0.1
    min_area: float = 0.3
    max_area: float = math.inf
    smoothing: float = 0.05


GRID: Mapping[str, tuple[float | bool, ...]] = {
    "shift": (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6),
    "window": (1.0, 1.5, 2.2, 4.0),
    "fill_holes": (False, True),
    "marker_height": (0.03, 0.07, 0.15),
    "opening": (0.0, 0.1, 0.2),
    "min_area": (0.1, 0.3, 0.5),
    "max_area": (3.0, 6.0, math.inf),
    "smoothing": (0.05, 0.1),
}


def segment(method: str, image: np.ndarray, parameters: Parameters, cell: TypicalCell) -> np.ndarray:
    """The cells that a method finds.

    Args:
        method: a key of `METHODS`.
        image: (h, w) uint8, 0 is padding.

    Returns:
        (h, w) uint32, 0 is background; labels may have gaps.
    """
    seen = image > 0
    if not seen.any():
        return np.zeros(image.shape, np.uint32)
    dark = (invert(image) if cell.bright else image).astype(np.float32)
    if not seen.all():
        dark[~seen] = np.median(dark[seen])  # padding as it is would be the darkest cell
    sigma_px = parameters.smoothing * cell.width_px
    smooth = ndimage.gaussian_filter(dark, sigma_px)
    inside = METHODS[method](smooth, parameters.window * cell.width_px, parameters.shift) & seen
    inside = ndimage.binary_opening(inside, _disk(parameters.opening * cell.width_px))
    if parameters.fill_holes:
        inside = ndimage.binary_fill_holes(inside) & seen
    if not inside.any():
        return np.zeros(image.shape, np.uint32)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside).astype(np.float32), sigma_px)
    basins = _basins(depth, inside, parameters.marker_height * cell.width_px)
    area = np.bincount(basins.ravel())
    kept = (area >= parameters.min_area * cell.area_px) & (area <= parameters.max_area * cell.area_px)
    return np.where(kept[basins], basins, 0).astype(np.uint32)


@dataclass(frozen=True)
class Choice:
    """The parameters of a method that reach the highest mean mSA on some images."""

    method: str
    parameters: Parameters
    cell: TypicalCell
    images: int
    msa: float

    def segment(self, image: np.ndarray) -> np.ndarray:
        return segment(self.method, image, self.parameters, self.cell)

    def row(self) -> dict[str, object]:
        """For a table, with lengths and areas in pixels."""
        p, width = self.parameters, self.cell.width_px
        return {
            "method": self.method,
            "chosen_on_images": self.images,
            "msa_there": self.msa,
            "smoothing_px": p.smoothing * width,
            "window_px": p.window * width if "window" in _grid(self.method) else None,
            "threshold_shift_sd": p.shift,
            "opening_px": p.opening * width,
            "fill_holes": p.fill_holes,
            "marker_height_px": p.marker_height * width,
            "min_area_px": p.min_area * self.cell.area_px,
            "max_area_px": p.max_area * self.cell.area_px if math.isfinite(p.max_area) else None,
        }


def choose(
    methods: Sequence[str], images: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> tuple[dict[str, Choice], pl.DataFrame]:
    """Choose each method's parameters from `GRID`: threshold and holes together, from there one parameter after
    another, until none gets better.

    Args:
        images: (h, w) uint8 each, none of them of the test split.
        labels: (h, w) integers each, with at least one cell among them all.

    Returns:
        By method, and as a table of one row for each.
    """
    cell = TypicalCell.of(images, labels)
    logger.info("typical cell: %.0f px wide, %.0f px in area", cell.width_px, cell.area_px)
    found = {}
    for method in progress(methods, "choose the baselines' parameters"):
        found[method] = _choose(method, images, labels, cell)
        told = ", ".join(f"{k} {v:.3g}" for k, v in found[method].row().items() if isinstance(v, float))
        logger.info("%s: %s, holes %s", method, told, "filled" if found[method].parameters.fill_holes else "kept")
    return found, pl.DataFrame([choice.row() for choice in found.values()], infer_schema_length=None)


def some_images(sizes_px: Sequence[int], cells: Sequence[int], seed: int) -> np.ndarray:
    """A seeded choice of images that is not too much work, (n,) increasing positions.

    Args:
        sizes_px: pixels of each image.
        cells: cells of each image, at least 1. An image of many is drawn more often: it tells more, and the first
            frames of a growing colony say little of how its later ones are to be cut.

    Raises:
        DataError: there is no image.
    """
    if not len(sizes_px):
        raise DataError(
            "no training or validation image has labelled cells, on which the baselines' parameters could be chosen",
            remedy="label some of them",
        )
    weight = np.asarray(cells) / np.sum(cells)
    count = min(_MOST_IMAGES, len(sizes_px))
    order = np.random.default_rng(seed).choice(len(sizes_px), count, replace=False, p=weight)
    affordable = int((np.cumsum(np.asarray(sizes_px)[order]) <= _MOST_PX).sum())
    return np.sort(order[: max(_FEWEST_IMAGES, affordable)])


def _choose(method: str, images: Sequence[np.ndarray], labels: Sequence[np.ndarray], cell: TypicalCell) -> Choice:
    tried: dict[Parameters, float] = {}

    def msa(parameters: Parameters) -> float:
        if parameters not in tried:
            found = (segment(method, image, parameters, cell) for image in images)
            pairs = zip(labels, found, strict=True)
            tried[parameters] = float(np.mean([match(true, mine).accuracy.mean() for true, mine in pairs]))
        return tried[parameters]

    # What is taken for cell depends on three parameters at once: one after another they may end far from the best.
    grid = _grid(method)
    first = {name: grid[name] for name in _FIRST if name in grid}
    starts = [Parameters(**dict(zip(first, values, strict=True))) for values in product(*first.values())]  # type: ignore[arg-type]
    best, before = max(starts, key=msa), None
    while best != before:
        before = best
        for name, values in grid.items():
            best = max([best, *(replace(best, **{name: value}) for value in values)], key=msa)  # type: ignore[arg-type]
    return Choice(method, best, cell, len(images), msa(best))


def _grid(method: str) -> Mapping[str, tuple[float | bool, ...]]:
    return {name: values for name, values in GRID.items() if name != "window" or method in _WITH_WINDOW}


def _below_otsu(smooth: np.ndarray, _window_px: float, shift: float) -> np.ndarray:
    from skimage.filters import threshold_otsu

    return smooth < threshold_otsu(smooth) + shift * smooth.std()


def _below_otsu_of_flat(smooth: np.ndarray, window_px: float, shift: float) -> np.ndarray:
    light = ndimage.gaussian_filter(smooth, window_px, truncate=2.5).clip(1)  # of 255: nothing is divided by zero
    return _below_otsu(smooth / light, window_px, shift)


def _below_mean_of_window(smooth: np.ndarray, window_px: float, shift: float) -> np.ndarray:
    mean = ndimage.uniform_filter(smooth, 2 * round(window_px / 2) + 1)
    return smooth < mean + shift * smooth.std()


def _basins(depth: np.ndarray, inside: np.ndarray, height: float) -> np.ndarray:
    """Watershed basins of the maxima that rise by `height` above the highest way to a higher one: those of the maxima
    that are lower are merged with their neighbours, so that no grey-scale reconstruction, which is slow, is needed.

    Args:
        depth: (h, w) float.
        inside: (h, w) bool, what is to be cut.

    Returns:
        (h, w) int64, 0 outside.
    """
    from skimage.morphology import local_maxima
    from skimage.segmentation import watershed

    markers, count = ndimage.label(local_maxima(depth) & inside, np.ones((3, 3)))
    basins = watershed(-depth, markers, mask=inside)
    peak = np.zeros(count + 1)
    peak[markers[markers > 0]] = depth[markers > 0]
    into = list(range(count + 1))

    def merged(basin: int) -> int:
        while into[basin] != basin:
            basin = into[basin]
        return basin

    for one, other, pass_height in _passes(depth, basins):
        low, high = sorted((merged(one), merged(other)), key=lambda basin: peak[basin])
        if peak[low] - pass_height < height:
            into[low] = high
    kept = np.array([merged(basin) for basin in range(count + 1)])
    kept[peak[kept] < height] = 0
    return kept[basins]


def _passes(depth: np.ndarray, basins: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Pairs of basins that touch, with the highest pass between them, from the highest on."""
    pairs, heights, count = [], [], int(basins.max()) + 1
    for here, there in (
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
    ):
        a, b = basins[here].astype(np.int64), basins[there].astype(np.int64)
        touch = (a != b) & (a > 0) & (b > 0)
        pairs.append(np.minimum(a, b)[touch] * count + np.maximum(a, b)[touch])
        heights.append(np.minimum(depth[here], depth[there])[touch])
    pair, height = np.concatenate(pairs), np.concatenate(heights)
    order = np.argsort(-height, kind="stable")
    first = np.sort(np.unique(pair[order], return_index=True)[1])  # of each pair, the highest
    for at in order[first]:
        yield *divmod(int(pair[at]), count), float(height[at])


def _disk(radius_px: float) -> np.ndarray:
    """Offsets within a radius, which is rounded; of radius 0, the centre alone, which opens nothing."""
    r = round(radius_px)
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    return y * y + x * x <= r * r + 0.5


METHODS: Mapping[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "otsu_watershed": _below_otsu,
    "flat_otsu_watershed": _below_otsu_of_flat,
    "local_threshold": _below_mean_of_window,
}
_WITH_WINDOW = ("flat_otsu_watershed", "local_threshold")
