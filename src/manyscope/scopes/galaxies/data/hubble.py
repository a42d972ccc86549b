"""The Hubble Deep Field: the photograph that scikit-image bundles, its sources detected, measured and cut out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manyscope.errors import DataError, MissingDependencyError
from manyscope.log import logger
from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.settings import GalaxiesDownload, GalaxiesPreprocess

_NAME = "hubble_deep_field.jpg"
_SATURATED = 254  # of 255
_WINDOW_PX = 12


class Hubble:
    """A colour photograph as raw data; it may be any other of the same kind with the same file name."""

    def download(self, settings: GalaxiesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Copy the photograph out of the installed package as it is.

        Raises:
            MissingDependencyError: the installed scikit-image does not hold it.
        """
        from importlib.metadata import version

        import skimage.data

        bundled = Path(skimage.data.__file__).parent / _NAME
        if not bundled.is_file():
            raise MissingDependencyError(
                f"scikit-image {version('scikit-image')} comes without {_NAME}",
                place=bundled.parent,
                remedy="install the scikit-image wheel of the lock file",
            )
        target = raw / _NAME
        if not target.is_file() or target.read_bytes() != bundled.read_bytes():
            with whole_file(target) as partial:
                shutil.copyfile(bundled, partial)
        yield ManifestEntry(_NAME, f"scikit-image {version('scikit-image')}: data.hubble_deep_field")

    def cut(self, settings: GalaxiesPreprocess, raw: Path, manifest: pl.DataFrame) -> Cutouts:
        """Detect, measure and cut.

        Raises:
            DataError: the file is no colour photograph, or nothing is found in it.
        """
        photograph = raw / _NAME
        image = read_photograph(photograph)
        bands = subtract_sky(image, settings.background_px)
        saturated = np.any(image >= _SATURATED, axis=0)
        table = detect(bands, saturated, settings, photograph)
        centre = table.select("x_px", "y_px").to_numpy().round().astype(np.int64)
        half = settings.stamp_px // 2
        stamps = np.stack([bands[:, y - half : y + half, x - half : x + half] for x, y in centre])
        logger.info("%s: %d sources", photograph.name, len(table))
        table = table.with_columns(
            sample_id=pl.Series([f"hdf-{x:04d}-{y:04d}" for x, y in centre]),
            group=pl.Series([_block(*at) for at in centre // settings.block_px]),
        )
        columns, rows = (-(-extent // settings.block_px) for extent in (bands.shape[2], bands.shape[1]))
        return Cutouts(
            [stamps],
            table,
            ("blue", "green", "red"),
            every_group=[_block(column, row) for column in range(columns) for row in range(rows)],
            centre_px=centre,
            top_down=True,
        )


def _block(column: int, row: int) -> str:
    return f"block-{column:02d}-{row:02d}"


def read_photograph(path: Path) -> np.ndarray:
    """The bands of an 8-bit colour photograph, (3, height, width) float32 in 0…255, from blue to red.

    Raises:
        DataError: missing, not decodable, or not an 8-bit colour image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except FileNotFoundError as error:
        raise DataError("the image is missing", place=path, remedy="run the stage 'download'") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"the image cannot be decoded ({error})", place=path, remedy="download it again") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise DataError(
            f"the image has shape {pixels.shape} and type {pixels.dtype}",
            place=path,
            allowed="(height, width, 3), uint8",
        )
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[::-1], np.float32)


def subtract_sky(image: np.ndarray, mesh_px: int) -> np.ndarray:
    """Each band less its smooth background, in units of the background's rms; (bands, height, width) float32."""
    import sep

    bands = []
    for band in image:
        sky = sep.Background(np.ascontiguousarray(band), bw=mesh_px, bh=mesh_px)
        # an image without noise has no rms; its grey levels are then the unit
        bands.append(((band - sky.back()) / (sky.globalrms or 1.0)).astype(np.float32))
    return np.stack(bands)


def detect(bands: np.ndarray, saturated: np.ndarray, settings: GalaxiesPreprocess, place: Path) -> pl.DataFrame:
    """Sources that fill a stamp, with their measurements in the mean of the bands; others' pixels are masked.

    Args:
        bands: (3, height, width), from blue to red.
        saturated: (height, width) bool; sources with a saturated core are left out.

    Returns:
        x_px, y_px; flux (rms of the sky of the mean band, within 2.5 Kron-like axes); snr; half_light_radius (px);
        ellipticity (1 - b/a under a Gaussian weight, null for sources too small to have a shape); colour (log10 of
        red over blue, null where either is negative); area_px.

    Raises:
        DataError: nothing was found.
    """
    import sep

    white = np.ascontiguousarray(bands.mean(0))
    rms = float(sep.Background(white).globalrms) or 1.0
    found, segments = sep.extract(
        white, settings.detection_threshold, err=rms, minarea=settings.min_area_px, segmentation_map=True
    )
    if not len(found):
        raise DataError(
            "no source was found in the image",
            place=place,
            remedy="lower preprocess.detection_threshold or preprocess.min_area_px",
        )
    own: dict[str, Any] = {"segmap": segments, "seg_id": np.arange(1, len(found) + 1)}
    ellipse = (found["x"], found["y"], found["a"], found["b"], found["theta"])
    flux, error, _ = sep.sum_ellipse(white, *ellipse, 2.5, err=rms, subpix=5, **own)
    radius, _ = sep.flux_radius(white, found["x"], found["y"], 4.0 * found["a"], 0.5, subpix=5, **own)
    blue, _, red = (sep.sum_ellipse(np.ascontiguousarray(b), *ellipse, 2.0, subpix=5, **own)[0] for b in bands)

    half = settings.stamp_px // 2
    x, y = found["x"].round().astype(int), found["y"].round().astype(int)
    inside = (x >= half) & (x <= white.shape[1] - half) & (y >= half) & (y <= white.shape[0] - half)
    burnt = np.array([saturated[max(j - 2, 0) : j + 3, max(i - 2, 0) : i + 3].any() for i, j in zip(x, y, strict=True)])
    # saturated stars, single hot pixels and noise peaks are no galaxies
    keep = inside & ~burnt & (flux > 3 * error) & (radius > 0.9) & (found["b"] > 0.5)
    keep[keep] &= _first_of_each(np.stack([x, y], 1)[keep])
    if not keep.any():
        raise DataError(
            f"none of {len(found)} detections is a source whose stamp lies inside the image",
            place=place,
            remedy="lower preprocess.detection_threshold or preprocess.stamp_px",
        )
    measurable = (red > 0) & (blue > 0)
    colour = np.full(len(found), np.nan)
    colour[measurable] = np.clip(np.log10(red[measurable] / blue[measurable]), -1, 1)
    shape = np.where(
        found["npix"] >= settings.min_shape_px, windowed_ellipticity(white, segments, found, radius), np.nan
    )
    columns = {
        "flux": flux,
        "snr": flux / error,
        "half_light_radius": radius,
        "ellipticity": shape,
        "colour": colour,
        "area_px": found["npix"].astype(np.int64),
        "x_px": found["x"],
        "y_px": found["y"],
    }
    return pl.DataFrame({name: values[keep] for name, values in columns.items()}).fill_nan(None)


def windowed_ellipticity(white: np.ndarray, segments: np.ndarray, found: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """1 - b/a of each source, NaN where it has none, from second moments under a round Gaussian weight.

    The weight is of the source's own size, so that the noise far out and the neighbours count little. Moments after
    Kaiser, Squires and Broadhurst (1995), https://doi.org/10.1086/176071, without a correction for the weight.

    Args:
        white: (height, width) image.
        segments: (height, width) number of the source that owns a pixel, from 1; 0 is sky.
        found: the sources' `x` and `y`.
        radius: half-light radii, in pixels.
    """
    ellipticity = np.full(len(found), np.nan)
    h = _WINDOW_PX
    offset_y, offset_x = np.mgrid[-h : h + 1, -h : h + 1]
    for i, (x, y) in enumerate(zip(found["x"], found["y"], strict=True)):
        column, row = round(x), round(y)
        if not (h <= row < white.shape[0] - h and h <= column < white.shape[1] - h):
            continue
        window = np.s_[row - h : row + h + 1, column - h : column + h + 1]
        dx, dy = offset_x - (x - column), offset_y - (y - row)
        sigma = np.clip(1.2 * radius[i], 1.2, 4.0)
        weight = white[window] * np.exp(-(dx**2 + dy**2) / (2 * sigma**2)) * np.isin(segments[window], (0, i + 1))
        xx, yy, xy = (weight * dx * dx).sum(), (weight * dy * dy).sum(), (weight * dx * dy).sum()
        if xx + yy > 0:
            e = np.hypot(xx - yy, 2 * xy) / (xx + yy)  # (a² - b²) / (a² + b²)
            if e < 1:
                ellipticity[i] = 1 - np.sqrt((1 - e) / (1 + e))
    return ellipticity


def _first_of_each(centre: np.ndarray) -> np.ndarray:
    """A mask of the first source on each pixel: two that share a middle pixel would share their stamp."""
    first = np.zeros(len(centre), bool)
    first[np.unique(centre, axis=0, return_index=True)[1]] = True
    return first
