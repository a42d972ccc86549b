"""One table of LanceDB in one folder, searched on disk: the only module that knows LanceDB."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from manyscope.errors import MissingDependencyError
from manyscope.latent.filters import Filter, as_sql
from manyscope.latent.neighbours import Metric
from manyscope.latent.stores import Layout, unreadable
from manyscope.log import progress
from manyscope.settings.sections import IndexSettings

try:
    import lancedb
    from lancedb.index import IvfFlat
except ImportError as missing:
    raise MissingDependencyError(
        "the vector store 'lance' needs the package lancedb", remedy="pip install 'manyscope[lance]'"
    ) from missing

_TABLE = "objects"
_FLAT = 20_000  # up to so many vectors all are looked at
_GROWN = 2  # times more vectors than when the cells were made
_FEW = 20_000  # of so many that pass a filter all are looked at
_BATCH = 50_000  # rows that are written at once
_PAGE = 10_000  # rows that are read at once
_PROBED = 20  # cells in which the neighbours of a query are looked for, of about √n
_CACHE = 2**26  # bytes of cells, and of what is known of the files, that stay in memory
_DISTANCE: dict[Metric, Literal["l2", "cosine", "dot"]] = {"l2": "l2", "cosine": "cosine", "ip": "dot"}


class LanceStore:
    """object_id, vector and the columns under plain names c0, c1, …, since Lance allows no dots in a name.

    Attributes:
        configuration: index_type (None: every vector is looked at) and distance_type, as stored.
    """

    configuration: dict[str, Any]

    def __init__(self, folder: Path, layout: Layout, table: Any) -> None:
        self.folder, self.layout, self._table = folder, layout, table
        self._columns = {name: f"c{number}" for number, name in enumerate(layout.columns)}
        self.configuration = _configuration(table, layout)

    @classmethod
    def create(cls, folder: Path, layout: Layout, settings: IndexSettings, expected: int) -> LanceStore:
        types = {"text": pa.string(), "integer": pa.int64(), "float32": pa.float32(), "float64": pa.float64()}
        types["boolean"] = pa.bool_()
        fields = [("object_id", pa.string()), ("vector", pa.list_(pa.float32(), layout.dimension))]
        fields += [(f"c{number}", types[stored]) for number, stored in enumerate(layout.columns.values())]
        return cls(folder, layout, _connected(folder).create_table(_TABLE, schema=pa.schema(fields)))

    @classmethod
    def open(cls, folder: Path, layout: Layout) -> LanceStore:
        try:
            return cls(folder, layout, _connected(folder).open_table(_TABLE))
        except Exception as error:  # lancedb raises what its compiled part says, of several types
            raise unreadable(folder, error) from error

    def close(self) -> None:
        """Lance holds no lock."""

    def count(self) -> int:
        return int(self._table.count_rows())

    def ids(self) -> list[str]:
        return [name for names, _ in self._read(None, vectors=False) for name in names]

    def add(self, ids: Sequence[str], vectors: np.ndarray, columns: pl.DataFrame, settings: IndexSettings) -> None:
        for start in progress(range(0, len(ids), _BATCH), "index"):
            part = slice(start, min(start + _BATCH, len(ids)))
            values = pa.array(np.ascontiguousarray(vectors[part]).ravel())
            rows = {"vector": pa.FixedSizeListArray.from_arrays(values, self.layout.dimension)}
            self._table.add(self._rows(ids[part], columns[part], rows))
        self._index()

    def describe(self, ids: Sequence[str], columns: pl.DataFrame) -> None:
        self._table.merge_insert("object_id").when_matched_update_all().execute(self._rows(ids, columns, {}))
        self._index()

    def described(self) -> pl.DataFrame:
        asked = self._table.search().select(["object_id", *self._columns.values()]).limit(self.count())
        found = pl.DataFrame(pl.from_arrow(asked.to_arrow()))
        return found.rename({plain: name for name, plain in self._columns.items()})

    def vectors(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        parts = []
        for start in range(0, len(ids), _PAGE):
            listed = ", ".join("'" + name.replace("'", "''") + "'" for name in ids[start : start + _PAGE])
            parts += list(self._read(f"object_id IN ({listed})"))
        nothing = np.empty((0, self.layout.dimension), np.float32)
        return [name for names, _ in parts for name in names], np.concatenate([nothing, *(part for _, part in parts)])

    def blocks(self) -> Iterator[tuple[list[str], np.ndarray]]:
        return self._read(None)

    def query(self, vectors: np.ndarray, k: int, where: Filter) -> tuple[list[list[str]], list[list[float]]]:
        condition = as_sql(where, self._columns) if where else None
        passing = int(self._table.count_rows(condition))
        k = min(k, passing)
        if not k:
            return [[] for _ in vectors], [[] for _ in vectors]
        few = condition is not None and passing <= _FEW
        ids, distances = self._asked(vectors, k, condition, exactly=few)
        # The cells that were looked at may hold less than k that pass.
        short = [query for query, names in enumerate(ids) if len(names) < k]
        if short:
            for query, names, far in zip(short, *self._asked(vectors[short], k, condition, exactly=True), strict=True):
                ids[query], distances[query] = names, far
        return ids, distances

    def _asked(
        self, vectors: np.ndarray, k: int, condition: str | None, exactly: bool
    ) -> tuple[list[list[str]], list[list[float]]]:
        ids = [list[str]() for _ in vectors]
        distances = [list[float]() for _ in vectors]
        for query, vector in enumerate(vectors):
            asked = self._table.search(vector, vector_column_name="vector")
            asked = asked.distance_type(_DISTANCE[self.layout.metric]).select(["object_id", "_distance"]).limit(k)
            if condition:
                asked = asked.where(condition, prefilter=True)
            asked = asked.bypass_vector_index() if exactly else asked.nprobes(_PROBED)
            found = asked.to_arrow()
            ids[query] = found["object_id"].to_pylist()
            distances[query] = found["_distance"].to_pylist()
        return ids, distances

    def _rows(self, ids: Sequence[str], columns: pl.DataFrame, others: dict[str, pa.Array]) -> pa.Table:
        rows = {"object_id": pa.array(list(ids), pa.string()), **others}
        for name, column in self._columns.items():
            rows[column] = columns[name].to_arrow(compat_level=pl.CompatLevel.oldest())
        return pa.table(rows).cast(pa.schema([self._table.schema.field(name) for name in rows]))

    def _index(self) -> None:
        """Put all vectors into cells, new ones where they have grown. There are about as many cells as each has
        vectors, and none for few vectors."""
        self._tidy()
        count = self.count()
        indexed = sum(self._table.index_stats(index.name).num_indexed_rows for index in self._table.list_indices())
        if count > max(_FLAT, _GROWN * indexed):
            cells = IvfFlat(distance_type=_DISTANCE[self.layout.metric], num_partitions=math.isqrt(count))
            self._table.create_index("vector", config=cells, replace=True)
        self._tidy()
        self._tidy()  # what the last one replaced
        self.configuration = _configuration(self._table, self.layout)

    def _tidy(self) -> None:
        """Join small files, put new vectors into the cells that are there, and remove what earlier calls replaced:
        nobody else reads a folder that is being made."""
        with warnings.catch_warnings(action="ignore"):
            self._table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)

    def _read(self, condition: str | None, vectors: bool = True) -> Iterator[tuple[list[str], np.ndarray]]:
        asked = self._table.search().select(["object_id", "vector"] if vectors else ["object_id"])
        if condition:
            asked = asked.where(condition)
        for batch in asked.limit(self.count()).to_batches(_PAGE):
            read = np.empty((0, self.layout.dimension), np.float32)
            if vectors:
                read = batch["vector"].flatten().to_numpy().reshape(-1, self.layout.dimension)
            yield batch["object_id"].to_pylist(), np.asarray(read, np.float32)


def _connected(folder: Path) -> Any:
    """Its cells stay in memory up to a bound; by itself Lance would keep gigabytes."""
    return lancedb.connect(
        folder, session=lancedb.Session(index_cache_size_bytes=_CACHE, metadata_cache_size_bytes=_CACHE)
    )


def _configuration(table: Any, layout: Layout) -> dict[str, Any]:
    found: dict[str, Any] = {"index_type": None, "distance_type": _DISTANCE[layout.metric]}
    for index in table.list_indices():
        statistics = table.index_stats(index.name)
        found = {"index_type": statistics.index_type, "distance_type": statistics.distance_type}
    return found
