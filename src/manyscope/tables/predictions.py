"""infer/*.parquet: the latent table, one row for each object."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.tables.parquet import read_metadata, read_table, write_table

SCHEMA: dict[str, type[pl.DataType]] = {"object_id": pl.String, "sample_id": pl.String, "embedding": pl.Array}
_NOTHING = pl.DataFrame(schema={"object_id": pl.String, "sample_id": pl.String, "embedding": pl.Array(pl.Float32, 1)})
_ACCOUNTED = "manyscope.samples_digest"
_GROUP_ROWS = 8192
"""Of predictions.parquet. One object is found in milliseconds, and all are read as fast as in larger groups."""


@dataclass(frozen=True)
class Objects:
    """What a model says of one batch of samples.

    Attributes:
        samples: ids of every sample of the batch, also of those without objects.
        sample_id: for each object, the sample that it is part of.
        object_id: for each object, its id: unique in the experiment, stable from run to run.
        embedding: (objects, dimensions) float32.
        columns: further columns of the table, one value for each object.
    """

    samples: Sequence[str]
    sample_id: Sequence[str]
    object_id: Sequence[str]
    embedding: np.ndarray
    columns: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def one_each(cls, samples: Sequence[str], embedding: np.ndarray, columns: Mapping[str, Any]) -> Objects:
        """The common case: each sample is one object of the same id."""
        return cls(samples, samples, samples, embedding, columns)


def shard_of(sample_ids: Sequence[str], shards: int) -> np.ndarray:
    """The shard of each sample, (samples,) int: a hash of the id alone, so that added samples move no other."""
    return np.fromiter((zlib.crc32(s.encode()) % shards for s in sample_ids), np.int64, len(sample_ids))


def samples_digest(sample_ids: Iterable[str]) -> str:
    """One digest for a set of samples, whatever their order."""
    return hashlib.sha256("\n".join(sorted(sample_ids)).encode()).hexdigest()


def shard_table(batches: Iterable[Objects], wanted: Sequence[str], place: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """The table of one shard and the metadata that accounts for its samples.

    Args:
        wanted: the samples of the shard.

    Raises:
        DataError: a sample was left out or came twice, ids of objects repeat, or an embedding is not finite or
            changes its size.
    """
    frames, seen = [], list[str]()
    for batch in batches:
        seen += batch.samples
        vectors = np.ascontiguousarray(batch.embedding, np.float32)
        if vectors.ndim != 2 or len(vectors) != len(batch.object_id):
            raise DataError(
                f"embedding has shape {vectors.shape} for {len(batch.object_id)} objects",
                place=place,
                allowed="(objects, dimensions)",
            )
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
            raise DataError(
                f"the embedding of object {batch.object_id[row]!r} is not finite",
                place=place,
                remedy="look for missing values in the sample, or for a training that diverged",
            )
        if not len(vectors):
            continue  # empty columns have no type that would fit to those of other batches
        columns = {"object_id": list(batch.object_id), "sample_id": list(batch.sample_id)}
        frames.append(pl.DataFrame({**columns, "embedding": vectors, **batch.columns}, strict=True))
    missing, extra = set(wanted) - set(seen), len(seen) - len(set(seen))
    if missing or extra or len(seen) != len(wanted):
        raise DataError(
            f"{len(seen)} samples were predicted, {len(wanted)} belong here (for example {sorted(missing)[:1]})",
            place=place,
        )
    widths = {frame.schema["embedding"].shape for frame in frames}  # type: ignore[attr-defined]
    if len(widths) > 1:
        raise DataError(f"embeddings have different sizes {sorted(widths)}", place=place)
    table = pl.concat(frames or [_NOTHING])
    return _in_order(table, wanted, place), {_ACCOUNTED: samples_digest(seen)}


def accounts_for(shard: Path, samples: Iterable[str]) -> bool:
    """Whether a shard was made of these samples, no more and no less.

    Raises:
        DataError: the shard is missing or broken.
    """
    return read_metadata(shard).get(_ACCOUNTED) == samples_digest(samples)


def gather(shards: Sequence[Path], samples: Sequence[str]) -> pl.DataFrame:
    """All shards as one table in the order of the samples.

    Raises:
        DataError: a shard is missing, broken or of another data set, or an object id occurs twice.
    """
    number = shard_of(samples, len(shards))
    ids = np.asarray(samples, dtype=object)
    frames = []
    for i, path in enumerate(shards):
        frame = read_table(path, SCHEMA)
        if not accounts_for(path, ids[number == i]):
            raise DataError(
                "the shard does not hold the samples that belong to it",
                place=path,
                remedy="delete the folder infer/ and run again",
            )
        if len(frame):
            frames.append(frame)
    if not frames:
        raise DataError(
            "no sample has any object",
            place=shards[0].parent,
            remedy="train longer or on more data, or see section infer",
        )
    widths = {f.schema["embedding"].shape for f in frames}  # type: ignore[attr-defined]
    if len(widths) > 1:
        raise DataError(f"embeddings have different sizes {sorted(widths)}", place=shards[0].parent)
    return _in_order(pl.concat(frames), samples, shards[0].parent)


def read_predictions(path: Path) -> pl.DataFrame:
    """
    Raises:
        DataError: missing or broken file or columns.
    """
    return read_table(path, SCHEMA)


def write_predictions(path: Path, predictions: pl.DataFrame) -> None:
    """Write predictions.parquet, whole, in groups small enough that one object is found fast."""
    # Parquet's row groups follow the chunks of the frame, which follow the shards.
    write_table(path, predictions.rechunk(), group_rows=_GROUP_ROWS)


def embeddings(predictions: pl.DataFrame) -> np.ndarray:
    """The latent vectors, (objects, dimensions) float32, contiguous."""
    return np.ascontiguousarray(predictions["embedding"].to_numpy(), np.float32)


def _in_order(table: pl.DataFrame, samples: Sequence[str], place: Path) -> pl.DataFrame:
    repeated = table["object_id"].is_duplicated()
    if repeated.any():
        raise DataError(f"object_id {table['object_id'].filter(repeated)[0]!r} occurs twice", place=place)
    order = pl.DataFrame({"sample_id": list(samples)}, schema={"sample_id": pl.String}).with_row_index("_order")
    table = table.join(order, on="sample_id", how="left", maintain_order="left")
    if table["_order"].null_count():
        raise DataError(f"unknown sample {table.filter(pl.col('_order').is_null())['sample_id'][0]!r}", place=place)
    return table.sort("_order", maintain_order=True).drop("_order")
