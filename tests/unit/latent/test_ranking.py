"""One ranking from several outlier scores."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.latent.ranking import mean_rank, ranking


def test_the_mean_rank_is_over_the_scores_that_an_object_has() -> None:
    nan = float("nan")
    found = mean_rank({"a": np.array([1.0, 2.0, 3.0, nan]), "b": np.array([10.0, nan, 20.0, nan])})
    np.testing.assert_allclose(found, [(1 / 3 + 1 / 2) / 2, 2 / 3, 1, nan])


def test_equal_scores_share_a_rank() -> None:
    np.testing.assert_allclose(mean_rank({"a": np.array([5.0, 5.0, 1.0, 9.0])}), [2.5 / 4, 2.5 / 4, 1 / 4, 1])


def test_no_score_is_an_error() -> None:
    with pytest.raises(DataError, match="no outlier score"):
        ranking(pl.DataFrame({"object_id": ["a"], "area": [1.0]}))


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 3)), min_size=1, max_size=20))
def test_the_ranking_orders_all_objects_once(scores: list[tuple[int, int | None]]) -> None:
    table = pl.DataFrame({
        "object_id": [f"o{i:02d}" for i in range(len(scores))],
        "outlier_a": pl.Series([float(a) for a, _ in scores], dtype=pl.Float32),
        "outlier_b": pl.Series([None if b is None else float(b) for _, b in scores], dtype=pl.Float32),
        "area": [0.0] * len(scores),
    })  # fmt: skip
    found = ranking(table)
    assert found.columns == ["rank", "object_id", "percentile", "strangeness", "outlier_a", "outlier_b"]
    assert found["rank"].to_list() == list(range(1, len(scores) + 1))
    assert sorted(found["object_id"]) == table["object_id"].to_list()
    keys = list(zip(-found["strangeness"], found["object_id"], strict=True))
    assert keys == sorted(keys)
    for percentile, strangeness in found.select("percentile", "strangeness").iter_rows():
        at_most = (found["strangeness"] <= strangeness).sum()
        assert percentile == pytest.approx(100 * at_most / len(scores))


def test_objects_without_any_score_come_last() -> None:
    table = pl.DataFrame({"object_id": ["a", "b"], "outlier_a": [float("nan"), 1.0]})
    assert ranking(table).rows() == [
        (1, "b", 100.0, 1.0, 1.0),
        (2, "a", None, None, pytest.approx(np.nan, nan_ok=True)),
    ]
