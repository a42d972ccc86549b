"""Cells: nearly exact neighbours, the same ones each time."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyscope.latent import cells
from manyscope.latent.cells import Cells
from manyscope.latent.neighbours import nearest_neighbours

Metric = Literal["l2", "cosine"]


def mixture(n: int, dimensions: int = 24, seed: int = 0) -> np.ndarray:
    """Overlapping clusters, of which each fills some directions of its own."""
    rng = np.random.default_rng(seed)
    centres, axes = rng.normal(size=(30, dimensions)), rng.normal(size=(30, 8, dimensions)) / 2
    member = rng.integers(0, 30, n)
    local = np.einsum("nk,nkd->nd", rng.normal(size=(n, 8)), axes[member])
    made: np.ndarray = (centres[member] + local + rng.normal(scale=0.05, size=(n, dimensions))).astype(np.float32)
    return made


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)]))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_few_neighbours_are_missed_and_distances_are_exact(metric: Metric) -> None:
    vectors = mixture(6_000)
    reference, queries = vectors[:5_500], vectors[5_500:]
    searched = Cells(reference, metric, seed=1)
    distances, rows = searched.neighbours(15, queries)
    exact, exact_rows = nearest_neighbours(reference, 15, queries, metric=metric)
    assert recall(rows, exact_rows) > 0.98
    same = (rows == exact_rows).all(1)
    assert same.mean() > 0.8
    np.testing.assert_array_equal(distances[same], exact[same])

    _, fewer = searched.neighbours(15, queries, probed=3)
    assert recall(fewer, exact_rows) < recall(rows, exact_rows)  # it is the cells that are missed
    everywhere = searched.neighbours(15, queries, probed=len(searched.centres))
    np.testing.assert_array_equal(everywhere[1], exact_rows)

    _, own = searched.neighbours(10)
    assert not (own == np.arange(5_500)[:, None]).any()
    assert recall(own, nearest_neighbours(reference, 10, metric=metric)[1]) > 0.98


def test_cells_hold_every_vector_once_and_come_out_alike() -> None:
    vectors = mixture(3_000)
    one, other = Cells(vectors, "l2", seed=4), Cells(vectors, "l2", seed=4)
    np.testing.assert_array_equal(one.centres, other.centres)
    assert sorted(one.rows) == list(range(3_000))
    for found, again in zip(one.neighbours(5), other.neighbours(5), strict=True):
        np.testing.assert_array_equal(found, again)
    assert (Cells(vectors, "l2", seed=5).centres != one.centres).any()


@settings(max_examples=40)
@given(
    n=st.integers(2, 60), m=st.integers(0, 9), k=st.integers(1, 12), metric=st.sampled_from(["l2", "cosine"]),
    copies=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_shape_is_answered(n: int, m: int, k: int, metric: Metric, copies: bool, seed: int) -> None:
    """Also with cells that are empty, fewer vectors in them than neighbours, copies and zero vectors."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(n, 3)).astype(np.float32)
    if copies:
        reference = reference[rng.integers(0, 3, n) % n]
        reference[0] = 0
    k = min(k, n - 1)
    queries = np.concatenate([reference[: m // 2], rng.normal(size=(m - min(m // 2, n), 3)).astype(np.float32)])
    for asked, own in ((queries, None), (None, np.arange(n))):
        distances, rows = Cells(reference, metric, seed).neighbours(k, asked, probed=2)
        points = reference if asked is None else asked
        assert distances.shape == rows.shape == (len(points), k)
        assert np.isfinite(distances).all()
        assert ((rows >= 0) & (rows < n)).all()
        assert all(len(set(row)) == k for row in rows)
        if own is not None:
            assert not (rows == own[:, None]).any()
        assert (np.diff(distances, axis=1) >= 0).all()
        exact, _ = nearest_neighbours(reference, k, points, metric=metric, own=own)
        assert (distances >= exact - 1e-12).all()


def test_a_far_offset_costs_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = mixture(2_000) + np.float32(100)
    exact = nearest_neighbours(vectors, 10)[1]
    assert recall(Cells(vectors, "l2", 0).neighbours(10)[1], exact) > 0.97
    monkeypatch.setattr(cells, "_QUERIES", 300)  # parts change nothing
    in_parts = Cells(vectors, "l2", 0).neighbours(10)[1]
    assert recall(in_parts, exact) > 0.97
