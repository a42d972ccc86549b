"""Small pictures of stamps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyscope.scopes.galaxies.data.stamps import FEATURE, GREY_LEVELS, META, SKY_RMS, STAMPS
from manyscope.tables.arrays import map_array
from manyscope.tables.samples import read_samples
from manyscope.tables.whole import read_json

if TYPE_CHECKING:
    from PIL.Image import Image

_STRETCH = 12.0  # rms of the sky at which the stretch leaves the linear part
_Q = 6.0
_LOOKED_AT = 256

# (bands, height, width), from the bluest to the reddest -> (height, width, 3) uint8, the top row first
Painter = Callable[[np.ndarray], np.ndarray]


def painter(unit: str, stamps: np.ndarray, top_down: bool) -> Painter | None:
    """What makes pictures of stamps in this unit; None for features, which have none.

    Args:
        stamps: (samples, bands, height, width); some of them tell the sky where the unit does not.
        top_down: whether the first row of a stamp is the top of its picture or, as FITS viewers have it, the bottom.
    """
    if unit == FEATURE:
        return None
    paint = _painter(unit, stamps)
    return paint if top_down else lambda stamp: paint(stamp)[::-1]


def _painter(unit: str, stamps: np.ndarray) -> Painter:
    """The rows of a picture are in the order of those of the stamp."""
    if unit == GREY_LEVELS:
        return _photograph
    if unit == SKY_RMS or not len(stamps):
        return rgb
    some = stamps[np.linspace(0, len(stamps) - 1, min(_LOOKED_AT, len(stamps))).astype(np.int64)]
    level = np.median(some, (0, 2, 3))[:, None, None]
    rms = 1.4826 * np.median(np.abs(some - level), (0, 2, 3))[:, None, None]
    rms = np.where(rms > 0, rms, 1.0).astype(np.float32)
    return lambda stamp: rgb((stamp - level) / rms)


def rgb(stamp: np.ndarray) -> np.ndarray:
    """(bands, height, width) in rms of the sky, from blue to red -> (height, width, 3) uint8.

    Keeps the colour of bright pixels: Lupton et al. (2004), https://doi.org/10.1086/382245, equation 2 with the mean
    of the bands as intensity. One band becomes grey; of more than three, the first, the middle and the last are shown.
    """
    shown = _three(stamp) + 0.5  # a trace of the noise stays visible
    intensity = shown.mean(0).clip(1e-6)
    bright = np.arcsinh(_Q * intensity / _STRETCH) / _Q / intensity
    coloured = (shown * bright * 1.6).clip(0)
    peak = coloured.max(0).clip(1.0)  # scale down all bands of a pixel that overflows, so that it keeps its hue
    return _bytes(coloured / peak)


def thumbnails(prepared: Path, object_ids: Sequence[str]) -> Iterator[Image | None]:
    """The picture of each object, as large as its stamp; None for an id that is unknown, and for features."""
    from PIL import Image as PillowImage

    row = {s: i for i, s in enumerate(read_samples(prepared / "samples.parquet")["sample_id"])}
    stamps, meta = map_array(prepared / STAMPS), read_json(prepared / META)
    paint = painter(meta["unit"], stamps, meta["top_down"])
    for name in object_ids:
        yield PillowImage.fromarray(paint(stamps[row[name]])) if paint and name in row else None


def _photograph(stamp: np.ndarray) -> np.ndarray:
    return _bytes((_three(stamp) + 1) / 2)


def _three(stamp: np.ndarray) -> np.ndarray:
    """Red, green and blue: the last, the middle and the first band."""
    return stamp[[-1, len(stamp) // 2, 0]].astype(np.float32)


def _bytes(picture: np.ndarray) -> np.ndarray:
    """(3, height, width) in 0…1 -> (height, width, 3) uint8."""
    return (picture.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
