"""The graph of a scene: a camera, a background and objects, rendered ray by ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyscope.scopes.scenes.files import BACKGROUND
from manyscope.scopes.scenes.model.fields import visible_share
from manyscope.scopes.scenes.model.geometry import Path, Poses, directions, meet
from manyscope.scopes.scenes.model.planes import Moment, Planar, Seen, Stage, build_plane
from manyscope.scopes.scenes.placement import Placement
from manyscope.scopes.scenes.settings import ScenesModel
from manyscope.scopes.scenes.splines import basis

_INSIDE = 0.5  # coverage from which a pixel belongs to a mask
_LEAST_POINTS = 4


@dataclass(frozen=True)
class Hits:
    """What m of n rays see of one plane.

    Attributes:
        rays: (m,) int, which of the rays.
        depth: (m,), comparable between planes.
        seen: of these rays.
    """

    rays: Tensor
    depth: Tensor
    seen: Seen


class AtlasGraph(nn.Module):
    """Planes with pictures that move in space before a camera.

    Args:
        settings: sizes, weights and phases.
        placement: what is known before the training.
        size: height and width of a frame in pixels.
        times: (T,) of the clip's frames, in [0, 1].
        objects: names, in the order of the masks.

    Attributes:
        progress: share of the training that is done; from 1 on everything takes part.
    """

    times: Tensor
    sizes: Tensor
    references: Tensor

    def __init__(
        self,
        settings: ScenesModel,
        placement: Placement,
        size: tuple[int, int],
        times: Sequence[float],
        objects: Sequence[str],
    ) -> None:
        super().__init__()
        self.settings, self.size, self.objects = settings, size, list(objects)
        self.focal = placement.focal
        self.progress = 1.0
        self.points = max(_LEAST_POINTS, round(settings.control_points_ratio * len(times)) + 2)
        self.register_buffer("times", torch.as_tensor(times, dtype=torch.float64))
        weight = settings.pose_weight
        sizes = [*placement.object_size, placement.background_size]
        self.register_buffer("sizes", torch.as_tensor(np.array(sizes), dtype=torch.float32))
        self.register_buffer("references", torch.as_tensor(placement.object_reference, dtype=torch.int64))
        seen_from = placement.camera_position.mean(0)
        self.camera = Path(
            torch.as_tensor(placement.camera_position),
            torch.as_tensor(placement.camera_rotation),
            weight,
            float(np.linalg.norm(placement.background_position - seen_from)),
            settings.camera_translation,
            settings.camera_rotation,
        )
        self.paths = nn.ModuleList(
            Path(
                torch.as_tensor(position),
                torch.as_tensor(rotation),
                weight,
                float(np.linalg.norm(position.mean(0) - seen_from)),
                settings.object_translation,
                settings.object_rotation,
            )
            for position, rotation in zip(placement.object_position, placement.object_rotation, strict=True)
        )
        self.background_path = Path(
            torch.as_tensor(placement.background_position)[None],
            torch.as_tensor(placement.background_rotation)[None],
            weight,
            translation=False,
            turning=False,
        )
        self.planes = nn.ModuleList(
            build_plane(settings.object_plane, torch.as_tensor(picture), settings, self.points, len(times))
            for picture in placement.object_pictures
        )
        picture = torch.as_tensor(placement.background_picture)
        self.background = build_plane(settings.background_plane, picture, settings, self.points, len(times))

    @property
    def layers(self) -> list[str]:
        """Names of all layers, the background last."""
        return [*self.objects, BACKGROUND]

    def plane(self, layer: str) -> Planar:
        found = self.background if layer == BACKGROUND else self.planes[self.objects.index(layer)]
        assert isinstance(found, Planar)
        return found

    def path(self, layer: str) -> Path:
        found = self.background_path if layer == BACKGROUND else self.paths[self.objects.index(layer)]
        assert isinstance(found, Path)
        return found

    def reference(self, layer: str) -> int:
        """Position in the clip of the frame that a layer's picture is from; the first for the background."""
        return 0 if layer == BACKGROUND else int(self.references[self.objects.index(layer)])

    def size_of(self, layer: str) -> Tensor:
        """(2,), width and height of a layer's plane."""
        return self.sizes[self.layers.index(layer)]

    @property
    def stage(self) -> Stage:
        """What takes part now."""
        s = self.settings
        moving = self.progress >= s.colour_until
        return Stage(self.progress >= s.poses_until, moving, visible_share(self.progress, s.coarse_to_fine))

    def moment(self, times: Tensor) -> Moment:
        """What the planes are told of (n,) times."""
        rows = torch.as_tensor(basis(times.cpu().numpy(), self.points, beyond=True))
        return Moment(times.to(self.sizes), rows.to(self.sizes))

    def rays(self, places: Tensor) -> Tensor:
        """Directions of the rays through places (n, 2) of a frame."""
        return directions(places, *self.size, self.focal)

    def hit(
        self, layer: str, camera: Poses, plane: Poses, which: Tensor, rays: Tensor, moment: Moment, stage: Stage
    ) -> Hits:
        """What rays see of one layer; the background goes on beyond its border.

        Args:
            camera, plane: at the same times.
            which: (n,) int, the time of each ray.
            rays: (n, 3) directions.
            moment: of these times.
        """
        depth, uv, local = meet(camera, plane, self.size_of(layer), which, rays)
        hits = depth.isfinite()
        if layer != BACKGROUND:
            hits = hits & ((uv >= 0) & (uv <= 1)).all(-1)
        if bool(hits.all()):
            some = torch.arange(len(rays), device=rays.device)
        else:
            some = hits.nonzero()[:, 0]
            depth, uv, local, which = depth[some], uv[some], local[some], which[some]
        return Hits(some, depth, self.plane(layer)(uv, local, moment.at(which), stage))

    def forward(self, places: Tensor, which: Tensor, times: Tensor) -> tuple[Tensor, list[Hits]]:
        """Render rays.

        Args:
            places: (n, 2), x and y in pixels of the frame.
            which: (n,) int, the time of each ray.
            times: (m,) in [0, 1].

        Returns:
            colour: (n, 3), what is seen, from front to back.
            hits: what is seen of each of `layers`.
        """
        camera, moment, rays, stage = self.camera(times), self.moment(times), self.rays(places), self.stage
        hits = [self.hit(layer, camera, self.path(layer)(times), which, rays, moment, stage) for layer in self.layers]
        return composite(hits, len(places)), hits

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Of rays with their true colours and masks, as `manyscope.scopes.scenes.model.rays` gives them: L1 of the
        colour, and of each object's own opacity against its mask where it is known and no nearer object hides it.
        """
        s, count = self.settings, len(batch["places"])
        colour, hits = self(batch["places"], batch["frame"], self.times)
        error = colour - batch["colour"]
        losses = {"colour": error.abs().mean(), "mse": error.detach().square().mean()}
        loss = losses["colour"]
        if self.objects:
            losses["mask"] = self._mask_loss(batch, hits[:-1], count)
            loss = loss + s.mask_weight * losses["mask"]
        changes = [(h, h.seen.change) for h in hits if h.seen.change is not None]
        if s.hidden_penalty and changes and self.objects:
            # Where a layer is hidden nothing says how it changes, and a grid would say anything.
            hidden = hiddenness(hits, count)
            sums = [(hidden[i][h.rays].unsqueeze(1) * c.abs()).mean(1).sum() for i, (h, c) in enumerate(changes)]
            losses["hidden"] = torch.stack(sums).sum() / (len(sums) * count)
            loss = loss + s.hidden_penalty * losses["hidden"]
        if s.flow_penalty:
            losses["flow"] = torch.stack([h.seen.flow.abs().sum() for h in hits]).sum() / (len(hits) * count)
            loss = loss + s.flow_penalty * losses["flow"]
        if s.alpha_penalty and self.objects:
            half = torch.stack([(4 * h.seen.alpha * (1 - h.seen.alpha)).sum() for h in hits[:-1]])
            losses["half_opacity"] = half.sum() / (len(half) * count)
            loss = loss + s.alpha_penalty * losses["half_opacity"]
        # Several processes ask that every parameter take part in every step; those that `idle` names are left alone.
        nothing = torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum()
        return {"loss": loss + 0.0 * nothing, **losses}

    def idle(self) -> list[nn.Parameter]:
        """Parameters that are not to learn in this step."""
        stage, idle = self.stage, list[nn.Parameter]()
        for plane in (*self.planes, self.background):
            assert isinstance(plane, Planar)
            fields = [] if stage.colour else [plane.colour, plane.alpha]
            fields += [] if stage.moving else [plane.flow, plane.view]
            idle += [p for field in fields if field is not None for p in field.parameters()]
        return idle

    def _mask_loss(self, batch: dict[str, Any], hits: Sequence[Hits], count: int) -> Tensor:
        masks, known = batch["masks"], batch["known"]
        depth = torch.stack([spread(h.depth.detach(), h.rays, count, float("inf")) for h in hits], 1)
        alpha = torch.stack([spread(h.seen.alpha, h.rays, count, 0.0) for h in hits], 1)
        # An object whose mask is not known hides what is behind it as far as the graph itself says so.
        covers = torch.where(known, masks, alpha.detach()) > _INSIDE
        front = torch.where(covers, depth, torch.full_like(depth, float("inf"))).amin(1, keepdim=True)
        counts = known & ((masks > _INSIDE) | (front >= depth) | front.isinf())
        return ((alpha - masks).abs() * counts).sum() / (count * len(hits))


def spread(values: Tensor, rays: Tensor, count: int, rest: float) -> Tensor:
    """Values of some rays among all, (count, …); `rest` for the others."""
    if len(rays) == count:
        return values
    full = values.new_full((count, *values.shape[1:]), rest)
    return full.index_put((rays,), values)


def composite(hits: Sequence[Hits], count: int) -> Tensor:
    """The colour of each ray, (count, 3): planes sorted by depth for each ray, from front to back, over black."""
    colour = torch.stack([spread(h.seen.colour, h.rays, count, 0.0) for h in hits])
    alpha = torch.stack([spread(h.seen.alpha, h.rays, count, 0.0) for h in hits])
    if len(hits) > 1:
        order = _order(hits, count)
        alpha = alpha.gather(0, order)
        colour = colour.gather(0, order.unsqueeze(-1).expand_as(colour))
    return ((alpha * _let_through(alpha)).unsqueeze(-1) * colour).sum(0)


@torch.no_grad()
def hiddenness(hits: Sequence[Hits], count: int) -> Tensor:
    """How much of each layer is hidden by nearer ones, (layers, count) in [0, 1]."""
    order = _order(hits, count)
    alpha = torch.stack([spread(h.seen.alpha, h.rays, count, 0.0) for h in hits]).gather(0, order)
    return torch.empty_like(alpha).scatter_(0, order, 1 - _let_through(alpha))


def _order(hits: Sequence[Hits], count: int) -> Tensor:
    depth = torch.stack([spread(h.depth.detach(), h.rays, count, float("inf")) for h in hits])
    return depth.argsort(dim=0, stable=True)


def _let_through(alpha: Tensor) -> Tensor:
    """What reaches each of the layers, which are in their order from the nearest, through those before it."""
    return F.pad(torch.cumprod(1 - alpha, 0)[:-1], (0, 0, 1, 0), value=1.0)
