"""A description of images that a rotation does not change: amplitudes of the light around rings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The inner rings resolve cores of one pixel, the outer ones faint outskirts; in pixels of a 32 px image.
_RADII_PX = (0.0, 0.8, 1.6, 2.4, 3.3, 4.3, 5.5, 7.0, 9.0)
# Amplitudes are some times smaller than ring means; doubled, they carry as much variance.
_WAVE_WEIGHT = 2.0


class Rings(nn.Module):
    """Fourier amplitudes around rings about the middle pixel (height // 2, width // 2).

    A rotation of the image shifts the light along each ring, which changes the phases of its Fourier series and not
    their amplitudes. Order 0 (the ring's mean) is kept for every band and for the mean of the bands; orders 1 to
    `orders` for the mean of the bands, which is the deepest image.

    Args:
        shape: (bands, height, width) of the images.
        angles: points on each ring.
        orders: highest Fourier order.
    """

    grid: Tensor

    def __init__(self, shape: tuple[int, int, int], angles: int = 24, orders: int = 4) -> None:
        super().__init__()
        bands, height, width = shape
        radius = torch.tensor(_RADII_PX)[:, None] * min(height, width) / 32
        angle = torch.arange(angles) * 2 * math.pi / angles
        x, y = radius * angle.cos() + width // 2, radius * angle.sin() + height // 2
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)  # pixel centres, as grid_sample has
        self.register_buffer("grid", grid, persistent=False)  # (rings, angles, 2)
        self.orders = orders
        self.features = len(_RADII_PX) * (bands + 1) + (len(_RADII_PX) - 1) * orders

    def forward(self, images: Tensor) -> Tensor:
        """(n, bands, height, width) -> (n, features)."""
        images = torch.cat([images, images.mean(1, keepdim=True)], 1)
        grid = self.grid.expand(images.shape[0], -1, -1, -1)
        around = F.grid_sample(images, grid.to(images.dtype), align_corners=False)  # (n, bands + 1, rings, angles)
        # Complex numbers as pairs, and the batch's size from its shape: as ONNX can express them.
        series = torch.view_as_real(torch.fft.rfft(around.float(), dim=-1)) / around.shape[-1]
        means = series[..., 0, 0]
        waves = torch.linalg.vector_norm(series[:, -1, 1:, 1 : self.orders + 1], dim=-1)  # the innermost is a point
        return torch.cat([means.flatten(1), _WAVE_WEIGHT * waves.flatten(1)], 1)


class Whitening(nn.Module):
    """The leading principal components of training features, each brought to unit variance.

    Until `fit` is called it passes the leading features through.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, features: int, components: int) -> None:
        super().__init__()
        if not 0 < components <= features:
            raise TypeError(f"{components} components of {features} features")
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("projection", torch.eye(features, components))

    def fit(self, features: Tensor) -> None:
        """Learn from (n, features)."""
        centred = (features - features.mean(0)).double()
        _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
        count = self.projection.shape[1]
        axes, singular = axes[:count], singular[:count]
        signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # the SVD leaves them open
        deviation = (singular / math.sqrt(max(1, len(features) - 1))).clamp_min(1e-6)
        projection = torch.zeros_like(self.projection)
        projection[:, : len(axes)] = ((axes * signs).T / deviation).to(projection.dtype)
        self.mean.copy_(features.mean(0))
        self.projection.copy_(projection)

    def forward(self, features: Tensor) -> Tensor:
        """(n, features) -> (n, components)."""
        return (features - self.mean) @ self.projection
