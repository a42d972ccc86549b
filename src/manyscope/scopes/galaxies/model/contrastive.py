"""Self-supervised networks that learn from two views of a stamp; the latent space is what lies before their head."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from manyscope.nn.across import gather
from manyscope.scopes.galaxies.model.invariant import nt_xent
from manyscope.scopes.galaxies.model.resnet import ResNet18
from manyscope.scopes.galaxies.model.views import TwoViews, Views

# Crops, colours and blur as in SimCLR, but milder: size and colour are what a galaxy is known by. The rotation, shift
# and noise of all views come on top.
VIEWS = {"neighbour": 0.0, "zoom": 0.5, "brightness": 0.4, "colour": 0.2, "blur_px": 1.0, "grey": 0.1}
_VARIANCE_FLOOR = 1e-4


class _OnResNet(TwoViews):
    """A residual network with a head that only the loss sees.

    Args:
        shape: (bands, height, width) of the images, as many bands as there are.
        width: channels of the first blocks of the network; the latent vector has eight times as many numbers.
        views: arguments of `Views` that take the place of the defaults.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, views: dict[str, float] | None) -> None:
        super().__init__((shape[1], shape[2]), Views(**{**VIEWS, **(views or {})}))
        self.backbone = ResNet18(shape, width)

    def forward(self, images: Tensor) -> Tensor:
        """(n, bands, height, width) -> (n, 8 * width)."""
        return self.backbone(images)


class SimClr(_OnResNet):
    """SimCLR (Chen et al. 2020, https://arxiv.org/abs/2002.05709): each view is told from those of all other stamps.

    Args:
        shape: (bands, height, width) of the images, as many bands as there are.
        width: channels of the first blocks of the network; the latent vector has eight times as many numbers.
        head: numbers that the loss compares.
        temperature: of NT-Xent.
        views: arguments of `Views` that take the place of the defaults.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int = 64,
        head: int = 128,
        temperature: float = 0.5,
        views: dict[str, float] | None = None,
    ) -> None:
        super().__init__(shape, width, views)
        self.temperature = temperature
        features = self.backbone.features
        self.head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, head))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """NT-Xent of a batch of stamps; random views, also in eval mode.

        Raises:
            DataError: one sample only while training: there is nothing to tell it from.
        """
        first, second = self.head(self(self.pair(batch))).chunk(2)
        return {"loss": nt_xent(gather(first), gather(second), self.temperature)}


class VicReg(_OnResNet):
    """VICReg (Bardes et al. 2022, https://arxiv.org/abs/2105.04906): two views agree, while every number of the head
    keeps its variance and goes with no other. No sample is told from another, so small batches will do.

    Args:
        shape: (bands, height, width) of the images, as many bands as there are.
        width: channels of the first blocks of the network; the latent vector has eight times as many numbers.
        expander: numbers that the loss compares.
        invariance, variance, covariance: weights of the three terms.
        views: arguments of `Views` that take the place of the defaults.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int = 64,
        expander: int = 1024,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        views: dict[str, float] | None = None,
    ) -> None:
        super().__init__(shape, width, views)
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        sizes = (self.backbone.features, expander, expander)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(expander, expander))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The three terms of a batch of stamps; random views, also in eval mode.

        Raises:
            DataError: one sample only while training: it has no variance.
        """
        first, second = (gather(part) for part in self.head(self(self.pair(batch))).chunk(2))
        terms = vicreg_terms(first, second)
        loss = sum(self.weights[name] * term for name, term in terms.items())
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}  # type: ignore[dict-item]


def vicreg_terms(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Invariance, variance and covariance of n pairs, (n, d) each; equations 1 to 5 of Bardes et al. (2022)."""
    variance, covariance = first.new_zeros(()), first.new_zeros(())
    for part in (first, second):
        centred = part - part.mean(0)
        together = centred.T @ centred / max(1, len(part) - 1)
        variances = together.diagonal()
        variance = variance + F.relu(1 - (variances + _VARIANCE_FLOOR).sqrt()).mean() / 2
        covariance = covariance + (together.square().sum() - variances.square().sum()) / part.shape[1]
    return {"invariance": F.mse_loss(first, second), "variance": variance, "covariance": covariance}
