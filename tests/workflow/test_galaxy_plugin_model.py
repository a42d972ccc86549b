"""A network of ten lines in a user's file, with criterion, optimiser and schedule by path, through the whole chain."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import TrainSettings
from manyscope.tables.metrics import read_metrics
from manyscope.tables.parquet import read_table
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.training.optimizers import rate_factor
from workspace import Workspace, make_workspace, page_data

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("galaxy_plugin")]

TEN_LINES = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, shape, width=8):
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(shape[0], 4, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.LazyLinear(width))
        self.decode = nn.Linear(width, shape[0] * shape[1] * shape[2])

    def forward(self, images):
        return self.decode(self.encode(images))
"""
NAMES = """
from torch import nn

def names(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(12), nn.ReLU(), nn.Linear(12, len(classes)))
"""
COMMON = {
    "optimizer": "torch.optim:NAdam",
    "optimizer_args": {"betas": [0.8, 0.99]},
    "schedule": "torch.optim.lr_scheduler:CosineAnnealingWarmRestarts",
    "schedule_args": {"T_0": 4},
    "tracker": "none",
}
MODELS = {
    "draws": {
        "name": "my_nets:Tiny",
        "args": {"width": 6},
        "criterion": "torch.nn:SmoothL1Loss",
        "criterion_args": {"beta": 0.1},
    },
    "names": {"name": "my_names:names"},
}


@dataclass
class UserWorkspace(Workspace):
    """The user's files lie in the working folder; no variable says so, and programs are started by their names."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "OMP_NUM_THREADS": "1"}

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._run([str(Path(sys.executable).with_name("snakemake")), "--cores", "2", *arguments], check)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> UserWorkspace:
    made = make_workspace(tmp_path_factory.mktemp("nets") / "work", shards=1, experiments=tuple(MODELS))
    workspace = UserWorkspace(made.folder)
    (workspace.folder / "my_nets.py").write_text(TEN_LINES)
    (workspace.folder / "my_names.py").write_text(NAMES)
    experiments = workspace.folder / "config/experiments"
    tiny = YAML(typ="safe").load(experiments / "galaxies.yaml")
    for file in experiments.iterdir():
        file.unlink()
    for name, model in MODELS.items():
        values = {**tiny, "title": name, "model": model, "train": {**tiny["train"], **COMMON}}
        YAML().dump(values, experiments / f"{name}.yaml")
    assert (
        "2 experiment(s) valid"
        in workspace._run([str(Path(sys.executable).with_name("manyscope")), "validate"], check=True).stdout
    )
    workspace.snakemake()
    return workspace


def test_the_model_is_ten_lines() -> None:
    assert len([line for line in TEN_LINES.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize(("experiment", "numbers"), [("draws", 6), ("names", None)])
def test_the_whole_chain_runs(finished: UserWorkspace, experiment: str, numbers: int | None) -> None:
    paths = ExperimentPaths.of(finished.results, experiment)
    predictions = read_predictions(paths.predictions)
    assert predictions["object_id"].n_unique() == 240
    classes = read_table(paths.samples)["class"].n_unique()
    assert embeddings(predictions).shape == (240, numbers or classes)
    history = read_table(paths.history)
    losses = history.filter(pl.col("name") == "train/loss")["value"].to_list()
    assert losses[-1] < losses[0]
    document, metrics = read_metrics(paths.metrics)
    assert document["experiment"] == experiment
    named = {metric.name for metric in metrics}
    assert "class_accuracy" in named
    assert ("reconstruction_psnr" in named) == (experiment == "draws")
    assert ("predicted_class" in predictions.columns) == (experiment == "names")
    assert json.loads(paths.audit.read_text())["count"] == 240
    assert len(page_data(paths.page)["ids"]) == 240


def test_the_rate_followed_the_users_schedule(finished: UserWorkspace) -> None:
    history = read_table(ExperimentPaths.of(finished.results, "draws").history)
    rates = history.filter(pl.col("name") == "train/lr").sort("step")
    assert len(rates) == 3
    settings, steps = TrainSettings(lr=2e-3, **COMMON), rates["step"].max()
    for step, rate in rates.select("step", "value").iter_rows():
        assert rate == pytest.approx(2e-3 * rate_factor(settings, step, steps))
    assert rates["value"].min() < 1.9e-3


def test_a_change_of_the_users_file_trains_again(finished: UserWorkspace) -> None:
    assert finished.rules_to_run() == set()
    file = finished.folder / "my_nets.py"
    file.write_text(TEN_LINES.replace("nn.GELU()", "nn.ReLU()"))
    assert finished.rules_to_run() >= {"train", "infer", "evaluate"}
    file.write_text(TEN_LINES)
    assert finished.rules_to_run() == set()


def test_what_cannot_be_used_is_said_before_anything_runs(finished: UserWorkspace) -> None:
    for change, message in (
        ("train.schedule=torch.optim.lr_scheduler:ReduceLROnPlateau", "wants to know metrics at each step"),
        ("train.schedule=cosinus", "schedule 'cosinus' is unknown; known: cosine"),
        ("train.optimizer=adamv", "did you mean 'adam"),
        ("model.criterion=mea", "criterion 'mea' is unknown"),
    ):
        done = finished.here("validate", "draws", "--set", f"draws.{change}")
        assert done.exit_code == 2
        assert message in done.stderr
