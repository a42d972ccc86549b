"""Frames, masks, depth and boxes as files, and every rule that they must keep."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyscope.errors import DataError
from manyscope.tables.whole import reserve, whole_file

if TYPE_CHECKING:
    from PIL import Image

MASKS_ARE = "masks are images of object numbers, saved as PNG without smoothing"
LARGEST = 1e12  # of a number in a user's file, in units of the scene: so far one can still calculate
_MOST = 65_535
_THIN, _FEWEST_THIN = 0.1, 3
_NAMED = 5  # in a message


def read_frame(path: Path) -> np.ndarray:
    """One frame, (h, w, 3) uint8, turned as the file says that it is to be seen.

    Raises:
        DataError: missing, not decodable, or not of integers.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        if image.mode == "F":
            raise DataError("the frame is an image of floats", place=path, allowed="8 or 16 bits for each colour")
        if image.mode.startswith("I"):  # 16 bits of grey, of which PIL would cut off the bright ones
            grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def read_values(path: Path) -> np.ndarray:
    """A mask image as it is, (h, w) uint16: of a palette the indices, of two colours 0 and 1.

    Raises:
        DataError: missing, not decodable, a JPEG, coloured, or with numbers above 65,535.
    """
    with _opened(path) as image:
        if image.format == "JPEG":
            raise DataError("the mask is a JPEG, which changes values", place=path, allowed=MASKS_ARE)
        values = np.asarray(image)
    if values.ndim == 3:
        colours = values[..., : 3 if values.shape[2] >= 3 else 1]
        if (colours != colours[..., :1]).any():
            raise DataError(
                "the mask is a coloured image",
                place=path,
                allowed=MASKS_ARE,
                remedy="save it with the numbers as grey values, or with a palette",
            )
        values = colours[..., 0]
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > _MOST:
        found = f"values of type {values.dtype}, from {values.min()} to {values.max()}"
        raise DataError(f"the mask has {found}", place=path, allowed=f"whole numbers from 0 to {_MOST:,}")
    return values.astype(np.uint16)


def read_binary(path: Path) -> np.ndarray:
    """The mask of one object, (h, w) bool.

    Raises:
        DataError: as of `read_values`, more than two values, or two of which none is 0.
    """
    values = read_values(path)
    found = np.unique(values)
    if len(found) > 2:
        raise DataError(
            f"found {len(found)} values",
            place=path,
            allowed="two, 0 and another, in the mask of one object, saved as PNG without smoothing",
            remedy="save it again without smoothing",
        )
    if len(found) == 2 and found[0]:
        raise DataError(f"the values are {found[0]} and {found[1]}", place=path, allowed="0 and another")
    return values > 0


def read_depth(path: Path) -> np.ndarray:
    """A depth image, (h, w) float32.

    Raises:
        DataError: missing, not decodable, with colours, or with values that are not finite.
    """
    with _opened(path) as image:
        depth = np.asarray(image)
    if depth.ndim != 2:
        raise DataError(f"the depth has shape {depth.shape}", place=path, allowed="one value for each pixel")
    depth = depth.astype(np.float32)
    if not np.isfinite(depth).all():
        raise DataError(
            f"{(~np.isfinite(depth)).sum()} pixels are not finite (NaN or infinite)",
            place=path,
            remedy="replace them, by a large value where they are far away",
        )
    return depth


def read_own_json(path: Path, what: str, remedy: str) -> Any:
    """A JSON file of the user's.

    Args:
        what: it is, for the error.

    Raises:
        DataError: missing, not JSON, or more than Python reads: nested too deeply, or numbers of thousands of digits.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"not a readable {what} ({error})", place=path, remedy=remedy) from error


def read_boxes(path: Path) -> tuple[int, dict[int, list[float]]]:
    """The boxes of one object, as Neural Atlas Graphs writes them: a JSON object with `object_id`, the number in the
    masks; `frame_times`, numbers of frames; and `center`, for each of those the middle (x, y, z) of the box in the
    world of the camera file, x to the right, y down, z forward. Other entries are not read.

    Returns:
        The object's number, and for each number of a frame the middle.

    Raises:
        DataError: missing, not JSON, without these, with other numbers of them, too large, or with other axes.
    """
    content = read_own_json(path, "box file", "see docs/scenes.md for the form of a box file")
    form = "an object with object_id, frame_times and as many center (x, y, z)"
    try:
        axes = str(content.get("coordinate_system", "rdf"))
        digit, numbers = int(content["object_id"]), [int(number) for number in content["frame_times"]]
        centres = np.array(content["center"], float)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"no boxes of an object ({error!r})", place=path, allowed=form) from error
    if axes.lower() != "rdf":
        raise DataError(f"the coordinate system is {axes}", place=path, allowed="rdf: x right, y down, z forward")
    if centres.shape != (len(numbers), 3):
        raise DataError(f"center of shape {centres.shape} for {len(numbers)} frame_times", place=path, allowed=form)
    if not (np.abs(centres) <= LARGEST).all():
        raise DataError(f"center holds numbers that are not finite or above {LARGEST:g}", place=path)
    return digit, dict(zip(numbers, centres.tolist(), strict=True))


def check_size(picture: np.ndarray, size: tuple[int, int], path: Path, what: str) -> None:
    """
    Args:
        size: height and width of the first frame.

    Raises:
        DataError: the picture has another size.
    """
    if picture.shape[:2] != size:
        height, width = picture.shape[:2]
        raise DataError(
            f"the {what} is {width}x{height} (width x height)",
            place=path,
            allowed=f"{size[1]}x{size[0]}, the size of the first frame",
            remedy="bring all pictures of the clip to one size, masks without smoothing",
        )


class ValueCounts:
    """The values of the value images of a clip, and whether they are numbers or the grades of a smoothed edge.

    Attributes:
        pixels: value -> number of pixels, without 0.
        worst: the image with most values, and their number.
    """

    def __init__(self) -> None:
        self.pixels: dict[int, int] = {}
        self.worst: tuple[Path, int] | None = None
        self._squares: dict[int, int] = {}

    def add(self, values: np.ndarray, path: Path) -> None:
        corner = values[:-1, :-1]
        alike = (corner == values[1:, :-1]) & (corner == values[:-1, 1:]) & (corner == values[1:, 1:])
        pixels = np.bincount(values.ravel())
        squares = np.bincount(corner[alike], minlength=len(pixels))
        found = np.flatnonzero(pixels)
        if self.worst is None or len(found) > self.worst[1]:
            self.worst = path, len(found)
        for value in found[found > 0].tolist():
            self.pixels[value] = self.pixels.get(value, 0) + int(pixels[value])
            self._squares[value] = self._squares.get(value, 0) + int(squares[value])

    def check(self) -> None:
        """
        Raises:
            DataError: most values are found along edges alone, where smoothing and JPEG leave them.
        """
        # Of an object's pixels most begin a 2 x 2 square of the same value; of a grade hardly any does.
        thin = sum(self._squares[value] < _THIN * pixels for value, pixels in self.pixels.items())
        if self.worst and thin >= _FEWEST_THIN and 2 * thin >= len(self.pixels):
            path, found = self.worst
            raise DataError(
                f"found {found} values, and most of those in the clip only along edges",
                place=path,
                allowed=MASKS_ARE,
                remedy="save the masks again; where they were resized, by the nearest pixel",
            )


def first_few(names: Iterable[object]) -> str:
    """Some of the names, for a message."""
    some = list(islice(names, _NAMED + 1))
    return ", ".join(map(str, some[:_NAMED])) + (", …" if len(some) > _NAMED else "")


@contextmanager
def whole_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A .npy file to be filled part by part, of which little need be in memory; there whole or not at all.

    Raises:
        DataError: the disk is full.
    """
    with whole_file(path) as partial:
        array = np.lib.format.open_memmap(partial, "w+", dtype, shape)
        reserve(partial)
        yield array
        array.flush()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            yield image
    except FileNotFoundError as error:
        raise DataError("the file is missing", place=path, remedy="run the stage 'download' again") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"the image cannot be read ({error})", place=path, remedy="copy or save it again; it may be cut off"
        ) from error
