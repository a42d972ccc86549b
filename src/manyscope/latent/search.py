"""Finding the objects nearest to an object or a vector. Cheap to start: a search loads neither torch nor umap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.latent.index import VectorIndex, open_index
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.annotations import annotated
from manyscope.tables.objects import read_objects


def search(
    paths: ExperimentPaths,
    k: int,
    *,
    object_id: str | Sequence[str] | None = None,
    vector: np.ndarray | None = None,
    where: Sequence[str] = (),
) -> pl.DataFrame:
    """The k nearest objects of one experiment, answered by its index.

    Args:
        object_id: the object whose neighbours are wanted, which is not among them; or several objects.
        vector: or any vector, (dimensions,), or several, (queries, dimensions).
        where: filters (see `filters`), of which an object must pass all to be found.

    Returns:
        of several queries `query` (the id of an object, or the number of a vector from 0), then rank (from 1),
        object_id, distance, sample_id, and what samples, predictions and annotations say of each object in columns
        of single values, under the names of `object_columns`.

    Raises:
        DataError: no readable index, an unknown id, a vector or a filter that does not fit, k below 1, not exactly one
            kind of query, or an index that is older than the predictions.
    """
    with open_index(paths.index) as index:
        found = neighbours(index, k, object_id=object_id, vector=vector, where=where)
    several = not (isinstance(object_id, str) or (vector is not None and vector.ndim < 2))
    names = list(range(len(found))) if object_id is None else [object_id] if isinstance(object_id, str) else object_id
    table = pl.DataFrame(
        {
            "query": [name for name, row in zip(names, found, strict=True) for _ in row],
            "rank": [rank for row in found for rank in range(1, len(row) + 1)],
            "object_id": [name for row in found for name, _ in row],
            "distance": [far for row in found for _, far in row],
        },
        schema={"query": pl.UInt32 if object_id is None else pl.String, **_ANSWER},
    )
    return _described(table if several else table.drop("query"), paths)


def neighbours(
    index: VectorIndex,
    k: int,
    *,
    object_id: str | Sequence[str] | None = None,
    vector: np.ndarray | None = None,
    where: Sequence[str] = (),
) -> list[list[tuple[str, float]]]:
    """For each query ids and distances of the k nearest objects, as `search` finds them, of an index that is open.

    Raises:
        DataError: an unknown id, a vector or a filter that does not fit, k below 1, or not exactly one kind of query.
    """
    if (object_id is None) == (vector is None):
        raise DataError("a search needs one query", allowed="either an object_id or a vector")
    if k < 1:
        raise DataError(f"{k} neighbours were asked for", allowed="1 or more")
    if vector is not None:
        ids, distances = index.search(vector, k, where)
        own: Sequence[str | None] = [None] * len(ids)
    else:
        assert object_id is not None
        own = [object_id] if isinstance(object_id, str) else list(object_id)
        ids, distances = index.search(index.vectors([str(name) for name in own]), k + 1, where)
    answers = zip(own, ids, distances, strict=True)
    return [
        [(name, far) for name, far in zip(found, near.tolist(), strict=True) if name != itself][:k]
        for itself, found, near in answers
    ]


def nearest(
    index: VectorIndex, k: int, *, object_id: str | None = None, vector: np.ndarray | None = None
) -> list[tuple[str, float]]:
    """Ids of the k objects nearest to one with their distances, of an index that is open.

    Raises:
        DataError: an unknown id, a vector that does not fit, k below 1, or not exactly one query.
    """
    found = neighbours(index, k, object_id=object_id, vector=vector)
    if len(found) != 1:
        raise DataError(f"{len(found)} vectors were given", allowed="one vector")
    return found[0]


_ANSWER = {"rank": pl.UInt32, "object_id": pl.String, "distance": pl.Float32}


def _described(found: pl.DataFrame, paths: ExperimentPaths) -> pl.DataFrame:
    known = read_objects(paths.predictions, paths.samples, found["object_id"].unique(maintain_order=True).to_list())
    unknown = known.filter(pl.col("sample_id").is_null())["object_id"]
    if len(unknown):
        raise DataError(
            f"object {unknown[0]!r} of the index is not among the predictions",
            place=paths.index,
            remedy="run the stage index again",
        )
    keys = known.select("object_id", "sample_id")
    known = pl.concat([keys, annotated(known.drop(keys.columns), keys, paths.annotations)], how="horizontal")
    return found.join(known, on="object_id", how="left", maintain_order="left")
