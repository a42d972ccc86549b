"""The vector index: building it, opening it, and searching it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np

from manyscope.errors import DataError, did_you_mean
from manyscope.latent.chroma import ChromaCollection
from manyscope.log import progress
from manyscope.settings.sections import IndexSettings

_PARTS = 4  # times that the graph is written to disk while it grows; Chroma's log keeps the rows of the last part
_SMALL = 4_000  # rows that are written at once
_HINTS = 20_000  # ids among which a similar one is looked for


def build(vectors: np.ndarray, ids: Sequence[str], folder: Path, settings: IndexSettings) -> None:
    """Fill the existing, empty folder with an index of exactly these vectors.

    Args:
        vectors: (n, dimensions), stored as float32.
        ids: (n,) unique.

    Raises:
        DataError: no vector, ids that repeat, values that are not finite, or a zero vector whose cosine is not defined.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    _check(vectors, ids, settings.metric)
    parts = _PARTS if len(ids) >= _SMALL else 1
    configuration = {
        "space": settings.metric,
        "max_neighbors": settings.max_neighbors,
        "ef_construction": settings.ef_construction,
        "ef_search": _searched(len(ids), settings),
        # Every part reaches the threshold, so that nothing has to be replayed from the log when the index is opened.
        "sync_threshold": max(2, len(ids) // parts),
    }
    with ChromaCollection.create(folder, configuration) as collection:
        for rows in progress(_batches(len(ids), parts, collection.largest_batch), "index"):
            collection.add(ids[rows], vectors[rows])
        if set(collection.ids()) != set(ids):
            raise DataError(f"the index holds {collection.count()} of {len(ids)} objects", place=folder)


def _searched(n: int, settings: IndexSettings) -> int:
    """Candidates of a search among n vectors: as the settings say, but never below √n.

    With a fixed number a search in a growing graph ends more and more often in a cluster beside the right one, and
    then misses all neighbours at once.
    """
    return max(settings.ef_search, math.isqrt(n))


def _batches(n: int, parts: int, most: int) -> list[slice]:
    batches = []
    edges = np.linspace(0, n, parts + 1).astype(int)
    for start, end in pairwise(edges):
        cuts = np.linspace(start, end, -(-(end - start) // most) + 1).astype(int)
        batches += [slice(int(a), int(b)) for a, b in pairwise(cuts)]
    return batches


def _check(vectors: np.ndarray, ids: Sequence[str], metric: str) -> None:
    if vectors.ndim != 2 or not vectors.size or len(vectors) != len(ids):
        raise DataError(f"vectors of shape {vectors.shape} for {len(ids)} objects", allowed="(objects, dimensions)")
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise DataError(f"object_id {twice!r} occurs twice")
    bad = ~np.isfinite(vectors).all(1)
    if bad.any():
        raise DataError(
            f"the vector of object {ids[int(bad.argmax())]!r} is not finite", remedy="run the stage infer again"
        )
    zero = ~vectors.any(1)
    if metric == "cosine" and zero.any():
        raise DataError(
            f"the vector of object {ids[int(zero.argmax())]!r} is zero and has no cosine with any other",
            remedy="set index.metric to l2",
        )


class VectorIndex:
    """An open index.

    Attributes:
        count: number of vectors.
        dimension: their size.
        metric: "l2" (squared), "cosine" (1 - cosine) or "ip" (1 - inner product).
    """

    def __init__(self, collection: ChromaCollection, place: Path) -> None:
        self._collection, self._place = collection, place
        self.count = collection.count()
        self.dimension = collection.dimension
        self.metric: str = collection.configuration["space"]
        self.configuration = collection.configuration

    def search(self, vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[np.ndarray]]:
        """The k objects nearest to each vector, nearest first; all of them if k is larger than the index.

        Args:
            vectors: (queries, dimension) or (dimension,).

        Returns:
            for each query the ids, and their distances as float32.

        Raises:
            DataError: k below 1, vectors of another size, values that are not finite, or a zero vector under cosine.
        """
        queries = np.ascontiguousarray(np.atleast_2d(vectors), np.float32)
        if k < 1:
            raise DataError(f"{k} neighbours were asked for", allowed="1 or more")
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise DataError(
                f"the query has {queries.shape[-1]} dimensions, the index {self.dimension}",
                place=self._place,
                remedy="give a vector of the model with which the index was made",
            )
        if not np.isfinite(queries).all():
            raise DataError("the query is not finite")
        if self.metric == "cosine" and not queries.any(1).all():
            raise DataError("the query is a zero vector, which has no cosine with any other")
        if not len(queries):
            return [], []
        ids, distances = self._collection.query(queries, min(k, self.count))
        ranked = [sorted(zip(d, i, strict=True)) for i, d in zip(ids, distances, strict=True)]
        return [[i for _, i in row] for row in ranked], [np.array([d for d, _ in row], np.float32) for row in ranked]

    def vector(self, object_id: str) -> np.ndarray:
        """The stored vector, (dimension,) float32.

        Raises:
            DataError: the id is unknown.
        """
        vector = self._collection.vector(object_id)
        if vector is None:
            hint = did_you_mean(object_id, self._collection.ids()[:_HINTS])
            raise DataError(f"object_id {object_id!r} is unknown", place=self._place, remedy=hint)
        return vector


@contextmanager
def open_index(folder: Path) -> Iterator[VectorIndex]:
    """An index for as long as the block lasts.

    Raises:
        DataError: there is no readable index.
    """
    with ChromaCollection.open(folder) as collection:
        yield VectorIndex(collection, folder)
