"""A small placed scene, and graphs built from it."""

from __future__ import annotations

import numpy as np
import torch

from manyscope.scopes.scenes.model.bundle import build
from manyscope.scopes.scenes.model.graph import AtlasGraph
from manyscope.scopes.scenes.placement import Placement
from manyscope.scopes.scenes.settings import FieldSettings, ScenesModel

HEIGHT, WIDTH, FRAMES = 24, 32, 8
SMALL = FieldSettings(levels=3, log2_table=8, base=4, width=16, layers=1)


def small_model(**changed: object) -> ScenesModel:
    fields = dict.fromkeys(("colour", "alpha", "flow", "view"), SMALL)
    return ScenesModel.model_validate({**fields, **changed})


def small_placement(objects: int = 2, camera_moves: bool = False) -> Placement:
    """A background of smooth noise at distance 2, and squares of one colour at distances 1.0 and 1.4 which move from
    left to right and from right to left. Focal length: one width."""
    rng = np.random.default_rng(0)
    texture = np.kron(rng.uniform(0.2, 0.8, (6, 8, 3)), np.ones((4, 4, 1))).astype(np.float32)
    knots = np.linspace(0, 1, 4)
    still = np.tile([1.0, 0, 0, 0], (4, 1))
    camera = np.stack([0.2 * knots if camera_moves else 0 * knots, 0 * knots, 0 * knots], 1)
    paths, pictures = [], []
    for number, (z, colour, way) in enumerate([(1.0, (0.9, 0.1, 0.1), 1), (1.4, (0.1, 0.2, 0.9), -1)][:objects]):
        x = way * (0.4 * knots - 0.2) * z
        paths.append(np.stack([x, np.full(4, 0.05 * number * z), np.full(4, z)], 1))
        picture = np.zeros((12, 12, 4), np.float32)
        picture[..., :3] = colour
        picture[..., 3] = 0.02
        picture[2:10, 2:10, 3] = 0.98
        pictures.append(picture)
    return Placement(
        focal=1.0,
        camera_position=camera,
        camera_rotation=still,
        background_position=np.array([0.1 if camera_moves else 0.0, 0, 2.0]),
        background_rotation=np.array([1.0, 0, 0, 0]),
        background_size=np.array([2.4, 1.8]),
        background_picture=texture,
        background_seen=np.ones(texture.shape[:2], bool),
        object_position=np.array(paths).reshape(objects, 4, 3),
        object_rotation=np.tile(still, (objects, 1, 1)),
        object_size=np.full((objects, 2), 0.4) * np.array([[1.0], [1.4]])[:objects],
        object_reference=np.full(objects, 2),
        object_pictures=pictures,
    )


def small_graph(objects: int = 2, camera_moves: bool = False, **model: object) -> AtlasGraph:
    torch.manual_seed(0)
    names = [f"object-{number + 1}" for number in range(objects)]
    times = np.linspace(0, 1, FRAMES)
    return build(small_model(**model), small_placement(objects, camera_moves), (HEIGHT, WIDTH), times, names).eval()


def shake(graph: AtlasGraph, amount: float = 0.3) -> AtlasGraph:
    """Give every parameter some value, as a training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            size = 0.05 if name.split(".")[-1] in ("translation", "turning") else amount
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return graph
