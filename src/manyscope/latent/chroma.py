"""One Chroma collection in one folder.

The store is an ordinary Chroma database, which `chromadb.PersistentClient` opens too (tested). It is written and read
through the compiled half of chromadb, since `import chromadb` takes 0.5 to 0.9 s of CPU, where a whole search takes
0.3 s. That half has no promise of stability, hence the check of the version. Telemetry and embedding functions belong
to the other half and never run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from manyscope.errors import DataError, MissingDependencyError

_COLLECTION, _TENANT, _DATABASE = "objects", "default_tenant", "default_database"
_TENANCY = (_TENANT, _DATABASE)
_KNOWN = ("1.5.",)


class ChromaCollection(AbstractContextManager["ChromaCollection"]):
    """An open collection; leaving the context lets go of its files.

    Attributes:
        configuration: of the HNSW graph, as stored: space, max_neighbors, ef_construction, ef_search, …
        dimension: of the vectors.
    """

    def __init__(self, bindings: Any, collection: Any) -> None:
        self._bindings, self._id = bindings, str(collection.id)
        self.configuration: dict[str, Any] = collection.configuration["hnsw"]
        self.dimension: int = collection.dimension or 0

    @classmethod
    def create(cls, folder: Path, configuration: dict[str, Any]) -> ChromaCollection:
        bindings = _bindings(folder, "Apply")
        text = json.dumps({"hnsw": configuration})
        return cls(bindings, bindings.create_collection(_COLLECTION, text, None, None, False, *_TENANCY))

    @classmethod
    def open(cls, folder: Path) -> ChromaCollection:
        """
        Raises:
            DataError: there is no readable index.
        """
        if not (folder / "chroma.sqlite3").is_file():
            raise DataError("there is no index", place=folder, remedy="run the stage index")
        try:
            bindings = _bindings(folder, "Validate")
            return cls(bindings, bindings.get_collection(_COLLECTION, *_TENANCY))
        except MissingDependencyError:
            raise
        except Exception as error:  # chromadb raises what sqlite and its own migrations raise
            raise DataError(
                f"not a readable index ({error})", place=folder, remedy="run the stage index again"
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._bindings

    @property
    def largest_batch(self) -> int:
        """Most rows that one `add` takes."""
        return int(self._bindings.get_max_batch_size())

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Store contiguous float32 vectors, (rows, dimensions)."""
        self._bindings.add(list(ids), self._id, vectors, None, None, None, *_TENANCY)

    def ids(self) -> list[str]:
        return list(self._bindings.get(self._id, None, None, None, 0, None, [], *_TENANCY).ids)

    def count(self) -> int:
        return int(self._bindings.count(self._id, *_TENANCY))

    def vector(self, object_id: str) -> np.ndarray | None:
        found = self._bindings.get(self._id, [object_id], None, None, 0, None, ["embeddings"], *_TENANCY)
        return np.asarray(found.embeddings[0], np.float32) if found.ids else None

    def query(self, vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[list[float]]]:
        """Ids and distances of at most k neighbours of each of the contiguous float32 vectors."""
        found = self._bindings.query(self._id, None, vectors, k, None, None, ["distances"], *_TENANCY)
        return found.ids, found.distances


def _bindings(folder: Path, migration: str) -> Any:
    installed = version("chromadb")
    if not installed.startswith(_KNOWN):
        raise MissingDependencyError(
            f"chromadb {installed} is installed", allowed=f"{_KNOWN[0]}x", remedy="pip install 'chromadb>=1.5,<1.6'"
        )
    import chromadb_rust_bindings as rust  # type: ignore[import-untyped]

    database = rust.SqliteDBConfig(
        url=str(folder / "chroma.sqlite3"),
        hash_type=rust.MigrationHash.MD5,
        migration_mode=getattr(rust.MigrationMode, migration),
    )
    return rust.Bindings(allow_reset=False, sqlite_db_config=database, persist_path=str(folder), hnsw_cache_size=16)
