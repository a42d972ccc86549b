"""Similarities (shift, turn and scale) between pictures, found from the pictures themselves.

The alignment is the inverse compositional form of Lucas and Kanade's (Baker and Matthews, IJCV 2004) with robust
weights, from coarse to fine. Places are complex numbers x + iy, in pixels of the whole frame, from its middle, y down,
so that they are the same at every size of a picture, and a similarity is a product and a sum.
"""

from __future__ import annotations

import cmath
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_SMOOTH_PX = 0.7  # before a picture is sampled between its pixels
_LEAST_EDGE_PX = 16  # of the coarsest picture
_LEAST_POINTS = 24
_ROUNDS = 25
_STILL_PX = 0.01
_MOST_SCALE, _MOST_TURN = 2.0, 1.0  # one alignment changes the start by no more (radians)
_LEAST_OVERLAP = 0.2
_START_EDGE_PX = 96  # of the pictures whose phases are correlated
# Least spread of the differences of brightness (1 is the range of a grey picture) and of masks.
_NOISE = (0.008, 0.05)
_FARTHEST = 2.0  # the error where nothing overlaps


@dataclass(frozen=True)
class Similarity:
    """The map of places p -> factor p + shift."""

    factor: complex = 1.0 + 0.0j
    shift: complex = 0.0j

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Places (...,) complex, moved."""
        return self.factor * places + self.shift

    def after(self, first: Similarity) -> Similarity:
        """The map that is `first`, then this one."""
        return Similarity(self.factor * first.factor, self.factor * first.shift + self.shift)

    def inverse(self) -> Similarity:
        return Similarity(1 / self.factor, -self.shift / self.factor)

    @property
    def scale(self) -> float:
        return abs(self.factor)

    @property
    def turn(self) -> float:
        """In radians, from x towards y."""
        return cmath.phase(self.factor)


@dataclass(frozen=True)
class Level:
    """A picture at one size.

    Attributes:
        shrink: its pixels in a pixel of the frame.
        values: (h, w, channels) float32. The first channel is brightness, which may differ by a gain and an offset
            between pictures; the others are masks, which may not.
        weights: (h, w, channels) float32 in [0, 1], how far a value is to be believed.
    """

    shrink: float
    values: np.ndarray
    weights: np.ndarray

    def sample(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and weights at places (n,), each (n, channels); the weights are 0 outside."""
        height, width = self.values.shape[:2]
        x, y = places.real * self.shrink + width / 2 - 0.5, places.imag * self.shrink + height / 2 - 0.5
        inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
        both = bilinear(np.concatenate([self.values, self.weights], axis=2), x, y)
        channels = self.values.shape[2]
        return both[:, :channels], both[:, channels:] * inside[:, None]


Pyramid = list[Level]  # from the finest to the coarsest


@dataclass(frozen=True)
class Alignment:
    """
    Attributes:
        transform: takes places of the template to those of the moving picture.
        error: mean difference over the spread of the template, summed over the channels; 0 is perfect, infinite without
            enough overlap.
    """

    transform: Similarity
    error: float


def bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """An image (h, w, channels) at columns x and rows y (n,), 0 being the centre of the first pixel; (n, channels)
    float32. The border goes on outside."""
    height, width = image.shape[:2]
    x = np.clip(x, 0, width - 1).astype(np.float32)
    y = np.clip(y, 0, height - 1).astype(np.float32)
    left = np.minimum(x.astype(np.int32), max(width - 2, 0))
    top = np.minimum(y.astype(np.int32), max(height - 2, 0))
    right_share, bottom_share = (x - left)[:, None], (y - top)[:, None]
    flat = np.ascontiguousarray(image, dtype=np.float32).reshape(height * width, -1)
    first = top * width + left
    right, below = min(width - 1, 1), width if height > 1 else 0
    upper = flat[first] * (1 - right_share) + flat[first + right] * right_share
    lower = flat[first + below] * (1 - right_share) + flat[first + below + right] * right_share
    return upper * (1 - bottom_share) + lower * bottom_share


def grid(height: int, width: int, shrink: float = 1.0) -> np.ndarray:
    """The places of the pixels' centres, (height, width) complex."""
    x, y = (np.arange(width) + 0.5 - width / 2) / shrink, (np.arange(height) + 0.5 - height / 2) / shrink
    return x[None, :] + 1j * y[:, None]


def pyramid(values: np.ndarray, weights: np.ndarray, longest_px: int) -> Pyramid:
    """A picture in falling sizes, each half the last, smoothed so that it can be sampled between pixels.

    Values are averaged with their weights, so that what is not to be believed does not bleed into what is.

    Args:
        values, weights: (H, W, channels); see `Level`.
        longest_px: longest edge of the finest.
    """
    height, width = values.shape[:2]
    shrink = min(1.0, longest_px / max(height, width))
    level = _resized(Level(1.0, values, weights), shrink)
    levels = [level]
    while min(level.values.shape[:2]) >= 2 * _LEAST_EDGE_PX:
        level = _resized(level, level.shrink / 2)
        levels.append(level)
    return levels


def _resized(level: Level, shrink: float) -> Level:
    ratio = shrink / level.shrink
    sigma = (max(_SMOOTH_PX, 0.5 / ratio), max(_SMOOTH_PX, 0.5 / ratio), 0)
    weights = ndimage.gaussian_filter(np.asarray(level.weights, np.float32), sigma, mode="nearest", truncate=3)
    values = ndimage.gaussian_filter(
        np.asarray(level.values, np.float32) * level.weights, sigma, mode="nearest", truncate=3
    )
    values /= np.maximum(weights, 1e-4)
    if ratio == 1:
        return Level(shrink, values, weights)
    height, width = (max(1, int(edge * ratio + 1e-6)) for edge in values.shape[:2])
    found, believed = Level(level.shrink, values, weights).sample(grid(height, width, shrink).ravel())
    return Level(shrink, found.reshape(height, width, -1), believed.reshape(height, width, -1))


class _Template:
    """The points of a level that are compared, with what a small similarity does to their values."""

    def __init__(self, level: Level) -> None:
        height, width, self.channels = level.values.shape
        chosen = (level.weights > 0.05).any(axis=2)
        self.places = grid(height, width, level.shrink)[chosen].astype(np.complex64)
        self.values, self.weights = level.values[chosen], level.weights[chosen]
        self.believed = float(self.weights.sum())
        self.middle = complex(self.places.mean()) if len(self.places) else 0j
        away = self.places - self.middle
        self.radius = max(float(np.sqrt((np.abs(away) ** 2).mean())), 1.0) if len(self.places) else 1.0
        # Of (n, channels, 4): shift along x and y, scale, turn; the last two in units of the radius.
        down, along = (np.gradient(level.values, axis=axis)[chosen] * level.shrink for axis in (0, 1))
        across, below = (away.real / self.radius)[:, None], (away.imag / self.radius)[:, None]
        self.slopes = np.stack([along, down, along * across + down * below, down * across - along * below], axis=-1)

    def spread(self, channel: int) -> float:
        """Standard deviation of the template's values."""
        weight = self.weights[:, channel]
        total = max(float(weight.sum()), 1e-9)
        mean = float((weight * self.values[:, channel]).sum()) / total
        variance = float((weight * (self.values[:, channel] - mean) ** 2).sum()) / total
        return max(variance**0.5, 0.02)


def align(template: Pyramid, moving: Pyramid, starts: Sequence[Similarity], levels: int | None = None) -> Alignment:
    """The similarity that takes the template's places to those where the moving picture looks the same.

    Each start is refined at the coarsest size, the best of them at all others. The result is never worse, by `error`,
    than the best of the starts.

    Args:
        template, moving: of equal channels.
        starts: one at least.
        levels: how many of the sizes are used, from the finest; all if None.
    """
    sizes = list(zip((_Template(level) for level in template[:levels]), moving[:levels], strict=False))
    finest, finest_moving = sizes[0]
    used = [size for size in sizes if len(size[0].places) >= _LEAST_POINTS] or sizes[:1]
    coarsest, coarsest_moving = used[-1]
    tried = [_refined(coarsest, coarsest_moving, start) for start in starts]
    best = min(tried, key=lambda transform: _errors(coarsest, coarsest_moving, transform).sum())
    for size, level in used[-2::-1]:
        best = _refined(size, level, best)
    candidates = [best, *starts]
    errors = [float(_errors(finest, finest_moving, transform).sum()) for transform in candidates]
    chosen = int(np.argmin(errors))
    return Alignment(candidates[chosen], errors[chosen])


def correlated_shift(template: Pyramid, moving: Pyramid) -> Similarity:
    """The shift with the greatest masked correlation (Padfield, IEEE TIP 2012) of the two pictures' brightness."""
    from skimage.registration import phase_cross_correlation

    number = next((i for i, level in enumerate(template) if max(level.values.shape[:2]) <= _START_EDGE_PX), -1)
    first, second = template[number], moving[number]
    seen = [level.weights[..., 0] > 0.5 for level in (first, second)]
    if min(mask.sum() for mask in seen) < _LEAST_POINTS:
        return Similarity()
    rows_columns = phase_cross_correlation(
        first.values[..., 0], second.values[..., 0], reference_mask=seen[0], moving_mask=seen[1], overlap_ratio=0.3
    )[0]
    return Similarity(shift=-complex(rows_columns[1], rows_columns[0]) / first.shrink)


def _refined(template: _Template, moving: Level, start: Similarity) -> Similarity:
    """Gauss-Newton steps at one size."""
    transform = start
    brightness = np.array([0.0, 0.0])  # gain - 1, offset
    for _ in range(_ROUNDS):
        found, believed = moving.sample(transform(template.places))
        weights = template.weights * believed
        if weights.sum() < max(_LEAST_OVERLAP * template.believed, 1.0):
            return start
        matrix, vector = np.zeros((4, 4)), np.zeros(4)
        for channel in range(template.channels):
            part, right, brightness = _equations(template, found, weights, channel, brightness)
            matrix += part
            vector += right
        # A weak pull to no change decides what the pictures leave open, as the turn of a plain disc.
        matrix += np.eye(4) * (1e-3 * (matrix[0, 0] + matrix[1, 1]) / 2 + 1e-6 * len(template.places))
        step = np.linalg.solve(matrix, vector)
        factor = 1 + complex(step[2], step[3]) / template.radius
        change = Similarity(factor, complex(step[0], step[1]) + (1 - factor) * template.middle)
        transform = transform.after(change.inverse())
        against = transform.factor / start.factor
        if not 1 / _MOST_SCALE < abs(against) < _MOST_SCALE or abs(cmath.phase(against)) > _MOST_TURN:
            return start
        if np.abs(step).max() * moving.shrink < _STILL_PX:
            break
    return transform


def _equations(
    template: _Template, found: np.ndarray, weights: np.ndarray, channel: int, brightness: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal equations (4, 4), (4,) of one channel, and the gain and offset of the first."""
    value, slopes, weight = template.values[:, channel], template.slopes[:, channel], weights[:, channel]
    difference = found[:, channel] - value
    left = difference - (brightness[0] * value + brightness[1]) if channel == 0 else difference
    near = (weight > 0.05) & ((np.abs(slopes[:, :2]).max(axis=1) > 1e-3) | (np.abs(left) > 1e-3))
    if near.sum() < 8:
        return np.zeros((4, 4)), np.zeros(4), brightness
    sigma = max(1.4826 * float(np.median(np.abs(left[near]))), _NOISE[min(channel, 1)])
    # Geman and McClure's weights.
    robust = (weight / (1 + (left / (4 * sigma)) ** 2) ** 2 / sigma**2).astype(np.float32)
    if channel > 0:
        weighted = slopes * robust[:, None]
        return weighted.T @ slopes, weighted.T @ difference, brightness
    columns = np.concatenate([slopes, value[:, None], np.ones_like(value)[:, None]], axis=1)
    weighted = columns * robust[:, None]
    matrix, vector = (weighted.T @ columns).astype(float), (weighted.T @ difference).astype(float)
    # Gain and offset are eliminated; they stay near 1 and 0 where brightness hardly varies.
    inner = matrix[4:, 4:] + np.eye(2) * 1e-2 * (matrix[5, 5] + 1e-9)
    solved = np.linalg.solve(inner, np.concatenate([matrix[4:, :4], vector[4:, None]], axis=1))
    return matrix[:4, :4] - matrix[:4, 4:] @ solved[:, :4], vector[:4] - matrix[:4, 4:] @ solved[:, 4], solved[:, 4]


def errors(template: Level, moving: Level, transform: Similarity) -> np.ndarray:
    """Mean difference over the spread of the template, of each channel; infinite without enough overlap."""
    return _errors(_Template(template), moving, transform)


def _errors(template: _Template, moving: Level, transform: Similarity) -> np.ndarray:
    found, believed = moving.sample(transform(template.places))
    weights = template.weights * believed
    if weights.sum() < max(_LEAST_OVERLAP * template.believed, 1.0):
        return np.full(template.channels, np.inf)
    result = np.full(template.channels, _FARTHEST)
    for channel in range(template.channels):
        weight, value = weights[:, channel], template.values[:, channel]
        amount = float(weight.sum())
        if amount < 1:
            continue
        difference = found[:, channel] - value
        if channel == 0:
            difference -= float((weight * difference).sum()) / amount
        spread = template.spread(channel)
        result[channel] = float((weight * np.minimum(np.abs(difference) / spread, _FARTHEST)).sum()) / amount
    return result
