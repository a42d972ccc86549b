"""What an index asks of a vector store, which stores there are, and what a folder tells of the one that filled it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from manyscope.errors import DataError, ManyscopeError
from manyscope.latent.filters import Filter
from manyscope.latent.neighbours import Metric
from manyscope.registry import Registry
from manyscope.settings.sections import IndexSettings
from manyscope.tables.whole import put_back, read_json, write_json

STORES = Registry(
    "vector store",
    {
        "chroma": "manyscope.latent.chroma:ChromaStore",
        "exact": "manyscope.latent.exact:ExactStore",
        "lance": "manyscope.latent.lance:LanceStore",
    },
    group="manyscope.vector_stores",
)

_FILE = "store.json"


@dataclass(frozen=True)
class Layout:
    """What an index consists of, as its folder tells.

    Attributes:
        store: name or import path of the class that filled the folder.
        dimension: of the vectors.
        columns: those stored with the vectors, each with its type as `filters.TYPES` calls it.
    """

    store: str
    metric: Metric
    dimension: int
    columns: dict[str, str]


class VectorStore(Protocol):
    """Vectors with their ids and columns in one folder; a class with the methods `create` and `open`.

    All arguments have been checked: vectors are contiguous finite float32, k is at least 1 and ids are new. Distances
    are squared Euclidean (l2), 1 - cosine, or 1 - inner product (ip). What a library raises over a broken folder
    becomes a DataError.

    Attributes:
        configuration: of the store's own search structure, as it is stored.
    """

    configuration: dict[str, Any]

    @classmethod
    def create(cls, folder: Path, layout: Layout, settings: IndexSettings, expected: int) -> VectorStore:
        """An empty store in an existing, empty folder, to which so many vectors will be added."""

    @classmethod
    def open(cls, folder: Path, layout: Layout) -> VectorStore:
        """
        Raises:
            DataError: what the folder holds cannot be read.
        """

    def close(self) -> None:
        """Let go of all files; what was added is on disk."""

    def count(self) -> int:
        """Number of vectors."""

    def ids(self) -> list[str]:
        """Of all vectors, in any order."""

    def add(self, ids: Sequence[str], vectors: np.ndarray, columns: pl.DataFrame, settings: IndexSettings) -> None:
        """Store (n, dimension) vectors with n rows of exactly the layout's columns; the store may hold others."""

    def describe(self, ids: Sequence[str], columns: pl.DataFrame) -> None:
        """Give objects that are there, each named once, other values in all columns, of which there is at least one."""

    def described(self) -> pl.DataFrame:
        """object_id and the layout's columns, of which there is at least one, of all objects in any order."""

    def vectors(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Those of the ids that are there, in any order, and their vectors, (found, dimension) float32."""

    def blocks(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """All ids with their vectors, once each, so many at a time that memory stays small."""

    def query(self, vectors: np.ndarray, k: int, where: Filter) -> tuple[list[list[str]], list[list[float]]]:
        """For each of (queries, dimension) vectors, ids and distances of the k nearest that pass a filter, nearest
        first: exactly k, or all that pass where those are fewer. An empty filter lets all pass."""


def create_store(folder: Path, layout: Layout, settings: IndexSettings, expected: int) -> VectorStore:
    """An empty store, as `VectorStore.create` makes it, in a folder that tells of it.

    Raises:
        ManyscopeError: there is no such store, or it needs a package that is not installed.
    """
    store: VectorStore = _class(layout.store).create(folder, layout, settings, expected)
    write_json(folder / _FILE, asdict(layout))
    return store


@contextmanager
def opened_store(folder: Path) -> Iterator[tuple[VectorStore, Layout]]:
    """The store that filled a folder, whichever it was, for as long as the block lasts.

    Raises:
        DataError: there is no readable index.
        ManyscopeError: the store is unknown here, or needs a package that is not installed.
    """
    put_back(folder)
    if not (folder / _FILE).is_file():
        raise DataError("there is no index", place=folder, remedy="run the stage index")
    try:
        layout = Layout(**read_json(folder / _FILE))
    except TypeError as error:
        raise DataError("not a readable index", place=folder / _FILE, remedy="run the stage index again") from error
    store: VectorStore = _class(layout.store).open(folder, layout)
    try:
        yield store, layout
    finally:
        store.close()


def unreadable(folder: Path, error: Exception) -> DataError:
    """What to raise of a store that a library cannot read."""
    return DataError(f"not a readable index ({error})", place=folder, remedy="run the stage index again")


def _class(name: str) -> Any:
    found = STORES.find(name)
    if not (isinstance(found, type) and all(hasattr(found, method) for method in ("create", "open", "add", "query"))):
        raise ManyscopeError(f"{found!r} is not a vector store", place=name, allowed="a class like VectorStore")
    return found
