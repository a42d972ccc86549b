"""A data set for Hyrax, in Hyrax's own environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hyrax.datasets import HyraxDataset


class Arrays(HyraxDataset):
    """Images and ids of two .npy files."""

    def __init__(self, config: dict[str, Any], data_location: str) -> None:
        # A plain view of the mapped file: rows of a memmap are slower to stack.
        self._images = np.asarray(np.load(Path(data_location) / "images.npy", mmap_mode="r"))
        self._ids = np.load(Path(data_location) / "ids.npy").tolist()
        super().__init__(config)

    def __len__(self) -> int:
        return len(self._ids)

    def get_image(self, idx: int) -> np.ndarray:
        return self._images[idx]

    def get_object_id(self, idx: int) -> str:
        return self._ids[idx]
