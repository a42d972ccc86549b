"""Whole frames from a graph, as it was learned or rearranged by edits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from manyscope.scopes.scenes.model.geometry import Poses, rotation_matrix, rotation_quaternion
from manyscope.scopes.scenes.model.graph import AtlasGraph, Hits, composite, spread
from manyscope.scopes.scenes.model.planes import sample


@dataclass(frozen=True)
class Actor:
    """One appearance of a layer in a rendered scene.

    Attributes:
        layer: whose plane, path and fields it has.
        name: of this appearance; a copy has another than its layer.
        shift: (3,), added to its positions, in the world.
        turn: rotation vector (3,), about its own middle, in its own axes, radians.
        time: the time of its own at which it is shown at a time of the clip.
        texture: (4, h, w), painted over its colours, RGB and coverage in [0, 1].
    """

    layer: str
    name: str
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    time: Callable[[float], float] = field(default=lambda t: t)
    texture: Tensor | None = None


@dataclass(frozen=True)
class Rendering:
    """A frame of H x W pixels and what it is made of.

    Attributes:
        frame: (H, W, 3) float32 in [0, 1].
        layers: name of an appearance -> (H, W, 4) float32 in [0, 1], colour, not multiplied by it, and opacity.
        depth: name -> (H, W) float32, infinite where the plane is not met.
        places: name -> (H, W, 2) float32, where on its picture; NaN where the plane is not met.
        corners: name -> (4, 2), where the corners (0, 0), (1, 0), (1, 1), (0, 1) of its plane are in the frame, in
            pixels; NaN for corners behind the camera.
    """

    frame: np.ndarray
    layers: Mapping[str, np.ndarray]
    depth: Mapping[str, np.ndarray]
    places: Mapping[str, np.ndarray]
    corners: Mapping[str, np.ndarray]


def cast(graph: AtlasGraph) -> list[Actor]:
    """Every layer once, as it was learned."""
    return [Actor(layer, layer) for layer in graph.layers]


@torch.inference_mode()
def render(graph: AtlasGraph, time: float, actors: Sequence[Actor] | None = None, rays: int = 65_536) -> Rendering:
    """One frame.

    Args:
        time: of the clip, in [0, 1].
        actors: what is to be seen; each layer once by default.
        rays: rendered at once.
    """
    actors = cast(graph) if actors is None else actors
    height, width = graph.size
    parts = [_Part.of(graph, actor, time) for actor in actors]
    camera = graph.camera(_times(graph, time))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(-1, 2).to(graph.sizes.device) + 0.5
    frames, layers, depths, places = [], [], [], []
    for chunk in pixels.float().split(rays):
        hits = [part.hit(camera, chunk) for part in parts]
        count = len(chunk)
        frames.append(composite(hits, count) if hits else chunk.new_zeros(count, 3))
        colours = (torch.cat([h.seen.colour, h.seen.alpha.unsqueeze(1)], 1) for h in hits)
        layers.append([spread(c, h.rays, count, 0.0) for c, h in zip(colours, hits, strict=True)])
        depths.append([spread(h.depth, h.rays, count, float("inf")) for h in hits])
        places.append([spread(h.seen.place, h.rays, count, float("nan")) for h in hits])

    def whole(chunks: Sequence[Tensor], *shape: int) -> np.ndarray:
        return torch.cat(list(chunks)).cpu().numpy().reshape(height, width, *shape)

    names = [actor.name for actor in actors]
    return Rendering(
        whole(frames, 3).clip(0, 1),
        {name: whole([c[i] for c in layers], 4) for i, name in enumerate(names)},
        {name: whole([c[i] for c in depths]) for i, name in enumerate(names)},
        {name: whole([c[i] for c in places], 2) for i, name in enumerate(names)},
        {part.actor.name: part.corners(camera) for part in parts},
    )


@dataclass(frozen=True)
class _Part:
    graph: AtlasGraph
    actor: Actor
    pose: Poses
    in_time: Tensor

    @classmethod
    def of(cls, graph: AtlasGraph, actor: Actor, time: float) -> _Part:
        own = _times(graph, min(1.0, max(0.0, actor.time(time))))
        learned = graph.path(actor.layer)(own)
        device = graph.sizes.device
        turn = rotation_matrix(rotation_quaternion(torch.tensor([actor.turn], device=device)))
        moved = Poses(learned.position + torch.tensor([actor.shift], device=device), learned.rotation @ turn)
        return cls(graph, actor, moved, graph.in_time(own))

    def hit(self, camera: Poses, places: Tensor) -> Hits:
        which = torch.zeros(len(places), dtype=torch.int64, device=places.device)
        graph, rays = self.graph, self.graph.rays(places)
        found = graph.hit(self.actor.layer, camera, self.pose, which, rays, self.in_time, graph.stage)
        colour = found.seen.colour.clamp(0, 1)
        if self.actor.texture is not None:
            painted = sample(self.actor.texture.to(colour.device), found.seen.place)
            inside = ((found.seen.place >= 0) & (found.seen.place <= 1)).all(-1, keepdim=True)
            cover = painted[:, 3:] * inside
            colour = colour * (1 - cover) + painted[:, :3] * cover
        return replace(found, seen=replace(found.seen, colour=colour))

    def corners(self, camera: Poses) -> np.ndarray:
        unit = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]], device=self.graph.sizes.device)
        size = self.graph.size_of(self.actor.layer)
        flat = torch.cat([unit * size, torch.zeros_like(unit[:, :1])], 1)
        world = self.pose.position + flat @ self.pose.rotation[0].T
        own = (world - camera.position) @ camera.rotation[0]
        height, width = self.graph.size
        focal = self.graph.focal * width
        middle = torch.tensor([width / 2, height / 2], device=own.device)
        places = own[:, :2] / own[:, 2:] * focal + middle
        return torch.where(own[:, 2:] > 0, places, torch.full_like(places, float("nan"))).cpu().numpy()


def _times(graph: AtlasGraph, time: float) -> Tensor:
    return torch.tensor([time], dtype=torch.float64, device=graph.sizes.device)
