"""What is known of objects: the same names from whole tables and from a few rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.tables.objects import RESERVED, column_names, object_columns, read_objects
from manyscope.tables.parquet import write_table

NAMES = st.lists(
    st.sampled_from([*RESERVED, "a", "a (predicted)", "a (predicted 2)", "rank (sample)", "split", "group"]),
    unique=True,
)


@given(NAMES, NAMES)
def test_every_column_gets_a_name_of_its_own(own: list[str], described: list[str]) -> None:
    predictions = ["object_id", "sample_id", "embedding", *(name for name in own if name != "object_id")]
    samples = ["sample_id", "group", "split", *(name for name in described if name not in ("group", "split"))]
    predicted, known = column_names(predictions, samples)
    shown = [*predicted.values(), *known.values(), "split", "group", "sample_id"]
    assert len(set(shown)) == len(shown)
    assert not set(shown) & set(RESERVED)
    assert all(name == new for name, new in known.items() if name not in RESERVED)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    names = {"sample_id": ["s0", "s1"], "group": ["g", "h"], "split": ["test", "train"]}
    samples = pl.DataFrame({**names, "flux": [1.0, 2.0], "box": [[1, 2], [3, 4]], "rank": [8, 9]})
    own = {"object_id": ["a", "b", "c"], "sample_id": ["s1", "s0", "s1"], "embedding": np.zeros((3, 2), np.float32)}
    predictions = pl.DataFrame({**own, "flux": [5.0, 6.0, 7.0], "box": [1, 2, 3], "group": ["x", "y", "z"]})
    write_table(tmp_path / "samples.parquet", samples)
    write_table(tmp_path / "predictions.parquet", predictions)
    return tmp_path / "predictions.parquet", tmp_path / "samples.parquet"


def test_some_objects_are_described_as_all_are(tables: tuple[Path, Path]) -> None:
    predictions, samples = map(pl.read_parquet, tables)
    every = object_columns(predictions, samples).with_columns(object_id=pl.Series(["a", "b", "c"]))
    found = read_objects(*tables, ["c", "a"])
    assert found["object_id"].to_list() == ["c", "a"]
    assert set(found.columns) == set(every.columns) - {"box"}  # a list, which is still the owner of its name
    assert found.equals(every[[2, 0]].select(found.columns))
    assert found["box (predicted)"].to_list() == [3, 1]
    assert found["group (predicted)"].to_list() == ["z", "x"]


def test_objects_that_are_not_predicted_are_null(tables: tuple[Path, Path]) -> None:
    found = read_objects(*tables, ["b", "new"])
    assert found["sample_id"].to_list() == ["s0", None]
    assert found["flux"].to_list() == [1.0, None]
    assert read_objects(*tables, []).is_empty()
    with pytest.raises(DataError, match="the file is missing"):
        read_objects(tables[0].with_name("none.parquet"), tables[1], ["a"])
