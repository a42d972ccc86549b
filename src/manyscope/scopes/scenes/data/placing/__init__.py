"""The placement of a scene before the training: where everything is, and how it looks, as the training frames show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from manyscope.log import logger
from manyscope.scopes.scenes.data.placing.background import (
    background_depth,
    background_picture,
    background_plane,
    facing,
    matching_distance,
)
from manyscope.scopes.scenes.data.placing.camera import (
    CameraPath,
    FittedPath,
    covered,
    fit_path,
    grey,
    lifted,
    track_background,
)
from manyscope.scopes.scenes.data.placing.objects import (
    Track,
    along,
    follow,
    front_to_back,
    lift,
    median_depths,
    reference_depths,
)
from manyscope.scopes.scenes.data.placing.pictures import extent, object_picture, unseen_picture, with_margin
from manyscope.scopes.scenes.placement import Placement

if TYPE_CHECKING:
    from manyscope.scopes.scenes.settings import PlacementSettings

_BOXES_BEFORE = 2.0  # the background is so much farther than the farthest box
_UNSEEN_PX = 16  # size of an object that no training frame shows


def place(
    frames: np.ndarray,
    masks: np.ndarray,
    known: np.ndarray,
    times: np.ndarray,
    trained: np.ndarray | Sequence[int],
    settings: PlacementSettings,
    depth: np.ndarray | None = None,
    camera: CameraPath | None = None,
    boxes: np.ndarray | None = None,
) -> Placement:
    """Place camera, background and objects.

    Args:
        frames: (T, H, W, 3) uint8.
        masks: (T, O, H, W) uint8, 255 inside.
        known: (T, O) bool, False where a mask is not known.
        times: (T,) in [0, 1].
        trained: positions of the training frames, ascending; nothing of the other frames is looked at.
        settings: how.
        depth: (T, H, W), larger is farther, in any unit; its ratios are taken for those of the distances if all of them
            are above 0, and else its order alone is.
        camera: where the camera was; else it is found from the background's motion.
        boxes: (T, O, 3), the middle of each object's box in the world of `camera`, NaN where there is none. They say
            how far objects are; where in the frame is taken from the masks. Without a camera they are not used.
    """
    trained = np.asarray(trained, int)
    height, width = frames.shape[1:3]
    shown = _Shown(
        frames=np.asarray(frames[trained]),
        masks=np.asarray(masks[trained]),
        known=np.asarray(known[trained]),
        times=np.asarray(times, float)[trained],
    )
    greys = grey(shown.frames)
    focal = settings.focal if camera is None else camera.focal
    focal_px = focal * width
    points = max(round(settings.control_points_ratio * len(times)), min(len(times), 2))
    count = masks.shape[1]
    tracks = [follow(greys, shown.masks, shown.known, number, settings.align_px) for number in range(count)]

    hidden = covered(shown.masks, shown.known)
    near = np.full(count, np.inf)  # what boxes say of depths in the reference frames
    if camera is None:
        motion = track_background(greys, hidden, settings.align_px)
        path = fit_path(shown.times, *lifted(motion, settings.background_distance, focal_px), points)
        turned, point = Rotation.identity(), np.array([0.0, 0.0, settings.background_distance])
    else:
        path, to_world = _given(camera, np.asarray(times, float), shown.times[0], points)
        poses = path.at(shown.times)
        if boxes is not None:
            near = _depths_of_boxes(to_world(np.asarray(boxes, float)[trained]), tracks, poses)
        farthest = max((float(value) for value in near if np.isfinite(value)), default=0.0)
        least = max(settings.background_distance, _BOXES_BEFORE * farthest)
        turned, _ = facing(poses, least)
        point = facing(poses, matching_distance(greys, hidden, poses, focal_px, least))[1]
    poses = path.at(shown.times)
    everywhere = path.at(np.asarray(times, float))
    plane = background_plane(
        point, turned, everywhere, (height, width), focal_px, settings.background_margin, settings.initial_px
    )
    picture, seen = background_picture(plane, shown.frames, shown.masks, shown.known, poses, focal_px)

    far = background_depth(point, turned, poses, (height, width), focal_px)
    order, wanted = _order(shown, tracks, near, far, None if depth is None else np.asarray(depth[trained]), settings)
    placed = _Objects(shown, tracks, order, wanted, far, poses, focal_px, points, settings)
    each = [placed.one(number) for number in range(count)]
    return Placement(
        focal=float(focal),
        camera_position=path.position,
        camera_rotation=path.rotation,
        background_position=plane.position,
        background_rotation=plane.rotation.as_quat(scalar_first=True),
        background_size=plane.size,
        background_picture=picture,
        background_seen=seen,
        object_position=np.array([path.position for path, _, _ in each]).reshape(count, points, 3),
        object_rotation=np.array([path.rotation for path, _, _ in each]).reshape(count, points, 4),
        object_size=np.array([size for _, size, _ in each]).reshape(count, 2),
        object_reference=np.array([trained[track.reference if track else 0] for track in tracks], int),
        object_pictures=[picture for _, _, picture in each],
    )


@dataclass(frozen=True)
class _Shown:
    """The training frames."""

    frames: np.ndarray
    masks: np.ndarray
    known: np.ndarray
    times: np.ndarray


class _Objects:
    """Objects one by one, when the depths of all are known."""

    def __init__(
        self,
        shown: _Shown,
        tracks: Sequence[Track | None],
        order: Sequence[int],
        wanted: np.ndarray,
        far: np.ndarray,
        poses: tuple[np.ndarray, Rotation],
        focal_px: float,
        points: int,
        settings: PlacementSettings,
    ) -> None:
        self.shown, self.tracks, self.poses = shown, tracks, poses
        self.focal_px, self.points, self.settings = focal_px, points, settings
        scales = [np.ones(len(far)) if track is None else along(track, shown.times).scales for track in tracks]
        self.depths = reference_depths(order, scales, wanted, far)

    def one(self, number: int) -> tuple[FittedPath, np.ndarray, np.ndarray]:
        """Its path, its size (2,) and its picture."""
        track, shown, settings = self.tracks[number], self.shown, self.settings
        depth = self.depths[number]
        if track is None:
            logger.warning(
                "no training frame shows object %d of %d, in the order of the masks; its plane is transparent",
                number + 1,
                len(self.tracks),
            )
            still = np.zeros(len(shown.times))
            path = lift(
                still.astype(complex), still + depth, still, self.poses, shown.times, self.focal_px, self.points
            )
            return path, np.full(2, _UNSEEN_PX * depth / self.focal_px), unseen_picture(_UNSEEN_PX)
        box = with_margin(extent(track, shown.masks, number), settings.object_margin)
        height, width = shown.frames.shape[1:3]
        middle = complex((box[0] + box[2] - width) / 2, (box[1] + box[3] - height) / 2)
        seen = along(track, shown.times, middle)
        used = seen.used
        path = lift(
            seen.centres[used],
            depth / seen.scales[used],
            seen.turns[used],
            (self.poses[0][used], self.poses[1][used]),
            shown.times[used],
            self.focal_px,
            self.points,
        )
        size = np.array([box[2] - box[0], box[3] - box[1]]) * depth / self.focal_px
        picture = object_picture(track, box, shown.frames, shown.masks, shown.known, number, settings.initial_px)
        return path, size, picture


def _given(
    camera: CameraPath, times: np.ndarray, first: float, points: int
) -> tuple[FittedPath, Callable[[np.ndarray], np.ndarray]]:
    """The path in the world of the camera at the time `first`, and what takes points (..., 3) of the file's world
    there."""
    origin, turn = (part[0] for part in camera.at(np.array([first])))
    position, rotation = camera.at(times)

    def to_world(places: np.ndarray) -> np.ndarray:
        return turn.inv().apply((places - origin).reshape(-1, 3)).reshape(places.shape)

    return fit_path(times, to_world(position), turn.inv() * rotation, points), to_world


def _depths_of_boxes(
    boxes: np.ndarray, tracks: Sequence[Track | None], poses: tuple[np.ndarray, Rotation]
) -> np.ndarray:
    """The depth of each object (O,) in its reference frame, by its boxes (n, O, 3); infinite without any."""
    result = np.full(len(tracks), np.inf)
    for number, track in enumerate(tracks):
        if track is None:
            continue
        depths = poses[1].inv().apply(boxes[:, number] - poses[0])[:, 2]
        with_scale = depths * np.array([motion.scale for motion in track.motion])
        usable = track.found & np.isfinite(depths) & (depths > 0)
        if usable.any():
            result[number] = float(np.median(with_scale[usable]))
    return result


def _order(
    shown: _Shown,
    tracks: Sequence[Track | None],
    near: np.ndarray,
    far: np.ndarray,
    depth: np.ndarray | None,
    settings: PlacementSettings,
) -> tuple[list[int], np.ndarray]:
    """The objects from the nearest to the farthest, and the depths (O,) that they should have, infinite where nothing
    says so: by boxes, else by depth, else by the masks."""
    by_masks = front_to_back(tracks, shown.masks, shown.known, settings.align_px)
    if np.isfinite(near).any():
        return sorted(by_masks, key=lambda number: near[number]), near
    if depth is None:
        return by_masks, near
    medians, rest = median_depths(depth, shown.masks, shown.known)
    order = sorted(by_masks, key=lambda number: medians[number])
    if np.isfinite(rest) and rest > 0 and medians.min(initial=np.inf) > 0:
        return order, np.where(np.isfinite(medians), medians / rest * float(np.median(far)), np.inf)
    return order, near
