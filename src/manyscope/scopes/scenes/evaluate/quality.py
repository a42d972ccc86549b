"""How near a picture comes to another: 8-bit pictures, (h, w, 3) uint8, and opacities, (h, w) uint8 with 255 opaque."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyscope.errors import CheckpointError
from manyscope.scopes.scenes.data.clip import HALF

if TYPE_CHECKING:
    import torch
    from torch import nn


# Of equal pictures. Rounding to 8 bits alone costs a mean square of 1/12, or 58.9 dB: beyond, nothing is better.
MOST_DB = 60.0
LEAST_LPIPS_PX = 31  # of the shorter edge, from which AlexNet has a pixel left behind its second pooling

_WHITE = 255
_LEAST_SQUARE = _WHITE**2 / 10 ** (MOST_DB / 10)
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW_PX = 11

# The layers of AlexNet: position in torchvision's `features`, then channels in and out, kernel, stride and padding.
_CONVOLUTIONS = ((0, 3, 64, 11, 4, 2), (3, 64, 192, 5, 1, 2), (6, 192, 384, 3, 1, 1), (8, 384, 256, 3, 1, 1),
                 (10, 256, 256, 3, 1, 1))  # fmt: skip
_POOLED_BEFORE = (3, 6)
_HEADS = "functional/image/lpips_models/alex.pth"
_SHIFT, _SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

Likeness = Callable[[np.ndarray, np.ndarray], float]


def psnr(picture: np.ndarray, truth: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio 10 log10(255² / mean square difference) in dB, at most `MOST_DB`.

    Args:
        where: (h, w) bool, the pixels that count; NaN if there is none.
    """
    if where is not None:
        picture, truth = picture[where], truth[where]
    if not picture.size:
        return math.nan
    square = float(np.mean((picture.astype(np.float32) - truth.astype(np.float32)) ** 2, dtype=np.float64))
    return 10 * math.log10(_WHITE**2 / max(square, _LEAST_SQUARE))


def ssim(picture: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity with a square window of 7 pixels, mean of the channels (Wang et al., IEEE TIP 13, 600,
    2004), as scikit-image has it."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(picture, truth, channel_axis=-1, data_range=_WHITE))


def ms_ssim(picture: np.ndarray, truth: np.ndarray) -> float:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik, Asilomar 2003), Gaussian window of 11 pixels.

    A picture whose shorter edge is below 176 pixels has no room for five scales: the first four (from 99 pixels), three
    (44), two (22) or one of them are taken, their weights raised to the sum of all five.
    """
    import torch
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    weights = _SCALES[: _scales(min(truth.shape[:2]))]
    one, other = (torch.from_numpy(p.astype(np.float32)).movedim(-1, 0)[None] for p in (picture, truth))
    betas = tuple(weight * sum(_SCALES) / sum(weights) for weight in weights)
    # Negative structure would have no real power.
    return float(measure(one, other, data_range=float(_WHITE), betas=betas, normalize="relu"))


def iou(opacity: np.ndarray, truth: np.ndarray, where: np.ndarray | None = None) -> float:
    """Intersection over union of what is at least half opaque; NaN where the truth holds no such pixel.

    Args:
        where: (h, w) bool, the pixels that count.
    """
    found, right = opacity >= HALF, truth >= HALF
    if where is not None:
        found, right = found & where, right & where
    if not right.any():
        return math.nan
    return float((found & right).sum() / (found | right).sum())


def mean_difference(opacity: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute difference of opacities in [0, 1], over all pixels."""
    return float(np.abs(opacity.astype(np.int16) - truth).mean() / _WHITE)


def lpips(weights: Path) -> Likeness:
    """The distance of two pictures as a network sees them: LPIPS with AlexNet (Zhang et al., CVPR 2018).

    Args:
        weights: state dict of torchvision's `alexnet`, trained on ImageNet; the layers behind its features are not
            needed. The weights of the channels come with torchmetrics.

    Raises:
        CheckpointError: the file is missing, broken, or of another network.
    """
    import torch

    with resources.as_file(resources.files("torchmetrics") / _HEADS) as file:
        heads = _state(file)
    try:
        head = [heads[f"lin{layer}.model.1.weight"] for layer in range(len(_CONVOLUTIONS))]
    except KeyError as error:
        raise CheckpointError(
            f"torchmetrics brings no weights {error} of LPIPS", remedy="set evaluate.lpips_weights to null"
        ) from error
    features = _alexnet(weights)
    shift, spread = (torch.tensor(values)[None, :, None, None] for values in (_SHIFT, _SPREAD))

    def distance(picture: np.ndarray, truth: np.ndarray) -> float:
        both = torch.from_numpy(np.stack([picture, truth]).astype(np.float32)).movedim(-1, 1)
        found = (both / _WHITE * 2 - 1 - shift) / spread
        total = torch.zeros(())
        with torch.inference_mode():
            for slice_, weight in zip(features, head, strict=True):
                found = slice_(found)
                unit = found / torch.sqrt(1e-8 + (found**2).sum(1, keepdim=True))
                total += torch.nn.functional.conv2d((unit[:1] - unit[1:]) ** 2, weight).mean()
        return float(total)

    return distance


def _scales(edge_px: int) -> int:
    """How many scales fit: the window into the coarsest, and, as torchmetrics asks, into the picture divided by the
    square of their number less one."""
    most = len(_SCALES)
    return next((n for n in range(most, 1, -1) if edge_px >= _WINDOW_PX * max(2 ** (n - 1), (n - 1) ** 2)), 1)


def _alexnet(weights: Path) -> list[nn.Sequential]:
    """The five convolutions, each with what is between it and the one before."""
    from torch import nn

    state = _state(weights)
    slices = []
    for number, inside, outside, kernel, stride, padding in _CONVOLUTIONS:
        layer = nn.Conv2d(inside, outside, kernel, stride, padding)
        try:
            layer.load_state_dict({name: state[f"features.{number}.{name}"] for name in ("weight", "bias")})
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"not the weights of AlexNet: features.{number} is missing or of another shape",
                place=weights,
                allowed="a state dict of torchvision's alexnet",
                remedy="mend evaluate.lpips_weights, or set it to null",
            ) from error
        pool = [nn.MaxPool2d(3, 2)] if number in _POOLED_BEFORE else []
        slices.append(nn.Sequential(*pool, layer, nn.ReLU()).eval().requires_grad_(False))
    return slices


def _state(file: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many unrelated types for a file that is not its own
        found = "the file is missing" if not file.exists() else f"the weights cannot be read ({type(error).__name__})"
        raise CheckpointError(found, place=file, remedy="mend evaluate.lpips_weights, or set it to null") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"a {type(state).__name__} instead of a state dict", place=file)
    return state
