"""The prepared clip: frames, masks and, for a synthetic one, the truth."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from manyscope.data.prepared import PreparedSamples
from manyscope.errors import DataError
from manyscope.scopes.scenes.placement import Placement
from manyscope.tables.arrays import map_array
from manyscope.tables.whole import read_json

META = "clip.json"
FRAMES, MASKS, KNOWN, DEPTH = "frames.npy", "masks.npy", "known.npy", "depth.npy"
TRUTH = "truth"
HALF = 128  # a mask's or an opacity's value from which a pixel counts as inside


class Clip(PreparedSamples):
    """The prepared folder; row i of samples.parquet is the i-th frame of the clip.

    Attributes:
        meta: what prepared/clip.json says: `objects` (names), `digits` (values of the masks), `source` and what the
            source notes.
        frames: (T, H, W, 3) uint8.
        masks: (T, O, H, W) uint8, 255 is inside, between are pixels that an edge divides.
        known: (T, O) bool, False where there is no mask to believe: it is then all 0.
        times: (T,) float64 in [0, 1], by the numbers of the frames.

    Raises:
        DataError: a file is missing or broken.
    """

    def __init__(self, prepared: Path) -> None:
        super().__init__(prepared)
        self.meta: dict[str, Any] = read_json(prepared / META)
        self.frames, self.masks, self.known = (map_array(prepared / name) for name in (FRAMES, MASKS, KNOWN))
        count = len(self.samples)
        if not len(self.frames) == len(self.masks) == len(self.known) == count:
            raise DataError(
                f"{len(self.frames)} frames, {len(self.masks)} masks and {count} samples",
                place=prepared,
                remedy="run the stage 'preprocess' again",
            )

    @property
    def objects(self) -> list[str]:
        """Names of the objects, in the order of the masks."""
        return list(self.meta["objects"])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        return int(self.frames.shape[1]), int(self.frames.shape[2])

    @cached_property
    def times(self) -> np.ndarray:
        return self.samples["time"].to_numpy()

    @cached_property
    def placement(self) -> Placement:
        return Placement.load(self.folder)

    @cached_property
    def truth(self) -> Truth | None:
        """None for a clip that was filmed."""
        folder = self.folder / TRUTH
        return Truth(folder) if folder.is_dir() else None

    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        """`sample_id`, a list of ids, and `row`, their positions."""
        return {"sample_id": self.ids(rows), "row": [int(row) for row in rows]}


class Truth:
    """What a synthetic clip is made of.

    Attributes:
        background: (T, H, W, 3) uint8, the background of each frame without objects.
        layers: (T, O, H, W, 4) uint8, each object alone: colour, not multiplied by it, and opacity.
        camera: (T, 3, 3), takes places of a frame in pixels to those of the first frame, on the background.
        motion: (T, O, 3, 3), takes places on an object's own picture in pixels to those of a frame.
        order: object numbers (0…O-1) from the nearest to the farthest.
    """

    def __init__(self, folder: Path) -> None:
        self.background, self.layers = map_array(folder / "background.npy"), map_array(folder / "layers.npy")
        self.camera, self.motion = map_array(folder / "camera.npy"), map_array(folder / "motion.npy")
        self.order = [int(number) for number in map_array(folder / "order.npy")]
