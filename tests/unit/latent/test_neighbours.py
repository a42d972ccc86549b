"""Exact neighbours against brute force, ties and shapes included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.latent import neighbours
from manyscope.latent.neighbours import Metric, distances_to, nearest_neighbours


def brute_force(reference: np.ndarray, query: np.ndarray, metric: Metric) -> np.ndarray:
    reference, query = reference.astype(float), query.astype(float)
    if metric == "l2":
        return ((reference - query) ** 2).sum(1)
    if metric == "cosine":
        lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(query)
        return np.array([1 - r @ query / w if w else 1.0 for r, w in zip(reference, lengths, strict=True)])
    return 1 - reference @ query


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40), m=st.integers(0, 8), k=st.integers(0, 45), dimensions=st.integers(1, 5),
    metric=st.sampled_from(["l2", "cosine", "ip"]), seed=st.integers(0, 1000), grid=st.booleans(),
)  # fmt: skip
def test_it_agrees_with_brute_force(
    n: int, m: int, k: int, dimensions: int, metric: Metric, seed: int, grid: bool
) -> None:
    rng = np.random.default_rng(seed)
    reference, queries = (
        rng.integers(-2, 3, (rows, dimensions)).astype(np.float32) if grid else rng.normal(size=(rows, dimensions))
        for rows in (n, m)
    )  # fmt: skip
    distances, rows = nearest_neighbours(reference, k, queries, metric=metric)
    assert distances.shape == rows.shape == (m, min(k, n))
    assert (np.diff(distances, axis=1) >= 0).all()
    for query, near, who in zip(queries, distances, rows, strict=True):
        everything = brute_force(reference, query, metric)
        np.testing.assert_allclose(near, np.sort(everything)[:k], atol=1e-9)
        np.testing.assert_allclose(everything[who], near, atol=1e-9)
        assert len(set(who)) == len(who)
    np.testing.assert_array_equal(distances_to(reference, rows, queries, metric=metric), distances)


def test_without_queries_nobody_is_its_own_neighbour() -> None:
    vectors = np.repeat(np.arange(4.0)[:, None], 3, axis=0)  # three copies of each of four points
    distances, rows = nearest_neighbours(vectors, 20)
    assert rows.shape == (12, 11)
    assert all(sorted([*row, i]) == list(range(12)) for i, row in enumerate(rows))
    np.testing.assert_array_equal(distances[:, :2], 0)
    assert rows[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_an_own_row_is_left_out_only_where_given() -> None:
    vectors = np.array([[0.0], [1.0], [3.0]])
    distances, rows = nearest_neighbours(vectors, 3, vectors[[0, 0]], own=np.array([0, -1]))
    assert rows.tolist() == [[1, 2], [0, 1]]
    assert distances.tolist() == [[1, 9], [0, 1]]


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_equally_near_ones_come_in_the_order_of_the_reference(offset: float) -> None:
    reference = np.zeros((500, 3)) + offset
    reference[::2] += [1, 0, 0]
    _, rows = nearest_neighbours(reference, 20, reference[:2])
    assert rows[0].tolist() == list(range(0, 40, 2))
    assert rows[1].tolist() == list(range(1, 41, 2))


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)
    whole = nearest_neighbours(vectors, 5)
    monkeypatch.setattr(neighbours, "_BLOCK", 1000)
    for one, other in zip(whole, nearest_neighbours(vectors, 5), strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=40)
@given(
    n=st.integers(1, 40), k=st.integers(0, 45), tile=st.integers(1, 45), seed=st.integers(0, 1000),
    metric=st.sampled_from(["l2", "cosine", "ip"]), grid=st.booleans(), itself=st.booleans(),
)  # fmt: skip
def test_tiles_of_the_reference_do_not_change_the_answer(
    n: int, k: int, tile: int, seed: int, metric: Metric, grid: bool, itself: bool
) -> None:
    rng = np.random.default_rng(seed)
    vectors = (rng.integers(-2, 3, (n, 3)) if grid else rng.normal(size=(n, 3))).astype(np.float32)
    queries = None if itself else vectors[::2] + np.float32(1)
    whole = nearest_neighbours(vectors, k, queries, metric=metric)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_TILE", tile)
        for one, other in zip(whole, nearest_neighbours(vectors, k, queries, metric=metric), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("reference", "queries", "k", "words"),
    [
        (np.zeros((3, 2)), np.zeros((1, 3)), 1, "same number of columns"),
        (np.zeros((3, 2)), None, -1, "0 or more"),
        (np.array([[np.nan]]), None, 1, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(reference: np.ndarray, queries: np.ndarray | None, k: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        nearest_neighbours(reference, k, queries)
