"""Nearly exact nearest neighbours among many vectors: only those in the cells nearest to a query are looked at.

An inverted file: Jégou, Douze and Schmid, Product Quantization for Nearest Neighbor Search (2011), section IV, without
the quantization. It is preferred to neighbour graphs here because it compiles nothing, always gives the same answer,
and finds its way between clusters that lie apart.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from manyscope.latent.neighbours import distances_to, nearest_neighbours

_PROBED = 16  # cells in which the neighbours of a query are looked for
_ROUNDS = 8  # of Lloyd's algorithm
_LEARNT = 64  # vectors for each cell on which its centre is learnt
_SPARE = 8  # candidates beyond the k nearest, for what float32 may have put in the wrong order
_QUERIES = 2**14  # queries that are answered at once


class Cells:
    """Vectors in about as many cells as a cell has vectors. The same vectors and seed give the same cells."""

    def __init__(self, reference: np.ndarray, metric: Literal["l2", "cosine"], seed: int) -> None:
        """
        Args:
            reference: (n, dimensions) finite float32, n at least 1.
        """
        self.reference, self.metric = reference, metric
        directed = self._directed(reference)
        count = max(1, round(len(reference) ** 0.5))
        self.centres = _centres(directed, count, np.random.default_rng(seed))
        cell = nearest_neighbours(self.centres, 1, directed)[1][:, 0]
        self.rows = np.argsort(cell, kind="stable")
        self.edges = np.searchsorted(cell[self.rows], np.arange(len(self.centres) + 1))
        self.members = directed[self.rows]

    def neighbours(
        self, k: int, queries: np.ndarray | None = None, *, own: np.ndarray | None = None, probed: int = _PROBED
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `nearest_neighbours` answers, but for a neighbour that may be missed.

        Args:
            k: at most as many neighbours as there are.
            queries: (m, dimensions) finite float32; None asks for the neighbours of the vectors, each without itself.
            own: (m,) int, the row of the vectors that each query is and that is not to be found; -1 for none.

        Returns:
            distances (m, k) float64, exact for the neighbours found, and their rows (m, k) int64.
        """
        if queries is None:
            queries, own = self.reference, np.arange(len(self.reference))
        distances, rows = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            itself = None if own is None else own[part]
            distances[part], rows[part] = self._answer(queries[part], k, itself, min(probed, len(self.centres)))
        return distances, rows

    def _answer(
        self, queries: np.ndarray, k: int, own: np.ndarray | None, probed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        width = k + (own is not None) + _SPARE
        rough, candidates = self._candidates(self._directed(queries), width, probed)
        best = np.argpartition(rough, width - 1, axis=1)[:, :width]
        candidates = np.take_along_axis(candidates, best, 1)
        near = distances_to(self.reference, np.maximum(candidates, 0), queries, metric=self.metric)
        near[candidates < 0] = np.inf
        if own is not None:
            near[candidates == own[:, None]] = np.inf
        order = np.lexsort((candidates, near), axis=1)[:, :k]
        distances, rows = np.take_along_axis(near, order, 1), np.take_along_axis(candidates, order, 1)
        few = np.flatnonzero(np.isinf(distances[:, -1]))  # the cells that were looked at hold less than k
        if len(few):
            distances[few], rows[few] = nearest_neighbours(
                self.reference, k, queries[few], metric=self.metric, own=None if own is None else own[few]
            )
        return distances, rows

    def _candidates(self, queries: np.ndarray, width: int, probed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rough squared distances and rows of the `width` nearest in each cell, (m, probed * width); -1 for none."""
        rough = np.full((len(queries), probed, width), np.inf, np.float32)
        found = np.full((len(queries), probed, width), -1)
        probes = nearest_neighbours(self.centres, probed, queries)[1]
        by_cell = np.argsort(probes, axis=None, kind="stable")
        edges = np.searchsorted(probes.ravel()[by_cell], np.arange(len(self.centres) + 1))
        for cell, centre in enumerate(self.centres):
            asking, nth = np.divmod(by_cell[edges[cell] : edges[cell + 1]], probed)
            first, last = self.edges[cell], self.edges[cell + 1]
            if not len(asking) or first == last:
                continue
            # Seen from the centre the numbers are small, so that float32 keeps the digits that tell distances apart.
            points, base = queries[asking] - centre, self.members[first:last] - centre
            squared = (base**2).sum(1) - 2 * (points @ base.T) + (points**2).sum(1)[:, None]
            taken = min(width, last - first)
            chosen = np.argpartition(squared, taken - 1, axis=1)[:, :taken]
            rough[asking, nth, :taken] = np.take_along_axis(squared, chosen, 1)
            found[asking, nth, :taken] = self.rows[first + chosen]
        return rough.reshape(len(queries), -1), found.reshape(len(queries), -1)

    def _directed(self, vectors: np.ndarray) -> np.ndarray:
        """Unit vectors under cosine, among which the squared distance orders as the cosine does."""
        if self.metric == "l2":
            return vectors
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def _centres(vectors: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Centres of k-means by Lloyd's algorithm, (count, dimensions) float32."""
    learnt = vectors[random.choice(len(vectors), min(len(vectors), count * _LEARNT), replace=False)]
    centres = learnt[:count].copy()
    for _ in range(_ROUNDS):
        cell = nearest_neighbours(centres, 1, learnt)[1][:, 0]
        order = np.argsort(cell, kind="stable")
        filled, first = np.unique(cell[order], return_index=True)
        sums = np.add.reduceat(learnt[order].astype(np.float64), first, axis=0)
        centres[filled] = sums / np.bincount(cell, minlength=count)[filled, None]
    return centres
