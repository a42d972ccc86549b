"""Your own images and labels, paired by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from manyscope.data.linking import absolute, link, refuse
from manyscope.errors import DataError
from manyscope.log import logger, progress
from manyscope.scopes.cells.data.reading import (
    has_array,
    is_zarr,
    read_image,
    read_labels,
    read_pixels,
    stem,
    write_tif,
)
from manyscope.scopes.cells.data.sources import IMAGES, LABELS, Pair, check_labelled, natural_key, pairs_by_name
from manyscope.tables.manifest import ManifestEntry

if TYPE_CHECKING:
    import polars as pl

    from manyscope.scopes.cells.settings import CellsDownload, FolderSettings

# Ids become names of files, parts of object ids (ID/LABEL), and words on the command line.
_SAFE_ID = re.compile(r"\w[\w .()+-]*")
_NAMED = 5  # in a message


class Folder:
    """The folders `download.folder.images`, `labels` and `unlabelled`, which are only read."""

    def download(self, settings: CellsDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Link each file into raw/images/ and raw/labels/; arrays of an OME-Zarr, which is a folder and can have no
        checksum, are written there as .tif, in the type and with the axes that they have.

        Raises:
            DataError: a file is missing or breaks a rule; all that do are logged.
        """
        pairs, errors = examine(settings.folder)
        if errors:
            refuse(errors)
        for pair in pairs:
            yield _take(raw, IMAGES, pair.sample_id, pair.image, pair.image_key)
            if pair.labels is not None:
                yield _take(raw, LABELS, pair.sample_id, pair.labels, pair.label_key)

    def pairs(self, settings: CellsDownload, raw: Path, manifest: pl.DataFrame) -> list[Pair]:
        """The images in the order of their names, which is taken for the order of time.

        Raises:
            DataError: the manifest names no image.
        """
        own = settings.folder
        found = pairs_by_name(raw, manifest)
        return [replace(pair, image_key=own.image_key, label_key=own.label_key, channel=own.channel) for pair in found]

    def problems(self, settings: CellsDownload) -> Iterator[str]:
        """Reads every file."""
        pairs, errors = examine(settings.folder)
        if pairs:
            try:
                check_labelled(sum(pair.labels is not None for pair in pairs), len(pairs))
            except DataError as few:
                errors.append(few)
        for error in errors:
            yield f"download.folder: {error}"


def examine(settings: FolderSettings) -> tuple[list[Pair], list[DataError]]:
    """The pairs, whose `image` and `labels` are the user's files, and everything that is wrong with them."""
    folders = _Folders(settings)
    pairs = folders.pairs()
    for pair in progress(pairs, "checking images", len(pairs)):
        shape = None
        try:
            shape = read_image(pair.image, pair.image_key, pair.channel).shape
        except DataError as error:
            folders.errors.append(error)
        if pair.labels is not None:
            try:
                read_labels(pair.labels, pair.label_key, shape)
            except DataError as error:
                folders.errors.append(error)
    return pairs, folders.errors


@dataclass
class _Folders:
    settings: FolderSettings

    def __post_init__(self) -> None:
        self.errors: list[DataError] = []

    def pairs(self) -> list[Pair]:
        own = self.settings
        if own.images is None:
            self._report("empty", "download.folder.images", remedy="name the folder of your images")
            return []
        images = self._files(own.images, "images")
        further = self._further(own.images, own.unlabelled, images) if own.unlabelled else {}
        for name, file in [*images.items(), *further.items()]:
            if not _SAFE_ID.fullmatch(name):
                self._report(
                    f"the name {name!r} cannot be a sample_id",
                    file,
                    allowed="letters, digits and any of _ - . + ( ) and blanks, the first a letter, digit or _",
                    remedy="rename the file, and its labels",
                )
        if own.labels is None:
            labels = {name: file for name, file in images.items() if is_zarr(file) and self._is_labelled(file)}
        else:
            labels = self._labels(own.images, own.labels, images)
        files = {**further, **images}
        return [
            Pair(name, files[name], labels.get(name), name, None, own.image_key, own.label_key, own.channel)
            for name in sorted(files, key=natural_key)
        ]

    def _further(self, image_folder: Path, folder: Path, images: dict[str, Path]) -> dict[str, Path]:
        """The images that are only segmented, which have no labels, or none that count."""
        if absolute(image_folder) == absolute(folder):
            self._report(
                "images and unlabelled are the same folder",
                folder,
                remedy="put the images without labels into a folder of their own",
            )
            return {}
        further = self._files(folder, "unlabelled")
        both = sorted(images.keys() & further.keys(), key=natural_key)
        if both:
            self._report(
                f"{len(both)} names are those of labelled images too ({_some(both)})",
                folder,
                allowed="names that download.folder.images does not have",
                remedy="rename these images, or take them out of one of the folders",
            )
        return further

    def _labels(self, image_folder: Path, label_folder: Path, images: dict[str, Path]) -> dict[str, Path]:
        if absolute(image_folder) == absolute(label_folder):
            self._report(
                "images and labels are the same folder",
                label_folder,
                remedy="put the labels into a folder of their own",
            )
            return {}
        labels = self._files(label_folder, "labels")
        without = sorted(images.keys() - labels.keys(), key=natural_key)
        alone = sorted(labels.keys() - images.keys(), key=natural_key)
        if images and labels and (without or alone):
            parts = [
                f"{len(names)} {what} ({_some(names)})"
                for names, what in ((without, "images without labels"), (alone, "labels without an image"))
                if names
            ]
            self._report(
                f"unpaired: {' and '.join(parts)}",
                label_folder,
                allowed="a label image with the name of its image, for each image",
                remedy="add or rename the missing ones, or take their partners out of the folder; images that are "
                "only to be segmented belong into download.folder.unlabelled",
            )
        return labels

    def _files(self, folder: Path, key: str) -> dict[str, Path]:
        """Every image file of a folder by its name without suffix; a .zarr may be named itself."""
        folder = absolute(folder)
        if not folder.is_dir():
            self._report("no such folder", folder, remedy=f"mend download.folder.{key}")
            return {}
        known, ignored = dict[str, Path](), 0
        for file in [folder] if is_zarr(folder) else sorted(folder.iterdir()):
            name = stem(file)
            if name is None or file.is_dir() != is_zarr(file):
                ignored += not file.name.startswith(".")
            elif name in known:
                self._report(
                    f"{known[name].name} and {file.name} have the same name",
                    folder,
                    remedy="rename or remove one of them",
                )
            else:
                known[name] = file
        if ignored:
            logger.warning("%s: %d files are no images (.tif, .tiff, .png, .zarr) and are ignored", folder, ignored)
        if not known:
            self._report(
                "the folder holds no image",
                folder,
                allowed=".tif, .tiff, .png, .zarr",
                remedy=f"mend download.folder.{key}",
            )
        return known

    def _is_labelled(self, file: Path) -> bool:
        try:
            return has_array(file, self.settings.label_key)
        except DataError:
            return False  # reading the image reports it

    def _report(self, found: str, place: object, allowed: str | None = None, remedy: str | None = None) -> None:
        self.errors.append(DataError(found, place=place, allowed=allowed, remedy=remedy))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _take(raw: Path, folder: str, name: str, file: Path, key: str) -> ManifestEntry:
    if is_zarr(file):
        path = f"{folder}/{name}.tif"
        pixels, axes = read_pixels(file, key)
        write_tif(raw / path, pixels, axes=axes, small=folder == LABELS)
        return ManifestEntry(path, f"{file}: {key}")
    path = f"{folder}/{name}{file.suffix.lower()}"
    return link(raw, path, file)
