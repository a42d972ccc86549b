"""index: the store with its audit, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyscope.errors import DataError, ManyscopeError
from manyscope.latent.audit import _interval
from manyscope.latent.index import open_index
from manyscope.stages import index as index_stage
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.tables.samples import read_samples


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("store", "metric"),
    [("chroma", "l2"), ("chroma", "cosine"), ("chroma", "ip"), ("exact", "ip"), ("lance", "cosine")],
)
def test_the_index_holds_exactly_the_objects(latent_tables, stage_settings, store: str, metric: str) -> None:
    paths = latent_tables()
    paths.index.mkdir(parents=True)  # as Snakemake leaves it before the job
    index_stage.run(stage_settings("index", index={"store": store, "metric": metric, "audit_queries": 40}), paths)
    table = read_predictions(paths.predictions)
    audit = json.loads(paths.audit.read_text())
    names = ["count", "dimension", "recall_at_10", "recall_at_10_interval", "query_p50_ms", "query_p99_ms", "build_s"]
    assert list(audit) == names
    assert (audit["count"], audit["dimension"], audit["recall_at_10"]) == (len(table), 8, 1.0)
    assert 0 < audit["query_p50_ms"] <= audit["query_p99_ms"]
    with open_index(paths.index) as index:
        found, _ = index.search(embeddings(table)[0], len(table))
        assert sorted(found[0]) == sorted(table["object_id"])
    assert not [p for p in paths.root.iterdir() if p.name.startswith(".")]


def test_building_again_replaces_the_index_also_of_another_store(latent_tables, stage_settings) -> None:
    paths = latent_tables(60)
    index_stage.run(stage_settings("index"), paths)
    paths = latent_tables(20, dimensions=3)
    index_stage.run(stage_settings("index", index={"store": "exact"}), paths)
    assert sorted(p.name for p in paths.index.iterdir()) == [
        "audit.json",
        "objects.parquet",
        "store.json",
        "vectors.npy",
    ]
    with open_index(paths.index) as index:
        assert (index.count, index.dimension) == (len(read_predictions(paths.predictions)), 3)


def test_the_columns_are_those_of_the_page(latent_tables, stage_settings) -> None:
    paths = latent_tables()
    index_stage.run(stage_settings("index"), paths)
    with open_index(paths.index) as index:
        assert index.columns == {
            "label": "text", "area": "float64", "area (predicted)": "float32", "split": "text", "group": "text",
            "sample_id": "text",
        }  # fmt: skip
    index_stage.run(stage_settings("index", index={"columns": ["label"]}), paths)
    with open_index(paths.index) as index:
        assert index.columns == {"label": "text"}
    with pytest.raises(DataError, match=r"index\.columns: column 'labels' is not among .* did you mean 'label'"):
        index_stage.run(stage_settings("index", index={"columns": ["labels"]}), paths)


@pytest.mark.parametrize("store", ["chroma", "exact", "lance"])
def test_extending_takes_in_what_the_predictions_have_gained(latent_tables, stage_settings, store: str) -> None:
    settings = stage_settings("index", index={"store": store})
    paths = latent_tables(30, one_each=True)
    index_stage.run(settings, paths)
    assert index_stage.extend(settings, paths) == 0
    old = read_predictions(paths.predictions)
    vectors = np.concatenate([embeddings(old), embeddings(old)[:12] + 5])
    paths = latent_tables(42, one_each=True, vectors=vectors)
    assert index_stage.extend(settings, paths) == 12
    table = read_predictions(paths.predictions)
    with open_index(paths.index) as index:
        assert index.count == 42
        assert index.search(embeddings(table), 1)[0] == [[name] for name in table["object_id"]]
        assert sorted(index.search(vectors[0], 42, ["area >= 20"])[0][0]) == ["s0040/0", "s0041/0"]
    audit = json.loads(paths.audit.read_text())
    assert (audit["count"], audit["recall_at_10"]) == (42, 1.0)
    latent_tables(42, one_each=True, vectors=vectors + 1)
    with pytest.raises(DataError, match="has another vector in the index; run the stage index"):
        index_stage.extend(settings, paths)


@pytest.mark.parametrize("store", ["chroma", "exact", "lance"])
def test_extending_by_nothing_takes_in_what_is_said_anew_of_the_old_ones(
    latent_tables, stage_settings, store: str
) -> None:
    settings = stage_settings("index", index={"store": store})
    paths = latent_tables(12, one_each=True)
    index_stage.run(settings, paths)
    before = paths.audit.read_bytes()
    assert index_stage.extend(settings, paths) == 0
    assert paths.audit.read_bytes() == before
    samples = read_samples(paths.samples)
    write_table(paths.samples, samples.with_columns(label=pl.lit("corrected")))
    assert index_stage.extend(settings, paths) == 0
    with open_index(paths.index) as index:
        assert len(index.search(np.ones(8), 12, ["label = corrected"])[0][0]) == 12


def test_extending_with_other_columns_or_types_builds_the_index_anew(latent_tables, stage_settings) -> None:
    settings = stage_settings("index", index={"store": "exact"})
    paths = latent_tables(12, one_each=True)
    samples = read_samples(paths.samples)
    whole = samples.with_columns(size=pl.lit(2, pl.Int64), old=pl.lit("gone"))
    write_table(paths.samples, whole)
    index_stage.run(settings, paths)
    latent_tables(15, one_each=True)
    samples = read_samples(paths.samples)
    write_table(paths.samples, samples.with_columns(size=pl.lit(2.5), new=pl.lit("come")))
    assert index_stage.extend(settings, paths) == 3
    with open_index(paths.index) as index:
        assert (index.columns["size"], index.columns["new"], "old" in index.columns) == ("float64", "text", False)
        assert len(index.search(np.ones(8), 15, ["size > 2.2", "new = come"])[0][0]) == 15


@pytest.mark.parametrize("n", [1, 3, 11])
def test_few_objects(latent_tables, stage_settings, n: int) -> None:
    paths = latent_tables(n, one_each=True)
    index_stage.run(stage_settings("index"), paths)
    audit = json.loads(paths.audit.read_text())
    assert (audit["count"], audit["recall_at_10"]) == (n, 1.0)


def test_recall_counts_equally_near_objects_and_notices_what_is_missing(latent_tables, stage_settings) -> None:
    settings = stage_settings("index").index
    copies = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0)
    ids = [f"o{i}" for i in range(200)]

    class Index:
        count, dimension = 200, 4

        def __init__(self, found: list[int]) -> None:
            self.found = found

        def search(self, vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[np.ndarray]]:
            answers = [[ids[int(np.argmax(v)) * 50 + i] for i in self.found] for v in np.atleast_2d(vectors)]
            return answers, [np.zeros(len(self.found))] * len(answers)

    late = index_stage.audit(Index(list(range(40, 50))), copies, ids, settings)  # type: ignore[arg-type]
    assert late["recall_at_10"] == 1.0
    half = index_stage.audit(Index([0, 1, 2, 3, 4]), copies, ids, settings)  # type: ignore[arg-type]
    assert half["recall_at_10"] == 0.5
    # Wilson's interval of a half in 200 trials: copies of four vectors, of whose neighbours as many are found.
    assert half["recall_at_10_interval"] == pytest.approx([0.4313, 0.5687], abs=1e-3)
    assert late["recall_at_10_interval"][1] == 1.0
    assert 0.97 < late["recall_at_10_interval"][0] < 1


def test_the_interval_of_recall_counts_queries_and_not_neighbours() -> None:
    rng = np.random.default_rng(0)
    lone = rng.binomial(10, 0.9, 400) / 10  # each neighbour is found or missed by itself
    together = rng.binomial(1, 0.9, 400).astype(float)  # all ten, or none of them
    width = {name: np.diff(_interval(shares))[0] for name, shares in (("a", lone), ("b", together))}
    assert width["a"] == pytest.approx(2 * 1.96 * (0.09 / 4000) ** 0.5, rel=0.1)
    assert width["b"] == pytest.approx(2 * 1.96 * (together.mean() * (1 - together.mean()) / 400) ** 0.5, rel=0.1)


def test_failures_leave_the_earlier_index_alone(latent_tables, stage_settings) -> None:
    paths = latent_tables()
    index_stage.run(stage_settings("index"), paths)
    before = contents(paths.index)
    table = read_predictions(paths.predictions)

    def fails(words: str, **section: str) -> None:
        with pytest.raises(DataError, match=words):
            index_stage.run(stage_settings("index", index=section), paths)
        assert contents(paths.index) == before

    vectors = embeddings(table).copy()
    vectors[3] = 0
    write_table(paths.predictions, table.with_columns(pl.Series("embedding", vectors)))
    fails(f"object '{table['object_id'][3]}' is zero", metric="cosine")
    vectors[7, 1] = np.nan
    write_table(paths.predictions, table.with_columns(pl.Series("embedding", vectors)))
    fails(f"object '{table['object_id'][7]}' is not finite")
    write_table(paths.predictions, table.with_columns(object_id=pl.lit("twin")))
    fails("'twin' occurs twice, with two vectors")
    write_table(paths.predictions, table)
    with pytest.raises(ManyscopeError, match="vector store 'choma' is unknown"):
        index_stage.run(stage_settings("index", index={"store": "choma"}), paths)
    assert contents(paths.index) == before
    paths.predictions.write_bytes(b"PAR1 and nothing else")
    fails("not a readable Parquet file")
    paths.predictions.unlink()
    fails("the file is missing")
