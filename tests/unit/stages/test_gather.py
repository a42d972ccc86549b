"""gather: one table from any number of shards."""

from __future__ import annotations

import logging

import numpy as np
import polars as pl
import pytest

from manyscope.errors import DataError
from manyscope.latent.outliers import outlier_scores
from manyscope.stages import gather
from manyscope.tables.parquet import read_metadata, write_table
from manyscope.tables.predictions import embeddings, read_predictions


def test_the_number_of_shards_changes_nothing(latent_tables, stage_settings) -> None:
    written = []
    for shards in (1, 3, 8):
        paths = latent_tables(shards=shards, name=f"with_{shards}")
        gather.run(stage_settings("gather"), paths, shards)
        written.append(paths.predictions.read_bytes())
    assert written[0] == written[1] == written[2]
    table = read_predictions(paths.predictions)
    samples = pl.read_parquet(paths.samples)["sample_id"].to_list()
    positions = [samples.index(s) for s in table["sample_id"]]
    assert positions == sorted(positions)
    assert table.schema["outlier_knn"] == table.schema["outlier_lof"] == pl.Float32


def test_a_stranger_scores_highest_and_only_training_objects_judge(latent_tables, stage_settings) -> None:
    vectors = np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)
    tests = [i for i in range(120) if i % 5 == 0]
    vectors[tests] = 50 + np.random.default_rng(1).normal(scale=0.01, size=(len(tests), 8))  # near to one another only
    paths = latent_tables(one_each=True, vectors=vectors)
    gather.run(stage_settings("gather"), paths, 1)
    table = read_predictions(paths.predictions)
    strange = np.zeros(120, bool)
    strange[tests] = True
    for name in ("outlier_knn", "outlier_lof"):
        score = table[name].to_numpy()
        assert score[strange].min() > 5 * score[~strange].max()
    np.testing.assert_array_equal(embeddings(table), vectors)


def test_settings_and_own_columns_of_a_scope(latent_tables, stage_settings) -> None:
    paths = latent_tables(columns=("outlier_reconstruction", "outlier_lof"))
    gather.run(stage_settings("gather", gather={"outlier_neighbours": 3}), paths, 1)
    table = read_predictions(paths.predictions)
    assert table["outlier_reconstruction"].unique().to_list() == [7.0]
    assert table["outlier_lof"].unique().to_list() == [7.0]
    assert table["outlier_knn"].n_unique() > 50
    gather.run(stage_settings("gather", gather={"outlier_scores": []}), paths, 1)
    assert "outlier_knn" not in read_predictions(paths.predictions).columns


def test_a_seeded_choice_of_the_training_objects_judges(latent_tables, stage_settings) -> None:
    paths = latent_tables(one_each=True)  # 72 of its 120 objects are training objects

    def scores(**section: int) -> np.ndarray:
        gather.run(stage_settings("gather", gather={"lof_neighbours": 5, **section}), paths, 1)
        return read_predictions(paths.predictions).select("outlier_knn", "outlier_lof").to_numpy()

    everyone = scores()
    np.testing.assert_array_equal(scores(reference_objects=72, seed=3), everyone)
    few = scores(reference_objects=40)
    np.testing.assert_array_equal(scores(reference_objects=40), few)
    assert (scores(reference_objects=40, seed=1) != few).any()
    assert (few[:, 0] > everyone[:, 0]).mean() > 0.9  # fewer objects lie farther apart

    table = read_predictions(paths.predictions)
    train = np.flatnonzero(np.arange(120) % 5 >= 2)
    chosen = np.zeros(120, bool)
    chosen[np.random.default_rng(0).choice(train, 40, replace=False)] = True
    expected = outlier_scores(embeddings(table), chosen, {"knn": 10, "lof": 5})
    np.testing.assert_array_equal(few[:, 0], expected["knn"].astype(np.float32))
    np.testing.assert_array_equal(few[:, 1], expected["lof"].astype(np.float32))


def test_without_training_objects_all_objects_judge(latent_tables, stage_settings, caplog) -> None:
    paths = latent_tables(one_each=True)
    samples = pl.read_parquet(paths.samples)
    write_table(paths.samples, samples.with_columns(split=pl.lit("test")))
    with caplog.at_level(logging.WARNING):
        gather.run(stage_settings("gather"), paths, 1)
    assert "compare with all objects" in caplog.text
    assert read_predictions(paths.predictions)["outlier_lof"].is_finite().all()


def test_broken_shards_leave_the_earlier_table_alone(latent_tables, stage_settings) -> None:
    paths = latent_tables(shards=3)
    gather.run(stage_settings("gather"), paths, 3)
    before = paths.predictions.read_bytes()
    whole = paths.shard(1).read_bytes()
    shard, metadata = pl.read_parquet(paths.shard(1)), read_metadata(paths.shard(1))

    def fails(words: str, shards: int = 3) -> None:
        with pytest.raises(DataError, match=words):
            gather.run(stage_settings("gather"), paths, shards)
        assert paths.predictions.read_bytes() == before

    fails("does not hold the samples that belong to it", shards=2)
    paths.shard(1).unlink()
    fails("the file is missing")
    paths.shard(1).write_bytes(whole[:300])
    fails("not a readable Parquet file")
    paths.shard(1).write_bytes(paths.shard(0).read_bytes())
    fails("does not hold the samples that belong to it")
    broken = embeddings(shard).copy()
    broken[2, 3] = np.nan
    write_table(paths.shard(1), shard.with_columns(pl.Series("embedding", broken)), metadata)
    fails(f"object '{shard['object_id'][2]}' is not finite")
    write_table(paths.shard(1), shard.with_columns(object_id=pl.lit("twin")), metadata)
    fails("'twin' occurs twice")
