"""Drawing the views of a panorama.

Where each pixel of a view looks is found once, in units of the panorama's pixels, for a view at yaw 0: another yaw is
a shift by columns. What is seen there is interpolated linearly between four pixels. Columns go around; above the first
row is that row turned by half, as one walks over the pole, and so below the last.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from manyscope.errors import DataError
from manyscope.scopes.panoramas.settings import ViewSettings
from manyscope.scopes.panoramas.views.geometry import View, Views, angles, rays
from manyscope.scopes.panoramas.views.strategies import refuse_strips

CACHE_BYTES = 2**28
"""Most memory that a renderer keeps for the places of samples."""

_BITS = 11  # of the fraction of a pixel; products of two of them and a colour fit into 31 bits
_ONE = 1 << _BITS


class Renderer:
    """Draws views of panoramas, of any sizes.

    Args:
        views: what to draw.
        settings: `antialias` and `renderer` are read; views that `find_views` made of the same settings have the
            others.

    Raises:
        SettingsError: the renderer py360convert is to draw a view that is not in perspective.
    """

    def __init__(self, views: Views, settings: ViewSettings) -> None:
        refuse_strips(views.views, settings)
        self._views, self._settings = views, settings
        self._grids: OrderedDict[tuple[View, int], _Grid] = OrderedDict()  # the one used last is last

    def __call__(self, panorama: np.ndarray) -> np.ndarray:
        """(views, 3, size_px, size_px) uint8.

        Args:
            panorama: (H, 2H, 3) uint8.

        Raises:
            DataError: it is of another shape or type.
        """
        height = panorama.shape[0] if panorama.ndim else 0
        if not height or panorama.shape != (height, 2 * height, 3) or panorama.dtype != np.uint8:
            raise DataError(
                f"a panorama has shape {panorama.shape} of {panorama.dtype}", allowed="(H, 2 H, 3) of uint8"
            )
        size = self._views.size_px
        out = np.empty((len(self._views), 3, size, size), np.uint8)
        if self._settings.renderer == "py360convert":
            from py360convert import e2p

            for view, target in zip(self._views.views, out, strict=True):
                fields = view.width_deg, view.height_deg
                target[:] = e2p(panorama, fields, view.yaw_deg, view.pitch_deg, (size, size)).transpose(2, 0, 1)
            return out
        smaller = {(1, 1): np.ascontiguousarray(panorama)}
        for view, target in zip(self._views.views, out, strict=True):
            grid = self._grid(view, height)
            if grid.factors not in smaller:
                smaller[grid.factors] = _averaged(smaller[1, 1], *grid.factors)
            source = smaller[grid.factors]
            turned = source.shape[1] * _ONE
            _sample(source, grid.columns, grid.rows, round(view.yaw_deg / 360 * turned) % turned, target)
        return out

    def _grid(self, view: View, height: int) -> _Grid:
        key = replace(view, yaw_deg=0.0, is_global=False), height
        if key in self._grids:
            self._grids.move_to_end(key)
            return self._grids[key]
        found = _find_grid(key[0], self._views, height, self._settings.antialias)
        room = CACHE_BYTES - found.bytes
        if room >= 0:
            while sum(grid.bytes for grid in self._grids.values()) > room:
                self._grids.popitem(last=False)
            self._grids[key] = found
        return found


class _Grid(NamedTuple):
    """Where the samples of a view at yaw 0 lie.

    Attributes:
        factors: the panorama is made smaller by these before, its rows and its columns.
        columns: (size_px, size_px, samples) int32, in 1 / _ONE of the smaller one's pixels; from 0, below its width.
        rows: of the same shape and unit; from -1/2 to half a pixel before the height.
    """

    factors: tuple[int, int]
    columns: np.ndarray
    rows: np.ndarray

    @property
    def bytes(self) -> int:
        return self.columns.nbytes + self.rows.nbytes


def _find_grid(view: View, views: Views, height: int, antialias: bool) -> _Grid:
    down_ratio, across_ratio = _ratios(view, views, height) if antialias else (1.0, 1.0)
    if view.kind == "strip":
        down, across = _factor(down_ratio, height), _factor(across_ratio, height)
    else:  # its rows may go along the panorama's columns
        down = across = _factor(min(down_ratio, across_ratio), height)
    samples_down, samples_across = _samples(down_ratio / down), _samples(across_ratio / across)
    small_height, small_width = height // down, 2 * height // across
    size = views.size_px
    v, u = views.token_places(size * samples_down), views.token_places(size * samples_across)
    columns = np.empty((size, size, samples_down * samples_across), np.int32)
    rows = np.empty_like(columns)
    for row in range(size):  # all at once would take ten times the memory of the grid
        some = v[row * samples_down : (row + 1) * samples_down]
        yaw_deg, pitch_deg = angles(rays(view, *np.meshgrid(u, some)))
        x = _fixed((yaw_deg / 360 + 0.5) * small_width - 0.5) % (small_width * _ONE)
        y = _fixed((0.5 - pitch_deg / 180) * small_height - 0.5)
        for target, places in ((columns, x), (rows, y)):
            parts = places.reshape(samples_down, size, samples_across).swapaxes(0, 1)
            target[row] = parts.reshape(size, samples_down * samples_across)
    return _Grid((down, across), columns, rows)


def _ratios(view: View, views: Views, height: int) -> tuple[float, float]:
    """How many of the panorama's pixels go into one of the view's in its middle, downwards and across.

    In perspective both are counted in rows. Columns are narrower than that off the horizon, but a sphere's picture
    holds no finer detail there than its rows do.
    """
    first, second = views.token_places(views.size_px)[:2]
    half = (second - first) / 2  # a pixel's share of the view
    if view.kind == "strip":
        return half * view.height_deg / 180 * height, half * view.width_deg / 180 * height
    down, across = (2 * math.tan(math.radians(field) / 2) for field in (view.height_deg, view.width_deg))
    return half * down * height / math.pi, half * across * height / math.pi


def _factor(ratio: float, height: int) -> int:
    """By how much to make a panorama smaller along an axis before samples are taken.

    At least two of the smaller one's pixels then lie in a pixel of the view, so that interpolation between them blurs
    little. The factor divides the height, hence also half the width: poles and seam stay where they are.
    """
    return max(n for n in range(1, max(1, int(ratio / 2)) + 1) if height % n == 0)


def _samples(ratio: float) -> int:
    """How many samples a pixel of the view needs: one pixel or less apart they weigh all between them alike."""
    return max(1, math.ceil(ratio - 1e-6))


def _fixed(places: np.ndarray) -> np.ndarray:
    return np.rint(places * _ONE).astype(np.int32)


def _compiled(function: Any) -> Any:
    return njit(cache=True, nogil=True)(function)


@_compiled
def _sample(panorama: np.ndarray, columns: np.ndarray, rows: np.ndarray, shift: int, out: np.ndarray) -> None:
    """Means of samples of a panorama (H, W, 3), whose columns are moved by `shift`, into `out`, (3, h, w) uint8."""
    height, width = panorama.shape[0], panorama.shape[1]
    around, mask, samples = width << _BITS, _ONE - 1, columns.shape[2]
    share = 1 / (samples << 2 * _BITS)  # to multiply takes half the time of a division of integers
    for i in range(columns.shape[0]):
        for j in range(columns.shape[1]):
            red = green = blue = samples << (2 * _BITS - 1)  # rounds to the nearest
            for k in range(samples):
                x, y = columns[i, j, k] + shift, rows[i, j, k]
                if x >= around:
                    x -= around
                left, above = x >> _BITS, y >> _BITS
                right, below = left + 1, above + 1
                if right == width:
                    right = 0
                left_above = left_below = left
                right_above = right_below = right
                if above < 0:
                    above, left_above, right_above = 0, _opposite(left, width), _opposite(right, width)
                elif below == height:
                    below, left_below, right_below = above, _opposite(left, width), _opposite(right, width)
                to_right, to_below = x & mask, y & mask
                d = to_right * to_below
                b, c = (to_right << _BITS) - d, (to_below << _BITS) - d
                a = (1 << 2 * _BITS) - b - c - d
                red += (
                    a * panorama[above, left_above, 0]
                    + b * panorama[above, right_above, 0]
                    + c * panorama[below, left_below, 0]
                    + d * panorama[below, right_below, 0]
                )
                green += (
                    a * panorama[above, left_above, 1]
                    + b * panorama[above, right_above, 1]
                    + c * panorama[below, left_below, 1]
                    + d * panorama[below, right_below, 1]
                )
                blue += (
                    a * panorama[above, left_above, 2]
                    + b * panorama[above, right_above, 2]
                    + c * panorama[below, left_below, 2]
                    + d * panorama[below, right_below, 2]
                )
            out[0, i, j], out[1, i, j], out[2, i, j] = int(red * share), int(green * share), int(blue * share)


@_compiled
def _opposite(column: int, width: int) -> int:
    half = width // 2
    return column + half if column < half else column - half


@_compiled
def _averaged(panorama: np.ndarray, down: int, across: int) -> np.ndarray:
    """Means of blocks of down x across pixels, (H / down, W / across, 3) uint8."""
    height, width, number = panorama.shape[0] // down, panorama.shape[1] // across, down * across
    out = np.empty((height, width, 3), np.uint8)
    for i in range(height):
        for j in range(width):
            red = green = blue = number // 2  # rounds to the nearest
            for y in range(i * down, (i + 1) * down):
                for x in range(j * across, (j + 1) * across):
                    red += panorama[y, x, 0]
                    green += panorama[y, x, 1]
                    blue += panorama[y, x, 2]
            out[i, j, 0], out[i, j, 1], out[i, j, 2] = red // number, green // number, blue // number
    return out
