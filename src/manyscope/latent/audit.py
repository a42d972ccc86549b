"""The audit of an index: its recall against exact search, and how long it takes to answer."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from manyscope.latent.neighbours import distances_to, nearest_neighbours
from manyscope.settings.sections import IndexSettings

if TYPE_CHECKING:
    from manyscope.latent.index import VectorIndex

_NEIGHBOURS = 10  # of recall@10
_DISTURBANCE = 0.1  # of each dimension's standard deviation
_TIMED = 100  # queries that are asked one by one


def audit(index: VectorIndex, vectors: np.ndarray, ids: list[str], settings: IndexSettings) -> dict[str, Any]:
    """Recall against exact search, and the latency of single queries.

    A query is a stored vector that was disturbed a little: the vector itself would always be found, and one neighbour
    in ten would be a gift. Every answer that is no farther than the tenth exact neighbour counts, so that equally near
    objects are as good as one another.
    """
    random = np.random.default_rng(settings.seed)
    chosen = random.choice(len(vectors), min(settings.audit_queries, len(vectors)), replace=False)
    noise = random.normal(scale=_DISTURBANCE, size=(len(chosen), vectors.shape[1]))
    queries = (vectors[chosen] + noise * vectors.std(0)).astype(np.float32)
    k, metric = min(_NEIGHBOURS, len(ids)), settings.metric

    row_of = {object_id: row for row, object_id in enumerate(ids)}
    rows = np.full((len(queries), k), -1)
    for query, found in enumerate(index.search(queries, k)[0]):
        rows[query, : len(found)] = [row_of[object_id] for object_id in found]
    exact, _ = nearest_neighbours(vectors, k, queries, metric=metric)
    limit = exact[:, -1:] + 1e-9 * np.abs(exact[:, -1:])
    hits = (rows >= 0) & (distances_to(vectors, rows, queries, metric=metric) <= limit)

    milliseconds = []
    for query in queries[:_TIMED]:
        start = time.perf_counter()
        index.search(query, k)
        milliseconds.append(1000 * (time.perf_counter() - start))
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {
        "count": index.count,
        "dimension": index.dimension,
        "recall_at_10": round(float(hits.mean()), 6),
        "recall_at_10_interval": _interval(hits.mean(1)),
        "query_p50_ms": round(float(p50), 3),
        "query_p99_ms": round(float(p99), 3),
    }


def _interval(shares: np.ndarray) -> list[float]:
    """95 % interval of the mean of (queries,) shares in [0, 1].

    Wilson, Probable Inference (1927), with as many trials as would vary as much as the queries do: the neighbours of
    one query are found or missed together.
    """
    n, mean, z = len(shares), float(shares.mean()), 1.96
    variance = float(shares.var())
    trials = n * mean * (1 - mean) / variance if variance > 0 else n
    middle = (mean + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z * math.sqrt(mean * (1 - mean) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return [round(max(0.0, middle - reach), 6), round(min(1.0, middle + reach), 6)]
