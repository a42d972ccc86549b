"""Fully convolutional autoencoders as they are used on large cutouts of the Hyper Suprime-Cam survey.

Their bottleneck is a map of 256 channels; the latent vector is its mean over the pixels, since the map itself would be
hundreds of thousands of numbers. Images may have any size and number of bands.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from manyscope.scopes.galaxies.model.layers import (
    check_error,
    check_size,
    last_activation,
    middle_of,
    reconstruction_losses,
)


class HscAutoencoder(nn.Module):
    """Three strided convolutions to 64, 128 and 256 channels, mirrored on the way back.

    Args:
        shape: (bands, height, width) of the images, at least 8 px.
        channels: channels of the first convolution; doubled by each further one.
        final: activation of the reconstruction: tanh, sigmoid, arcsinh or identity. A sigmoid draws no pixel below
            zero.
        loss: "mean" over everything, or "sum" over the bands, then the mean over pixels and batch.
    """

    def __init__(
        self, shape: tuple[int, int, int], channels: int = 64, final: str = "sigmoid", loss: str = "mean"
    ) -> None:
        super().__init__()
        check_size(shape, 8)
        check_error(loss)
        bands, c = shape[0], channels
        self.size, self.loss = shape[1:], loss
        self.encoder = nn.Sequential(
            nn.Conv2d(bands, c, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(c, 2 * c, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * c, 4 * c, 3, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4 * c, 2 * c, 3, 2, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(2 * c, c, 3, 2, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(c, bands, 3, 2, 1, 1), last_activation(final),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """(n, bands, height, width) -> (n, 4 * channels)."""
        return self.encoder(images).mean((2, 3))

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The latent vectors (n, 4 * channels) and the reconstructions (n, bands, height, width)."""
        seen = self.encoder(images)
        return seen.mean((2, 3)), middle_of(self.decoder(seen), (self.size[0], self.size[1]))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The squared error of the reconstruction."""
        return reconstruction_losses(self.reconstruct(batch["images"])[1], batch["images"], self.loss)


class HscDcae(nn.Module):
    """Convolutions to 32, 64, 128 and 256 channels with three halvings, and transposed convolutions with additive skips
    on the way back. The skips reach around the bottleneck, as those of `DcaeSkip` do.

    Args:
        shape: (bands, height, width) of the images, at least 8 px.
        channels: channels of the first convolution; doubled by each further one.
        final: activation of the reconstruction: tanh, sigmoid, arcsinh or identity.
        loss: "mean" over everything, or "sum" over the bands, then the mean over pixels and batch.
    """

    def __init__(
        self, shape: tuple[int, int, int], channels: int = 32, final: str = "tanh", loss: str = "mean"
    ) -> None:
        super().__init__()
        check_size(shape, 8)
        check_error(loss)
        self.loss = loss
        widths = [channels * 2**i for i in range(4)]
        self.down = nn.ModuleList(nn.Conv2d(i, o, 3, 1, 1) for i, o in zip([shape[0], *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(widths[i + 1], widths[i], 3, 2, 1, 1) for i in (2, 1, 0))
        self.last = nn.Sequential(nn.Conv2d(channels, shape[0], 3, 1, 1), last_activation(final))

    def _encoded(self, images: Tensor) -> list[Tensor]:
        """What the four convolutions found, the largest first."""
        levels = [F.relu(self.down[0](images))]
        for convolution in self.down[1:]:
            levels.append(F.relu(convolution(F.max_pool2d(levels[-1], 2))))
        return levels

    def forward(self, images: Tensor) -> Tensor:
        """(n, bands, height, width) -> (n, 8 * channels)."""
        return self._encoded(images)[3].mean((2, 3))

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The latent vectors (n, 8 * channels) and the reconstructions (n, bands, height, width)."""
        *skips, seen = self._encoded(images)
        latent = seen.mean((2, 3))
        for skip, convolution in zip(reversed(skips), self.up, strict=True):
            wider = convolution(seen)
            # A halving drops an odd last row: what is missing is drawn by the skip.
            wider = F.pad(wider, (0, skip.shape[-1] - wider.shape[-1], 0, skip.shape[-2] - wider.shape[-2]))
            seen = F.relu(wider + skip)
        return latent, self.last(seen)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The squared error of the reconstruction."""
        return reconstruction_losses(self.reconstruct(batch["images"])[1], batch["images"], self.loss)
