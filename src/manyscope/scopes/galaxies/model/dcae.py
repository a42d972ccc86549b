"""Deep convolutional autoencoders with a bottleneck: one that must use it, and one with paths around it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from manyscope.scopes.galaxies.model.layers import check_error, check_size, last_activation, reconstruction_losses


class _Convolutions(nn.Module):
    """The layers of both: four convolutions with three halvings, a bottleneck, and the way back.

    Args:
        shape: (bands, height, width) of the images, at least 8 px.
        channels: channels of the first convolution; doubled by each further one.
        latent: dimensions of the latent vector.
        final: activation of the reconstruction: tanh, sigmoid, arcsinh or identity.
        loss: "mean" over everything, or "sum" over the bands, then the mean over pixels and batch.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: int = 32,
        latent: int = 512,
        final: str = "identity",
        loss: str = "mean",
    ) -> None:
        super().__init__()
        check_size(shape, 8)
        check_error(loss)
        bands, height, width = shape
        widths = [channels * 2**i for i in range(4)]
        self.loss = loss
        self.sizes = [(height // 2**i, width // 2**i) for i in range(4)]  # of the convolutions, the largest first
        flat = widths[3] * self.sizes[3][0] * self.sizes[3][1]
        self.down = nn.ModuleList(nn.Conv2d(i, o, 3, 1, 1) for i, o in zip([bands, *widths], widths, strict=False))
        self.squeeze = nn.Sequential(nn.Flatten(), nn.Linear(flat, latent), nn.GELU())
        self.expand = nn.Sequential(
            nn.Linear(latent, flat), nn.GELU(), nn.Unflatten(1, (widths[3], *self.sizes[3]))
        )  # fmt: skip
        self.up = nn.ModuleList(nn.Conv2d(widths[i + 1], widths[i], 3, 1, 1) for i in (2, 1, 0))
        self.last = nn.Sequential(nn.Conv2d(channels, bands, 3, 1, 1), last_activation(final))

    def forward(self, images: Tensor) -> Tensor:
        """(n, bands, height, width) -> (n, latent)."""
        return self._encoded(images)[0]

    def _encoded(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The latent vectors, and what the first three convolutions found, the largest first."""
        levels, seen = [], images
        for convolution in self.down[:3]:
            levels.append(F.gelu(convolution(seen)))
            seen = F.max_pool2d(levels[-1], 2)
        return self.squeeze(F.gelu(self.down[3](seen))), levels

    def _decoded(self, latent: Tensor, skips: list[Tensor] | None) -> Tensor:
        seen = self.expand(latent)
        for level, convolution in zip((2, 1, 0), self.up, strict=True):
            seen = convolution(F.interpolate(seen, self.sizes[level], mode="bilinear"))
            seen = F.gelu(seen if skips is None else seen + skips[level])
        return self.last(seen)


class Dcae(_Convolutions):
    """A deep convolutional autoencoder whose reconstruction comes from the latent vector alone: what is to be drawn
    must be in it."""

    def decode(self, latent: Tensor) -> Tensor:
        """(n, latent) -> (n, bands, height, width)."""
        return self._decoded(latent, None)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The squared error of the reconstruction."""
        images = batch["images"]
        return reconstruction_losses(self.decode(self(images)), images, self.loss)


class DcaeSkip(_Convolutions):
    """The same with additive skips from encoder to decoder, as it is often built. It reconstructs well while its latent
    vector may say little, because most of an image takes the way around it; for comparison with `Dcae`."""

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The latent vectors (n, latent) and the reconstructions (n, bands, height, width)."""
        latent, levels = self._encoded(images)
        return latent, self._decoded(latent, levels)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The squared error of the reconstruction."""
        return reconstruction_losses(self.reconstruct(batch["images"])[1], batch["images"], self.loss)
