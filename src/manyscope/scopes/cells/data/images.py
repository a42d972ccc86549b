"""The prepared images and labels, read when they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from manyscope.data.prepared import PreparedSamples
from manyscope.errors import DataError
from manyscope.scopes.cells.data.normalize import invert, normalise
from manyscope.scopes.cells.data.prepare import AUGMENTED, META
from manyscope.scopes.cells.data.reading import read_image
from manyscope.scopes.cells.data.sources import IMAGES, LABELS
from manyscope.tables.whole import read_json


class CellImages(PreparedSamples):
    """The prepared folder. Images differ in size, so a batch is a list of them.

    Raises:
        DataError: samples.parquet or images.json is missing or broken.
    """

    def __init__(self, prepared: Path) -> None:
        super().__init__(prepared)
        self.meta: dict[str, Any] = read_json(prepared / META)

    def image(self, row: int) -> np.ndarray:
        """The normalised image of a sample, (height, width) uint8; 0 is padding.

        Raises:
            DataError: the file is missing, broken, or of another size or type.
        """
        return self._read(self.image_file(row), row, ("u1",))

    def labels(self, row: int) -> np.ndarray | None:
        """The cells of a sample, (height, width) uint32, numbered 1…K, 0 is background; None if it has no labels.

        Raises:
            DataError: the file is missing, broken, or of another size or type.
        """
        if self.samples["cells"][int(row)] is None:
            return None
        return self._read(self.label_file(row), row, ("u2", "u4")).astype(np.uint32)

    def image_file(self, row: int) -> Path:
        """Where `image` reads."""
        return self._file(IMAGES, row)

    def label_file(self, row: int) -> Path:
        """Where `labels` reads; there is no such file for a sample without labels."""
        return self._file(LABELS, row)

    def labelled(self, split: str) -> np.ndarray:
        """Positions of the samples of a split that have labels, (n,) int64."""
        known = self.samples["cells"].is_not_null().to_numpy()
        rows = self.rows(split)
        return rows[known[rows]]

    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        """`sample_id`, a list of ids, and `images`, a list of as many arrays as `image` gives."""
        return {"sample_id": self.ids(rows), "images": [self.image(int(row)) for row in rows]}

    def training_files(self) -> list[tuple[Path, Path]]:
        """Image and label file of every training image and of its changed copies, in the order of their names.

        Raises:
            DataError: there are none, or they are not in pairs.
        """
        images, labels = (self.folder / AUGMENTED / kind for kind in (IMAGES, LABELS))
        names = sorted(file.name for file in images.glob("*.tif"))
        if not names or names != sorted(file.name for file in labels.glob("*.tif")):
            raise DataError(
                "the training images are missing or incomplete",
                place=self.folder / AUGMENTED,
                remedy="run the stage 'preprocess' again",
            )
        return [(images / name, labels / name) for name in names]

    def normalised(self, path: Path) -> np.ndarray:
        """An image file from anywhere, treated as images without labels were, (height, width) uint8.

        Raises:
            DataError: missing, not decodable, or breaking a rule of images.
        """
        image = read_image(path, self.meta["image_key"], self.meta["channel"])
        grey = normalise(image, self.meta["low_percentile"], self.meta["high_percentile"])
        return invert(grey) if self.meta["invert_others"] else grey

    def _file(self, kind: str, row: int) -> Path:
        return self.folder / kind / f"{self.samples['sample_id'][int(row)]}.tif"

    def _read(self, path: Path, row: int, types: tuple[str, ...]) -> np.ndarray:
        remedy = "run the stage 'preprocess' again"
        try:
            pixels: np.ndarray = tifffile.imread(path)
        except Exception as error:  # tifffile and its codecs raise many unrelated types for a broken file
            found = "the file is missing" if not path.exists() else f"the image cannot be decoded ({error})"
            raise DataError(found, place=path, remedy=remedy) from error
        wanted = self.samples["height_px"][int(row)], self.samples["width_px"][int(row)]
        if pixels.shape != wanted or pixels.dtype.str[1:] not in types:
            raise DataError(
                f"the image has shape {pixels.shape} and type {pixels.dtype}",
                place=path,
                allowed=f"{wanted} and {' or '.join(np.dtype(t).name for t in types)}",
                remedy=remedy,
            )
        return pixels
