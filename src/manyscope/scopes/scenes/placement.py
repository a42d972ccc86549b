"""What is known of a scene before the training: where the camera, the background and the objects are, and how they
look at first.

Lengths are in units of the scene. The world is that of the camera at the first frame: x to the right, y down, z
forward. A pixel (column i, row j) has its centre at (i + 0.5, j + 0.5). The ray through the place (x, y) of a frame
of width W and height H leaves the camera's position in the direction R ((x - W/2) / f, (y - H/2) / f, 1), f = focal W
pixels, where R is the camera's rotation (camera to world). A plane with position p, rotation R (plane to world) and
size (width, height) holds the points p + R (X, Y, 0); its place there is (u, v) = (X / width + 0.5, Y / height + 0.5),
(0, 0) being the upper left corner of its picture.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from manyscope.errors import DataError
from manyscope.tables.whole import whole_file

PLACEMENT = "placement.npz"
_REMEDY = "run the stage 'preprocess' again"


@dataclass(frozen=True)
class Placement:
    """A placed scene with O objects. Paths are control points of `manyscope.scopes.scenes.splines` on the times 0 to 1;
    rotations are unit quaternions (w, x, y, z), those of a path with signs such that neighbours are near.

    Attributes:
        focal: focal length in widths of a frame.
        camera_position: (K, 3).
        camera_rotation: (K, 4).
        background_position: (3,), of a plane that does not move.
        background_rotation: (4,).
        background_size: (2,), width and height.
        background_picture: (h, w, 3) float32 in [0, 1].
        background_seen: (h, w) bool, texels that any training frame shows.
        object_position: (O, L, 3).
        object_rotation: (O, L, 4).
        object_size: (O, 2).
        object_reference: (O,) int, the position in the clip of the frame that the object's picture is from.
        object_pictures: O arrays (h, w, 4) float32 in [0, 1]: colour, not multiplied by it, and opacity.
    """

    focal: float
    camera_position: np.ndarray
    camera_rotation: np.ndarray
    background_position: np.ndarray
    background_rotation: np.ndarray
    background_size: np.ndarray
    background_picture: np.ndarray
    background_seen: np.ndarray
    object_position: np.ndarray
    object_rotation: np.ndarray
    object_size: np.ndarray
    object_reference: np.ndarray
    object_pictures: list[np.ndarray]

    @property
    def objects(self) -> int:
        return len(self.object_pictures)

    def save(self, prepared: Path) -> None:
        """Write prepared/placement.npz."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "object_pictures"}
        pictures = {f"object_picture_{i}": picture for i, picture in enumerate(self.object_pictures)}
        with whole_file(prepared / PLACEMENT) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays, **pictures)

    @classmethod
    def load(cls, prepared: Path) -> Placement:
        """
        Raises:
            DataError: the file is missing or broken.
        """
        path = prepared / PLACEMENT
        try:
            with np.load(path, allow_pickle=False) as archive:
                found = {f.name: archive[f.name] for f in fields(cls) if f.name != "object_pictures"}
                pictures = [archive[f"object_picture_{i}"] for i in range(len(found["object_position"]))]
            found["focal"] = float(found["focal"])
        except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, BadZipFile) as error:
            raise DataError(f"not a readable placement ({error})", place=path, remedy=_REMEDY) from error
        return cls(**found, object_pictures=pictures)
