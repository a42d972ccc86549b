"""Exact nearest neighbours among vectors that come in blocks: memory for one block, and for the answer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from manyscope.latent.neighbours import Metric

_QUERIES = 64  # whose rough distances to a block are held at once
_CANDIDATES = 4096  # whose distances are computed again at once
_ROUNDING = 2.0**-24  # of float32, relative
_LARGE, _SMALL = 1e36, 1e-30  # squared lengths between which float32 keeps its digits
_TINY = 1e-36


def nearest_in_blocks(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], queries: np.ndarray, k: int, metric: Metric
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The k nearest vectors of each query, nearest first; of equally near ones those with the lowest rows.

    A product in float32 gives rough distances with a bound of their error (Higham, Accuracy and Stability of Numerical
    Algorithms, 2002, section 3.1); all that could be among the nearest are measured again in float64.

    Args:
        blocks: rows (n,) int and vectors (n, dimensions) float32.
        queries: (m, dimensions) finite.

    Returns:
        for each query the rows, (k or fewer,) int64, and the distances, float64.
    """
    exact = _Exact(queries, metric)
    rows = [np.empty(0, np.int64) for _ in queries]
    distances = [np.empty(0) for _ in queries]
    for named, vectors in blocks:
        for start in range(0, len(queries), _QUERIES):
            part = range(start, min(start + _QUERIES, len(queries)))
            rough, error = exact.rough(vectors, part)
            for query in part:
                about, slack = rough[query - start], error[query - start]
                limit = distances[query][-1] if len(distances[query]) == k else np.inf
                if len(about) > k:
                    limit = min(limit, float(np.partition(about, k - 1)[k - 1]) + slack)
                near = np.flatnonzero(~(about > limit + slack))
                found = np.concatenate([rows[query], named[near]])
                far = np.concatenate([distances[query], exact.distances(vectors, near, query)])
                order = np.lexsort((found, far))[:k]
                rows[query], distances[query] = found[order], far[order]
    return rows, distances


class _Exact:
    def __init__(self, queries: np.ndarray, metric: Metric) -> None:
        self.metric = metric
        self.queries = queries.astype(np.float64)
        if metric == "cosine":
            self.queries = _unit(self.queries)
        self.lengths = np.linalg.norm(self.queries, axis=1)

    def rough(self, vectors: np.ndarray, part: range) -> tuple[np.ndarray, np.ndarray]:
        """Distances of some queries, (queries, vectors), and how far each query's may be off, (queries,)."""
        squares = np.einsum("nd,nd->n", vectors, vectors)
        small = self.metric == "cosine" and bool((squares < _SMALL).any())
        if small or not squares.max(initial=0) < _LARGE or self.lengths[part].max() ** 2 > _LARGE:
            vectors = vectors.astype(np.float64)
            squares = np.einsum("nd,nd->n", vectors, vectors)
        queries = self.queries[part].astype(vectors.dtype)
        product = queries @ vectors.T
        longest = float(np.sqrt(squares.max(initial=0)))
        rounding = (vectors.shape[1] + 8) * _ROUNDING
        if self.metric == "cosine":
            lengths = np.sqrt(squares)
            product /= np.where(lengths > 0, lengths, 1)
            return 1 - product, np.full(len(queries), 4 * rounding)
        if self.metric == "ip":
            return 1 - product, rounding * (1 + 2 * self.lengths[part] * longest) + _TINY
        product *= -2
        product += squares
        product += (queries**2).sum(1)[:, None]
        return product, 2 * rounding * (self.lengths[part] + longest) ** 2 + _TINY

    def distances(self, vectors: np.ndarray, near: np.ndarray, query: int) -> np.ndarray:
        distances = np.empty(len(near))
        for start in range(0, len(near), _CANDIDATES):
            points = vectors[near[start : start + _CANDIDATES]].astype(np.float64)
            if self.metric == "l2":
                points -= self.queries[query]
                found = np.einsum("nd,nd->n", points, points)
            elif self.metric == "cosine":
                found = np.maximum(1 - _unit(points) @ self.queries[query], 0)
            else:
                found = 1 - points @ self.queries[query]
            distances[start : start + _CANDIDATES] = found
        return distances


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
