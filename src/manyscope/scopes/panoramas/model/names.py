"""Models by name, and what does not fit together in their settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from manyscope.errors import CheckpointError, ManyscopeError, MissingDependencyError, SettingsError
from manyscope.registry import Registry
from manyscope.scopes.panoramas.data.hub import require
from manyscope.scopes.panoramas.model.chat import Chat, template, word_tokenizer
from manyscope.scopes.panoramas.model.overlap import LOSSES, build_loss
from manyscope.scopes.panoramas.model.resamplers import RESAMPLERS, build_resampler
from manyscope.scopes.panoramas.settings import LanguageSettings, PanoramasModel, PanoramasSettings, Part
from manyscope.scopes.panoramas.views.strategies import STRATEGIES, find_views

MODELS = Registry("model", {"panorama": "manyscope.scopes.panoramas.model.network:PanoramaModel"})


def build_network(settings: PanoramasModel, data: Any) -> Any:
    """The network of the settings for the views and words of prepared data.

    Raises:
        ManyscopeError: the name is unknown.
        SettingsError: the parts do not fit together.
        CheckpointError: a pretrained model is missing.
    """
    network = MODELS.find(settings.name)(settings, data.views, data.words)
    missing = [name for name in ("begin", "losses", "see", "answer") if not callable(getattr(network, name, None))]
    if missing:
        raise ManyscopeError(
            f"model {settings.name!r} has no {missing[0]}",
            place="model.name",
            allowed="a class derived from manyscope.scopes.panoramas.model.network:PanoramaModel",
        )
    return network


def problems(settings: PanoramasSettings) -> Iterator[str]:
    """What does not fit together in the settings of model and training."""
    model, train = settings.model, settings.train
    if "finetune" in train.stages and "resampler" not in train.stages and train.start_from is None:
        yield (
            "train.stages: finetune builds on the stage resampler; add it, or name in train.start_from an experiment"
            " that has it"
        )
    for name in train.stages:
        stage = getattr(train, name)
        trains = stage.trains
        if not trains:
            yield f"train.{name}.trains: nothing learns; name some of {', '.join(get_args(Part))}"
        if set(trains) == {"vision"} and stage.vision_blocks == 0:
            yield (
                f"train.{name}.vision_blocks: with 0 blocks of the vision encoder nothing learns; give a number, -1 for"
                f" all of it, or name more in train.{name}.trains"
            )
        if name != "vision" and stage.overlap_weight and model.overlap.loss == "none":
            yield f"train.{name}.overlap_weight: without model.overlap.loss it has no effect; set it to 0, or the loss"
        if "adapters" in trains and not model.lora.rank:
            yield f"train.{name}.trains: there are no adapters with model.lora.rank: 0; give a rank, or name language"
        if "language" in trains and model.language.pretrained and model.lora.rank:
            yield (
                f"train.{name}.trains: a pretrained language model with adapters stays as it is; name adapters alone,"
                " or set model.lora.rank to 0"
            )
        if name == "vision" and set(trains) - {"vision", "resampler"}:
            yield "train.vision.trains: views agree by vision and resampler alone; leave out the others"
    if "vision" in train.stages and (model.overlap.loss == "none" or not train.vision.overlap_weight):
        yield "train.stages: without a loss of the overlap the stage vision learns nothing; leave it out"
    if "finetune" in train.stages and train.finetune.mixed_turns and settings.download.source == "csv":
        yield "train.finetune.mixed_turns: tables have no turns of the type look, so it has no effect; set it to 0"
    if settings.download.source == "rooms":
        known = {"look", "where", "across", *settings.download.rooms.questions}
        for name in ("resampler", "finetune"):
            for kind in set(getattr(train, name).types) - known:
                yield f"train.{name}.types: the rooms have no turns {kind!r}; allowed: {', '.join(sorted(known))}"
    yield from _chat_problems(model.language)
    yield from _network_problems(settings)
    for place, wanted in (("vision", model.vision.pretrained), ("language", model.language.pretrained)):
        if wanted and not Path(wanted).is_dir():
            yield from _missing(f"model.{place}.pretrained", wanted, settings)


def _chat_problems(settings: LanguageSettings) -> Iterator[str]:
    """Those of the prompt, and of a chat template that is not the model's own."""
    try:
        tokenizer = word_tokenizer(())
        if settings.chat_template:
            tokenizer.chat_template = template(settings.chat_template)
        Chat(tokenizer, settings, 0)
    except ManyscopeError as error:
        yield str(error)


def _network_problems(settings: PanoramasSettings) -> Iterator[str]:
    """What the parts between the encoder of views and the language model say when they are built, here without memory
    for their numbers. A pretrained encoder, whose sizes they need, may not be there yet."""
    import torch

    from manyscope.scopes.panoramas.model.projector import Projector
    from manyscope.scopes.panoramas.model.vision import grid_of, refuse_blocks

    model, train = settings.model, settings.train
    named = [(RESAMPLERS, model.resampler.name), (STRATEGIES, settings.preprocess.views.strategy)]
    named += [(LOSSES, model.overlap.loss)] if model.overlap.loss != "none" else []
    if model.vision.pretrained or any(name not in registry.paths for registry, name in named):
        return  # what is unknown the scope reports; what an import path names is its author's
    stages = {name: getattr(train, name) for name in train.stages}
    for name, stage in stages.items():
        if "vision" in stage.trains:
            try:
                refuse_blocks(stage.vision_blocks, model.vision.layers, f"train.{name}.vision_blocks")
            except SettingsError as error:
                yield str(error)
    try:
        views = find_views(settings.preprocess.views)
    except ManyscopeError:
        return  # reported by the scope
    try:
        grid = grid_of(model.vision, views.size_px)
        with torch.device("meta"):
            resampler = build_resampler(model.resampler, model.vision.width, grid)
    except MissingDependencyError:
        return  # of this machine, not of the settings
    except ManyscopeError as error:
        yield str(error)
        return
    try:
        with torch.device("meta"):
            projector = Projector(
                model.projector, views, resampler.grid, resampler.tokens, resampler.width, model.language.width
            )
        if len(projector.views) >= model.language.most_tokens:
            yield (
                f"model.language.most_tokens: {model.language.most_tokens} has no place for a question behind the"
                f" {len(projector.views)} tokens of the views; raise it, or use fewer views or tokens"
            )
    except ManyscopeError as error:
        yield str(error)
    if any(stage.overlap_weight for stage in stages.values()):
        try:
            build_loss(model.overlap, views, resampler.grid)
        except ManyscopeError as error:
            yield str(error)


def _missing(place: str, name: str, settings: PanoramasSettings) -> Iterator[str]:
    hub = settings.download.hub
    if name in hub.names and hub.folder == settings.model.weights:
        return  # the download will fetch it
    try:
        require(name, settings.model.weights)
    except CheckpointError as error:
        yield f"{place}: {error}; or add it to download.hub.names, with download.hub.folder as model.weights"
