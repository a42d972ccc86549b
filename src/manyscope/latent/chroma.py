"""One Chroma collection in one folder: the only module that knows Chroma."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import polars as pl
from chromadb.config import Settings

from manyscope.latent.columns import ObjectTable
from manyscope.latent.filters import Filter
from manyscope.latent.scan import nearest_in_blocks
from manyscope.latent.stores import Layout, unreadable
from manyscope.log import progress
from manyscope.settings.sections import IndexSettings

_COLLECTION = "objects"
_PARTS = 4  # times that the graph is written to disk while it grows; Chroma's log keeps the rows of the last part
_SMALL = 4_000  # rows that are written at once
_PAGE = 5_000  # vectors that are read at once
# Clients of one folder share what does the work in a process. Chroma guards neither its start nor its stop: a thread
# that opened the folder meanwhile would get it half made, or stopped.
_SHARED = threading.Lock()


class ChromaStore:
    """A collection of ids and vectors, with a graph to search them, and the columns beside it in objects.parquet.

    As Chroma's own metadata ten columns would double the time of a build and its size on disk (docs/search.md).
    Vectors always come from the caller, so there is no embedding function, which could want to download a model.

    Attributes:
        configuration: of the HNSW graph, as stored: space, max_neighbors, ef_construction, ef_search, …
    """

    configuration: dict[str, Any]

    def __init__(self, folder: Path, layout: Layout, client: Any, collection: Any) -> None:
        self.folder, self.layout, self._client, self._collection = folder, layout, client, collection
        self.configuration = dict(collection.configuration["hnsw"])
        self._objects = ObjectTable(folder)

    @classmethod
    def create(cls, folder: Path, layout: Layout, settings: IndexSettings, expected: int) -> ChromaStore:
        configuration = {
            "space": layout.metric,
            "max_neighbors": settings.max_neighbors,
            "ef_construction": settings.ef_construction,
            "ef_search": _searched(expected, settings),
            "sync_threshold": max(2, expected // _parts(expected)),
        }
        client = _client(folder)
        made = client.create_collection(_COLLECTION, configuration={"hnsw": configuration}, embedding_function=None)
        return cls(folder, layout, client, made)

    @classmethod
    def open(cls, folder: Path, layout: Layout) -> ChromaStore:
        # Chroma would make an empty store where there is none.
        if not (folder / "chroma.sqlite3").is_file():
            raise unreadable(folder, FileNotFoundError("chroma.sqlite3 is missing"))
        try:
            client = _client(folder)
            return cls(folder, layout, client, client.get_collection(_COLLECTION, embedding_function=None))
        except Exception as error:  # chromadb raises what sqlite and its own migrations raise
            raise unreadable(folder, error) from error

    def close(self) -> None:
        _close(self._client)

    @property
    def largest_batch(self) -> int:
        """Most rows that one call of Chroma's takes."""
        return int(self._client.get_max_batch_size())

    def count(self) -> int:
        return int(self._collection.count())

    def ids(self) -> list[str]:
        return list(self._collection.get(include=[])["ids"])

    def add(self, ids: Sequence[str], vectors: np.ndarray, columns: pl.DataFrame, settings: IndexSettings) -> None:
        parts = _parts(len(ids))
        if before := self.count():
            self._prepare_for(before, len(ids), parts, settings)
        for rows in progress(_batches(len(ids), parts, self.largest_batch), "index"):
            self._collection.add(ids=list(ids[rows]), embeddings=vectors[rows])
        if self.layout.columns:
            self._objects.write(ids, columns)

    def describe(self, ids: Sequence[str], columns: pl.DataFrame) -> None:
        self._objects.update(ids, columns)

    def described(self) -> pl.DataFrame:
        return self._objects.table()

    def vectors(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        parts = list(self._pages([list(ids[start : start + _PAGE]) for start in range(0, len(ids), _PAGE)]))
        nothing = np.empty((0, self.layout.dimension), np.float32)
        return [name for names, _ in parts for name in names], np.concatenate([nothing, *(part for _, part in parts)])

    def blocks(self) -> Iterator[tuple[list[str], np.ndarray]]:
        for start in range(0, self.count(), _PAGE):
            found = self._collection.get(limit=_PAGE, offset=start, include=["embeddings"])
            yield list(found["ids"]), np.asarray(found["embeddings"], np.float32)

    def query(self, vectors: np.ndarray, k: int, where: Filter) -> tuple[list[list[str]], list[list[float]]]:
        passing = self._objects.ids_passing(where) if where else None
        k = min(k, self.count() if passing is None else len(passing))
        if not k:
            return [[] for _ in vectors], [[] for _ in vectors]
        found = self._collection.query(query_embeddings=vectors, n_results=k, ids=passing, include=["distances"])
        ids, distances = found["ids"], found["distances"]
        # A graph may have lost the way to some objects.
        short = [query for query, names in enumerate(ids) if len(names) < k]
        if short:
            for query, names, far in zip(short, *self._scanned(vectors[short], k, passing), strict=True):
                ids[query], distances[query] = names, far
        return ids, distances

    def _scanned(
        self, vectors: np.ndarray, k: int, passing: list[str] | None
    ) -> tuple[list[list[str]], list[list[float]]]:
        """What `query` answers, without the graph."""
        every = sorted(self.ids() if passing is None else passing)
        row_of = {name: row for row, name in enumerate(every)}
        pages = self._pages([every[start : start + _PAGE] for start in range(0, len(every), _PAGE)])
        blocks = ((np.array([row_of[name] for name in names]), part) for names, part in pages)
        rows, distances = nearest_in_blocks(blocks, vectors, k, self.layout.metric)
        return [[every[row] for row in found] for found in rows], [far.tolist() for far in distances]

    def _pages(self, pages: Iterable[list[str]]) -> Iterator[tuple[list[str], np.ndarray]]:
        for page in pages:
            found = self._collection.get(ids=page, include=["embeddings"])
            if found["ids"]:
                yield list(found["ids"]), np.asarray(found["embeddings"], np.float32)

    def _prepare_for(self, before: int, added: int, parts: int, settings: IndexSettings) -> None:
        """Let the graph that is there grow by so many vectors, with which all of it is written to disk again."""
        grown = {"ef_search": _searched(before + added, settings), "sync_threshold": max(2, added // parts)}
        self._collection.modify(configuration={"hnsw": grown})
        _close(self._client)  # a client goes by the configuration that it opened with
        self._client = _client(self.folder)
        self._collection = self._client.get_collection(_COLLECTION, embedding_function=None)
        self.configuration = dict(self._collection.configuration["hnsw"])


def _searched(n: int, settings: IndexSettings) -> int:
    """Candidates of a search among n vectors: as the settings say, but never below √n.

    With a fixed number a search in a growing graph ends more and more often in a cluster beside the right one, and
    then misses all neighbours at once.
    """
    return max(settings.ef_search, math.isqrt(n))


def _parts(n: int) -> int:
    """In so many parts n rows are added. Each reaches the threshold at which the graph is written to disk, so that
    nothing has to be replayed from the log when the index is opened."""
    return _PARTS if n >= _SMALL else 1


def _batches(n: int, parts: int, most: int) -> list[slice]:
    batches = []
    edges = np.linspace(0, n, parts + 1).astype(int)
    for start, end in pairwise(edges):
        cuts = np.linspace(start, end, -(-(end - start) // most) + 1).astype(int)
        batches += [slice(int(a), int(b)) for a, b in pairwise(cuts)]
    return batches


def _client(folder: Path) -> Any:
    with _SHARED:
        return chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))


def _close(client: Any) -> None:
    with _SHARED:
        client.close()
