"""Prepared stamps as batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.scopes.galaxies.data.stamps import StampData


def test_a_training_batch_holds_stamps_and_images_of_the_training_split(data: StampData) -> None:
    batch = data.train_batch([0, 5, 2])
    ids = data.samples.filter(data.samples["split"] == "train")["sample_id"].to_list()
    assert batch["sample_id"] == [ids[0], ids[5], ids[2]]
    assert batch["stamps"].shape == (3, 3, 32, 32)
    assert batch["images"].shape == (3, *data.shape) == (3, 3, 16, 16)
    torch.testing.assert_close(batch["images"], (batch["stamps"][..., 8:24, 8:24] / 2).asinh() / 5)


def test_a_pass_shows_every_training_stamp_once(data: StampData) -> None:
    schedule = data.train_schedule(32, seed=3)
    order = np.concatenate([schedule.batch(step) for step in range(32)])[: data.train_size]
    assert sorted(order) == list(range(data.train_size))


def test_validation_comes_whole_and_in_order(data: StampData) -> None:
    ids = [name for batch in map(data.validation_batch, data.validation_schedule(5)) for name in batch["sample_id"]]
    assert ids == data.samples.filter(data.samples["split"] == "validation")["sample_id"].to_list()
    assert all(len(b["stamps"]) == len(b["sample_id"]) for b in map(data.validation_batch, data.validation_schedule(5)))


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 239), min_size=1, max_size=40), size=st.integers(1, 17))
def test_prediction_batches_are_all_of_one_size_and_hold_what_was_asked(
    data: StampData, rows: list[int], size: int
) -> None:
    all_ids = data.samples["sample_id"].to_list()
    wanted = [all_ids[row] for row in rows]
    batches = list(data.predict_batches(wanted, size))
    assert all(len(batch["stamps"]) == len(batch["images"]) == size for batch in batches)
    assert [name for batch in batches for name in batch["sample_id"]] == wanted
    got = torch.cat([batch["stamps"][: len(batch["sample_id"])] for batch in batches]).numpy()
    np.testing.assert_array_equal(got, data.stamps[rows])


def test_an_unknown_id_is_named(data: StampData) -> None:
    with pytest.raises(DataError, match="sample 'sim-999999' is unknown"):
        list(data.predict_batches(["sim-000000", "sim-999999"], 4))


def copied(prepared: Path, folder: Path) -> Path:
    shutil.copytree(prepared, folder / "prepared")
    return folder / "prepared"


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_a_broken_array_is_named(prepared: Path, tmp_path: Path, content: bytes | None) -> None:
    folder = copied(prepared, tmp_path)
    if content is None:
        (folder / "stamps.npy").unlink()
    else:
        (folder / "stamps.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"stamps\.npy: not a readable array.*run the stage 'preprocess' again"):
        StampData(folder)


def test_an_array_of_another_length_is_refused(prepared: Path, tmp_path: Path) -> None:
    folder = copied(prepared, tmp_path)
    np.save(folder / "stamps.npy", np.zeros((7, 3, 32, 32), np.float32))
    with pytest.raises(DataError, match="7 stamps for 240 samples"):
        StampData(folder)


def test_missing_metadata_asks_for_the_stage(prepared: Path, tmp_path: Path) -> None:
    folder = copied(prepared, tmp_path)
    (folder / "stamps.json").unlink()
    with pytest.raises(DataError, match="run the stage that makes it"):
        StampData(folder)
