"""Servers that misbehave in every way that servers do: nothing is lost, nothing comes twice, the end is the same."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import fault_server as faults
from fault_server import Fault, Server
from manyscope.data import fetching
from manyscope.data.fetching import Traffic
from manyscope.errors import DataError, StoppedError
from manyscope.scopes.galaxies.data import hsc, transfers
from manyscope.scopes.galaxies.data.transfers import REQUESTS, STATISTICS, file_name
from manyscope.scopes.galaxies.settings import GalaxiesSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.stages import download
from manyscope.tables import manifest
from manyscope.tables.manifest import file_digest, read_manifest
from manyscope.tables.parquet import read_table, write_table

COUNT = 5
KINDS = ("http", "http_unchecked", "hsc")

Case = Callable[..., GalaxiesSettings]


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with faults.running() as server:
        yield server


@pytest.fixture(autouse=True)
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    running.faults.clear()
    running.log, running.pause_s = faults.Log(), 0.0
    running.awake.clear()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(hsc.USERNAME, faults.USERNAME)
    monkeypatch.setenv(hsc.PASSWORD, faults.PASSWORD)
    return running


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits; how long they would have."""
    waited: list[float] = []
    monkeypatch.setattr(Traffic, "sleep", lambda self, seconds: waited.append(seconds))
    return waited


@pytest.fixture(scope="module")
def settings(running: Server, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Settings of a source with a catalog of some objects that the server has."""
    folder = tmp_path_factory.mktemp("catalogs")

    def make(kind: str, count: int = COUNT, **own: Any) -> GalaxiesSettings:
        ids = [f"{43158322 + i:017d}" for i in range(count)]
        ra, dec = [150.0 + 0.01 * i for i in range(count)], [2.0 - 0.01 * i for i in range(count)]
        if kind == "hsc":
            table = pl.DataFrame(
                {"object_id": ids, "ra": ra, "dec": dec, "tract": [9813 + i % 2 for i in range(count)]}
            )
            own = {"api": f"{running.address}/api", "filters": ["HSC-G", "HSC-R"], **own}
        else:
            paths = [f"/images/{i}.fits" for i in ids]
            for path, at, of in zip(paths, ra, dec, strict=True):
                fields = {"ra": f"{at}", "dec": f"{of}", "filter": "g", "rerun": "", "sw": "", "sh": ""}
                running.files[path] = faults.cutout(fields, 64)
            table = pl.DataFrame({"object_id": ids, "url": [running.address + path for path in paths]})
            if kind == "http":
                digests = [hashlib.sha256(running.files[path]).hexdigest() for path in paths]
                table = table.with_columns(sha256=pl.Series(digests))
        catalog = folder / f"{kind}-{count}.parquet"
        if not catalog.exists():
            table.write_parquet(catalog)
        source = kind.removesuffix("_unchecked")
        own = {"wait_s": 0.01, "tries": 3, **own}
        values = {"source": source, "catalog": {"file": str(catalog)}, source: own}
        return GalaxiesSettings(scope="galaxies", download=values, preprocess={"stamp_px": 16})

    return make


def run(settings: GalaxiesSettings, root: Path) -> None:
    download.run(settings.for_stage("download"), ExperimentPaths(root))


def outcome(root: Path) -> dict[str, bytes]:
    """Both tables, and every image."""
    raw = root / "raw"
    files = [raw / "manifest.parquet", raw / REQUESTS, *sorted((raw / "images").rglob("*.*"))]
    return {file.relative_to(raw).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(
    settings: Case, running: Server, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, bytes]]:
    """What a download leaves when nothing goes wrong."""
    known: dict[str, dict[str, bytes]] = {}

    def of(kind: str) -> dict[str, bytes]:
        if kind not in known:
            root = tmp_path_factory.mktemp(kind)
            kept, running.faults[:] = list(running.faults), []
            run(settings(kind), root)
            known[kind] = outcome(root)
            running.faults[:] = kept
            running.log = faults.Log()
        return known[kind]

    return of


BOTH: dict[str, Fault] = {
    "no_status_line": faults.hang_up,
    "reset_mid_body": faults.reset,
    "429": faults.status(429, Retry_After="7"),
    "500": faults.status(500),
    "503": faults.status(503),
    "truncated": faults.truncated,
    "said_too_long": faults.said_too_long,
    "said_too_short": faults.said_too_short,
    "wrong_bytes": faults.wrong_bytes,
    "login_page": faults.login_page,
    "trickle": faults.trickle,
    "silence": faults.silence,
    "redirect": faults.redirect(307),
    "401": faults.status(401),
}


def exchanged(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Two objects have each other's pixels."""
    (first, one), (second, other) = members[0], members[2]
    return [(first, other), members[1], (second, one), *members[3:]]


TARS: dict[str, Fault] = {
    "wrong_names": faults.tar_with(lambda members: [(f"arch-1-1/image{i}.fits", m[1]) for i, m in enumerate(members)]),
    "lines_from_one": faults.renumbered(-1),
    "lines_beyond": faults.renumbered(990),
    "another_filter": faults.tar_with(lambda members: [(n.replace("HSC-G", "HSC-Z"), c) for n, c in members]),
    "exchanged": faults.tar_with(exchanged),
    "missing": faults.tar_with(lambda members: members[1::2]),
    "none": faults.tar_with(lambda members: []),
    "twice": faults.tar_with(lambda members: members + members[:1]),
    "two_versions": faults.tar_with(lambda members: [*members, (members[0][0], members[2][1])]),
    "corrupt": faults.corrupt_tar,
    "wrong_pixel": faults.tar_with(lambda members: [(n, faults.flipped(c)) for n, c in members]),
    "path_traversal": faults.tar_with(lambda members: [("../" * 9 + "tmp/" + n.split("/")[1], c) for n, c in members]),
    "absolute_path": faults.tar_with(lambda members: [("/tmp/" + n.split("/")[1], c) for n, c in members]),
    "link": faults.with_link,
    "half_a_file": faults.tar_with(lambda members: [(n, c[: len(c) // 2]) for n, c in members]),
    "empty_files": faults.tar_with(lambda members: [(n, b"") for n, c in members]),
    "redirect_twice": faults.redirect(302),
}
ALL = [(kind, name, fault) for kind in KINDS for name, fault in BOTH.items()] + [
    ("hsc", name, fault) for name, fault in TARS.items()
]
NEVER_AGAIN = {"401"}
"""What a second try would not mend: it is an error at once."""


@pytest.mark.parametrize(("kind", "name", "fault"), ALL, ids=[f"{kind}-{name}" for kind, name, _ in ALL])
def test_fault_mends(
    kind: str, name: str, fault: Fault, server: Server, settings: Case, tmp_path: Path,
    undisturbed: Callable[[str], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, waits: list[float],
) -> None:  # fmt: skip
    """One fault, with tries to spare: the download ends as if it had not been."""
    right = undisturbed(kind)
    own: dict[str, Any] = {}
    if name in ("trickle", "silence"):
        monkeypatch.setattr(fetching, "_TIMEOUT_S", 0.3)
        own = {"timeout_s": 0.3} if kind == "hsc" else {}
    server.faults[:] = [None, fault]
    if name in NEVER_AGAIN:
        with pytest.raises(DataError, match="401"):
            run(settings(kind, **own), tmp_path)
        server.awake.set()
    run(settings(kind, **own), tmp_path)
    assert outcome(tmp_path) == right
    assert not list((tmp_path / "raw/images").rglob(".*"))
    if name == "429":
        assert 7 in waits


OF_TWO = [one for one in ALL if one[0] != "http_unchecked"]


@pytest.mark.parametrize(("kind", "name", "fault"), OF_TWO, ids=[f"{kind}-{name}" for kind, name, _ in OF_TWO])
def test_next_run_finishes(
    kind: str, name: str, fault: Fault, server: Server, settings: Case, tmp_path: Path,
    undisturbed: Callable[[str], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A fault and no second try: what did come is kept, and the next run asks only for the rest."""
    right = undisturbed(kind)
    own: dict[str, Any] = {"tries": 1, "threads": 1}
    monkeypatch.setattr(fetching, "_TRIES", 1)
    monkeypatch.setattr(fetching, "_TRIES_UNANSWERED", 1)
    if name in ("trickle", "silence"):
        monkeypatch.setattr(fetching, "_TIMEOUT_S", 0.3)
        own |= {"timeout_s": 0.3} if kind == "hsc" else {}
    server.faults[:] = [fault] * (1 if kind == "hsc" or name in ("trickle", "silence") else 12)
    for _ in range(3):
        try:
            run(settings(kind, **own), tmp_path)
            break
        except DataError:
            assert not (tmp_path / "raw/manifest.parquet").exists()
            table = read_table(tmp_path / "raw" / REQUESTS, transfers.SCHEMA)
            for row in table.filter(pl.col("state") == "done").iter_rows(named=True):
                file = tmp_path / "raw" / row["file"]
                assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
                assert file.read_bytes() == right[row["file"]]
            assert (table["state"] != "done").any()
            server.faults.clear()
            server.awake.set()
            server.log = faults.Log()
    assert outcome(tmp_path) == right
    before = copy.deepcopy(server.log)
    run(settings(kind, **own), tmp_path)
    for what in ("files", "rectangles", "batches", "ranges"):
        assert getattr(server.log, what) == getattr(before, what)
    assert outcome(tmp_path) == right


def test_faults_are_many() -> None:
    assert len({name for _, name, _ in ALL}) >= 12


@pytest.mark.parametrize("kind", ["http", "hsc"])
def test_storm(
    kind: str, server: Server, settings: Case, tmp_path: Path, undisturbed: Callable[[str], dict[str, bytes]]
) -> None:
    """Fault after fault in one download, and run after run."""
    right = undisturbed(kind)
    several = {**BOTH, **(TARS if kind == "hsc" else {})}
    server.faults[:] = [several[name] for name in several if name not in ("401", "trickle", "silence")]
    for _ in range(30):
        try:
            run(settings(kind, tries=2), tmp_path)
            break
        except DataError:
            continue
    assert outcome(tmp_path) == right
    assert not server.faults


# ------------------------------------------------------------------------------------------------ the queue itself
@pytest.mark.parametrize("kind", ["http", "hsc"])
@pytest.mark.parametrize(("count", "threads"), [(7, 4), (1, 4), (3, 10), (9, 2)])
def test_no_remainder_is_dropped(
    kind: str, count: int, threads: int, server: Server, settings: Case, tmp_path: Path
) -> None:
    run(settings(kind, count, threads=threads, **({"filters": ["HSC-I"]} if kind == "hsc" else {})), tmp_path)
    table = read_table(tmp_path / "raw" / REQUESTS, transfers.SCHEMA)
    assert table["state"].to_list() == ["done"] * count
    assert len(list((tmp_path / "raw/images").rglob("*.fits"))) == count
    if kind == "hsc":
        assert sorted(server.log.batches, reverse=True) == sorted(
            map(len, hsc.batches([None] * count, threads, 990)),
            reverse=True,  # type: ignore[list-item]
        )
        assert len(server.log.rectangles) == len(set(server.log.rectangles)) == count


@pytest.mark.parametrize("kind", ["http", "hsc"])
@pytest.mark.parametrize("threads", [1, 3])
def test_connections_are_limited(kind: str, threads: int, server: Server, settings: Case, tmp_path: Path) -> None:
    server.pause_s = 0.05
    own = {"rectangles": 1} if kind == "hsc" else {}
    run(settings(kind, 9, threads=threads, **own), tmp_path)
    assert server.log.most == threads


def test_no_more_than_ten_connections(settings: Case) -> None:
    with pytest.raises(ValueError, match="less than or equal to 10"):
        settings("http", threads=11)
    with pytest.raises(ValueError, match="less than or equal to 990"):
        settings("hsc", rectangles=991)


def test_waits_double_and_obey(server: Server, settings: Case, tmp_path: Path, waits: list[float]) -> None:
    server.faults[:] = [faults.status(503), faults.status(429, Retry_After="50"), faults.status(503)]
    run(settings("hsc", threads=1, tries=4, wait_s=30), tmp_path)
    assert waits == [30, 60, 120]
    waits.clear()
    server.faults[:] = [faults.status(429, Retry_After="50"), faults.status(503, Retry_After="99999")]
    run(settings("hsc", 6, threads=1, tries=4, wait_s=1), tmp_path / "other")
    assert waits == [50, 600]


def test_failed_files_are_an_error(server: Server, settings: Case, tmp_path: Path) -> None:
    """Not fatal to the others, recorded, and an error in the end; `missing_max` allows them."""
    own, lenient = settings("http", 6), settings("http", 6, missing_max=0.2)
    path = sorted(server.files)[2]
    body = server.files.pop(path)
    try:
        with pytest.raises(DataError) as caught:
            run(own, tmp_path)
        text = str(caught.value)
        assert "1 of 6 files could not be fetched, the first: object '00000000043158324', filter '': HTTP 404" in text
        assert "run the same command again" in text
        assert caught.value.exit_code == 3
        table = read_table(tmp_path / "raw" / REQUESTS, transfers.SCHEMA)
        assert table["state"].to_list() == ["done", "done", "failed", "done", "done", "done"]
        assert table["tries"].to_list() == [None, None, 1, None, None, None]
        assert table["error"][2].startswith("HTTP 404")
        assert not (tmp_path / "raw/manifest.parquet").exists()

        run(lenient, tmp_path)
        table = read_manifest(tmp_path / "raw/manifest.parquet")
        assert table.filter(pl.col("state") == "failed")["source"].to_list() == [server.address + path]
    finally:
        server.files[path] = body
    run(own, tmp_path)
    assert read_manifest(tmp_path / "raw/manifest.parquet")["state"].unique().to_list() == ["done"]


def test_nothing_at_all_is_an_error_whatever_may_be_missing(server: Server, settings: Case, tmp_path: Path) -> None:
    server.faults[:] = [faults.status(404)] * COUNT
    with pytest.raises(DataError, match="5 of 5"):
        run(settings("http", missing_max=1), tmp_path)


def test_service_that_is_gone_is_not_asked_to_the_end(
    server: Server, settings: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "_DEAF_AFTER", 3)
    server.faults[:] = [faults.status(503)] * 1000
    with pytest.raises(DataError, match="3 requests in a row were in vain"):
        run(settings("hsc", 9, threads=1, rectangles=1, tries=2), tmp_path)
    server.faults.clear()
    assert len(server.log.authorizations) == 6
    states = read_table(tmp_path / "raw" / REQUESTS, transfers.SCHEMA)["state"]
    assert states.value_counts().sort("count").rows() == [("failed", 3), ("pending", 15)]
    run(settings("hsc", 9), tmp_path)


def test_bad_files_hide_no_others(
    server: Server, settings: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers is there, whatever it answers."""
    monkeypatch.setattr(transfers, "_DEAF_AFTER", 3)
    own = settings("http_unchecked", 8, threads=1, tries=1, missing_max=0.9)
    for path in sorted(server.files)[:6]:
        monkeypatch.setitem(server.files, path, b"no image")
    run(own, tmp_path)
    states = read_table(tmp_path / "raw" / REQUESTS, transfers.SCHEMA)["state"].to_list()
    assert states == ["failed"] * 6 + ["done"] * 2


def test_what_failed_is_asked_for_last(
    server: Server, settings: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for which a server has always had a 503 do not keep the rest from ever being asked for."""
    monkeypatch.setattr(transfers, "_DEAF_AFTER", 3)
    own = settings("http", 8, threads=1, tries=1, missing_max=0.5)
    bad = sorted(server.files)[:4]
    asked = []

    def choosy(handler: Any, right: Callable[[], None]) -> None:
        asked.append(handler.path)
        handler.status(503) if handler.path in bad else right()

    server.faults[:] = [choosy] * 99
    with pytest.raises(DataError, match=r"8 of 8 .* 3 requests in a row were in vain"):
        run(own, tmp_path)
    run(own, tmp_path)
    server.faults.clear()
    assert asked[:3] == bad[:3]
    assert asked[3:] == [bad[3], *sorted(server.files)[4:8], *bad[:3]]
    table = read_table(tmp_path / "raw" / REQUESTS, transfers.SCHEMA)
    assert table["state"].to_list() == ["failed"] * 4 + ["done"] * 4


def test_tries_and_waits_are_those_of_the_settings(
    server: Server, settings: Case, tmp_path: Path, waits: list[float]
) -> None:
    server.faults[:] = [faults.status(503)] * 99
    for tries, waited in [(1, []), (3, [4, 8])]:
        server.log = faults.Log()
        with pytest.raises(DataError, match="HTTP 503"):
            run(settings("http", 1, tries=tries, wait_s=4), tmp_path)
        assert len(server.log.ranges) == tries
        assert waits == waited
    server.faults.clear()


def test_address_of_the_service_is_wrong(server: Server, settings: Case, tmp_path: Path) -> None:
    for code in (404, 405):
        server.faults[:] = [faults.status(code)] * 99
        server.log = faults.Log()
        with pytest.raises(DataError, match=rf"there is no cutout service \(HTTP {code}.*check download\.hsc\.api"):
            run(settings("hsc", 9, threads=1), tmp_path)
        assert len(server.log.authorizations) == 1
    server.faults.clear()


def test_service_that_refuses_all_is_not_asked_to_the_end(server: Server, settings: Case, tmp_path: Path) -> None:
    server.faults[:] = [faults.status(400)] * 999
    with pytest.raises(DataError, match=r"HTTP 400.*one by one were refused"):
        run(settings("hsc", 40, threads=1), tmp_path)
    assert len(server.log.authorizations) < 20
    server.faults.clear()

    run(settings("hsc", 3), tmp_path / "other")
    server.faults[:] = [faults.status(400)] * 999
    with pytest.raises(DataError, match="4 of 10 files"):
        run(settings("hsc", 5), tmp_path / "other")
    server.faults.clear()
    states = read_table(tmp_path / "other/raw" / REQUESTS, transfers.SCHEMA)["state"]
    assert states.value_counts().sort("count").rows() == [("failed", 4), ("done", 6)]


@pytest.mark.parametrize(("kind", "requests"), [("http", 3), ("http_unchecked", 4), ("hsc", 2)])
def test_checksums_of_another_image(
    kind: str, requests: int, server: Server, settings: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Copied from the image of which this is a cutout. One file that comes twice with the same bytes says it for all;
    one whose digest the catalog knows does not have to."""
    own = settings("http_unchecked", 3, threads=1) if kind != "hsc" else settings("hsc", 3, threads=1)
    paths = sorted(server.files)[:3]
    for path in paths:
        monkeypatch.setitem(server.files, path, faults.flipped(server.files[path]))
    if kind == "http":
        catalog = tmp_path / "catalog.parquet"
        digests = [hashlib.sha256(server.files[path]).hexdigest() for path in paths]
        addresses = [server.address + path for path in paths]
        pl.DataFrame({"object_id": ["a", "b", "c"], "url": addresses, "sha256": digests}).write_parquet(catalog)
        values = {"source": "http", "catalog": {"file": str(catalog)}}
        own = GalaxiesSettings(scope="galaxies", download=values, preprocess={"stamp_px": 16})
    else:
        server.faults[:] = [TARS["wrong_pixel"]] * 9 if kind == "hsc" else []
    with caplog.at_level(logging.WARNING, "manyscope"):
        run(own, tmp_path / "experiment")
    server.faults.clear()
    assert (read_manifest(tmp_path / "experiment/raw/manifest.parquet")["state"] == "done").all()
    assert len(server.log.ranges) == requests
    told = [record for record in caplog.records if "the same bytes came twice" in record.getMessage()]
    assert len(told) == (kind != "http")


def test_files_are_checked_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By several threads, none of which changes what is done about warnings for the others or for good."""
    meeting, read = threading.Barrier(2, timeout=20), transfers.read_planes
    fields = {"ra": "1", "dec": "2", "filter": "g", "rerun": "", "sw": "", "sh": ""}
    (tmp_path / "a.fits").write_bytes(faults.cutout(fields))
    (tmp_path / "b.fits").write_bytes(faults.cutout(fields)[:-2880])

    def both(*args: Any) -> Any:
        meeting.wait()
        return read(*args)

    monkeypatch.setattr(transfers, "read_planes", both)
    monkeypatch.setattr(transfers, "_read_all", lambda path, checksum: None)
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        whole, half = pool.map(lambda name: transfers.what_is_wrong(tmp_path / name, 1), ["a.fits", "b.fits"])
    assert whole is None
    assert half is not None
    assert "truncated" in half
    assert warnings.filters == before


def test_one_rectangle_that_spoils_the_batch(server: Server, settings: Case, tmp_path: Path) -> None:
    """A batch that is refused is asked for in halves, down to the one that is the reason."""

    def choosy(handler: Any, right: Callable[[], None]) -> None:
        if any(row["ra"] == "150.03" and row["filter"] == "HSC-G" for row in handler.asked()):
            handler.status(400)
        else:
            right()

    server.faults[:] = [choosy] * 50
    with pytest.raises(DataError, match=r"1 of 10 files could not be fetched.*HTTP 400"):
        run(settings("hsc"), tmp_path)
    server.faults.clear()
    assert len(server.log.rectangles) == len(set(server.log.rectangles)) == 9


# --------------------------------------------------------------------------------------------- what is there already
def test_files_count_whatever_the_table_says(
    server: Server, settings: Case, tmp_path: Path, undisturbed: Callable[[str], dict[str, bytes]]
) -> None:
    right = undisturbed("hsc")
    run(settings("hsc"), tmp_path)
    raw = tmp_path / "raw"
    files = sorted((raw / "images").rglob("*.fits"))
    server.log = faults.Log()

    (raw / REQUESTS).unlink()
    run(settings("hsc"), tmp_path)
    (raw / REQUESTS).write_bytes(b"PAR1 no more")
    run(settings("hsc"), tmp_path)
    assert not server.log.rectangles

    # Gone, cut short with and without a table that knows better, and changed behind the table's back.
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-2880])
    changed = bytearray(files[2].read_bytes())
    changed[6000] ^= 1
    files[2].write_bytes(changed)
    run(settings("hsc"), tmp_path)
    assert len(server.log.rectangles) == 3
    (raw / REQUESTS).unlink()
    files[1].write_bytes(files[1].read_bytes()[:-2880])
    run(settings("hsc"), tmp_path)
    assert len(server.log.rectangles) == 4
    assert outcome(tmp_path) == right


def test_files_are_read_once(
    server: Server, settings: Case, tmp_path: Path, undisturbed: Callable[[str], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Not again as long as neither size nor times say that they have changed since the table of states was written."""
    right = undisturbed("http")
    own, raw, read = settings("http"), tmp_path / "raw", []
    run(own, tmp_path)
    files = sorted((raw / "images").rglob("*.fits"))

    def digest(path: Path) -> str:
        read.append(path)
        return file_digest(path)

    for module in (transfers, manifest):
        monkeypatch.setattr(module, "file_digest", digest)
    since = max(file.stat().st_ctime_ns for file in files) + 1
    os.utime(raw / REQUESTS, ns=(since, since))
    run(own, tmp_path)
    assert not set(read) & set(files)
    assert outcome(tmp_path) == right

    os.utime(raw / REQUESTS, ns=(since, since))
    time.sleep(0.05)  # longer than the clock of the file system's ticks
    times = files[1].stat().st_atime_ns, files[1].stat().st_mtime_ns
    changed = bytearray(files[1].read_bytes())
    changed[6000] ^= 1
    files[1].write_bytes(changed)
    os.utime(files[1], ns=times)
    run(own, tmp_path)
    assert files[1] in read
    assert outcome(tmp_path) == right


def test_few_files_wait_to_be_looked_at(
    server: Server, settings: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []

    class Pool(ThreadPoolExecutor):
        def map(self, function: Any, items: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            items = list(items)
            lengths.append(len(items))
            return super().map(function, items, **kwargs)

    monkeypatch.setattr(transfers, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(transfers, "_LOOK_TOGETHER", 2)
    run(settings("http"), tmp_path)
    server.log = faults.Log()
    run(settings("http"), tmp_path)
    assert lengths == [2, 2, 1] * 2
    assert not server.log.files


def test_what_a_killed_download_was_writing_is_cleared_away(
    server: Server, settings: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and not by reading a folder for each file."""
    run(settings("hsc"), tmp_path)
    last = max((tmp_path / "raw/images").rglob("*.fits"))
    left_over = last.with_name(f".{last.name}.1.partial")
    last.rename(left_over)
    listed = []
    listing = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: listed.append(self) or listing(self, pattern))
    run(settings("hsc"), tmp_path)
    assert not left_over.exists()
    assert last.exists()
    assert last.parent not in listed


def test_files_that_nobody_asks_for(server: Server, settings: Case, tmp_path: Path) -> None:
    """A smaller catalog, or another size, does not mix with what an earlier download has left."""
    run(settings("hsc", 6), tmp_path)
    with pytest.raises(DataError, match=r"2 files are there that .* no longer ask for: images/"):
        run(settings("hsc", 5), tmp_path)
    with pytest.raises(DataError, match=r"12 files are there .*, …; .*download.hsc.leftover"):
        run(settings("hsc", 6, semi_width_arcsec=5), tmp_path)
    run(settings("hsc", 5, leftover="keep"), tmp_path)
    table = read_manifest(tmp_path / "raw/manifest.parquet")
    assert table["path"].str.starts_with("images/").sum() == 10
    assert len(list((tmp_path / "raw/images").rglob("*.fits"))) == 12


def test_new_objects_leave_the_old_alone(server: Server, settings: Case, tmp_path: Path) -> None:
    run(settings("hsc", 5), tmp_path)
    server.log = faults.Log()
    run(settings("hsc", 6), tmp_path)
    assert sorted(line.split()[1] for line in server.log.rectangles) == ["150.05", "150.05"]


def test_nothing_is_written_outside(server: Server, settings: Case, tmp_path: Path) -> None:
    server.faults[:] = [TARS["path_traversal"], TARS["absolute_path"], TARS["link"]]
    target = tmp_path / "experiment"
    run(settings("hsc", threads=1, tries=9), target)
    assert [path.name for path in tmp_path.iterdir()] == ["experiment"]
    assert not any(path.is_symlink() for path in target.rglob("*"))
    assert not list(Path("/tmp").glob("*-cutout-HSC-*"))


# ------------------------------------------------------------------------------------------------------ interruptions
def test_killed_and_finished(
    server: Server, settings: Case, tmp_path: Path, undisturbed: Callable[[str], dict[str, bytes]]
) -> None:
    """kill -9 in the middle of a download, twice."""
    right = undisturbed("http")
    server.pause_s = 0.3
    own = settings("http", threads=1)
    (tmp_path / "settings.json").write_text(json.dumps(own.stage_values("download")))
    script = textwrap.dedent("""
        import json, sys
        from pathlib import Path
        from manyscope.scopes.galaxies.settings import GalaxiesSettings
        from manyscope.settings.paths import ExperimentPaths
        from manyscope.stages import download
        values = json.loads(Path(sys.argv[1], "settings.json").read_text())
        download.run(GalaxiesSettings.from_stage_values("download", values), ExperimentPaths(Path(sys.argv[1])))
    """)
    for least in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
        while len(list((tmp_path / "raw/images").glob("*/*/[!.]*"))) < least:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "raw/manifest.parquet").exists()
    server.pause_s = 0
    time.sleep(0.35)  # for the answer that nobody reads any more
    run(own, tmp_path)
    assert outcome(tmp_path) == right
    assert set(server.log.files.values()) <= {1, 2}
    assert sum(server.log.files.values()) <= COUNT + 2  # each kill may spoil one that was on its way


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_the_states(
    number: signal.Signals,
    server: Server,
    settings: Case,
    tmp_path: Path,
    undisturbed: Callable[[str], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfers, "_END_S", 0.1)  # the silence that a worker listens to outlasts it
    right = undisturbed("http")
    server.faults[:] = [None, None, lambda handler, right: os.kill(os.getpid(), number), *[faults.silence] * 9]
    with pytest.raises(StoppedError if number == signal.SIGTERM else KeyboardInterrupt):
        run(settings("http", threads=1), tmp_path)
    server.awake.set()
    server.faults.clear()
    states = read_table(tmp_path / "raw" / REQUESTS, transfers.SCHEMA)["state"].to_list()
    assert sorted(states) == ["done", "done", "pending", "pending", "pending"]
    server.log = faults.Log()
    run(settings("http"), tmp_path)
    assert outcome(tmp_path) == right
    assert sum(server.log.files.values()) <= 3


def test_full_disk_ends_it(server: Server, settings: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of this machine is not taken for one of the service, to be met file by file."""

    def full(*args: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hsc, "file_digest", full)
    with pytest.raises(DataError, match="disk is full"):
        run(settings("hsc"), tmp_path)


# --------------------------------------------------------------------------------------------------------- statistics
def test_statistics(
    server: Server, settings: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transfers, "_REPORT_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "manyscope"):
        run(settings("hsc", threads=2), tmp_path)
    told = json.loads((tmp_path / "raw" / STATISTICS).read_text())
    assert told["requests"] == 2
    assert told["files"] == 10
    assert told["failed"] == 0
    images = sum(file.stat().st_size for file in (tmp_path / "raw/images").rglob("*.fits"))
    assert images < told["bytes_in"] < 2 * images
    assert told["bytes_out"] > 500
    assert told["request_s"] > 0
    assert told["files_per_s"] == pytest.approx(10 / told["seconds"])
    lines = [r.getMessage() for r in caplog.records if "MB in" in r.getMessage()]
    assert len(lines) > 2
    assert lines[-2].startswith("10 files in ")
    assert STATISTICS not in read_manifest(tmp_path / "raw/manifest.parquet")["path"].to_list()
    before = (tmp_path / "raw" / STATISTICS).stat().st_mtime_ns
    run(settings("hsc"), tmp_path)
    assert (tmp_path / "raw" / STATISTICS).stat().st_mtime_ns == before


def test_states_are_saved_the_more_seldom_the_longer_it_takes(
    settings: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []

    def save(path: Path, table: pl.DataFrame) -> None:
        saved.append(path.name)
        write_table(path, table)

    monkeypatch.setattr(transfers, "write_table", save)
    monkeypatch.setattr(transfers, "_REPORT_EVERY_S", 0.0)
    monkeypatch.setattr(transfers, "_SAVE_SHARE", 1e-9)
    run(settings("http", 9, threads=1), tmp_path)
    assert saved == [REQUESTS] * 2  # the first says how long it takes, the other is at the end


# --------------------------------------------------------------------------------------------------------- file names
def test_file_names() -> None:
    names = [file_name(*parts, ".fits", 1) for parts in [("a/b", "g"), ("a-b", "g"), ("../x", "g"), ("ä" * 300, "g")]]
    assert len(set(names)) == 4
    for name in names:
        images, folder, inner, file = name.split("/")
        assert (images, len(folder), len(inner)) == ("images", 2, 2)
        assert not file.startswith(".")
        assert len(file) < 200
        assert file.isascii()
    assert file_name("a", "g", ".fits", 1) != file_name("a", "g", ".fits", 2)
