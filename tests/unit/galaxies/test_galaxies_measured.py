"""What is measured on stamps of which nothing is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl

from manyscope.scopes.galaxies.evaluate.measured import measured


def stamps_of(*images: np.ndarray) -> Any:
    stamps = np.stack(images).astype(np.float32)
    return SimpleNamespace(stamps=stamps, samples=pl.DataFrame({"sample_id": [str(i) for i in range(len(stamps))]}))


def disc(radius: float, blue: float, red: float) -> np.ndarray:
    y, x = np.mgrid[:33, :33] - 16
    inside = x**2 + y**2 <= radius**2
    return np.stack([blue * inside, red * inside])


def test_light_size_and_colour_of_discs() -> None:
    data = stamps_of(disc(4, 1, 1), disc(4, 1, 10), disc(12, 1, 1), disc(4, 1, 1))
    table = measured(data, np.arange(3))
    pixels = (disc(4, 1, 1)[0] > 0).sum()
    np.testing.assert_allclose(table["measured_flux"].to_list()[:2], [pixels, 5.5 * pixels])
    np.testing.assert_allclose(table["measured_radius"][0], 4 / np.sqrt(2), rtol=0.05)  # of a uniform disc
    np.testing.assert_allclose(table["measured_radius"][2], 12 / np.sqrt(2), rtol=0.05)
    np.testing.assert_allclose(table["measured_colour"].to_list()[:3], [0, 1, 0], atol=1e-9)
    assert table.row(3) == (None, None, None)  # not asked for


def test_what_cannot_be_measured_is_null() -> None:
    dark = measured(stamps_of(disc(4, -1, -1)), np.arange(1))
    assert dark.row(0) == (None, None, None)
    grey = measured(stamps_of(disc(4, 1, 1)[:1]), np.arange(1))
    assert grey["measured_colour"].item() is None
    assert grey["measured_flux"].item() > 0
