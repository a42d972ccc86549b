"""Pretrained weights of micro_sam, with a registry whose files are small and lie on loopback, or nowhere."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from manyscope.data.weights import Known, read_manifest
from manyscope.errors import CheckpointError, DataError, ManyscopeError, MissingDependencyError
from manyscope.scopes.cells.data import weights
from manyscope.scopes.cells.data.weights import NAMES, WITHOUT_DECODER, Weights, fetch, problems, registry, require
from manyscope.scopes.cells.settings import WeightsSettings

FILES = {name: f"weights of {name}".encode() * 1000 for name in ("vit_b", "vit_b_lm", "vit_b_lm_decoder")}


def use_registry(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("manyscope.data.fetching._WAITS_S", (0,) * 5)
    known = {
        name: Known(f"{address}/{name}", f"xxh128:{xxhash.xxh128(content).hexdigest()}", (cache / name,))
        for name, content in FILES.items()
    }
    monkeypatch.setattr(weights, "registry", lambda: known)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server with the registry's files; the folder that it serves."""
    served = tmp_path / "served"
    served.mkdir()
    for name, content in FILES.items():
        (served / name).write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        use_registry(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
        yield served
        server.shutdown()
        thread.join()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address where nobody answers."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        use_registry(monkeypatch, address, tmp_path / "cache")
        yield address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def filled(online: Path, folder: Path) -> Path:
    fetch(["vit_b_lm", "vit_b"], folder)
    return folder


def no_registry() -> Any:
    raise AssertionError("a later stage looked at the registry")


# ------------------------------------------------------------------------------------------------- the registry
def test_names_are_those_of_micro_sam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And asking for them downloads nothing."""
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
    known = registry()
    assert {name for name in known if not name.endswith("_decoder")} == set(NAMES)
    decoders = {name.removesuffix("_decoder") for name in known if name.endswith("_decoder")}
    assert decoders == set(NAMES) - set(WITHOUT_DECODER)
    for name, each in known.items():
        assert each.address.startswith("https://")
        assert each.checksum.startswith("xxh128:")
        assert each.copies == (tmp_path / "models" / name,)
    assert not list(tmp_path.iterdir())


def test_micro_sam_is_imported_only_to_fetch() -> None:
    code = (
        "import sys, manyscope.scopes.cells.data.weights as w; from manyscope.scopes.cells.settings import *;"
        "list(w.problems(WeightsSettings(names=('vit_b', 'nope')), 'vit_t', None)); print(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"micro_sam", "torch", "pooch", "xxhash"} & {name.split(".")[0] for name in done.stdout.split()}


def test_without_micro_sam(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "micro_sam.util", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'manyscope\[cells\]'"):
        fetch(["vit_b"], folder)


# ---------------------------------------------------------------------------------------------------- fetching
def test_fetches_checkpoint_and_decoder(online: Path, folder: Path) -> None:
    assert fetch(["vit_b_lm", "vit_b"], folder) == [
        Weights(folder / "vit_b_lm", folder / "vit_b_lm_decoder"),
        Weights(folder / "vit_b", None),
    ]
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert list(read_manifest(folder)) == ["vit_b", "vit_b_lm", "vit_b_lm_decoder"]


def test_takes_what_micro_sam_has_in_its_cache(offline: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for name in ("vit_b_lm", "vit_b_lm_decoder"):
        (tmp_path / "cache" / name).write_bytes(FILES[name])
    fetch(["vit_b_lm"], folder)
    assert read_manifest(folder)["vit_b_lm"].source == str(tmp_path / "cache/vit_b_lm")


def test_takes_what_was_put_there_by_hand(offline: str, folder: Path) -> None:
    folder.mkdir()
    (folder / "vit_b").write_bytes(FILES["vit_b"])
    assert fetch(["vit_b"], folder) == [Weights(folder / "vit_b")]


def test_nothing_is_asked_when_all_is_there(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "registry", no_registry)
    assert [each.checkpoint.name for each in fetch(["vit_b", "vit_b_lm"], filled)] == ["vit_b", "vit_b_lm"]
    assert fetch([], filled / "elsewhere") == []
    assert not (filled / "elsewhere").exists()


def test_without_a_network(offline: str, folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch(["vit_b"], folder)
    text = str(caught.value)
    assert "\n" not in text
    for part in (
        f"{folder / 'vit_b'}: cannot be fetched from {offline}/vit_b (3 tries, the last: ",
        "run `manyscope download --experiment NAME` on a machine with a network",
        "copy the file there by hand",
    ):
        assert part in text


def test_file_that_is_no_longer_the_registrys(online: Path, folder: Path) -> None:
    (online / "vit_b").write_bytes(b"a page that says sign in")
    with pytest.raises(DataError, match=r"twice 24 bytes arrived with xxh128:"):
        fetch(["vit_b"], folder)
    assert not (folder / "vit_b").exists()


def test_unknown_name(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"'vit_b_ml' is no model of micro_sam's registry; allowed: .*; did you mean 'vit_b_lm'\?$"
    ):
        fetch(["vit_b_ml"], folder)
    assert not folder.exists()


# ---------------------------------------------------------------------------------------------------- requiring
@pytest.fixture
def later(filled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as a later stage meets it, without registry and network."""
    monkeypatch.setattr(weights, "registry", no_registry)
    monkeypatch.setattr("urllib.request.urlopen", no_registry)
    return filled


def test_requires_what_was_fetched(later: Path) -> None:
    both = Weights(later / "vit_b_lm", later / "vit_b_lm_decoder")
    assert require(later, "vit_b_lm") == both
    assert require(later, "vit_b") == Weights(later / "vit_b")
    # The file's path is as good as its name, and its decoder is not forgotten.
    assert require(later / "vit_b_lm", "vit_b") == both


def test_file_of_ones_own(later: Path, tmp_path: Path) -> None:
    for own in (tmp_path / "my.pt", later / "my.pt"):
        own.write_bytes(b"anything")
        assert require(own, "vit_b_lm") == Weights(own, None)


@pytest.mark.parametrize("file", ["vit_b_lm", "vit_b_lm_decoder"])
@pytest.mark.parametrize("content", [None, FILES["vit_b_lm"][:-1], bytes(len(FILES["vit_b_lm"]))])
def test_missing_or_changed_file(file: str, content: bytes | None, later: Path) -> None:
    (later / file).unlink()
    if content is not None:
        (later / file).write_bytes(content)
    with pytest.raises(CheckpointError, match="run `manyscope download") as caught:
        require(later, "vit_b_lm")
    assert str(caught.value).startswith(f"{later / file}: the file ")
    assert require(later, "vit_b")  # the others are none the worse


def test_decoder_that_was_never_fetched(later: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted download left the checkpoint alone."""
    text = (later / "manifest.json").read_text()
    (later / "manifest.json").write_text(text.replace('"vit_b_lm_decoder": {', '"something_else": {'))
    with pytest.raises(CheckpointError, match="no weights 'vit_b_lm_decoder'"):
        require(later, "vit_b_lm")


@pytest.mark.parametrize(
    ("place", "name", "why"),
    [
        ("absent", "vit_b", "no such file or folder"),
        ("absent.pt", "vit_b", "no such file or folder"),
        ("", "vit_l", "no weights 'vit_l': its manifest.json names vit_b, vit_b_lm, vit_b_lm_decoder"),
        ("", "my_package.models:Net", "no weights 'my_package.models:Net'"),
        ("empty", "vit_b", "no weights 'vit_b': it has no manifest.json"),
    ],
)
def test_what_is_not_there(place: str, name: str, why: str, later: Path) -> None:
    (later / "empty").mkdir()
    with pytest.raises(CheckpointError) as caught:
        require(later / place, name)
    assert why in str(caught.value)
    assert "manyscope download" in str(caught.value)


# --------------------------------------------------------------------------------------------------- validating
def said(names: tuple[str, ...], folder: Path, model: str, place: Path | None) -> list[str]:
    return list(problems(WeightsSettings(names=names, folder=folder), model, place))


def test_no_problem(later: Path, tmp_path: Path) -> None:
    own = tmp_path / "my.pt"
    own.touch()
    empty = tmp_path / "not/yet"
    for names, folder, model, place in [
        ((), empty, "tiny", None),
        (("vit_b_lm",), empty, "tiny", None),
        (("vit_b_lm",), empty, "vit_b_lm", empty),  # will be fetched
        (("vit_b", "vit_b_lm"), empty, "vit_b", empty / "vit_b_lm"),
        (("vit_l",), later, "vit_l", later),
        ((), empty, "vit_b_lm", later),
        ((), later, "vit_b", later / "vit_b"),
        ((), empty, "tiny", own),
        ((), empty, "my_package.models:Net", own),
    ]:
        assert said(names, folder, model, place) == []


def test_unknown_names() -> None:
    first, second = said(("vit_b_ml", "vit_b", "resnet"), Path("w"), "tiny", None)
    assert first.startswith("download.weights.names: 'vit_b_ml' is no model of micro_sam's registry; allowed: vit_b, ")
    assert first.endswith("; did you mean 'vit_b_lm'?")
    assert "'resnet'" in second


@pytest.mark.parametrize(
    ("names", "model", "place"),
    [((), "vit_t", "model.name"), (("vit_t_lm",), "tiny", "download.weights.names")],
)
def test_vit_t_needs_mobile_sam(
    names: tuple[str, ...], model: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, there = importlib.util.find_spec, False

    def find_spec(name: str) -> Any:
        return there if name == "mobile_sam" else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find_spec(name) or None)
    (problem,) = said(names, Path("w"), model, None)
    assert problem.startswith(f"{place}: vit_t")
    assert "needs the package mobile_sam; run: pip install git+" in problem
    there = True
    assert said(names, Path("w"), model, None) == []


@pytest.mark.parametrize(
    ("names", "model", "place", "what"),
    [
        ((), "vit_l", "", "no weights 'vit_l': its manifest.json names vit_b"),
        (("vit_b",), "vit_l_lm", "", "add vit_l_lm to download.weights.names, or give a file"),
        (("vit_l",), "vit_l", "other", "no file or folder"),
        (("vit_l",), "vit_l", "other", "add vit_l to download.weights.names with download.weights.folder: "),
        ((), "tiny", "", "give a file of weights of this model"),
        ((), "vit_b", "my.pt", "no file or folder"),
        (("vit_b_ml",), "vit_b_lm", "../served", "it has no manifest.json"),
    ],
)
def test_weights_that_will_not_be_there(names: tuple[str, ...], model: str, place: str, what: str, later: Path) -> None:
    found = [text for text in said(names, later, model, later / place) if text.startswith("model.weights: ")]
    assert len(found) == 1
    assert what in found[0]


def test_fetched_file_that_is_cut_short(later: Path) -> None:
    (later / "vit_b").write_bytes(b"short")
    for place in (later, later / "vit_b"):
        (problem,) = said((), later, "vit_b", place)
        assert problem.startswith(
            f"model.weights: {later / 'vit_b'}: the file has 5 bytes instead of 16,000; add vit_b"
        )
        assert said(("vit_b",), later, "vit_b", place) == []  # the download mends it


def test_broken_manifest_is_a_problem(later: Path) -> None:
    (later / "manifest.json").write_text("{")
    for place in (later, later / "vit_b"):
        (problem,) = said((), later, "vit_b", place)
        assert "manifest.json: not JSON" in problem
    with pytest.raises(ManyscopeError, match="not JSON"):
        require(later, "vit_b")


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert said((), tmp_path / "file", "tiny", None) == [
        f"download.weights.folder: {tmp_path / 'file'} is no folder; mend the path"
    ]
