"""From raw files to prepared events: splits by file, shards, the table of samples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.data.splits import split_by_hash
from manyscope.errors import DataError
from manyscope.log import logger, progress
from manyscope.scopes.neutrinos.data import shards
from manyscope.tables.samples import UNLABELLED
from manyscope.tables.whole import whole_file, write_json

if TYPE_CHECKING:
    from manyscope.scopes.neutrinos.data.detector import Detector
    from manyscope.scopes.neutrinos.data.shards import Shard
    from manyscope.scopes.neutrinos.data.sources import EventFile, Events
    from manyscope.scopes.neutrinos.settings import NeutrinosPreprocess

META = "events.json"
SENSORS = "sensors.npy"
SHARDS = "events"
_SHARD_EVENTS = 50_000  # small files are joined, since a batch that reads many shards is slow


def prepare(files: Iterable[EventFile], settings: NeutrinosPreprocess, prepared: Path) -> pl.DataFrame:
    """Write the shards, `sensors.npy` and `events.json`.

    Returns:
        The samples in the order of the shards: azimuth and zenith in radians, n_pulses, n_modules, and whatever the
        source knows of the truth.

    Raises:
        DataError: a file breaks a rule, there is none, or a batch that the settings name is not there.
    """
    files = list(files)
    split = deal(files, settings)
    writer = _Writer(prepared)
    tables = []
    for file in progress(files, "preprocess", len(files)):
        events = file.read()
        shard = shards.build(events, file.detector, writer.first_sensor(file.detector), settings)
        writer.add(shard)
        tables.append(_samples(file, split[file.name], events, shard))
    writer.close()
    logger.info("%d events of %d files in %d shards", sum(writer.events), len(files), len(writer.events))
    return pl.concat(tables, how="diagonal")


def deal(files: list[EventFile], settings: NeutrinosPreprocess) -> dict[str, str]:
    """The split of each file, by its name: as the settings number them, else by a hash.

    Raises:
        DataError: there are no labelled files, or a number is not that of a file.
    """
    labelled = [file for file in files if file.labelled]
    if not labelled:
        raise DataError("there is no file with known directions to learn from", place="download")
    dealt = {file.name: UNLABELLED for file in files}
    if settings.test_batches:
        named = {"validation": settings.validation_batches, "test": settings.test_batches}
        by_number = {file.number: file.name for file in labelled}
        for file in labelled:
            dealt[file.name] = "train"
        for name, numbers in named.items():
            for number in numbers:
                if number not in by_number:
                    raise DataError(f"there is no batch {number}", place=f"preprocess.{name}_batches")
                dealt[by_number[number]] = name
        return dealt
    names = [file.name for file in labelled]
    hashed = split_by_hash(names, settings.split_seed, settings.validation_fraction, settings.test_fraction)
    return {**dealt, **dict(zip(names, hashed, strict=True))}


def _samples(file: EventFile, split: str, events: Events, shard: Shard) -> pl.DataFrame:
    known = ~np.isnan(events.azimuth)
    if file.labelled and not known.all():
        raise DataError(f"event {events.sample_id[int((~known).argmax())]} has no direction", place=file.name)
    n = len(events)
    frame = pl.DataFrame({
        "sample_id": pl.Series(events.sample_id, dtype=pl.String),
        "group": pl.repeat(file.name, n, eager=True),
        "split": pl.repeat(split, n, eager=True),
        "azimuth": pl.Series(events.azimuth, nan_to_null=True),
        "zenith": pl.Series(events.zenith, nan_to_null=True),
        "n_pulses": shard.n_pulses.astype(np.int32),
        "n_modules": shard.n_modules.astype(np.int32),
    })  # fmt: skip
    truth = events.truth.rename({name: f"true_{name}" for name in events.truth.columns if name in frame.columns})
    if not truth.width:
        return frame
    # First what the source knows: the page colours its map by the first of these columns.
    return pl.concat([frame[:, :3], truth, frame[:, 3:]], how="horizontal")


class _Writer:
    """Joins the content of small files to shards, and numbers the sensors of all detectors."""

    def __init__(self, prepared: Path) -> None:
        self._prepared = prepared
        self.events: list[int] = []
        self._waiting: list[Shard] = []
        self._first: dict[int, int] = {}
        self._detectors: list[Detector] = []

    def first_sensor(self, detector: Detector) -> int:
        if id(detector) not in self._first:
            self._first[id(detector)] = sum(map(len, self._detectors))
            self._detectors.append(detector)  # held, so that no other gets its id
        return self._first[id(detector)]

    def add(self, shard: Shard) -> None:
        self._waiting.append(shard)
        if sum(map(len, self._waiting)) >= _SHARD_EVENTS:
            self._write()

    def _write(self) -> None:
        joined = shards.concatenate(self._waiting)
        joined.save(self._prepared / SHARDS / f"{len(self.events):05d}")
        self.events.append(len(joined))
        self._waiting = []

    def close(self) -> None:
        if self._waiting:
            self._write()
        tables = np.concatenate([shards.sensor_table(detector) for detector in self._detectors])
        with whole_file(self._prepared / SENSORS) as partial, partial.open("wb") as file:
            np.save(file, tables)
        write_json(self._prepared / META, {"shards": self.events, "sensors": [len(d) for d in self._detectors]})
