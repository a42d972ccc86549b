"""Where objects are: each is followed from the frame that shows it best, and lifted to a plane before the camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from manyscope.scopes.scenes.data.clip import HALF
from manyscope.scopes.scenes.data.placing.align import (
    Level,
    Pyramid,
    Similarity,
    align,
    bilinear,
    errors,
    grid,
    pyramid,
)
from manyscope.scopes.scenes.data.placing.camera import FittedPath, covered, fit_path

_LEAST_PX = 12  # of a mask that is followed
_LEAST_SHARE = 0.03  # of the reference's area
_BORDER_PX = 2
_MASK_SMOOTH_PX = 2.0  # of the frames that are aligned
_REACH_PX = 8  # masks are compared so far around the reference
_BRIGHTNESS_LEVELS = 3  # sizes at which brightness is aligned alone
_BRIGHTNESS_GAIN = 0.95  # of the error of both, which this must bring
_SCALES = (0.1, 10.0)  # of an object relative to its reference
_LEAST_VOTE_PX = 5
_FARTHEST = 0.8  # of the background's distance
_APART = 0.9  # the nearer object's greatest depth over the farther one's least
_TOO_NEAR = 0.02  # of the background's distance


@dataclass(frozen=True)
class Track:
    """One object through the training frames.

    Attributes:
        reference: the frame, in order among the training frames, that the object's picture is from.
        found: (n,) bool, the frames in which it was followed.
        motion: takes places of the reference frame to those of each frame; of frames that are not found, the nearest
            found one's.
    """

    reference: int
    found: np.ndarray
    motion: list[Similarity]


def reference_frame(masks: np.ndarray, known: np.ndarray, number: int) -> int | None:
    """The frame with the largest mask of the object that border and other objects cut least, None without any.

    Args:
        masks: (n, O, H, W) uint8.
        known: (n, O) bool.
    """
    scores = np.zeros(len(masks))
    for k in np.flatnonzero(known[:, number]):
        inside = masks[k, number] >= HALF
        area = int(inside.sum())
        if area < _LEAST_PX:
            continue
        others = (np.delete(masks[k], number, axis=0) >= HALF).any(axis=0)
        others[:_BORDER_PX] = others[-_BORDER_PX:] = True
        others[:, :_BORDER_PX] = others[:, -_BORDER_PX:] = True
        edge = inside & ~ndimage.binary_erosion(inside, iterations=_BORDER_PX, border_value=0)
        cut = float((edge & ndimage.maximum_filter(others, 2 * _BORDER_PX + 1)).sum()) / max(int(edge.sum()), 1)
        scores[k] = area * (1 - cut) ** 2 + 1e-6 * area
    return int(np.argmax(scores)) if scores.any() else None


def follow(greys: np.ndarray, masks: np.ndarray, known: np.ndarray, number: int, align_px: int) -> Track | None:
    """The object's motion, frame by frame outwards from its reference; None if no frame shows it.

    Brightness inside both masks and the masks themselves are compared with the reference frame's, where no other object
    hides them and the frame does not end. It starts from the neighbouring frame's motion, or from the masks' centres
    and areas if these fit better.

    Args:
        greys: (n, H, W) float32.
        masks: (n, O, H, W) uint8.
        known: (n, O) bool.
        align_px: longest edge of what is aligned.
    """
    reference = reference_frame(masks, known, number)
    if reference is None:
        return None
    count = len(masks)
    areas = (masks[:, number] >= HALF).sum(axis=(1, 2))
    found = known[:, number] & (areas >= max(_LEAST_PX, _LEAST_SHARE * areas[reference]))
    template = _pyramid(greys, masks, number, reference, align_px, near=True)
    motion = [Similarity()] * count
    for frames in (range(reference + 1, count), range(reference - 1, -1, -1)):
        last = reference
        step = Similarity()
        for k in frames:
            motion[k] = motion[last]
            if not found[k]:
                continue
            moving = _pyramid(greys, masks, number, k, align_px, near=False)
            starts = [motion[last], step.after(motion[last])]
            for other in {reference, last}:
                moved = _by_moments(masks[other, number], masks[k, number])
                starts += [
                    moved.after(motion[other]),
                    Similarity(shift=_centre(masks[k, number]) - _centre(masks[other, number])).after(motion[other]),
                ]
            best = align(template, moving, starts)
            found[k] = np.isfinite(best.error) and _SCALES[0] < best.transform.scale < _SCALES[1]
            if found[k]:
                motion[k] = _by_brightness(template, moving, best.transform)
                step = Similarity(shift=complex(motion[k].shift - motion[last].shift) / abs(k - last))
                last = k
    return Track(reference, found, motion)


def _by_brightness(template: Pyramid, moving: Pyramid, start: Similarity) -> Similarity:
    """What brightness alone says, if it agrees better by more than the masks agree worse: masks that are drawn too wide
    or too narrow in single frames would else pass for a change of size."""
    alone, other = (
        [Level(level.shrink, level.values[..., :1], level.weights[..., :1]) for level in levels[:_BRIGHTNESS_LEVELS]]
        for levels in (template, moving)
    )
    refined = align(alone, other, [start]).transform
    before, after = (errors(template[0], moving[0], transform) for transform in (start, refined))
    return refined if after.sum() < _BRIGHTNESS_GAIN * before.sum() else start


def _pyramid(greys: np.ndarray, masks: np.ndarray, number: int, k: int, align_px: int, near: bool) -> Pyramid:
    """Brightness, believed inside the mask, and the mask, believed where no other object may hide it."""
    height, width = greys.shape[1:]
    mask = masks[k, number].astype(np.float32) / 255
    smooth_px = _MASK_SMOOTH_PX * max(1.0, max(height, width) / align_px)
    smooth = ndimage.gaussian_filter(mask, smooth_px, mode="nearest")
    others = np.delete(masks[k], number, axis=0).max(axis=0, initial=0) > 0
    seen = ~ndimage.maximum_filter(others, 3) if others.any() else np.ones_like(others)
    if near:
        reach = int(np.ceil(_REACH_PX * smooth_px / _MASK_SMOOTH_PX))
        seen &= ndimage.maximum_filter(mask, 2 * reach + 1) > 0
        # Beyond the border of the frame the object goes on, or not.
        rim = int(np.ceil(smooth_px))
        seen[:rim] = seen[-rim:] = False
        seen[:, :rim] = seen[:, -rim:] = False
    return pyramid(np.stack([greys[k], smooth], axis=2), np.stack([mask, seen], axis=2), align_px)


def _centre(mask: np.ndarray) -> complex:
    weight = mask.astype(float)
    return complex((weight * grid(*mask.shape)).sum() / max(weight.sum(), 1e-9))


def _by_moments(first: np.ndarray, second: np.ndarray) -> Similarity:
    """The shift and scale that take the first mask's centre and area to the second's."""
    scale = float(np.clip((second.sum(dtype=float) / max(first.sum(dtype=float), 1.0)) ** 0.5, *_SCALES))
    return Similarity(complex(scale), _centre(second) - scale * _centre(first))


def front_to_back(tracks: Sequence[Track | None], masks: np.ndarray, known: np.ndarray, align_px: int) -> list[int]:
    """The objects from the nearest to the farthest.

    Where two objects' reference masks, moved to a frame, overlap, the one whose mask is there is in front; the majority
    of the frames decides. Where no frame does, the one that reaches farther down is nearer.

    Args:
        masks: (n, O, H, W) uint8.
        known: (n, O) bool.
    """
    count, objects, height, width = masks.shape
    shrink = min(1.0, align_px / max(height, width))
    size = max(1, int(height * shrink)), max(1, int(width * shrink))
    places = grid(*size, shrink).ravel()

    def seen(mask: np.ndarray, at: np.ndarray) -> np.ndarray:
        x, y = at.real + width / 2 - 0.5, at.imag + height / 2 - 0.5
        inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
        return (bilinear(mask[..., None], x, y)[:, 0] >= HALF) & inside

    votes = np.zeros((objects, objects), int)  # [i, j]: frames in which i is before j, less those in which it is not
    for k in range(count):
        there = {i: track for i, track in enumerate(tracks) if track is not None and track.found[k]}
        moved = {i: seen(masks[t.reference, i], t.motion[k].inverse()(places)) for i, t in there.items()}
        shown = {i: seen(masks[k, i], places) for i in there}
        for i in there:
            for j in there:
                both = moved[i] & moved[j] if i < j else np.zeros(1, bool)
                if not both.any():
                    continue
                lead = int((both & shown[i] & ~shown[j]).sum()) - int((both & shown[j] & ~shown[i]).sum())
                if abs(lead) >= _LEAST_VOTE_PX:
                    votes[i, j] += np.sign(lead)
                    votes[j, i] -= np.sign(lead)
    return _ranked(votes, _bottoms(masks, known))


def _bottoms(masks: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The mean lowest row of each object, (O,)."""
    result = np.full(masks.shape[1], -1.0)
    for number in range(masks.shape[1]):
        rows = [np.flatnonzero((mask >= HALF).any(axis=1)) for mask in masks[known[:, number], number]]
        lowest = [row[-1] for row in rows if len(row)]
        result[number] = np.mean(lowest) if lowest else -1.0
    return result


def _ranked(votes: np.ndarray, height: np.ndarray) -> list[int]:
    """Objects one by one: the next is the one that the fewest of those left are before, then that with the greatest
    height."""
    left = list(range(len(votes)))
    order = []
    while left:
        behind = {i: sum(max(0, votes[j, i]) for j in left) for i in left}
        order.append(min(left, key=lambda i: (behind[i], -height[i], i)))
        left.remove(order[-1])
    return order


def reference_depths(
    order: Sequence[int], scales: Sequence[np.ndarray], wanted: np.ndarray, far: np.ndarray
) -> np.ndarray:
    """The depth of each object in its reference frame, (O,): all keep their order, and are before the background.

    The ranges of depth of two objects never overlap; but if many objects that come near or go away would then crowd
    before the camera, their depths are only kept apart within each frame.

    Args:
        order: objects from the nearest to the farthest.
        scales: for each object (n,), its scale relative to its reference: its depth is that of the reference over it.
        wanted: (O,) depths that would be best, infinite where there is no wish; none becomes greater.
        far: (n,), the distance of the background.
    """
    for by_frame in (False, True):
        depth = np.zeros(len(order))
        limit = _FARTHEST * (far if by_frame else np.full_like(far, far.min()))
        for number in reversed(order):
            depth[number] = min(wanted[number], float((limit * scales[number]).min()))
            if not by_frame:
                depth[number] = min(wanted[number], float(limit[0] * scales[number].min()))
            reached = depth[number] / scales[number]
            limit = _APART * (reached if by_frame else np.full_like(far, reached.min()))
        if not len(depth) or depth.min() > _TOO_NEAR * far.min():
            break
    return depth


@dataclass(frozen=True)
class Along:
    """An object through the n training frames.

    Attributes:
        used: indices of the frames that its path is fitted to.
        centres: (n,) complex places of its plane's middle.
        scales: (n,) relative to its reference frame.
        turns: (n,) in radians, without jumps.
    """

    used: np.ndarray
    centres: np.ndarray
    scales: np.ndarray
    turns: np.ndarray


def along(track: Track, times: np.ndarray, middle: complex = 0j) -> Along:
    """How a track goes on.

    Before the first and after the last frame in which it was found, it goes on at the speed that it had, with the same
    size and turn; between them, frames without it are left to the spline.

    Args:
        times: (n,) of the training frames.
        middle: place of the plane's middle in the reference frame.
    """
    found = np.flatnonzero(track.found)
    first, last = int(found[0]), int(found[-1])
    used = np.array([k for k in range(len(times)) if track.found[k] or k < first or k > last])
    centres = np.array([motion(np.array(middle)) for motion in track.motion])
    scales = np.array([motion.scale for motion in track.motion])
    turns = np.array([motion.turn for motion in track.motion])
    turns[found] = np.unwrap(turns[found])
    for end, before, rest in (
        (first, found[min(1, len(found) - 1)], range(first)),
        (last, found[max(-2, -len(found))], range(last + 1, len(times))),
    ):
        speed = (centres[end] - centres[before]) / (times[end] - times[before]) if before != end else 0
        for k in rest:
            centres[k] = centres[end] + speed * (times[k] - times[end])
            scales[k], turns[k] = scales[end], turns[end]
    return Along(used, centres, scales, turns)


def lift(
    centres: np.ndarray,
    depths: np.ndarray,
    turns: np.ndarray,
    camera: tuple[np.ndarray, Rotation],
    times: np.ndarray,
    focal_px: float,
    points: int,
) -> FittedPath:
    """The path of a plane that is parallel to the camera's picture in each frame.

    Args:
        centres: (m,) complex, of the plane in the frames, in pixels from their middles.
        depths: (m,) along the camera's axis.
        turns: (m,) in radians, about it.
        camera: positions (m, 3) and rotations of the camera.
        times: (m,).
        points: control points of the path.
    """
    position, rotation = camera
    rays = np.stack([centres.real / focal_px, centres.imag / focal_px, np.ones(len(centres))], axis=1)
    placed = position + rotation.apply(depths[:, None] * rays)
    return fit_path(times, placed, rotation * Rotation.from_rotvec(turns[:, None] * np.array([0.0, 0.0, 1.0])), points)


def median_depths(depth: np.ndarray, masks: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, float]:
    """The median depth of each object, (O,), infinite where no mask shows it, and that of all else.

    Args:
        depth: (n, H, W).
        masks: (n, O, H, W) uint8.
        known: (n, O) bool.
    """

    def middle(chosen: Sequence[np.ndarray]) -> float:
        medians = [float(np.median(values)) for values in chosen if values.size]
        return float(np.median(medians)) if medians else float("inf")

    objects = [
        middle([depth[k][masks[k, i] >= HALF] for k in np.flatnonzero(known[:, i])]) for i in range(masks.shape[1])
    ]
    rest = covered(masks, known, 0)
    return np.array(objects), middle([image[~hidden] for image, hidden in zip(depth, rest, strict=True)])
