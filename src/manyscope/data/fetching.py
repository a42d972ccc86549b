"""Fetching a file over HTTP so that it is there whole and right, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
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
_SLOWEST_BYTES_S = 50  # a connection with less is given up for a new one
_BLOCK = 2**16
PASSING = {408, 425, 429, 500, 502, 503, 504}  # the statuses that another try may mend


class FetchError(DataError):
    """A file cannot be had from where it is said to be."""


class RefusedFileError(FetchError):
    """Another try will not help: the server says so, or has other bytes than the checksum is of."""


class SilentHostError(FetchError):
    """Nobody has answered at all: there is no such host, or no network."""


class InterruptedTransferError(Exception):
    """Nobody waits for what is being fetched any more."""


class Traffic:
    """What goes over the wire, counted over all threads; and the means to end what they do there.

    Attributes:
        requests: that were begun.
        request_s: from a request to the first line of its answer, summed over the threads.
        response_s: from there to the end of the answer.
        bytes_out: bodies of requests.
        bytes_in: bodies of answers, also of those that were cut short.
    """

    def __init__(self) -> None:
        self.requests, self.request_s, self.response_s, self.bytes_out, self.bytes_in = 0, 0.0, 0.0, 0, 0
        self._lock, self._ended = threading.Lock(), threading.Event()

    def count(
        self,
        *,
        requests: int = 0,
        request_s: float = 0,
        response_s: float = 0,
        bytes_out: int = 0,
        bytes_in: int = 0,
    ) -> None:
        """
        Raises:
            InterruptedTransferError: `end` was called.
        """
        with self._lock:
            self.requests += requests
            self.request_s += request_s
            self.response_s += response_s
            self.bytes_out += bytes_out
            self.bytes_in += bytes_in
        if self._ended.is_set():
            raise InterruptedTransferError

    def sleep(self, seconds: float) -> None:
        """
        Raises:
            InterruptedTransferError: `end` was called.
        """
        if self._ended.wait(seconds):
            raise InterruptedTransferError

    def end(self) -> None:
        """Let every thread that counts or sleeps here end."""
        self._ended.set()


class BrokenConnectionError(Exception):
    """A try in vain that another may mend.

    Args:
        wait_s: how long the server wants to be left alone.
        answered: whether there is a server at all.
        able: whether there is one that does not say that it cannot answer (5xx).
    """

    def __init__(self, reason: str, wait_s: float = 0, answered: bool = True, able: bool = True) -> None:
        self.wait_s, self.answered, self.able = wait_s, answered, answered and able
        super().__init__(reason)


class _RefusedError(Exception):
    """A try in vain that no other mends."""


def fetch(
    address: str,
    target: Path,
    checksum: str | None,
    remedy: str = "run the same command again",
    traffic: Traffic | None = None,
    waits_s: Sequence[float] | None = None,
) -> None:
    """Fetch a file, going on where an earlier, interrupted call ended, and put it in its place once it is right.

    A connection that breaks, a server that is busy and a file that is cut short are tried again after a pause, for as
    long as new bytes arrive. Only one process at a time may fetch the same target.

    Args:
        checksum: algorithm and digest, as `checksum_of` writes them; None if nobody knows it: what arrives is then
            right if it is as long as the server says, and a call begins anew.
        remedy: what the user can do if all is in vain.
        traffic: where to count, for one of many files that are fetched at a time; it has no progress of its own then.
        waits_s: before each try that follows one, two, … in vain; after one more there is no other. By default six
            tries in half a minute, and three where nobody answers.

    Raises:
        FetchError: the file cannot be had, or what arrives is not what the checksum is of. What was at `target` before
            is untouched, and what has arrived is kept for the next call. A RefusedFileError if that is final, a
            SilentHostError if nobody answers.
        InterruptedTransferError: the traffic was ended.
        MissingDependencyError: there is no implementation of the checksum.
    """
    arriving = target.with_name(f".{target.name}.arriving")
    most_tries, most_unanswered = _TRIES, _TRIES_UNANSWERED
    if waits_s is None:
        waits_s = _WAITS_S
    else:
        most_tries = most_unanswered = len(waits_s) + 1
    with explaining_full_disk(target):
        arriving.parent.mkdir(parents=True, exist_ok=True)
        if checksum is None:
            arriving.unlink(missing_ok=True)
        tries, in_vain, most, answered, wrong = 0, 0, _bytes(arriving), False, False
        while True:
            tries += 1
            try:
                _receive(address, arriving, target.name, checksum is not None, traffic)
                found = None if checksum is None else checksum_of(arriving, checksum.partition(":")[0])
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
                raise BrokenConnectionError(f"{size:,} bytes arrived with {found} instead of {checksum}")
            except _RefusedError as error:
                why = f"cannot be fetched from {address} ({error})"
                raise RefusedFileError(why, place=target, remedy=remedy) from error
            except BrokenConnectionError as error:
                answered |= error.answered
                has = _bytes(arriving)
                in_vain = 1 if has > most else in_vain + 1
                most = max(most, has)
                if in_vain >= (most_tries if answered else most_unanswered):
                    why = f"{tries} tries, the last: {error}"
                    kind = FetchError if answered else SilentHostError
                    raise kind(f"cannot be fetched from {address} ({why})", place=target, remedy=remedy) from error
                wait_s = max(waits_s[in_vain - 1], min(error.wait_s, _LONGEST_WAIT_S))
                logger.info("%s: %s; trying again in %g s", target.name, error, wait_s)
                (traffic.sleep if traffic else time.sleep)(wait_s)


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


def _receive(address: str, arriving: Path, name: str, checked: bool, traffic: Traffic | None) -> None:
    """Append what is still missing of the file; returns only if the server's statement of its length is met.

    Args:
        checked: whether a checksum will tell a whole file from another.
    """
    has = _bytes(arriving)
    headers = {"User-Agent": "manyscope", "Accept-Encoding": "identity"}
    if has:
        headers["Range"] = f"bytes={has}-"
    begun = time.monotonic()
    if traffic:
        traffic.count(requests=1)
    try:
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and has:
                if checked:
                    return  # there is no more of it; the checksum says whether that is all
                arriving.unlink()
                raise BrokenConnectionError(
                    f"the server has nothing after {has:,} bytes, but had announced more"
                ) from error
            if error.code not in PASSING:
                raise _RefusedError(f"HTTP {error.code} {error.reason}") from error
            able = error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR
            raise BrokenConnectionError(
                f"HTTP {error.code} {error.reason}", asked_wait_s(error.headers), able=able
            ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _RefusedError(_first_line(reason)) from error
        raise BrokenConnectionError(
            _first_line(reason),
            answered=isinstance(error, http.client.HTTPException),
            able=not isinstance(error, OSError),  # as where somebody only hangs up
        ) from error
    with response:
        continues = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if continues and not response.headers.get("Content-Range", "").startswith(f"bytes {has}-"):
            arriving.unlink(missing_ok=True)
            raise BrokenConnectionError("another part of the file arrived than was asked for")
        has = has if continues else 0
        total = None if response.length is None else has + response.length
        mebibytes = None if total is None else (total - has) >> 20
        with arriving.open("ab" if continues else "wb") as file:
            if traffic:
                traffic.count(request_s=time.monotonic() - begun)
                _count(response, file, traffic)
            else:
                for _ in progress(_copy(response, file), f"fetching {name}, MiB", mebibytes):
                    pass
    if total is not None and _bytes(arriving) != total:
        raise BrokenConnectionError(f"the connection ended after {_bytes(arriving):,} of {total:,} bytes")


def _copy(response: http.client.HTTPResponse, file: IO[bytes]) -> Iterator[None]:
    """Write what arrives; yields after each mebibyte."""
    done = 0
    for block in blocks(response):
        file.write(block)
        yield from (None for _ in range(((done + len(block)) >> 20) - (done >> 20)))
        done += len(block)


def _count(response: http.client.HTTPResponse, file: IO[bytes], traffic: Traffic) -> None:
    """Write what arrives, and count it."""
    since = time.monotonic()
    for block in blocks(response):
        file.write(block)
        now = time.monotonic()
        traffic.count(bytes_in=len(block), response_s=now - since)
        since = now


def blocks(response: http.client.HTTPResponse, window_s: float | None = None) -> Iterator[bytes]:
    """A body as it comes.

    Args:
        window_s: in so many seconds something must come; as long as a connection may be silent by default.

    Raises:
        BrokenConnectionError: the connection broke, or is as good as broken.
    """
    window_s = _TIMEOUT_S if window_s is None else window_s
    left, since, lately = response.length, time.monotonic(), 0
    while left != 0:
        try:
            block = response.read1(_BLOCK if left is None else min(_BLOCK, left))
        except (OSError, http.client.HTTPException) as error:
            raise BrokenConnectionError(_first_line(error)) from error
        if not block:
            return
        left = None if left is None else left - len(block)
        yield block
        lately += len(block)
        if (now := time.monotonic()) - since > window_s:
            if lately < _SLOWEST_BYTES_S * (now - since) and left != 0:
                raise BrokenConnectionError(f"only {lately:,} bytes came in {now - since:.0f} s")
            since, lately = now, 0


def asked_wait_s(headers: Message) -> float:
    """The seconds of a Retry-After, 0 if there is none; dates are not understood."""
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _first_line(error: object) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return text if text else type(error).__name__
