"""The plain convolutional autoencoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from manyscope.scopes.galaxies.model.layers import check_error, last_activation, middle_of, reconstruction_losses


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
        return middle_of(self.decoder(latent), self.shape[1:])

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Squared error, summed over an image and averaged over the batch."""
        images = batch["images"]
        error = (self.decode(self(images)) - images).square()
        return {"loss": error.sum((1, 2, 3)).mean(), "mse": error.mean().detach()}


class AutoencoderV2(Autoencoder):
    """The same layers, with a choice of the last activation and of the loss.

    Args:
        shape: (bands, height, width) of the images.
        channels: channels of the first layers; twice as many deeper down.
        latent: dimensions of the latent vector.
        final: tanh, sigmoid, arcsinh or identity. Tanh and sigmoid bound the pixels of a reconstruction.
        loss: "mean" over everything, or "sum" over the bands, then the mean over pixels and batch.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: int = 32,
        latent: int = 64,
        final: str = "tanh",
        loss: str = "mean",
    ) -> None:
        super().__init__(shape, channels, latent)
        check_error(loss)
        self.loss = loss
        self.decoder[-1] = last_activation(final)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The squared error of the reconstruction; it does not grow with the size of the images."""
        images = batch["images"]
        return reconstruction_losses(self.decode(self(images)), images, self.loss)
