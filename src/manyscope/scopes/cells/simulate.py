"""Simulated brightfield images: dark touching cells under uneven light, with a halo, debris and camera noise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyscope.errors import DataError
from manyscope.log import progress
from manyscope.scopes.cells.data.reading import read_note, write_tif
from manyscope.scopes.cells.data.sources import IMAGES, LABELS, Pair, pairs_by_name
from manyscope.settings.code import module_digest
from manyscope.tables.manifest import ManifestEntry

if TYPE_CHECKING:
    import polars as pl

    from manyscope.scopes.cells.settings import CellsDownload, SimulatedSettings

_TRIES = 20
_NEAREST, _TOUCHING = 0.80, (0.92, 1.05)  # distances of two centres, in sums of the radii
_AXIS_RATIO, _CONTRAST = (0.55, 1.0), (0.5, 1.4)
_OUTLINE_MODES, _OUTLINE_SPREAD = (2, 3, 4), 0.16
_MIN_AREA_PX = 40  # smaller rests of covered cells are dropped
_TEXTURE, _TEXTURE_PX = 0.25, 1.2
_SPECK_PX, _SPECK_DEPTH = 1.3, (4.0, 14.0)
_BLOB_PX, _BLOB_DEPTH, _BLOBS_PER_SPECK = 12.0, (150.0, 500.0), 0.08
_GAIN, _OFFSET, _READ_NOISE = 26_000, 1_200, 0.004


class Simulated:
    """The simulator as a source: raw/images/cells-NNNN.tif and raw/labels/cells-NNNN.tif."""

    def download(self, settings: CellsDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Draw the images that are not there yet. Each depends on (seed, number) alone; its files carry the settings
        that they were drawn with, and labels are written last."""
        drawn = settings.simulated
        for number in progress(range(drawn.count), "simulate"):
            name = f"cells-{number:04d}.tif"
            image_file, label_file = raw / IMAGES / name, raw / LABELS / name
            signature = _signature(settings.seed, number, drawn)
            if not read_note(label_file) == read_note(image_file) == signature:
                image, labels = simulate(drawn.size_px, np.random.SeedSequence((settings.seed, number)), drawn)
                write_tif(image_file, image, note=signature)
                write_tif(label_file, labels, note=signature, small=True)
            source = f"simulated, seed {settings.seed}, image {number}"
            yield ManifestEntry(f"{IMAGES}/{name}", source)
            yield ManifestEntry(f"{LABELS}/{name}", source)

    def pairs(self, settings: CellsDownload, raw: Path, manifest: pl.DataFrame) -> list[Pair]:
        """
        Raises:
            DataError: the manifest names no image.
        """
        return pairs_by_name(raw, manifest)

    def problems(self, settings: CellsDownload) -> Iterator[str]:
        yield from ()


def simulate(
    size_px: int, seed: int | np.random.SeedSequence, settings: SimulatedSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image; time and memory grow with its area.

    Light falls on the camera as the illumination times exp(-optical depth), after Beer and Lambert. The halo of a cell
    out of focus is a difference of two Gaussian blurs of its mask: bright outside its edge, dark inside.

    Returns:
        The image, (size_px, size_px) uint16 counts, cells darker than their surroundings; and the labels,
        (size_px, size_px) uint16, cells 1…K of at least 40 px, 0 is background.

    Raises:
        DataError: the settings draw no cell, or more than 65,535.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    labels, depth = _draw(rng, size_px, *_place(rng, size_px, settings))
    texture = gaussian_filter(_gauss(rng, size_px), _TEXTURE_PX)
    depth *= settings.absorption * (1 + _TEXTURE / texture.std() * texture)
    debris = _specks(rng, size_px, settings.debris_per_px2, _SPECK_PX, _SPECK_DEPTH)
    debris += _specks(rng, size_px, settings.debris_per_px2 * _BLOBS_PER_SPECK, _BLOB_PX, _BLOB_DEPTH)
    light = np.exp(-gaussian_filter(depth, 0.6 * settings.defocus_px) - debris)
    mask = (labels > 0).astype(np.float32)
    wide, narrow = (gaussian_filter(mask, factor * settings.defocus_px) for factor in (2.2, 0.8))
    light += 2 * settings.halo * (wide - narrow)
    light = light.clip(0) * _illumination(rng, size_px, settings.illumination)
    light += _gauss(rng, size_px) * settings.noise * np.sqrt(light.clip(0.05))
    light += _gauss(rng, size_px) * _READ_NOISE
    return (light * _GAIN + _OFFSET).clip(0, 65_535).astype(np.uint16), labels


def _place(
    rng: np.random.Generator, size_px: int, settings: SimulatedSettings
) -> tuple[list[tuple[float, float]], list[float]]:
    """Centres (y, x) and mean radii of cells, some beside an earlier one; none is nearer to another than allowed.

    A cell is compared with those of the neighbouring squares of a grid only, as wide as two cells can touch.
    """
    square = 2 * settings.radius_max_px
    centres: list[tuple[float, float]] = []
    radii: list[float] = []
    grid: dict[tuple[int, int], list[int]] = {}
    for _ in range(max(2, int(rng.poisson(settings.cells_per_px2 * size_px**2)))):
        radius = rng.uniform(settings.radius_min_px, settings.radius_max_px)
        for _ in range(_TRIES):
            if centres and rng.random() < settings.cluster_fraction:
                other = int(rng.integers(len(centres)))
                distance = (radii[other] + radius) * rng.uniform(*_TOUCHING)
                angle = rng.uniform(0, 2 * math.pi)
                y = centres[other][0] + distance * math.sin(angle)
                x = centres[other][1] + distance * math.cos(angle)
            else:
                y, x = rng.uniform(0, size_px, 2).tolist()
            if not (0 <= y < size_px and 0 <= x < size_px):
                continue
            row, column = int(y // square), int(x // square)
            near = (j for i in (-1, 0, 1) for k in (-1, 0, 1) for j in grid.get((row + i, column + k), ()))
            if all(math.dist((y, x), centres[j]) > _NEAREST * (radius + radii[j]) for j in near):
                grid.setdefault((row, column), []).append(len(centres))
                centres.append((y, x))
                radii.append(radius)
                break
    return centres, radii


def _draw(
    rng: np.random.Generator, size_px: int, centres: list[tuple[float, float]], radii: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, uint16, and optical depth relative to the mean, float32, both (size_px, size_px).

    A cell is an ellipse whose outline waves. A pixel belongs to the cell in which it is nearest to the middle, as a
    share of the way to the outline: so cells touch, and none covers another.
    """
    share = np.full((size_px, size_px), np.inf, np.float32)
    owner = np.zeros((size_px, size_px), np.int32)
    depth = np.zeros((size_px, size_px), np.float32)
    for number, ((y, x), radius) in enumerate(zip(centres, radii, strict=True), 1):
        reach = math.ceil(1.7 * radius) + 2
        top, left = max(0, int(y) - reach), max(0, int(x) - reach)
        window = np.s_[top : min(size_px, int(y) + reach), left : min(size_px, int(x) + reach)]
        dy, dx = np.ogrid[window]
        dy, dx = (dy - y).astype(np.float32), (dx - x).astype(np.float32)
        angle = rng.uniform(0, math.pi)
        along = math.cos(angle) * dx + math.sin(angle) * dy
        across = (math.cos(angle) * dy - math.sin(angle) * dx) / rng.uniform(*_AXIS_RATIO)
        around = np.arctan2(across, along)
        outline = np.ones_like(along)
        for mode in _OUTLINE_MODES:
            wave, phase = rng.normal(0, _OUTLINE_SPREAD / mode), rng.uniform(0, 2 * math.pi)
            outline += np.float32(wave) * np.cos(mode * around + np.float32(phase))
        here = np.hypot(along, across) / (radius * outline)
        inside = (here < 1) & (here < share[window])
        share[window][inside] = here[inside]
        owner[window][inside] = number
        nucleus = 0.35 * np.exp(-((along - 0.2 * radius) ** 2 + across**2) / (2 * (0.35 * radius) ** 2))
        profile = 0.45 + 0.55 * np.sqrt((1 - here[inside] ** 2).clip(0)) + nucleus[inside]
        depth[window][inside] = rng.uniform(*_CONTRAST) * profile
    large = np.bincount(owner.ravel(), minlength=len(centres) + 1) >= _MIN_AREA_PX
    large[0] = False
    if not 0 < large.sum() <= 65_535:
        raise DataError(
            f"{large.sum()} cells of {_MIN_AREA_PX} px or more were drawn",
            place="download.simulated",
            allowed="1 to 65,535 in an image",
            remedy="change cells_per_px2 or the radii",
        )
    labels = np.where(large, large.cumsum(), 0).astype(np.uint16)[owner]
    depth[labels == 0] = 0
    return labels, depth


def _specks(
    rng: np.random.Generator, size_px: int, per_px2: float, sigma_px: float, depth: tuple[float, float]
) -> np.ndarray:
    """Optical depth of blurred points, (size_px, size_px) float32; `depth` is the range of a point's integral."""
    from scipy.ndimage import gaussian_filter

    count = int(rng.poisson(per_px2 * size_px**2))
    points = np.zeros((size_px, size_px), np.float32)
    np.add.at(points, tuple(rng.integers(size_px, size=(2, count))), rng.uniform(*depth, count))
    return gaussian_filter(points, sigma_px)


def _illumination(rng: np.random.Generator, size_px: int, unevenness: float) -> np.ndarray:
    """A tilted plane and a vignette, 1 in the middle, (size_px, size_px) float32."""
    y, x = np.ogrid[-1 : 1 : size_px * 1j, -1 : 1 : size_px * 1j]
    angle, strength = rng.uniform(0, 2 * math.pi), unevenness * rng.uniform(0.6, 1.0)
    field = 1 + strength * (0.6 * (math.cos(angle) * x + math.sin(angle) * y) - 0.5 * (x**2 + y**2))
    return field.astype(np.float32)


def _gauss(rng: np.random.Generator, size_px: int) -> np.ndarray:
    return rng.standard_normal((size_px, size_px), np.float32)


def _signature(seed: int, number: int, settings: SimulatedSettings) -> str:
    """What decides on the content of an image, this module's source too; not the count."""
    values = settings.model_dump(mode="json", exclude={"count"})
    return json.dumps({"code": module_digest(__name__), "seed": seed, "number": number, **values}, sort_keys=True)
