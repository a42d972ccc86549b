"""What every scope's prepared folder answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from manyscope.data.prepared import PreparedSamples
from manyscope.errors import DataError
from manyscope.tables.arrays import map_array
from manyscope.tables.parquet import write_table


class Numbers(PreparedSamples):
    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        return {"rows": rows, "sample_id": self.ids(rows)}


@pytest.fixture
def numbers(tmp_path: Path) -> Numbers:
    split = ["train", "test", "train", "validation", "train", "test", "unlabelled"] * 3
    ids = [f"s{i}" for i in range(len(split))]
    write_table(tmp_path / "samples.parquet", pl.DataFrame({"sample_id": ids, "group": ids, "split": split}))
    return Numbers(tmp_path)


def test_rows_of_a_split_and_of_ids(numbers: Numbers) -> None:
    assert numbers.rows("validation").tolist() == [3, 10, 17]
    assert numbers.rows_of(["s4", "s0", "s4"]).tolist() == [4, 0, 4]
    assert numbers.train_size == 9
    with pytest.raises(DataError, match=r"samples\.parquet: sample 'nobody' is unknown"):
        numbers.rows_of(["s1", "nobody"])


def test_training_batches_are_of_training_samples(numbers: Numbers) -> None:
    schedule = numbers.train_schedule(4, seed=0)
    assert schedule.steps_per_epoch == 9 / 4
    seen = np.concatenate([numbers.train_batch(schedule.batch(step))["rows"] for step in range(9)])
    assert sorted(seen) == sorted(np.tile(numbers.rows("train"), 4))


def test_validation_is_whole_and_in_order(numbers: Numbers) -> None:
    assert [b["sample_id"] for b in map(numbers.validation_batch, numbers.validation_schedule(2))] == [
        ["s3", "s10"],
        ["s17"],
    ]


def test_predicted_batches_are_of_one_size_and_name_each_sample_once(numbers: Numbers) -> None:
    wanted = [f"s{i}" for i in (5, 1, 9, 20, 3)]
    batches = list(numbers.predict_batches(wanted, 3))
    assert [len(b["rows"]) for b in batches] == [3, 3]
    assert [s for b in batches for s in b["sample_id"]] == wanted
    assert list(numbers.predict_batches([], 3)) == []


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy: not a readable array.*preprocess"):
        map_array(tmp_path / "a.npy")
    with pytest.raises(DataError, match="not a readable array"):
        map_array(tmp_path / "nothing.npy")


def test_an_array_is_mapped_and_read_only(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(5))
    found = map_array(tmp_path / "a.npy")
    assert type(found) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1
