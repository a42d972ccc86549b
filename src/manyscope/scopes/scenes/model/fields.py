"""Fields on a plane: a hash grid with a small network behind it, which starts as zero everywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from manyscope.nn.hash_grid import HashGrid, Network
from manyscope.scopes.scenes.settings import FieldSettings, ScenesModel

_NAG = {"features": 4, "base": 4, "scale": 1.61, "width": 64}
# The last four are those of Neural Atlas Graphs; "cpu" has its finest level at about the width of a small frame.
PRESETS = {
    "cpu": FieldSettings(),
    "tiny": FieldSettings(**{**_NAG, "width": 32}, levels=6, log2_table=12, layers=3),
    "small": FieldSettings(**_NAG, levels=8, log2_table=13, layers=3),
    "medium": FieldSettings(**_NAG, levels=12, log2_table=15, layers=4),
    "large": FieldSettings(**_NAG, levels=16, log2_table=17, layers=5),
}
KINDS = ("colour", "alpha", "flow", "view")


def field_settings(model: ScenesModel, kind: str) -> FieldSettings:
    """Those of the field "colour", "alpha", "flow" or "view": given, or of the preset."""
    given: FieldSettings | None = getattr(model, kind)
    return PRESETS[model.preset] if given is None else given


class Field(nn.Module):
    """
    Args:
        dimensions: of the places, each coordinate in [0, 1].
        outputs: numbers at a place.
    """

    def __init__(self, dimensions: int, outputs: int, settings: FieldSettings) -> None:
        super().__init__()
        s = settings
        # Drawn from the generator that seeds the network, so that no two grids are alike.
        seeds = torch.randint(2**31, (2,)).tolist()
        self.grid = HashGrid(
            dimensions, s.levels, s.features, s.log2_table, s.base, s.scale, s.interpolation, seed=seeds[0]
        )
        self.network = Network(self.grid.outputs, outputs, s.width, s.layers, seed=seeds[1])

    def forward(self, places: Tensor, share: float = 1.0) -> Tensor:
        """(n, outputs) at places (n, dimensions), of which the coarsest levels alone are seen while `share` < 1."""
        visible = None if share >= 1 else math.ceil((0.4 + 0.6 * share) * self.grid.outputs)
        return self.network(self.grid(places.clamp(0, 1), visible))


def visible_share(progress: float, until: float) -> float:
    """How much of a grid is seen when a share `progress` of the training is done, rising along a sine until `until`."""
    if progress >= until:
        return 1.0
    return min(1.0, 0.05 + math.sin(math.pi / 2 * progress / until))
