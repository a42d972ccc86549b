"""The default training on a tiny scope: it learns, it repeats, and a killed run continues exactly."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from manyscope.data.schedule import ShuffledSchedule
from manyscope.errors import CheckpointError, DataError, ManyscopeError, StoppedError
from manyscope.scopes.base import Evaluation, Scope
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings, ModelSettings
from manyscope.stages import train as train_stage
from manyscope.tables.manifest import file_digest
from manyscope.tables.parquet import read_table
from manyscope.tables.predictions import Objects
from manyscope.tables.samples import DIGEST_KEY
from manyscope.training import checkpoints
from manyscope.training.batches import ValidationBatches
from manyscope.training.run import TrainingRun
from manyscope.training.seeds import seed_step


class KilledError(Exception):
    """Ends a training as abruptly as one process can end itself."""


class Net(nn.Module):
    """A regression with dropout and noise, so that any slip in the random numbers shows."""

    def __init__(
        self, fail_at: int | None = None, diverge: bool = False, signal_at: int | None = None, number: int = 0
    ) -> None:
        super().__init__()
        self.signal_at, self.number = signal_at, number
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
        self.fail_at, self.diverge, self.calls = fail_at, diverge, 0

    def losses(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        if self.training:
            self.calls += 1
            if self.calls == self.fail_at:
                raise KilledError
            if self.calls == self.signal_at:
                os.kill(os.getpid(), self.number)
        x = batch["x"] + 0.1 * torch.randn(batch["x"].shape)
        loss = (self.layers(x).squeeze(1) - batch["y"]).square().mean()
        return {"loss": loss * (float("nan") if self.diverge else 1.0), "size": batch["y"].abs().mean()}


class Data:
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(90, 4)).astype(np.float32)
        self.y = self.x @ np.array([1, -2, 0.5, 0], np.float32)

    @property
    def train_size(self) -> int:
        return 70

    def train_schedule(self, batch_size: int, seed: int) -> ShuffledSchedule:
        return ShuffledSchedule(70, batch_size, seed)

    def train_batch(self, rows: Any) -> dict[str, Any]:
        return {
            "x": torch.from_numpy(self.x[rows]),
            "y": torch.from_numpy(self.y[rows]),
            "sample_id": [f"s{row}" for row in rows],
        }

    def validation_schedule(self, batch_size: int) -> Any:
        return (np.arange(first, min(90, first + batch_size)) for first in range(70, 90, batch_size))

    def validation_batch(self, rows: Any) -> dict[str, Any]:
        return self.train_batch(rows)

    def predict_batches(self, sample_ids: Any, batch_size: int) -> Any:
        raise NotImplementedError


class Tiny(Scope[ExperimentSettings]):
    name = "tiny"
    Settings = ExperimentSettings

    def download(self, settings: Any, raw: Path) -> Any: ...

    def preprocess(self, settings: Any, raw: Path, manifest: Any, prepared: Path) -> Any: ...

    def data(self, settings: Any, prepared: Path) -> Any:
        return Data()

    def model(self, settings: Any, data: Any) -> nn.Module:
        return Net(**MODEL_ARGUMENTS)

    def predict_batch(self, settings: Any, model: nn.Module, batch: Any) -> Objects:
        raise NotImplementedError

    def evaluate(self, settings: Any, prepared: Path, files: Path, samples: Any, predictions: Any) -> Evaluation:
        raise NotImplementedError


MODEL_ARGUMENTS: dict[str, Any] = {}


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentPaths:
    """Prepared samples, and the tiny scope where every scope is looked for."""
    monkeypatch.setattr(train_stage, "find_scope", lambda name: Tiny())
    monkeypatch.setattr(train_stage, "stage_code_digest", lambda *_: "code")
    MODEL_ARGUMENTS.clear()
    paths = ExperimentPaths.of(tmp_path, "tiny")
    paths.prepared.mkdir(parents=True)
    samples = pl.DataFrame({"sample_id": ["s0"], "group": ["g"], "split": ["train"]})
    samples.write_parquet(paths.samples, metadata={DIGEST_KEY: "d1"})
    return paths


def settings(**train: Any) -> ExperimentSettings:
    values = {"epochs": 6, "batch_size": 20, "lr": 0.01, "tracker": "none", **train}
    return ExperimentSettings(scope="tiny", model=ModelSettings(name="net"), train=values).for_stage("train")


def weights(paths: ExperimentPaths) -> dict[str, torch.Tensor]:
    return checkpoints.load(paths.model)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def copy_of(paths: ExperimentPaths, name: str) -> ExperimentPaths:
    other = ExperimentPaths.of(paths.root.parent, name)
    other.prepared.mkdir(parents=True)
    other.samples.write_bytes(paths.samples.read_bytes())
    return other


def test_learns_and_writes_its_files(experiment: ExperimentPaths) -> None:
    train_stage.run(settings(epochs=30), experiment)
    history = read_table(experiment.history)
    loss = history.filter(pl.col("name") == "validation/loss").sort("step")["value"]
    assert loss[-1] < 0.5 * loss[0]
    assert set(history["name"]) == {f"{s}/{k}" for s in ("train", "validation") for k in ("loss", "size")} | {
        "train/lr"
    }
    record = json.loads(experiment.run.read_text())
    assert record["data_digest"] == "d1"
    assert len(record["settings_digest"]) == 64
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]
    assert "lr: 0.01" in experiment.settings.read_text()
    assert not experiment.resume.exists()


def test_every_training_sample_once_in_each_pass() -> None:
    schedule = ShuffledSchedule(70, 20, seed=3)
    seen = np.concatenate([schedule.batch(i) for i in range(7)])
    assert sorted(seen[:70]) == list(range(70))
    assert sorted(seen[70:140]) == list(range(70))


def test_same_seed_same_weights_other_seed_other_weights(experiment: ExperimentPaths) -> None:
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        paths = copy_of(experiment, name)
        train_stage.run(settings(seed=seed), paths)
        runs.append(weights(paths))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("fail_at", [2, 9, 20])
def test_killed_run_continues_exactly(experiment: ExperimentPaths, fail_at: int, schedule: str) -> None:
    undisturbed = copy_of(experiment, "undisturbed")
    train_stage.run(settings(schedule=schedule), undisturbed)
    MODEL_ARGUMENTS["fail_at"] = fail_at
    with pytest.raises(KilledError):
        train_stage.run(settings(schedule=schedule), experiment)
    assert not experiment.model.exists()
    MODEL_ARGUMENTS.clear()
    train_stage.run(settings(schedule=schedule), experiment)
    assert same(weights(undisturbed), weights(experiment))
    assert read_table(undisturbed.history).equals(read_table(experiment.history))
    # 70 samples in batches of 20: a check after every 4 steps, so the third step has none behind it.
    wanted = None if fail_at == 2 else (fail_at - 1) // 4 * 4
    assert json.loads(experiment.run.read_text())["continued_from_step"] == wanted


def test_other_settings_do_not_continue(experiment: ExperimentPaths) -> None:
    MODEL_ARGUMENTS["fail_at"] = 15
    with pytest.raises(KilledError):
        train_stage.run(settings(), experiment)
    MODEL_ARGUMENTS.clear()
    train_stage.run(settings(lr=0.02), experiment)
    assert json.loads(experiment.run.read_text())["continued_from_step"] is None


def test_early_stopping_survives_a_kill(experiment: ExperimentPaths) -> None:
    chosen = {"epochs": 60, "patience_checks": 3, "lr": 0.5}
    undisturbed = copy_of(experiment, "undisturbed")
    train_stage.run(settings(**chosen), undisturbed)
    steps = read_table(undisturbed.history)["step"].max()
    assert steps < 60 * 70 // 20
    MODEL_ARGUMENTS["fail_at"] = steps - 2
    with pytest.raises(KilledError):
        train_stage.run(settings(**chosen), experiment)
    MODEL_ARGUMENTS.clear()
    train_stage.run(settings(**chosen), experiment)
    assert read_table(experiment.history)["step"].max() == steps
    assert same(weights(undisturbed), weights(experiment))


def test_early_stopped_training_killed_before_its_end_does_not_go_on(
    experiment: ExperimentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"epochs": 60, "patience_checks": 3, "lr": 0.5}
    undisturbed = copy_of(experiment, "undisturbed")
    train_stage.run(settings(**chosen), undisturbed)

    def killed(self: TrainingRun) -> None:
        raise KilledError

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            patch.setattr(TrainingRun, "finish", killed)
            train_stage.run(settings(**chosen), experiment)
    train_stage.run(settings(**chosen), experiment)
    assert read_table(experiment.history).equals(read_table(undisturbed.history))
    assert same(weights(undisturbed), weights(experiment))


def test_half_removed_checkpoints_start_anew(experiment: ExperimentPaths) -> None:
    undisturbed = copy_of(experiment, "undisturbed")
    train_stage.run(settings(), undisturbed)
    MODEL_ARGUMENTS["fail_at"] = 15
    with pytest.raises(KilledError):
        train_stage.run(settings(), experiment)
    MODEL_ARGUMENTS.clear()
    next(experiment.resume.glob("*/best.ckpt")).unlink()
    train_stage.run(settings(), experiment)
    assert same(weights(undisturbed), weights(experiment))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("step", [2, 4, 10, 23])
def test_a_signal_stops_after_the_step_and_the_next_run_continues_there(
    experiment: ExperimentPaths, tmp_path: Path, number: signal.Signals, step: int
) -> None:
    train_stage.run(settings(), experiment)
    whole = {path: path.read_bytes() for path in (experiment.model, experiment.history)}
    experiment.model.unlink()
    before = signal.getsignal(number)
    MODEL_ARGUMENTS.update(signal_at=step, number=number)
    with pytest.raises(StoppedError, match=f"{number.name} stopped the training at step {step} of 24") as stopped:
        train_stage.run(settings(), experiment)
    assert stopped.value.exit_code == 75
    assert signal.getsignal(number) == before
    assert not experiment.model.exists()
    MODEL_ARGUMENTS.clear()
    train_stage.run(settings(), experiment)
    assert json.loads(experiment.run.read_text())["continued_from_step"] == step
    assert {path: path.read_bytes() for path in whole} == whole


def test_a_job_that_starts_again_after_its_training_ended_does_not_repeat_it(
    experiment: ExperimentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    train_stage.run(settings(), experiment)
    outputs = (experiment.model, experiment.history, experiment.settings)
    whole = {path: path.read_bytes() for path in outputs}
    for path in (*outputs, experiment.run):
        path.unlink()  # as Snakemake does with what a killed job left
    MODEL_ARGUMENTS["fail_at"] = 1
    for _ in range(2):
        train_stage.run(settings(), experiment)
        assert {path: path.read_bytes() for path in whole} == whole
        assert json.loads(experiment.run.read_text())["continued_from_step"] == 24
    assert not list(experiment.resume.glob("*/last.ckpt"))
    with pytest.raises(KilledError):
        train_stage.run(settings(lr=0.02), experiment)
    monkeypatch.setenv("SLURM_JOB_ID", "78")  # another job was asked for, and trains
    with pytest.raises(KilledError):
        train_stage.run(settings(), experiment)
    MODEL_ARGUMENTS.clear()
    monkeypatch.delenv("SLURM_JOB_ID")
    train_stage.run(settings(), experiment)
    assert experiment.model.read_bytes() == whole[experiment.model]
    assert not experiment.resume.exists()


def test_training_outside_of_the_main_thread_gets_no_signals_and_ends(experiment: ExperimentPaths) -> None:
    thread = threading.Thread(target=train_stage.run, args=(settings(), experiment))
    thread.start()
    thread.join(60)
    assert experiment.model.exists()


def test_loader_processes_leave_the_signal_to_the_training(experiment: ExperimentPaths) -> None:
    train_stage.run(settings(), experiment)
    whole = experiment.model.read_bytes()
    MODEL_ARGUMENTS.update(signal_at=10, number=signal.SIGUSR1)
    with pytest.raises(StoppedError):
        train_stage.run(settings(workers=1), experiment)
    MODEL_ARGUMENTS.clear()
    train_stage.run(settings(workers=1), experiment)
    assert json.loads(experiment.run.read_text())["continued_from_step"] == 10
    assert experiment.model.read_bytes() == whole


def test_a_signal_in_the_last_step_lets_the_training_end(experiment: ExperimentPaths) -> None:
    MODEL_ARGUMENTS.update(signal_at=24, number=signal.SIGTERM)
    train_stage.run(settings(), experiment)
    assert experiment.model.exists()


def test_checkpoints_between_two_checks_lose_less_and_change_nothing(experiment: ExperimentPaths) -> None:
    train_stage.run(settings(), experiment)
    whole = {path: path.read_bytes() for path in (experiment.model, experiment.history)}
    MODEL_ARGUMENTS["fail_at"] = 11
    often = settings(checkpoint_minutes=1e-9)
    with pytest.raises(KilledError):
        train_stage.run(often, experiment)
    MODEL_ARGUMENTS.clear()
    train_stage.run(settings(), experiment)  # how often checkpoints are written is not part of what a training is
    assert json.loads(experiment.run.read_text())["continued_from_step"] == 10
    assert {path: path.read_bytes() for path in whole} == whole


def test_changed_code_does_not_continue(experiment: ExperimentPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    MODEL_ARGUMENTS["fail_at"] = 15
    with pytest.raises(KilledError):
        train_stage.run(settings(), experiment)
    MODEL_ARGUMENTS.clear()
    monkeypatch.setattr(train_stage, "stage_code_digest", lambda *_: "other")
    train_stage.run(settings(), experiment)
    assert json.loads(experiment.run.read_text())["continued_from_step"] is None


@pytest.mark.parametrize(("epochs", "check", "steps"), [(1, 5, 4), (6, 1, 24), (7, 5, 24), (12, 5, 42), (0.5, 1, 2)])
def test_epochs_are_honoured_whatever_the_checks(
    experiment: ExperimentPaths, epochs: float, check: float, steps: int
) -> None:
    train_stage.run(settings(epochs=epochs, check_every_epochs=check), experiment)
    assert read_table(experiment.history)["step"].max() == steps


@pytest.mark.parametrize(("size", "world"), [(20, 2), (7, 4), (3, 4), (1, 3), (9, 1)])
def test_validation_batches_are_shared_evenly_and_count_once(size: int, world: int) -> None:
    data = Data()
    shares = [list(ValidationBatches(data, size, rank, world)) for rank in range(world)]
    batches = -(-20 // size)
    assert [len(part) for part in shares] == [batches] * world
    counted = [name for part in shares for batch, own, _ in part for name in batch["sample_id"][:own]]
    assert sorted(counted) == sorted(f"s{row}" for row in range(70, 90))
    for of_one_batch in zip(*shares, strict=True):
        samples = {samples for _, _, samples in of_one_batch}
        assert samples == {sum(own for _, own, _ in of_one_batch)}
        assert all(len(batch["sample_id"]) == max(1, own) for batch, own, _ in of_one_batch)


def test_diverged_training_stops_with_a_remedy(experiment: ExperimentPaths) -> None:
    MODEL_ARGUMENTS["diverge"] = True
    with pytest.raises(ManyscopeError, match=r"diverged.*train\.lr"):
        train_stage.run(settings(), experiment)
    assert not experiment.model.exists()


def test_broken_resume_checkpoint_is_named(experiment: ExperimentPaths) -> None:
    MODEL_ARGUMENTS["fail_at"] = 15
    with pytest.raises(KilledError):
        train_stage.run(settings(), experiment)
    last = next(experiment.resume.glob("*/last.ckpt"))
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=str(last)):
        train_stage.run(settings(), experiment)


def test_training_starts_from_the_weights_of_another_experiment(experiment: ExperimentPaths) -> None:
    first = copy_of(experiment, "first")
    train_stage.run(settings(), first)
    trained = {k: v for k, v in weights(first).items() if k.endswith((".weight", ".bias"))}

    def moved() -> float:
        return max(float((weights(experiment)[name] - value).abs().max()) for name, value in trained.items())

    # With such steps a training ends with the weights that it starts from.
    still = {"lr": 1e-12, "weight_decay": 0, "epochs": 1}
    train_stage.run(settings(**still, start_from="first"), experiment)
    record = json.loads(experiment.run.read_text())
    assert moved() < 1e-9
    assert (record["start_from"], record["start_sha256"]) == ("first", file_digest(first.model))
    train_stage.run(settings(**still), experiment)
    record = json.loads(experiment.run.read_text())
    assert moved() > 1e-3
    assert (record["start_from"], record["start_sha256"]) == (None, None)


@pytest.mark.parametrize("changed", [False, True])
def test_a_killed_training_continues_only_if_it_began_from_the_same_weights(
    experiment: ExperimentPaths, changed: bool
) -> None:
    first, undisturbed = copy_of(experiment, "first"), copy_of(experiment, "undisturbed")
    train_stage.run(settings(), first)
    MODEL_ARGUMENTS["fail_at"] = 15
    with pytest.raises(KilledError):
        train_stage.run(settings(start_from="first"), experiment)
    MODEL_ARGUMENTS.clear()
    if changed:
        train_stage.run(settings(lr=0.02), first)
    train_stage.run(settings(start_from="first"), undisturbed)
    train_stage.run(settings(start_from="first"), experiment)
    assert json.loads(experiment.run.read_text())["continued_from_step"] == (None if changed else 12)
    assert same(weights(undisturbed), weights(experiment))


def test_weights_to_start_from_that_are_missing_broken_or_of_another_model(
    experiment: ExperimentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = copy_of(experiment, "first")
    with pytest.raises(CheckpointError, match=r"first/train/model\.ckpt: .*missing; run the stage train of .*'first'"):
        train_stage.run(settings(start_from="first"), experiment)
    assert not experiment.resume.exists()
    first.train.mkdir()
    checkpoints.save_weights(first.model, nn.Linear(4, 1), "tiny", {"name": "net", "args": {}})
    with pytest.raises(
        CheckpointError, match=r"first/train/model\.ckpt: tensor 'bias' .* give both experiments the same"
    ):
        train_stage.run(settings(start_from="first"), experiment)
    checkpoints.save_weights(first.model, Net(), "tiny", {"name": "other", "args": {}})
    with pytest.raises(CheckpointError, match="holds model 'other' of scope 'tiny'; allowed: model 'net'"):
        train_stage.run(settings(start_from="first"), experiment)
    first.model.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="run that experiment's train again"):
        train_stage.run(settings(start_from="first"), experiment)
    assert not experiment.model.exists()


def test_unknown_optimizer_and_missing_samples(experiment: ExperimentPaths) -> None:
    with pytest.raises(ManyscopeError, match="did you mean 'adamw'"):
        train_stage.run(settings(optimizer="adanw"), experiment)
    experiment.samples.unlink()
    with pytest.raises(DataError, match="missing"):
        train_stage.run(settings(), experiment)


def test_a_network_without_losses_is_refused(experiment: ExperimentPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Net, "losses", None)
    with pytest.raises(ManyscopeError, match=r"has no method losses\(batch\)"):
        train_stage.run(settings(), experiment)


def test_progress_reaches_a_network_that_asks_for_it(
    experiment: ExperimentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(Net, "progress", property(lambda self: 0.0, lambda self, value: seen.append(value)), False)
    train_stage.run(settings(), experiment)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen == [step / len(seen) for step in range(len(seen))]


def test_idle_parameters_stay_as_they_are_with_the_optimisers_memory_of_them(
    experiment: ExperimentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def idle(self: Net) -> list[nn.Parameter]:
        return list(self.layers[4].parameters()) if self.calls < 15 else []

    monkeypatch.setattr(Net, "idle", idle, raising=False)
    seen = {}

    def look(self: Tiny, settings: Any, prepared: Path, run: TrainingRun) -> None:
        run.at_check(lambda network, step: seen.update({step: network.layers[4].weight.detach().clone()}))
        Scope.fit(self, settings, prepared, run)

    monkeypatch.setattr(Tiny, "fit", look)
    train_stage.run(settings(), experiment)
    first, *_, last = sorted(seen)
    assert first < 14 < last
    assert torch.equal(seen[first], seen[sorted(seen)[1]])
    assert not torch.equal(seen[first], seen[last])


def test_whoever_waits_for_a_check_sees_the_network_at_each_and_changes_nothing(
    experiment: ExperimentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_stage.run(settings(), experiment)
    seen = list[tuple[type, int]]()

    def look(self: Tiny, settings: Any, prepared: Path, run: TrainingRun) -> None:
        run.at_check(lambda network, step: seen.append((type(network), step)))
        Scope.fit(self, settings, prepared, run)

    monkeypatch.setattr(Tiny, "fit", look)
    other = copy_of(experiment, "other")
    train_stage.run(settings(), other)
    steps = read_table(other.history)["step"].unique().sort().to_list()
    assert seen == [(Net, step) for step in steps]
    assert same(weights(experiment), weights(other))


def test_seed_step_depends_on_each_part() -> None:
    draws = []
    for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)):
        seed_step(*key)
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[-1]
    assert len(set(draws)) == 4
