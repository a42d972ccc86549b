"""Batches of like length: each event once in a pass, within the budget, the same whatever was asked before."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from manyscope.scopes.neutrinos.data.schedule import FEWEST, LengthSchedule, cut

lengths = st.lists(st.integers(1, 64), min_size=1, max_size=300).map(np.array)


def schedule(lengths: np.ndarray, files: int = 5, batch: int = 24, budget: int = 700, seed: int = 0, window: int = 60):
    of_file = np.sort(np.arange(len(lengths)) % files)
    return LengthSchedule(lengths, of_file, np.zeros(len(lengths)), batch, budget, seed, window)


@given(lengths, st.integers(1, 12), st.integers(0, 3), st.sampled_from([1, 60, 10_000]))
def test_each_event_comes_once_in_each_pass(lengths: np.ndarray, files: int, seed: int, window: int) -> None:
    found = schedule(lengths, files, seed=seed, window=window)
    for epoch in range(2):
        steps = range(epoch * found.batches_per_epoch, (epoch + 1) * found.batches_per_epoch)
        seen = np.concatenate([found.batch(step) for step in steps])
        assert np.array_equal(np.sort(seen), np.arange(len(lengths)))


@given(lengths, st.integers(1, 40), st.integers(64, 2000))
def test_no_batch_is_too_large(lengths: np.ndarray, batch: int, budget: int) -> None:
    sorted_lengths = np.sort(lengths)
    cuts = cut(sorted_lengths, batch, budget)
    assert cuts[0] == 0
    assert cuts[-1] == len(lengths)
    for first, last in itertools.pairwise(cuts):
        n = last - first
        assert 0 < n <= batch
        assert n * sorted_lengths[last - 1] <= budget or n < 2 * FEWEST


@given(st.lists(st.integers(1, 64), min_size=2 * FEWEST, max_size=300).map(np.array), st.integers(64, 2000))
def test_every_batch_holds_enough_events_for_several_processes(lengths: np.ndarray, budget: int) -> None:
    assert np.diff(cut(np.sort(lengths), 64, budget)).min() >= FEWEST


def test_a_step_does_not_depend_on_what_was_asked_before() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 500)
    one, other = schedule(lengths), schedule(lengths)
    forward = [one.batch(step).tolist() for step in range(3 * one.batches_per_epoch)]
    order = np.random.default_rng(1).permutation(len(forward))
    assert all(other.batch(int(step)).tolist() == forward[step] for step in order)


def test_passes_and_seeds_differ() -> None:
    lengths = np.random.default_rng(0).integers(1, 8, 500)
    one = schedule(lengths, batch=50)
    n = one.batches_per_epoch
    assert [one.batch(i).tolist() for i in range(n)] != [one.batch(n + i).tolist() for i in range(n)]
    assert one.batch(0).tolist() != schedule(lengths, batch=50, seed=1).batch(0).tolist()


def test_events_of_a_batch_are_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 4000)
    found = schedule(lengths, batch=100, budget=10_000, window=4000)
    spread = [np.ptp(lengths[found.batch(i)]) for i in range(found.batches_per_epoch)]
    assert max(spread) <= 4


def test_files_of_a_window_stay_together() -> None:
    lengths = np.full(1000, 4)
    found = LengthSchedule(lengths, np.arange(1000) // 100, np.zeros(1000), 50, 1000, seed=3, window=200)
    files = [set(found.batch(i) // 100) for i in range(found.batches_per_epoch)]
    windows = {frozenset(f) for f in files}
    assert all(len(f) <= 2 for f in files), "a batch mixes the files of one window"
    groups = [set.union(*(set(w) for w in windows if file in w)) for file in range(10)]
    assert all(len(g) == 2 for g in groups), "files share a window with the same ones all along"
    changes = sum(not (a & b) for a, b in itertools.pairwise(files))
    assert changes == 4, "a window is finished before the next begins"
