"""Classes as numbers in batches; what is returned for ids belongs to them; nothing grows with the data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.scopes.galaxies.data.prepare import class_names, prepare
from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.settings import GalaxiesPreprocess, TransformSettings
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import check_samples

COUNT = 90
KINDS = ["merger", "disc", None, "elliptical"]


def made(folder: Path, kinds: Any = KINDS, **settings: Any) -> StampData:
    """Stamps that hold their own number, with ids in an order that is neither theirs nor sorted."""
    order = np.random.default_rng(0).permutation(COUNT)
    stamps = np.broadcast_to(order.astype(np.float32)[:, None, None, None], (COUNT, 2, 16, 16)).copy()
    ids = [f"s{i}" for i in order]
    table = pl.DataFrame({"sample_id": ids, "group": ids}).with_columns(
        pl.Series("class", [kinds[i % len(kinds)] for i in order])
    )
    section = GalaxiesPreprocess(**{"stamp_px": 16, "transforms": (), **settings})
    samples = prepare(Cutouts([stamps], table, ("g", "r")), section, folder, folder)
    write_table(folder / "samples.parquet", check_samples(samples, folder))
    return StampData(folder)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> StampData:
    return made(tmp_path_factory.mktemp("numbered"))


@given(numbers=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=60))
@hypothesis_settings(deadline=None)
def test_what_is_returned_belongs_to_the_ids_for_every_order_and_with_repeats(
    numbered: StampData, numbers: list[int]
) -> None:
    """A peer's reader fails where an id is asked for twice."""
    batch = numbered.batch(numbered.rows_of([f"s{i}" for i in numbers]))
    assert batch["sample_id"] == [f"s{i}" for i in numbers]
    assert batch["stamps"][:, 1, 3, 4].tolist() == numbers
    assert batch["images"][:, 0, 0, 0].tolist() == numbers
    names = [KINDS[i % len(KINDS)] for i in numbers]
    assert batch["labels"].tolist() == [-1 if n is None else sorted(filter(None, KINDS)).index(n) for n in names]
    assert str(batch["labels"].dtype) == "torch.int64"


def test_classes_are_sorted_names_of_all_splits(numbered: StampData, tmp_path: Path) -> None:
    assert numbered.classes == ["disc", "elliptical", "merger"]
    assert made(tmp_path, [3, 10, 2]).classes == ["10", "2", "3"]


def test_a_class_that_only_the_test_split_has_shifts_no_number(numbered: StampData, tmp_path: Path) -> None:
    lone = next(i for i, s in enumerate(numbered.samples["split"]) if s == "test")
    name = numbered.samples["sample_id"][lone]
    table = numbered.samples.with_columns(
        pl.when(pl.col("sample_id") == name).then(pl.lit("a")).otherwise(pl.lit("b")).alias("class")
    )
    assert class_names(table, "class", tmp_path) == ["a", "b"]


def test_without_labels_there_are_none(tmp_path: Path) -> None:
    data = made(tmp_path, [None])
    assert data.classes == []
    assert "labels" not in data.batch(np.array([0]))
    assert (data.labels == -1).all()


def test_a_label_column_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"preprocess\.label: column 'clas' is missing; did you mean 'class'"):
        made(tmp_path, label="clas")
    with pytest.raises(DataError, match="column 'class' holds floating-point numbers"):
        made(tmp_path, [0.5, 1.0])


def test_a_sample_is_found_without_a_list_of_all_ids(numbered: StampData, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer makes a list of all ids for each sample that it loads."""
    numbered.batch(np.array([0]))
    lengths = list[int]()
    real = pl.Series.to_list

    def spy(series: pl.Series) -> list[Any]:
        lengths.append(len(series))
        return real(series)

    def refuse(series: pl.Series) -> Any:
        raise AssertionError("a column was walked through")

    monkeypatch.setattr(pl.Series, "to_list", spy)
    monkeypatch.setattr(pl.Series, "__iter__", refuse)
    numbered.train_batch([4])
    numbered.validation_batch([5])
    assert lengths == [1, 1]


def test_stamps_stay_on_disk_and_none_is_kept(numbered: StampData) -> None:
    """A peer keeps every sample that it has ever read."""
    assert isinstance(numbered.stamps.base, np.memmap)
    held = set(numbered.__dict__)
    for _ in range(3):
        numbered.batch(np.arange(COUNT))
    assert set(numbered.__dict__) - held <= {"labels", "train_rows"}


def test_transforms_that_make_no_finite_numbers_are_refused(tmp_path: Path) -> None:
    steps = (TransformSettings(name="torch:sub", args={"other": 5.0}), TransformSettings(name="sqrt"))
    with pytest.raises(DataError, match=r"preprocess\.transforms: the transforms make values of 's\d' that are not"):
        made(tmp_path, transforms=steps)
    data = made(tmp_path, transforms=(*steps, TransformSettings(name="nan_to_num")))
    assert data.batch(data.rows_of(["s4", "s14"]))["images"][:, 0, 0, 0].tolist() == [0, 3]


def test_the_prepared_files_say_what_was_done(numbered: StampData) -> None:
    meta = json.loads((numbered.folder / "stamps.json").read_text())
    assert (meta["unit"], meta["stamp_px"], meta["bands"], meta["transforms"]) == ("rms of the sky", 16, ["g", "r"], [])
    assert len(meta["transforms_sha256"]) == 64
