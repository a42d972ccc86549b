"""Outlier scores against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.neighbors import LocalOutlierFactor

from manyscope.errors import DataError
from manyscope.latent import outliers
from manyscope.latent.outliers import knn_distance, local_outlier_factor, outlier_scores


def table(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 6)) * [1, 10, 0.1, 3, 1, 0] + 5  # the last dimension never varies
    vectors[-1, :5] += 60
    reference = rng.random(n) < 0.7
    reference[-1] = False
    return vectors.astype(np.float32), reference


def standardised(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    members = vectors[reference, :5].astype(float)
    return (vectors[:, :5] - members.mean(0)) / members.std(0)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_the_local_outlier_factor_is_that_of_scikit_learn(k: int) -> None:
    vectors, reference = table()
    scores = outlier_scores(vectors, reference, {"lof": k})["lof"]
    plain = standardised(vectors, reference)
    theirs = LocalOutlierFactor(k, novelty=True).fit(plain[reference])
    np.testing.assert_allclose(scores[~reference], -theirs.score_samples(plain[~reference]), atol=1e-6)
    np.testing.assert_allclose(scores[reference], -theirs.negative_outlier_factor_, atol=1e-6)
    assert scores.argmax() == len(vectors) - 1


def test_scores_from_near_cells_are_nearly_the_exact_ones() -> None:
    rng = np.random.default_rng(3)
    vectors = (rng.normal(size=(20, 6))[rng.integers(0, 20, 3_000)] + rng.normal(scale=0.2, size=(3_000, 6))) * 7 + 50
    vectors[:30] += rng.normal(scale=30, size=(30, 6))  # strangers
    vectors = vectors.astype(np.float32)
    reference = np.arange(3_000) >= 500
    wanted = {"knn": 10, "lof": 30}
    exact = outlier_scores(vectors, reference, wanted)
    at_most = outlier_scores(vectors, reference, wanted, exact=2_500)
    nearly = outlier_scores(vectors, reference, wanted, exact=2_499, seed=1)
    for name, scores in exact.items():
        np.testing.assert_array_equal(at_most[name], scores)
        assert (nearly[name] != scores).any()
        assert spearmanr(nearly[name], scores)[0] > 0.999
        assert spearmanr(nearly[name][:30], scores[:30])[0] > 0.99
        assert set(np.argsort(nearly[name])[-20:]) <= set(range(30))


def test_a_member_is_not_its_own_neighbour_in_its_cell() -> None:
    vectors = np.repeat(np.random.default_rng(0).normal(size=(200, 3)), 2, axis=0).astype(np.float32)
    reference = np.arange(400) % 2 == 0  # each other vector has a copy of itself among them
    scores = outlier_scores(vectors, reference, {"knn": 1}, exact=10)["knn"]
    assert (scores[reference] > 0).all()
    np.testing.assert_array_equal(scores[~reference], 0)


@pytest.mark.parametrize("k", [4, 210, 400])
def test_parts_of_the_queries_do_not_change_the_scores(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    """Also where there are fewer others than neighbours, and parts that hold members or none."""
    vectors, reference = table()
    reference[:100] = False
    whole = outlier_scores(vectors, reference, {"knn": k, "lof": k})
    monkeypatch.setattr(outliers, "_PART", 70)
    for name, scores in outlier_scores(vectors, reference, {"knn": k, "lof": k}).items():
        np.testing.assert_array_equal(scores, whole[name])


def test_scores_together_are_the_scores_apart() -> None:
    vectors, reference = table()
    together = outlier_scores(vectors, reference, {"knn": 4, "lof": 12})
    members = vectors[reference]
    own = np.where(reference, np.cumsum(reference) - 1, -1)
    np.testing.assert_allclose(together["knn"], knn_distance(members, vectors, 4, own), rtol=1e-12)
    np.testing.assert_allclose(together["lof"], local_outlier_factor(members, vectors, 12, own), rtol=1e-12)


def test_the_knn_distance_leaves_a_member_itself_out() -> None:
    reference = np.array([[0.0], [1.0], [2.0], [3.0]])
    scale = reference.std()
    scores = knn_distance(reference, np.array([[0.0], [0.0]]), 2, own=np.array([0, -1]))
    np.testing.assert_allclose(scores, np.array([1.5, 0.5]) / scale)


def test_duplicates_and_constant_vectors_give_finite_scores() -> None:
    copies = np.concatenate([np.ones((50, 3)), np.arange(9.0).reshape(3, 3)])
    everything = np.ones(len(copies), bool)
    for scores in outlier_scores(copies, everything, {"knn": 5, "lof": 5}).values():
        assert np.isfinite(scores).all()
        assert (scores[:50] <= scores[50:].min()).all()
    constant = outlier_scores(np.ones((8, 3)), np.ones(8, bool), {"knn": 3, "lof": 3})
    np.testing.assert_array_equal(constant["knn"], 0)
    np.testing.assert_array_equal(constant["lof"], 1)


def test_few_reference_objects() -> None:
    vectors = np.array([[0.0, 1.0], [1.0, 0.0], [4.0, 4.0]])
    two = outlier_scores(vectors, np.array([True, True, False]), {"knn": 10, "lof": 30})
    assert np.isfinite([*two["knn"], *two["lof"]]).all()
    assert two["lof"].argmax() == 2
    alone = outlier_scores(vectors[:1], np.array([True]), {"knn": 10, "lof": 30})
    assert np.isnan([*alone["knn"], *alone["lof"]]).all()
    with pytest.raises(DataError, match="no reference object"):
        outlier_scores(vectors, np.zeros(3, bool), {"knn": 1})
