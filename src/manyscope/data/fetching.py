"""Fetching a file over HTTP so that it is there whole and right, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import IO, Any

from manyscope.errors import DataError, MissingDependencyError
from manyscope.log import logger, progress
from manyscope.tables.whole import explaining_full_disk

# Before a try that follows so many in vain; a server that says how long to wait is obeyed up to a limit.
_WAITS_S: tuple[float, ...] = (1, 2, 4, 8, 16)
_LONGEST_WAIT_S = 120.0
_TRIES = len(_WAITS_S) + 1  # without a new byte
_TRIES_UNANSWERED = 3  # where nobody has ever answered there is no network, and no use in patience
_TIMEOUT_S = 30.0
_BLOCK = 2**16
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # the statuses that another try may mend


class _BrokenError(Exception):
    """A try in vain that another may mend."""

    def __init__(self, reason: str, wait_s: float = 0, answered: bool = True) -> None:
        self.wait_s, self.answered = wait_s, answered
        super().__init__(reason)


class _RefusedError(Exception):
    """A try in vain that no other mends."""


def fetch(address: str, target: Path, checksum: str, remedy: str = "run the same command again") -> None:
    """Fetch a file, going on where an earlier, interrupted call ended, and put it in its place once it is right.

    A connection that breaks, a server that is busy and a file that is cut short are tried again after a pause, for as
    long as new bytes arrive. Only one process at a time may fetch the same target.

    Args:
        checksum: algorithm and digest, as `checksum_of` writes them.
        remedy: what the user can do if all is in vain.

    Raises:
        DataError: the file cannot be had, or what arrives is not what the checksum is of. What was at `target` before
            is untouched, and what has arrived is kept for the next call.
        MissingDependencyError: there is no implementation of the checksum.
    """
    arriving = target.with_name(f".{target.name}.arriving")
    algorithm = checksum.partition(":")[0]
    tries, in_vain, most, answered, wrong = 0, 0, _bytes(arriving), False, False
    with explaining_full_disk(target):
        arriving.parent.mkdir(parents=True, exist_ok=True)
        while True:
            tries += 1
            try:
                _receive(address, arriving, target.name)
                found = checksum_of(arriving, algorithm)
                if found == checksum:
                    with arriving.open("rb") as file:
                        os.fsync(file.fileno())
                    arriving.replace(target)
                    return
                size = _bytes(arriving)
                arriving.unlink()
                if wrong:  # the first may have been of an earlier call, or spoiled on its way
                    raise _RefusedError(f"twice {size:,} bytes arrived with {found} instead of {checksum}")
                wrong, most, answered = True, 0, True
                raise _BrokenError(f"{size:,} bytes arrived with {found} instead of {checksum}")
            except _RefusedError as error:
                raise DataError(f"cannot be fetched from {address} ({error})", place=target, remedy=remedy) from error
            except _BrokenError as error:
                answered |= error.answered
                has = _bytes(arriving)
                in_vain = 1 if has > most else in_vain + 1
                most = max(most, has)
                if in_vain >= (_TRIES if answered else _TRIES_UNANSWERED):
                    why = f"{tries} tries, the last: {error}"
                    raise DataError(f"cannot be fetched from {address} ({why})", place=target, remedy=remedy) from error
                wait_s = max(_WAITS_S[in_vain - 1], min(error.wait_s, _LONGEST_WAIT_S))
                logger.info("%s: %s; trying again in %g s", target.name, error, wait_s)
                time.sleep(wait_s)


def checksum_of(path: Path, algorithm: str) -> str:
    """The checksum of a file's bytes: `xxh128:…` or `sha256:…`, the digest in hexadecimal.

    Raises:
        MissingDependencyError: there is no implementation of the algorithm.
    """
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, lambda: _hash(algorithm)).hexdigest()}"


def _hash(algorithm: str) -> Any:
    try:
        if algorithm.startswith("xxh"):
            import xxhash

            return getattr(xxhash, algorithm)()
        return hashlib.new(algorithm)
    except (ImportError, AttributeError, ValueError) as error:
        raise MissingDependencyError(
            f"checksums of kind {algorithm!r} cannot be computed ({error})", remedy="install the package xxhash"
        ) from error


def _receive(address: str, arriving: Path, name: str) -> None:
    """Append what is still missing of the file; returns only if the server's statement of its length is met."""
    has = _bytes(arriving)
    headers = {"User-Agent": "manyscope", "Accept-Encoding": "identity"}
    if has:
        headers["Range"] = f"bytes={has}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and has:
                return  # there is no more of it; the checksum says whether that is all
            if error.code not in _PASSING:
                raise _RefusedError(f"HTTP {error.code} {error.reason}") from error
            raise _BrokenError(f"HTTP {error.code} {error.reason}", _asked_wait_s(error.headers)) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _RefusedError(_first_line(reason)) from error
        raise _BrokenError(_first_line(reason), answered=isinstance(error, http.client.HTTPException)) from error
    with response:
        continues = response.status == http.HTTPStatus.PARTIAL_CONTENT
        has = has if continues else 0
        total = None if response.length is None else has + response.length
        mebibytes = None if total is None else (total - has) >> 20
        with arriving.open("ab" if continues else "wb") as file:
            for _ in progress(_copy(response, file), f"fetching {name}, MiB", mebibytes):
                pass
    if total is not None and _bytes(arriving) != total:
        raise _BrokenError(f"the connection ended after {_bytes(arriving):,} of {total:,} bytes")


def _copy(response: http.client.HTTPResponse, file: IO[bytes]) -> Iterator[None]:
    """Write what arrives; yields after each mebibyte."""
    done = 0
    while True:
        try:
            block = response.read(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(_first_line(error)) from error
        if not block:
            return
        file.write(block)
        yield from (None for _ in range(((done + len(block)) >> 20) - (done >> 20)))
        done += len(block)


def _asked_wait_s(headers: Message) -> float:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _first_line(error: object) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return text if text else type(error).__name__
