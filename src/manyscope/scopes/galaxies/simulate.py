"""Simulated galaxies: five morphological classes and five kinds of injected anomalies, in three bands.

Light follows Sérsic profiles; position angle, size, flux, colour, noise and the place of the centre within its pixel
are random, so that no single pixel gives a class away. Every image depends on (seed, index) alone, but for the last
digit of float32: vector instructions treat the ends of an array on their own. The files are of float16 and of fixed
chunks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.log import progress
from manyscope.scopes.galaxies.data.sources import Cutouts, middle
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.parquet import read_metadata, read_table, write_table
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.settings import GalaxiesDownload, GalaxiesPreprocess, SimulatedSettings
from manyscope.settings.code import module_digest

CLASSES = ("elliptical", "disc", "spiral", "edge_on", "merger")
ANOMALIES = ("arc", "trail", "double_nucleus", "colour_swap", "cosmic_ray")
NORMAL = "none"
BANDS = ("blue", "green", "red")

_CHUNK = 500
_PSF_SIGMA_PX = 1.1
_OLD, _YOUNG = np.array([0.75, 1.0, 1.25]), np.array([1.15, 1.0, 0.85])  # light in blue, green, red
_DRAWS = 32
_KEY = "manyscope.simulated"


class Simulated:
    """The simulator as a source. Raw data are pairs of files, an array of images and a table of what they show."""

    def download(self, settings: GalaxiesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Draw the chunks that are not there yet. The table of a chunk is written last and carries its settings: a
        chunk with the right table is whole."""
        drawn = settings.simulated
        source = f"simulated, seed {settings.seed}"
        for first in progress(range(0, drawn.count, _CHUNK), "simulate"):
            images, table = raw / f"images-{first:07d}.npy", raw / f"labels-{first:07d}.parquet"
            count = min(_CHUNK, drawn.count - first)
            signature = _signature(settings.seed, first, count, drawn)
            if not _is_done(images, table, signature):
                pixels, labels = simulate(settings.seed, np.arange(first, first + count), drawn)
                with whole_file(images) as partial, partial.open("wb") as file:
                    np.save(file, pixels.astype(np.float16))
                write_table(table, labels, {_KEY: signature})
            yield ManifestEntry(images.name, source)
            yield ManifestEntry(table.name, source)

    def cut(self, settings: GalaxiesPreprocess, raw: Path, manifest: pl.DataFrame) -> Cutouts:
        """The middles of the images, memory-mapped.

        Raises:
            DataError: a file is missing, broken or of another shape.
        """
        done = manifest.filter(pl.col("state") == "done")["path"]
        names = [name for name in done if name.startswith("labels-")]
        if not names:
            raise DataError("the data set is empty", place=raw, remedy="run the stage 'download'")
        tables = [read_table(raw / name, {"sample_id": pl.String, "class": pl.String}) for name in names]
        arrays = [
            open_images(raw / name.replace("labels-", "images-").replace(".parquet", ".npy"), len(table))
            for name, table in zip(names, tables, strict=True)
        ]
        chunks = (middle(array, settings.stamp_px, raw).astype(np.float32) for array in arrays)
        table = pl.concat(tables).with_columns(group=pl.col("sample_id"))
        return Cutouts(chunks, table, BANDS, note={"classes": CLASSES, "anomalies": ANOMALIES})


def open_images(path: Path, count: int) -> np.ndarray:
    """A memory-mapped array of images, (count, 3, height, width) float16: its rounding lies far below the noise.

    Raises:
        DataError: missing, broken, or of another shape or type.
    """
    try:
        images: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"not a readable array ({error})", place=path, remedy="delete it and download again") from error
    if images.dtype != np.float16 or images.ndim != 4 or images.shape[:2] != (count, len(BANDS)):
        raise DataError(
            f"the array has shape {images.shape} and type {images.dtype}",
            place=path,
            allowed=f"({count}, {len(BANDS)}, height, width), float16",
        )
    return images


def simulate(seed: int, indices: np.ndarray, settings: SimulatedSettings) -> tuple[np.ndarray, pl.DataFrame]:
    """Draw the galaxies of these numbers.

    Returns:
        Images, (n, 3, stamp_px, stamp_px) float32, in rms of the sky, the centre on pixel stamp_px // 2; and a table:
        sample_id, class, anomaly ("none" for most), snr, half_light_radius (px, of the main component before
        blurring), axis_ratio (of the main component).
    """
    from scipy.ndimage import gaussian_filter

    rngs = [np.random.default_rng((seed, int(i))) for i in indices]
    u = np.stack([rng.random(_DRAWS) for rng in rngs])
    gauss = np.stack([rng.standard_normal(2) for rng in rngs])
    kind = (u[:, 0] * len(CLASSES)).astype(int)
    odd = np.where(u[:, 1] < settings.anomaly_fraction, (u[:, 2] * len(ANOMALIES)).astype(int), -1)

    galaxies = _Galaxies(kind, u[:, 3:], gauss, settings)
    light = galaxies.draw()
    for row in np.flatnonzero(odd >= 0):
        _inject(light[row], ANOMALIES[odd[row]], u[row, 24:])
    light = gaussian_filter(light, (0, 0, _PSF_SIGMA_PX, _PSF_SIGMA_PX), truncate=3)
    for image, rng in zip(light, rngs, strict=True):
        image += rng.standard_normal(image.shape, np.float32)
    for row in np.flatnonzero(odd == ANOMALIES.index("cosmic_ray")):  # hits the detector, so the optics do not blur it
        _hit(light[row], u[row, 24:], rngs[row])
    labels = pl.DataFrame(
        {
            "sample_id": [f"sim-{i:06d}" for i in indices],
            "class": [CLASSES[k] for k in kind],
            "anomaly": [ANOMALIES[k] if k >= 0 else NORMAL for k in odd],
            "snr": galaxies.snr.astype(np.float32),
            "half_light_radius": galaxies.radius.astype(np.float32),
            "axis_ratio": galaxies.ratio[0].astype(np.float32),
        }
    )
    return light, labels


class _Galaxies:
    """Parameters of n galaxies, each of two components, from numbers u that are uniform in [0, 1)."""

    def __init__(self, kind: np.ndarray, u: np.ndarray, gauss: np.ndarray, settings: SimulatedSettings) -> None:
        self.size = settings.stamp_px
        is_a = [kind == k for k in range(len(CLASSES))]
        elliptical, _, spiral, edge_on, merger = is_a

        def between(column: int, low: float, high: float) -> np.ndarray:
            return low + u[:, column] * (high - low)

        def by_class(*values: np.ndarray | float) -> np.ndarray:
            return np.select(is_a, [np.broadcast_to(v, kind.shape) for v in values])

        scale = np.exp(math.log(3.6) + 0.25 * gauss[:, 0]) * self.size / 48
        angle = between(0, 0, math.pi)
        bulge = between(1, 0.05, 0.4)  # share of the light
        mass = between(2, 0.25, 0.9)  # of the smaller partner of a merger
        apart = between(3, 3.0, 7.0) * self.size / 48
        first_shape, second_shape = between(4, 0.0, 1.0), between(5, 0.0, 1.0)
        self.radius = scale * by_class(1.0, 1.25, 1.25, 1.4, 0.8)
        self.snr = settings.snr_min * (settings.snr_max / settings.snr_min) ** u[:, 6]
        # light that reaches this ratio to the noise of the pixels within two effective radii
        self.flux = self.snr * 2 * math.sqrt(math.pi) * scale

        # the main component, then the bulge or the partner
        self.index = (by_class(2.2 + 2.3 * first_shape, *2 * (0.8 + 0.4 * first_shape,), 1.0, 1 + 2.5 * first_shape),
                      np.where(merger, 1 + 2 * second_shape, 3.0))  # fmt: skip
        self.ratio = (np.where(edge_on, between(7, 0.15, 0.4), between(7, 0.5, 1.0)), between(8, 0.6, 1.0))
        self.radii = (self.radius, scale * np.where(merger, 0.7, 0.35))
        self.angle = (np.where(merger, between(9, 0, math.pi), angle), np.where(merger, between(10, 0, math.pi), angle))
        second = np.where(merger, mass / (1 + mass), np.where(elliptical, 0.0, bulge))
        self.share = (1 - second, second)
        old_first = (elliptical | merger)[:, None]
        tint = np.array([-1.0, 0.0, 1.0]) * 0.18 * gauss[:, 1:]  # intrinsic scatter: colour alone is no label
        self.spectrum = (
            (np.where(old_first, _OLD, _YOUNG) + tint).clip(0.2),
            (np.where(merger[:, None], _YOUNG, _OLD) + tint).clip(0.2),
        )
        within = between(11, -0.5, 0.5), between(12, -0.5, 0.5)  # where in its pixel the centre lies
        away = np.where(merger, apart, 0.0)
        step = away * np.cos(angle), away * np.sin(angle)
        # the brightness-weighted middle stays in the centre, as a detection would put it
        self.x = (within[0] - step[0] * second, within[0] + step[0] * (1 - second))
        self.y = (within[1] - step[1] * second, within[1] + step[1] * (1 - second))
        self.arms = np.where(spiral, between(13, 0.7, 1.0), 0.0)  # contrast; none but spirals have arms
        self.pitch, self.phase = between(14, 0.30, 0.55), between(15, 0, 2 * math.pi)
        self.sense = np.where(u[:, 16] < 0.5, -1.0, 1.0)

    def draw(self) -> np.ndarray:
        """Light without noise or blur, (n, 3, size, size) float32."""
        total = np.zeros((len(self.flux), 3, self.size, self.size), np.float32)
        for part in range(2):
            profile = self._sersic(part)
            weight = (self.spectrum[part] * (self.flux * self.share[part])[:, None]).astype(np.float32)
            total += weight[:, :, None, None] * profile[:, None]
        return total

    def _sersic(self, part: int) -> np.ndarray:
        """Profile of unit sum, (n, size, size) float32: Sérsic (1963), with b = 2n - 1/3 after Ciotti and Bertin
        (1999), https://ui.adsabs.harvard.edu/abs/1999A%26A...352..447C; arms are logarithmic spirals."""

        def column(values: np.ndarray) -> np.ndarray:
            return values.astype(np.float32)[:, None, None]

        yy, xx = _grid(self.size)
        dx, dy = xx - column(self.x[part]), yy - column(self.y[part])
        cos, sin = column(np.cos(self.angle[part])), column(np.sin(self.angle[part]))
        along, across = dx * cos + dy * sin, (dy * cos - dx * sin) / column(self.ratio[part])
        r = np.sqrt(along**2 + across**2 + np.float32(0.15)) / column(self.radii[part])  # finite at the cusp
        n = column(self.index[part])
        light = np.exp(-(2 * n - np.float32(1 / 3)) * (r ** (1 / n) - 1))
        spirals = np.flatnonzero(self.arms) if part == 0 else np.empty(0, int)
        if len(spirals):
            turn = column(self.sense)[spirals] * np.arctan2(across[spirals], along[spirals])
            winding = turn - np.log(r[spirals]) / column(np.tan(self.pitch))[spirals]
            wave = np.cos(2 * winding + column(self.phase)[spirals]) * (1 - np.exp(-((2 * r[spirals]) ** 2)))
            light[spirals] *= 1 + column(self.arms)[spirals] * wave
        return light / light.sum((1, 2), keepdims=True)


def _inject(image: np.ndarray, kind: str, u: np.ndarray) -> None:
    """Add an anomaly to one galaxy before blur and noise, (3, size, size), in place."""
    size = image.shape[-1]
    yy, xx = _grid(size)
    total, unit = image.sum((1, 2)).mean(), size / 48
    angle = u[0] * math.pi
    if kind == "arc":  # a lensed background galaxy: blue, bent around the centre
        radius, start, width = (5 + 4 * u[1]) * unit, u[0] * 2 * math.pi, 1.2 + 1.8 * u[2]
        ring = np.exp(-(((np.hypot(xx, yy) - radius) / 0.7) ** 2))
        arc = ring * (np.mod(np.arctan2(yy, xx) - start, 2 * math.pi) < width)
        image += (np.array([1.4, 1.0, 0.6])[:, None, None] * arc / arc.sum() * total * (0.2 + 0.3 * u[3])).astype("f4")
    elif kind == "trail":  # a satellite crosses the field
        distance = xx * math.cos(angle) + yy * math.sin(angle) - (18 * u[1] - 9) * unit
        image += (np.exp(-((distance / 0.8) ** 2)) * (2.5 + 4.5 * u[2])).astype("f4")
    elif kind == "double_nucleus":
        apart, share = (1.5 + 1.1 * u[1]) * unit, 0.15 + 0.15 * u[2]
        for side in (-apart, apart):
            dx, dy = xx - side * math.cos(angle), yy - side * math.sin(angle)
            nucleus = np.exp(-(dx**2 + dy**2) / 0.5)
            image += (nucleus / nucleus.sum() * total * share).astype("f4")
    elif kind == "colour_swap":  # blue where its kind is red, and the other way round
        image[:] = image[::-1] * np.array([1.25, 1.0, 0.8], np.float32)[:, None, None]


def _hit(image: np.ndarray, u: np.ndarray, rng: np.random.Generator) -> None:
    """A cosmic ray: a straight track of sharp bright pixels in one or two bands, in place."""
    size = image.shape[-1]
    angle, length = u[0] * math.pi, (4 + 8 * u[1]) * size / 48
    along = np.linspace(-0.5, 0.5, 40) * length
    x0, y0 = (14 * u[2] - 7) * size / 48, (14 * u[3] - 7) * size / 48
    columns = np.round(x0 + along * math.cos(angle) + size // 2).astype(int).clip(0, size - 1)
    rows = np.round(y0 + along * math.sin(angle) + size // 2).astype(int).clip(0, size - 1)
    for band in rng.permutation(3)[: rng.integers(1, 3)]:
        image[band, rows, columns] += np.float32(rng.uniform(8, 25))


def _grid(size: int) -> np.ndarray:
    """y and x of each pixel from the middle pixel, (2, size, size) float32."""
    return np.mgrid[:size, :size].astype(np.float32) - size // 2


def _signature(seed: int, first: int, count: int, settings: SimulatedSettings) -> str:
    """What decides on the content of a chunk, this module's source too; not the total count, so that a larger data set
    keeps its chunks."""
    values = settings.model_dump(mode="json", exclude={"count"})
    return json.dumps(
        {"code": module_digest(__name__), "seed": seed, "first": first, "count": count, **values}, sort_keys=True
    )


def _is_done(images: Path, table: Path, signature: str) -> bool:
    if not (images.is_file() and table.is_file()):
        return False
    try:
        open_images(images, json.loads(signature)["count"])
        return read_metadata(table).get(_KEY) == signature
    except (DataError, pl.exceptions.PolarsError, OSError):
        return False
