"""Where images come from: a source puts raw files into place, and says which image and which labels belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from manyscope.errors import DataError
from manyscope.registry import Registry

if TYPE_CHECKING:
    import polars as pl

    from manyscope.scopes.cells.settings import CellsDownload
    from manyscope.tables.manifest import ManifestEntry

SOURCES = Registry(
    "cell source",
    {
        "simulated": "manyscope.scopes.cells.simulate:Simulated",
        "bacteria": "manyscope.scopes.cells.data.bacteria:Bacteria",
        "folder": "manyscope.scopes.cells.data.folder:Folder",
    },
    group="manyscope.cell_sources",
)
IMAGES, LABELS = "images", "labels"  # folders of the raw data
_FEWEST = 3
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True)
class Pair:
    """One image with its labels, to be read by `read_image` and `read_labels`.

    Attributes:
        sample_id: unique in the experiment, and fit to be the name of a file.
        labels: None for an image that is only predicted.
        group: what a split never divides.
        order: place in time, or None where there is no such thing.
        image_key, label_key: arrays, where a file is an OME-Zarr.
        channel: the one to take of an image with several channels.
    """

    sample_id: str
    image: Path
    labels: Path | None
    group: str
    order: int | None = None
    image_key: str = "0"
    label_key: str = "labels/cells/0"
    channel: int | None = None


class Source(Protocol):
    """What `download.source` names: a class without arguments."""

    def download(self, settings: CellsDownload, raw: Path) -> Iterable[ManifestEntry]:
        """Put the raw files into `raw`; what is there already and right is kept."""

    def pairs(self, settings: CellsDownload, raw: Path, manifest: pl.DataFrame) -> Sequence[Pair]:
        """The raw files, in a fixed order."""

    def problems(self, settings: CellsDownload) -> Iterator[str]:
        """What can be said before the download, one sentence each with a place and a remedy."""


def find_source(name: str) -> Source:
    """
    Raises:
        ManyscopeError: the source is unknown, or no such class.
    """
    found: Source = SOURCES.make(name, "download", "pairs", "problems")
    return found


def pairs_by_name(raw: Path, manifest: pl.DataFrame) -> list[Pair]:
    """The files raw/images/ID.* of the manifest with those of raw/labels/ of the same name, in the order of
    `natural_key`, which is their order in time too; each is a group of its own.

    Raises:
        DataError: the manifest names no image, or labels without an image.
    """
    files: dict[str, dict[str, Path]] = {IMAGES: {}, LABELS: {}}
    for path, state in manifest.select("path", "state").iter_rows():
        folder, _, name = path.partition("/")
        if folder in files and state == "done":
            files[folder][Path(name).stem] = raw / path
    images, labels = files[IMAGES], files[LABELS]
    if not images:
        raise DataError("the data set is empty", place=raw, remedy="run the stage 'download'")
    alone = sorted(labels.keys() - images.keys())
    if alone:
        raise DataError("these labels have no image", place=labels[alone[0]], remedy="run the stage 'download' again")
    return [
        Pair(name, images[name], labels.get(name), name, order)
        for order, name in enumerate(sorted(images, key=natural_key))
    ]


def check_labelled(labelled: int, images: int) -> None:
    """
    Raises:
        DataError: there are too few images, or groups of them, with labels.
    """
    if labelled < _FEWEST:
        raise DataError(
            f"{labelled} of {images} images (or groups of them) have labels",
            place="download",
            allowed=f"at least {_FEWEST}: one each to train, to validate and to test",
            remedy="add labels, for your own images in download.folder.labels",
        )


def natural_key(name: str) -> list[str | int]:
    """Sorts names with the numbers in them by value: frame-9 before frame-10."""
    return [int(part) if i % 2 else part for i, part in enumerate(_DIGITS.split(name))]
