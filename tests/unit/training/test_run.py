"""What a scope's own `fit` leaves through its `TrainingRun`, whatever kills come between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from torch import nn

from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings, ModelSettings
from manyscope.stages import train as train_stage
from manyscope.tables.samples import DIGEST_KEY
from manyscope.tables.whole import read_json
from manyscope.training import run as run_module
from manyscope.training.run import TrainingRun

STEPS = 10


class KilledError(Exception):
    """Ends a training as abruptly as one process can end itself."""


class OwnTrainer:
    """A scope with a trainer of its own, which keeps its checkpoint in the run's folder and exports a model.

    Attributes:
        exports: file -> text that it leaves; None asks for no folder.
        seen: for each training, whether it continued and what it found in the folder.
    """

    def __init__(self) -> None:
        self.weights: dict[str, str] = {}
        self.exports: dict[str, str] | None = {"model.pt": "one", "logs/events.txt": "line"}
        self.seen: list[tuple[bool, list[str]]] = []

    def pretrained(self, settings: Any) -> dict[str, str]:
        return self.weights

    def fit(self, settings: Any, prepared: Path, run: TrainingRun) -> None:
        checkpoint = run.folder / "own" / "latest.pt"
        found = sorted(path.name for path in run.folder.glob("export/**/*") if path.is_file())
        self.seen.append((checkpoint.exists(), found))
        run.begin(STEPS if checkpoint.exists() else None)
        if not checkpoint.exists():
            run.log(STEPS, 1.0, {"train/loss": 1.0})
            run.save_best(nn.Linear(1, 1))
            checkpoint.parent.mkdir()
            checkpoint.touch()
        for name, text in (self.exports or {}).items():
            file = run.export / run.experiment / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> OwnTrainer:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    trainer = OwnTrainer()
    monkeypatch.setattr(train_stage, "find_scope", lambda name: trainer)
    monkeypatch.setattr(train_stage, "stage_code_digest", lambda *_: "code")
    return trainer


@pytest.fixture
def paths(tmp_path: Path) -> ExperimentPaths:
    paths = ExperimentPaths.of(tmp_path, "tiny")
    paths.prepared.mkdir(parents=True)
    samples = pl.DataFrame({"sample_id": ["s0"], "group": ["g"], "split": ["train"]})
    samples.write_parquet(paths.samples, metadata={DIGEST_KEY: "d1"})
    return paths


def train(paths: ExperimentPaths, lr: float = 0.01) -> None:
    values = {"scope": "tiny", "model": ModelSettings(name="net"), "train": {"tracker": "none", "lr": lr}}
    train_stage.run(ExperimentSettings.model_validate(values).for_stage("train"), paths)


def exported(paths: ExperimentPaths) -> dict[str, str]:
    return {str(p.relative_to(paths.export)): p.read_text() for p in paths.export.rglob("*") if p.is_file()}


def as_snakemake_before_a_job(paths: ExperimentPaths) -> None:
    """Remove the declared outputs."""
    for path in (paths.model, paths.history, paths.settings, paths.run):
        path.unlink(missing_ok=True)


def killed_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, work: Callable[[], None]) -> None:
    def kill(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(owner, name, kill)
        work()


def test_what_fit_exports_lies_beside_the_weights_and_replaces_what_was_there(
    paths: ExperimentPaths, trainer: OwnTrainer
) -> None:
    train(paths)
    assert exported(paths) == {"tiny/model.pt": "one", "tiny/logs/events.txt": "line"}
    trainer.exports = {"other.pt": "two"}
    train(paths)
    assert exported(paths) == {"tiny/other.pt": "two"}
    assert not paths.resume.exists()
    assert not [*paths.train.glob(".*.partial"), *paths.train.glob(".*.old")]


@pytest.mark.parametrize("nothing", [None, {}])
def test_an_export_of_other_weights_does_not_stay(
    paths: ExperimentPaths, trainer: OwnTrainer, nothing: dict[str, str] | None
) -> None:
    train(paths)
    trainer.exports = nothing
    train(paths, lr=0.02)
    assert not paths.export.exists()


def test_an_empty_export_is_none(paths: ExperimentPaths, trainer: OwnTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    train(paths)
    trainer.exports = None
    begin = TrainingRun.begin
    monkeypatch.setattr(TrainingRun, "begin", lambda self, step=None: (self.export, begin(self, step))[1])
    train(paths, lr=0.02)
    assert not paths.export.exists()


def test_a_training_that_fails_leaves_the_earlier_export_alone(
    paths: ExperimentPaths, trainer: OwnTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(paths)
    before = exported(paths)
    trainer.exports = {"other.pt": "two"}
    killed_in(monkeypatch, TrainingRun, "save_best", lambda: train(paths, lr=0.02))
    killed_in(monkeypatch, run_module.shutil, "copytree", lambda: train(paths, lr=0.03))
    assert exported(paths) == before


@pytest.mark.parametrize(
    ("owner", "name"), [(TrainingRun, "_publish_export"), (train_stage, "write_json"), (TrainingRun, "discard_resume")]
)
@pytest.mark.parametrize("job", [None, "77"])
def test_killed_at_its_end_it_ends_once_more_with_the_same_files(
    paths: ExperimentPaths, trainer: OwnTrainer, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, job: str | None
) -> None:
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    killed_in(monkeypatch, owner, name, lambda: train(paths))
    as_snakemake_before_a_job(paths)
    train(paths)
    assert trainer.seen == [(False, []), (True, ["events.txt", "model.pt"])]
    assert exported(paths) == {"tiny/model.pt": "one", "tiny/logs/events.txt": "line"}


def test_a_job_that_starts_again_keeps_the_export_and_another_job_trains_anew(
    paths: ExperimentPaths, trainer: OwnTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    train(paths)
    before = exported(paths)
    weights = paths.model.read_bytes()
    for _ in range(2):
        as_snakemake_before_a_job(paths)
        train(paths)
        assert (exported(paths), paths.model.read_bytes()) == (before, weights)
    assert len(trainer.seen) == 1
    folder = next(path for path in paths.resume.iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "history.jsonl", "ended.json"}
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    trainer.exports = {"other.pt": "two"}
    as_snakemake_before_a_job(paths)
    train(paths)
    assert trainer.seen[1:] == [(False, [])]
    assert exported(paths) == {"tiny/other.pt": "two"}


def test_where_the_disk_knows_no_links_files_are_copied(
    paths: ExperimentPaths, trainer: OwnTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(run_module.os, "link", refuse)
    train(paths)
    assert exported(paths) == {"tiny/model.pt": "one", "tiny/logs/events.txt": "line"}


def test_a_training_that_began_with_other_pretrained_weights_is_not_continued(
    paths: ExperimentPaths, trainer: OwnTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.weights = {"weights/vit_b": "aa"}
    killed_in(monkeypatch, train_stage, "write_json", lambda: train(paths))
    trainer.weights = {"weights/vit_b": "bb"}
    train(paths)
    assert [continued for continued, _ in trainer.seen] == [False, False]
    assert read_json(paths.run)["pretrained"] == {"weights/vit_b": "bb"}
