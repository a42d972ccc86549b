"""Exact search from disk: every vector is looked at, block by block, and none stays in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manyscope.latent.columns import ObjectTable
from manyscope.latent.filters import TYPES, Filter
from manyscope.latent.scan import nearest_in_blocks
from manyscope.latent.stores import Layout, unreadable
from manyscope.log import progress
from manyscope.settings.sections import IndexSettings

_BLOCK = 2**22  # numbers that are in memory at once: 16 MiB


class ExactStore:
    """vectors.npy and objects.parquet, in one order.

    A block is mapped only while it is looked at: what the whole process has mapped counts as its memory.
    """

    configuration: dict[str, Any]

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.configuration = {}
        self.path, self.layout, self.objects = folder / "vectors.npy", layout, ObjectTable(folder)
        self.rows = max(1, _BLOCK // layout.dimension)  # of a block

    @classmethod
    def create(cls, folder: Path, layout: Layout, settings: IndexSettings, expected: int) -> ExactStore:
        store = cls(folder, layout)
        store._start(store.path, 0)
        store.objects.write([], pl.DataFrame(schema={name: TYPES[stored] for name, stored in layout.columns.items()}))
        return store

    @classmethod
    def open(cls, folder: Path, layout: Layout) -> ExactStore:
        store = cls(folder, layout)
        _, count = store._header()
        if store.objects.count() != count:
            raise unreadable(folder, ValueError(f"{count} vectors, but {store.objects.count()} objects"))
        return store

    def close(self) -> None:
        """Nothing is open between two questions."""

    def count(self) -> int:
        return self._header()[1]

    def ids(self) -> list[str]:
        return self.objects.ids()

    def add(self, ids: Sequence[str], vectors: np.ndarray, columns: pl.DataFrame, settings: IndexSettings) -> None:
        partial, before = self.path.with_name(".vectors.partial"), self.count()
        self._start(partial, before + len(ids))
        with partial.open("ab") as file:
            for start in range(0, before, self.rows):
                file.write(self._block(start, min(start + self.rows, before)).data)
            starts = range(0, len(ids), self.rows)
            for start in progress(starts, "index"):
                file.write(np.ascontiguousarray(vectors[start : start + self.rows], "<f4").data)
        partial.replace(self.path)
        self.objects.write(ids, columns)

    def describe(self, ids: Sequence[str], columns: pl.DataFrame) -> None:
        self.objects.update(ids, columns)

    def described(self) -> pl.DataFrame:
        return self.objects.table()

    def vectors(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        found, rows = self.objects.rows_of(ids)
        vectors = [part[1] for part in self._blocks(rows)]
        return found, np.concatenate(vectors) if vectors else np.empty((0, self.layout.dimension), np.float32)

    def blocks(self) -> Iterator[tuple[list[str], np.ndarray]]:
        for start in range(0, self.count(), self.rows):
            ids = self.objects.slice(start, self.rows)
            yield ids, np.array(self._block(start, start + len(ids)))

    def query(self, vectors: np.ndarray, k: int, where: Filter) -> tuple[list[list[str]], list[list[float]]]:
        chosen = self.objects.rows_passing(where) if where else None
        rows, distances = nearest_in_blocks(self._blocks(chosen), vectors, k, self.layout.metric)
        names = iter(self.objects.ids(np.concatenate(rows)))
        return [[next(names) for _ in row] for row in rows], [far.tolist() for far in distances]

    def _blocks(self, chosen: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows, all or those chosen in order, with their vectors."""
        count = self.count()
        for start in range(0, count, self.rows):
            end = min(start + self.rows, count)
            if chosen is None:
                yield np.arange(start, end), self._block(start, end)
                continue
            rows = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, end)]
            if len(rows):
                yield rows, self._block(start, end)[rows - start]

    def _start(self, path: Path, rows: int) -> None:
        with path.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, self.layout.dimension)}
            np.lib.format.write_array_header_1_0(file, header)

    def _header(self) -> tuple[int, int]:
        """Where the vectors begin in the file, and how many there are."""
        try:
            with self.path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, _, _ = np.lib.format.read_array_header_1_0(file)
                start = file.tell()
                size = self.path.stat().st_size
        except (OSError, ValueError) as error:
            raise unreadable(self.path.parent, error) from error
        if len(shape) != 2 or shape[1] != self.layout.dimension or size != start + 4 * shape[0] * shape[1]:
            raise unreadable(self.path.parent, ValueError(f"vectors.npy is of shape {shape} and {size} bytes"))
        return start, shape[0]

    def _block(self, start: int, end: int) -> np.ndarray:
        """(rows, dimension) float32, which read the file as they are looked at."""
        first, _ = self._header()
        width = self.layout.dimension
        mapped = np.memmap(self.path, "<f4", "r", first + 4 * width * start, (end - start, width))
        return np.asarray(mapped)
