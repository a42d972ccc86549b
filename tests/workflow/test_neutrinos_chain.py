"""The scope `neutrinos` through the whole chain: simulated, competition-like and GraphNeT files."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from ruamel.yaml import YAML

from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.metrics import read_metrics
from manyscope.tables.predictions import read_predictions
from manyscope.tables.samples import read_samples
from workspace import REPOSITORY, Workspace, make_workspace, train_apart

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("neutrinos")]

SAMPLES = REPOSITORY.parent / "shared" / "data" / "neutrinos"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("neutrinos") / "work", experiments=("neutrinos",))
    workspace.snakemake("--profile", "workflow_profiles/local")
    return workspace


def test_every_event_has_a_direction_and_kappa(simulated: Workspace) -> None:
    paths = ExperimentPaths.of(simulated.results, "neutrinos")
    samples, predictions = read_samples(paths.samples), read_predictions(paths.predictions)
    assert predictions["sample_id"].to_list() == samples["sample_id"].to_list()
    assert predictions["azimuth"].is_between(0, 2 * np.pi, closed="left").all()
    assert predictions["zenith"].is_between(0, np.pi).all()
    assert (predictions["kappa"] > 0).all()
    assert predictions["n_pulses"].to_list() == samples["n_pulses"].to_list()
    document, rows = read_metrics(paths.metrics)
    assert document["headline"] == "mean_angular_error"
    baselines = {row.baseline for row in rows if row.name == "mean_angular_error"}
    assert baselines == {"line_fit"}
    assert {"kappa_calibration", "median_angular_error"} <= {row.name for row in rows}
    assert {"events", "calibration", "error_by_pulses", "training"} <= {f.stem for f in paths.figures.glob("*.png")}


def test_the_submission_holds_the_test_events(simulated: Workspace) -> None:
    paths = ExperimentPaths.of(simulated.results, "neutrinos")
    found = pl.read_csv(paths.evaluate / "submission.csv")
    assert found.columns == ["event_id", "azimuth", "zenith"]
    test = read_samples(paths.samples).filter(pl.col("split") == "test")["sample_id"].cast(pl.Int64)
    assert found["event_id"].to_list() == sorted(test)


def test_files_and_their_events_stay_in_one_split(simulated: Workspace) -> None:
    samples = read_samples(ExperimentPaths.of(simulated.results, "neutrinos").samples)
    assert samples.group_by("group").agg(pl.col("split").n_unique())["split"].max() == 1


def test_the_number_of_shards_changes_no_digit(simulated: Workspace) -> None:
    source = ExperimentPaths.of(simulated.results, "neutrinos")
    expected = source.predictions.read_bytes()
    for shards in (1, 3):
        results = simulated.folder / f"with-{shards}"
        (results / "neutrinos").mkdir(parents=True)
        for name in ("prepared", "train"):
            (results / "neutrinos" / name).symlink_to(source.root / name)
        common = ("--experiment", "neutrinos", "--results", str(results), "--shards", str(shards))
        for shard in range(shards):
            simulated.manyscope("infer", *common, "--shard", str(shard))
        simulated.manyscope("gather", *common)
        assert ExperimentPaths.of(results, "neutrinos").predictions.read_bytes() == expected


def test_only_the_chosen_splits_are_embedded_and_the_test_is_judged_the_same(simulated: Workspace) -> None:
    source = ExperimentPaths.of(simulated.results, "neutrinos")
    results = simulated.folder / "with-splits"
    (results / "neutrinos").mkdir(parents=True)
    for name in ("prepared", "train"):
        (results / "neutrinos" / name).symlink_to(source.root / name)
    common = ("--experiment", "neutrinos", "--results", str(results))
    chosen = ("--set", "infer.splits=[test, unlabelled]")
    simulated.manyscope("infer", *common, *chosen)
    simulated.manyscope("gather", *common, *chosen)
    paths = ExperimentPaths.of(results, "neutrinos")
    test = read_samples(paths.samples).filter(pl.col("split") == "test")["sample_id"].to_list()
    assert read_predictions(paths.predictions)["sample_id"].to_list() == test
    refused = simulated.manyscope("gather", *common, check=False)
    assert refused.returncode != 0
    assert "does not hold the samples that belong to it" in refused.stderr
    simulated.manyscope("evaluate", *common)
    assert paths.metrics.read_bytes() == source.metrics.read_bytes()
    nobody = simulated.manyscope("infer", *common, "--set", "infer.splits=[unlabelled]", check=False)
    assert nobody.returncode != 0
    assert "no sample is of the splits unlabelled; see infer.splits" in nobody.stderr


@pytest.mark.long
def test_a_killed_training_ends_with_the_same_weights_and_calibration(simulated: Workspace, tmp_path: Path) -> None:
    longer = ("--set", "train.epochs=30", "--set", "train.check_every_epochs=1")
    source = ExperimentPaths.of(simulated.results, "neutrinos")
    undisturbed = train_apart(simulated, source, tmp_path / "undisturbed", *longer)
    killed = train_apart(simulated, source, tmp_path / "killed", *longer, interrupt=signal.SIGKILL)
    assert killed.model.read_bytes() == undisturbed.model.read_bytes()


# ------------------------------------------------------------------------------------------------------- other data
@pytest.fixture(scope="module")
def competition(simulated: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated files as the competition has them, the last one without truth in test/."""
    raw, folder = simulated.results / "neutrinos" / "raw", tmp_path_factory.mktemp("competition")
    shutil.copytree(raw / "train", folder / "train")
    shutil.copy(raw / "sensor_geometry.csv", folder)
    (folder / "test").mkdir()
    (folder / "train" / "batch_12.parquet").rename(folder / "test" / "batch_12.parquet")
    meta = pl.read_parquet(raw / "train_meta.parquet")
    meta.filter(pl.col("batch_id") != 12).write_parquet(folder / "train_meta.parquet")
    meta.filter(pl.col("batch_id") == 12).drop("azimuth", "zenith").write_parquet(folder / "test_meta.parquet")
    return folder


def other_experiment(simulated: Workspace, name: str, download: dict[str, object], **preprocess: object) -> None:
    yaml = YAML(typ="safe")
    values = yaml.load(simulated.folder / "config/experiments/neutrinos.yaml")
    values |= {"download": download, "preprocess": preprocess or values["preprocess"], "title": name}
    with (simulated.folder / f"config/experiments/{name}.yaml").open("w") as file:
        yaml.dump(values, file)
    (simulated.folder / "config/config.yaml").write_text(f"experiments: [neutrinos, {name}]\nshards: 2\n")


def run_to_evaluation(simulated: Workspace, name: str) -> ExperimentPaths:
    for stage in ("download", "preprocess", "train"):
        simulated.manyscope(stage, "--experiment", name)
    for shard in ("0", "1"):
        simulated.manyscope("infer", "--experiment", name, "--shard", shard, "--shards", "2")
    simulated.manyscope("gather", "--experiment", name, "--shards", "2")
    simulated.manyscope("evaluate", "--experiment", name)
    return ExperimentPaths.of(simulated.results, name)


@pytest.mark.long
def test_competition_files_run_through_and_test_events_are_submitted(simulated: Workspace, competition: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in competition.rglob("*")}
    download = {"source": "kaggle", "kaggle": {"folder": str(competition)}}
    other_experiment(simulated, "competition", download, validation_batches=[1, 2], test_batches=[3, 4])
    simulated.manyscope("validate", "competition")
    paths = run_to_evaluation(simulated, "competition")
    samples = read_samples(paths.samples)
    assert samples.group_by("split").len().sort("split").rows() == [
        ("test", 40), ("train", 140), ("unlabelled", 20), ("validation", 40),
    ]  # fmt: skip
    assert set(samples.filter(pl.col("split") == "test")["group"]) == {"batch-000003", "batch-000004"}
    unlabelled = samples.filter(pl.col("split") == "unlabelled")
    assert unlabelled["azimuth"].null_count() == 20
    found = pl.read_csv(paths.evaluate / "submission.csv")
    assert found["event_id"].to_list() == sorted(unlabelled["sample_id"].cast(pl.Int64))
    assert {p: p.stat().st_mtime_ns for p in competition.rglob("*")} == before


def test_a_missing_folder_is_said_before_any_hour_is_spent(simulated: Workspace) -> None:
    other_experiment(simulated, "nowhere", {"source": "kaggle", "kaggle": {"folder": "/does/not/exist"}})
    done = simulated.manyscope("validate", "nowhere", check=False)
    assert done.returncode != 0
    assert "/does/not/exist: no such folder; mend download.kaggle.folder" in done.stderr


@pytest.mark.long
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample events are not beside the repository")
def test_sample_events_of_other_detectors_are_predicted(simulated: Workspace) -> None:
    files = [
        {"name": "oscnext", "layout": "icecube", "pulses": str(SAMPLES / "oscnext_pulses.parquet")},
        {"name": "prometheus", "layout": "prometheus", "pulses": str(SAMPLES / "prometheus_pulses.parquet")},
    ]
    download = {"source": "simulated", "simulated": {"events": 240, "events_per_file": 20}, "files": files}
    other_experiment(simulated, "with_samples", download)
    simulated.manyscope("validate", "with_samples")
    paths = run_to_evaluation(simulated, "with_samples")
    predictions = read_predictions(paths.predictions)
    for name, events in (("oscnext", 5), ("prometheus", 50)):
        own = predictions.filter(pl.col("sample_id").str.starts_with(f"{name}-"))
        assert len(own) == events
        assert np.isfinite(own.select("azimuth", "zenith", "kappa").to_numpy()).all()
    sensors = json.loads((paths.prepared / "events.json").read_text())["sensors"]
    assert sensors[0] == 5160
    assert len(predictions) == 240 + 55
