"""Exact nearest neighbours: blocks of one matrix product each.

Vectors become float64 block by block, so that little more memory is taken than the vectors and the answer have.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from manyscope.errors import DataError

Metric = Literal["l2", "cosine", "ip"]

_BLOCK = 2**21  # numbers in the largest array of a block: 16 MiB of float64, about what a cache holds
_TILE = 2**16  # reference vectors that are looked through at once
_SPARE = 8  # candidates beyond the k nearest, for what the rough distances may have put in the wrong order
_ROUNDING = 1e-12  # error of a rough distance, relative to the largest squared norms


def nearest_neighbours(
    reference: np.ndarray,
    k: int,
    queries: np.ndarray | None = None,
    *,
    metric: Metric = "l2",
    own: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest reference vectors of each query, nearest first; equally near ones in the order of the reference.

    A matrix product gives rough distances, from which a few more than k candidates are taken; theirs are then
    computed again from differences, so that duplicates are at distance 0 exactly.

    Args:
        reference: (n, dimensions).
        k: at least 0; fewer columns are returned where fewer neighbours exist.
        queries: (m, dimensions); None asks for the neighbours of the reference vectors, each without itself.
        metric: "l2" is the squared Euclidean distance, "cosine" 1 - cosine (1 beside a zero vector), "ip" 1 - inner
            product.
        own: (m,) int, the row of the reference that each query is and that is not to be found; -1 for none.

    Returns:
        distances (m, columns) float64 and rows of the reference (m, columns) int64, where columns is the smaller of k
        and n, or n - 1 if any query has a row of its own.

    Raises:
        DataError: shapes that do not fit, values that are not finite, or a negative k.
    """
    if queries is None:
        queries, own = reference, np.arange(len(reference))
    _check(reference, queries, k, own)
    excludes = own is not None and bool((own >= 0).any())
    columns = max(0, min(k, len(reference) - excludes))
    distances = np.empty((len(queries), columns))
    rows = np.empty((len(queries), columns), np.int64)
    if not columns:
        return distances, rows

    distances.fill(np.inf)
    centre = _centre(reference, metric)
    for first in range(0, len(reference), _TILE):
        tile = _Tile(reference[first : first + _TILE], centre, metric)
        wanted = min(columns + excludes, len(tile.base))
        width = min(wanted + _SPARE, len(tile.base))
        step = max(1, _BLOCK // max(len(tile.base), width * reference.shape[1]))
        for start in range(0, len(queries), step):
            block = slice(start, start + step)
            points = tile.points(queries[block])
            candidates = _candidates(tile.rough(points), wanted, width, tile.tolerance(points))
            near = tile.exact(points, candidates)
            candidates = candidates + first
            if own is not None and excludes:
                near[candidates == own[block, None]] = np.inf
            if first:
                near = np.concatenate([distances[block], near], axis=1)
                candidates = np.concatenate([rows[block], candidates], axis=1)
            order = np.lexsort((candidates, near), axis=1)[:, :columns]
            found = order.shape[1]  # less than the columns where the first tile is small
            distances[block, :found] = np.take_along_axis(near, order, 1)
            rows[block, :found] = np.take_along_axis(candidates, order, 1)
    return distances, rows


def distances_to(reference: np.ndarray, rows: np.ndarray, queries: np.ndarray, *, metric: Metric = "l2") -> np.ndarray:
    """Distance of each query to some rows of the reference, (queries, columns) float64, exactly as
    `nearest_neighbours` computes them.

    Args:
        rows: (queries, columns) int.
    """
    centre = _centre(reference, metric)
    distances = np.empty(rows.shape)
    step = max(1, _BLOCK // max(1, rows.shape[1] * reference.shape[1]))
    for start in range(0, len(queries), step):
        chosen = rows[start : start + step]
        tile = _Tile(reference[chosen.ravel()], centre, metric)
        within = np.arange(chosen.size).reshape(chosen.shape)
        distances[start : start + step] = tile.exact(tile.points(queries[start : start + step]), within)
    return distances


def _check(reference: np.ndarray, queries: np.ndarray, k: int, own: np.ndarray | None) -> None:
    if reference.ndim != 2 or queries.ndim != 2 or reference.shape[1] != queries.shape[1]:
        raise DataError(
            f"reference vectors of shape {reference.shape} and queries of shape {queries.shape}",
            allowed="two tables with the same number of columns",
        )
    if k < 0:
        raise DataError(f"{k} neighbours were asked for", allowed="0 or more")
    if own is not None and (own.shape != (len(queries),) or (own >= len(reference)).any()):
        raise DataError(f"'own' of shape {own.shape} names no row of the reference for each of {len(queries)} queries")
    for name, vectors in (("reference", reference), ("query", queries)):
        if not np.isfinite(vectors).all():
            raise DataError(f"a {name} vector is not finite")


def _centre(reference: np.ndarray, metric: Metric) -> np.ndarray:
    """What is subtracted from all vectors, (dimensions,): a far common offset would cost the product its digits."""
    if metric == "l2" and len(reference):
        mean: np.ndarray = reference.mean(0, dtype=np.float64)
        return mean
    return np.zeros(reference.shape[1])


class _Tile:
    """Some reference vectors as float64, brought to where a product measures well, and the two ways to measure."""

    def __init__(self, reference: np.ndarray, centre: np.ndarray, metric: Metric) -> None:
        self.centre, self.metric = centre, metric
        self.base = self.points(reference)
        self.squares = (self.base**2).sum(1)

    def points(self, vectors: np.ndarray) -> np.ndarray:
        points = vectors.astype(np.float64)
        if self.metric == "l2":
            points -= self.centre
        return _unit(points) if self.metric == "cosine" else points

    def tolerance(self, points: np.ndarray) -> float:
        return _ROUNDING * max(float(self.squares.max()), float((points**2).sum(1).max(initial=0.0)))

    def rough(self, points: np.ndarray) -> np.ndarray:
        product = points @ self.base.T
        if self.metric != "l2":
            return 1 - product
        product *= -2
        product += self.squares
        return product + (points**2).sum(1)[:, None]

    def exact(self, points: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        if self.metric == "l2":
            difference = points[:, None] - self.base[candidates]
            return np.einsum("qcd,qcd->qc", difference, difference)
        distance = 1 - np.einsum("qd,qcd->qc", points, self.base[candidates])
        return distance if self.metric == "ip" else np.maximum(distance, 0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.sqrt((vectors**2).sum(1, keepdims=True))
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def _candidates(rough: np.ndarray, k: int, width: int, tolerance: float) -> np.ndarray:
    """Rows of `width` columns that hold the k smallest; of more equally small ones than fit, the first."""
    if width == rough.shape[1]:
        return np.broadcast_to(np.arange(width), rough.shape)
    chosen = np.argpartition(rough, width - 1, axis=1)[:, :width]
    values = np.sort(np.take_along_axis(rough, chosen, 1), axis=1)
    limit = values[:, k - 1] + tolerance
    for row in np.flatnonzero(values[:, -1] <= limit):
        closer = rough[row] < limit[row] - 2 * tolerance
        tied = ~closer & (rough[row] <= limit[row])
        chosen[row] = np.concatenate([np.flatnonzero(closer), np.flatnonzero(tied)])[:width]
    return chosen
