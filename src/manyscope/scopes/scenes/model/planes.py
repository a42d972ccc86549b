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
    """

    colour: Tensor
    alpha: Tensor
    place: Tensor
    flow: Tensor


class Planar(nn.Module):
    """A picture that is displaced, corrected in colour and opacity, and changes slowly.

    With place = uv + flow(uv, t): colour = picture(place) + w_c colour(place) + w_v view(place, t or angle), and
    opacity the sigmoid of logit(picture's opacity) + w_a alpha(place) + w_v view, as in Neural Atlas Graphs (Schneider
    et al., 2025, https://arxiv.org/abs/2509.16336). Displacement and change over time are Catmull-Rom splines whose
    control points are fields. All fields are zero at first.

    Args:
        picture: (h, w, 3), or (h, w, 4) with opacity, in [0, 1]; without opacity the plane is opaque.
        points: control points of displacement and change over time, at least 4.
    """

    picture: Tensor

    def __init__(self, picture: Tensor, model: ScenesModel, points: int) -> None:
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
        elif model.view_by == "angle":
            self.view = Field(4, self._changing, field_settings(model, "view"))

    def forward(self, uv: Tensor, local: Tensor, in_time: Tensor, stage: Stage) -> Seen:
        """
        Args:
            uv: (n, 2), where the rays meet the plane.
            local: (n, 3), their directions in its axes.
            in_time: (n, points), the row of the spline's basis at the time of each ray.
        """
        model = self.model
        flow = torch.zeros_like(uv)
        if stage.moving:
            control = self.flow(uv, stage.share).view(len(uv), self.points, 2)
            flow = model.flow_weight * (control * in_time.unsqueeze(-1)).sum(1)
        place = uv + flow
        values = sample(self.picture, place)
        if stage.colour:
            values = values + self.correction(place)
        if stage.moving and self.view is not None:
            values = values + model.view_weight * self._change(place, local, in_time, stage.share)
        alpha = uv.new_ones(len(uv)) if self.opaque else torch.sigmoid(values[:, 3])
        return Seen(values[:, :3], alpha, place, flow)

    def correction(self, place: Tensor) -> Tensor:
        """What the fields of colour and opacity add to the picture, (n, 3 or 4), opacity in logits."""
        colour = self.model.colour_weight * self.colour(place)
        if self.alpha is None:
            return colour
        return torch.cat([colour, self.model.alpha_weight * self.alpha(place)], -1)

    def _change(self, place: Tensor, local: Tensor, in_time: Tensor, share: float) -> Tensor:
        assert self.view is not None
        if self.model.view_by == "angle":
            return self.view(torch.cat([place, inclination(local)], -1), share)
        control = self.view(place, share).view(len(place), self.points, self._changing)
        return (control * in_time.unsqueeze(-1)).sum(1)


def sample(picture: Tensor, place: Tensor) -> Tensor:
    """A picture (channels, h, w) at places (n, 2) in [0, 1], bilinear, its border going on outside; (n, channels)."""
    grid = (2 * place - 1).view(1, 1, -1, 2)
    found = F.grid_sample(picture.unsqueeze(0), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0].t()


def build_plane(name: str, picture: Tensor, model: ScenesModel, points: int) -> nn.Module:
    """
    Raises:
        ManyscopeError: the name is unknown, or what it names is not a class of planes.
    """
    found = PLANES.find(name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ManyscopeError(f"{found!r} is no plane", place=name, allowed="a class such as Planar")
    return found(picture, model, points)
