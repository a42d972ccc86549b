"""Simple ways to a frame of a clip from its training frames, and to what lies behind the objects.

No training frame is shown itself: the nearest one is always another. Of two that are equally near, the earlier one is
taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from manyscope.scopes.scenes.data.clip import HALF, Clip

NEAREST_FRAME, TEMPORAL_MEDIAN, PLACED = "nearest_frame", "temporal_median", "placed"

# placed(position, without=None) -> frame and background, (h, w, 3) uint8 each; the frame without an object if one is
# named.
Placed = Callable[..., tuple[np.ndarray, np.ndarray]]

_MASKED = 256  # sorted behind every colour
_MOST_VALUES = 2**24  # sorted at once


class Baseline(ABC):
    """Makes pictures of a clip, (h, w, 3) uint8."""

    @abstractmethod
    def frame(self, position: int) -> np.ndarray:
        """The whole frame at a position of the clip."""

    @abstractmethod
    def background(self, position: int) -> np.ndarray:
        """The same without objects."""

    @abstractmethod
    def without(self, position: int, number: int) -> np.ndarray:
        """The same without one object, the others being where they are."""


class NearestFrame(Baseline):
    """The nearest training frame in time; without objects, at each pixel the nearest in which none of them is."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip

    def frame(self, position: int) -> np.ndarray:
        return np.asarray(self._clip.frames[self.position(position)])

    def background(self, position: int) -> np.ndarray:
        return self._clear_of(position, list(range(len(self._clip.objects))))

    def without(self, position: int, number: int) -> np.ndarray:
        return self._clear_of(position, [number])

    def position(self, position: int) -> int:
        """Where the nearest training frame is in the clip."""
        return next(self._nearest_first(position))

    def with_mask(self, position: int, number: int) -> int | None:
        """Where the nearest training frame with a mask of the object is; None if there is none."""
        return next((other for other in self._nearest_first(position) if self._clip.known[other, number]), None)

    def mask(self, position: int, number: int) -> np.ndarray:
        """The object's mask in that frame, (h, w) uint8, 0 if there is none."""
        other = self.with_mask(position, number)
        return np.zeros(self._clip.size, np.uint8) if other is None else np.asarray(self._clip.masks[other, number])

    def _clear_of(self, position: int, numbers: Sequence[int]) -> np.ndarray:
        picture = self.frame(position).copy()  # stays where no frame is clear
        missing = np.ones(self._clip.size, bool)
        for other in self._nearest_first(position):
            if not missing.any():
                break
            if self._clip.known[other, numbers].all():
                clear = missing & (self._clip.masks[other, numbers] < HALF).all(0)
                picture[clear] = self._clip.frames[other][clear]
                missing &= ~clear
        return picture

    def _nearest_first(self, position: int) -> Iterator[int]:
        others = self._clip.train_rows[self._clip.train_rows != position]
        numbers = (
            self._clip.samples["index"].to_numpy().astype(np.int64)
        )  # times are rounded, so that equal distances would differ
        return map(int, others[np.argsort(np.abs(numbers[others] - numbers[position]), kind="stable")])


class TemporalMedian(Baseline):
    """The median of the training frames without their objects, before which each object stands as in the nearest
    training frame with a mask of it."""

    def __init__(self, clip: Clip) -> None:
        self._clip, self._nearest = clip, NearestFrame(clip)

    def frame(self, position: int) -> np.ndarray:
        return self._with(position, range(len(self._clip.objects)))

    def background(self, position: int) -> np.ndarray:
        return self._median

    def without(self, position: int, number: int) -> np.ndarray:
        return self._with(position, [other for other in range(len(self._clip.objects)) if other != number])

    def _with(self, position: int, numbers: Sequence[int]) -> np.ndarray:
        picture = self._median.copy()
        for number in numbers:
            other = self._nearest.with_mask(position, number)
            if other is not None:
                inside = self._clip.masks[other, number] >= HALF
                picture[inside] = self._clip.frames[other][inside]
        return picture

    @cached_property
    def _median(self) -> np.ndarray:
        rows = self._clip.train_rows
        known = self._clip.known[rows].all(1)
        return median_without(self._clip.frames, self._clip.masks, rows[known] if known.any() else rows)


class AsPlaced(Baseline):
    """The scene as the training found it."""

    def __init__(self, placed: Placed, objects: Sequence[str]) -> None:
        self._placed, self._objects = placed, objects
        self._last: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None

    def frame(self, position: int) -> np.ndarray:
        return self._both(position)[0]

    def background(self, position: int) -> np.ndarray:
        return self._both(position)[1]

    def without(self, position: int, number: int) -> np.ndarray:
        return self._placed(position, without=self._objects[number])[0]

    def _both(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        # Both are asked for one after the other, and rendering takes its time.
        if self._last is None or self._last[0] != position:
            self._last = position, self._placed(position)
        return self._last[1]


def by_name(names: Sequence[str], clip: Clip, placed: Placed) -> dict[str, Baseline]:
    """The named methods."""
    makers: dict[str, Callable[[], Baseline]] = {
        NEAREST_FRAME: lambda: NearestFrame(clip),
        TEMPORAL_MEDIAN: lambda: TemporalMedian(clip),
        PLACED: lambda: AsPlaced(placed, clip.objects),
    }
    return {name: makers[name]() for name in names}


def median_without(frames: np.ndarray, masks: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """At each pixel the median of those frames in which no mask touches it, or of all where each is touched.

    Args:
        frames: (T, h, w, 3) uint8.
        masks: (T, O, h, w) uint8.
        rows: positions of the frames, (n,).

    Returns:
        (h, w, 3) uint8; of an even number of values, the middle of the middle two, rounded to even.
    """
    _, height, width, channels = frames.shape
    median = np.empty((height, width, channels), np.uint8)
    step = max(1, _MOST_VALUES // (len(rows) * width * channels))
    for top in range(0, height, step):
        part = slice(top, top + step)
        values = frames[rows, part].astype(np.int16)
        touched = (masks[rows, :, part] > 0).any(1)
        touched &= ~touched.all(0)
        values[touched] = _MASKED
        values.sort(axis=0)
        count = len(rows) - touched.sum(0)
        low, high = (
            np.take_along_axis(values, middle[None, ..., None], 0)[0] for middle in ((count - 1) // 2, count // 2)
        )
        median[part] = np.round((low + high) / 2)
    return median
