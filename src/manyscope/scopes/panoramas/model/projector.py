"""From the resampler's tokens to the language model's, each with a code of where it looks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from manyscope.errors import SettingsError
from manyscope.scopes.panoramas.model.positions import DirectionCode, nearest_owner
from manyscope.scopes.panoramas.settings import ProjectorSettings
from manyscope.scopes.panoramas.views.geometry import Views, rays


class Projector(nn.Module):
    """
    Args:
        grid: side of the grid of a view's tokens, or None where they have none.
        tokens: of a view.
        width: of these.
        output: width of the language model.

    Attributes:
        views: for each token of its output the view that it is of.
        tokens: of a view, with those that `drop_overlap` leaves out.
        shared_place: whether all stand at one place of the text.

    Raises:
        SettingsError: the grid cannot be cut into so many parts.
    """

    _kept: Tensor

    def __init__(
        self, settings: ProjectorSettings, views: Views, grid: int | None, tokens: int, width: int, output: int
    ) -> None:
        super().__init__()
        self._grid, self._parts, side = grid, settings.parts, grid
        self.shared_place = settings.order == "shared"
        if settings.parts is not None:
            if grid is None or grid % settings.parts:
                found = "no grid" if grid is None else f"a grid of {grid} x {grid} tokens"
                raise SettingsError(f"model.projector.parts: {settings.parts} parts of {found} along an edge")
            side, tokens = settings.parts, settings.parts**2
        self.tokens = tokens
        if settings.parts is None:
            self.map: nn.Module = nn.Linear(width, output)
        else:
            assert grid is not None
            last = nn.LayerNorm(output)
            nn.init.constant_(last.weight, settings.gain)
            self.map = nn.Sequential(
                nn.Linear(width * (grid // settings.parts) ** 2, settings.hidden), nn.GELU(),
                nn.Linear(settings.hidden, output), last,
            )  # fmt: skip
        self.direction = DirectionCode(settings.harmonics, output) if settings.position == "direction" else None
        if side is None:  # without a grid a token is of all its view
            seen = np.stack([rays(view, np.zeros(1), np.zeros(1))[0] for view in views.views])
            look = np.repeat(seen[:, None], tokens, 1)
        else:
            look = views.token_rays(side).reshape(len(views), tokens, 3)
        kept = np.ones(len(views) * tokens, bool)
        if settings.drop_overlap:
            if side is None:
                raise SettingsError("model.projector.drop_overlap: the resampler's tokens have no place of their own")
            kept = nearest_owner(views, side).reshape(-1)
            if not kept.reshape(len(views), -1).any(1).all():
                raise SettingsError(
                    f"model.projector.drop_overlap: of a view with {side} x {side} tokens nothing is left; give it more"
                )
        view_of = np.repeat(np.arange(len(views)), tokens)[kept]
        self.views: list[int] = view_of.tolist()
        whole = np.array([view.is_global for view in views.views], np.float32)[view_of]
        self.register_buffer("_kept", torch.from_numpy(np.flatnonzero(kept)), persistent=False)
        self.register_buffer("_look", torch.from_numpy(look.reshape(-1, 3)[kept].astype(np.float32)), persistent=False)
        self.register_buffer("_whole", torch.from_numpy(whole), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """
        Args:
            tokens: (panoramas, views, tokens, width).

        Returns:
            (panoramas, tokens of all views, output), view by view, each row by row.
        """
        if self._parts is not None:
            assert self._grid is not None
            n, p = self._parts, self._grid // self._parts
            grid = tokens.unflatten(2, (n, p, n, p))
            tokens = grid.transpose(3, 4).flatten(2, 3).flatten(3)
        projected = self.map(tokens).flatten(1, 2)[:, self._kept]
        if self.direction is None:
            return projected
        return projected + self.direction(self._look, self._whole)

    def spread(self, known: Tensor) -> Tensor:
        """What is known of each token, (panoramas, views, tokens), for those of the output, (panoramas, all)."""
        return known.flatten(1)[:, self._kept]
