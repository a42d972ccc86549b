"""A plane with a picture: what a ray sees where it meets the plane."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyscope.errors import ManyscopeError
from manyscope.scopes.scenes.model.fields import Field, field_settings
from manyscope.scopes.scenes.model.geometry import inclination
from manyscope.scopes.scenes.model.names import PLANES
from manyscope.scopes.scenes.settings import ScenesModel

_LEAST_ALPHA = 1e-3
_FRAMES_A_CELL = 1.0  # of the finest level of a field over place and time


@dataclass(frozen=True)
class Stage:
    """What of a plane takes part at a moment of the training.

    Attributes:
        colour: whether the fields of colour and opacity do.
        moving: whether those of displacement and change do.
        share: how much of the grids of the latter is seen.
    """

    colour: bool = True
    moving: bool = True
    share: float = 1.0


@dataclass(frozen=True)
class Seen:
    """What n rays see of a plane.

    Attributes:
        colour: (n, 3), not limited to [0, 1].
        alpha: (n,) in [0, 1].
        place: (n, 2), where on the picture, after displacement.
        flow: (n, 2), the displacement.
        change: (n, 3 or 4), what the field of change adds to colour and logit of opacity; None while it takes no part.
    """

    colour: Tensor
    alpha: Tensor
    place: Tensor
    flow: Tensor
    change: Tensor | None = None


@dataclass(frozen=True)
class Moment:
    """The times of n rays.

    Attributes:
        time: (n,) in [0, 1].
        basis: (n, points), the row of a spline's basis.
    """

    time: Tensor
    basis: Tensor

    def at(self, which: Tensor) -> Moment:
        """Those at some positions."""
        return Moment(self.time[which], self.basis[which])


class Planar(nn.Module):
    """A picture that is displaced, corrected in colour and opacity, and changes slowly.

    With place = uv + flow(uv, t): colour = picture(place) + w_c colour(place) + w_v view(place, t or angle), and
    opacity the sigmoid of logit(picture's opacity) + w_a alpha(place) + w_v view, as in Neural Atlas Graphs (Schneider
    et al., 2025, https://arxiv.org/abs/2509.16336). Displacement and change over time are Catmull-Rom splines whose
    control points are fields. All fields are zero at first.

    Args:
        picture: (h, w, 3), or (h, w, 4) with opacity, in [0, 1]; without opacity the plane is opaque.
        points: control points of displacement and change over time, at least 4.
        frames: of the clip.
    """

    picture: Tensor

    def __init__(self, picture: Tensor, model: ScenesModel, points: int, frames: int) -> None:
        super().__init__()
        self.opaque, self.points, self.model = picture.shape[-1] == 3, points, model
        channels = picture.float().permute(2, 0, 1)
        if not self.opaque:
            alpha = torch.logit(channels[3:].clamp(_LEAST_ALPHA, 1 - _LEAST_ALPHA))
            channels = torch.cat([channels[:3], alpha])
        self.register_buffer("picture", channels.contiguous())
        self.colour = Field(2, 3, field_settings(model, "colour"))
        self.alpha = None if self.opaque else Field(2, 1, field_settings(model, "alpha"))
        self.flow = Field(2, 2 * points, field_settings(model, "flow"))
        self._changing = len(channels)
        self.view: Field | None = None
        if model.view_by == "time":
            self.view = Field(2, self._changing * points, field_settings(model, "view"))
        elif model.view_by in ("angle", "volume"):
            dimensions = 4 if model.view_by == "angle" else 3
            self.view = Field(dimensions, self._changing, field_settings(model, "view"))
        finest = field_settings(model, "view")
        self._time_scale = (frames - 1) / (_FRAMES_A_CELL * finest.base * finest.scale ** (finest.levels - 1))

    def forward(self, uv: Tensor, local: Tensor, moment: Moment, stage: Stage) -> Seen:
        """
        Args:
            uv: (n, 2), where the rays meet the plane.
            local: (n, 3), their directions in its axes.
            moment: of each ray.
        """
        model = self.model
        flow = torch.zeros_like(uv)
        if stage.moving:
            control = self.flow(uv, stage.share).view(len(uv), self.points, 2)
            flow = model.flow_weight * (control * moment.basis.unsqueeze(-1)).sum(1)
        place = uv + flow
        values = sample(self.picture, place)
        if stage.colour:
            values = values + self.correction(place)
        change = None
        if stage.moving and self.view is not None:
            change = model.view_weight * self._change(place, local, moment, stage.share)
            values = values + change
        alpha = uv.new_ones(len(uv)) if self.opaque else torch.sigmoid(values[:, 3])
        return Seen(values[:, :3], alpha, place, flow, change)

    def correction(self, place: Tensor) -> Tensor:
        """What the fields of colour and opacity add to the picture, (n, 3 or 4), opacity in logits."""
        colour = self.model.colour_weight * self.colour(place)
        if self.alpha is None:
            return colour
        return torch.cat([colour, self.model.alpha_weight * self.alpha(place)], -1)

    def _change(self, place: Tensor, local: Tensor, moment: Moment, share: float) -> Tensor:
        assert self.view is not None
        if self.model.view_by == "volume":
            return self.view(torch.cat([place, self._time_scale * moment.time.unsqueeze(-1)], -1), share)
        if self.model.view_by == "angle":
            return self.view(torch.cat([place, inclination(local)], -1), share)
        control = self.view(place, share).view(len(place), self.points, self._changing)
        return (control * moment.basis.unsqueeze(-1)).sum(1)


def sample(picture: Tensor, place: Tensor) -> Tensor:
    """A picture (channels, h, w) at places (n, 2) in [0, 1], bilinear, its border going on outside; (n, channels)."""
    grid = (2 * place - 1).view(1, 1, -1, 2)
    found = F.grid_sample(picture.unsqueeze(0), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0].t()


def build_plane(name: str, picture: Tensor, model: ScenesModel, points: int, frames: int) -> Planar:
    """
    Raises:
        ManyscopeError: the name is unknown, or what it names is not a class derived from Planar.
    """
    found = PLANES.find(name)
    if not (isinstance(found, type) and issubclass(found, Planar)):
        raise ManyscopeError(f"{found!r} is no plane", place=name, allowed="a class derived from Planar")
    return found(picture, model, points, frames)
