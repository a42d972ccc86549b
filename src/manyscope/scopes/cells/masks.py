"""The masks of one image on disk: a TIFF, or an OME-Zarr 0.4 store that viewers open beside the image.

https://ngff.openmicroscopy.org/0.4/ says what such a store holds.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile

from manyscope.errors import DataError
from manyscope.tables.whole import whole_file, whole_folder

MASKS = "masks"  # folder among the files of the stage infer
LABELS = "labels/cells/0"  # array of a store
_REMEDY = "run the stage infer again"
_VERSION = "0.4"
_CHUNK_PX = 1024


def write_masks(
    folder: Path,
    sample_id: str,
    masks: np.ndarray,
    form: Literal["tif", "ome-zarr"],
    image: np.ndarray | None = None,
) -> None:
    """Write `<sample_id>.tif` or `<sample_id>.zarr`, whole, in the place of either.

    Args:
        masks: (h, w) integers, 0 is background; kept as uint16 while the largest label allows it, else as uint32.
        image: (h, w), shown beside the masks in a store; a TIFF holds the masks alone.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    masks = narrowest(masks)
    tif, store = _paths(folder, sample_id)
    if form == "tif":
        with whole_file(tif) as partial:
            tifffile.imwrite(partial, masks, compression="zlib", photometric="minisblack")
        shutil.rmtree(store, ignore_errors=True)
    else:
        with whole_folder(store) as partial:
            _write_store(partial, sample_id, masks, image)
        tif.unlink(missing_ok=True)


def narrowest(masks: np.ndarray) -> np.ndarray:
    """The same labels as uint16 while the largest allows it, else as uint32."""
    return masks.astype(np.uint16 if masks.max(initial=0) <= np.iinfo(np.uint16).max else np.uint32)


def read_masks(folder: Path, sample_id: str) -> np.ndarray:
    """The masks of a sample in whichever form they were written, (h, w) uint32.

    Raises:
        DataError: missing or broken.
    """
    tif, store = _paths(folder, sample_id)
    path = store if store.is_dir() and not tif.is_file() else tif
    try:
        masks = np.asarray(_stored(store) if path == store else tifffile.imread(tif))
    except FileNotFoundError as error:
        raise DataError("the masks of this sample are missing", place=path, remedy=_REMEDY) from error
    except Exception as error:  # both libraries raise several unrelated types for a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"not readable masks ({reason})", place=path, remedy=_REMEDY) from error
    if masks.ndim != 2 or masks.dtype.kind != "u":  # of a TIFF that was cut short, tifffile gives an empty array
        raise DataError(
            f"not masks but an array of shape {masks.shape} and type {masks.dtype}", place=path, remedy=_REMEDY
        )
    return masks.astype(np.uint32)


def _paths(folder: Path, sample_id: str) -> tuple[Path, Path]:
    # Not with_suffix, which would cut an id at its last dot.
    return folder / f"{sample_id}.tif", folder / f"{sample_id}.zarr"


def _stored(store: Path) -> Any:
    import zarr

    return zarr.open_array(store / LABELS, mode="r")[:]


def _write_store(store: Path, sample_id: str, masks: np.ndarray, image: np.ndarray | None) -> None:
    import zarr

    root = zarr.create_group(store, zarr_format=2)
    labels = root.create_group("labels")
    cells = labels.create_group("cells")
    labels.attrs["labels"] = ["cells"]
    cells.attrs["multiscales"] = _multiscales("cells")
    cells.attrs["image-label"] = {"version": _VERSION}
    _write_array(cells, masks)
    if image is not None:
        root.attrs["multiscales"] = _multiscales(sample_id)
        cells.attrs["image-label"] = {"version": _VERSION, "source": {"image": "../../"}}
        _write_array(root, image)


def _write_array(group: Any, pixels: np.ndarray) -> None:
    chunks = tuple(max(1, min(_CHUNK_PX, length)) for length in pixels.shape)
    # Version 0.4 asks for "/" between the numbers of a chunk.
    group.create_array("0", data=pixels, chunks=chunks, chunk_key_encoding={"name": "v2", "separator": "/"})


def _multiscales(name: str) -> list[dict[str, Any]]:
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    full_size = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}
    return [{"version": _VERSION, "name": name, "axes": axes, "datasets": [full_size]}]
