"""A training through micro_sam's trainers that is killed ends as if it had not been."""

from __future__ import annotations

import copy
import json
import os
import pickletools
import signal
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from manyscope.errors import DataError, ManyscopeError, StoppedError
from manyscope.scopes.cells.settings import CellsSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.stages import train as train_stage
from manyscope.training import checkpoints
from manyscope.training.run import TrainingRun

pytestmark = pytest.mark.xdist_group("cells")

Train = Callable[[CellsSettings, Path], Any]
Settings = Callable[..., CellsSettings]
LOCAL = ("train_time", "timestamp")


class KilledError(Exception):
    """Ends a training as abruptly as one process can end itself."""


def signal_in_step(patch: pytest.MonkeyPatch, step: int) -> None:
    from manyscope.scopes.cells.model.trainer import Continued

    set_rate = Continued.set_rate

    def signalled(self: Continued, number: int) -> None:
        set_rate(self, number)
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(Continued, "set_rate", signalled)


def die_in_step(patch: pytest.MonkeyPatch, step: int) -> None:
    from manyscope.scopes.cells.model.trainer import Continued

    note = Continued.note

    def noted(self: Continued, values: Mapping[str, float]) -> None:
        if self.iteration == step:
            raise KilledError
        note(self, values)

    patch.setattr(Continued, "note", noted)


def die_in_report(patch: pytest.MonkeyPatch, step: int) -> None:
    """After the best weights of a check are written, before its checkpoint is."""
    log = TrainingRun.log

    def logged(self: TrainingRun, number: int, epoch: float, values: Mapping[str, float]) -> None:
        log(self, number, epoch, values)
        if number == step:
            raise KilledError

    patch.setattr(TrainingRun, "log", logged)


def metrics(patch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let the checks of a training find these values, one after the other."""
    from manyscope.scopes.cells.model.trainer import Continued

    patch.setattr(Continued, "_validate_impl", lambda self, context: values[self.epoch])


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints, or parts of them, are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_continued_exactly(whole: Any, continued: Any) -> None:
    assert continued.run.best.read_bytes() == whole.run.best.read_bytes()
    assert continued.run.history.equals(whole.run.history)
    assert continued.steps == whole.steps[len(whole.steps) - len(continued.steps) :]
    for name in ("best", "latest"):
        one, other = ({k: v for k, v in t.checkpoint(name).items() if k not in LOCAL} for t in (whole, continued))
        assert one.keys() == other.keys()
        for key in one:
            assert same(one[key], other[key]), key
    exported = [(t.run.export / "small.pt").read_bytes() for t in (whole, continued)]
    assert exported[0] == exported[1]


KILLS = {
    "signal between two checks": (signal_in_step, 4, StoppedError, 5),
    "abruptly after a check": (die_in_step, 4, KilledError, 3),
    "abruptly in the midst of a check": (die_in_report, 6, KilledError, 3),
}


@pytest.mark.parametrize(
    ("mode", "kill"),
    [("instance", kill) for kill in KILLS]
    + [("full", "signal between two checks"), ("full", "abruptly in the midst of a check")],
)
def test_a_killed_training_continues_exactly(
    undisturbed: Callable[[str], Any], small_settings: Settings, train: Train, tmp_path: Path, mode: str, kill: str
) -> None:
    """The killed part of mode `full` has a loader process: its patches leave the generators of prompts as they were."""
    whole = undisturbed(mode)
    begun = small_settings(train={"mode": mode, "workers": int(mode == "full")})
    break_off, step, error, continues_at = KILLS[kill]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
        break_off(patch, step)
        train(begun, tmp_path)
    continued = train(whole.settings, tmp_path)
    assert continued.run.continued_from == continues_at
    assert continued.steps[0][0] == continues_at
    assert len(whole.steps) == 6
    assert_continued_exactly(whole, continued)


def test_killed_again_and_again(undisturbed: Callable[[str], Any], train: Train, tmp_path: Path) -> None:
    whole = undisturbed("instance")
    for step in (0, 2, 5):
        with pytest.MonkeyPatch.context() as patch:
            signal_in_step(patch, step)
            if step < 5:
                with pytest.raises(StoppedError, match=rf"SIGTERM stopped the training at step {step + 1} of 6"):
                    train(whole.settings, tmp_path)
            else:  # the last step ends the training
                continued = train(whole.settings, tmp_path)
    assert_continued_exactly(whole, continued)


def test_the_plateau_and_the_best_value_survive(small_settings: Settings, train: Train, tmp_path: Path) -> None:
    """The second check is the best; every other one is worse, and after two of them the rate falls.

    The training is killed between these two, abruptly, and continues from the check's checkpoint; and once more by a
    signal after the next step.
    """
    settings = small_settings(
        train={
            "schedule": "plateau", "warmup_fraction": 0, "plateau_checks": 1, "plateau_factor": 0.5,
            "epochs": 5, "patches_per_epoch": 4,
        }
    )  # fmt: skip
    found = [0.9, 0.5, 0.8, 0.7, 0.6]
    with pytest.MonkeyPatch.context() as patch:
        metrics(patch, found)
        whole = train(settings, tmp_path / "whole")
        assert [rate for _, rate, _ in whole.steps] == [1e-3] * 8 + [5e-4] * 2
        for break_off, error in ((die_in_step, KilledError), (signal_in_step, StoppedError)):
            with pytest.MonkeyPatch.context() as killing, pytest.raises(error):
                break_off(killing, 6)
                train(settings, tmp_path / "killed")
        folder = next((tmp_path / "killed" / "small" / "train" / "resume").iterdir())
        best = (folder / "best.ckpt").read_bytes()
        continued = train(settings, tmp_path / "killed")
    assert continued.steps[0][0] == 7
    assert continued.steps[-1][1] == 5e-4
    assert_continued_exactly(whole, continued)
    latest = continued.checkpoint("latest")
    assert (latest["best_metric"], latest["best_epoch"], latest["epoch"], latest["iteration"]) == (0.5, 1, 4, 10)
    weights = {name: t for name, t in checkpoints.load(continued.run.best)["state_dict"].items() if name != "chosen"}
    (tmp_path / "best.ckpt").write_bytes(best)
    before = checkpoints.load(tmp_path / "best.ckpt")["state_dict"]
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_early_stopping_counts_on_after_a_kill(small_settings: Settings, train: Train, tmp_path: Path) -> None:
    settings = small_settings(train={"epochs": 6, "patches_per_epoch": 4, "patience_checks": 2})
    with pytest.MonkeyPatch.context() as patch:
        metrics(patch, [0.5, 0.9, 0.8, 0.4, 0.3, 0.2])
        whole = train(settings, tmp_path / "whole")
        assert len(whole.steps) == 6  # two checks after the best one
        with pytest.MonkeyPatch.context() as killing, pytest.raises(KilledError):
            die_in_step(killing, 5)
            train(settings, tmp_path / "killed")
        continued = train(settings, tmp_path / "killed")
        assert continued.steps[0][0] == 4
        assert_continued_exactly(whole, continued)
        again = train(settings, tmp_path / "killed")  # as after a kill before its end was noted
        assert again.steps == []
        assert_continued_exactly(whole, again)


def test_a_signal_in_the_last_check_before_an_early_stop_lets_it_end(
    small_settings: Settings, train: Train, tmp_path: Path
) -> None:
    settings = small_settings(train={"epochs": 6, "patches_per_epoch": 2, "patience_checks": 1})
    with pytest.MonkeyPatch.context() as patch:
        metrics(patch, [0.5, 0.9, 0.1])
        signal_in_step(patch, 1)
        assert len(train(settings, tmp_path).steps) == 2


def test_lost_best_weights_start_anew(undisturbed: Callable[[str], Any], train: Train, tmp_path: Path) -> None:
    whole = undisturbed("instance")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        die_in_step(patch, 4)
        train(whole.settings, tmp_path)
    next((tmp_path / "small" / "train" / "resume").glob("*/best.ckpt")).unlink()
    assert_continued_exactly(whole, train(whole.settings, tmp_path))


def test_checkpoints_in_time_change_nothing(
    undisturbed: Callable[[str], Any], small_settings: Settings, train: Train, tmp_path: Path
) -> None:
    whole = undisturbed("instance")
    often = small_settings(train={"mode": "instance", "checkpoint_minutes": 1e-9, "workers": 1})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        die_in_step(patch, 5)
        train(often, tmp_path)
    continued = train(whole.settings, tmp_path)
    assert continued.steps[0][0] == 5
    assert_continued_exactly(whole, continued)


def test_rates_follow_the_schedule(undisturbed: Callable[[str], Any]) -> None:
    rates = [rate for _, rate, _ in undisturbed("instance").steps]
    assert rates[0] == 1e-3
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 3e-4
    reported = undisturbed("instance").run.history.filter(pl.col("name") == "train/lr")
    assert reported["step"].to_list() == [3, 6]
    assert reported["value"].to_list() == [rates[2], rates[5]]


def test_the_history_holds_the_means_of_a_round(undisturbed: Callable[[str], Any]) -> None:
    done = undisturbed("instance")
    loss = done.run.history.filter(pl.col("name") == "train/loss")
    means = [sum(loss for _, _, loss in done.steps[first : first + 3]) / 3 for first in (0, 3)]
    assert loss["value"].to_list() == pytest.approx(means)
    assert loss["epoch"].to_list() == [1.0, 2.0]
    names = set(undisturbed("full").run.history["name"])
    parts = ("loss", "mask_loss", "iou_loss", "model_iou", "instance_loss")
    assert names == {f"{phase}/{part}" for phase in ("train", "validation") for part in parts} | {
        "validation/metric", "train/lr"
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["instance", "full"])
def test_checkpoints_hold_tensors_and_plain_values_alone(undisturbed: Callable[[str], Any], mode: str) -> None:
    done = undisturbed(mode)
    files = list((done.run.folder / "checkpoints" / "small").iterdir())
    assert {file.name for file in files} == {"best.pt", "latest.pt"}
    for file in files:
        content = torch.load(file, weights_only=True)
        assert not {"init", "train_dataset", "val_dataset"} & content.keys()
        with zipfile.ZipFile(file) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            named = [arg for op, arg, _ in pickletools.genops(archive.read(pickled)) if op.name == "GLOBAL"]
        assert named
        assert all(str(name).split()[0].split(".")[0] in ("torch", "collections") for name in named)
    exported = done.run.export / "checkpoints" / "small"
    assert {file.name for file in exported.iterdir()} == {"best.pt", "latest.pt"}
    assert any((done.run.export / "logs" / "small").iterdir())


def test_the_best_weights_are_those_of_the_best_check(small_settings: Settings, train: Train, tmp_path: Path) -> None:
    settings = small_settings(train={"epochs": 3, "patches_per_epoch": 2})
    kept = {}
    with pytest.MonkeyPatch.context() as patch:
        from manyscope.scopes.cells.model.trainer import Continued

        report = Continued._report

        def reported(self: Continued, metric: float) -> None:
            kept[self.iteration] = copy.deepcopy(self.plan.model.state_dict())
            report(self, metric)

        patch.setattr(Continued, "_report", reported)
        metrics(patch, [0.5, 0.4, 0.45])
        done = train(settings, tmp_path)
    best = checkpoints.load(done.run.best)["state_dict"]
    assert all(torch.equal(best[name], kept[2][name]) for name in best if name != "chosen")
    assert not all(torch.equal(best[name], kept[3][name]) for name in best if name != "chosen")


def test_a_training_learns(seeing: Any) -> None:
    loss = seeing.run.history.filter(pl.col("name") == "validation/loss")["value"]
    assert loss[-1] < 0.95 * loss[0]


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_gradients_are_clipped_in_each_precision(
    small_settings: Settings, train: Train, tmp_path: Path, precision: str
) -> None:
    """With SGD and a rate of 1 a step is as long as its gradient."""
    from manyscope.scopes.cells.model.networks import build
    from manyscope.training.seeds import seed_weights

    values = {
        "epochs": 1, "patches_per_epoch": 2, "optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0,
        "gradient_clip_norm": 1e-3, "schedule": "constant",
    }  # fmt: skip
    settings = small_settings(train={**values, "precision": precision})
    done = train(settings, tmp_path)
    seed_weights(settings.train.seed)
    begun, ended = dict(build(settings.model).named_parameters()), checkpoints.load(done.run.best)["state_dict"]
    moved = sum((begun[name] - ended[name]).square().sum() for name in begun) ** 0.5
    assert moved.item() == pytest.approx(1e-3, rel=0.01)


def test_a_training_that_diverges_ends(small_settings: Settings, train: Train, tmp_path: Path) -> None:
    settings = small_settings(train={"optimizer": "sgd", "lr": 1e30, "epochs": 1})
    with pytest.raises(ManyscopeError, match=r"the training diverged; lower train\.lr"):
        train(settings, tmp_path)


def test_without_labelled_images_no_training(
    small_settings: Settings, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manyscope.scopes.cells.data.images import CellImages

    monkeypatch.setattr(CellImages, "labelled", lambda self, split: [])
    with pytest.raises(DataError, match="no image of the split 'validation' has labels"):
        train(small_settings(), tmp_path)


def test_the_stage_publishes_what_micro_sam_reads(
    small_images: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_stage, "stage_code_digest", lambda *_: "code")
    paths = ExperimentPaths.of(tmp_path, "small")
    paths.prepared.parent.mkdir(parents=True)
    paths.prepared.symlink_to(small_images)
    settings = small_settings(train={"epochs": 1, "patches_per_epoch": 2}).for_stage("train")
    train_stage.run(settings, paths)
    assert not paths.resume.exists()
    assert json.loads(paths.run.read_text())["continued_from_step"] is None
    exported = torch.load(paths.train / "export" / "small.pt", weights_only=True)
    assert exported.keys() == {"model_state", "decoder_state"}
    assert (paths.train / "export" / "checkpoints" / "small" / "best.pt").exists()
