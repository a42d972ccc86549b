"""How well a map keeps the neighbourhoods of the latent space."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from manyscope.latent.neighbours import Metric, nearest_neighbours


@dataclass(frozen=True)
class MapQuality:
    """
    Attributes:
        trustworthiness: 1 where no object is a neighbour on the map that is none in the latent space, about 0.5 for a
            random map; None for fewer than four objects.
        neighbour_overlap: mean share of the k latent neighbours that are among the k neighbours on the map; None for
            fewer than four objects.
        objects: on how many objects both were measured.
        neighbours: k.
    """

    trustworthiness: float | None
    neighbour_overlap: float | None
    objects: int
    neighbours: int

    def document(self) -> dict[str, Any]:
        return asdict(self)


def map_quality(
    vectors: np.ndarray, coordinates: np.ndarray, *, objects: int, neighbours: int, seed: int, metric: Metric = "l2"
) -> MapQuality:
    """Measure on at most so many objects, chosen by the seed; neighbours and ranks are those within the choice.

    Trustworthiness is T(k) of Venna and Kaski, Neighborhood Preservation in Nonlinear Projection Methods (2001),
    equation 1. Of equally distant objects none has the higher rank. k is lowered where it would exceed half of the
    objects, above which T(k) has another range.

    Args:
        vectors: (n, dimensions) latent vectors as the reducer saw them.
        coordinates: (n, 2 or 3).
    """
    n = min(objects, len(vectors))
    chosen = np.sort(np.random.default_rng(seed).choice(len(vectors), n, replace=False))
    k = min(neighbours, (n - 1) // 2)
    if k < 1:
        return MapQuality(None, None, n, max(k, 0))
    distances, latent = nearest_neighbours(vectors[chosen], n - 1, metric=metric)
    _, on_map = nearest_neighbours(coordinates[chosen], k)
    excess = overlap = 0
    between = np.zeros(n)
    for row in range(n):
        between[latent[row]] = distances[row]
        rank = 1 + np.searchsorted(distances[row], between[on_map[row]])
        excess += int(np.maximum(rank - k, 0).sum())
        overlap += len(np.intersect1d(latent[row, :k], on_map[row], assume_unique=True))
    trust = 1 - 2 * excess / (n * k * (2 * n - 3 * k - 1))
    return MapQuality(round(trust, 6), round(overlap / (n * k), 6), n, k)
