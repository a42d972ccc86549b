"""How strange an object is among the training objects, judged in the latent space. Larger is stranger."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from manyscope.errors import DataError
from manyscope.latent.neighbours import nearest_neighbours

# Keeps the density of a point with k duplicates finite; the value of scikit-learn, so that the scores are the same.
_SMALLEST_REACH = 1e-10


def outlier_scores(
    vectors: np.ndarray, reference: np.ndarray, neighbours: Mapping[str, int], *, standardize: bool = True
) -> dict[str, np.ndarray]:
    """Several scores from one search for neighbours.

    Args:
        vectors: (n, dimensions).
        reference: (n,) bool, the vectors that the others are judged by.
        neighbours: "knn" or "lof" -> number of neighbours.
        standardize: divide each dimension by its standard deviation over the reference.

    Returns:
        name -> (n,) float64; NaN where an object has no other to be compared with.

    Raises:
        DataError: no reference vector, or values that are not finite.
    """
    members = np.flatnonzero(reference)
    own = np.full(len(vectors), -1)
    own[members] = np.arange(len(members))
    distances, rows = _surroundings(vectors[members], vectors, max(neighbours.values(), default=0), own, standardize)
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
    reference: np.ndarray, queries: np.ndarray, k: int, own: np.ndarray | None, standardize: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distances to the nearest reference vectors and their rows."""
    if not len(reference):
        raise DataError("there is no reference object to judge the others by")
    reference, queries = reference.astype(np.float64), queries.astype(np.float64)
    # Not std() > 0: the mean of equal numbers may be off by a rounding error.
    varies = reference.max(0) > reference.min(0)
    centre, scale = reference[:, varies].mean(0), reference[:, varies].std(0) if standardize else 1.0
    squared, rows = nearest_neighbours(
        (reference[:, varies] - centre) / scale, k, (queries[:, varies] - centre) / scale, own=own
    )
    return np.sqrt(squared), rows


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
