"""Files of the user's as raw data: linked, never copied or changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from manyscope.errors import DataError
from manyscope.log import logger
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.whole import explaining_full_disk


def link(raw: Path, path: str, file: Path, source: str | None = None) -> ManifestEntry:
    """Let `raw/path` be a symbolic link to a file, which is neither read nor changed; a wrong earlier link is replaced.

    Args:
        file: an existing file; the link is absolute unless the file lies in `raw` too.
        source: for the manifest; the file's path by default.

    Raises:
        DataError: a file that is no link is in the way, or the folder cannot be written.
    """
    target = raw / path
    wanted = os.path.relpath(file, target.parent) if file.is_relative_to(raw) else str(absolute(file))
    entry = ManifestEntry(path, source or str(absolute(file)))
    if target.is_symlink() and str(target.readlink()) == wanted:
        return entry
    if target.exists() and not target.is_symlink():
        if target.samefile(file):
            return entry
        raise DataError(
            "a file is in the way of a link",
            place=target,
            remedy=f"it may come from another source; delete {raw} if nothing in it is needed, and download again",
        )
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with explaining_full_disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            partial.symlink_to(wanted)
            partial.replace(target)
    except OSError as error:
        raise DataError(f"the link cannot be made ({error.strerror})", place=target) from error
    return entry


def refuse(errors: Sequence[DataError]) -> NoReturn:
    """Log all errors that were found in a user's files, and raise the first.

    Raises:
        DataError: always; it says how many more there are.
    """
    for error in errors:
        logger.error("%s", error)
    more = f" (and {len(errors) - 1} more errors, see the log)" if len(errors) > 1 else ""
    first = errors[0]
    raise DataError(first.found + more, place=first.place, allowed=first.allowed, remedy=first.remedy)


def absolute(path: str | Path) -> Path:
    """An absolute path with `~` expanded; links on the way are kept as they are."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - Path.resolve would follow links
