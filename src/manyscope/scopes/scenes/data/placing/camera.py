"""Where the camera is: read from a file, or found from how the background moves.

Without a file, the background is taken for a plane that faces the first camera at a distance D. A similarity of the
frame at time t to the first frame, x_first = s R(θ) x_t + τ in pixels from the middle, is then exactly what a camera
sees that rolled by θ, moved by D (1 - s) along its axis and by τ D / f across it, f being the focal length in pixels.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation, Slerp

from manyscope.errors import DataError
from manyscope.scopes.scenes.data.placing.align import (
    Level,
    Pyramid,
    Similarity,
    align,
    correlated_shift,
    grid,
    pyramid,
)
from manyscope.scopes.scenes.data.reading import LARGEST, read_own_json
from manyscope.scopes.scenes.splines import basis, fit

_REMEDY = "see docs/scenes.md for the form of a camera file"
_FOCAL = (0.01, 100.0)  # in pixels it would be more
_UNIT = 1e-3  # how far a quaternion or a rotation may be from length 1
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_DILATE_PX = 3  # masks are grown by so much where the background is aligned
_DILATE_GUESSED_PX = 8  # and by so much where they are those of other frames
_PARTNERS = 8  # frames that one is compared with
_PASSES = 2
_MEAN_LEVELS = 2  # sizes at which it is
_OVERLAP = 0.3  # of the area of a frame, for a partner


@dataclass(frozen=True)
class CameraPath:
    """Where a camera was, in a world of its own.

    Attributes:
        focal: focal length in widths of a frame.
        times: (n,) rising, in [0, 1]: 0 is the first frame and 1 the last.
        position: (n, 3).
        rotation: (n, 4) unit quaternions (w, x, y, z), camera to world; x right, y down, z forward.
    """

    focal: float
    times: np.ndarray
    position: np.ndarray
    rotation: np.ndarray

    def at(self, times: np.ndarray) -> tuple[np.ndarray, Rotation]:
        """Positions (m, 3) and rotations at (m,) times: between those given along a line and the shortest arc."""
        within = np.clip(times, self.times[0], self.times[-1])
        position = np.stack([np.interp(within, self.times, axis) for axis in self.position.T], axis=1)
        rotations = Rotation.from_quat(self.rotation, scalar_first=True)
        if len(self.times) == 1:
            return position, Rotation.concatenate([rotations] * len(within))
        return position, Slerp(self.times, rotations)(within)


@dataclass(frozen=True)
class FittedPath:
    """Control points of a path; see `Placement`.

    Attributes:
        position: (K, 3).
        rotation: (K, 4).
    """

    position: np.ndarray
    rotation: np.ndarray

    def at(self, times: np.ndarray) -> tuple[np.ndarray, Rotation]:
        """Positions (m, 3) and rotations at (m,) times."""
        weights = basis(times, len(self.position))
        return weights @ self.position, Rotation.from_quat(weights @ self.rotation, scalar_first=True)


def fit_path(times: np.ndarray, position: np.ndarray, rotation: Rotation, points: int) -> FittedPath:
    """The path nearest to positions (n, 3) and rotations at (n,) times."""
    quaternions = rotation.as_quat(scalar_first=True)
    # q and -q are the same rotation; neighbours must be near for what is between them.
    signs = np.cumprod(np.where((quaternions[1:] * quaternions[:-1]).sum(axis=1) < 0, -1, 1))
    quaternions[1:] *= signs[:, None]
    turned = fit(times, quaternions, points)
    turned /= np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-9)
    return FittedPath(fit(times, position, points), turned)


def lifted(motion: Sequence[Similarity], distance: float, focal_px: float) -> tuple[np.ndarray, Rotation]:
    """Positions (n, 3) and rotations of a camera that sees a plane at the distance move; see above.

    Args:
        motion: for each frame, takes its places to those of the first.
    """
    shift = np.array([similarity.shift for similarity in motion]) * distance / focal_px
    scale = np.array([similarity.scale for similarity in motion])
    position = np.stack([shift.real, shift.imag, distance * (1 - scale)], axis=1)
    turns = np.array([similarity.turn for similarity in motion])
    return position, Rotation.from_rotvec(turns[:, None] * np.array([0.0, 0.0, 1.0]))


def grey(frames: np.ndarray) -> np.ndarray:
    """Frames (..., H, W, 3) uint8 as float32 in [0, 1]."""
    return np.asarray(frames, np.float32) @ (_GREY / 255)


def covered(masks: np.ndarray, known: np.ndarray, grow_px: int = _DILATE_PX) -> np.ndarray:
    """Where objects are or may be, (n, H, W) bool; where a mask is not known, all that the nearest known ones cover.

    Args:
        masks: (n, O, H, W) uint8.
        known: (n, O) bool.
        grow_px: objects are grown by so much.
    """
    count, objects, height, width = masks.shape
    result = np.zeros((count, height, width), bool)
    for k in range(count):
        certain = np.zeros((height, width), bool)
        guessed = np.zeros((height, width), bool)
        for number in range(objects):
            if known[k, number]:
                certain |= masks[k, number] > 0
                continue
            others = np.flatnonzero(known[:, number])
            before, after = others[others < k][-1:], others[others > k][:1]
            for other in (*before, *after):
                guessed |= masks[other, number] > 0
        for part, grow in ((certain, grow_px), (guessed, max(grow_px, _DILATE_GUESSED_PX))):
            if part.any():
                result[k] |= ndimage.maximum_filter(part, 2 * grow + 1)
    return result


def track_background(greys: np.ndarray, hidden: np.ndarray, align_px: int) -> list[Similarity]:
    """For each frame the similarity that takes its places to those of the first.

    Neighbours are aligned first; then each frame, several times, to the mean of others that overlap it, so that errors
    do not pile up.

    Args:
        greys: (n, H, W) float32.
        hidden: (n, H, W) bool, pixels that are not background.
        align_px: longest edge of what is aligned.
    """
    height, width = greys.shape[1:]
    pictures = [
        pyramid(image[..., None], ~mask[..., None], align_px) for image, mask in zip(greys, hidden, strict=True)
    ]
    steps = [Similarity()]
    to_first = [Similarity()]
    for now, before in zip(pictures[1:], pictures, strict=False):
        found = align(now, before, [Similarity(), steps[-1], correlated_shift(now, before)])
        steps.append(found.transform if np.isfinite(found.error) else Similarity())
        to_first.append(to_first[-1].after(steps[-1]))
    for _ in range(_PASSES if len(pictures) > 2 else 0):
        for k in range(1, len(pictures)):
            partners = _partners(to_first, k, height, width)
            mean = _mean_seen_from(pictures, to_first, k, partners)
            found = align(pictures[k], mean, [Similarity()], len(mean))
            if np.isfinite(found.error):
                to_first[k] = to_first[k].after(found.transform)
    return to_first


def _partners(to_first: Sequence[Similarity], k: int, height: int, width: int) -> list[int]:
    """Frames that overlap frame k, the first and the neighbours among them, spread over the clip."""
    overlapping = []
    for j, similarity in enumerate(to_first):
        seen = similarity.inverse().after(to_first[k])  # from frame k to frame j
        spans: list[float] = [
            max(0.0, min(edge, 2 * at + seen.scale * edge) - max(-edge, 2 * at - seen.scale * edge)) / 2
            for edge, at in ((width, seen.shift.real), (height, seen.shift.imag))
        ]
        if j != k and spans[0] * spans[1] >= _OVERLAP * height * width * min(1.0, seen.scale**2):
            overlapping.append(j)
    neighbours = [j for j in (k - 1, k + 1) if 0 <= j < len(to_first)]
    spread = (
        [overlapping[i] for i in np.linspace(0, len(overlapping) - 1, _PARTNERS).astype(int)] if overlapping else []
    )
    return sorted({*neighbours, *spread})


def _mean_seen_from(
    pictures: Sequence[Pyramid], to_first: Sequence[Similarity], k: int, partners: list[int]
) -> Pyramid:
    """The mean of the partners as frame k would see them."""
    levels = []
    for number, level in enumerate(pictures[k][:_MEAN_LEVELS]):
        height, width = level.values.shape[:2]
        places = grid(height, width, level.shrink).ravel()
        total = np.zeros((height * width, 1), np.float32)
        amount = np.zeros((height * width, 1), np.float32)
        for j in partners:
            values, weights = pictures[j][number].sample(to_first[j].inverse().after(to_first[k])(places))
            total += weights * values
            amount += weights
        mean = total / np.maximum(amount, 1e-6)
        levels.append(
            Level(level.shrink, mean.reshape(height, width, 1), np.minimum(amount, 1).reshape(height, width, 1))
        )
    return levels


def read_camera(path: Path) -> CameraPath:
    """A camera's path from a JSON file.

    It has `focal`, in widths of a frame, `times` (n,), `position` (n, 3) and `rotation` (n, 4), quaternions (w, x, y,
    z), or instead of the last two `pose` (n, 3 or 4, 4), camera to world. The camera files of Neural Atlas Graphs are
    read too: `resolution`, `focal_length`, `principal_point` (the middle alone), `times`, and poses in `position`.

    Raises:
        DataError: the file is missing, is no JSON, lacks a part, or a part has a wrong form or value.
    """
    content = read_own_json(path, "camera file", _REMEDY)
    if not isinstance(content, dict):
        raise DataError(f"holds a {type(content).__name__}", place=path, allowed="an object", remedy=_REMEDY)
    focal = float(_numbers(path, content, "focal" if "focal" in content else "focal_length", ((),)))
    if not _FOCAL[0] <= focal <= _FOCAL[1]:
        allowed = f"{_FOCAL[0]} to {_FOCAL[1]}, in widths of a frame"
        raise DataError(f"focal length {focal}", place=path, allowed=allowed, remedy=_REMEDY)
    _check_lens(path, content)
    times = _numbers(path, content, "times", ((None,),))
    if not len(times) or (np.diff(times) <= 0).any() or times[0] < 0 or times[-1] > 1:
        raise DataError("times are not rising in [0, 1]", place=path, remedy=_REMEDY)
    count = len(times)
    poses = "pose" if "pose" in content else "position" if "rotation" not in content else None
    if poses is not None:
        matrices = _numbers(path, content, poses, ((count, 3, 4), (count, 4, 4)))
        position, turns = matrices[:, :3, 3], matrices[:, :3, :3]
        wrong = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2)) > _UNIT * 10
        wrong |= np.linalg.det(turns) < 0
        if wrong.any():
            raise DataError(f"pose {int(np.argmax(wrong))} has no rotation in its first three columns", place=path)
        rotation = Rotation.from_matrix(turns).as_quat(scalar_first=True)
    else:
        position = _numbers(path, content, "position", ((count, 3),))
        rotation = _numbers(path, content, "rotation", ((count, 4),))
        lengths = np.linalg.norm(rotation, axis=1, keepdims=True)
        if (np.abs(lengths - 1) > _UNIT * 10).any():
            raise DataError("rotations are no unit quaternions (w, x, y, z)", place=path, remedy=_REMEDY)
        rotation = rotation / lengths
    return CameraPath(focal, times, position, rotation)


def _check_lens(path: Path, content: dict[str, Any]) -> None:
    if content.get("principal_point") is not None:
        point = _numbers(path, content, "principal_point", ((2,),))
        middles = [np.array([0.5, 0.5])]
        if content.get("resolution") is not None:
            middles.append(_numbers(path, content, "resolution", ((2,),)) / 2)
        if not any((np.abs(point - middle) <= 0.01 * 2 * middle).all() for middle in middles):
            raise DataError(
                f"principal_point is {point.tolist()}",
                place=path,
                allowed="the middle of the frame",
                remedy="crop the frames around it, or leave it out",
            )
    for name in ("skew", "lens_distortion", "distortion"):
        value = content.get(name)
        if value is not None and np.any(np.asarray(value, dtype=object) != 0):
            found = f"{name} is {reprlib.repr(value)}"
            raise DataError(found, place=path, allowed="0", remedy="rectify the frames, or leave it out")


def _numbers(path: Path, content: dict[str, Any], name: str, shapes: tuple[tuple[int | None, ...], ...]) -> np.ndarray:
    if name not in content:
        raise DataError(f"has no {name!r}", place=path, remedy=_REMEDY)
    try:
        array = np.asarray(content[name], dtype=float)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{name!r} is no array of numbers", place=path, remedy=_REMEDY) from error
    if array.size == 1 and () in shapes:
        array = array.reshape(())
    fits = any(
        array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
        for shape in shapes
    )
    if not fits or not (np.abs(array) <= LARGEST).all():
        allowed = " or ".join(
            " x ".join("n" if edge is None else str(edge) for edge in s) or "a number" for s in shapes
        )
        found = f"has shape {array.shape}" if not fits else f"holds numbers that are not finite or above {LARGEST:g}"
        raise DataError(f"{name!r} {found}", place=path, allowed=allowed, remedy=_REMEDY)
    return array
