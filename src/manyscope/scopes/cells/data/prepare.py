"""From raw pairs to prepared files: splits by source image, one normalisation, one polarity, then augmentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manyscope.data.splits import unit_hash
from manyscope.errors import DataError
from manyscope.log import logger, progress
from manyscope.scopes.cells.data.augment import augment
from manyscope.scopes.cells.data.normalize import cells_are_bright, grey_range, invert, to_grey
from manyscope.scopes.cells.data.reading import read_image, read_labels, write_tif
from manyscope.scopes.cells.data.sources import IMAGES, LABELS, Pair, check_labelled
from manyscope.scopes.cells.masks import narrowest
from manyscope.tables.samples import UNLABELLED
from manyscope.tables.whole import write_json

if TYPE_CHECKING:
    from manyscope.scopes.cells.settings import CellsPreprocess

META = "images.json"
AUGMENTED = "augmented"
_SCHEMA: dict[str, Any] = {
    "sample_id": pl.String,
    "group": pl.String,
    "split": pl.String,
    "height_px": pl.Int32,
    "width_px": pl.Int32,
    "cells": pl.Int32,
    "inverted": pl.Boolean,
    "low": pl.Float64,
    "high": pl.Float64,
}


def prepare(pairs: Sequence[Pair], settings: CellsPreprocess, raw: Path, prepared: Path) -> pl.DataFrame:
    """Write, one image at a time, and where an image has labels:

    - images/ID.tif, (height, width) uint8: normalised, with dark cells if the settings say so; 0 is padding. Training
      and validation images are inverted by what their own labels say, all others if most training images were;
    - labels/ID.tif, (height, width) uint16, or uint32 for more than 65,535 cells: 1…K, 0 is background;
    - augmented/{images,labels}/ID_orig.tif and ID_aug000.tif, …: what the model is trained on, of training images;
    - images.json: how queries are treated alike.

    Returns:
        The samples in the order of the pairs: height_px, width_px, cells (null without labels), inverted, and low and
        high, the grey values of the file that became black and white.

    Raises:
        DataError: a file breaks a rule, ids repeat, there are too few labelled images, or too little is left for
            training.
    """
    repeated = [name for name, times in Counter(pair.sample_id for pair in pairs).items() if times > 1]
    if repeated:
        raise DataError(f"{len(repeated)} ids occur twice, for example {repeated[0]!r}", place=raw)
    split = deal(pairs, settings)
    dealt = [(pair, UNLABELLED if pair.labels is None else split[pair.group]) for pair in pairs]
    dealt.sort(key=lambda pair_and_split: pair_and_split[1] != "train")  # the polarity of others may follow from these
    writer = _Writer(prepared, settings)
    for pair, name in progress(dealt, "preprocess", len(dealt)):
        writer.add(pair, name)
    writer.log()
    write_json(
        prepared / META,
        {
            "low_percentile": settings.low_percentile,
            "high_percentile": settings.high_percentile,
            "polarity": settings.polarity,
            "invert_others": writer.invert_others,
            "min_object_px": settings.min_object_px,
            "image_key": pairs[0].image_key,
            "channel": pairs[0].channel,
            "augment": settings.augment.model_dump(mode="json"),
        },
    )
    rows = [writer.rows[pair.sample_id] for pair in pairs]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def deal(pairs: Sequence[Pair], settings: CellsPreprocess) -> dict[str, str]:
    """The split of each group with labels, "train", "validation" or "test".

    Groups are ranked by their hash or by time, and cut at the fractions, with at least one in each split: of a few
    images, a hash alone would often leave a split without any. An added image may therefore move another.

    Raises:
        DataError: there are fewer than three groups, the fractions leave nothing for training, or images have no
            place in time.
    """
    place = "preprocess.validation_fraction, preprocess.test_fraction"
    if settings.validation_fraction + settings.test_fraction >= 1:
        raise DataError(
            f"validation {settings.validation_fraction} and test {settings.test_fraction} leave nothing for training",
            place=place,
            allowed="a sum below 1",
        )
    labelled = [pair for pair in pairs if pair.labels is not None]
    groups = list(dict.fromkeys(pair.group for pair in labelled))
    count = len(groups)
    check_labelled(count, len(pairs))
    if settings.split_by == "hash":
        ranked = sorted(groups, key=lambda group: unit_hash(settings.split_seed, group))
    else:
        ranked = _from_last_to_first(labelled)
    test = min(max(1, round(settings.test_fraction * count)), count - 2)
    validation = min(max(1, round(settings.validation_fraction * count)), count - 1 - test)
    names = ["test"] * test + ["validation"] * validation + ["train"] * (count - test - validation)
    return dict(zip(ranked, names, strict=True))


def _from_last_to_first(pairs: Sequence[Pair]) -> list[str]:
    last: dict[str, int] = {}
    for pair in pairs:
        if pair.order is None:
            raise DataError(
                f"image {pair.sample_id!r} has no place in time",
                place="preprocess.split_by",
                remedy="set it to 'hash'",
            )
        last[pair.group] = max(pair.order, last.get(pair.group, pair.order))
    return sorted(last, key=lambda group: last[group], reverse=True)


@dataclass
class _Writer:
    prepared: Path
    settings: CellsPreprocess
    rows: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    inverted: int = 0
    bright: list[bool] = field(default_factory=list)  # of each training image, whether its cells are
    renumbered: list[str] = field(default_factory=list)
    divided: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    ambiguous: list[str] = field(default_factory=list)

    def add(self, pair: Pair, split: str) -> None:
        name = pair.sample_id
        image = read_image(pair.image, pair.image_key, pair.channel)
        labels, count = (None, None) if pair.labels is None else self._labels(name, pair, image.shape)
        dark, bright = grey_range(image, self.settings.low_percentile, self.settings.high_percentile)
        grey = to_grey(image, dark, bright)
        inverted = self._is_to_be_inverted(name, grey, labels, split)
        if inverted:
            grey = invert(grey)
            self.inverted += 1
        write_tif(self.prepared / IMAGES / f"{name}.tif", grey)
        if labels is not None:
            _write_labels(self.prepared / LABELS / f"{name}.tif", labels)
            if split == "train":
                self._write_training(name, grey, labels)
        self.rows[name] = (name, pair.group, split, *grey.shape, count, inverted, dark, bright)

    @property
    def invert_others(self) -> bool:
        """Whether images are inverted whose labels there are none of, or must not be looked at."""
        return 2 * sum(self.bright) > len(self.bright)

    def _labels(self, name: str, pair: Pair, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
        assert pair.labels is not None
        found = read_labels(pair.labels, pair.label_key, shape)
        if found.renumbered:
            self.renumbered.append(name)
        if found.divided:
            self.divided[name] = found.divided
        labels, count = without_small(found.ids, self.settings.min_object_px)
        if not count:
            raise DataError(
                f"none of {found.count} cells has {self.settings.min_object_px} px or more",
                place=pair.labels,
                remedy="lower preprocess.min_object_px, or leave out the image",
            )
        if count < found.count:
            self.dropped[name] = found.count - count
        return labels, count

    def _is_to_be_inverted(self, name: str, grey: np.ndarray, labels: np.ndarray | None, split: str) -> bool:
        """Training and validation images tell by their own labels; the labels of a test image decide nothing."""
        if self.settings.polarity != "dark":
            return False
        if labels is None or split == "test":
            return self.invert_others
        bright = cells_are_bright(grey, labels)
        if split == "train":
            self.bright.append(bright)
        if bright:
            inverted = invert(grey)
            if inverted[labels > 0].mean() > inverted[labels == 0].mean():
                self.ambiguous.append(name)
        return bright

    def _write_training(self, name: str, grey: np.ndarray, labels: np.ndarray) -> None:
        copies = {"orig": (grey, labels)} if self.settings.augment.original else {}
        for copy in range(self.settings.augment.copies):
            copies[f"aug{copy:03d}"] = augment(grey, labels, name, copy, self.settings.augment)
        for suffix, (pixels, cells) in copies.items():
            write_tif(self.prepared / AUGMENTED / IMAGES / f"{name}_{suffix}.tif", pixels)
            _write_labels(self.prepared / AUGMENTED / LABELS / f"{name}_{suffix}.tif", cells)

    def log(self) -> None:
        """What was changed, or should be known, in one line each."""
        if self.renumbered:
            logger.info("%d label images were renumbered 1…K (%s)", len(self.renumbered), _some(self.renumbered))
        if self.divided:
            logger.warning(
                "%d cells in %d label images consist of several unconnected parts (%s)",
                sum(self.divided.values()), len(self.divided), _some(self.divided),
            )  # fmt: skip
        if self.dropped:
            logger.info(
                "%d cells smaller than %d px in %d images became background (%s)",
                sum(self.dropped.values()), self.settings.min_object_px, len(self.dropped), _some(self.dropped),
            )  # fmt: skip
        if self.inverted:
            logger.info("%d images were inverted, so that cells are dark", self.inverted)
        if 0 < sum(self.bright) < len(self.bright):
            logger.warning(
                "cells are bright in %d of %d training images and dark in the others; test images and those without "
                "labels are all %s; better make an experiment of each kind",
                sum(self.bright), len(self.bright), "inverted" if self.invert_others else "left as they are",
            )  # fmt: skip
        if self.ambiguous:
            logger.warning(
                "%d inverted images have a background of 0, which is taken for padding and stays black (%s); "
                "set preprocess.polarity to 'as_is', or add 1 to their background",
                len(self.ambiguous), _some(self.ambiguous),
            )  # fmt: skip


def without_small(labels: np.ndarray, min_area_px: int) -> tuple[np.ndarray, int]:
    """Labels 1…K of which the smaller cells became background, again numbered 1…K, and how many are left."""
    area = np.bincount(labels.ravel())
    keep = area >= max(min_area_px, 1)
    keep[0] = False
    number = np.where(keep, keep.cumsum(), 0).astype(labels.dtype)
    return number[labels], int(keep.sum())


def _write_labels(path: Path, labels: np.ndarray) -> None:
    write_tif(path, narrowest(labels), small=True)


def _some(names: Sequence[str] | dict[str, int]) -> str:
    shown = list(names)[:3]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")
