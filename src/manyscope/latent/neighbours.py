"""Exact nearest neighbours: blocks of one matrix product each, memory bounded whatever the number of vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from manyscope.errors import DataError

Metric = Literal["l2", "cosine", "ip"]

_BLOCK = 2**21  # numbers in the largest array of a block: 16 MiB of float64, about what a cache holds
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

    base, points, rough, exact = _measure(reference, queries, metric)
    tolerance = _ROUNDING * max(float((base**2).sum(1).max()), float((points**2).sum(1).max(initial=0.0)))
    width = min(columns + excludes + _SPARE, len(base))
    step = max(1, _BLOCK // max(len(base), width * base.shape[1]))
    for start in range(0, len(points), step):
        block = points[start : start + step]
        itself = own[start : start + step, None] if own is not None and excludes else None
        candidates = _candidates(rough(block), columns + excludes, width, tolerance)
        near = exact(block, candidates)
        if itself is not None:
            near[candidates == itself] = np.inf
        order = np.lexsort((candidates, near), axis=1)[:, :columns]
        distances[start : start + step] = np.take_along_axis(near, order, 1)
        rows[start : start + step] = np.take_along_axis(candidates, order, 1)
    return distances, rows


def distances_to(reference: np.ndarray, rows: np.ndarray, queries: np.ndarray, *, metric: Metric = "l2") -> np.ndarray:
    """Distance of each query to some rows of the reference, (queries, columns) float64, exactly as
    `nearest_neighbours` computes them.

    Args:
        rows: (queries, columns) int.
    """
    _, points, _, exact = _measure(reference, queries, metric)
    return exact(points, rows)


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


Rough = Callable[[np.ndarray], np.ndarray]
Exact = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _measure(reference: np.ndarray, queries: np.ndarray, metric: Metric) -> tuple[np.ndarray, np.ndarray, Rough, Exact]:
    """Reference and queries as float64, brought to where a product measures well, and the two ways to measure."""
    base, points = reference.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        centre = base.mean(0)  # a far common offset would cost the product its digits
        base, points = base - centre, points - centre
        squares = (base**2).sum(1)

        def rough(block: np.ndarray) -> np.ndarray:
            product = block @ base.T
            product *= -2
            product += squares
            return product + (block**2).sum(1)[:, None]

        def exact(block: np.ndarray, candidates: np.ndarray) -> np.ndarray:
            difference = block[:, None] - base[candidates]
            return np.einsum("qcd,qcd->qc", difference, difference)

        return base, points, rough, exact
    if metric == "cosine":
        base, points = _unit(base), _unit(points)

    def rough_product(block: np.ndarray) -> np.ndarray:
        return 1 - block @ base.T

    def exact_product(block: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        distance = 1 - np.einsum("qd,qcd->qc", block, base[candidates])
        return distance if metric == "ip" else np.maximum(distance, 0)

    return base, points, rough_product, exact_product


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
