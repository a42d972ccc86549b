"""The vector index: building it, extending it, opening it, and searching it. Any of the stores may hold it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from manyscope.errors import DataError, did_you_mean
from manyscope.latent.audit import audit
from manyscope.latent.filters import TYPES, filterable, parse, types_of
from manyscope.latent.stores import Layout, VectorStore, create_store, opened_store
from manyscope.log import logger
from manyscope.settings.sections import IndexSettings
from manyscope.tables.whole import read_json, whole_folder, write_json

AUDIT = "audit.json"
_HINTS = 20_000  # ids among which a similar one is looked for
_COMPARED = 10_000  # stored vectors that are compared with new ones at once
_SAME = 1e-6  # what a store may have changed in a vector, relative to its length: under cosine Chroma rescales it


def build(
    vectors: np.ndarray,
    ids: Sequence[str],
    folder: Path,
    settings: IndexSettings,
    columns: pl.DataFrame | None = None,
) -> int:
    """Fill the existing, empty folder with an index of exactly these vectors.

    Args:
        vectors: (n, dimensions), stored as float32.
        ids: (n,); an id that comes again with the same vector is skipped.
        columns: (n rows) by which a search can be filtered, of which those are stored that the settings name.

    Returns:
        how many were skipped.

    Raises:
        DataError: no vector, an id that comes again with another vector, values that are not finite, a zero vector
            whose cosine is not defined, or columns that cannot be stored.
        ManyscopeError: there is no such store, or it needs a package that is not installed.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    _check(vectors, ids, settings.metric, columns)
    kept = _first_of_each(vectors, ids)
    stored = filterable(pl.DataFrame() if columns is None else columns, settings.columns)
    skipped = len(ids) - len(kept)
    if skipped:
        logger.info("%d vectors came again and were skipped", skipped)
        ids, vectors = [ids[row] for row in kept], vectors[kept]
        stored = _rows(stored, kept)
    layout = Layout(settings.store, settings.metric, vectors.shape[1], types_of(stored))
    store = create_store(folder, layout, settings, len(ids))
    try:
        store.add(ids, vectors, stored, settings)
        if set(store.ids()) != set(ids):
            raise DataError(f"the index holds {store.count()} of {len(ids)} objects", place=folder)
    finally:
        store.close()
    return skipped


def extend(
    folder: Path, vectors: np.ndarray, ids: Sequence[str], columns: pl.DataFrame | None, settings: IndexSettings
) -> int:
    """Add objects to an index, which is replaced whole: whoever reads it, or whenever the process is killed, it is the
    old one or the new one. Its audit is made again. Only one process may extend an index at a time.

    The store, the metric and the columns stay those of the index.

    Args:
        vectors: (n, dimension), stored as float32.
        ids: (n,); one that comes again, or that the index has with the same vector, is not added.
        columns: (n rows) with at least the columns that the index has, more are left out; None if it has none. They
            become those of the objects that are there already, too.

    Returns:
        how many objects were added.

    Raises:
        DataError: there is no readable index, an id has another vector in it, or the vectors or columns do not fit.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    start = time.perf_counter()
    with opened_store(folder) as (store, layout):
        if vectors.ndim == 2 and vectors.shape[1] != layout.dimension:
            raise DataError(f"vectors of {vectors.shape[1]} dimensions, the index has {layout.dimension}", place=folder)
        _check(vectors, ids, layout.metric, columns)
        fitting = _fitting(columns, layout, folder)
        first = _first_of_each(vectors, ids)
        known = _known(store, vectors[first], [ids[row] for row in first], layout, folder)
        kept, old = first[~known], first[known]
        described = not fitting.width or _has(store, [ids[row] for row in old], fitting[old])
    logger.info("%d new objects for the index, %d are there already", len(kept), len(ids) - len(kept))
    if not len(kept) and described:
        return 0
    with whole_folder(folder) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        with opened_store(copy) as (store, _):
            wanted = store.count() + len(kept)
            if len(kept):
                store.add([ids[row] for row in kept], vectors[kept], _rows(fitting, kept), settings)
            if not described:
                store.describe([ids[row] for row in old], fitting[old])
            if store.count() != wanted:
                raise DataError(f"the index holds {store.count()} of {wanted} objects", place=folder)
        if (copy / AUDIT).exists():
            _audit_again(copy, settings, time.perf_counter() - start)
    return len(kept)


class VectorIndex:
    """An open index.

    Attributes:
        count: number of vectors.
        dimension: their size.
        metric: "l2" (squared), "cosine" (1 - cosine) or "ip" (1 - inner product).
        columns: by which a search can be filtered, each with its type.
        configuration: of the store's own search structure, as it is stored.
    """

    def __init__(self, store: VectorStore, layout: Layout, place: Path) -> None:
        self._store, self._place = store, place
        self.count, self.dimension, self.metric = store.count(), layout.dimension, layout.metric
        self.columns, self.configuration = dict(layout.columns), store.configuration

    def search(
        self, vectors: np.ndarray, k: int, where: Sequence[str] = ()
    ) -> tuple[list[list[str]], list[np.ndarray]]:
        """The k objects nearest to each vector, nearest first; all of them if k is larger than the index.

        Args:
            vectors: (queries, dimension) or (dimension,).
            where: filters (see `filters`), of which an object must pass all to be found.

        Returns:
            for each query the ids, exactly k if so many objects pass, and their distances as float32.

        Raises:
            DataError: k below 1, vectors of another size, values that are not finite, a zero vector under cosine, or a
                filter that cannot be read or names an unknown column.
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
        wanted = parse(where, self.columns)
        if not len(queries):
            return [], []
        ids, distances = self._store.query(queries, min(k, self.count), wanted)
        ranked = [sorted(zip(d, i, strict=True)) for i, d in zip(ids, distances, strict=True)]
        return [[i for _, i in row] for row in ranked], [self._distances([d for d, _ in row]) for row in ranked]

    def vector(self, object_id: str) -> np.ndarray:
        """The stored vector, (dimension,) float32.

        Raises:
            DataError: the id is unknown.
        """
        return self.vectors([object_id])[0]

    def vectors(self, object_ids: Sequence[str]) -> np.ndarray:
        """The stored vectors of some objects in their order, (objects, dimension) float32.

        Raises:
            DataError: an id is unknown.
        """
        found, vectors = self._store.vectors(list(dict.fromkeys(object_ids)))
        row_of = {name: row for row, name in enumerate(found)}
        for name in object_ids:
            if name not in row_of:
                hint = did_you_mean(name, self._store.ids()[:_HINTS])
                raise DataError(f"object_id {name!r} is unknown", place=self._place, remedy=hint)
        return vectors[[row_of[name] for name in object_ids]]

    def _distances(self, found: list[float]) -> np.ndarray:
        distances = np.array(found, np.float32)
        return distances if self.metric == "ip" else np.maximum(distances, 0)  # rounding may leave -1e-7


@contextmanager
def open_index(folder: Path) -> Iterator[VectorIndex]:
    """An index for as long as the block lasts, whichever store holds it.

    Raises:
        DataError: there is no readable index.
        ManyscopeError: the store needs a package that is not installed.
    """
    with opened_store(folder) as (store, layout):
        yield VectorIndex(store, layout, folder)


def _check(vectors: np.ndarray, ids: Sequence[str], metric: str, columns: pl.DataFrame | None) -> None:
    if vectors.ndim != 2 or not vectors.size or len(vectors) != len(ids):
        raise DataError(f"vectors of shape {vectors.shape} for {len(ids)} objects", allowed="(objects, dimensions)")
    if columns is not None and columns.width and len(columns) != len(ids):
        raise DataError(f"columns of {len(columns)} rows for {len(ids)} objects")
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


def _first_of_each(vectors: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    """Rows of the first vector of each id, in order, (different ids,) int64."""
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if not np.array_equal(vectors[first.setdefault(name, row)], vectors[row]):
            raise DataError(f"object_id {name!r} occurs twice, with two vectors")
    return np.fromiter(first.values(), np.int64, len(first))


def _known(store: VectorStore, vectors: np.ndarray, ids: Sequence[str], layout: Layout, folder: Path) -> np.ndarray:
    """Which of the different ids the store has with the same vectors, (ids,) bool."""
    known = np.zeros(len(ids), bool)
    for start in range(0, len(ids), _COMPARED):
        row_of = {name: row for row, name in enumerate(ids[start : start + _COMPARED], start)}
        found, stored = store.vectors(list(row_of))
        rows = np.array([row_of[name] for name in found], np.int64)
        given = vectors[rows].astype(np.float64)
        off = np.linalg.norm(stored - given, axis=1) > _SAME * np.linalg.norm(given, axis=1)
        if off.any():
            raise DataError(
                f"object_id {found[int(off.argmax())]!r} has another vector in the index", place=folder,
                remedy="run the stage index, which builds it from the predictions",
            )  # fmt: skip
        known[rows] = True
    return known


def _has(store: VectorStore, ids: Sequence[str], columns: pl.DataFrame) -> bool:
    """Whether these objects of the store have these columns already."""
    given = columns.insert_column(0, pl.Series("object_id", ids, pl.String))
    stored = given.select("object_id").join(store.described(), on="object_id", how="left", maintain_order="left")
    return stored.equals(given)


def _fitting(columns: pl.DataFrame | None, layout: Layout, folder: Path) -> pl.DataFrame:
    """The columns of the layout, with its types."""
    given = pl.DataFrame() if columns is None else columns
    fitting = []
    for name, stored in layout.columns.items():
        if name not in given.columns:
            raise DataError(
                f"column {name!r} of the index is not given", place=folder, allowed=", ".join(given.columns)
            )
        series = given[name]
        if series.dtype != pl.Null:
            series = filterable(given.select(name), (name,))[name]
        try:
            fitting.append(series.cast(TYPES[stored]))
        except PolarsError as error:
            raise DataError(f"column {name!r} holds {series.dtype}, in the index {stored}", place=folder) from error
    return pl.DataFrame(fitting)


def _rows(columns: pl.DataFrame, rows: np.ndarray) -> pl.DataFrame:
    return columns[rows] if columns.width else columns


def _audit_again(folder: Path, settings: IndexSettings, seconds: float) -> None:
    with opened_store(folder) as (store, layout):
        parts = list(store.blocks())
        ids = [name for names, _ in parts for name in names]
        result = audit(VectorIndex(store, layout, folder), np.concatenate([part for _, part in parts]), ids, settings)
    built = read_json(folder / AUDIT).get("build_s", 0)
    write_json(folder / AUDIT, {**result, "build_s": round(built + seconds, 3)})
