"""What can be measured on any stamp: brightness, size and colour, for data of which nothing else is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.data.stamps import StampData

MEASURED: Mapping[str, str] = {"measured_flux": "log", "measured_radius": "log", "measured_colour": "linear"}
"""Column -> scale. What a stamp is too faint for is null, and so is the colour of one band."""
_BATCH = 1024


def measured(data: StampData, rows: np.ndarray) -> pl.DataFrame:
    """Of the samples at these positions, and null for all others; a row for each sample.

    `measured_flux`: light of the mean band within half of the stamp's width from the middle, in units of the stamp;
    `measured_radius`: the root of the light-weighted mean square distance from the middle, in pixels, of the pixels
    whose light is positive; `measured_colour`: log10 of the light of the last band over that of the first, both within
    the same circle.
    """
    size = data.stamps.shape[-1]
    y, x = np.mgrid[:size, :size] - size // 2
    squared = (x**2 + y**2).astype(np.float64)
    inside = squared <= (size / 2) ** 2
    values = np.full((3, len(data.samples)), np.nan)
    for first in range(0, len(rows), _BATCH):
        some = rows[first : first + _BATCH]
        stamps = np.where(inside, data.stamps[some], 0).astype(np.float64)
        white = stamps.mean(1)
        flux, light = white.sum((1, 2)), white.clip(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            values[0, some] = np.where(flux > 0, flux, np.nan)
            values[1, some] = np.sqrt((light * squared).sum((1, 2)) / light.sum((1, 2)))
            bluest, reddest = stamps[:, 0].sum((1, 2)), stamps[:, -1].sum((1, 2))
            both = (bluest > 0) & (reddest > 0) & (stamps.shape[1] > 1)
            values[2, some] = np.log10(np.where(both, reddest / bluest, np.nan))
    return pl.DataFrame(dict(zip(MEASURED, values, strict=True))).fill_nan(None)
