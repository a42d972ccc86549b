"""The plain convolutional autoencoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Autoencoder(nn.Module):
    """Three halvings down to a latent vector and back, after Lippe's widely used tutorial autoencoder
    (https://lightning.ai/docs/pytorch/stable/notebooks/course_UvA-DL/08-deep-autoencoders.html).

    Args:
        shape: (bands, height, width) of the images.
        channels: channels of the first layers; twice as many deeper down.
        latent: dimensions of the latent vector.
    """

    def __init__(self, shape: tuple[int, int, int], channels: int = 32, latent: int = 64) -> None:
        super().__init__()
        bands, height, width = shape
        c, small = channels, (-(-height // 8), -(-width // 8))
        flat = 2 * c * small[0] * small[1]
        self.shape = shape
        self.encoder = nn.Sequential(
            nn.Conv2d(bands, c, 3, 2, 1), nn.GELU(),
            nn.Conv2d(c, c, 3, 1, 1), nn.GELU(),
            nn.Conv2d(c, 2 * c, 3, 2, 1), nn.GELU(),
            nn.Conv2d(2 * c, 2 * c, 3, 1, 1), nn.GELU(),
            nn.Conv2d(2 * c, 2 * c, 3, 2, 1), nn.GELU(),
            nn.Flatten(), nn.Linear(flat, latent),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent, flat), nn.GELU(), nn.Unflatten(1, (2 * c, *small)),
            nn.ConvTranspose2d(2 * c, 2 * c, 3, 2, 1, 1), nn.GELU(),
            nn.Conv2d(2 * c, 2 * c, 3, 1, 1), nn.GELU(),
            nn.ConvTranspose2d(2 * c, c, 3, 2, 1, 1), nn.GELU(),
            nn.Conv2d(c, c, 3, 1, 1), nn.GELU(),
            nn.ConvTranspose2d(c, bands, 3, 2, 1, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """(n, bands, height, width) in (-1, 1) -> (n, latent)."""
        return self.encoder(images)

    def decode(self, latent: Tensor) -> Tensor:
        """(n, latent) -> (n, bands, height, width) in (-1, 1)."""
        decoded = self.decoder(latent)
        top, left = ((have - want) // 2 for have, want in zip(decoded.shape[-2:], self.shape[1:], strict=True))
        return decoded[..., top : top + self.shape[1], left : left + self.shape[2]]

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Squared error, summed over an image and averaged over the batch."""
        images = batch["images"]
        error = (self.decode(self(images)) - images).square()
        return {"loss": error.sum((1, 2, 3)).mean(), "mse": error.mean().detach()}
