"""One Chroma collection in one folder: the only module that knows Chroma."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import chromadb
import numpy as np
from chromadb.config import Settings

from manyscope.errors import DataError

_COLLECTION = "objects"


class ChromaCollection(AbstractContextManager["ChromaCollection"]):
    """An open collection; leaving the context lets go of its files.

    Vectors always come from the caller, so there is no embedding function, which could want to download a model.

    Attributes:
        configuration: of the HNSW graph, as stored: space, max_neighbors, ef_construction, ef_search, …
    """

    def __init__(self, client: Any, collection: Any) -> None:
        self._client, self._collection = client, collection
        self.configuration: dict[str, Any] = collection.configuration["hnsw"]

    @classmethod
    def create(cls, folder: Path, configuration: dict[str, Any]) -> ChromaCollection:
        client = _client(folder)
        made = client.create_collection(_COLLECTION, configuration={"hnsw": configuration}, embedding_function=None)
        return cls(client, made)

    @classmethod
    def open(cls, folder: Path) -> ChromaCollection:
        """
        Raises:
            DataError: there is no readable index.
        """
        # Chroma would make an empty store where there is none.
        if not (folder / "chroma.sqlite3").is_file():
            raise DataError("there is no index", place=folder, remedy="run the stage index")
        try:
            client = _client(folder)
            return cls(client, client.get_collection(_COLLECTION, embedding_function=None))
        except Exception as error:  # chromadb raises what sqlite and its own migrations raise
            raise DataError(
                f"not a readable index ({error})", place=folder, remedy="run the stage index again"
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @property
    def largest_batch(self) -> int:
        """Most rows that one `add` takes."""
        return int(self._client.get_max_batch_size())

    @property
    def dimension(self) -> int:
        """Of the vectors; 0 where there are none."""
        first = self._collection.get(limit=1, include=["embeddings"])["embeddings"]
        return len(first[0]) if len(first) else 0

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Store contiguous float32 vectors, (rows, dimensions)."""
        self._collection.add(ids=list(ids), embeddings=vectors)

    def ids(self) -> list[str]:
        return list(self._collection.get(include=[])["ids"])

    def count(self) -> int:
        return int(self._collection.count())

    def vector(self, object_id: str) -> np.ndarray | None:
        found = self._collection.get(ids=[object_id], include=["embeddings"])
        return np.asarray(found["embeddings"][0], np.float32) if found["ids"] else None

    def query(self, vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[list[float]]]:
        """Ids and distances of at most k neighbours of each of the contiguous float32 vectors."""
        found = self._collection.query(query_embeddings=vectors, n_results=k, include=["distances"])
        return found["ids"], found["distances"]


def _client(folder: Path) -> Any:
    return chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))
