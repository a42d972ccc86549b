"""The work of `manyscope extend`: take in what the data source has got since the training, with the same weights.

Every file tells what it lacks, and each is written whole, so that an extension that was killed is finished by the next
one. Until it is finished, `.extend/` in the experiment's folder holds the samples as they were before.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.latent.reducers import REDUCERS, Reducer, StoredReducer, scale_of
from manyscope.log import logger
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.stages import download, gather, index, infer, preprocess, umap
from manyscope.tables.manifest import file_digest
from manyscope.tables.parquet import read_metadata, read_table, write_table
from manyscope.tables.predictions import Objects, accounts_for, embeddings, read_predictions, shard_of, shard_table
from manyscope.tables.samples import SCHEMA, chosen_ids, data_digest, read_samples
from manyscope.tables.whole import put_back, whole_folder

_CHECKED = 256  # old samples that are predicted again, to see that their pixels are what they were
_TOLERANCE = 1e-5  # of the largest number of an embedding: digits depend a little on the company in a batch
_SECOND = 10**9  # the finest that some file systems keep
_WEIGHTS = "weights_sha256"
_REMEDY = "the old objects must stay as they are: run the chain instead"


@dataclass(frozen=True)
class _Ahead(ExperimentPaths):
    """The experiment's files, but with a folder of their own for those that are prepared before they are trusted."""

    @property
    def work(self) -> Path:
        return self.root / ".extend"

    @property
    def prepared(self) -> Path:
        return self.work / "prepared"

    @property
    def files(self) -> Path:
        return self.work / "files"

    @property
    def before(self) -> Path:
        """The samples that were there before, and a digest of the weights; as long as this file is there, the extension
        is not finished."""
        return self.work / "before.parquet"


def run(
    settings: ExperimentSettings, paths: ExperimentPaths, shards: int, record: Callable[[], None] | None = None
) -> None:
    """Fetch and prepare all again, and predict, map and index the samples that are new.

    Args:
        settings: all of the experiment's.
        shards: into which the predictions were cut.
        record: called once everything is made, before the files get their times.

    Raises:
        DataError: a file of the chain is missing, or an old object has changed. Nothing but `raw/` is touched then.
        CheckpointError: the weights are of another model, or of other classes than the new data have.
    """
    ahead = _Ahead(paths.root)
    for folder in (paths.prepared, paths.umap, paths.index):  # of an extension that was killed
        put_back(folder)
    for made in (paths.samples, paths.model, paths.predictions, paths.map, paths.reducer, paths.audit):
        if not made.exists():
            raise DataError("the file is missing", place=made, remedy="run the chain first")
    try:
        if ahead.before.exists():
            if read_metadata(ahead.before).get(_WEIGHTS) == file_digest(paths.model):
                logger.info("finishing the extension that was interrupted")
                _complete(settings, paths, ahead, shards, record)
            else:  # what the old samples gave to other weights must not stand beside the new ones
                logger.info("trained anew since an extension was interrupted, which is not finished any more")
                ahead.before.unlink()
        if _prepare(settings, paths, ahead, shards):
            _complete(settings, paths, ahead, shards, record)
        else:
            logger.info("nothing is new")
    finally:
        if not ahead.before.exists():
            shutil.rmtree(ahead.work, ignore_errors=True)


def _prepare(settings: ExperimentSettings, paths: ExperimentPaths, ahead: _Ahead, shards: int) -> bool:
    """Put the grown `prepared/` in its place; False if there is nothing to be done."""
    download.run(settings.for_stage("download"), paths)
    preprocess.run(settings.for_stage("preprocess"), ahead)
    before, after = read_samples(paths.samples), read_samples(ahead.samples)
    unchanged = data_digest(paths.samples) == data_digest(ahead.samples)
    if unchanged and paths.manifest.stat().st_mtime_ns <= paths.samples.stat().st_mtime_ns:
        return False
    _check_old(settings, paths, ahead, before, after, shards)
    logger.info("%d samples join %d", len(after) - len(before), len(before))
    write_table(ahead.before, before.select(*SCHEMA), {_WEIGHTS: file_digest(paths.model)})
    with whole_folder(paths.prepared) as folder:
        for item in sorted(ahead.prepared.iterdir()):
            item.rename(folder / item.name)
    return True


def _check_old(
    settings: ExperimentSettings, paths: ExperimentPaths, ahead: _Ahead, before: pl.DataFrame, after: pl.DataFrame,
    shards: int,
) -> None:  # fmt: skip
    """
    Raises:
        DataError: an old sample is gone or has moved to another split, its prepared data give another embedding, or
            the shards, the map or the index are not of the old samples and these settings.
    """
    for made in (paths.map, paths.audit):
        if made.stat().st_mtime_ns < paths.predictions.stat().st_mtime_ns:  # a chain that stopped half-way
            # Snakemake, which compares what is in small files, may find nothing to do after `gather` was run alone.
            raise DataError(
                f"older than {paths.predictions.name}", place=made,
                remedy="run the chain first, with --forcerun umap index where it finds nothing to do",
            )  # fmt: skip
    together = before.select(*SCHEMA).join(after.select(*SCHEMA), on="sample_id", how="left", suffix="_now")
    for column in ("group", "split"):
        moved = together.filter(pl.col(column).ne_missing(pl.col(f"{column}_now")))
        if len(moved):
            name, was, now = moved.select("sample_id", column, f"{column}_now").row(0)
            raise DataError(
                f"{len(moved)} of {len(before)} samples have changed: {column} of {name!r} was {was!r} and is now"
                f" {'gone' if now is None else repr(now)}",
                place=paths.samples, remedy=_REMEDY,
            )  # fmt: skip
    _map(settings, paths)
    ids = chosen_ids(before, settings.infer.splits, paths.samples)
    for path, wanted in _by_shard(paths, ids, shards):
        if not accounts_for(path, wanted):
            raise DataError("the shard does not hold the samples that belong to it", place=path, remedy="run the chain")
    chosen = sorted(np.random.default_rng(0).choice(ids, min(_CHECKED, len(ids)), replace=False).tolist())
    batches = infer.predicted(settings.for_stage("infer"), ahead, chosen)
    now = shard_table(batches, chosen, ahead.prepared)[0]
    stored = read_predictions(paths.predictions).filter(pl.col("sample_id").is_in(chosen))
    now, was = now.sort("object_id"), stored.sort("object_id")
    same = now["object_id"].equals(was["object_id"]) and _alike(embeddings(now), embeddings(was))
    if not same:
        raise DataError(
            f"of {len(chosen)} old samples that were predicted again, some give other embeddings than before",
            place=paths.predictions, remedy=_REMEDY,
        )  # fmt: skip


def _alike(now: np.ndarray, was: np.ndarray) -> bool:
    if not len(now) and not len(was):
        return True  # samples without objects; a table of none has vectors of no certain size
    return now.shape == was.shape and bool(
        (np.abs(now - was) <= _TOLERANCE * np.abs(was).max(1, initial=0, keepdims=True)).all()
    )


def _complete(
    settings: ExperimentSettings, paths: ExperimentPaths, ahead: _Ahead, shards: int,
    record: Callable[[], None] | None,
) -> None:  # fmt: skip
    """Bring every file behind `prepared/` up to it."""
    # Snakemake looks at the time of a benchmark as at that of a result.
    trained = (paths.model, paths.history, paths.settings, paths.run, paths.benchmark("train"))
    shards_made = [paths.shard(number) for number in range(shards)]
    # The weights keep their time, and so nothing is due in an experiment that starts from them: what they are made of
    # gets one that is not newer. Shards that are older have a workflow that runs now predict again, not train.
    oldest = min(file.stat().st_mtime_ns for file in trained if file.exists())
    sources = (paths.benchmark("download"), paths.benchmark("preprocess"), paths.samples, paths.manifest)
    _touch(shards_made, oldest - _SECOND)
    _touch(sources, oldest)
    samples = read_samples(paths.samples)
    ids = chosen_ids(samples, settings.infer.splits, paths.samples)
    before = read_table(ahead.before, SCHEMA)
    old = set(chosen_ids(before, settings.infer.splits, ahead.before))
    for path, wanted in _by_shard(paths, ids, shards):
        _extend_shard(settings.for_stage("infer"), paths, path, wanted, old)
    gather.run(settings.for_stage("gather"), paths, shards)
    _extend_map(settings.for_stage("umap"), paths)
    index.extend(settings.for_stage("index"), paths)
    if record is not None:
        record()
    _touch(sources, oldest)  # which recording has touched
    # One time for all, so that none is newer than what is made of it; the last of the chain first, in case of a kill.
    mapped = (paths.map, paths.reducer, paths.map_quality, paths.map_figure)
    jobs = ["index", "umap", "gather", *(f"infer-{number:02d}" for number in range(shards))]
    benchmarks = [paths.benchmark(job) for job in jobs]
    _touch((*benchmarks, paths.audit, *mapped, paths.predictions, *shards_made), time.time_ns())
    ahead.before.unlink()


def _by_shard(paths: ExperimentPaths, ids: list[str], shards: int) -> list[tuple[Path, list[str]]]:
    """Each shard's file, with those of the samples that belong to it."""
    number = shard_of(ids, shards)
    return [(paths.shard(i), [ids[row] for row in np.flatnonzero(number == i)]) for i in range(shards)]


def _extend_shard(
    settings: ExperimentSettings, paths: ExperimentPaths, path: Path, wanted: Sequence[str], old: set[str]
) -> None:
    """Predict what the shard lacks and write it anew with what it had."""
    if accounts_for(path, wanted):
        return
    known, new = [s for s in wanted if s in old], [s for s in wanted if s not in old]
    if not accounts_for(path, known):
        raise DataError("the shard does not hold the samples that belong to it", place=path, remedy="run the chain")
    table = read_predictions(path)
    columns: Mapping[str, pl.Series] = {name: table[name] for name in table.columns[3:]}
    stored = Objects(known, table["sample_id"].to_list(), table["object_id"].to_list(), embeddings(table), columns)

    def batches() -> Iterable[Objects]:
        yield stored
        yield from infer.predicted(settings, paths, new)

    grown, metadata = shard_table(batches(), wanted, path)
    write_table(path, grown, metadata)
    logger.info("%s: %d new samples, %d new objects", path.name, len(new), len(grown) - len(table))


def _map(settings: ExperimentSettings, paths: ExperimentPaths) -> tuple[pl.DataFrame, Reducer]:
    """The map's table and the reducer that made it.

    Raises:
        DataError: one of them is missing or broken, or not of these settings.
    """
    wanted = ["object_id", *umap.AXES[: settings.umap.components]]
    mapped = read_table(paths.map, {"object_id": pl.String})
    if mapped.columns != wanted:
        raise DataError(
            f"the map has the columns {', '.join(mapped.columns)}",
            place=paths.map, allowed=", ".join(wanted), remedy="run the stage umap",
        )  # fmt: skip
    reducer: Reducer = REDUCERS.find(settings.umap.reducer).load(paths.reducer)
    return mapped, reducer


def _extend_map(settings: ExperimentSettings, paths: ExperimentPaths) -> None:
    """Let the stored reducer place the new objects; the others stay where they are."""
    section = settings.umap
    table = read_predictions(paths.predictions)
    ids, vectors = table["object_id"], embeddings(table)
    mapped, reducer = _map(settings, paths)
    if not mapped["object_id"].is_in(ids.implode()).all():
        raise DataError("the map has objects that are not predicted", place=paths.map, remedy="run the stage umap")
    placed = table.select("object_id").join(mapped, on="object_id", how="left", maintain_order="left")
    coordinates = placed.drop("object_id").to_numpy().astype(np.float32)
    new = placed["x"].is_null().to_numpy()
    if not new.any() and mapped["object_id"].equals(ids):
        return
    added = np.asarray(reducer.transform(vectors[new]), np.float32)
    if added.shape != coordinates[new].shape:
        raise DataError(
            f"the stored reducer gives coordinates of shape {added.shape}",
            place=paths.reducer, allowed=str(coordinates[new].shape), remedy="run the stage umap",
        )  # fmt: skip
    coordinates[new] = added
    scale = reducer.scale if isinstance(reducer, StoredReducer) else scale_of(vectors, section)
    umap.write_map(settings, paths, reducer, ids, vectors, coordinates, scale)
    logger.info("%d of %d objects are new on the map", new.sum(), len(new))


def _touch(files: Iterable[Path], time_ns: int) -> None:
    for file in files:
        if file.exists():
            os.utime(file, ns=(time_ns, time_ns))
