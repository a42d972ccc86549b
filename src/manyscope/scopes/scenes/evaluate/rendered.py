"""What the stage infer left of a clip: pictures of frames, layers, edits and planes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.scopes.scenes.data.clip import Clip
from manyscope.scopes.scenes.files import BACKGROUND, atlas_file, edit_file, frame_file, layer_file

CORNERS = [f"corner_{corner}_{axis}_px" for corner in range(4) for axis in "xy"]
AGAIN = "run the stage infer again"


class Rendered:
    """
    Args:
        files: folder of the stage infer.
        predictions: sample_id, layer, and `CORNERS`: a row for each layer that is in a frame.

    Raises:
        DataError: the predictions lack a column.
    """

    def __init__(self, files: Path, clip: Clip, predictions: pl.DataFrame) -> None:
        self._files, self._size = files, clip.size
        # The folder may hold edits of an earlier clip, which nothing overwrites if this one has none.
        self._editable = clip.objects if clip.truth is not None else []
        self._ids: list[str] = clip.samples["sample_id"].to_list()
        if missing := [name for name in ("sample_id", "layer", *CORNERS) if name not in predictions.columns]:
            raise DataError(f"no column {missing[0]!r}", place=files.parent / "predictions.parquet", remedy=AGAIN)
        corners = predictions.select(CORNERS).to_numpy().astype(np.float64).reshape(-1, 4, 2)
        keys = predictions.select("sample_id", "layer").iter_rows()
        self._corners = dict(zip(keys, corners, strict=True))

    def __contains__(self, position: int) -> bool:
        """Whether a frame was rendered."""
        return (self._ids[position], BACKGROUND) in self._corners

    def frame(self, position: int) -> np.ndarray:
        """(h, w, 3) uint8"""
        return self._read(frame_file(self._files, self._ids[position]), "RGB")

    def layer(self, position: int, layer: str) -> np.ndarray:
        """Colour, not multiplied by it, and opacity, (h, w, 4) uint8; nothing where it is outside of the frame."""
        if self.corners(position, layer) is None:
            return np.zeros((*self._size, 4), np.uint8)
        return self._read(layer_file(self._files, layer, self._ids[position]), "RGBA")

    def corners(self, position: int, layer: str) -> np.ndarray | None:
        """Places of the corners of the layer's plane in the frame, (4, 2) in pixels; None where it is outside."""
        return self._corners.get((self._ids[position], layer))

    def has_edit(self, edit: str, layer: str) -> bool:
        """Whether the edit of this object was made: of synthetic clips alone, since only there it can be judged."""
        return layer in self._editable and edit_file(self._files, edit, layer, "").parent.is_dir()

    def edited(self, position: int, edit: str, layer: str) -> np.ndarray:
        """The frame after an edit, (h, w, 3) uint8."""
        return self._read(edit_file(self._files, edit, layer, self._ids[position]), "RGB")

    def atlas(self, layer: str) -> np.ndarray | None:
        """The picture of a layer's plane, (height, width, 4) uint8; None if it was not written."""
        path = atlas_file(self._files, layer)
        return _picture(path, "RGBA") if path.is_file() else None

    def _read(self, path: Path, mode: str) -> np.ndarray:
        picture = _picture(path, mode)
        if picture.shape[:2] != self._size:
            raise DataError(
                f"the picture has {picture.shape[0]} x {picture.shape[1]} pixels",
                place=path,
                allowed=f"{self._size[0]} x {self._size[1]}, as the frames of the clip",
                remedy=AGAIN,
            )
        return picture


def _picture(path: Path, mode: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except FileNotFoundError as error:
        raise DataError("the picture is missing", place=path, remedy=AGAIN) from error
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for broken files
        raise DataError(f"the picture cannot be read ({error})", place=path, remedy=AGAIN) from error
