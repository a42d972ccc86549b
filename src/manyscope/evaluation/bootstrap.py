"""Percentile bootstrap intervals of a metric and of its paired difference to baselines.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 (percentile interval) and 8 (clusters).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from manyscope.errors import DataError
from manyscope.tables.metrics import Metric

# A score takes positions of objects, (m,) int64 with repeats, and returns one number; it may be NaN for a resample
# on which it is not defined (one class only, say).
Score = Callable[[np.ndarray], float]

# With few clusters a percentile interval is too narrow; with one it has no width at all.
_FEWEST_CLUSTERS = 5


def compare(
    name: str,
    group: str,
    *,
    unit: str,
    higher_is_better: bool | None,
    n: int,
    model: Score,
    baselines: Mapping[str, Score] | None = None,
    clusters: Sequence[object] | np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[Metric]:
    """The metric of the model beside each baseline, a row for each (one row without a baseline if there is none).

    Args:
        n: number of objects that the scores index.
        model: the metric of the model on some of the objects.
        baselines: name -> the metric of that baseline on the same objects.
        clusters: for each object its cluster, (n,); whole clusters are resampled. None resamples objects.
        draws: number of resamples, the same ones for the model and every baseline.

    Raises:
        DataError: there are no objects, or the metric is not defined on them.
    """
    if n == 0:
        raise DataError(f"metric {name!r} of group {group!r} has no object to be measured on")
    everything = np.arange(n)
    value = model(everything)
    if not np.isfinite(value):
        raise DataError(f"metric {name!r} of group {group!r} is not defined on its {n} objects")
    others = baselines or {}
    # One resample at a time: all of them together would take gigabytes of a million objects.
    drawn = np.array([
        [score(some) for score in (model, *others.values())] for some in _resamples(n, clusters, draws, seed)
    ])  # fmt: skip
    low, high = interval(drawn[:, 0])
    common = (name, group, unit, n, higher_is_better, float(value), low, high)
    rows = []
    for column, (baseline, score) in enumerate(others.items(), 1):
        reference = float(score(everything))
        difference_low, difference_high = interval(drawn[:, 0] - drawn[:, column])
        rows.append(Metric(*common, baseline, reference, float(value) - reference, difference_low, difference_high))
    return rows or [Metric(*common)]


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the resampled values, without those that are not defined.

    Raises:
        DataError: fewer than nine in ten are defined: the interval would describe other data.
    """
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < 0.9 * len(drawn):
        raise DataError(
            f"only {len(finite)} of {len(drawn)} resamples define the metric", remedy="evaluate more objects"
        )
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def _resamples(n: int, clusters: Sequence[object] | np.ndarray | None, draws: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    if clusters is None:
        for _ in range(draws):
            yield rng.integers(0, n, n)
        return
    names, member = np.unique(np.asarray(clusters).astype(str), return_inverse=True)
    if len(member) != n:
        raise DataError(f"{len(member)} clusters were given for {n} objects")
    if len(names) < _FEWEST_CLUSTERS:
        raise DataError(
            f"the objects are in {len(names)} clusters, from which no interval can be drawn",
            allowed=f"{_FEWEST_CLUSTERS} or more",
            remedy="evaluate more data, or deal it to smaller groups",
        )
    order = np.argsort(member, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(member))[:-1])
    for _ in range(draws):
        yield np.concatenate([members[c] for c in rng.integers(0, len(names), len(names))])
