"""Random views of a stamp under which a galaxy stays the same galaxy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """

    shift_px: float = 1.0
    noise_rms: float = 0.5
    sky_rms: float = 0.2
    neighbour: float = 0.3

    def __call__(self, stamps: Tensor, size: tuple[int, int]) -> Tensor:
        """(n, bands, h, w) stamps in rms of the sky -> (n, bands, *size) views in the same unit, without transforms.

        Each is turned by any angle about the middle pixel, mirrored or not, shifted, and made noisier.
        """
        share, device = share_of(len(stamps)), stamps.device
        shift = (2 * share.rand(2, device=device) - 1) * self.shift_px
        view = warp(stamps, _poses(share, share.samples, device)[share.mine], shift[share.mine], size)
        beside = (share.rand(device=device) < self.neighbour).nonzero()[:, 0]
        if len(beside):
            view = self._crowded(view, stamps, beside, share)
        rms = self.noise_rms * share.rand(1, 1, 1, device=device)[share.mine]
        sky = self.sky_rms * share.randn(stamps.shape[1], 1, 1, device=device)[share.mine]
        return view + rms * share.randn(*view.shape[1:], device=device)[share.mine] + sky

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


def warp(stamps: Tensor, pose: Tensor, shift_px: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample stamps about their middle pixel (h // 2, w // 2), bilinearly; beyond the edge is sky.

    Args:
        stamps: (n, bands, h, w).
        pose: (n, 2, 2) orthogonal matrices that act on (x, y).
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
