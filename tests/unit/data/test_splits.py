"""Splits by hash, and the order of batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.data.schedule import ShuffledSchedule
from manyscope.data.splits import split_by_hash, unit_hash
from manyscope.errors import DataError

names = st.lists(st.text(max_size=6), min_size=1, max_size=50)


@given(groups=names, more=names, seed=st.integers(0, 99))
def test_a_group_is_never_divided_and_an_added_one_moves_no_other(
    groups: list[str], more: list[str], seed: int
) -> None:
    first = split_by_hash(groups, seed, 0.2, 0.3)
    assert split_by_hash(groups + more, seed, 0.2, 0.3)[: len(groups)].tolist() == first.tolist()
    for group in set(groups):
        assert len({s for s, g in zip(first, groups, strict=True) if g == group}) == 1


def test_fractions_hold_on_average_and_seeds_differ() -> None:
    groups = [f"g{i}" for i in range(20_000)]
    found = split_by_hash(groups, 0, 0.1, 0.2)
    # Three standard errors of a share of 0.2 in 20,000 draws.
    assert np.mean(found == "test") == pytest.approx(0.2, abs=0.0085)
    assert np.mean(found == "validation") == pytest.approx(0.1, abs=0.0085)
    other = split_by_hash(groups, 1, 0.1, 0.2)
    assert np.mean((found == "test") & (other == "test")) == pytest.approx(0.04, abs=0.005)
    assert 0 <= unit_hash(0, "") < 1


def test_fractions_must_leave_training_data() -> None:
    with pytest.raises(DataError, match="leave nothing for training"):
        split_by_hash(["a"], 0, 0.5, 0.5)


@given(size=st.integers(1, 60), batch=st.integers(1, 70), seed=st.integers(0, 9), passes=st.integers(1, 3))
def test_each_pass_holds_every_sample_once(size: int, batch: int, seed: int, passes: int) -> None:
    schedule = ShuffledSchedule(size, batch, seed)
    steps = -(-passes * size // schedule.batch_size)
    order = np.concatenate([schedule.batch(step) for step in range(steps)])
    for i in range(passes):
        assert sorted(order[i * size : (i + 1) * size]) == list(range(size))
    assert all(len(schedule.batch(step)) == min(batch, size) for step in range(steps))
    again = ShuffledSchedule(size, batch, seed)
    assert again.batch(steps - 1).tolist() == schedule.batch(steps - 1).tolist()
