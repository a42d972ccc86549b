"""Many small downloads at a time: a queue that drops nothing, tries again, and keeps a table of what became of each.

A source says which files it wants and how to ask for some of them; everything else is here. What has arrived is known
by its file alone, so that a killed download loses nothing and fetches nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manyscope.data.fetching import InterruptedTransferError, Traffic
from manyscope.errors import DataError, StoppedError
from manyscope.log import logger, progress
from manyscope.scopes.galaxies.data.fits import IMAGES, read_planes, strict_warnings, write_objects
from manyscope.tables.manifest import ManifestEntry, file_digest
from manyscope.tables.parquet import read_table, write_table
from manyscope.tables.whole import write_json
from manyscope.training.stopping import stop_request

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.settings import FitsReading, NetworkSettings

REQUESTS = "requests.parquet"
STATISTICS = "requests.json"
SCHEMA: dict[str, type[pl.DataType]] = {
    "object_id": pl.String,
    "filter": pl.String,
    "file": pl.String,
    "state": pl.String,
    "tries": pl.Int64,
    "error": pl.String,
    "bytes": pl.Int64,
    "sha256": pl.String,
}

_REPORT_EVERY_S = 60.0
_LOOK_EVERY_S = 0.5  # for a signal
_LONGEST_WAIT_S = 600.0
_SAVE_SHARE = 0.02  # of the time; the table of fifty million files takes a minute
_LOOK_TOGETHER = 4096  # files that wait for a thread that looks at them
_DEAF_AFTER = 20  # batches that all tries leave unanswered, one after another, mean that the service is gone
_REFUSED_AFTER = 3  # files that are refused one by one before there is a single one mean that all will be
_END_S = 5.0
_NAMED = 3
_DIGEST = 32  # bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file.

    Attributes:
        file: where it goes, relative to `raw/`.
        source: where it comes from, for the manifest.
        checksum: SHA-256 in hexadecimal, where somebody knows it.
    """

    object_id: str
    filter: str
    file: str
    source: str
    checksum: str | None = None


class UnansweredError(Exception):
    """A try that brought not all of what was asked for; another may.

    Args:
        wait_s: how long the service wants to be left alone.
        last: there have been tries enough.
        gone: there is nobody, or nobody who is able to answer, whatever is asked for.
    """

    def __init__(self, reason: str, wait_s: float = 0, last: bool = False, gone: bool = False) -> None:
        self.wait_s, self.last, self.gone = wait_s, last, gone
        super().__init__(reason)


class RefusedError(Exception):
    """The service will never answer this request; it may answer a part of it."""


Ask = Callable[[Sequence[Wanted], Traffic], Iterator[tuple[Wanted, str | None]]]
"""Fetches a batch in any thread. Yields each file once it is in its place, with None, or with why it never will be.
What is not yielded is asked for again, also after an UnansweredError. A ManyscopeError ends the whole download."""


class Doubt(str):
    """What is wrong with a file only if its own header is right about it."""


Check = Callable[[Path, Wanted], str | None]
"""What is wrong with a file that is said to be whole, or None."""


@dataclass(frozen=True, slots=True)
class _State:
    state: str = "pending"
    tries: int | None = None
    error: str | None = None
    bytes: int | None = None
    sha256: str | None = None


class _States:
    """The state of each of many files by its number, in some forty bytes."""

    def __init__(self, count: int) -> None:
        self.done = np.zeros(count, bool)
        self.failed = dict[int, tuple[int | None, str | None]]()  # tries and error
        self._bytes = np.zeros(count, np.int64)
        self._digests = np.zeros((count, _DIGEST), np.uint8)

    def __setitem__(self, number: int, state: _State) -> None:
        self.done[number] = state.state == "done"
        self.failed.pop(number, None)
        if state.state == "failed":
            self.failed[number] = state.tries, state.error
        if state.sha256 is not None and state.bytes is not None:
            self._bytes[number] = state.bytes
            self._digests[number] = np.frombuffer(bytes.fromhex(state.sha256), np.uint8)

    def digest(self, number: int) -> str:
        return self._digests[number].tobytes().hex()

    def size(self, number: int) -> int:
        return int(self._bytes[number])

    def columns(self) -> list[pl.Series]:
        """The last five of SCHEMA."""
        count = len(self.done)
        rows = np.fromiter(self.failed, np.int64, len(self.failed))
        tries, errors = np.full(count, None, object), np.full(count, None, object)
        tries[rows], errors[rows] = [one for one, _ in self.failed.values()], [one for _, one in self.failed.values()]
        state = np.where(self.done, "done", "pending").astype(object)
        state[rows] = "failed"
        text = self._digests.tobytes().hex()
        is_ = self.done.tolist()
        digests = [text[2 * _DIGEST * i : 2 * _DIGEST * (i + 1)] if there else None for i, there in enumerate(is_)]
        sizes = [size if there else None for size, there in zip(self._bytes.tolist(), is_, strict=True)]
        values = {
            "state": state.tolist(), "tries": tries.tolist(), "error": errors.tolist(), "bytes": sizes,
            "sha256": digests,
        }  # fmt: skip
        return [pl.Series(name, column, SCHEMA[name]) for name, column in values.items()]


def file_name(object_id: str, middle: str, suffix: str, *identity: object) -> str:
    """A file name for an object that is legal everywhere and differs for each identity, in one of 256 x 256 folders.

    Args:
        identity: all that the content depends on; a changed request asks for another file, so that two downloads
            never mix.
    """
    key = hashlib.sha256(json.dumps([object_id, middle, *identity]).encode()).hexdigest()[:10]
    folder = hashlib.sha256(object_id.encode()).hexdigest()
    name = re.sub(r"[^\w.+-]", "-", f"{object_id}_{middle}", flags=re.ASCII).lstrip(".-")[:150]
    return f"{IMAGES}/{folder[:2]}/{folder[2:4]}/{name}_{key}{suffix}"


def what_is_wrong(path: Path, hdu: int | str | Sequence[int | str] | None) -> str | None:
    """Why a file is not a whole image of FITS or NumPy, or None; in FITS all extensions count. A Doubt if all that is
    wrong are the checksums in its header: servers of cutouts copy those of the image that they cut from."""
    with strict_warnings():
        doubt = None
        try:
            if path.suffix != ".npy":
                try:
                    _read_all(path, checksum=True)
                except Warning as warning:
                    doubt = Doubt(f"not the FITS file that its header tells of ({_first_line(warning)})")
                    _read_all(path, checksum=False)
            read_planes(path, hdu)
        except DataError as error:
            return error.found
        except Exception as error:  # astropy raises a dozen types for what a broken file can hold
            return f"not a FITS file ({_first_line(error)})"
    return doubt


def _read_all(path: Path, checksum: bool) -> None:
    from astropy.io import fits

    with fits.open(path, memmap=False, checksum=checksum) as file:
        for extension in file:
            _ = extension.data


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class Transfers:
    """One download of many files.

    Args:
        section: place of the settings, for messages ("download.hsc").
        check: whether a file is whole and what was asked for.

    Raises:
        DataError: an object has a filter twice; or there are files that nobody wants, which is what a changed catalog
            or a changed size leaves, and they are not to be kept.
    """

    def __init__(
        self, raw: Path, wanted: Sequence[Wanted], settings: NetworkSettings, section: str, check: Check
    ) -> None:
        self.raw, self.settings, self.section, self._check = raw, settings, section, check
        self.wanted = sorted(wanted, key=_key)
        self._names = pl.DataFrame(
            {name: [getattr(one, name) for one in self.wanted] for name in ("object_id", "filter", "file")},
            {name: SCHEMA[name] for name in ("object_id", "filter", "file")},
        )
        self._refuse_doubles()
        self._refuse_leftovers()
        self.traffic = Traffic()
        self._lock = threading.Lock()
        self._in_vain = self._refused = 0
        self._served = False
        self._doubted = dict[str, str]()
        self._doubts_vain = False
        self._states = _States(len(self.wanted))
        self._look_around()
        self._at_first = self._there()

    def _refuse_doubles(self) -> None:
        twice = [one for one, other in pairwise(self.wanted) if _key(one) == _key(other)]
        if twice:
            one, others = twice[0], len({_key(each) for each in twice}) - 1
            raise DataError(
                f"object {one.object_id!r} has filter {one.filter!r} twice"
                + (f", and {others} more do so" if others else ""),
                place="download.catalog",
                remedy="leave one row for each object and filter; column 'filter' tells the rows of an object apart",
            )

    def _refuse_leftovers(self) -> None:
        """Also clear away what a killed download was writing, here once for all files."""
        known, unknown = {one.file for one in self.wanted}, []
        for place, _, names in os.walk(self.raw):
            folder = Path(place).relative_to(self.raw)
            for name in names:
                if name.startswith(".") and name.endswith(".partial"):
                    (self.raw / folder / name).unlink(missing_ok=True)
                elif folder.parts[:1] == (IMAGES,) and not name.startswith("."):
                    file = (folder / name).as_posix()
                    if file not in known:
                        unknown.append(file)
        if unknown and self.settings.leftover != "keep":
            names_ = ", ".join(sorted(unknown)[:_NAMED]) + (", …" if len(unknown) > _NAMED else "")
            raise DataError(
                f"{len(unknown)} files are there that the catalog and the settings no longer ask for: {names_}",
                place=self.raw / IMAGES,
                remedy=f"restore what has changed, delete the files, or set {self.section}.leftover to 'keep'",
            )

    def _look_around(self) -> None:
        """Find out what is there: by the files, whatever the table of an earlier download says. Only files that have
        not been touched since it was written are taken to be as it says."""
        table, saved_ns = self.raw / REQUESTS, 0
        before = pl.DataFrame(schema=SCHEMA)
        if table.is_file():
            try:
                before, saved_ns = read_table(table, SCHEMA), table.stat().st_mtime_ns
            except DataError as error:
                logger.warning("%s; all files are checked instead", error)
        earlier = self._names.select("file").join(
            before.drop("object_id", "filter").unique("file", keep="any"), "file", "left", maintain_order="left"
        )

        def look(number: int, row: tuple[Any, ...]) -> _State:
            state, tries, error, size, digest = row
            one = self.wanted[number]
            path = self.raw / one.file
            if not path.is_file():
                return _State("failed", tries, error) if state == "failed" else _State()
            found = path.stat()
            known = one.checksum or digest
            # Nobody can set back the time of a change of the inode.
            untouched = found.st_size == size and max(found.st_mtime_ns, found.st_ctime_ns) < saved_ns
            if digest is None or not (state == "done" and untouched and known == digest):
                digest = file_digest(path)
                wrong = (
                    self.wrong(path, one) if known is None else None if digest == known else "its bytes have changed"
                )
                if wrong is not None:
                    logger.warning("%s: %s; it is fetched again", path, wrong)
                    path.unlink()
                    return _State()
            return _State("done", bytes=found.st_size, sha256=digest)

        def looks() -> Iterator[_State]:
            with ThreadPoolExecutor(self.settings.threads) as pool:
                for first in range(0, len(earlier), _LOOK_TOGETHER):
                    some = enumerate(earlier[first : first + _LOOK_TOGETHER].drop("file").iter_rows(), first)
                    yield from pool.map(lambda each: look(*each), some)

        for number, state in enumerate(progress(looks(), "files", len(self.wanted))):
            self._states[number] = state
        logger.info("%d of %d files are there already", self._there(), len(self.wanted))

    def wrong(self, path: Path, one: Wanted) -> str | None:
        """What is wrong with a file, or None. Where only its own header says so it is asked for again; if the same
        bytes come twice, or those that the catalog tells of, they are right and the header is not."""
        found = self._check(path, one)
        if not isinstance(found, Doubt):
            return found
        digest = file_digest(path)
        with self._lock:
            twice = self._doubted.pop(one.file, None) == digest
            if not (twice or self._doubts_vain or one.checksum == digest):
                self._doubted[one.file] = digest
                return found
            first, self._doubts_vain = twice and not self._doubts_vain, self._doubts_vain or twice
        if first:
            logger.warning("%s: %s, but the same bytes came twice; such checksums are passed over", one.file, found)
        return None

    def waits_s(self) -> list[float]:
        """Before each try after the first."""
        return [min(self.settings.wait_s * 2 ** min(n, 30), _LONGEST_WAIT_S) for n in range(self.settings.tries - 1)]

    def _number(self, one: Wanted) -> int:
        return bisect_left(self.wanted, _key(one), key=_key)

    def _there(self) -> int:
        return int(np.count_nonzero(self._states.done))

    def missing(self) -> list[Wanted]:
        """What is still to be fetched, by object and filter."""
        return [self.wanted[number] for number in np.flatnonzero(~self._states.done)]

    def run(self, batches: Iterable[Sequence[Wanted]], ask: Ask) -> None:
        """Work through all batches with `threads` workers, those last of which most has failed in an earlier run. The
        table of states is written now and then and at the end, however that comes.

        Raises:
            ManyscopeError: one that `ask` raised. StoppedError if SIGTERM or SIGUSR1 came.
        """
        failed = {self.wanted[number].file for number in self._states.failed}
        work = deque(sorted(batches, key=lambda batch: sum(one.file in failed for one in batch)))
        if not work:
            self._save()
            return
        total = sum(map(len, work))
        workers = min(self.settings.threads, len(work))
        results: queue.SimpleQueue[tuple[Wanted, _State] | BaseException | None] = queue.SimpleQueue()
        threads = [threading.Thread(target=self._work, args=(work, ask, results), daemon=True) for _ in range(workers)]
        since = time.monotonic()
        try:
            for thread in threads:
                thread.start()
            for _ in progress(self._collect(results, workers, since), "fetch", total):
                pass
        finally:
            self.traffic.end()
            end = time.monotonic() + _END_S
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, end - time.monotonic()))
            while not results.empty():
                if isinstance(late := results.get(), tuple):
                    self._states[self._number(late[0])] = late[1]
            self._report(since)
            self._save()
            write_json(self.raw / STATISTICS, self._statistics(since))

    def _collect(self, results: Any, workers: int, since: float) -> Iterator[None]:
        last = saved = since
        save_s = 0.0
        with stop_request() as stop:
            while workers:
                try:
                    result = results.get(timeout=_LOOK_EVERY_S)
                except queue.Empty:
                    pass
                else:
                    if isinstance(result, BaseException):
                        raise result
                    if result is None:
                        workers -= 1
                    else:
                        self._states[self._number(result[0])] = result[1]
                        yield
                if stop.signal:
                    done, all_ = self._there(), len(self.wanted)
                    raise StoppedError(
                        f"{stop.name} stopped the download; {done} of {all_} files are there",
                        place=self.raw,
                        remedy="the same command continues",
                    )
                if time.monotonic() - last >= _REPORT_EVERY_S:
                    last = time.monotonic()
                    self._report(since)
                    if last - saved >= save_s / _SAVE_SHARE:
                        self._save()
                        saved = time.monotonic()
                        save_s = saved - last

    def _work(self, work: deque[Sequence[Wanted]], ask: Ask, results: Any) -> None:
        try:
            while True:
                with self._lock:
                    if not work or self._in_vain >= _DEAF_AFTER or self._refused >= _REFUSED_AFTER:
                        return
                    batch = work.popleft()
                for part in self._finish(batch, ask, results):
                    with self._lock:
                        work.appendleft(part)
        except InterruptedTransferError:
            pass
        except BaseException as error:
            results.put(error)
        finally:
            results.put(None)

    def _finish(self, batch: Sequence[Wanted], ask: Ask, results: Any) -> list[Sequence[Wanted]]:
        """Ask for a batch until all of it is there or has failed; returns parts that are to be asked for anew."""
        left = {one.file: one for one in batch}
        tries = in_vain = 0
        refused = gone = False
        waits_s = self.waits_s()
        while left:
            tries, before, wait_s, last, gone = tries + 1, len(left), 0.0, False, False
            reason = "the answer lacks it"
            try:
                for one, problem in ask(list(left.values()), self.traffic):
                    del left[one.file]
                    results.put((one, self._found(one) if problem is None else _State("failed", tries, problem)))
            except UnansweredError as error:
                reason, wait_s, last, gone = str(error), error.wait_s, error.last, error.gone
            except RefusedError as error:
                if len(left) > 1:  # one of them may spoil it for the others
                    rest = list(left.values())
                    return [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
                reason, refused = str(error), True
            if not left:
                break
            in_vain = 1 if len(left) < before else in_vain + 1
            if refused or last or in_vain > len(waits_s):
                for one in left.values():
                    results.put((one, _State("failed", tries, reason)))
                break
            wait_s = max(waits_s[in_vain - 1], min(wait_s, _LONGEST_WAIT_S))
            what = next(iter(left.values())).file if len(left) == 1 else f"{len(left)} files"
            logger.info("%s: %s; asking again in %g s", what, reason, wait_s)
            self.traffic.sleep(wait_s)
        with self._lock:
            nothing = len(left) == len(batch)
            self._in_vain = self._in_vain + 1 if nothing and gone else 0
            self._served |= not nothing
            self._refused = self._refused + refused if not (self._served or self._at_first) else 0
        return []

    def _found(self, one: Wanted) -> _State:
        path = self.raw / one.file
        return _State("done", bytes=path.stat().st_size, sha256=file_digest(path))

    def _statistics(self, since: float) -> dict[str, float]:
        """Of this run; times of requests are summed over the threads."""
        wire, seconds = self.traffic, max(time.monotonic() - since, 1e-9)
        files = self._there() - self._at_first
        return {
            "seconds": seconds, "requests": wire.requests, "request_s": wire.request_s, "response_s": wire.response_s,
            "bytes_out": wire.bytes_out, "bytes_in": wire.bytes_in, "files": files, "failed": len(self._states.failed),
            "files_per_s": files / seconds, "bytes_in_per_s": wire.bytes_in / seconds,
        }  # fmt: skip

    def _report(self, since: float) -> None:
        now = self._statistics(since)
        logger.info(
            "%d files in %.0f s (%.2f/s), %d failed, %d missing; %d requests, %.1f s until the answers, %.1f s of "
            "answers, %.3f MB out, %.3f MB in (%.3f MB/s)",
            now["files"], now["seconds"], now["files_per_s"], now["failed"], len(self.wanted) - self._there(),
            now["requests"], now["request_s"], now["response_s"], now["bytes_out"] / 1e6, now["bytes_in"] / 1e6,
            now["bytes_in_per_s"] / 1e6,
        )  # fmt: skip

    def _save(self) -> None:
        """The table of states: no times, and no tries of what arrived in the end, so that the way there leaves no
        trace."""
        write_table(self.raw / REQUESTS, self._names.with_columns(self._states.columns()))

    def done(self, one: Wanted) -> bool:
        return bool(self._states.done[self._number(one)])

    def require(self, by_object: bool = False) -> None:
        """
        Args:
            by_object: whether an object is missing only if all of its files are.

        Raises:
            DataError: more is missing than `missing_max` allows, or all.
        """
        missing = self.missing()
        if not missing:
            return
        lost, all_, what = len(missing), len(self.wanted), "files"
        if by_object:
            everyone = {one.object_id for one in self.wanted}
            lost, all_, what = (
                len(everyone - {one.object_id for one in self.wanted if self.done(one)}),
                len(everyone),
                "objects",
            )
        # One that was tried says more than one that nobody has asked for.
        failed = self._states.failed
        number = min(failed) if failed else self._number(missing[0])
        first, error = self.wanted[number], failed.get(number, (None, None))[1]
        found = (
            f"{len(missing):,} of {len(self.wanted):,} files could not be fetched, the first: object "
            f"{first.object_id!r}, filter {first.filter!r}: {error or 'not asked for'}"
        )
        if self._in_vain >= _DEAF_AFTER:
            found += f"; {_DEAF_AFTER} requests in a row were in vain"
        if self._refused >= _REFUSED_AFTER:
            found += f"; the first {_REFUSED_AFTER} that were asked for one by one were refused, so the rest was left"
        if lost > self.settings.missing_max * all_ or lost == all_:
            raise DataError(
                found,
                place=self.raw / REQUESTS,
                allowed=f"{self.section}.missing_max: {self.settings.missing_max:g} of the {what}",
                remedy="run the same command again",
            )
        logger.warning("%s", found)

    def entries(self, objects: pl.DataFrame, reading: FitsReading) -> Iterator[ManifestEntry]:
        """For the manifest: every file, the table of states, and the table of objects, which is written here.

        Args:
            objects: as `manyscope.scopes.galaxies.data.fits` has it, with a row for each wanted file.
        """
        lost = self._names["file"].filter(pl.Series(~self._states.done)).implode()
        file = pl.col("file")
        yield write_objects(
            self.raw, objects.with_columns(pl.when(~file.is_in(lost)).then(file)), reading, self.section
        )
        yield ManifestEntry(REQUESTS, self.section)
        for number, one in enumerate(self.wanted):
            if self._states.done[number]:
                known = self._states.size(number), self._states.digest(number)
                yield ManifestEntry(one.file, one.source, known=known)
            else:
                yield ManifestEntry(one.file, one.source, "failed")


def _key(one: Wanted) -> tuple[str, str]:
    return one.object_id, one.filter
