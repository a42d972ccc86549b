"""Reading a panorama, and what makes a file one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyscope.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # eight bits or less for each channel
_ORIENTATION = 274  # tag of EXIF
_ON_ITS_SIDE = (5, 6, 7, 8)


def check_picture(path: Path, aspect_tolerance: float) -> tuple[int, int]:
    """Width and height in pixels; only the head of the file is read.

    Args:
        aspect_tolerance: largest relative departure from twice as wide as high.

    Raises:
        DataError: it is no picture, or not 2:1, or has more than eight bits for each channel.
    """
    with _opened(path) as image:
        return _check(image, path, aspect_tolerance)


def read_panorama(path: Path, aspect_tolerance: float) -> np.ndarray:
    """The picture, (height, 2 height, 3) uint8: RGB, without transparency; one of another width is resampled.

    Raises:
        DataError: it cannot be decoded, or `check_picture` refuses it.
    """
    from PIL import Image, ImageOps

    with _opened(path) as image:
        _check(image, path, aspect_tolerance)
        upright = ImageOps.exif_transpose(image).convert("RGB")
        if upright.width != 2 * upright.height:
            upright = upright.resize((2 * upright.height, upright.height), Image.Resampling.LANCZOS)
        return np.asarray(upright)


def is_picture(path: Path) -> bool:
    """Whether the head of a file is that of a picture."""
    try:
        with _opened(path):
            return True
    except DataError:
        return False


def small(panorama: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A panorama averaged over areas to (height, width, 3) uint8."""
    from PIL import Image

    return np.asarray(Image.fromarray(panorama).resize(shape[::-1], Image.Resampling.BOX))


def _check(image: Image, path: Path, aspect_tolerance: float) -> tuple[int, int]:
    if image.mode not in _MODES:
        raise DataError(
            f"the picture has pixels of the type {image.mode!r}",
            place=path,
            allowed=", ".join(_MODES),
            remedy="convert it to RGB of 8 bits",
        )
    width, height = image.size
    # Asked for what a PNG does not say in its head, Pillow decodes it.
    known = image.format != "PNG" or "exif" in image.info
    if known and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE:
        width, height = height, width
    if abs(width / height / 2 - 1) > aspect_tolerance:
        raise DataError(
            f"the picture has {width} x {height} px, which is {width / height:.2f}:1",
            place=path,
            allowed=f"equirectangular panoramas, 2:1 within {aspect_tolerance:.0%}",
            remedy="leave it out, or cut or extend it to the full sphere",
        )
    return width, height


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # decoders raise several unrelated types for a broken file
        known: dict[type[Exception], str] = {
            FileNotFoundError: "no such file",
            UnidentifiedImageError: "of no known format",
        }
        reason = known.get(type(error)) or (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the picture cannot be read ({reason})", place=path, remedy="get it again, or leave it out"
        ) from error
