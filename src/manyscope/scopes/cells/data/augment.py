"""Changed copies of training images, each drawn from the seed, the image's id and the number of the copy alone."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from manyscope.scopes.cells.settings import AugmentSettings


def augment(
    image: np.ndarray, labels: np.ndarray, sample_id: str, copy: int, settings: AugmentSettings
) -> tuple[np.ndarray, np.ndarray]:
    """One changed copy of a normalised image and its labels.

    Flips and turns move whole pixels, so that labels keep their numbers and areas. Blur, noise, brightness and
    contrast change grey values alone; padding stays 0. Every number is drawn whatever the settings, so that one
    setting does not change what another does.

    Args:
        image: (height, width) uint8, 0 is padding.
        labels: (height, width).
        copy: its number, from 0.

    Returns:
        Both anew, of the same types; height and width are exchanged by a turn.
    """
    from scipy.ndimage import gaussian_filter

    rng = _rng(settings.seed, sample_id, copy)
    left_right, up_down, turn, blurred, noisy, brighter = rng.random(6)
    quarter = 1 if rng.random() < 0.5 else 3
    width_px = int(rng.integers(settings.blur_min_px, settings.blur_max_px + 1))
    brightness, contrast = rng.uniform(-1, 1, 2) * (255 * settings.brightness, settings.contrast)

    if settings.flip_horizontal and left_right < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    if settings.flip_vertical and up_down < 0.5:
        image, labels = image[::-1], labels[::-1]
    if settings.rotate_90 and turn < 0.5:
        image, labels = np.rot90(image, quarter), np.rot90(labels, quarter)

    grey = image.astype(np.float32)
    if blurred < settings.blur_probability:
        grey = gaussian_filter(grey, blur_sigma(width_px), radius=(width_px - 1) // 2, mode="mirror")
    if noisy < settings.noise_probability:
        grey *= rng.uniform(1 - settings.noise, 1 + settings.noise, grey.shape)
    if brighter < settings.brightness_contrast_probability:
        grey = grey * (1 + contrast) + brightness
    changed = np.where(image > 0, np.rint(grey).clip(1, 255), 0).astype(np.uint8)
    return changed, np.ascontiguousarray(labels)


def blur_sigma(width_px: int) -> float:
    """The standard deviation, in pixels, of a Gaussian that belongs to a kernel of this width; as OpenCV's
    getGaussianKernel chooses it, https://docs.opencv.org/4.x/d4/d86/group__imgproc__filter.html."""
    return 0.3 * ((width_px - 1) * 0.5 - 1) + 0.8


def _rng(seed: int, sample_id: str, copy: int) -> np.random.Generator:
    digest = hashlib.blake2b(sample_id.encode(), digest_size=16).digest()
    return np.random.default_rng([seed, copy, int.from_bytes(digest, "big")])
