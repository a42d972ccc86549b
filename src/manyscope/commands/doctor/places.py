"""Whether files and folders can be written. The standard library alone: the job on a compute node asks here too."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def can_write(path: Path) -> bool:
    """Whether a file or folder can be written, or made where it is not there yet; tried, for rights do not say all."""
    place = existing(path)
    if not place.is_dir():
        return place == path.absolute() and os.access(place, os.W_OK)
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError:
        return False
    return True


def missing_weights(folder: Path) -> str:
    """Why a folder holds no weights that can be read; empty if it does."""
    try:
        with os.scandir(folder) as entries:
            return "" if next(entries, None) else "is empty"
    except FileNotFoundError:
        return "is not there"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
