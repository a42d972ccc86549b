"""A small supervised network, whose last hidden layer is the latent space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from manyscope.scopes.galaxies.model.layers import check_size, label_losses


class Cnn(nn.Module):
    """Two convolutions and three linear layers in the manner of LeNet-5 (LeCun et al. 1998,
    https://doi.org/10.1109/5.726791), trained by cross entropy; samples of unknown class teach nothing.

    Args:
        shape: (bands, height, width) of the images, at least 16 px.
        classes: names of the classes, from the data.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Sequence[str]) -> None:
        super().__init__()
        check_size(shape, 16)
        if len(classes) < 2:
            raise ValueError(
                f"it learns classes, and the data has {len(classes)}; preprocess.label names the column with them"
            )
        height, width = (((side - 4) // 2 - 4) // 2 for side in shape[1:])
        self.classes = list(classes)
        self.features = nn.Sequential(
            nn.Conv2d(shape[0], 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16 * height * width, 120), nn.ReLU(),
            nn.Linear(120, 84), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(84, len(self.classes))

    def forward(self, images: Tensor) -> Tensor:
        """(n, bands, height, width) -> (n, 84)."""
        return self.features(images)

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The latent vectors (n, 84) and the logits (n, classes)."""
        latent = self(images)
        return latent, self.head(latent)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Cross entropy and accuracy over the samples whose class is known."""
        return label_losses(self.classify(batch["images"])[1], batch["labels"], F.cross_entropy)
