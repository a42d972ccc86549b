"""Searching an experiment by object and by vector."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from manyscope.errors import DataError
from manyscope.latent.neighbours import nearest_neighbours
from manyscope.latent.search import search
from manyscope.stages import index as index_stage
from manyscope.tables.annotations import annotation_path, write_annotation
from manyscope.tables.objects import object_columns
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.tables.samples import read_samples


def test_by_object_the_object_itself_is_left_out(latent_tables, stage_settings) -> None:
    paths = latent_tables()
    index_stage.run(stage_settings("index"), paths)
    table = read_predictions(paths.predictions)
    distances, rows = nearest_neighbours(embeddings(table), 6)
    found = search(paths, 6, object_id=table["object_id"][4])
    assert found["object_id"].to_list() == [table["object_id"][int(r)] for r in rows[4]]
    np.testing.assert_allclose(found["distance"], distances[4], rtol=1e-4)
    assert found["rank"].to_list() == [1, 2, 3, 4, 5, 6]
    samples = pl.read_parquet(paths.samples)
    for row in found.iter_rows(named=True):
        sample = samples.row(by_predicate=pl.col("sample_id") == row["sample_id"], named=True)
        assert (row["split"], row["label"], row["area"]) == (sample["split"], sample["label"], sample["area"])
        own = table.row(by_predicate=pl.col("object_id") == row["object_id"], named=True)
        assert row["area (predicted)"] == own["area"]
    assert not {"embedding", "box"} & set(found.columns)


def test_by_vector_and_more_than_there_are(latent_tables, stage_settings) -> None:
    paths = latent_tables(30, one_each=True)
    index_stage.run(stage_settings("index"), paths)
    table = read_predictions(paths.predictions)
    found = search(paths, 1000, vector=embeddings(table)[3])
    assert len(found) == 30
    assert found["object_id"][0] == table["object_id"][3]
    assert len(search(paths, 1000, object_id=table["object_id"][3])) == 29


def test_an_object_is_left_out_among_its_duplicates_too(latent_tables, stage_settings) -> None:
    paths = latent_tables(20, one_each=True, vectors=np.ones((20, 3), np.float32))
    index_stage.run(stage_settings("index"), paths)
    found = search(paths, 5, object_id="s0019/0")
    assert len(found) == 5
    assert "s0019/0" not in found["object_id"].to_list()


def test_questions_that_have_no_answer(latent_tables, stage_settings) -> None:
    paths = latent_tables()
    with pytest.raises(DataError, match="run the stage index"):
        search(paths, 3, object_id="s0004/0")
    index_stage.run(stage_settings("index"), paths)
    with pytest.raises(DataError, match="did you mean 's0004/0'"):
        search(paths, 3, object_id="s0004/00")
    with pytest.raises(DataError, match="1 or more"):
        search(paths, 0, object_id="s0004/0")
    with pytest.raises(DataError, match="either an object_id or a vector"):
        search(paths, 3)
    latent_tables(10)
    with pytest.raises(DataError, match="is not among the predictions"):
        search(paths, 50, object_id="s0004/0")


def test_a_search_loads_nothing_heavy() -> None:
    code = (
        "import sys, manyscope.latent.search;"
        "print(*({'torch', 'sklearn', 'scipy', 'umap', 'numba', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


@pytest.mark.parametrize("store", ["chroma", "exact", "lance"])
def test_filters_and_several_queries(latent_tables, stage_settings, store: str) -> None:
    paths = latent_tables()
    index_stage.run(stage_settings("index", index={"store": store, "audit_queries": 20}), paths)
    table = read_predictions(paths.predictions)
    names = [table["object_id"][row] for row in (4, 11)]
    where = ["label = 'kind 1' and area < 20", '"area (predicted)" >= 3']
    found = search(paths, 5, object_id=names, where=where)
    assert found["query"].to_list() == [name for name in names for _ in range(5)]
    assert found["rank"].to_list() == [1, 2, 3, 4, 5] * 2
    assert set(found["label"]) == {"kind 1"}
    assert (found["area"] < 20).all()
    assert (found["area (predicted)"] >= 3).all()
    assert not (found["query"] == found["object_id"]).any()
    for name in names:
        alone = search(paths, 5, object_id=name, where=where)
        assert alone.equals(found.filter(pl.col("query") == name).drop("query"))
    vectors = embeddings(table)[[4, 11]]
    several = search(paths, 1, vector=vectors)
    assert several.select("query", "object_id").rows() == [(0, names[0]), (1, names[1])]
    assert several["distance"].to_list() == pytest.approx([0, 0], abs=1e-5)
    none = search(paths, 5, object_id=names[0], where=["label = 'kind 9'"])
    assert none.is_empty()
    assert none.columns == alone.columns


def test_a_name_in_both_tables_is_no_trouble_whatever_else_is_called_like_it(latent_tables, stage_settings) -> None:
    paths = latent_tables(20, one_each=True)
    samples = pl.read_parquet(paths.samples)
    names = {"x": 1, "x (predicted)": 2, "distance": 3, "rank": 4, "box (predicted)": 5}
    write_table(paths.samples, samples.with_columns(pl.lit(value).alias(name) for name, value in names.items()))
    predictions = {"x": 6, "x (predicted 2)": 7, "distance": 8, "box": 9, "split": 10}
    own = pl.read_parquet(paths.predictions)
    write_table(paths.predictions, own.with_columns(pl.lit(value).alias(name) for name, value in predictions.items()))
    index_stage.run(stage_settings("index"), paths)
    found = search(paths, 3, object_id="s0019/0").row(0, named=True)
    assert {name: found[name] for name in found if type(found[name]) is int and name != "rank"} == {
        "x": 1, "x (predicted)": 2, "distance (sample)": 3, "rank (sample)": 4, "box (predicted)": 5,
        "x (predicted 3)": 6, "x (predicted 2)": 7, "distance (predicted)": 8, "box (predicted 2)": 9,
        "split (predicted)": 10,
    }  # fmt: skip
    # The page and the filters call them the same.
    columns = object_columns(read_predictions(paths.predictions), read_samples(paths.samples))
    assert set(found) - {"rank", "object_id", "distance"} == set(columns.columns) - {"box"}
    assert len(search(paths, 30, object_id="s0019/0", where=["'x (predicted 3)' = 6"])) == 19
    assert search(paths, 30, object_id="s0019/0", where=["'distance (predicted)' < 8"]).is_empty()


def test_annotations_are_found_and_filtered_by(latent_tables, stage_settings) -> None:
    paths = latent_tables(20, one_each=True)
    ids = read_predictions(paths.predictions)["object_id"].to_list()
    redshifts = pl.DataFrame({"object_id": ids[:8], "redshift": [i / 10 for i in range(8)], "area": range(8)})
    write_annotation(annotation_path(paths.annotations, "match"), redshifts, "a catalog")
    index_stage.run(stage_settings("index"), paths)
    found = search(paths, 20, object_id=ids[0], where=["redshift > 0.35 and 'area (match)' != 6"])
    assert sorted(found["object_id"]) == sorted(ids[i] for i in (4, 5, 7))
    assert set(found["area (match)"]) == {4, 5, 7}
