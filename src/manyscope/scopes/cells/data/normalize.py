"""The one normalisation of training, inference and queries, and the polarity of an image.

A pixel of the value 0 is padding, before and after; every other pixel gets a grey value from 1 to 255, so that padding
can still be told apart afterwards.
"""

from __future__ import annotations

import numpy as np


def normalise(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Clip an image to two percentiles of its pixels that are not 0, and scale it.

    Args:
        image: (height, width), any real type, finite.
        low, high: percentiles, 0 <= low < high <= 100.

    Returns:
        (height, width) uint8: 1 at the lower percentile and below, 255 at the upper one and above, 0 for padding.
    """
    return to_grey(image, *grey_range(image, low, high))


def grey_range(image: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The two percentiles of the pixels that are not 0; where these are the same, the smallest and the largest value,
    and for a constant image a span of 1."""
    seen = image[image != 0]
    if not seen.size:
        return 0.0, 1.0
    dark, bright = np.percentile(seen, (low, high))
    if dark == bright:
        dark, bright = seen.min(), seen.max()
    if dark == bright:
        bright = float(dark) + 1
    return float(dark), float(bright)


def to_grey(image: np.ndarray, dark: float, bright: float) -> np.ndarray:
    """Scale the values from `dark` to `bright` to 1…255, (height, width) uint8; 0 stays 0."""
    span = (bright - dark) or 1.0  # a value beyond 2**53 is the same with 1 added
    share = np.clip((image.astype(np.float64) - dark) / span, 0, 1)
    grey = np.rint(1 + 254 * share).astype(np.uint8)
    grey[image == 0] = 0
    return grey


def cells_are_bright(image: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the labelled pixels of a normalised image are brighter in the mean than the others, padding left out."""
    cell, seen = labels > 0, image > 0
    foreground, background = image[cell & seen], image[~cell & seen]
    return bool(foreground.size and background.size and foreground.mean() > background.mean())


def invert(image: np.ndarray) -> np.ndarray:
    """Exchange dark and bright in a normalised image: 1 becomes 255, 255 becomes 1, and padding stays 0."""
    return np.negative(image)  # modulo 256
