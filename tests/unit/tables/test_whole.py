"""Files and folders are there whole or not at all, whatever happens on the way."""

from __future__ import annotations

import datetime
import errno
import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import BusyError, DataError
from manyscope.tables.whole import (
    explaining_full_disk,
    plain_json,
    put_back,
    read_json,
    reserve,
    sole_worker,
    whole_file,
    whole_folder,
    write_json,
)


def test_file_is_replaced_only_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with whole_file(path) as partial:
        partial.write_text("one")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), whole_file(path) as partial:
        partial.write_text("two")
        raise ZeroDivisionError
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("sweep", [True, False])
def test_left_over_of_a_killed_process_is_swept_if_wanted(tmp_path: Path, sweep: bool) -> None:
    left_over = tmp_path / ".a.txt.1.partial"
    left_over.write_text("half of it")
    with whole_file(tmp_path / "a.txt", sweep) as partial:
        partial.write_text("one")
    assert left_over.exists() == (not sweep)
    assert (tmp_path / "a.txt").read_text() == "one"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_one_clear_line_and_keeps_what_was_there(tmp_path: Path, code: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fill() -> None:
        with whole_file(path) as partial:
            partial.write_text("half of it")
            raise OSError(code, "no room", str(partial))

    with pytest.raises(DataError, match=r"a\.txt: the disk is full .* free some space") as caught:
        fill()
    assert "\n" not in str(caught.value)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_really_full_disk(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    path = tmp_path / "a.txt"

    def fill() -> None:
        with whole_file(path) as partial:
            partial.symlink_to("/dev/full")
            with partial.open("w") as file:
                file.write("x" * 100_000)

    with pytest.raises(DataError, match="the disk is full"):
        fill()
    assert not path.exists()


def test_full_disk_reported_by_a_library(tmp_path: Path) -> None:
    """polars raises no OSError when it cannot write on."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(DataError, match="the disk is full"), whole_file(tmp_path / "t.parquet") as partial:
        partial.symlink_to("/dev/full")
        pl.DataFrame({"a": [1.0]}).write_parquet(partial)
    assert not (tmp_path / "t.parquet").exists()


def test_full_disk_reported_by_numpy(tmp_path: Path) -> None:
    """numpy counts what it could write and keeps the number of the error to itself."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(DataError, match="the disk is full"), whole_file(tmp_path / "a.npy") as partial:
        partial.symlink_to("/dev/full")
        with partial.open("wb", buffering=0) as file:
            np.zeros(100_000).tofile(file)
    assert not (tmp_path / "a.npy").exists()


@pytest.mark.parametrize(("free", "raised"), [(0, DataError), (2**30, json.JSONDecodeError)])
def test_an_unclear_error_of_a_library_is_the_disks_when_nothing_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, raised: type[Exception]
) -> None:
    usage = type(shutil.disk_usage(tmp_path))(2**40, 2**40 - free, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(raised), explaining_full_disk(tmp_path / "absent" / "folder"):
        json.loads("{")
    with pytest.raises(ZeroDivisionError), explaining_full_disk(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(BusyError), explaining_full_disk(tmp_path):
        raise BusyError("still at work")


def test_reserving_takes_the_space_and_keeps_the_content(tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as opened:
        opened.write(b"head")
        opened.truncate(2**20)
    reserve(file)
    assert file.stat().st_blocks * 512 >= 2**20
    assert file.read_bytes() == b"head" + bytes(2**20 - 4)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"), whole_file(tmp_path / "file" / "a.txt"):
        pass


def test_folder_is_swapped_whole(tmp_path: Path) -> None:
    path = tmp_path / "index"
    for content in ("one", "two"):
        with whole_folder(path) as folder:
            (folder / "a").write_text(content)
    with pytest.raises(ZeroDivisionError), whole_folder(path) as folder:
        (folder / "b").write_text("three")
        raise ZeroDivisionError
    assert (path / "a").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_folder_survives_a_killed_predecessor(tmp_path: Path) -> None:
    for left_over in (".index.partial", ".index.old"):
        (tmp_path / left_over).mkdir()
        (tmp_path / left_over / "rubbish").write_text("")
    with whole_folder(tmp_path / "index") as folder:
        (folder / "a").write_text("")
    assert [p.name for p in tmp_path.rglob("*")] == ["index", "a"]


def test_errors_of_the_caller_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), whole_file(tmp_path / "a"):
        Path("/nowhere/elsewhere").read_text()


numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=json_values)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "v.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_refuses_nan_and_explains_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert not path.exists()
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_json(path)
    with pytest.raises(DataError, match="missing"):
        read_json(tmp_path / "absent.json")


def _hold(lock: Path, held: object, done: object) -> None:
    with sole_worker(lock):
        held.set()  # type: ignore[attr-defined]
        done.wait(30)  # type: ignore[attr-defined]


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / ".locks" / "train"
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(lock, held, done))
    other.start()
    assert held.wait(30)
    with pytest.raises(BusyError, match=f"process {other.pid} on .* is still working"), sole_worker(lock):
        pass
    other.kill()  # a killed holder leaves nothing to clean up
    other.join()
    with sole_worker(lock):
        pass


def test_json_for_any_reader_has_no_number_that_is_not_finite() -> None:
    value = [{"far": float("nan"), "near": [1.5, float("inf")], "day": datetime.date(2024, 5, 1), "whole": 3}]
    text = plain_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == [
        {"far": None, "near": [1.5, None], "day": "2024-05-01", "whole": 3}
    ]


def test_a_reader_that_puts_the_earlier_folder_back_costs_the_new_one_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename, moves = tmp_path / "index", Path.rename, []
    with whole_folder(folder) as partial:
        (partial / "a").write_text("old")

    def watched(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        moves.append(target.name)
        if moves == [".index.old"]:  # between the two renames of the writer
            put_back(folder)
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", watched)
        with whole_folder(folder) as partial:
            (partial / "a").write_text("new")
    assert (folder / "a").read_text() == "new"
    assert moves == [".index.old", "index", ".index.old", "index"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index"]
