"""Files and folders that are either there whole or not there at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from manyscope.errors import BusyError, DataError, ManyscopeError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NEARLY_FULL = 256 * 2**10  # bytes
# Libraries that write from compiled code report a full disk by errors of their own.
_FULL_WORDS = ("no space left on device", "disk is full", "disk quota exceeded")
_ASK_AGAIN_S = 0.5  # for a lock that another process holds
_NUMPY_FULL = re.compile(r"\d+ requested and \d+ written")  # all that numpy says of a write that was cut short


@contextmanager
def whole_file(path: Path, sweep: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` when the block ends well, else remove it.

    Args:
        sweep: remove what a killed process was writing in the place of `path`. That reads the whole folder: whoever
            writes thousands of files does it once for all of them.

    Raises:
        DataError: the disk is full or the folder cannot be written. What was at `path` before is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if sweep:
            for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
                left_over.unlink(missing_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except Exception as error:
        raise _explained(error, path) from error
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; it takes the place of `path` when the block ends well.

    What an earlier, killed process left beside `path` is removed first; what it had just moved aside is put back.

    Raises:
        DataError: the disk is full or the folder cannot be written. What was at `path` before is untouched.
    """
    partial, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    try:
        put_back(path)
        for left_over in (partial, old):
            shutil.rmtree(left_over, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        _exchange(path, partial, old)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise _explained(error, path) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _exchange(path: Path, new: Path, old: Path) -> None:
    """Move `path` aside and `new` into its place, again where a reader put the earlier folder back in between."""
    for last in (False, False, True):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        try:
            new.rename(path)
            return
        except OSError as error:
            if last or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def put_back(path: Path) -> None:
    """Undo what a process did that was killed in the instant between moving an earlier folder aside and putting the
    new one in its place. Readers of a folder that is replaced while it is in use call it first."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        with suppress(FileNotFoundError):  # another process was quicker
            old.rename(path)


def reserve(path: Path) -> None:
    """Take the disk space of a file that will be filled through a memory map.

    A full disk is an error here; met while the map is filled, it would kill the process by a signal.

    Raises:
        OSError: the disk is full; inside `whole_file` this becomes a DataError.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


@contextmanager
def explaining_full_disk(place: Path) -> Iterator[None]:
    """For whatever is written otherwise than whole.

    Raises:
        DataError: in the place of any error that a full disk causes in the block.
    """
    try:
        yield
    except ManyscopeError:
        raise
    except Exception as error:
        full = _full_disk(error, place)
        if full:
            raise full from error
        raise


@contextmanager
def sole_worker(lock: Path, patience_s: float = 0) -> Iterator[None]:
    """Let only one living process at a time pass; a killed one leaves nothing to clean up.

    Args:
        patience_s: how long to wait for another process, such as one of a cancelled job that is writing its last.

    Raises:
        BusyError: another process holds the lock, perhaps one that outlived an interrupted workflow.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience_s
    with lock.open("a+") as file:
        while not _locked(file):
            if time.monotonic() >= end:
                file.seek(0)
                raise BusyError(
                    f"process {file.read().strip() or '?'} is still working on this",
                    place=lock,
                    remedy="wait for it or end it, then run the same command again",
                )
            time.sleep(min(_ASK_AGAIN_S, patience_s))
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_json(path: Path, value: Any) -> None:
    """Write whole; keys keep their order, floats that are not finite are refused."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def plain_json(value: Any, indent: int | None = None) -> str:
    """JSON that any reader takes: a number that is not finite becomes null, and what JSON has no word for, text."""

    def plain(part: Any) -> Any:
        if isinstance(part, float):
            return part if math.isfinite(part) else None
        if isinstance(part, dict):
            return {name: plain(inner) for name, inner in part.items()}
        return [plain(inner) for inner in part] if isinstance(part, list | tuple) else part

    return json.dumps(plain(value), indent=indent, default=str, allow_nan=False)


def read_json(path: Path) -> Any:
    """
    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("the file is missing", place=path, remedy="run the stage that makes it") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"not JSON ({error})", place=path, remedy="run the stage that makes it again") from error


def _full_disk(error: Exception, place: Path) -> DataError | None:
    folder = next((folder for folder in place.parents if folder.exists()), Path())
    free, text = shutil.disk_usage(folder).free, str(error).lower()
    said = getattr(error, "errno", None) in _FULL or any(words in text for words in _FULL_WORDS)
    # Compiled libraries may say no more than that something went wrong inside.
    foreign = type(error).__module__ != "builtins"
    if not (said or _NUMPY_FULL.fullmatch(text) or (foreign and free < _NEARLY_FULL)):
        return None
    return DataError(
        f"the disk is full ({free // 2**20} MiB free) and nothing there was replaced",
        place=place,
        remedy="free some space and run the same command again",
    )


def _explained(error: Exception, path: Path) -> Exception:
    """The error to raise instead: about the disk where it is the disk's, else the same one."""
    if isinstance(error, ManyscopeError):
        return error
    full = _full_disk(error, path)
    if full:
        return full
    ours = isinstance(error, OSError) and error.filename and str(error.filename).startswith(str(path.parent))
    if not ours or isinstance(error, FileNotFoundError):
        return error
    reason = error.strerror if isinstance(error, OSError) else error
    return DataError(f"cannot be written ({reason})", place=path, remedy="check the folder's rights")
