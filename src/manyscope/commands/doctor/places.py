"""Whether files and folders can be written. The standard library alone: the job on a compute node asks here too."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

MANIFEST = "manifest.json"  # as manyscope.data.weights writes it


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
    """Why a folder does not hold the weights that it should; empty if it does.

    Files are compared with the folder's manifest, where it has one, by their sizes alone: they may be large.
    """
    try:
        with os.scandir(folder) as entries:
            if all(entry.name.startswith(".") for entry in entries):  # the lock and parts of a download in vain
                return "is empty"
        if not has_manifest(folder):
            return ""
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {entry["file"]: entry["bytes"] for entry in expected.values()}
        wrong = [f"{name} {why}" for name, size in sizes.items() if (why := _other_size(folder / name, size))]
    except FileNotFoundError:
        return "is not there"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"has a {MANIFEST} that is no manifest of weights"
    return f"does not hold what its {MANIFEST} names: {', '.join(wrong)}" if wrong else ""


def has_manifest(folder: Path) -> bool:
    """Whether something was fetched into a folder of weights."""
    return os.path.lexists(folder / MANIFEST)


def _other_size(file: Path, expected: int) -> str:
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return "is missing"
    return "" if size == expected else f"has {size:,} bytes instead of {expected:,}"
