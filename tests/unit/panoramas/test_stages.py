"""The parts of a training, one after another, stopped and continued."""

from __future__ import annotations

import json
import os
import signal
from itertools import pairwise

import pytest
import torch

from manyscope.errors import StoppedError
from manyscope.scopes.panoramas.model import fit as stages
from manyscope.settings.paths import ExperimentPaths
from manyscope.training import checkpoints
from manyscope.training.run import TrainingRun
from small_pano import small_settings

pytestmark = pytest.mark.slow

SETTINGS = small_settings("train.tracker=none", "train.epochs=0.4", "train.resampler.one_view_epochs=0.4",
                          "train.blind.epochs=0.4")  # fmt: skip


def start(rooms, results):
    paths = ExperimentPaths.of(results, "panoramas")
    paths.train.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(SETTINGS, paths, "data", "code", {})
    stages.fit(SETTINGS, rooms, run)
    return run


def test_a_signal_at_the_end_of_a_part_stops_there_and_the_next_call_goes_on(rooms, tmp_path, monkeypatch):
    whole = start(rooms, tmp_path / "whole")
    taken = []
    default_fit = stages.default_fit

    def ends_with_a_signal(lessons, network, train, own):
        default_fit(lessons, network, train, own)
        taken.append(own.folder.name)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(stages, "default_fit", ends_with_a_signal)
    for part in ("vision", "one_view", "resampler", "finetune"):
        with pytest.raises(StoppedError, match="SIGTERM stopped the training at step"):
            start(rooms, tmp_path / "stopped")
        assert taken[-1] == part
    monkeypatch.setattr(stages, "default_fit", default_fit)
    run = start(rooms, tmp_path / "stopped")
    assert taken == ["vision", "one_view", "resampler", "finetune"]
    state = json.loads((run.export / "stage_state.json").read_text())
    assert state == json.loads((whole.export / "stage_state.json").read_text())
    assert state["completed"] == ["vision", "resampler", "finetune"]
    ours, theirs = (checkpoints.load(one.best)["state_dict"] for one in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.history.drop("value").equals(whole.history.drop("value"))
    assert {p.name for p in (run.export / "stages").iterdir()} == {f"{name}.ckpt" for name in state["completed"]}


def test_each_part_begins_with_the_best_of_the_one_before(rooms, tmp_path, monkeypatch):
    default_fit, begun = stages.default_fit, {}

    def noted(lessons, network, train, own):
        begun[own.folder.name] = {name: p.clone() for name, p in network.state_dict().items()}
        default_fit(lessons, network, train, own)

    monkeypatch.setattr(stages, "default_fit", noted)
    run = start(rooms, tmp_path)
    order = ["vision", "one_view", "resampler", "finetune", "blind"]
    assert list(begun) == order
    for before, after in pairwise(order):
        best = checkpoints.load(run.folder / before / "best.ckpt")["state_dict"]
        assert all(torch.equal(begun[after][name], p) for name, p in best.items())
