"""Exact search in blocks against the exact search that holds everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.latent.neighbours import Metric, nearest_neighbours
from manyscope.latent.scan import nearest_in_blocks


def in_blocks(vectors: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.arange(len(vectors))[i : i + size], vectors[i : i + size]) for i in range(0, len(vectors), size)]


@given(
    st.integers(0, 2**32), st.integers(1, 90), st.integers(1, 12), st.integers(1, 40),
    st.sampled_from(["l2", "cosine", "ip"]), st.sampled_from([0.0, 1e3]), st.sampled_from([1e-20, 1.0, 1e20]),
)  # fmt: skip
def test_the_same_neighbours_whatever_the_blocks(
    seed: int, n: int, k: int, size: int, metric: Metric, offset: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    vectors = ((rng.normal(size=(n, 5)) + offset) * scale).astype(np.float32)
    vectors[rng.integers(0, n, n // 3)] = vectors[rng.integers(0, n)]  # duplicates
    queries = ((rng.normal(size=(4, 5)) + offset) * scale).astype(np.float32)
    queries[0] = vectors[0]
    wanted, _ = nearest_neighbours(vectors, k, queries, metric=metric)
    rows, distances = nearest_in_blocks(in_blocks(vectors, size), queries, k, metric)
    assert all(len(set(found.tolist())) == len(found) == min(k, n) for found in rows)
    # 1 minus a product is a difference of numbers of order one, whatever the length of the vectors.
    rounding = max(1e-15 if metric != "l2" else 0, 1e-9 * scale**2)
    np.testing.assert_allclose(np.stack(distances), wanted, rtol=1e-6, atol=rounding)


def test_equally_near_vectors_come_by_their_rows() -> None:
    rows, distances = nearest_in_blocks(in_blocks(np.ones((40, 3), np.float32), 7), np.ones((1, 3)), 12, "l2")
    assert rows[0].tolist() == list(range(12))
    assert not distances[0].any()


def test_digits_that_float32_loses_decide_nothing() -> None:
    """Far from the origin the rough distances of near vectors are all the same; the exact ones are not."""
    vectors = np.full((500, 4), 1000, np.float32)
    vectors[:, 0] += np.random.default_rng(0).permutation(500) * 2.0**-10
    query = np.full((1, 4), 1000, np.float32)
    rows, distances = nearest_in_blocks(in_blocks(vectors, 128), query, 5, "l2")
    assert distances[0].tolist() == [(i * 2.0**-10) ** 2 for i in range(5)]
    assert vectors[rows[0], 0].tolist() == [1000 + i * 2.0**-10 for i in range(5)]


def test_fewer_than_are_wanted_and_none() -> None:
    rows, distances = nearest_in_blocks([], np.ones((2, 3)), 4, "l2")
    assert [len(found) for found in (*rows, *distances)] == [0] * 4
    assert len(nearest_in_blocks(in_blocks(np.eye(3, dtype=np.float32), 2), np.ones((1, 3)), 9, "ip")[0][0]) == 3
    with pytest.raises(ValueError):
        nearest_in_blocks(in_blocks(np.eye(3, dtype=np.float32), 2), np.ones((1, 4)), 1, "l2")
