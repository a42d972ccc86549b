"""Images and label images as files, and every rule that they must keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from manyscope.errors import DataError, ManyscopeError
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    import zarr

_FORMAT = re.compile(r"(?P<stem>.+?)(\.ome)?(?P<suffix>\.(tiff?|png|zarr))", re.IGNORECASE | re.DOTALL)
_LABELS_ARE = "a label image: one whole number for each cell, 0 for background"


@dataclass(frozen=True)
class Labels:
    """The label image of one sample.

    Attributes:
        ids: (height, width) uint32, 0 for background, the cells numbered 1…count.
        count: number of cells, at least 1.
        renumbered: whether the file had other numbers.
        divided: number of cells that consist of several unconnected parts.
    """

    ids: np.ndarray
    count: int
    renumbered: bool
    divided: int


def stem(path: Path) -> str | None:
    """A file's name without `.tif`, `.ome.tif`, `.png`, `.zarr` and their like; None for any other file."""
    match = _FORMAT.fullmatch(path.name)
    return match["stem"] if match and not path.name.startswith(".") else None


def is_zarr(path: Path) -> bool:
    return path.suffix.lower() == ".zarr"


def read_image(path: Path, key: str = "0", channel: int | None = None) -> np.ndarray:
    """One grey image, (height, width), in the type of the file.

    Args:
        path: .tif, .tiff, .png, or a folder .zarr.
        key: the array of a .zarr.
        channel: the one to take of an image with several; None allows none.

    Raises:
        DataError: missing, not decodable, no single grey image, a mask, not finite, empty or constant.
    """
    pixels, axes = read_pixels(path, key)
    image = _grey(pixels, axes, path, channel)
    if image.dtype.kind not in "uif":
        kind = "a mask of true and false" if image.dtype.kind == "b" else f"of type {image.dtype}"
        raise DataError(f"the image is {kind}", place=path, allowed="grey values as integers or floats")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise DataError(
            f"{(~np.isfinite(image)).sum()} pixels are not finite (NaN or infinite)",
            place=path,
            allowed="finite grey values",
            remedy="replace them, with 0 where they are padding",
        )
    seen = image[image != 0]
    if not seen.size:
        raise DataError("the image is empty: every pixel is 0", place=path, remedy="leave it out")
    if seen.min() == seen.max():
        raise DataError(
            f"the image is constant: every pixel that is not 0 has the value {seen[0]}",
            place=path,
            remedy="leave it out, or check that it is no mask",
        )
    return image


def read_labels(path: Path, key: str, shape: tuple[int, ...] | None) -> Labels:
    """One label image, its cells renumbered 1…count in the order of the file's numbers.

    Args:
        path: .tif, .tiff, .png, or a folder .zarr.
        key: the array of a .zarr.
        shape: height and width of its image; None where the image itself cannot be read.

    Raises:
        DataError: missing, not decodable, of several planes, not of an integer type, of another size than the image,
            or with negative numbers or nothing but background.
    """
    from skimage.measure import label
    from skimage.segmentation import relabel_sequential

    pixels, axes = read_pixels(path, key, as_labels=True)
    found, left = _plane(pixels, axes)
    if left != "YX":
        raise DataError(f"the labels have the axes {axes} and shape {pixels.shape}", place=path, allowed=_LABELS_ARE)
    if found.dtype.kind == "b":
        raise DataError(
            "the labels are a mask of true and false, in which cells that touch are one",
            place=path,
            allowed=_LABELS_ARE,
            remedy="number the cells, where none touch with skimage.measure.label",
        )
    if found.dtype.kind not in "ui":
        raise DataError(
            f"the labels are of type {found.dtype}",
            place=path,
            allowed=_LABELS_ARE,
            remedy="save them as uint16 or uint32",
        )
    if shape is not None and found.shape != tuple(shape):
        raise DataError(
            f"the labels have {found.shape[1]} x {found.shape[0]} px, their image has {shape[1]} x {shape[0]} px",
            place=path,
            allowed="the same width and height",
        )
    if found.min() < 0:
        raise DataError(
            f"the labels have negative numbers, down to {found.min()}",
            place=path,
            allowed=_LABELS_ARE,
            remedy="set what is not to be a cell to 0",
        )
    numbers = np.unique(found[found > 0])
    if not numbers.size:
        raise DataError(
            "the labels hold nothing but background",
            place=path,
            allowed="at least one cell",
            remedy="if the image is only to be segmented, move it to the folder download.folder.unlabelled and delete "
            "these labels",
        )
    ids = relabel_sequential(found)[0].astype(np.uint32)
    parts, count = label(ids, connectivity=2, return_num=True)
    owner = np.zeros(count + 1, np.int64)
    owner[parts] = ids
    divided = int((np.bincount(owner[1:]) > 1).sum())
    return Labels(ids, len(numbers), bool(numbers[-1] != len(numbers)), divided)


def read_pixels(path: Path, key: str, as_labels: bool = False) -> tuple[np.ndarray, str]:
    """What a file holds, and a letter for each of its axes (Y, X, C or S for channels, Z, T; Q where nobody knows).

    Raises:
        DataError: missing, of another format, not decodable, or holding several images.
    """
    if stem(path) is None:
        raise DataError("the format is unknown", place=path, allowed=".tif, .tiff, .png, .zarr")
    with _explained(path):
        if is_zarr(path):
            return _read_zarr(path, key)
        if path.suffix.lower() == ".png":
            return _read_png(path, as_labels)
        with tifffile.TiffFile(path) as file:
            if not file.series:
                raise ValueError("there is no image in it")
            if len(file.series) > 1:
                raise DataError(
                    f"the file holds {len(file.series)} images of different kinds",
                    place=path,
                    allowed="one image",
                    remedy="save each into a file of its own",
                )
            return file.series[0].asarray(), file.series[0].axes


def has_array(path: Path, key: str) -> bool:
    """Whether an OME-Zarr has this array.

    Raises:
        DataError: not a readable group.
    """
    import zarr

    with _explained(path):
        return isinstance(zarr.open_group(path, mode="r").get(key), zarr.Array)


def write_tif(
    path: Path, pixels: np.ndarray, *, axes: str = "YX", note: str | None = None, small: bool = False
) -> None:
    """Write whole; the same pixels give the same bytes.

    Args:
        note: kept in the file's description, to be read by `read_note`.
        small: compress it, as is worth while for labels but not for the noise of images.
    """
    with whole_file(path) as partial:
        tifffile.imwrite(
            partial,
            pixels,
            photometric="minisblack",
            compression="zlib" if small else None,
            metadata={"axes": axes, **({"note": note} if note else {})},
        )


def read_note(path: Path) -> str | None:
    """The note of a file that `write_tif` wrote; None if the file is missing, broken or another's."""
    try:
        with tifffile.TiffFile(path) as file:
            file.asarray()  # what was cut short has its description still
            described = file.shaped_metadata or ({},)
    except Exception:  # tifffile and its codecs raise many unrelated types for a broken file
        return None
    return described[0].get("note")


def _grey(pixels: np.ndarray, axes: str, place: Path, channel: int | None) -> np.ndarray:
    image, left = _plane(pixels, axes)
    extra = left.replace("Y", "").replace("X", "")
    if left == "YX":
        return image
    # Files that do not say what an axis is: the user does, by naming a channel.
    named = extra in ("C", "S") or (extra in ("Q", "I") and channel is not None)
    if not (named and left.replace(extra, "") == "YX"):
        raise DataError(
            f"this is {'a stack' if len(left) > 2 else 'no image'} with the axes {axes} and shape {pixels.shape}",
            place=place,
            allowed="a grey image (height, width)",
            remedy="save each plane, or a projection, as an image of its own"
            + ("; if the planes are channels, set download.folder.channel" if extra in ("Q", "I") else ""),
        )
    axis = left.index(extra)
    count = image.shape[axis]
    if channel is None:
        raise DataError(
            f"the image has {count} channels (shape {pixels.shape})",
            place=place,
            allowed="a grey image (height, width)",
            remedy=f"set download.folder.channel to the one to take, 0 to {count - 1}, or convert it to grey",
        )
    if channel >= count:
        raise DataError(
            f"there is no channel {channel} in an image with {count} channels",
            place=place,
            allowed=f"download.folder.channel from 0 to {count - 1}",
        )
    return np.ascontiguousarray(image.take(channel, axis))


def _plane(pixels: np.ndarray, axes: str) -> tuple[np.ndarray, str]:
    """The array without axes of a single step, other than height and width; and the axes that are left."""
    keep = [i for i, (axis, steps) in enumerate(zip(axes, pixels.shape, strict=True)) if axis in "YX" or steps > 1]
    return pixels.reshape([pixels.shape[i] for i in keep]), "".join(axes[i] for i in keep)


def _read_png(path: Path, as_labels: bool) -> tuple[np.ndarray, str]:
    from PIL import Image

    with Image.open(path) as opened:
        # Of colours in a palette, labels are the numbers and images the colours.
        picture = opened.convert("RGB") if opened.mode == "P" and not as_labels else opened
        pixels = np.array(picture)
    return pixels, "YXS"[: pixels.ndim]


def _read_zarr(path: Path, key: str) -> tuple[np.ndarray, str]:
    import zarr

    root = zarr.open_group(path, mode="r")
    array = root.get(key)
    if not isinstance(array, zarr.Array):
        arrays = sorted(name for name, node in root.members(max_depth=None) if isinstance(node, zarr.Array))
        raise DataError(
            f"there is no array {key!r}",
            place=path,
            allowed=", ".join(arrays[:8]) or "at least one array",
            remedy="mend download.folder.image_key or label_key",
        )
    return np.asarray(array[...]), _zarr_axes(root, key, array.ndim)


def _zarr_axes(root: zarr.Group, key: str, dimensions: int) -> str:
    """The axes that the metadata of NGFF name for the image to which an array belongs.

    See https://ngff.openmicroscopy.org; before version 0.3 there were always the five axes TCZYX.
    """
    above = key.strip("/").rpartition("/")[0]
    group: Any = root[above] if above else root
    attributes = group.attrs.asdict()
    described = attributes.get("ome", attributes).get("multiscales") or [{}]
    named = described[0].get("axes")
    if named:
        axes = "".join(str(axis["name"] if isinstance(axis, dict) else axis)[0].upper() for axis in named)
        if len(axes) == dimensions:
            return axes
    if dimensions == 5:
        return "TCZYX"
    return ("Q" * dimensions + "YX")[2:]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except ManyscopeError:
        raise
    except Exception as error:  # the libraries raise many unrelated types for a broken file
        if not path.exists():
            raise DataError("the file is missing", place=path, remedy="mend the path, or download again") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"the image cannot be decoded ({reason})",
            place=path,
            remedy="it may be cut short; copy it again, or leave it out",
        ) from error
