"""An 18-layer residual network for images of any size and number of bands."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_SMALL_PX = 64


class ResNet18(nn.Module):
    """Residual network of He et al. (2016, https://arxiv.org/abs/1512.03385), without its last layer.

    Images of less than 64 px would be down to a pixel or two before the last blocks: as is usual for such, the network
    begins with one convolution of 3 px without stride and without pooling in the place of its own of 7 px.

    Args:
        shape: (bands, height, width) of the images.
        width: channels of the first blocks; eight times as many at the end. The network's own number is 64.
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 64) -> None:
        super().__init__()
        small = min(shape[1:]) < _SMALL_PX
        first = nn.Conv2d(shape[0], width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        stem = [first, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem, *([] if small else [nn.MaxPool2d(3, 2, 1)]))
        self.blocks = nn.Sequential(
            _Block(width, width, 1), _Block(width, width, 1),
            _Block(width, 2 * width, 2), _Block(2 * width, 2 * width, 1),
            _Block(2 * width, 4 * width, 2), _Block(4 * width, 4 * width, 1),
            _Block(4 * width, 8 * width, 2), _Block(8 * width, 8 * width, 1),
        )  # fmt: skip
        self.features = 8 * width

    def forward(self, images: Tensor) -> Tensor:
        """(n, bands, height, width) -> (n, features)."""
        return self.blocks(self.stem(images)).mean((2, 3))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.past: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.past = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.past(x))
