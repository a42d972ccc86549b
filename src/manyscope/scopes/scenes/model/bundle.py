"""A trained scene in one file: everything that rendering and editing need, without the prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyscope.errors import CheckpointError
from manyscope.scopes.scenes.model.graph import AtlasGraph
from manyscope.scopes.scenes.model.names import MODELS
from manyscope.scopes.scenes.placement import Placement
from manyscope.scopes.scenes.settings import ScenesModel
from manyscope.training import checkpoints

BUNDLE = "scene.ckpt"
_FORMAT = 1
_ENTRIES = {"size", "focal", "times", "objects", "indices", "state_dict"}


def build(settings: ScenesModel, placement: Placement, size: tuple[int, int], times: Any, objects: Any) -> AtlasGraph:
    """The model that the settings name.

    Raises:
        ManyscopeError: the name is unknown.
        SettingsError: the model refuses its arguments.
    """
    return MODELS.build(
        settings.name, settings, placement, size, [float(t) for t in times], list(objects), place="model.args",
        **settings.args,
    )  # fmt: skip


def save_bundle(path: Path, graph: AtlasGraph, indices: list[int]) -> None:
    """Write whole.

    Args:
        indices: numbers of the clip's frames.
    """
    content = {
        "format": _FORMAT,
        "size": list(graph.size),
        "focal": graph.focal,
        "times": graph.times.tolist(),
        "objects": graph.objects,
        "indices": indices,
        "state_dict": graph.state_dict(),
    }
    checkpoints.save(path, content)


def load_bundle(path: Path, settings: ScenesModel) -> tuple[AtlasGraph, list[int]]:
    """The graph, in eval mode, and the numbers of the clip's frames.

    Args:
        settings: of the model, as it was trained.

    Raises:
        CheckpointError: missing, broken, or of another model.
    """
    content = checkpoints.load(path)
    if content.get("format") != _FORMAT or not content.keys() >= _ENTRIES:
        raise CheckpointError("not a bundle of a scene", place=path, remedy="run the stage train again")
    try:
        placement = _blank(content["state_dict"], len(content["objects"]), content["focal"])
        graph = build(settings, placement, tuple(content["size"]), content["times"], content["objects"])
        graph.load_state_dict(content["state_dict"])
        indices = [int(index) for index in content["indices"]]
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"holds a scene of another form ({reason[:160]})",
            place=path,
            remedy="restore the settings it was trained with, or run the stage train again",
        ) from error
    return graph.eval(), indices


def _blank(state: dict[str, torch.Tensor], objects: int, focal: float) -> Placement:
    """A placement of the shapes that the weights have; its values are those of no scene."""

    def zeros(name: str) -> np.ndarray:
        return np.zeros(tuple(state[name].shape), np.float32)

    def picture(name: str) -> np.ndarray:
        return zeros(name).transpose(1, 2, 0)

    paths = [[zeros(f"paths.{i}.{name}") for i in range(objects)] for name in ("position", "rotation")]
    background = picture("background.picture")
    return Placement(
        focal=float(focal),
        camera_position=zeros("camera.position"),
        camera_rotation=zeros("camera.rotation"),
        background_position=np.zeros(3, np.float32),
        background_rotation=np.zeros(4, np.float32),
        background_size=np.ones(2, np.float32),
        background_picture=background,
        background_seen=np.ones(background.shape[:2], bool),
        object_position=np.stack(paths[0]) if objects else np.zeros((0, 1, 3), np.float32),
        object_rotation=np.stack(paths[1]) if objects else np.zeros((0, 1, 4), np.float32),
        object_size=np.ones((objects, 2), np.float32),
        object_reference=np.zeros(objects, np.int64),
        object_pictures=[picture(f"planes.{i}.picture") for i in range(objects)],
    )
