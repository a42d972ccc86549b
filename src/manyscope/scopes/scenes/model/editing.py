"""Edits carried out on a graph: a changed list of who is seen, where, when and with what painted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError
from torch import Tensor

from manyscope.errors import DataError, ManyscopeError, did_you_mean
from manyscope.scopes.scenes.edits import Duplicate, Edit, Paint, Remove, Retime, Shift
from manyscope.scopes.scenes.files import BACKGROUND
from manyscope.scopes.scenes.model.graph import AtlasGraph
from manyscope.scopes.scenes.model.planes import sample
from manyscope.scopes.scenes.model.render import Actor, places_on, pose_of

_MOST_POINTS = 60_000  # of the scattered places that a painted picture is brought to the atlas by
_FINER = 2  # texels of a painted picture for each of the plane's own picture, along each edge


def edited(graph: AtlasGraph, actors: Sequence[Actor], edits: Sequence[Edit], indices: Sequence[int]) -> list[Actor]:
    """The actors after the edits, one after the other.

    Args:
        indices: numbers of the clip's frames.

    Raises:
        ManyscopeError: an object, a frame or a name is not there, or is there already.
        DataError: a picture cannot be read.
    """
    result = list(actors)
    for edit in edits:
        result = _apply(graph, result, edit, list(indices))
    return result


def paint_frame(graph: AtlasGraph, actor: Actor, picture: np.ndarray, time: float) -> Tensor:
    """The texture (4, h, w) on an actor's plane that looks, at a time, like a picture over the whole frame.

    Where the picture lies is known at each pixel of the frame; between these places it is interpolated. What the frame
    does not show of the plane stays unpainted.

    Args:
        picture: (h, w, 4) float32 in [0, 1].
    """
    height, width = graph.size
    every = max(1, int(np.ceil((height * width / _MOST_POINTS) ** 0.5)))
    rows, columns = (np.unique([*range(0, side, every), side - 1]) for side in (height, width))
    place = places_on(graph, actor, time)[np.ix_(rows, columns)].reshape(-1, 2)
    x, y = (axis.ravel() for axis in np.meshgrid((columns + 0.5) / width, (rows + 0.5) / height))
    met = np.isfinite(place).all(1)
    tall, wide = (_FINER * side for side in graph.plane(actor.layer).picture.shape[1:])
    v, u = np.meshgrid((np.arange(tall) + 0.5) / tall, (np.arange(wide) + 0.5) / wide, indexing="ij")
    try:
        found = LinearNDInterpolator(place[met], np.stack([x, y], 1)[met])(u, v).astype(np.float32)
    except (QhullError, ValueError):  # too few places, or all of them in a line
        return torch.zeros(4, tall, wide)
    seen = torch.from_numpy(np.isfinite(found).all(-1))
    source = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)
    painted = sample(source, torch.from_numpy(np.nan_to_num(found)).reshape(-1, 2)).t().reshape(4, tall, wide)
    return painted * seen


def read_picture(path: Path) -> np.ndarray:
    """(h, w, 4) float32 in [0, 1], opaque if it says nothing else.

    Raises:
        DataError: missing, or not a picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGBA"), np.float32) / 255
    except FileNotFoundError as error:
        raise DataError("the picture is missing", place=path) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"not a readable picture ({error})", place=path, allowed="PNG, JPEG, WebP …") from error


def _apply(graph: AtlasGraph, actors: list[Actor], edit: Edit, indices: list[int]) -> list[Actor]:
    position = _position(actors, edit.object)
    actor = actors[position]
    if not isinstance(edit, Paint) and actor.layer == BACKGROUND:
        raise ManyscopeError(f"the background cannot be edited by {edit.do!r}", place="edits", allowed="paint")
    if isinstance(edit, Remove):
        return [*actors[:position], *actors[position + 1 :]]
    if isinstance(edit, Duplicate):
        name = edit.name or f"{actor.name}-copy"
        if name in {other.name for other in actors}:
            raise ManyscopeError(f"the name {name!r} is taken", place="edits", remedy="give the copy a name of its own")
        return [*actors, replace(_moved(graph, actor, edit), name=name)]
    if isinstance(edit, Shift):
        changed = _moved(graph, actor, edit)
    elif isinstance(edit, Retime):
        changed = _retimed(actor, edit, indices)
    else:
        changed = replace(actor, textures=(*actor.textures, _texture(graph, actor, edit, indices)))
    return [*actors[:position], changed, *actors[position + 1 :]]


def _position(actors: list[Actor], name: str) -> int:
    names = [actor.name for actor in actors]
    if name not in names:
        raise ManyscopeError(
            f"there is no {name!r}", place="edits", allowed=", ".join(names), remedy=did_you_mean(name, names)
        )
    return names.index(name)


def _moved(graph: AtlasGraph, actor: Actor, edit: Shift | Duplicate) -> Actor:
    """Moved as seen by the camera in the middle of the clip."""
    middle, own = (
        torch.tensor([time], dtype=torch.float64, device=graph.sizes.device) for time in (0.5, actor.time(0.5))
    )
    with torch.inference_mode():
        camera, pose = graph.camera(middle), pose_of(graph, actor, own)
        seen = (pose.position[0] - camera.position[0]) @ camera.rotation[0]
        across = torch.tensor([edit.right_px, edit.down_px, 0.0]).to(seen)
        after = (seen + across * seen[2] / (graph.focal * graph.size[1])) / edit.nearer
        step = camera.rotation[0] @ (after - seen)
    x, y, z = (before + float(value) for before, value in zip(actor.shift, step, strict=True))
    turn = (actor.turn[0], actor.turn[1], actor.turn[2] + float(np.deg2rad(edit.turn_degrees)))
    return replace(actor, shift=(x, y, z), turn=turn)


def _retimed(actor: Actor, edit: Retime, indices: list[int]) -> Actor:
    before, later = actor.time, edit.later_frames / max(1, indices[-1] - indices[0])

    def time(t: float) -> float:
        own = min(1.0, max(0.0, t - later))
        return before(1.0 - own if edit.reverse else own)

    return replace(actor, time=time)


def _texture(graph: AtlasGraph, actor: Actor, edit: Paint, indices: list[int]) -> Tensor:
    picture = read_picture(edit.image)
    if edit.on == "atlas":
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous()
    index = graph.reference(actor.layer) if edit.frame is None else edit.frame
    if edit.frame is not None:
        if edit.frame not in indices:
            raise ManyscopeError(
                f"there is no frame {edit.frame}", place="edits", allowed=f"{indices[0]} to {indices[-1]}"
            )
        index = indices.index(edit.frame)
    return paint_frame(graph, actor, picture, float(graph.times[index]))
