"""Where stamps come from: a source fetches raw files, and cuts them into stamps with what is known of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from manyscope.errors import DataError
from manyscope.registry import Registry
from manyscope.scopes.galaxies.data.stamps import SKY_RMS

if TYPE_CHECKING:
    import polars as pl

    from manyscope.scopes.galaxies.settings import GalaxiesDownload, GalaxiesPreprocess
    from manyscope.tables.manifest import ManifestEntry

SOURCES = Registry(
    "galaxy source",
    {
        "cifar10": "manyscope.scopes.galaxies.data.arrays:Cifar10",
        "fits": "manyscope.scopes.galaxies.data.fits:Fits",
        "hsc": "manyscope.scopes.galaxies.data.hsc:Hsc",
        "http": "manyscope.scopes.galaxies.data.http:Http",
        "hubble": "manyscope.scopes.galaxies.data.hubble:Hubble",
        "lsst": "manyscope.scopes.galaxies.data.lsst:Lsst",
        "random": "manyscope.scopes.galaxies.data.arrays:Random",
        "simulated": "manyscope.scopes.galaxies.simulate:Simulated",
        "table": "manyscope.scopes.galaxies.data.arrays:Table",
    },
    group="manyscope.galaxy_sources",
)


@dataclass(frozen=True)
class Cutouts:
    """Every stamp of a data set, and what is known of each.

    Attributes:
        chunks: the stamps in the order of the table, in pieces (some, bands, stamp_px, stamp_px) float32, in units
            of the sky's rms with the sky at zero; missing pixels are NaN.
        table: sample_id and group (what a split never divides), then labels and measurements; null is unknown.
        bands: names of the bands, from the bluest to the reddest.
        every_group: every group that can exist, with or without stamps, where groups are too few for a hash to keep
            to the fractions; None where they are many.
        centre_px: (stamps, 2) int, x and y of the middle pixel in one common image, or None where every stamp is an
            image of its own.
        note: what a reader of the prepared files should know, as JSON values.
        unit: of the pixels.
        top_down: the first row of a stamp is the top of its picture, as in photographs, not the bottom, as in FITS.
        size_px: width and height of the stamps where it is not `preprocess.stamp_px`: features are images of one pixel.
        pruned: objects that were left out, as `pruning.pruned_table` makes it, or None where none could be.
    """

    chunks: Iterable[np.ndarray]
    table: pl.DataFrame
    bands: Sequence[str]
    every_group: Sequence[str] | None = None
    centre_px: np.ndarray | None = None
    note: dict[str, object] | None = None
    unit: str = SKY_RMS
    top_down: bool = False
    size_px: int | None = None
    pruned: pl.DataFrame | None = None


class Source(Protocol):
    """What `download.source` names: a class without arguments.

    One that has a method `problems(settings: GalaxiesDownload) -> Iterator[str]` says there, before anything is
    fetched, what will stand in the way, each with a remedy.
    """

    def download(self, settings: GalaxiesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Put the raw files into `raw`; what is there already and right is kept."""

    def cut(self, settings: GalaxiesPreprocess, raw: Path, manifest: pl.DataFrame) -> Cutouts:
        """Read the raw files."""


def find_source(name: str) -> Source:
    """
    Raises:
        ManyscopeError: the source is unknown, or no such class.
    """
    found: Source = SOURCES.make(name, "download", "cut")
    return found


def middle(stamps: np.ndarray, size_px: int, place: object) -> np.ndarray:
    """The middle (…, size_px, size_px) of larger stamps: pixel (height // 2, width // 2) becomes the middle one.

    Raises:
        DataError: the stamps are smaller than that.
    """
    height, width = stamps.shape[-2:]
    if min(height, width) < size_px:
        raise DataError(
            f"images of {width} x {height} px are smaller than a stamp of {size_px} px",
            place=place,
            remedy="lower preprocess.stamp_px",
        )
    top, left = height // 2 - size_px // 2, width // 2 - size_px // 2
    return stamps[..., top : top + size_px, left : left + size_px]
