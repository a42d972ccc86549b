"""Training in stages: vision, resampler, finetune, and beside them the model that sees nothing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manyscope.data.splits import unit_hash
from manyscope.errors import CheckpointError, SettingsError
from manyscope.log import logger
from manyscope.scopes.panoramas.data.panoramas import Panoramas
from manyscope.scopes.panoramas.model.adapters import save_adapters, save_merged
from manyscope.scopes.panoramas.model.lessons import LOOK, Lessons
from manyscope.scopes.panoramas.model.names import build_network
from manyscope.scopes.panoramas.model.network import Lesson, PanoramaModel
from manyscope.scopes.panoramas.settings import PanoramasModel, PanoramasSettings, PanoramasTrain, Part, StageSettings
from manyscope.settings.sections import TrainSettings
from manyscope.tables.whole import read_json, whole_file, write_json
from manyscope.training import checkpoints
from manyscope.training.fit import fit as default_fit
from manyscope.training.launch import is_first_process
from manyscope.training.run import TrainingRun
from manyscope.training.seeds import seed_weights
from manyscope.training.stopping import stop_request
from manyscope.training.together import any_process

STATE = "stage_state.json"
STAGES = "stages"


@dataclass(frozen=True)
class Episode:
    """One training among those of an experiment.

    Attributes:
        stage: that ends with it, or None.
        train: its own epochs, batch size and rate, with all else as the section has it.
        feed: arguments of `Lessons`.
    """

    lesson: Lesson
    stage: str | None
    train: TrainSettings
    feed: dict[str, Any]


def fit(settings: PanoramasSettings, data: Panoramas, run: TrainingRun) -> None:
    """Train the stages one after another; each begins with the best weights of the one before. Leaves in the run's
    folder of exports stage_state.json, the weights after each stage, and adapters as peft has them.

    Raises:
        StoppedError: a signal came; the checkpoint to continue from is written.
        CheckpointError: the weights to start from lack a stage that the first one builds on.
        DataError: there is no turn that a stage could learn from, or a text does not fit into the model.
    """
    train = settings.train
    before = stages_before(train, run.start)
    seed_weights(train.seed)
    network = build_network(settings.model, data)
    run.load_start(network)
    state_file = run.folder / STATE
    state: dict[str, Any] = {"version": 1, "completed": before, "parts": {}}
    if state_file.exists():
        state = read_json(state_file)
    steps, epochs = 0, 0.0
    parts = plan(train, settings.model)
    _check(data, network, parts)
    with stop_request() as stop:
        for part in parts:
            name = part.lesson.name
            own = run.part(name, steps, epochs)
            if name not in state["parts"]:
                logger.info("%s: %s learn", name, ", ".join(part.lesson.trains))
                network.begin(part.lesson)
                cache = own.folder if _cached(train, part.lesson) else None
                lessons = Lessons(data, network, part.lesson, part.train.seed, **part.feed, cache=cache)
                default_fit(lessons, network, part.train, own)
                done = checkpoints.load(own.folder / "last.ckpt")
                state["parts"][name] = {
                    "steps": done["global_step"],
                    "epochs": part.train.epochs,
                    "validation_loss": done["best"],
                }
                state["completed"] += [part.stage] if part.stage and part.stage not in state["completed"] else []
                if is_first_process():
                    write_json(state_file, state)
            checkpoints.load_weights(own.best, network, run.scope, run.model)
            steps, epochs = steps + state["parts"][name]["steps"], epochs + state["parts"][name]["epochs"]
            if part.stage and is_first_process():
                _keep(own.best, run.export / STAGES / f"{part.stage}.ckpt")
            # A signal in the last check of a part, or between two of them.
            asked = any_process(stop.signal > 0, "cuda" if torch.cuda.is_available() else "cpu")
            if asked and part is not parts[-1]:
                raise stop.error(steps, None, run.place)
    if is_first_process():
        run.begin(steps)
        run.save_best(network)
        shutil.copyfile(state_file, run.export / STATE)
        save_adapters(network, run.export)
        if train.save_merged:
            save_merged(network, run.export)


def plan(train: PanoramasTrain, model: PanoramasModel) -> list[Episode]:
    """The trainings of an experiment, in their order."""
    parts = []
    # A pretrained language model with adapters stays as it is.
    words: Part = "adapters" if model.language.pretrained and model.lora.rank else "language"
    for name in train.stages:
        stage: StageSettings = getattr(train, name)
        if name == "resampler" and train.resampler.one_view_epochs:
            everything: tuple[Part, ...] = ("vision", "resampler", "projector", words)
            lesson = Lesson("one_view", everything, vision_rate=train.vision_rate)
            epochs, size = train.resampler.one_view_epochs, train.resampler.one_view_batch_size or stage.batch_size
            own = _own(train, lesson.name, epochs, size, stage.lr)
            parts.append(Episode(lesson, None, own, {"types": (LOOK,), "one_view": True, "change": train.augment}))
        lesson = Lesson(
            name, stage.trains, stage.vision_blocks, train.vision_rate, stage.overlap_weight, answers=name != "vision"
        )
        feed = {"types": stage.types, "turns": stage.turns, "change": train.augment}
        feed |= {"look": train.finetune.mixed_turns} if name == "finetune" else {}
        parts.append(Episode(lesson, name, _own(train, name, stage.epochs, stage.batch_size, stage.lr), feed))
    answering = [name for name in train.stages if name != "vision"]
    if answering:  # what the last of them is compared with
        last: StageSettings = getattr(train, answering[-1])
        own = _own(
            train, "blind", train.blind.epochs, train.blind.batch_size or last.batch_size, train.blind.lr or last.lr
        )
        feed = {"types": last.types, "turns": last.turns, "change": train.augment}
        parts.append(Episode(Lesson("blind", (words,), blind=True), None, own, feed))
    return parts


def stages_before(train: PanoramasTrain, start: Path | None) -> list[str]:
    """The stages that the weights to start from have behind them.

    Raises:
        SettingsError: the first stage builds on one that is not asked for, and there are no weights to start from.
        CheckpointError: these weights lack it.
    """
    before: list[str] = []
    if start is not None:
        state = start.parent / "export" / STATE
        before = list(read_json(state)["completed"]) if state.exists() else []
    if "finetune" in train.stages and "resampler" not in {*train.stages, *before}:
        if start is None:
            raise SettingsError(
                "train.stages: the stage finetune builds on the stage resampler; add it, or name in train.start_from an"
                " experiment that has it"
            )
        raise CheckpointError(
            f"the weights to start from have the stages {', '.join(before) or 'none'} behind them",
            place=start,
            allowed="weights with the stage resampler, on which finetune builds",
            remedy="train that experiment's stage resampler, or add it to train.stages",
        )
    return before


def _check(data: Panoramas, network: PanoramaModel, parts: Sequence[Episode]) -> None:
    """Find what a later part, or the stage infer, would stop at, before the first one has taken its hours.

    Raises:
        ManyscopeError: views that shall agree share no place.
        DataError: a part has nothing to learn from, or a text does not fit into the model.
    """
    for part in parts:
        network.begin(part.lesson)
        Lessons(data, network, part.lesson, part.train.seed, **part.feed)
    for question in data.samples["question"].unique(maintain_order=True):
        network.chat.ask(question)
    for turns in data.turns.values():
        for turn in turns:
            network.chat.encode(turn.question, turn.answer)


def _own(
    train: PanoramasTrain, name: str, epochs: float | None, batch_size: int | None, lr: float | None
) -> TrainSettings:
    changed = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    seed = int(unit_hash(train.seed, name) * 2**31)  # else every part would draw the same
    return train.model_copy(update={"seed": seed} | {key: value for key, value in changed.items() if value is not None})


def _cached(train: PanoramasTrain, lesson: Lesson) -> bool:
    learns_to_see = {"vision", "resampler"} & set(lesson.trains)
    return train.cache_features and not learns_to_see and not lesson.overlap_weight


def _keep(weights: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with whole_file(target) as partial:
        shutil.copyfile(weights, partial)
