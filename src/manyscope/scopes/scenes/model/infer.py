"""Rendering the frames of a shard: whole, in layers, and edited where the truth of an edit is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from manyscope.errors import DataError
from manyscope.log import progress
from manyscope.scopes.scenes.edits import checker
from manyscope.scopes.scenes.files import atlas_file, edit_file, frame_file, layer_file
from manyscope.scopes.scenes.model.descriptor import DIMENSIONS, box, describe
from manyscope.scopes.scenes.model.editing import paint_frame
from manyscope.scopes.scenes.model.graph import AtlasGraph
from manyscope.scopes.scenes.model.planes import sample
from manyscope.scopes.scenes.model.render import Actor, Rendering, cast, render, render_frame
from manyscope.tables.predictions import Objects
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from manyscope.scopes.scenes.data.clip import Clip


def predict(graph: AtlasGraph, clip: Clip, sample_ids: Sequence[str], files: Path, rays: int) -> Iterator[Objects]:
    """Render frames and write them below `files`, as `manyscope.scopes.scenes.files` says; the layers that a frame
    shows are its objects. Of a synthetic clip each frame is also rendered without each object, and with a checker
    painted on each.

    Args:
        rays: rendered at once.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    graph.to(device).eval()
    edits = standard_edits(graph) if clip.truth is not None else {}
    rows = clip.rows_of(sample_ids)
    if 0 in rows:  # files of no single frame go with the first one: two shards must not write the same file
        for layer in graph.layers:
            write_picture(atlas_file(files, layer), atlas(graph, layer))
    for row, sample_id in progress(zip(rows, sample_ids, strict=True), "infer", len(rows)):
        time = float(clip.times[row])
        rendering = render(graph, time, rays=rays)
        write_picture(frame_file(files, sample_id), rendering.frame)
        for layer, picture in rendering.layers.items():
            write_picture(layer_file(files, layer, sample_id), picture)
        for (edit, layer), actors in edits.items():
            write_picture(edit_file(files, edit, layer, sample_id), render_frame(graph, time, actors, rays))
        yield _objects(sample_id, int(row), rendering)


def untrained(graph: AtlasGraph, clip: Clip) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """What a graph shows before its training, without its fields: a function of a frame's position that gives the frame
    and its background, (H, W, 3) uint8 each; the frame without an object, if one is named by `without`."""
    graph.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    graph.progress = -1.0  # before everything

    def placed(position: int, without: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        time, actors = float(clip.times[position]), cast(graph)
        frame = render_frame(graph, time, [actor for actor in actors if actor.name != without])
        return eight_bit(frame), eight_bit(render_frame(graph, time, actors[-1:]))

    return placed


def standard_edits(graph: AtlasGraph) -> dict[tuple[str, str], list[Actor]]:
    """("remove" or "paint", name of an object) -> who is seen then."""
    actors, edits = cast(graph), dict[tuple[str, str], list[Actor]]()
    picture = checker(*graph.size).astype(np.float32) / 255
    for i, layer in enumerate(graph.objects):
        texture = paint_frame(graph, actors[i], picture, float(graph.times[graph.reference(layer)]))
        edits["remove", layer] = [*actors[:i], *actors[i + 1 :]]
        edits["paint", layer] = [*actors[:i], Actor(layer, layer, textures=(texture,)), *actors[i + 1 :]]
    return edits


@torch.inference_mode()
def atlas(graph: AtlasGraph, layer: str) -> np.ndarray:
    """The picture that a plane carries, without displacement and change, (h, w, 4) float32 in [0, 1]."""
    plane = graph.plane(layer)
    height, width = plane.picture.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).reshape(-1, 2).to(graph.sizes)
    values = sample(plane.picture, place) + plane.correction(place)
    alpha = torch.ones_like(values[:, :1]) if plane.opaque else torch.sigmoid(values[:, 3:])
    return torch.cat([values[:, :3].clamp(0, 1), alpha], 1).cpu().numpy().reshape(height, width, 4)


def eight_bit(picture: np.ndarray) -> np.ndarray:
    """uint8 of values in [0, 1]."""
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write (h, w, 3 or 4) in [0, 1] as PNG, whole."""
    with whole_file(path) as partial:
        Image.fromarray(eight_bit(picture)).save(partial, "PNG", compress_level=3)


def embed_picture(path: Path) -> np.ndarray:
    """The vector of a picture from anywhere, as if it were a layer.

    Raises:
        DataError: missing, not a picture, or nothing to be seen on it.
    """
    from manyscope.scopes.scenes.model.editing import read_picture

    vector = describe(read_picture(path))
    if vector is None:
        raise DataError("the picture is transparent everywhere", place=path)
    return vector


def _objects(sample_id: str, row: int, rendering: Rendering) -> Objects:
    """The layers of one frame that can be seen there."""
    vectors, shown = list[np.ndarray](), list[dict[str, Any]]()
    for layer, picture in rendering.layers.items():
        vector, inside = describe(picture), box(picture[..., 3])
        if vector is None or inside is None:
            continue
        depth, alpha = rendering.depth[layer], picture[..., 3]
        weight = np.where(np.isfinite(depth), alpha, 0.0)
        total = float(weight.sum())
        y, x = np.mgrid[: alpha.shape[0], : alpha.shape[1]] + 0.5
        values = {
            "layer": layer,
            "frame": row,
            "area_px": float(alpha.sum()),
            "share": float(alpha.mean()),
            "depth": float((np.where(weight > 0, depth, 0.0) * weight).sum() / total),
            "x_px": float((x * weight).sum() / total),
            "y_px": float((y * weight).sum() / total),
            "width_px": inside[1].stop - inside[1].start,
            "height_px": inside[0].stop - inside[0].start,
            **{
                f"corner_{i}_{axis}_px": float(value)
                for i, corner in enumerate(rendering.corners[layer])
                for axis, value in zip("xy", corner, strict=True)
            },
        }
        vectors.append(vector)
        shown.append(values)
    return Objects(
        samples=[sample_id],
        sample_id=[sample_id] * len(shown),
        object_id=[f"{sample_id}/{values['layer']}" for values in shown],
        embedding=np.stack(vectors) if vectors else np.zeros((0, DIMENSIONS), np.float32),
        columns={name: [values[name] for values in shown] for name in shown[0]} if shown else {},
    )
