"""What the training is fed: rays through frames, drawn by a sampler from (seed, step) alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from manyscope.errors import ManyscopeError
from manyscope.scopes.scenes.model.names import SAMPLERS

if TYPE_CHECKING:
    from manyscope.data.loading import Schedule
    from manyscope.scopes.scenes.data.clip import Clip
    from manyscope.scopes.scenes.settings import ScenesTrain

STEPS = 15  # a pixel is divided into so many places along each edge; odd, so that one of them is its centre
_MOST_VALIDATION = 65_536  # rays of a check


class Pixels:
    """Centres of pixels of all frames, drawn evenly. A sampler is a `Schedule` made with these arguments.

    Args:
        frames: how many there are to draw from.
        height, width: of a frame in pixels.
        batch_size: rays in a step.
        seed: two samplers of the same seed draw the same.
        timestamps: frames that a step may be told to draw from.
    """

    def __init__(self, frames: int, height: int, width: int, batch_size: int, seed: int, timestamps: int) -> None:
        self.frames, self.height, self.width = frames, height, width
        self.batch_size, self.seed, self.timestamps = batch_size, seed, timestamps

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many rays are drawn as the frames have pixels."""
        return self.frames * self.height * self.width / self.batch_size

    def batch(self, step: int) -> np.ndarray:
        """The rays of a step, (batch_size,) int64: see `encode`."""
        rng = np.random.default_rng((self.seed, step))
        frame = rng.integers(0, self.frames, self.batch_size)
        x, y = (STEPS * rng.integers(0, n, self.batch_size) + STEPS // 2 for n in (self.width, self.height))
        return encode(frame, x, y, self.height, self.width)


class UvGrid(Pixels):
    """Places drawn evenly between the pixels, the same ones in each of several frames."""

    def batch(self, step: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, step))
        frames = rng.permutation(self.frames)[: self.timestamps]
        each = -(-self.batch_size // len(frames))
        x, y = (rng.integers(0, STEPS * n, each) for n in (self.width, self.height))
        rays = encode(frames[:, None], x, y, self.height, self.width).ravel()
        # Mixed, so that each of several processes gets rays of all frames.
        return rng.permutation(rays)[: self.batch_size]


def encode(frame: np.ndarray, x: np.ndarray, y: np.ndarray, height: int, width: int) -> np.ndarray:
    """One int64 for each ray: number of the frame, then the place in steps of 1 / STEPS of a pixel."""
    return (frame.astype(np.int64) * (STEPS * height) + y) * (STEPS * width) + x


def decode(rays: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `encode`: frame (n,) and place (n, 2) float32, x and y in pixels."""
    rest, x = np.divmod(rays, STEPS * width)
    frame, y = np.divmod(rest, STEPS * height)
    return frame, ((np.stack([x, y], 1) + 0.5) / STEPS).astype(np.float32)


class Rays:
    """The training and validation rays of a clip, as the default training asks for them (`TrainingData`).

    Raises:
        ManyscopeError: the sampler is unknown, or refuses its arguments.
    """

    def __init__(self, clip: Clip, settings: ScenesTrain) -> None:
        self._clip, self._settings = clip, settings
        self._train, self._validation = clip.rows("train"), clip.rows("validation")
        self._height, self._width = clip.size

    @property
    def train_size(self) -> int:
        """Pixels of the training frames."""
        return len(self._train) * self._height * self._width

    def train_schedule(self, batch_size: int, seed: int) -> Schedule:
        make = SAMPLERS.find(self._settings.sampler)
        try:
            return make(len(self._train), self._height, self._width, batch_size, seed, self._settings.timestamps)
        except (TypeError, ValueError) as error:
            raise ManyscopeError(
                f"{self._settings.sampler!r} is no sampler ({error})", place="train.sampler"
            ) from error

    def train_batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        frame, places = decode(np.asarray(indices, np.int64), self._height, self._width)
        return self._batch(self._train[frame], places)

    def validation_schedule(self, batch_size: int) -> Iterable[np.ndarray]:
        rays = self._validation_rays
        return (rays[first : first + batch_size] for first in range(0, len(rays), batch_size))

    def validation_batch(self, positions: Sequence[int] | np.ndarray) -> dict[str, Any]:
        frame, places = decode(np.asarray(positions, np.int64), self._height, self._width)
        return self._batch(self._validation[frame], places)

    @cached_property
    def _validation_rays(self) -> np.ndarray:
        """Centres of every k-th pixel of every k-th row of the validation frames, so many as a check has time for."""
        pixels = len(self._validation) * self._height * self._width
        every = max(1, int(np.ceil((pixels / _MOST_VALIDATION) ** 0.5)))
        frame, y, x = np.meshgrid(
            np.arange(len(self._validation)),
            np.arange(every // 2, self._height, every),
            np.arange(every // 2, self._width, every),
            indexing="ij",
        )
        return encode(frame, STEPS * x + STEPS // 2, STEPS * y + STEPS // 2, self._height, self._width).ravel()

    def _batch(self, rows: np.ndarray, places: np.ndarray) -> dict[str, Any]:
        """
        Returns:
            places: (n, 2) float32, pixels. frame: (n,) int64, positions in the clip. colour: (n, 3) float32 in [0, 1].
            masks: (n, O) float32, coverage in [0, 1]. known: (n, O) bool.
        """
        clip = self._clip
        colour = bilinear(clip.frames, rows, places)
        masks = [bilinear(clip.masks[:, i, ..., None], rows, places)[:, 0] for i in range(clip.masks.shape[1])]
        return {
            "places": torch.from_numpy(places),
            "frame": torch.from_numpy(rows),
            "colour": torch.from_numpy(colour),
            "masks": torch.from_numpy(np.stack(masks, 1) if masks else np.zeros((len(rows), 0), np.float32)),
            "known": torch.from_numpy(clip.known[rows]),
        }


def bilinear(images: np.ndarray, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Images (T, H, W, C) uint8 at places (n, 2), x and y in pixels, of the frames `rows`; (n, C) float32 in [0, 1]."""
    height, width = images.shape[1:3]
    corner = np.clip(places - 0.5, 0, [width - 1, height - 1]).astype(np.float32)
    x0, y0 = corner.astype(np.int64).T
    fx, fy = (corner - np.floor(corner)).T
    if not (fx.any() or fy.any()):  # all of them centres of pixels
        return images[rows, y0, x0].astype(np.float32) / 255
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    upper = images[rows, y0, x0] * (1 - fx)[:, None] + images[rows, y0, x1] * fx[:, None]
    lower = images[rows, y1, x0] * (1 - fx)[:, None] + images[rows, y1, x1] * fx[:, None]
    return ((upper * (1 - fy)[:, None] + lower * fy[:, None]) / 255).astype(np.float32)
