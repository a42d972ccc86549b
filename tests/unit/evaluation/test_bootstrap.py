"""Bootstrap intervals: coverage, pairing, clusters and errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.evaluation.bootstrap import Score, compare, interval

COMMON = {"unit": "", "higher_is_better": True}


def mean_of(values: np.ndarray) -> Score:
    return lambda rows: float(values[rows].mean())


def test_interval_of_a_mean_covers_the_truth_in_about_95_percent_of_repeats():
    rng = np.random.default_rng(0)
    covered = 0
    for repeat in range(400):
        sample = rng.normal(3.0, 2.0, 80)
        (metric,) = compare("m", "", n=80, model=mean_of(sample), draws=400, seed=repeat, **COMMON)
        covered += metric.low <= 3.0 <= metric.high
    # 0.95 expected; the standard error of the share is 0.011, and the percentile interval is slightly short.
    assert 0.91 <= covered / 400 <= 0.98


def test_interval_of_the_paired_difference_covers_the_truth_and_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(1)
    covered = 0
    for repeat in range(200):
        shared = rng.normal(0, 5, 100)
        model, baseline = shared + rng.normal(1, 1, 100), shared
        (row,) = compare(
            "m", "", n=100, model=mean_of(model), baselines={"b": mean_of(baseline)}, draws=300, seed=repeat, **COMMON
        )
        covered += row.difference_low <= 1.0 <= row.difference_high
        assert row.difference_high - row.difference_low < 0.5 * (row.high - row.low)
    assert covered / 200 >= 0.9


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 1000))
def test_identical_scores_differ_by_exactly_zero(values: list[float], seed: int):
    score = mean_of(np.array(values))
    (row,) = compare("m", "", n=len(values), model=score, baselines={"same": score}, draws=100, seed=seed, **COMMON)
    assert (row.difference, row.difference_low, row.difference_high) == (0.0, 0.0, 0.0)
    assert row.ahead is False


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 1000))
def test_clusters_are_resampled_whole(clusters: list[int], seed: int):
    clusters = [*range(100, 105), *clusters]  # fewer than five are refused
    names = np.array(clusters)
    seen = []

    def score(rows: np.ndarray) -> float:
        seen.append(rows)
        return 0.0

    compare("m", "", n=len(names), model=score, clusters=names, draws=100, seed=seed, **COMMON)
    sizes = {c: int((names == c).sum()) for c in clusters}
    for rows in seen[1:]:
        times = np.bincount(rows, minlength=len(names))
        for cluster in sizes:
            assert len(set(times[names == cluster])) == 1  # every member as often as the others
        drawn = sum(times[names == c][0] for c in sizes)
        assert drawn == len(sizes)  # as many clusters as there are


def test_clusters_widen_the_interval_of_correlated_objects():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(20), 30)
    values = rng.normal(0, 1, 20)[groups] + rng.normal(0, 0.1, 600)
    (plain,) = compare("m", "", n=600, model=mean_of(values), **COMMON)
    (clustered,) = compare("m", "", n=600, model=mean_of(values), clusters=groups, **COMMON)
    assert clustered.value == plain.value
    assert clustered.high - clustered.low > 3 * (plain.high - plain.low)


def test_same_seed_same_interval_and_one_row_for_each_baseline():
    values = np.random.default_rng(3).normal(size=50)
    baselines = {"a": mean_of(values - 1), "b": mean_of(values + 1)}
    rows = compare("m", "g", n=50, model=mean_of(values), baselines=baselines, seed=7, **COMMON)
    assert rows == compare("m", "g", n=50, model=mean_of(values), baselines=baselines, seed=7, **COMMON)
    assert rows != compare("m", "g", n=50, model=mean_of(values), baselines=baselines, seed=8, **COMMON)
    assert [(r.baseline, r.ahead) for r in rows] == [("a", True), ("b", False)]
    assert rows[0].difference == pytest.approx(1.0)


def test_no_object_an_undefined_metric_and_wrong_clusters_are_errors():
    with pytest.raises(DataError, match="no object"):
        compare("m", "", n=0, model=lambda rows: 0.0, **COMMON)
    with pytest.raises(DataError, match="not defined"):
        compare("m", "", n=3, model=lambda rows: float("nan"), **COMMON)
    with pytest.raises(DataError, match="2 clusters were given for 3"):
        compare("m", "", n=3, model=lambda rows: 0.0, clusters=["a", "b"], **COMMON)


def test_interval_forgives_a_tenth_of_undefined_resamples_and_no_more():
    drawn = np.arange(100.0)
    drawn[:10] = np.nan
    low, high = interval(drawn)
    assert 10 <= low < 14
    assert 95 < high <= 99
    drawn[10] = np.nan
    with pytest.raises(DataError, match="only 89 of 100"):
        interval(drawn)


def test_few_clusters_give_no_interval():
    with pytest.raises(DataError, match="in 4 clusters, from which no interval can be drawn; allowed: 5 or more"):
        compare("m", "", n=8, model=lambda rows: 0.0, clusters=list("aabbccdd"), **COMMON)
