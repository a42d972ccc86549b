"""Training of panoramas stopped in the middle of each of its parts; and one stage alone, on the weights of another."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from manyscope.errors import StoppedError
from manyscope.settings.paths import ExperimentPaths
from manyscope.training.checkpoints import load
from workspace import Workspace, kill_tree, make_workspace, train_apart, wait_for_file

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("panoramas")]

PARTS = ("vision", "one_view", "resampler", "finetune", "blind")
SETTINGS, CHECKPOINT = 2, 4  # exit codes
ROUNDS = 20  # of each part, each with a checkpoint: time enough to be stopped in it
LONGER = tuple(
    word
    for change in (
        f"train.epochs={ROUNDS}", "train.check_every_epochs=1", f"train.resampler.one_view_epochs={ROUNDS}",
        f"train.blind.epochs={ROUNDS}",
    )
    for word in ("--set", change)
)  # fmt: skip


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("panoramas-stopped") / "work", experiments=("panoramas",))
    for stage in ("download", "preprocess"):
        assert workspace.here(stage, "--experiment", "panoramas").exit_code == 0
    return workspace


@pytest.fixture(scope="module")
def source(rooms: Workspace) -> ExperimentPaths:
    return ExperimentPaths.of(rooms.results, "panoramas")


@pytest.fixture(scope="module")
def undisturbed(rooms: Workspace, source: ExperimentPaths, tmp_path_factory: pytest.TempPathFactory) -> ExperimentPaths:
    return train_apart(rooms, source, tmp_path_factory.mktemp("undisturbed"), *LONGER)


def ended_alike(one: ExperimentPaths, other: ExperimentPaths) -> None:
    for name in ("model", "history"):
        assert getattr(one, name).read_bytes() == getattr(other, name).read_bytes(), name
    left = [sorted(file.relative_to(p.export) for file in p.export.rglob("*.*")) for p in (one, other)]
    assert left[0] == left[1]
    for file in left[0]:
        assert (one.export / file).read_bytes() == (other.export / file).read_bytes(), file
    for leftover in ("*.partial", "*.old"):
        assert list(one.root.rglob(leftover)) == []


@pytest.mark.long
def test_killed_in_its_fourth_part_it_ends_with_the_same_weights(
    rooms: Workspace, source: ExperimentPaths, undisturbed: ExperimentPaths, tmp_path: Path
) -> None:
    killed = train_apart(rooms, source, tmp_path, *LONGER, interrupt=signal.SIGKILL, checkpoint="*/finetune/last.ckpt")
    ended_alike(killed, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("interrupt", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_stopped_in_every_part_it_ends_with_the_same_weights(
    rooms: Workspace, source: ExperimentPaths, undisturbed: ExperimentPaths, tmp_path: Path, interrupt: signal.Signals
) -> None:
    own = ExperimentPaths.of(tmp_path, source.experiment)
    own.root.mkdir()
    own.prepared.symlink_to(source.prepared)
    command = ("train", "--experiment", source.experiment, "--results", str(tmp_path), *LONGER)
    for number, part in enumerate(PARTS):
        process = rooms.start(*command)
        wait_for_file(process, own.resume, f"*/{part}/last.ckpt")
        if interrupt == signal.SIGKILL:
            kill_tree(process)
        else:
            process.send_signal(interrupt)
            said = process.communicate(timeout=120)[0]
            assert process.returncode == StoppedError.exit_code, said
            assert f": {interrupt.name} stopped the training at step " in said.splitlines()[-1], said
        done = [json.loads(file.read_text())["parts"] for file in own.resume.glob("*/stage_state.json")]
        assert [list(parts) for parts in done] == ([list(PARTS[:number])] if number else []), part
        assert not own.model.exists()
    assert "continues from its checkpoint" in rooms.manyscope(*command).stderr
    ended_alike(own, undisturbed)


# --------------------------------------------------------------------------------------- one stage on another's weights
@pytest.fixture(scope="module")
def based(rooms: Workspace) -> Workspace:
    """Two experiments, `seeing` trained in the stage vision alone and `reading` in the stage resampler."""
    folder = rooms.folder / "config/experiments"
    text = (folder / "panoramas.yaml").read_text()
    stages = {"seeing": "[vision]", "reading": "[resampler]"}
    starts = {"tuned": "reading", "too_early": "seeing"}
    for name, some in stages.items():
        changed = text.replace("\ntrain:\n", f"\ntrain:\n  stages: {some}\n")
        (folder / f"{name}.yaml").write_text(changed)
    for name, start in {**starts, "alone": ""}.items():
        begin = f"  start_from: {start}\n" if start else ""
        changed = text.replace("\ntrain:\n", f"\ntrain:\n  stages: [finetune]\n{begin}")
        (folder / f"{name}.yaml").write_text(changed)
    names = [*stages, *starts, "alone"]
    (rooms.folder / "config/config.yaml").write_text(f"experiments: [panoramas, {', '.join(names)}]\n")
    for name in names:
        own = ExperimentPaths.of(rooms.results, name)
        own.root.mkdir()
        own.prepared.symlink_to(ExperimentPaths.of(rooms.results, "panoramas").prepared)
    for name in stages:
        done = rooms.here("train", "--experiment", name)
        assert done.exit_code == 0, done.output
    return rooms


def paths(workspace: Workspace, experiment: str) -> ExperimentPaths:
    return ExperimentPaths.of(workspace.results, experiment)


def completed(workspace: Workspace, experiment: str) -> list[str]:
    state = json.loads((paths(workspace, experiment).export / "stage_state.json").read_text())
    return list(state["completed"])


def test_one_stage_is_trained_on_the_weights_of_those_before(based: Workspace) -> None:
    assert based.here("validate", "tuned").exit_code == 0
    done = based.here("train", "--experiment", "tuned")
    assert done.exit_code == 0, done.output
    assert completed(based, "reading") == ["resampler"]
    assert completed(based, "tuned") == ["resampler", "finetune"]
    before, after = (load(paths(based, name).model)["state_dict"] for name in ("reading", "tuned"))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"projector", "language", "blind"}
    history = json.loads((paths(based, "tuned").export / "stage_state.json").read_text())["parts"]
    assert list(history) == ["finetune", "blind"]
    assert json.loads(paths(based, "tuned").run.read_text())["start_from"] == "reading"


def refused(workspace: Workspace, experiment: str, code: int, *words: str) -> None:
    """By the stage, in one line, before any training."""
    done = workspace.here("train", "--experiment", experiment)
    assert done.exit_code == code, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    left = paths(workspace, experiment).train.rglob("*")
    assert [file for file in left if not file.is_dir()] == []


def test_weights_without_the_stage_before_are_refused(based: Workspace) -> None:
    assert completed(based, "seeing") == ["vision"]
    refused(
        based, "too_early", CHECKPOINT,
        "results/seeing/train/model.ckpt: the weights to start from have the stages vision behind them",
        "allowed: weights with the stage resampler", "add it to train.stages",
    )  # fmt: skip


def test_a_stage_alone_without_weights_to_start_from_is_refused(based: Workspace) -> None:
    words = ("train.stages: ", "finetune builds on the stage resampler", "train.start_from")
    done = based.here("validate", "alone")
    assert done.exit_code == SETTINGS
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line
    refused(based, "alone", SETTINGS, *words)


def test_weights_that_are_missing_are_refused(based: Workspace) -> None:
    before = paths(based, "reading")
    moved = before.model.rename(before.model.with_name("moved.ckpt"))
    shutil.rmtree(paths(based, "tuned").train, ignore_errors=True)
    refused(based, "tuned", CHECKPOINT, "results/reading/train/model.ckpt: the weights to start from", "are missing")
    moved.rename(before.model)
