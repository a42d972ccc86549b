"""Memory-mapped arrays of prepared data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from manyscope.errors import DataError


def map_array(path: Path, remedy: str = "run the stage 'preprocess' again") -> np.ndarray:
    """A .npy file as a read-only array of which only what is looked at is read.

    Raises:
        DataError: missing, broken, or of Python objects.
    """
    try:
        # As a plain array: each slice of a memmap object costs microseconds more.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"not a readable array ({error})", place=path, remedy=remedy) from error
