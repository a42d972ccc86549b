"""Where tokens look: a code of their directions, and which view owns a direction."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from manyscope.scopes.panoramas.views.geometry import Views, project, rays

_INITIAL_STD = 0.05
_TIE = 9  # decimals of a cosine; angles that differ by less are equal


class DirectionCode(nn.Module):
    """A learned linear function of the harmonics of a direction, without a seam.

    The harmonics of longitude and latitude are sin k lon, cos k lon for k = 1, …, harmonics; sin lat, cos lat; and 1
    for a token of a global view, 0 for others. At a pole, where every longitude is as good, those of the longitude are
    0.

    Args:
        harmonics: waves around the horizon.
        width: of the code.
    """

    def __init__(self, harmonics: int, width: int) -> None:
        super().__init__()
        self.harmonics = harmonics
        self.linear = nn.Linear(2 * harmonics + 3, width, bias=False)
        nn.init.normal_(self.linear.weight, std=_INITIAL_STD)

    def forward(self, directions: Tensor, is_global: Tensor) -> Tensor:
        """
        Args:
            directions: unit rays (…, 3), x right, y up, z forward.
            is_global: (…).

        Returns:
            (…, width).
        """
        x, y, z = directions.unbind(-1)
        across = torch.hypot(x, z)
        floor = torch.finfo(across.dtype).eps
        turn = torch.complex(z, x) / across.clamp(min=floor)  # e^(i lon): no angle is computed, so there is no seam
        waves = torch.stack([turn**k for k in range(1, self.harmonics + 1)], -1)
        parts = (waves.imag, waves.real, torch.stack([y, across, is_global.to(y.dtype)], -1))
        code: Tensor = self.linear(torch.cat(parts, -1).to(self.linear.weight.dtype))
        return code


def nearest_owner(views: Views, grid: int) -> np.ndarray:
    """Which tokens are kept so that a place that several views see is kept once, (views, grid, grid) bool.

    Of the views that see a token's middle, that view owns it whose own middle is nearest in angle, the first of those
    that are equally near; a token is kept in the view that owns it. Global views keep all of theirs, and own nothing.
    """
    directions = views.token_rays(grid)
    kept = np.ones(directions.shape[:-1], bool)
    parts = [index for index, view in enumerate(views.views) if not view.is_global]
    middles = np.stack([rays(view, np.zeros(()), np.zeros(())) for view in views.views])
    for own in parts:
        nearness = np.stack([
            np.where(
                (index == own) | project(views.views[index], directions[own])[1],
                (directions[own] @ middles[index]).round(_TIE),
                -np.inf,
            )
            for index in parts
        ])  # fmt: skip
        kept[own] = nearness.argmax(0) == parts.index(own)
    return kept
