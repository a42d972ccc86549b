"""A folder of pretrained weights with a manifest: filled where there is a network, read everywhere else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manyscope.data.fetching import checksum_of, fetch
from manyscope.errors import BusyError, CheckpointError, DataError
from manyscope.log import logger
from manyscope.tables.whole import read_json, sole_worker, whole_file, write_json

MANIFEST = "manifest.json"
REMEDY = (
    "run `manyscope download --experiment NAME` on a machine with a network, such as a login node; or copy the file"
    " there by hand and run the same, which then takes it if its checksum is right"
)

_LOCK = ".lock"
_PATIENCE_S = 3600.0  # for another process that fills the same folder


@dataclass(frozen=True)
class Known:
    """A file of a registry.

    Attributes:
        address: where it can be fetched.
        checksum: `xxh128:…` or `sha256:…`.
        copies: files of other programs that may be the same one.
    """

    address: str
    checksum: str
    copies: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What the manifest says of a file.

    Attributes:
        file: relative to the folder.
        xxh128: empty where the registry goes by another checksum.
        source: the address or the file that it came from.
    """

    file: str
    bytes: int
    sha256: str
    xxh128: str
    source: str


def fill(folder: Path, names: Iterable[str], registry: Callable[[], Mapping[str, Known]]) -> list[Path]:
    """Bring files into the folder, and into its manifest once they are right; those that are both are left alone.

    What is missing is taken, whichever is there and has the right checksum, from the folder itself, from the copies of
    other programs, or from its address. Several processes may fill a folder at once.

    Args:
        names: names of the registry, and of the files.
        registry: called only if something is missing.

    Returns:
        The files, in the order of the names.

    Raises:
        DataError: a name is unknown, a file cannot be had, or the folder cannot be written.
        BusyError: another process has been filling the folder for an hour.
    """
    names = list(names)
    if missing := _missing(folder, dict.fromkeys(names)):
        known = registry()
        with _alone(folder):
            for name in _missing(folder, missing):  # another process may have been faster
                if name not in known:
                    raise DataError(f"no weights {name!r} in the registry", allowed=", ".join(sorted(known)))
                source = _obtain(folder / name, known[name])
                entries = {**_entries(folder), name: _describe(folder / name, known[name].checksum, source)}
                write_json(folder / MANIFEST, {key: asdict(entries[key]) for key in sorted(entries)})
    return [folder / name for name in names]


def check(folder: Path, name: str, *, contents: bool = True) -> Path:
    """A file of the folder that is what the manifest says.

    Args:
        contents: compare the digest as well, not only the size.

    Raises:
        CheckpointError: the file or its entry is missing, or it is not the file that was fetched.
        DataError: the manifest cannot be read.
    """
    entries = read_manifest(folder)
    if name not in entries:
        listed = f"its {MANIFEST} names {', '.join(entries) or 'none'}" if entries else f"it has no {MANIFEST}"
        raise CheckpointError(f"the folder holds no weights {name!r}: {listed}", place=folder, remedy=REMEDY)
    entry = entries[name]
    file = folder / entry.file
    if wrong := _differs(file, entry, contents):
        raise CheckpointError(wrong, place=file, remedy=REMEDY)
    return file


def read_manifest(folder: Path) -> dict[str, Entry]:
    """What was fetched into the folder, by name; nothing where there is no manifest.

    Raises:
        DataError: the manifest is not one.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    values: Any = read_json(file)
    try:
        entries = {name: Entry(**entry) for name, entry in values.items()}
        if all(
            isinstance(e.file, str) and isinstance(e.bytes, int) and isinstance(e.sha256, str) for e in entries.values()
        ):
            return entries
        raise TypeError("a value of another type")
    except (AttributeError, TypeError) as error:
        raise DataError(
            f"no manifest of weights ({error})", place=file, remedy="delete it and run the stage download again"
        ) from error


def _missing(folder: Path, names: Iterable[str]) -> list[str]:
    entries = _entries(folder)
    return [name for name in names if name not in entries or _differs(folder / entries[name].file, entries[name])]


def _entries(folder: Path) -> dict[str, Entry]:
    """The manifest while it is being filled, when one that is broken is as good as none."""
    try:
        return read_manifest(folder)
    except DataError as error:
        logger.warning("%s", error)
        return {}


def _differs(file: Path, entry: Entry, contents: bool = True) -> str:
    """How a file differs from what the manifest says; empty if it does not."""
    try:
        size = file.stat().st_size
        if size != entry.bytes:
            return f"the file has {size:,} bytes instead of {entry.bytes:,}"
        if contents and checksum_of(file, "sha256") != f"sha256:{entry.sha256}":
            return "the file changed since it was fetched"
    except FileNotFoundError:
        return "the file is missing"
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"
    return ""


def _obtain(file: Path, known: Known) -> str:
    """Put the right file in its place; returns where it came from."""
    if _is_right(file, known.checksum):
        return f"by hand, the same as {known.address}"
    for copy in known.copies:
        if _is_right(copy, known.checksum):
            with whole_file(file) as partial:
                shutil.copyfile(copy, partial)
            logger.info("%s: copied from %s", file, copy)
            return str(copy)
    fetch(known.address, file, known.checksum, REMEDY)
    logger.info("%s: fetched from %s", file, known.address)
    return known.address


def _is_right(file: Path, checksum: str) -> bool:
    try:
        found = checksum_of(file, checksum.partition(":")[0])
    except FileNotFoundError:
        return False
    except OSError as error:
        logger.warning("%s: not used, it cannot be read (%s)", file, error.strerror)
        return False
    if found != checksum:
        logger.warning("%s: not used, it is not the file of the registry (%s instead of %s)", file, found, checksum)
    return found == checksum


def _describe(file: Path, checksum: str, source: str) -> Entry:
    algorithm, _, digest = checksum.partition(":")
    sha256 = checksum_of(file, "sha256").partition(":")[2]
    return Entry(file.name, file.stat().st_size, sha256, digest if algorithm == "xxh128" else "", source)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let only one process fill the folder; others wait for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DataError(
            f"cannot be written ({error.strerror})",
            place=folder,
            remedy="change its rights, or choose another folder for the weights",
        ) from error
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_worker(folder / _LOCK))
        except BusyError as busy:
            logger.info("%s; waiting for it", busy.found)
            stack.enter_context(sole_worker(folder / _LOCK, _PATIENCE_S))
        yield
