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
from manyscope.tables.predictions import embeddings, read_predictions


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
    with pytest.raises(DataError, match="one vector"):
        search(paths, 3, vector=np.ones((2, 8)))
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
