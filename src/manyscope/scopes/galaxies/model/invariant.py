"""A self-supervised network whose latent space does not know how a galaxy lies on the sky."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyscope.nn.across import gather
from manyscope.scopes.galaxies.model.rings import Rings, Whitening
from manyscope.scopes.galaxies.model.views import TwoViews, Views

_ADAPT_BATCH = 256
_CLAMP = 4.0  # of a whitened ring number, so that single bright stars do not rule the loss


class Invariant(TwoViews):
    """Ring amplitudes and a small convolutional trunk, trained to tell galaxies apart whatever their pose.

    Two losses: NT-Xent between two random views (Chen et al. 2020, https://arxiv.org/abs/2002.05709), and the squared
    error of the first latent numbers to the whitened ring amplitudes of the undisturbed image, which keep size, flux
    and shape in the latent space while the contrast adds what rings do not see.

    Args:
        shape: (bands, height, width) of the images.
        channels: channels of the first layer of the trunk; two and four times as many deeper down.
        latent: dimensions of the latent vector.
        tied: how many of them are tied to ring amplitudes.
        tie: weight of that error.
        temperature: of NT-Xent.
        views: arguments of `Views`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: int = 16,
        latent: int = 64,
        tied: int = 24,
        tie: float = 10.0,
        temperature: float = 0.2,
        views: dict[str, float] | None = None,
    ) -> None:
        super().__init__((shape[1], shape[2]), Views(**(views or {})))
        if not 0 < tied <= latent:
            raise TypeError(f"tied must be between 1 and latent={latent}, found {tied}")
        bands, c = shape[0], channels
        self.tied, self.tie, self.temperature = tied, tie, temperature
        self.rings = Rings(shape)
        self.whitening = Whitening(self.rings.features, tied)
        self.trunk = nn.Sequential(
            _block(bands, c, 2), _block(c, 2 * c, 1), _block(2 * c, 2 * c, 2),
            _block(2 * c, 4 * c, 1), _block(4 * c, 4 * c, 2),
        )  # fmt: skip
        self.around = nn.Sequential(
            nn.BatchNorm1d(self.rings.features), nn.Linear(self.rings.features, 192), nn.BatchNorm1d(192), nn.ReLU(),
            nn.Linear(192, 64),
        )  # fmt: skip
        self.latent = nn.Linear(12 * c + 64, latent)
        self.projector = nn.Sequential(nn.Linear(latent, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64))

    def adapt(self, stamps: Tensor, transforms: Callable[[Tensor], Tensor]) -> None:
        """Learn the whitening of ring amplitudes from training stamps, (n, bands, h, w) in rms of the sky."""
        self.whitening.fit(torch.cat([self.rings(transforms(some)) for some in stamps.split(_ADAPT_BATCH)]))

    def forward(self, images: Tensor) -> Tensor:
        """(n, bands, height, width) -> (n, latent)."""
        seen = self.trunk(images)
        top, left = seen.shape[-2] // 4, seen.shape[-1] // 4  # the object sits in the middle
        middle = seen[..., top : seen.shape[-2] - top, left : seen.shape[-1] - left].mean((2, 3))
        pooled = [seen.mean((2, 3)), seen.amax((2, 3)), middle, self.around(self.rings(images))]
        return self.latent(torch.cat(pooled, 1))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Of a batch of stamps; random views, also in eval mode. Each is told from the stamps of all processes.

        Raises:
            DataError: one sample only while training: there is nothing to tell it from.
        """
        latent = self(self.pair(batch))
        first, second = self.projector(latent).chunk(2)
        contrast = nt_xent(gather(first), gather(second), self.temperature)
        target = self.whitening(self.rings(batch["images"])).clamp(-_CLAMP, _CLAMP)
        tied = (latent[:, : self.tied] - target.repeat(2, 1)).square().mean()
        return {"loss": contrast + self.tie * tied, "contrast": contrast.detach(), "tied": tied.detach()}


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The normalised, temperature-scaled cross entropy of n pairs, (n, d) each: each vector against its partner among
    all others of the batch. Chen et al. (2020), equation 1."""
    vectors = F.normalize(torch.cat([first, second]), dim=1)
    similarity = vectors @ vectors.T / temperature
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    partner = torch.arange(len(vectors), device=vectors.device).roll(len(first))
    return F.cross_entropy(similarity.masked_fill(itself, float("-inf")), partner)


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
