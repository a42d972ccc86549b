"""Whole frames from a graph, as it was learned or rearranged by edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from manyscope.scopes.scenes.model.geometry import Poses, rotation_matrix, rotation_quaternion
from manyscope.scopes.scenes.model.graph import AtlasGraph, Hits, composite, spread
from manyscope.scopes.scenes.model.planes import Moment, sample

_RAYS = 65_536


@dataclass(frozen=True)
class Actor:
    """One appearance of a layer in a rendered scene.

    Attributes:
        layer: whose plane, path and fields it has.
        name: of this appearance; a copy has another than its layer.
        shift: (3,), added to its positions, in the world.
        turn: rotation vector (3,), about its own middle, in its own axes, radians.
        time: the time of its own at which it is shown at a time of the clip.
        textures: each (4, h, w), painted over its colours one after the other, RGB and coverage in [0, 1].
    """

    layer: str
    name: str
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    time: Callable[[float], float] = field(default=lambda t: t)
    textures: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Rendering:
    """A frame of H x W pixels and what it is made of.

    Attributes:
        frame: (H, W, 3) float32 in [0, 1].
        layers: name of an appearance -> (H, W, 4) float32 in [0, 1], colour, not multiplied by it, and opacity.
        depth: name -> (H, W) float32, along the camera's axis, infinite where the plane is not met.
        corners: name -> (4, 2), where the corners (0, 0), (1, 0), (1, 1), (0, 1) of its plane are in the frame, in
            pixels; NaN for corners behind the camera.
    """

    frame: np.ndarray
    layers: Mapping[str, np.ndarray]
    depth: Mapping[str, np.ndarray]
    corners: Mapping[str, np.ndarray]


def cast(graph: AtlasGraph) -> list[Actor]:
    """Every layer once, as it was learned."""
    return [Actor(layer, layer) for layer in graph.layers]


@torch.inference_mode()
def render(graph: AtlasGraph, time: float, actors: Sequence[Actor] | None = None, rays: int = _RAYS) -> Rendering:
    """One frame with all its layers.

    Args:
        time: of the clip, in [0, 1].
        actors: what is to be seen; each layer once by default.
        rays: rendered at once.
    """
    actors = cast(graph) if actors is None else actors
    height, width = graph.size
    frame = np.empty((height * width, 3), np.float32)
    layers = {actor.name: np.empty((height * width, 4), np.float32) for actor in actors}
    depth = {actor.name: np.empty(height * width, np.float32) for actor in actors}
    scene = _Scene(graph, time, actors)
    for some, hits in scene.chunks(rays):
        count = some.stop - some.start
        frame[some] = composite(hits, count).cpu().numpy()
        for actor, hit in zip(actors, hits, strict=True):
            values = torch.cat([hit.seen.colour, hit.seen.alpha.unsqueeze(1)], 1)
            layers[actor.name][some] = spread(values, hit.rays, count, 0.0).cpu().numpy()
            depth[actor.name][some] = spread(hit.depth, hit.rays, count, float("inf")).cpu().numpy()
    return Rendering(
        frame.reshape(height, width, 3).clip(0, 1),
        {name: values.reshape(height, width, 4) for name, values in layers.items()},
        {name: values.reshape(height, width) for name, values in depth.items()},
        scene.corners(),
    )


@torch.inference_mode()
def render_frame(
    graph: AtlasGraph, time: float, actors: Sequence[Actor] | None = None, rays: int = _RAYS, every: int = 1
) -> np.ndarray:
    """One frame alone, (H / every, W / every, 3) float32 in [0, 1], rounded up.

    Args:
        every: only the first of so many pixels, along each edge.
    """
    scene = _Scene(graph, time, cast(graph) if actors is None else actors, every)
    colours = [composite(hits, some.stop - some.start) for some, hits in scene.chunks(rays)]
    return torch.cat(colours).cpu().numpy().reshape(*scene.shape, 3).astype(np.float32).clip(0, 1)


@torch.inference_mode()
def places_on(graph: AtlasGraph, actor: Actor, time: float) -> np.ndarray:
    """Where on its picture each pixel of the frame shows an appearance, (H, W, 2); NaN where it does not."""
    scene = _Scene(graph, time, [actor])
    found = [
        spread(hits[0].seen.place, hits[0].rays, some.stop - some.start, float("nan"))
        for some, hits in scene.chunks(_RAYS)
    ]
    return torch.cat(found).cpu().numpy().reshape(*graph.size, 2)


class _Scene:
    """The actors at one time, before the rays of a frame."""

    def __init__(self, graph: AtlasGraph, time: float, actors: Sequence[Actor], every: int = 1) -> None:
        self._graph = graph
        self._camera = graph.camera(_times(graph, time))
        self._parts = [_Part.of(graph, actor, time) for actor in actors]
        height, width = graph.size
        self._y, self._x = torch.arange(0, height, every), torch.arange(0, width, every)
        self.shape = len(self._y), len(self._x)

    def chunks(self, rays: int) -> Iterator[tuple[slice, list[Hits]]]:
        """Which of the pixels, row by row, and what their rays see of each actor."""
        count = self.shape[0] * self.shape[1]
        for first in range(0, count, rays):
            some = slice(first, min(count, first + rays))
            number = torch.arange(some.start, some.stop)
            x, y = self._x[number % self.shape[1]], self._y[number // self.shape[1]]
            places = torch.stack([x, y], -1).to(self._graph.sizes) + 0.5
            yield some, [part.hit(self._camera, places) for part in self._parts]

    def corners(self) -> dict[str, np.ndarray]:
        return {part.actor.name: part.corners(self._camera) for part in self._parts}


@dataclass(frozen=True)
class _Part:
    graph: AtlasGraph
    actor: Actor
    pose: Poses
    moment: Moment

    @classmethod
    def of(cls, graph: AtlasGraph, actor: Actor, time: float) -> _Part:
        own = _times(graph, min(1.0, max(0.0, actor.time(time))))
        return cls(graph, actor, pose_of(graph, actor, own), graph.moment(own))

    def hit(self, camera: Poses, places: Tensor) -> Hits:
        which = torch.zeros(len(places), dtype=torch.int64, device=places.device)
        graph, rays = self.graph, self.graph.rays(places)
        found = graph.hit(self.actor.layer, camera, self.pose, which, rays, self.moment, graph.stage)
        colour = found.seen.colour.clamp(0, 1)
        inside = ((found.seen.place >= 0) & (found.seen.place <= 1)).all(-1, keepdim=True)
        for texture in self.actor.textures:
            painted = sample(texture.to(colour), found.seen.place)
            cover = painted[:, 3:] * inside
            colour = colour * (1 - cover) + painted[:, :3] * cover
        return replace(found, seen=replace(found.seen, colour=colour))

    def corners(self, camera: Poses) -> np.ndarray:
        unit = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]).to(self.graph.sizes)
        size = self.graph.size_of(self.actor.layer)
        flat = torch.cat([unit * size, torch.zeros_like(unit[:, :1])], 1)
        world = self.pose.position + flat @ self.pose.rotation[0].T
        own = (world - camera.position) @ camera.rotation[0]
        height, width = self.graph.size
        middle = torch.tensor([width / 2, height / 2]).to(own)
        places = own[:, :2] / own[:, 2:] * (self.graph.focal * width) + middle
        return torch.where(own[:, 2:] > 0, places, torch.full_like(places, float("nan"))).cpu().numpy()


def pose_of(graph: AtlasGraph, actor: Actor, own: Tensor) -> Poses:
    """Where an actor is at (1,) time of its own."""
    learned = graph.path(actor.layer)(own)
    turn = rotation_matrix(rotation_quaternion(torch.tensor([actor.turn]).to(learned.position)))
    return Poses(learned.position + torch.tensor([actor.shift]).to(learned.position), learned.rotation @ turn)


def _times(graph: AtlasGraph, time: float) -> Tensor:
    return torch.tensor([time], dtype=torch.float64, device=graph.sizes.device)
