"""Random views of a stamp under which a galaxy stays the same galaxy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyscope.errors import DataError
from manyscope.nn.across import Share, gather, share_of

_SKY_RMS = 2.0  # light of an injected neighbour counts above this many rms
_NEIGHBOUR_PX = (10.0, 17.0)  # distance of an injected neighbour, in pixels of a 32 px view


@dataclass(frozen=True)
class Views:
    """How far a view may differ from its stamp. Random numbers are those of the batch, whatever process holds a stamp.

    Attributes:
        shift_px: largest shift along each axis.
        noise_rms: largest rms of added noise; uniform from zero.
        sky_rms: rms of an offset of the sky in each band.
        neighbour: share of the views with another stamp's light beside the galaxy.
        zoom: smallest share of the area that a view shows, magnified; the place of the crop is random, its sides
            differ by up to a third. 1 is none.
        scale: largest change of the logarithm of the size about the middle.
        brightness: largest change of the logarithm of the light in all bands.
        colour: the same for each band by itself.
        blur_px: largest standard deviation of a Gaussian blur, in pixels of a 32 px view; half of the views have one.
        grey: share of the views whose bands are all their mean.
    """

    shift_px: float = 1.0
    noise_rms: float = 0.5
    sky_rms: float = 0.2
    neighbour: float = 0.3
    zoom: float = 1.0
    scale: float = 0.0
    brightness: float = 0.0
    colour: float = 0.0
    blur_px: float = 0.0
    grey: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.zoom <= 1:
            raise ValueError(f"views.zoom must be above 0 and at most 1, found {self.zoom}")

    def __call__(self, stamps: Tensor, size: tuple[int, int]) -> Tensor:
        """(n, bands, h, w) stamps in rms of the sky -> (n, bands, *size) views in the same unit, without transforms.

        Each is turned by any angle about the middle pixel, mirrored or not, shifted, and made noisier; and what the
        further attributes ask for.
        """
        share, device = share_of(len(stamps)), stamps.device
        shift = (2 * share.rand(2, device=device) - 1) * self.shift_px
        pose = _poses(share, share.samples, device)
        if self.scale:
            pose = pose * (self.scale * (2 * share.rand(1, 1, device=device) - 1)).exp()
        if self.zoom < 1:
            pose, moved = self._zoomed(pose, size, share)
            shift = shift + moved
        view = warp(stamps, pose[share.mine], shift[share.mine], size)
        beside = (share.rand(device=device) < self.neighbour).nonzero()[:, 0]
        if len(beside):
            view = self._crowded(view, stamps, beside, share)
        view = self._coloured(view, share)
        if self.blur_px:
            sigma = self.blur_px * min(size) / 32 * (2 * share.rand(device=device) - 1)[share.mine]
            view = blurred(view, sigma.clamp(min=0), reach=math.ceil(2 * self.blur_px * min(size) / 32))
        rms = self.noise_rms * share.rand(1, 1, 1, device=device)[share.mine]
        sky = self.sky_rms * share.randn(stamps.shape[1], 1, 1, device=device)[share.mine]
        return view + rms * share.randn(*view.shape[1:], device=device)[share.mine] + sky

    def _zoomed(self, pose: Tensor, size: tuple[int, int], share: Share) -> tuple[Tensor, Tensor]:
        """Poses that magnify, and shifts in pixels of the view, both (samples, 2, …): the crop lies within the view."""
        u = share.rand(2, device=pose.device)
        area, ratio = self.zoom + (1 - self.zoom) * u[:, 0], ((2 * u[:, 1] - 1) * math.log(4 / 3)).exp()
        side = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)  # of the view, x and y
        place = 2 * share.rand(2, device=pose.device) - 1
        return pose * side[:, None], place * (1 / side - 1) * pose.new_tensor([size[1], size[0]]) / 2

    def _coloured(self, view: Tensor, share: Share) -> Tensor:
        """The views with light that was changed in all bands or in each, and some of them without colour."""
        device = view.device
        for size, bands in ((self.brightness, 1), (self.colour, view.shape[1])):
            if size:
                change = size * (2 * share.rand(bands, 1, 1, device=device) - 1)
                view = view * change[share.mine].exp()
        if self.grey:
            grey = (share.rand(1, 1, 1, device=device) < self.grey)[share.mine]
            view = torch.where(grey, view.mean(1, keepdim=True), view)
        return view

    def _crowded(self, view: Tensor, stamps: Tensor, beside: Tensor, share: Share) -> Tensor:
        """The views with the light of any other stamp of the batch next to the galaxies `beside`, of all processes."""
        size, device, n = view.shape[-2:], view.device, len(beside)
        near, far = (r * min(size) / 32 for r in _NEIGHBOUR_PX)
        angle = 2 * math.pi * _uniform(share, n, device)
        distance = near + (far - near) * _uniform(share, n, device)
        away = distance[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        donors = torch.randint(share.samples, (n,), device=device, generator=share.generator(device))
        poses = _poses(share, n, device)
        mine = beside % share.processes == share.process
        donated = gather(stamps)[donors[mine]]
        light = warp(donated * (donated > _SKY_RMS), poses[mine], away[mine], (size[0], size[1]))
        return view.index_add(0, beside[mine] // share.processes, light)


class TwoViews(nn.Module):
    """A network that learns from pairs of views of the same stamp.

    Args:
        size: height and width of the images.
        views: how far the views may differ.

    Attributes:
        transforms: what makes images of stamps; it must be set before the first loss.
    """

    def __init__(self, size: tuple[int, int], views: Views) -> None:
        super().__init__()
        self.size, self.views = size, views
        self.transforms: Callable[[Tensor], Tensor] | None = None

    def pair(self, batch: dict[str, Any]) -> Tensor:
        """The first views of a batch of n stamps, then the second ones, (2 n, bands, height, width).

        Raises:
            DataError: one sample only while training: there is nothing to tell it from.
        """
        stamps = batch["stamps"]
        if self.transforms is None:
            raise RuntimeError("transforms must be set before the first loss")
        if self.training and share_of(len(stamps)).samples < 2:
            raise DataError("a batch of one sample cannot be contrasted", remedy="raise train.batch_size")
        return torch.cat([self.transforms(self.views(stamps, self.size)) for _ in range(2)])


def blurred(images: Tensor, sigma_px: Tensor, reach: int) -> Tensor:
    """Images (n, bands, h, w), each blurred by a Gaussian of its own standard deviation, (n,); 0 leaves one as it is.

    Args:
        reach: pixels on each side that are looked at; the edge is repeated beyond itself.
    """
    offset = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weight = (-offset.square() / (2 * sigma_px[:, None].square()).clamp(min=1e-12)).exp()
    weight = weight / weight.sum(1, keepdim=True)
    for axis in (-1, -2):
        sides = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
        moved = F.pad(images, sides, mode="replicate").unfold(axis, 2 * reach + 1, 1)  # (n, bands, h, w, offsets)
        images = torch.einsum("nbhwk,nk->nbhw", moved, weight)
    return images


def warp(stamps: Tensor, pose: Tensor, shift_px: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample stamps about their middle pixel (h // 2, w // 2), bilinearly; beyond the edge is sky.

    Args:
        stamps: (n, bands, h, w).
        pose: (n, 2, 2) matrices that take (x, y) of the output to those of the stamp.
        shift_px: (n, 2) x and y by which the content moves in the output.
        size: height and width of the output.

    Returns:
        (n, bands, *size); the stamp's middle pixel lies on the output's, but for the shift.
    """
    (height, width), device = size, stamps.device
    y = torch.arange(height, device=device, dtype=stamps.dtype) - height // 2
    x = torch.arange(width, device=device, dtype=stamps.dtype) - width // 2
    offset = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (height, width, 2) as x, y
    at = torch.einsum("nij,nhwj->nhwi", pose, offset[None] - shift_px[:, None, None])
    extent = at.new_tensor([stamps.shape[-1], stamps.shape[-2]])
    grid = (2 * (at + extent.div(2, rounding_mode="floor")) + 1) / extent - 1
    return F.grid_sample(stamps, grid, align_corners=False)


def _poses(share: Share, n: int, device: torch.device) -> Tensor:
    """Random rotations, half of them mirrored, (n, 2, 2)."""
    angle = 2 * math.pi * _uniform(share, n, device)
    mirror = torch.randint(0, 2, (n,), device=device, generator=share.generator(device)) * 2.0 - 1
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos * mirror, -sin], 1), torch.stack([sin * mirror, cos], 1)], 1)


def _uniform(share: Share, n: int, device: torch.device) -> Tensor:
    return torch.rand(n, device=device, generator=share.generator(device))
