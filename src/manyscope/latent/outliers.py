"""How strange an object is among the training objects, judged in the latent space. Larger is stranger."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from manyscope.errors import DataError
from manyscope.latent.cells import Cells
from manyscope.latent.neighbours import nearest_neighbours
from manyscope.log import progress

# Keeps the density of a point with k duplicates finite; the value of scikit-learn, so that the scores are the same.
_SMALLEST_REACH = 1e-10
_PART = 2**16  # queries that are standardised at once


def outlier_scores(
    vectors: np.ndarray, reference: np.ndarray, neighbours: Mapping[str, int], *, standardize: bool = True,
    exact: int | None = None, seed: int = 0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Several scores from one search for neighbours.

    Args:
        vectors: (n, dimensions).
        reference: (n,) bool, the vectors that the others are judged by.
        neighbours: "knn" or "lof" -> number of neighbours.
        standardize: divide each dimension by its standard deviation over the reference.
        exact: with more reference vectors than so many, neighbours are sought as `manyscope.latent.cells` does.
        seed: of the cells.

    Returns:
        name -> (n,) float64; NaN where an object has no other to be compared with.

    Raises:
        DataError: no reference vector, or values that are not finite.
    """
    members = np.flatnonzero(reference)
    own = np.full(len(vectors), -1)
    own[members] = np.arange(len(members))
    most = max(neighbours.values(), default=0)
    distances, rows = _surroundings(vectors[members], vectors, most, own, standardize, exact, seed)
    scores = {}
    for name, k in neighbours.items():
        if name == "knn":
            scores[name] = _mean(distances[:, :k])
        else:
            near, who = distances[:, :k], rows[:, :k]
            scores[name] = _factor(near, who, near[members], who[members])
    return scores


def knn_distance(reference: np.ndarray, queries: np.ndarray, k: int, own: np.ndarray | None = None) -> np.ndarray:
    """Mean Euclidean distance to the k nearest reference vectors, (queries,) float64.

    Vectors are first divided by the standard deviation of each dimension over the reference; dimensions in which the
    reference does not vary are left out.

    Args:
        own: (queries,) int, the row of the reference that each query is: it never counts itself; -1 for none.

    Raises:
        DataError: no reference vector, or values that are not finite.
    """
    return _mean(_surroundings(reference, queries, k, own)[0])


def local_outlier_factor(
    reference: np.ndarray, queries: np.ndarray, k: int, own: np.ndarray | None = None
) -> np.ndarray:
    """Mean density of the k nearest reference vectors over the query's own, (queries,) float64; about 1 for an inlier.

    Breunig, Kriegel, Ng and Sander, LOF: Identifying Density-Based Local Outliers (2000), definitions 5 to 7, with k
    neighbours exactly. Standardised as `knn_distance` does.

    Args:
        own: (queries,) int, the row of the reference that each query is: it never counts itself; -1 for none.

    Raises:
        DataError: no reference vector, or values that are not finite.
    """
    near, rows = _surroundings(reference, queries, k, own)
    return _factor(near, rows, *_surroundings(reference, reference, k, np.arange(len(reference))))


def _surroundings(
    reference: np.ndarray, queries: np.ndarray, k: int, own: np.ndarray | None, standardize: bool = True,
    exact: int | None = None, seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Euclidean distances to the nearest reference vectors and their rows."""
    if not len(reference):
        raise DataError("there is no reference object to judge the others by")
    reference = reference.astype(np.float64)
    # Not std() > 0: the mean of equal numbers may be off by a rounding error.
    varies = reference.max(0) > reference.min(0)
    reference = reference[:, varies]
    centre, scale = reference.mean(0), reference.std(0) if standardize else 1.0
    reference -= centre
    reference /= scale
    cells = None
    if exact is not None and len(reference) > exact:
        reference = reference.astype(np.float32)
        cells = Cells(reference, "l2", seed)
    columns = max(0, min(k, len(reference) - (own is not None and bool((own >= 0).any()))))
    squared, rows = np.empty((len(queries), columns)), np.empty((len(queries), columns), np.int64)
    # In parts, since float64 copies of all queries would be the largest thing in memory.
    for start in progress(range(0, len(queries), _PART), "neighbours"):
        part = slice(start, start + _PART)
        scaled = (queries[part].astype(np.float64)[:, varies] - centre) / scale
        itself = None if own is None else own[part]
        if cells:
            squared[part], rows[part] = cells.neighbours(columns, scaled.astype(np.float32), own=itself)
        else:
            near, who = nearest_neighbours(reference, k, scaled, own=itself)
            squared[part], rows[part] = near[:, :columns], who[:, :columns]
    return np.sqrt(squared, out=squared), rows


def _mean(distances: np.ndarray) -> np.ndarray:
    return distances.mean(1) if distances.shape[1] else np.full(len(distances), np.nan)


def _factor(
    distances: np.ndarray, rows: np.ndarray, reference_distances: np.ndarray, reference_rows: np.ndarray
) -> np.ndarray:
    columns = min(distances.shape[1], reference_distances.shape[1])
    if not columns:
        return np.full(len(distances), np.nan)
    distances, rows = distances[:, :columns], rows[:, :columns]
    reach = reference_distances[:, columns - 1]

    def density(near: np.ndarray, who: np.ndarray) -> np.ndarray:
        return 1 / (np.maximum(near, reach[who]).mean(1) + _SMALLEST_REACH)

    reference_density = density(reference_distances[:, :columns], reference_rows[:, :columns])
    return reference_density[rows].mean(1) / density(distances, rows)
