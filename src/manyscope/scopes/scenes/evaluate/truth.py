"""What only a synthetic clip can tell: what is behind its objects, where they are, and how an edit should look.

Places are (x, y) in pixels, the centre of column i of row j being (i + 0.5, j + 0.5). Opacities are 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from manyscope.scopes.scenes.data.clip import Truth
from manyscope.scopes.scenes.evaluate.quality import HALF

TRACE = 13  # the least opacity above 5 %: below, an object is as good as not there
SOLID = 230  # the least opacity above 90 %


class TrueScene:
    """
    Args:
        trained: positions of the training frames.
    """

    def __init__(self, truth: Truth, trained: Sequence[int] | np.ndarray) -> None:
        self._truth = truth
        self._trained = [int(position) for position in trained]
        self._clear = lru_cache(maxsize=None)(self._clear_of)

    def alpha(self, position: int, number: int) -> np.ndarray:
        """Opacity of an object alone, (h, w) uint8."""
        return np.asarray(self._truth.layers[position, number, ..., 3])

    def colour(self, position: int, number: int) -> np.ndarray:
        """Colour of an object alone, (h, w, 3) uint8."""
        return np.asarray(self._truth.layers[position, number, ..., :3])

    def background(self, position: int) -> np.ndarray:
        return np.asarray(self._truth.background[position])

    def hidden(self, position: int) -> np.ndarray:
        """Where an object is before the background, (h, w) bool."""
        return np.asarray((self._truth.layers[position, ..., 3] >= HALF).any(0))

    def moved(self, number: int, start: int, end: int) -> np.ndarray:
        """(3, 3), takes places of an object in one frame to those in another."""
        return self._truth.motion[end, number] @ np.linalg.inv(self._truth.motion[start, number])

    def seen(self, position: int, number: int | None, where: np.ndarray) -> np.ndarray:
        """Of some pixels of a frame those whose place on a layer is in view in some training frame, with at most a
        trace of anything before it, (h, w) bool.

        Args:
            number: the object; None for the background.
            where: (h, w) bool.
        """
        seen = np.zeros_like(where)
        rows, columns = np.nonzero(where)
        for other in self._trained:
            if not len(rows):
                break
            there = transform(self._between(number, position, other), np.stack([columns, rows], 1) + 0.5)
            found = pick(self._clear(other, number), there)
            seen[rows[found], columns[found]] = True
            rows, columns = rows[~found], columns[~found]
        return seen

    def without(self, position: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A frame without one of its objects.

        Returns:
            (h, w, 3) uint8, and (h, w) bool: the pixels that the object had a part in and where what is now in view,
            be it the background or another object, is in view in some training frame too.
        """
        others = [other for other in self._truth.order if other != number]
        picture = self._over(position, {other: self.colour(position, other) for other in others})
        left = self.alpha(position, number) >= TRACE
        known = np.zeros_like(left)
        for other in others:
            there = left & (self.alpha(position, other) >= HALF)
            known |= self.seen(position, other, there)
            left &= ~there
        return picture, known | self.seen(position, None, left)

    def painted(self, position: int, number: int, paint: np.ndarray, reference: int) -> tuple[np.ndarray, np.ndarray]:
        """A frame in which an object carries what was painted over it in another frame.

        Args:
            paint: (h, w, 4) uint8, colour and opacity over the whole of the reference frame.
            reference: position of that frame.

        Returns:
            (h, w, 3) uint8, and (h, w) bool: the pixels in which the object is solid, with at most a trace of anything
            before it, and which were painted.
        """
        height, width = paint.shape[:2]
        rows, columns = np.mgrid[:height, :width]
        centres = np.stack([columns.ravel(), rows.ravel()], 1) + 0.5
        places = transform(self.moved(number, position, reference), centres)
        colours = sample(paint, places).reshape(height, width, 4)
        inside = pick(np.ones((height, width), bool), places).reshape(height, width)
        share = np.where(inside, colours[..., 3] / 255, 0)[..., None]
        own = self.colour(position, number) * (1 - share) + colours[..., :3] * share
        layers = {other: self.colour(position, other) for other in self._truth.order}
        picture = self._over(position, {**layers, number: own})
        clear = self._clear(position, number) & (self.alpha(position, number) >= SOLID)
        return picture, clear & inside

    def _over(self, position: int, colours: dict[int, np.ndarray]) -> np.ndarray:
        """The background with objects before it, from the farthest to the nearest."""
        picture = self.background(position).astype(np.float64)
        for number in reversed(self._truth.order):
            if number in colours:
                alpha = self.alpha(position, number)[..., None] / 255
                picture = picture * (1 - alpha) + colours[number] * alpha
        return np.round(picture.clip(0, 255)).astype(np.uint8)

    def _between(self, number: int | None, start: int, end: int) -> np.ndarray:
        if number is not None:
            return self.moved(number, start, end)
        return np.linalg.inv(self._truth.camera[end]) @ self._truth.camera[start]

    def _clear_of(self, position: int, number: int | None) -> np.ndarray:
        """Where at most a trace of anything is before a layer, (h, w) bool."""
        order = self._truth.order
        nearer = order if number is None else order[: order.index(number)]
        return np.asarray((self._truth.layers[position, nearer, ..., 3] < TRACE).all(0))


def transform(homography: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Places (n, 2) -> (n, 2); NaN or infinite where they go to infinity."""
    there = np.concatenate([places, np.ones((len(places), 1))], 1) @ np.asarray(homography, np.float64).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return there[:, :2] / there[:, 2:]


def homography(corners: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The map of the plane that takes four places to four others, (3, 3), by the linear equations of Hartley and
    Zisserman, Multiple View Geometry (2nd edition, 2004), section 4.1.

    Args:
        corners, there: (4, 2), no three on a line.
    """
    x, y = corners.T
    one, none = np.ones(4), np.zeros(4)
    rows = []
    for axis, value in enumerate(there.T):
        own = (x, y, one, none, none, none) if axis == 0 else (none, none, none, x, y, one)
        rows.append(np.stack([*own, -value * x, -value * y], 1))
    try:
        solved = np.linalg.solve(np.concatenate(rows), there.T.ravel())
    except np.linalg.LinAlgError:
        return np.full((3, 3), np.nan)
    return np.append(solved, 1).reshape(3, 3)


def pick(mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The values of the pixels (h, w) bool at places (n, 2), False outside of the picture, (n,) bool."""
    height, width = mask.shape
    with np.errstate(invalid="ignore"):
        inside = (places >= 0).all(1) & (places < (width, height)).all(1)
    column, row = places[inside].astype(int).T
    found = np.zeros(len(places), bool)
    found[inside] = mask[row, column]
    return found


def sample(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bilinear values of (h, w, channels) at places (n, 2), those of the border beyond it, (n, channels) float64."""
    from scipy.ndimage import map_coordinates

    rows, columns = places[:, 1] - 0.5, places[:, 0] - 0.5
    return np.stack(
        [map_coordinates(picture[..., c].astype(np.float64), [rows, columns], order=1, mode="nearest")
         for c in range(picture.shape[-1])], 1,
    )  # fmt: skip
