"""Names of models, planes and samplers."""

from __future__ import annotations

from manyscope.registry import Registry

MODELS = Registry(
    "scene model", {"atlas_graph": "manyscope.scopes.scenes.model.graph:AtlasGraph"}, group="manyscope.scene_models"
)
PLANES = Registry("plane", {"planar": "manyscope.scopes.scenes.model.planes:Planar"}, group="manyscope.scene_planes")
SAMPLERS = Registry(
    "sampler",
    {
        "pixels": "manyscope.scopes.scenes.model.rays:Pixels",
        "uv_grid": "manyscope.scopes.scenes.model.rays:UvGrid",
    },
    group="manyscope.scene_samplers",
)
