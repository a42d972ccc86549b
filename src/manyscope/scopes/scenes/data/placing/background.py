"""The background: a plane that all frames fit on, and the picture that it carries at first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from manyscope.scopes.scenes.data.placing.align import bilinear, grid
from manyscope.scopes.scenes.data.placing.camera import covered

_DILATE_PX = 2  # masks are grown by so much in the background's picture
_CLEAR_SHARE = 0.015  # of the longest edge: pixels so far from masks, where soft edges end, are preferred
_STRIP = 2**21  # texels times frames that are held at once
_FARTHEST = 20.0  # distances of the plane that the background reaches at most, where a camera looks along it
_FILL_SIGMA = 0.02  # of the longest edge
_MATCH_PX = 160  # longest edge of the frames that are compared for the distance
_MATCH_SMOOTH = 0.6  # of their pixels
_MATCH_PAIRS = 4
_MATCH_STEPS = 48
_MATCH_RANGE = 100.0  # greatest distance tried, over the least and over the camera's way
_MATCH_CUT = 0.2  # differences of brightness count no more than this
_MATCH_GAIN = 0.98  # a distance is taken if it brings the differences of the least one below this share


def facing(poses: tuple[np.ndarray, Rotation], distance: float) -> tuple[Rotation, np.ndarray]:
    """The rotation of a plane that faces the mean direction of the cameras, and a point of it so far before the
    foremost of them.

    Args:
        poses: positions (n, 3) and rotations of the camera.
    """
    position, turn = poses
    mean = turn.mean()
    ahead = mean.apply([0.0, 0.0, 1.0])
    middle = position.mean(axis=0)
    return mean, middle + ahead * (float(((position - middle) @ ahead).max()) + distance)


def matching_distance(
    greys: np.ndarray, hidden: np.ndarray, poses: tuple[np.ndarray, Rotation], focal_px: float, least: float
) -> float:
    """The distance, as in `facing`, of the plane on which the frames agree best; the least one where none is better, as
    with a camera that only turns.

    Args:
        greys: (n, H, W) float32.
        hidden: (n, H, W) bool, pixels that are not background.
        poses: positions (n, 3) and rotations of the camera.
        least: no distance below it is tried.
    """
    position, turn = poses
    way = float(np.linalg.norm(position - position.mean(axis=0), axis=1).max())
    count, height, width = greys.shape
    if way <= 0 or count < 2:
        return least
    step = max(1.0, max(height, width) / _MATCH_PX)
    images = [
        np.stack([ndimage.gaussian_filter(image, _MATCH_SMOOTH * step), ~mask], axis=2)
        for image, mask in zip(greys, hidden, strict=True)
    ]
    middle = count // 2
    others = [int(k) for k in np.unique(np.linspace(0, count - 1, _MATCH_PAIRS + 1).round()) if int(k) != middle]
    places = grid(int(height / step), int(width / step), 1 / step).ravel()
    own = bilinear(images[middle], places.real + width / 2 - 0.5, places.imag + height / 2 - 0.5)
    rays = turn[middle].apply(np.stack([places.real / focal_px, places.imag / focal_px, np.ones(len(places))], axis=1))

    def difference(distance: float) -> float:
        rotation, point = facing(poses, distance)
        normal = rotation.apply([0.0, 0.0, 1.0])
        slope = np.maximum(rays @ normal, 1 / _FARTHEST)
        met = position[middle] + (((point - position[middle]) @ normal) / slope)[:, None] * rays
        total, amount = 0.0, 1e-9
        for k in others:
            x, y, z = turn[k].inv().apply(met - position[k]).T
            ahead = z > 1e-6
            depth = np.where(ahead, z, 1.0)
            column, row = focal_px * x / depth + width / 2 - 0.5, focal_px * y / depth + height / 2 - 0.5
            inside = ahead & (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
            found = bilinear(images[k], column, row)
            weight = inside * own[:, 1] * found[:, 1]
            total += float((weight * np.minimum(np.abs(found[:, 0] - own[:, 0]), _MATCH_CUT)).sum())
            amount += float(weight.sum())
        return total / amount if amount > 0.1 * len(places) else _MATCH_CUT

    tried = np.geomspace(least, _MATCH_RANGE * max(least, way), _MATCH_STEPS)
    differences = np.array([difference(distance) for distance in tried])
    best = int(np.argmin(differences))
    if differences[best] >= _MATCH_GAIN * differences[0]:
        return least
    finer = np.geomspace(tried[max(best - 1, 0)], tried[min(best + 1, _MATCH_STEPS - 1)], 17)
    return float(min(finer, key=difference))


def background_depth(
    point: np.ndarray,
    rotation: Rotation,
    poses: tuple[np.ndarray, Rotation],
    frame: tuple[int, int],
    focal_px: float,
) -> np.ndarray:
    """The least depth of the plane along the axis of each camera, within what it sees, (n,)."""
    normal = rotation.apply([0.0, 0.0, 1.0])
    position, turn = poses
    ahead = (point - position) @ normal
    slopes = np.stack([turn.apply(ray) @ normal for ray in _corners(frame, focal_px)], axis=1)
    return ahead / np.maximum(slopes.max(axis=1), 1 / _FARTHEST)


def _corners(frame: tuple[int, int], focal_px: float) -> np.ndarray:
    """Rays through the corners of a frame, (4, 3)."""
    x, y = frame[1] / 2 / focal_px, frame[0] / 2 / focal_px
    return np.array([[-x, -y, 1], [x, -y, 1], [x, y, 1], [-x, y, 1]])


@dataclass(frozen=True)
class BackgroundPlane:
    """
    Attributes:
        position: (3,) of its middle.
        rotation: plane to world.
        size: (2,), width and height.
        texels: columns and rows of its picture.
    """

    position: np.ndarray
    rotation: Rotation
    size: np.ndarray
    texels: tuple[int, int]


def background_plane(
    point: np.ndarray,
    rotation: Rotation,
    camera: tuple[np.ndarray, Rotation],
    frame: tuple[int, int],
    focal_px: float,
    margin: float,
    longest_px: int,
) -> BackgroundPlane:
    """A plane through a point that holds all that a camera sees of it, and so much more.

    Args:
        point: (3,).
        rotation: of the plane, to the world.
        camera: positions (n, 3) and rotations, over the whole clip.
        frame: height and width in pixels.
        margin: of the size.
        longest_px: longest edge of its picture, which else has one texel for the smallest pixel.
    """
    rays = _corners(frame, focal_px)
    position, turn = camera
    back = rotation.inv()
    start = back.apply(position - point)  # (n, 3)
    distance = -start[:, 2]
    local = np.stack([(back * turn).apply(ray) for ray in rays], axis=1)  # (n, 4, 3)
    # A ray that runs along the plane, or away from it, meets it nowhere near.
    steps = distance[:, None] / np.maximum(local[..., 2], 1 / _FARTHEST)
    met = start[:, None, :2] + steps[..., None] * local[..., :2]
    low, high = met.min(axis=(0, 1)), met.max(axis=(0, 1))
    size = (high - low) * (1 + margin)
    texel = max(float(distance.min()) / focal_px, float(size.max()) / longest_px)
    columns, rows = (max(2, int(np.ceil(edge / texel - 1e-6))) for edge in size)
    middle = point + rotation.apply(np.append((low + high) / 2, 0.0))
    return BackgroundPlane(middle, rotation, np.array([columns, rows]) * texel, (columns, rows))


def background_picture(
    plane: BackgroundPlane,
    frames: np.ndarray,
    masks: np.ndarray,
    known: np.ndarray,
    camera: tuple[np.ndarray, Rotation],
    focal_px: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The median, texel by texel, of the frames that show it without objects; what none shows is filled from around it.

    Args:
        frames: (n, H, W, 3) uint8.
        masks: (n, O, H, W) uint8.
        known: (n, O) bool.
        camera: positions (n, 3) and rotations.

    Returns:
        The picture (h, w, 3) float32 in [0, 1] and the texels that were seen, (h, w) bool.
    """
    count, height, width = frames.shape[:3]
    hidden = covered(masks, known, _DILATE_PX)
    clear = ~covered(masks, known, max(_DILATE_PX, round(_CLEAR_SHARE * max(height, width))))
    columns, rows = plane.texels
    across = ((np.arange(columns) + 0.5) / columns - 0.5) * plane.size[0]
    down = ((np.arange(rows) + 0.5) / rows - 0.5) * plane.size[1]
    picture = np.zeros((rows, columns, 3), np.float32)
    seen = np.zeros((rows, columns), bool)
    sure = np.zeros((rows, columns), bool)
    position, turn = camera
    # Each texel in a camera's axes is an offset, plus so much for each column, plus so much for each row.
    offset = turn.inv().apply(plane.position - position)
    per_column, per_row = ((turn.inv() * plane.rotation).apply(axis) for axis in np.eye(3)[:2])
    strip = max(1, _STRIP // max(1, count * columns))
    for top in range(0, rows, strip):
        part = slice(top, min(top + strip, rows))
        shape = (part.stop - part.start, columns)
        values = np.full((count, *shape, 3), np.inf, np.float32)
        trusted = np.zeros((count, *shape), bool)
        for k in range(count):
            x, y, z = (
                offset[k, axis] + per_column[k, axis] * across[None, :] + per_row[k, axis] * down[part, None]
                for axis in range(3)
            )
            ahead = z > 1e-6
            depth = np.where(ahead, z, 1.0)
            column = focal_px * x / depth + width / 2 - 0.5
            row = focal_px * y / depth + height / 2 - 0.5
            shown = ahead & (column >= -0.5) & (column <= width - 0.5) & (row >= -0.5) & (row <= height - 0.5)
            at = np.flatnonzero(shown)
            x_at, y_at = column.ravel()[at], row.ravel()[at]
            near = np.rint(y_at).astype(int).clip(0, height - 1), np.rint(x_at).astype(int).clip(0, width - 1)
            trusted[k].reshape(-1)[at] = clear[k][near]
            free = ~hidden[k][near]
            at, x_at, y_at = at[free], x_at[free], y_at[free]
            values[k].reshape(-1, 3)[at] = bilinear(frames[k], x_at, y_at) / 255
        values[~trusted & trusted.any(axis=0)] = np.inf
        amount = np.isfinite(values[..., 0]).sum(axis=0)
        values.sort(axis=0)  # frames that do not show a texel come last
        middle = np.stack([np.maximum(amount - 1, 0) // 2, amount // 2])
        middle = np.minimum(middle, count - 1)[:, :, :, None]
        picture[part] = np.take_along_axis(values, middle, axis=0).mean(axis=0)
        seen[part] = amount > 0
        sure[part] = trusted.any(axis=0)
    picture[~seen] = 0.5
    return _filled(picture, seen, sure if sure.any() else seen), seen


def _filled(picture: np.ndarray, seen: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """What was not seen takes the colour of the nearest texel that is sure, blurred."""
    if seen.all() or not seen.any():
        return picture
    nearest = ndimage.distance_transform_edt(~sure, return_distances=False, return_indices=True)
    full = picture[tuple(nearest)]
    sigma = max(1.0, _FILL_SIGMA * max(seen.shape))
    blurred = ndimage.gaussian_filter(full, (sigma, sigma, 0), mode="nearest")
    return np.where(seen[..., None], picture, blurred)
