"""Pretrained models: fetched from a hub on this machine, and read without any network."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
import transformers

from manyscope.errors import CheckpointError, DataError
from manyscope.scopes.panoramas.data.hub import digests, fetch, require
from manyscope.scopes.panoramas.model.vision import build_vision
from manyscope.scopes.panoramas.settings import VisionSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EYES, MOUTH = "tiny/eyes", "tiny/mouth"


@dataclass
class Hub:
    """What is served, and what was asked for.

    Attributes:
        folder: OWNER/MODEL/… of all models.
        cut: after how many bytes the connection ends, in each of the next answers with a file of this name.
        status: of answers about some models, instead of their content.
    """

    folder: Path
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    cut: dict[str, list[int]] = field(default_factory=dict)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)


def handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.asked.append(f"{self.command} {path}")
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)(?:/.*)?", path):
                name, what, _ = found.groups()
                if self.refused(name):
                    return
                files = [file for file in sorted((hub.folder / name).rglob("*")) if file.is_file()]
                names = [file.relative_to(hub.folder / name).as_posix() for file in files]
                if what == "revision":
                    answer: Any = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
                else:
                    answer = [
                        {"type": "file", "path": n, "size": f.stat().st_size, "oid": digest(f)}
                        for n, f in zip(names, files, strict=True)
                    ]
                self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                name, _, file_name = found.groups()
                if not self.refused(name):
                    self.send_file(hub.folder / name / file_name)
            else:
                self.send(404, b"", {})

        def refused(self, name: str) -> bool:
            code, kind = hub.status.get(name, (0, ""))
            if not code and not (hub.folder / name).is_dir():
                code, kind = 401, "RepoNotFound"  # as the hub answers those who are nobody
            if code:
                self.send(code, b"{}", {"X-Error-Code": kind, "X-Error-Message": "no"})
            return bool(code)

        def send_file(self, file: Path) -> None:
            content = file.read_bytes()
            headers = {"ETag": f'"{digest(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            status, start = 200, 0
            if asked := self.headers.get("Range"):
                hub.ranges.append(asked)
                start, status = int(asked.removeprefix("bytes=").partition("-")[0]), 206
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            left = hub.cut.get(file.name)
            most = left.pop() if left and self.command == "GET" else None
            self.send(status, content[start:], headers, most)

        def send(self, status: int, content: bytes, headers: dict[str, str], most: int | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[:most])
                if most is not None:
                    self.close_connection = True

    return Answers


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with its text tower, a tiny language model, and files that nobody wants."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    text = {**sizes, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    eyes = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=sizes))
    eyes.save_pretrained(folder / EYES)
    (folder / EYES / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.4, 0.4], "image_std": [1, 1, 1]}')
    config = transformers.Qwen3Config(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    mouth = transformers.Qwen3ForCausalLM(config)
    mouth.save_pretrained(folder / MOUTH, max_shard_size="5KB")
    assert (folder / MOUTH / "model.safetensors.index.json").exists()
    (folder / MOUTH / "chat_template.jinja").write_text("{{ messages }}")
    for unwanted in ("pytorch_model.bin", "README.md", "onnx/config.json", "original/model.safetensors"):
        file = folder / EYES / unwanted
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"unwanted")
    pickles = folder / "tiny/pickles"
    pickles.mkdir()
    (pickles / "config.json").write_text("{}")
    (pickles / "pytorch_model.bin").write_bytes(b"no")
    return folder


@pytest.fixture
def hub(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub(models)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(served)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        use(monkeypatch, server.server_port)
        yield served
        server.shutdown()
        thread.join()


def use(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that nobody reaches."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        use(monkeypatch, nobody.getsockname()[1])
        yield


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_models_are_fetched_and_loaded(hub: Hub, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "manyscope"):
        eyes, mouth = fetch([EYES, MOUTH], cache)
    assert {file.name for file in eyes.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert "chat_template.jinja" in {file.name for file in mouth.iterdir()}
    assert not any("unwanted" in asked or ".bin" in asked or "onnx" in asked for asked in hub.asked)
    lines = [r.getMessage() for r in caplog.records if r.name == "manyscope"]
    assert len(lines) == 2
    assert re.match(r"tiny/eyes: 3 files, 0\.\d MB in .*cache", lines[0])

    hub.asked.clear()
    assert require(EYES, cache) == eyes
    assert require(MOUTH, cache) == mouth
    encoder = build_vision(VisionSettings(type="siglip", pretrained=EYES), 16, cache).eval()
    assert encoder.mean.flatten().tolist() == pytest.approx([0.4] * 3)
    with torch.no_grad():
        own = transformers.AutoModel.from_pretrained(hub.folder / EYES).vision_model.eval()
        torch.testing.assert_close(
            encoder(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)).flatten(1, 2),
            own(pixel_values=torch.full((1, 3, 16, 16), 0.6)).last_hidden_state,
        )
    language = transformers.AutoModelForCausalLM.from_pretrained(mouth, local_files_only=True, use_safetensors=True)
    source = transformers.AutoModelForCausalLM.from_pretrained(hub.folder / MOUTH)
    assert all(torch.equal(a, b) for a, b in zip(language.parameters(), source.parameters(), strict=True))
    assert not hub.asked  # reading uses no network

    assert digests(eyes) == {"model.safetensors": f"sha256:{sha256(hub.folder / EYES / 'model.safetensors')}"}
    assert len(digests(mouth)) > 1


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_is_there_is_not_fetched_again(hub: Hub, cache: Path) -> None:
    first = fetch([EYES], cache)
    hub.asked.clear()
    assert fetch([EYES], cache) == first
    assert not any("/resolve/" in asked for asked in hub.asked)


def test_an_interrupted_fetch_is_gone_on_with(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # before a retry of the hub's client
    weights = hub.folder / EYES / "model.safetensors"
    hub.cut = {weights.name: [4000] * 20}
    with pytest.raises(DataError, match=r"^download\.hub\.names: tiny/eyes: cannot be fetched .*are kept$"):
        fetch([EYES], cache)
    with pytest.raises(CheckpointError, match=r"model 'tiny/eyes' is not whole; name it under download\.hub\.names"):
        require(EYES, cache)
    hub.cut = {}
    hub.asked.clear()
    (eyes,) = fetch([EYES], cache)
    assert {asked.rpartition("/")[2] for asked in hub.asked if "/resolve/" in asked} == {weights.name}
    assert sha256(eyes / weights.name) == sha256(weights)


def test_a_connection_that_breaks_is_taken_up_again(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut = {"model.safetensors": [4000]}
    (eyes,) = fetch([EYES], cache)
    assert hub.ranges == ["bytes=4000-"]
    assert sha256(eyes / "model.safetensors") == sha256(hub.folder / EYES / "model.safetensors")


def test_a_model_that_nobody_knows(hub: Hub, cache: Path) -> None:
    with pytest.raises(
        DataError, match=r"^download\.hub\.names: tiny/ayes: the hub knows no such model; check the name"
    ):
        fetch(["tiny/ayes"], cache)
    with pytest.raises(DataError, match=r"no name of the hub; allowed: OWNER/MODEL"):
        fetch(["tiny/eyes/large"], cache)
    hub.status[EYES] = (404, "RepoNotFound")
    with pytest.raises(DataError, match="the hub knows no such model"):
        fetch([EYES], cache)


def test_a_revision_is_one_of_its_own(hub: Hub, cache: Path) -> None:
    (tagged,) = fetch([f"{EYES}@v1"], cache)
    assert any(asked.endswith(f"/api/models/{EYES}/revision/v1") for asked in hub.asked)
    assert require(f"{EYES}@v1", cache) == tagged
    for other in (EYES, f"{EYES}@v2"):
        with pytest.raises(CheckpointError, match=f"model '{other}' is not there"):
            require(other, cache)
    hub.status[EYES] = (404, "RevisionNotFound")
    with pytest.raises(DataError, match=r"eyes@v2: the hub knows no revision 'v2' of it; allowed: a branch, a tag or"):
        fetch([f"{EYES}@v2"], cache)


def test_a_model_that_only_some_may_have(hub: Hub, cache: Path) -> None:
    hub.status[EYES] = (403, "GatedRepo")
    with pytest.raises(DataError, match=r"only some users have it; accept the terms.*HF_TOKEN"):
        fetch([EYES], cache)


def test_a_hub_in_trouble(hub: Hub, cache: Path) -> None:
    hub.status[EYES] = (400, "Trouble")
    with pytest.raises(
        DataError, match=r"^download\.hub\.names: tiny/eyes: cannot be fetched \(BadRequestError.*; run the same"
    ):
        fetch([EYES], cache)


def test_pickles_are_not_taken(hub: Hub, cache: Path) -> None:
    with pytest.raises(DataError, match="tiny/pickles: has no safetensors weights"):
        fetch(["tiny/pickles"], cache)
    assert not any("pytorch_model" in asked for asked in hub.asked if "/resolve/" in asked)


@pytest.mark.usefixtures("deaf")
def test_without_a_network(cache: Path) -> None:
    with pytest.raises(
        DataError, match=r"^download\.hub\.names: tiny/eyes: cannot be fetched \(.*where there is a network"
    ):
        fetch([EYES], cache)


def test_without_a_network_what_is_whole_is_as_good(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch([EYES], cache)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        use(monkeypatch, nobody.getsockname()[1])
        assert fetch([EYES], cache) == first


def test_a_cache_that_cannot_be_written(hub: Hub, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(DataError, match=r"^download\.hub\.names: tiny/eyes: cannot be fetched"):
        fetch([EYES], cache)


def test_what_was_never_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    for name in (EYES, "no name of the hub", "a/b/c"):
        with pytest.raises(CheckpointError, match=rf"model '{name}' is not there; name it under.*manyscope download"):
            require(name, cache)


def test_a_folder_is_as_good_as_a_name(models: Path, cache: Path, tmp_path: Path) -> None:
    assert require(str(models / MOUTH), cache) == models / MOUTH
    part = tmp_path / "part"
    part.mkdir()
    with pytest.raises(CheckpointError, match=r"part: model '.*' has no config\.json"):
        require(str(part), cache)
    for name in ("config.json", "model.safetensors.index.json"):
        (part / name).write_bytes((models / MOUTH / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"has no model-00001-of-\d+\.safetensors"):
        require(str(part), cache)
