"""The pictures that the planes of objects carry at first, taken from the training frames."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from manyscope.scopes.scenes.data.clip import HALF
from manyscope.scopes.scenes.data.placing.align import bilinear
from manyscope.scopes.scenes.data.placing.objects import Track

_OPACITY = (0.02, 0.98)
_MIXED_PX = 2  # so much of the object's edge has colours of the background in it
_MOST_DONORS = 8  # other frames that a hidden part is looked for in


def object_picture(
    track: Track,
    box: tuple[int, int, int, int],
    frames: np.ndarray,
    masks: np.ndarray,
    known: np.ndarray,
    number: int,
    longest_px: int,
) -> np.ndarray:
    """An object as its reference frame shows it; what another object or the border hides there is taken from the
    nearest frames that show it.

    Args:
        track: of the object.
        box: first column, first row, last column and last row beyond it, of the plane in the reference frame.
        frames: (n, H, W, 3) uint8.
        masks: (n, O, H, W) uint8.
        known: (n, O) bool.
        longest_px: longest edge; it has else one texel for each pixel.

    Returns:
        (h, w, 4) float32 in [0, 1]: colour, outside the object that of its nearest texel, and opacity.
    """
    height, width = frames.shape[1:3]
    left, top, right, bottom = box
    shrink = min(1.0, longest_px / max(right - left, bottom - top))
    columns, rows = (max(2, round(edge * shrink)) for edge in (right - left, bottom - top))
    across = left + (np.arange(columns) + 0.5) / columns * (right - left)
    down = top + (np.arange(rows) + 0.5) / rows * (bottom - top)
    places = ((across[None, :] - width / 2) + 1j * (down[:, None] - height / 2)).ravel()
    colour = np.zeros((len(places), 3), np.float32)
    opacity = np.zeros(len(places), np.float32)
    unknown = np.ones(len(places), bool)
    donors = sorted(np.flatnonzero(track.found & known[:, number]), key=lambda k: (abs(k - track.reference), k))
    for k in donors[: 1 + _MOST_DONORS]:
        missing = np.flatnonzero(unknown)
        if not len(missing):
            break
        at = track.motion[k](places[missing])
        x, y = at.real + width / 2 - 0.5, at.imag + height / 2 - 0.5
        shown = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
        others = np.delete(masks[k], number, axis=0).max(axis=0, initial=0) >= HALF
        near = np.rint(y).astype(int).clip(0, height - 1), np.rint(x).astype(int).clip(0, width - 1)
        shown &= ~others[near]
        chosen = missing[shown]
        sampled = bilinear(np.concatenate([frames[k], masks[k, number][..., None]], axis=2), x[shown], y[shown]) / 255
        colour[chosen], opacity[chosen] = sampled[:, :3], sampled[:, 3]
        unknown[chosen] = False
    inside = (opacity >= 0.5).reshape(rows, columns)
    core = ndimage.binary_erosion(inside, iterations=_MIXED_PX, border_value=1)
    # What is too thin to have a core keeps its own colour.
    sure = core | (inside & (ndimage.distance_transform_edt(~core) > 2 * _MIXED_PX + 1)) if core.any() else inside
    if not sure.any():
        sure = ~sure
    nearest = ndimage.distance_transform_edt(~sure, return_distances=False, return_indices=True)
    filled = colour.reshape(rows, columns, 3)[tuple(nearest)]
    return np.concatenate([filled, opacity.reshape(rows, columns, 1).clip(*_OPACITY)], axis=2).astype(np.float32)


def with_margin(box: tuple[int, int, int, int], margin: float) -> tuple[int, int, int, int]:
    """The box about the same middle, (1 + margin) times as wide and high, and at least three pixels more each way."""
    left, top, right, bottom = box
    more = [max(3, int(np.ceil(edge * margin / 2))) for edge in (right - left, bottom - top)]
    return left - more[0], top - more[1], right + more[0], bottom + more[1]


def extent(track: Track, masks: np.ndarray, number: int) -> tuple[int, int, int, int]:
    """The box that holds the object's masks of all frames where it was found, each brought to its reference frame.

    Args:
        masks: (n, O, H, W) uint8.

    Returns:
        First column, first row, last column and last row beyond it, in pixels of the reference frame; the box may go
        beyond the frame.
    """
    height, width = masks.shape[2:]
    corners = []
    for k in np.flatnonzero(track.found):
        rows, columns = np.nonzero(masks[k, number] >= HALF)
        if not len(rows):
            continue
        # Corners of the pixels on the outline are enough; those of the rows' and columns' ends hold them all.
        edge = masks[k, number] >= HALF
        edge &= ~ndimage.binary_erosion(edge)
        rows, columns = np.nonzero(edge)
        places = track.motion[k].inverse()((columns + 0.5 - width / 2) + 1j * (rows + 0.5 - height / 2))
        corners.append([places.real.min(), places.imag.min(), places.real.max(), places.imag.max()])
    own = corners[int(np.flatnonzero(np.flatnonzero(track.found) == track.reference)[0])]
    # A frame that was badly aligned must not blow the plane up.
    most = max(own[2] - own[0], own[3] - own[1], 1.0)
    low = np.maximum(np.min(corners, axis=0)[:2], np.array(own[:2]) - most)
    high = np.minimum(np.max(corners, axis=0)[2:], np.array(own[2:]) + most)
    left, top = np.floor(low - 0.5 + np.array([width, height]) / 2).astype(int)
    right, bottom = np.ceil(high + 0.5 + np.array([width, height]) / 2).astype(int)
    return int(left), int(top), int(right), int(bottom)


def unseen_picture(edge: int) -> np.ndarray:
    """Grey, and nearly transparent, (edge, edge, 4) float32."""
    picture = np.full((edge, edge, 4), 0.5, np.float32)
    picture[..., 3] = _OPACITY[0]
    return picture
