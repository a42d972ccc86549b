"""The folder of pretrained weights and its manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import xxhash

from manyscope.data import weights
from manyscope.data.fetching import checksum_of
from manyscope.data.weights import MANIFEST, Known, check, fill, read_manifest
from manyscope.errors import BusyError, CheckpointError, DataError, ManyscopeError
from manyscope.tables.whole import sole_worker

CONTENT = {"net": b"net" * 1000, "net_head": b"head" * 1000, "other": b"other" * 1000}
ADDRESS = "http://127.0.0.1:9/"


def known(name: str, *copies: Path, algorithm: str = "xxh128") -> Known:
    make = xxhash.xxh128 if algorithm == "xxh128" else hashlib.sha256
    return Known(f"{ADDRESS}{name}", f"{algorithm}:{make(CONTENT[name]).hexdigest()}", copies)


def registry() -> Mapping[str, Known]:
    return {name: known(name) for name in CONTENT}


def untouched() -> Mapping[str, Known]:
    raise AssertionError("nothing is missing: nobody has to know the registry")


@pytest.fixture(autouse=True)
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A network that gives every file; the names that were fetched."""
    names: list[str] = []

    def fetch(address: str, target: Path, checksum: str, remedy: str) -> None:
        name = address.removeprefix(ADDRESS)
        target.write_bytes(CONTENT[name])
        assert checksum_of(target, checksum.partition(":")[0]) == checksum
        names.append(name)

    monkeypatch.setattr(weights, "fetch", fetch)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep/weights"


@pytest.fixture
def filled(folder: Path, fetched: list[str]) -> Path:
    fill(folder, ["net", "net_head"], registry)
    fetched.clear()
    return folder


# ------------------------------------------------------------------------------------------------------- filling
def test_fills(folder: Path, fetched: list[str]) -> None:
    assert fill(folder, ["net_head", "net"], registry) == [folder / "net_head", folder / "net"]
    assert fetched == ["net_head", "net"]
    manifest = json.loads((folder / MANIFEST).read_text())
    assert list(manifest) == ["net", "net_head"]
    assert manifest["net"] == {
        "file": "net",
        "bytes": 3000,
        "sha256": hashlib.sha256(CONTENT["net"]).hexdigest(),
        "xxh128": xxhash.xxh128(CONTENT["net"]).hexdigest(),
        "source": f"{ADDRESS}net",
    }
    assert {file.name for file in folder.iterdir()} == {"net", "net_head", MANIFEST, ".lock"}


def test_registry_that_goes_by_another_checksum(folder: Path) -> None:
    fill(folder, ["net"], lambda: {"net": known("net", algorithm="sha256")})
    entry = read_manifest(folder)["net"]
    assert (entry.sha256, entry.xxh128) == (hashlib.sha256(CONTENT["net"]).hexdigest(), "")


def test_what_is_right_is_left_alone(filled: Path, fetched: list[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in filled.iterdir()}
    fill(filled, ["net", "net_head"], untouched)
    assert not fetched
    assert {file: file.stat().st_mtime_ns for file in filled.iterdir()} == before


def test_name_given_twice(folder: Path, fetched: list[str]) -> None:
    assert fill(folder, ["net", "net"], registry) == [folder / "net"] * 2
    assert fetched == ["net"]
    assert read_manifest(folder)["net"].source == f"{ADDRESS}net"


def test_entries_of_others_are_kept(filled: Path, fetched: list[str]) -> None:
    fill(filled, ["other"], registry)
    assert fetched == ["other"]
    assert list(read_manifest(filled)) == ["net", "net_head", "other"]


@pytest.mark.parametrize("content", [None, b"short", b"x" * 3000])
def test_wrong_file_is_named_and_fetched_anew(
    content: bytes | None, filled: Path, fetched: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (filled / "net").unlink()
    if content is not None:
        (filled / "net").write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="manyscope"):
        fill(filled, ["net", "net_head"], registry)
    assert fetched == ["net"]
    assert (filled / "net").read_bytes() == CONTENT["net"]
    assert check(filled, "net") == filled / "net"
    assert [f"{filled / 'net'}: not used" in message for message in caplog.messages] == [True] * (content is not None)


def test_files_put_there_by_hand(folder: Path, fetched: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "net").write_bytes(CONTENT["net"])
    (folder / "net_head").write_bytes(b"something else")
    fill(folder, ["net", "net_head"], registry)
    assert fetched == ["net_head"]
    assert read_manifest(folder)["net"].source == f"by hand, the same as {ADDRESS}net"


def test_copies_of_other_programs(folder: Path, tmp_path: Path, fetched: list[str]) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_bytes(CONTENT["net"])
    wrong.write_bytes(b"outdated")
    copies = {"net": known("net", tmp_path / "absent", wrong, right), "other": known("other", wrong)}
    fill(folder, ["net", "other"], lambda: copies)
    assert fetched == ["other"]
    assert read_manifest(folder)["net"].source == str(right)
    assert (folder / "net").read_bytes() == right.read_bytes() == CONTENT["net"]
    assert wrong.read_bytes() == b"outdated"


def test_what_cannot_be_read_is_not_used(folder: Path, tmp_path: Path, fetched: list[str]) -> None:
    (tmp_path / "copy").mkdir()  # a folder where a file should be
    fill(folder, ["net"], lambda: {"net": known("net", tmp_path / "copy", tmp_path / "copy/deeper")})
    assert fetched == ["net"]


def test_failure_keeps_what_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, ["net"], registry)

    def fetch(address: str, target: Path, checksum: str, remedy: str) -> None:
        raise DataError(f"cannot be fetched from {address}", place=target, remedy=remedy)

    monkeypatch.setattr(weights, "fetch", fetch)
    with pytest.raises(DataError) as caught:
        fill(folder, ["net", "other"], registry)
    assert "run `manyscope download --experiment NAME` on a machine with a network" in str(caught.value)
    assert "copy the file there by hand" in str(caught.value)
    assert check(folder, "net").is_file()
    assert "other" not in read_manifest(folder)


def test_name_that_the_registry_does_not_have(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no weights 'nett' in the registry; allowed: net, net_head, other"):
        fill(folder, ["nett"], registry)


@pytest.mark.parametrize("text", ["{", "[]", '{"net": 1}', '{"net": {"file": "net"}}', '{"net": {"bytes": "many"}}'])
def test_broken_manifest_is_made_anew(text: str, filled: Path, fetched: list[str]) -> None:
    (filled / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=str(filled / MANIFEST)):
        check(filled, "net")
    fill(filled, ["net"], registry)
    assert not fetched  # the file is right, as its checksum says
    assert check(filled, "net") == filled / "net"


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/deeper", Path("/proc/weights")):
        with pytest.raises(DataError, match="cannot be written"):
            fill(folder, ["net"], registry)


def test_several_at_once_fetch_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetches: list[str] = []
    inside = threading.Lock()

    def fetch(address: str, target: Path, checksum: str, remedy: str) -> None:
        assert inside.acquire(blocking=False), "two fetch at once"
        time.sleep(0.05)
        target.write_bytes(CONTENT[target.name])
        fetches.append(target.name)
        inside.release()

    monkeypatch.setattr(weights, "fetch", fetch)
    wanted = [["net", "other"], ["net_head", "net"], ["other", "net"], ["net"]]
    failures: list[BaseException] = []

    def work(names: list[str]) -> None:
        try:
            fill(folder, names, registry)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[names]) for names in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(fetches) == ["net", "net_head", "other"]
    assert all(check(folder, name) for name in CONTENT)
    assert {entry.source for entry in read_manifest(folder).values()} == {f"{ADDRESS}{name}" for name in CONTENT}


def test_waiting_ends(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(weights, "_PATIENCE_S", 0.1)
    folder.mkdir(parents=True)
    with (
        sole_worker(folder / ".lock"),
        caplog.at_level(logging.INFO, logger="manyscope"),
        pytest.raises(BusyError),
    ):
        fill(folder, ["net"], registry)
    assert "is still working on this; waiting for it" in caplog.text


# ------------------------------------------------------------------------------------------------------- checking
def test_checks_what_is_right(filled: Path) -> None:
    assert check(filled, "net_head") == filled / "net_head"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda file: file.unlink(), "the file is missing"),
        (lambda file: file.write_bytes(b"short"), "the file has 5 bytes instead of 3,000"),
        (lambda file: file.write_bytes(b"x" * 3000), "the file changed since it was fetched"),
        (lambda file: (file.unlink(), file.symlink_to(file)), "the file cannot be read"),
    ],
)
def test_what_is_wrong_is_refused(change: Any, why: str, filled: Path) -> None:
    change(filled / "net")
    with pytest.raises(CheckpointError) as caught:
        check(filled, "net")
    assert str(caught.value).startswith(f"{filled / 'net'}: {why}")
    assert "run `manyscope download" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_contents_are_read_only_when_asked(filled: Path) -> None:
    (filled / "net").write_bytes(b"x" * 3000)
    assert check(filled, "net", contents=False) == filled / "net"
    (filled / "net").write_bytes(b"x" * 2999)
    with pytest.raises(CheckpointError):
        check(filled, "net", contents=False)


def test_what_was_never_fetched(filled: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights 'other': its manifest\.json names net, net_head; run"):
        check(filled, "other")
    (tmp_path / "other").touch()
    with pytest.raises(ManyscopeError, match=r"no weights 'other': it has no manifest\.json; run"):
        check(tmp_path, "other")
