"""Models of what is no image: a few numbers for each object, or embeddings that are there already."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Features(nn.Module):
    """An autoencoder of linear layers over inputs of any shape, each number brought to zero mean and unit variance.

    Args:
        shape: of one input.
        latent: dimensions of the latent vector.
        hidden: widths of the layers between input and latent vector; mirrored on the way back.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...], latent: int = 16, hidden: Sequence[int] = (256, 128)) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        widths = [math.prod(shape), *hidden, latent]
        self.encoder = nn.Sequential(nn.Flatten(), *_layers(widths))
        self.decoder = nn.Sequential(*_layers(widths[::-1]), nn.Unflatten(1, tuple(shape)))

    def adapt(self, stamps: Tensor, transforms: Callable[[Tensor], Tensor]) -> None:
        """Learn mean and scale of each number from training samples; one that never changes keeps its unit."""
        inputs = transforms(stamps).double()
        spread = inputs.std(0, correction=0)
        self.mean.copy_(inputs.mean(0))
        # Rounding gives a constant a spread, too: far below its size it is none.
        self.scale.copy_(torch.where(spread > 1e-6 * inputs.abs().amax(0), spread, 1.0))

    def forward(self, images: Tensor) -> Tensor:
        """(n, *shape) -> (n, latent)."""
        return self.encoder((images - self.mean) / self.scale)

    def decode(self, latent: Tensor) -> Tensor:
        """(n, latent) -> (n, *shape), in the units of the input."""
        return self.decoder(latent) * self.scale + self.mean

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The mean squared error of the standardised numbers."""
        images = batch["images"]
        return {"loss": ((self.decode(self(images)) - images) / self.scale).square().mean()}


class Identity(nn.Module):
    """The input is the latent vector: for embeddings that another program made. There is nothing to train."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        """(n, *shape) -> (n, numbers)."""
        return images.flatten(1)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Nothing is lost."""
        return {"loss": batch["images"].new_zeros(())}


def _layers(widths: Sequence[int]) -> list[nn.Module]:
    """Linear layers with GELU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.GELU()]
    return layers[:-1]
