"""Columns that users join to the objects: names that stay, values at their objects."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.tables.annotations import annotated, annotation_path, read_annotation, source_of, write_annotation
from manyscope.tables.objects import object_columns
from manyscope.tables.parquet import write_table

OBJECTS = pl.DataFrame({"object_id": ["a/0", "a/1", "b/0"], "sample_id": ["a", "a", "b"]})
COLUMNS = pl.DataFrame({"class": ["x", "y", "z"]})


def add(folder: Path, name: str, table: dict[str, list[object]]) -> None:
    write_annotation(annotation_path(folder, name), pl.DataFrame(table), f"{name}.csv")


def test_values_come_to_their_objects_and_others_have_none(tmp_path: Path) -> None:
    add(tmp_path, "objects", {"object_id": ["b/0", "elsewhere", "a/0"], "redshift": [1.5, 9.0, 0.5]})
    add(tmp_path, "samples", {"sample_id": ["a"], "seeing": [0.7]})
    found = annotated(COLUMNS, OBJECTS, tmp_path)
    assert found.to_dict(as_series=False) == {
        "class": ["x", "y", "z"], "redshift": [0.5, None, 1.5], "seeing": [0.7, 0.7, None],
    }  # fmt: skip
    assert source_of(tmp_path / "objects.parquet") == "objects.csv"


def test_without_annotations_nothing_changes(tmp_path: Path) -> None:
    assert annotated(COLUMNS, OBJECTS, tmp_path / "none").equals(COLUMNS)


def test_a_name_that_others_have_says_where_it_is_from(tmp_path: Path) -> None:
    add(tmp_path, "one", {"object_id": ["a/0"], "class": [1], "seeing": [1], "rank": [1], "map_x": [1]})
    add(tmp_path, "two", {"object_id": ["a/0"], "seeing": [2], "class (two)": [2], "class": [2]})
    assert annotated(COLUMNS, OBJECTS, tmp_path).columns == [
        "class", "class (one)", "seeing (one)", "rank (one)", "map_x (one)",
        "seeing (two)", "class (two)", "class (two 2)",
    ]  # fmt: skip


NAMES = st.sampled_from(["class", "seeing", "group", "split", "distance", "sample_id", "x (a)", "x"])


@given(st.lists(NAMES, unique=True), st.lists(NAMES, unique=True), st.lists(NAMES, unique=True))
def test_names_are_unique_and_the_same_in_every_view(
    tmp_path_factory: pytest.TempPathFactory, own: list[str], a: list[str], b: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("annotations")
    for name, columns in (("a", a), ("b", b)):
        add(folder, name, {"object_id": ["a/0"], **{column: [1] for column in columns if column != "object_id"}})
    predictions = OBJECTS.with_columns(pl.lit(0).alias(name) for name in own if name not in OBJECTS.columns)
    samples = pl.DataFrame({"sample_id": ["a", "b"], "group": ["a", "b"], "split": ["test", "test"]})
    views = []
    for repeats in (True, False):
        known = object_columns(predictions, samples, repeats=repeats)
        found = annotated(known, predictions, folder).columns
        assert len(set(found)) == len(found) == len(known.columns) + len(a) + len(b)
        views.append(found[len(known.columns) :])
    assert views[0] == views[1]


def test_the_same_columns_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        add(tmp_path / folder, "x", {"object_id": ["a"], "class": [1]})
    assert (tmp_path / "one/x.parquet").read_bytes() == (tmp_path / "two/x.parquet").read_bytes()


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "a/b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot name an annotation; allowed: letters"):
        annotation_path(tmp_path, name)


def test_a_file_that_is_no_annotation_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "x.parquet", pl.DataFrame({"redshift": [1.0]}))
    with pytest.raises(
        DataError, match=r"x.parquet: not an annotation; allowed: a first column object_id or sample_id"
    ):
        read_annotation(tmp_path / "x.parquet")
    write_table(tmp_path / "x.parquet", pl.DataFrame({"object_id": ["a/0", "a/0"], "redshift": [1.0, 2.0]}))
    with pytest.raises(DataError, match="a value of object_id occurs twice"):
        annotated(COLUMNS, OBJECTS, tmp_path)
