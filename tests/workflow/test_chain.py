"""The whole chain through real Snakemake: its files, and what reruns when something changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from ruamel.yaml import YAML

from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.manifest import read_manifest
from manyscope.tables.metrics import read_metrics
from manyscope.tables.parquet import read_table
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.tables.samples import data_digest, read_samples
from workspace import REPOSITORY, Workspace, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chain")]

AFTER_TRAIN = {"infer", "gather", "umap", "index", "evaluate", "explore", "summary"}


def paths_of(workspace: Workspace) -> ExperimentPaths:
    return ExperimentPaths.of(workspace.results, "galaxies")


def test_every_file_of_the_contract(finished: Workspace) -> None:
    paths = paths_of(finished)
    manifest, samples, predictions = (
        read_manifest(paths.manifest),
        read_samples(paths.samples),
        read_predictions(paths.predictions),
    )
    assert (manifest["state"] == "done").all()
    assert set(samples["split"]) == {"train", "validation", "test"}
    assert predictions["sample_id"].to_list() == samples["sample_id"].to_list()
    assert predictions["object_id"].is_unique().all()
    assert np.isfinite(embeddings(predictions)).all()
    mapped = read_table(paths.map)
    assert mapped["object_id"].to_list() == predictions["object_id"].to_list()
    assert {"x", "y"} <= set(mapped.columns)
    audit = json.loads(paths.audit.read_text())
    assert audit["count"] == len(predictions)
    assert audit["recall_at_10"] >= 0.99
    document, rows = read_metrics(paths.metrics)
    assert document["experiment"] == "galaxies"
    assert {row.baseline for row in rows} >= {"pca", "untrained"}
    assert all(row.low <= row.value <= row.high for row in rows)
    assert read_table(paths.metrics_table).height == len(rows)
    assert paths.page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert list(paths.figures.glob("*.png"))
    for stage in ("download", "preprocess", "train", "infer-00", "infer-01", "gather", "umap", "index", "evaluate"):
        assert paths.log(stage).exists(), stage
        assert json.loads(paths.benchmark(stage).read_text().splitlines()[0])["s"] > 0


def test_provenance_lies_beside_the_model(finished: Workspace) -> None:
    paths = paths_of(finished)
    record = json.loads(paths.run.read_text())
    ran_with = YAML(typ="safe").load(paths.settings)
    given = YAML(typ="safe").load(finished.folder / "config/experiments/galaxies.yaml")
    assert ran_with["train"]["epochs"] == given["train"]["epochs"]
    assert ran_with["train"]["seed"] == 0
    assert record["data_digest"] == data_digest(paths.samples)
    assert {"python", "torch", "polars"} <= record["packages"].keys()
    assert record["git"]["commit"] is None or len(record["git"]["commit"]) == 40
    assert record["tracker"] == "mlflow"
    import sqlite3

    with sqlite3.connect(finished.results / "mlflow.db") as database:
        logged = database.execute("select count(*) from metrics where run_uuid = ?", [record["tracker_run_id"]])
        assert logged.fetchone()[0] == read_table(paths.history).height


def test_second_run_has_nothing_to_do(finished: Workspace) -> None:
    assert finished.rules_to_run() == set()
    assert "Nothing to be done" in finished.snakemake("--dry-run").stdout + finished.snakemake("--dry-run").stderr


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        ("galaxies.umap.n_neighbors=9", {"umap", "explore", "summary"}),
        ("galaxies.index.ef_search=150", {"index", "explore"}),
        ("galaxies.train.lr=0.0007", {"train", *AFTER_TRAIN}),
        ("galaxies.evaluate.bootstrap_draws=120", {"evaluate", "summary"}),
        ("galaxies.explore.neighbours=4", {"explore"}),
        ("galaxies.preprocess.split_seed=5", {"preprocess", "train", *AFTER_TRAIN}),
        ("galaxies.infer.batch_size=64", AFTER_TRAIN),
    ],
)
def test_a_changed_setting_reruns_its_stage_and_what_hangs_on_it(
    finished: Workspace, change: str, rerun: set[str]
) -> None:
    assert finished.rules_to_run("--config", f"set=[{change}]") == rerun


def test_a_changed_setting_really_reruns(copy_of_finished: Workspace) -> None:
    paths = paths_of(copy_of_finished)
    before = {p: p.stat().st_mtime_ns for p in (paths.model, paths.predictions, paths.audit, paths.metrics, paths.map)}
    change = ("--config", "set=[galaxies.umap.n_neighbors=9,galaxies.umap.seed=1]")
    copy_of_finished.snakemake(*change)
    changed = {p.name for p, time in before.items() if p.stat().st_mtime_ns != time}
    assert changed == {paths.map.name}
    assert copy_of_finished.rules_to_run(*change) == set()


@pytest.mark.parametrize(
    ("module", "rerun"),
    [
        ("evaluation/bootstrap.py", {"evaluate", "summary"}),
        ("latent/reducers.py", {"umap", "explore", "summary"}),
        ("training/fit.py", {"train", *AFTER_TRAIN}),
        ("explorer/page.py", {"explore"}),
        ("scopes/galaxies/simulate.py", {"download", "preprocess", "train", *AFTER_TRAIN}),
    ],
)
def test_a_changed_module_reruns_the_stages_that_use_it(
    finished: Workspace, tmp_path: Path, module: str, rerun: set[str]
) -> None:
    library = tmp_path / "library"
    shutil.copytree(REPOSITORY / "src", library, ignore=shutil.ignore_patterns("__pycache__"))
    other = Workspace(finished.folder, library)
    assert other.rules_to_run() == set()
    file = library / "manyscope" / module
    file.write_text(file.read_text() + "\n# a comment changes nothing\n")
    assert other.rules_to_run() == set()
    file.write_text(file.read_text() + "\nCHANGED = 1\n")
    assert other.rules_to_run() == rerun


@pytest.mark.long
def test_shards_give_the_same_predictions(finished: Workspace, tmp_path: Path) -> None:
    reference = paths_of(finished).predictions.read_bytes()
    for shards in (1, 3, 8):
        workspace = make_workspace(tmp_path / str(shards), shards=shards)
        shutil.copytree(finished.results, workspace.results)
        shutil.rmtree(paths_of(workspace).infer)
        shutil.copytree(finished.folder / ".snakemake", workspace.folder / ".snakemake")
        workspace.snakemake("results/galaxies/infer/predictions.parquet")
        assert len(list(paths_of(workspace).infer.glob("shard-*"))) == shards
        assert paths_of(workspace).predictions.read_bytes() == reference, shards


@pytest.mark.long
def test_same_seed_same_metrics_other_seed_other_metrics(finished: Workspace, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        workspace = make_workspace(tmp_path / str(seed))
        workspace.cold = True
        # The profile gives every job one thread: with two, sums are formed in another order.
        profile = ("--profile", "workflow_profiles/local")
        change = ("--config", f"set=[galaxies.train.seed={seed}]")
        workspace.snakemake(*profile, "results/galaxies/evaluate/metrics.json", *change)
        found.append(paths_of(workspace).metrics.read_bytes())
    assert found[0] == paths_of(finished).metrics.read_bytes()
    assert found[1] != found[0]


def test_report_holds_figures_metrics_and_page(copy_of_finished: Workspace) -> None:
    copy_of_finished.snakemake("--report", "results/report.html")
    text = (copy_of_finished.results / "report.html").read_text(encoding="utf-8")
    for piece in ("map of the latent space", "page to explore", "metrics and baselines", "all experiments"):
        assert piece in text, piece


def test_search_from_the_shell(finished: Workspace) -> None:
    predictions = read_predictions(paths_of(finished).predictions)
    wanted = predictions["object_id"][5]
    answer = finished.manyscope("search", "--experiment", "galaxies", "--id", wanted, "-k", "4", "--json").stdout
    rows = json.loads(answer)
    vectors = embeddings(predictions)
    exact = ((vectors - vectors[5]) ** 2).sum(1)
    exact[5] = np.inf
    assert [row["object_id"] for row in rows] == predictions["object_id"][np.argsort(exact)[:4].tolist()].to_list()
    assert np.allclose([row["distance"] for row in rows], np.sort(exact)[:4], rtol=1e-4)
    np.save(finished.folder.parent / "v.npy", vectors[7])
    table = finished.manyscope(
        "search", "--experiment", "galaxies", "--vector", str(finished.folder.parent / "v.npy"), "-k", "1"
    )
    assert predictions["object_id"][7] in table.stdout


def test_summary_lists_every_metric(finished: Workspace) -> None:
    table = read_table(finished.results / "summary.parquet")
    _, rows = read_metrics(paths_of(finished).metrics)
    assert table.height == len(rows)
    assert set(table["experiment"]) == {"galaxies"}
    assert pl.Series(table["ahead"]).dtype == pl.Boolean
