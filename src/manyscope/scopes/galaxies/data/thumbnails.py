"""Small colour pictures of stamps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyscope.scopes.galaxies.data.prepare import STAMPS
from manyscope.tables.samples import read_samples

if TYPE_CHECKING:
    from PIL.Image import Image

_STRETCH = 12.0  # rms of the sky at which the stretch leaves the linear part
_Q = 6.0


def rgb(stamp: np.ndarray) -> np.ndarray:
    """(bands, height, width) in rms of the sky, from blue to red -> (height, width, 3) uint8.

    Keeps the colour of bright pixels: Lupton et al. (2004), https://doi.org/10.1086/382245, equation 2 with the mean
    of the bands as intensity. One band becomes grey; of more than three, the first, the middle and the last are shown.
    """
    shown = stamp[[-1, len(stamp) // 2, 0]].astype(np.float32) + 0.5  # a trace of the noise stays visible
    intensity = shown.mean(0).clip(1e-6)
    bright = np.arcsinh(_Q * intensity / _STRETCH) / _Q / intensity
    coloured = (shown * bright * 1.6).clip(0)
    peak = coloured.max(0).clip(1.0)  # scale down all bands of a pixel that overflows, so that it keeps its hue
    return ((coloured / peak) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def thumbnails(prepared: Path, object_ids: Sequence[str]) -> Iterator[Image | None]:
    """The picture of each object, as large as its stamp; None for an id that is unknown."""
    from PIL import Image as PillowImage

    row = {s: i for i, s in enumerate(read_samples(prepared / "samples.parquet")["sample_id"])}
    stamps = np.load(prepared / STAMPS, mmap_mode="r", allow_pickle=False)
    for name in object_ids:
        yield PillowImage.fromarray(rgb(stamps[row[name]])) if name in row else None
