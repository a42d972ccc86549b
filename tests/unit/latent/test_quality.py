"""The quality of a map against scikit-learn and against maps of known quality."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from manyscope.latent.quality import map_quality


@pytest.mark.parametrize(("metric", "name"), [("l2", "euclidean"), ("cosine", "cosine")])
def test_trustworthiness_is_that_of_scikit_learn(metric: str, name: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(150, 7))
    coordinates = vectors[:, :2] ** 3
    quality = map_quality(vectors, coordinates, objects=1000, neighbours=12, seed=0, metric=metric)  # type: ignore[arg-type]
    assert quality.trustworthiness == pytest.approx(
        trustworthiness(vectors, coordinates, n_neighbors=12, metric=name), abs=1e-6
    )
    assert (quality.objects, quality.neighbours) == (150, 12)


def test_a_perfect_and_a_random_map() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(400, 2))
    perfect = map_quality(flat @ np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]), flat, objects=300, neighbours=10, seed=1)
    assert (perfect.trustworthiness, perfect.neighbour_overlap, perfect.objects) == (1.0, 1.0, 300)
    random = map_quality(rng.normal(size=(400, 3)), flat, objects=300, neighbours=10, seed=1)
    assert random.trustworthiness == pytest.approx(0.5, abs=0.05)
    assert random.neighbour_overlap == pytest.approx(10 / 299, abs=0.02)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_few_objects(n: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(n, 3))
    quality = map_quality(vectors, vectors[:, :2], objects=100, neighbours=15, seed=0)
    assert quality.objects == n
    assert quality.neighbours == (n - 1) // 2
    assert (quality.trustworthiness is None) == (n < 3)
