"""`manyscope doctor`: one line for each check, and what to do about what is missing."""

from __future__ import annotations

import builtins
import hashlib
import http.server
import json
import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from manyscope.cli import main
from manyscope.commands.doctor import CHECKS, Finding, Surroundings, machine, places, settings
from manyscope.data import weights
from manyscope.data.weights import Known
from manyscope.settings import Site, load_config

HERE = Surroundings(Path("config/config.yaml"))


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder to stand in, without a cluster, a GPU driver or a tracking server."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def write_config(project: Path, experiment: str = "scope: galaxies\n", more: str = "") -> Path:
    (project / "config/experiments").mkdir(parents=True)
    (project / "config/experiments/one.yaml").write_text(experiment)
    (project / "config/config.yaml").write_text(f"experiments: [one]\n{more}")
    return Path("config/config.yaml")


# -------------------------------------------------------------------------------------------------- the command
def test_one_line_for_each_check(project: Path) -> None:
    write_config(project)
    done = CliRunner().invoke(main, ["doctor"])
    lines = done.output.splitlines()
    assert len(lines) == len(CHECKS) + 1  # and one on the cluster
    assert {line[:6] for line in lines} <= {"ok    ", "warn  "}
    assert done.exit_code == 0
    assert any("1 experiment(s): one" in line for line in lines)


def test_a_failed_check_is_exit_code_1(project: Path) -> None:
    write_config(project, "scope: galaxies\ntrain: {lrr: 1, epochs: many}\n")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    failed = [line for line in done.output.splitlines() if line.startswith("fail")]
    assert len(failed) == 1
    assert "2 problem(s) in the settings" in failed[0]
    assert failed[0].endswith("; run: manyscope validate")


def test_without_any_file_every_check_still_answers() -> None:
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == len(CHECKS) + 1
    assert "config/config.yaml: " in done.output


def test_site_of_a_broken_workflow_counts(project: Path) -> None:
    """The other checks know the site although the settings cannot be loaded."""
    write_config(project, "scope: galaxi\n", more="site_file: here.yaml\n")
    (project / "here.yaml").write_text("scratch_path: fast\n")
    output = CliRunner().invoke(main, ["doctor"]).output
    assert "here.yaml is there" in output
    assert "scratch_path fast can be written" in output
    assert "1 problem(s)" in output


# -------------------------------------------------------------------------------------------------- the machine
def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.python(HERE).state == "ok"
    assert platform.python_version() in machine.python(HERE).what
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    found = machine.python(HERE)
    assert (found.state, found.remedy) == ("fail", "install Python 3.11 or newer")


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.packages(HERE).state == "ok"
    wanted = ["numpy>=999", "no-such-package>=1", "click>=8", "pytest>=999; extra == 'dev'", "x; python_version<'3'"]
    monkeypatch.setattr(machine, "requires", lambda name: wanted)
    found = machine.packages(HERE)
    assert found.state == "fail"
    assert "is not >=999" in found.what
    assert "no-such-package is missing" in found.what
    assert "click" not in found.what
    assert "pytest" not in found.what
    assert "pip install" in found.remedy


def test_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(machine, "_memory_bytes", lambda: 8 * 2**30)
    assert machine.processor(HERE) == Finding("ok", "3 CPU core(s), 8.0 GiB of memory")
    monkeypatch.setattr(machine, "_memory_bytes", lambda: 3 * 2**30)
    found = machine.processor(HERE)
    assert found.state == "warn"
    assert "--cores 1" in found.remedy


@pytest.mark.parametrize(("limit", "expected"), [("max\n", 1024), ("512\n", 512), ("99999999\n", 1024), (None, 1024)])
def test_memory_of_a_container(limit: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 4, "SC_PAGE_SIZE": 256}[name])

    def read_text(self: Path) -> str:
        if limit is None:
            raise FileNotFoundError(self)
        return limit

    monkeypatch.setattr(Path, "read_text", read_text)
    assert machine._memory_bytes() == expected


def fake_torch(names: list[str]) -> Any:
    cuda = SimpleNamespace(device_count=lambda: len(names), get_device_name=lambda number: names[number])
    return SimpleNamespace(__version__="2.9", cuda=cuda, version=SimpleNamespace(cuda="12.8"))


def test_accelerator(monkeypatch: pytest.MonkeyPatch, program: Callable[..., None]) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch([]))
    assert machine.accelerator(HERE) == Finding("ok", "torch 2.9, CUDA 12.8: CPU only")
    program("nvidia-smi")
    found = machine.accelerator(HERE)
    assert found.state == "warn"
    assert "fits the GPU driver" in found.remedy
    monkeypatch.setitem(sys.modules, "torch", fake_torch(["A100", "A100"]))
    assert machine.accelerator(HERE) == Finding("ok", "torch 2.9, CUDA 12.8, 2 GPU(s): A100")


@pytest.mark.parametrize(
    ("gpu", "chosen", "state", "said"),
    [
        (True, "tinycudann", "ok", "tinycudann, on the GPU"),
        (True, "torch", "warn", "PyTorch, on the GPU, as tinycudann cannot be imported"),
        (False, "torch", "ok", "PyTorch, on the CPU"),
    ],
)
def test_hash_grid(gpu: bool, chosen: str, state: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from manyscope.nn import hash_grid

    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(hash_grid, "backend", lambda device: asked.append(device) or chosen)
    found = machine.hash_grid(HERE)
    assert (found.state, found.what) == (state, f"hash grids: {said}")
    assert bool(found.remedy) == (state == "warn")
    assert asked == ["cuda" if gpu else "cpu"]


def test_the_environment_that_is_named_exists() -> None:
    envs = Path(__file__).resolve().parents[3] / "envs"
    assert {"scenes-cuda.yaml", "scenes-cuda.post-deploy.sh"} <= {path.name for path in envs.iterdir()}


def test_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open\nmore")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    found = machine.accelerator(HERE)
    assert found.state == "fail"
    assert "(libcudart.so.12: cannot open)" in found.what
    assert machine.hash_grid(HERE).state == "warn"


def test_disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(config_file=write_config(project, more="results: deep/down/results\n"))
    here = Surroundings(Path("config/config.yaml"), config)
    free = {"bytes": 6 * 2**30}
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=free["bytes"])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert machine.disk(here) == Finding("ok", "6.0 GiB free for deep/down/results")
    assert asked == [project]
    free["bytes"] = 2**30
    assert machine.disk(here).state == "warn"
    (project / "deep").write_text("a file in the way")
    found = machine.disk(here)
    assert (found.state, found.what) == ("fail", "deep/down/results cannot be written")


# ------------------------------------------------------------------------------------------------- the settings
def test_site(project: Path) -> None:
    found = settings.site(HERE)
    assert found.state == "warn"
    assert found.remedy == "run: cp config/local.template.yaml config/local.yaml"
    (project / "config").mkdir()
    (project / "config/local.yaml").write_text("{}")
    assert settings.site(HERE).state == "ok"


def test_the_template_that_is_named_exists() -> None:
    assert (Path(__file__).resolve().parents[3] / settings.SITE_TEMPLATE).is_file()


def test_default_weights(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default folder need not be there: it is made when something is fetched."""
    assert "data/weights is not there yet" in settings.weights(HERE).what
    assert settings.weights(HERE).state == "ok"
    assert not list(project.iterdir())
    (project / "data/weights").mkdir(parents=True)
    assert settings.weights(HERE) == Finding("ok", "weights_path data/weights is there")
    monkeypatch.setattr(settings, "can_write", lambda path: False)
    assert settings.weights(HERE).state == "warn"
    (project / "data/weights").rmdir()
    found = settings.weights(HERE)
    assert found.state == "fail"
    assert "set weights_path in config/local.yaml" in found.remedy


def test_weights_that_the_site_file_names_have_to_be_there(project: Path) -> None:
    here = Surroundings(Path("c"), site=Site(weights_path=Path("nets")))
    found = settings.weights(here)
    assert (found.state, found.what) == ("fail", "missing weights: weights_path nets is not there")
    (project / "nets").mkdir()
    assert settings.weights(here).what == "missing weights: weights_path nets is empty"
    (project / "nets/model.ckpt").write_text("w")
    assert settings.weights(here) == Finding("ok", "weights_path nets is there")
    below = settings.weights(Surroundings(Path("c"), site=Site(weights_path=Path("nets/model.ckpt/deeper"))))
    assert below.state == "fail"
    assert "cannot be read (Not a directory)" in below.what


def fetched(folder: Path, **sizes: int) -> None:
    """Files of these sizes, and the manifest that names them."""
    folder.mkdir(parents=True)
    for name, size in sizes.items():
        (folder / name).write_bytes(bytes(size))
    manifest = {name: {"file": name, "bytes": size, "sha256": "", "source": ""} for name, size in sizes.items()}
    (folder / places.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("folder", ["nets", "data/weights"])
def test_weights_that_were_fetched_have_to_stay(folder: str, project: Path) -> None:
    """In the default folder as well, once there is a manifest."""
    here = Surroundings(Path("c"), site=Site(weights_path=Path(folder)))
    fetched(project / folder, net=10, head=2000, other=3)
    assert settings.weights(here) == Finding("ok", f"weights_path {folder} is there")
    (project / folder / "net").unlink()
    (project / folder / "head").write_bytes(b"short")
    found = settings.weights(here)
    assert found.state == "fail"
    named = "does not hold what its manifest.json names: net is missing, head has 5 bytes instead of 2,000"
    assert found.what == f"missing weights: weights_path {folder} {named}"
    assert found.remedy.startswith("run `manyscope download --experiment NAME`, or delete ")
    (project / folder / places.MANIFEST).unlink()
    assert settings.weights(here).state == "ok"


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"net": 1}', '{"net": {"file": "net"}}', "\xff"])
def test_manifest_that_is_none(text: str, project: Path) -> None:
    fetched(project / "nets")
    (project / "nets" / places.MANIFEST).write_text(text, encoding="latin-1")
    found = settings.weights(Surroundings(Path("c"), site=Site(weights_path=Path("nets"))))
    assert (found.state, found.what.endswith(" has a manifest.json that is no manifest of weights")) == ("fail", True)


def test_what_a_download_in_vain_leaves_is_nothing(project: Path) -> None:
    (project / "nets").mkdir()
    (project / "nets/.lock").touch()
    (project / "nets/.net.arriving").touch()
    assert places.missing_weights(project / "nets") == "is empty"


def test_manifest_is_the_one_that_is_written(project: Path) -> None:
    """Doctor reads it with the standard library alone."""
    assert places.MANIFEST == weights.MANIFEST
    digest = hashlib.sha256(b"net").hexdigest()
    (project / "net").write_bytes(b"net")
    weights.fill(project / "nets", ["net"], lambda: {"net": Known("", f"sha256:{digest}", (project / "net",))})
    assert places.missing_weights(project / "nets") == ""
    (project / "nets/net").write_bytes(b"nets")
    assert "net has 4 bytes instead of 3" in places.missing_weights(project / "nets")


def test_scratch(project: Path) -> None:
    here = Surroundings(Path("c"), site=Site(scratch_path=Path("fast/tmp")))
    assert settings.scratch(here) == Finding("ok", "scratch_path fast/tmp can be written")
    assert not list(project.iterdir())
    (project / "fast").write_text("a file in the way")
    found = settings.scratch(here)
    assert (found.state, found.what) == ("fail", "scratch_path fast/tmp cannot be written")
    assert "config/local.yaml" in found.remedy
    assert found.remedy.endswith("scratch_path: data/scratch")


def test_rights_that_the_system_does_not_keep(project: Path) -> None:
    """/proc looks writable to root, and takes no files."""
    assert settings.scratch(Surroundings(Path("c"), site=Site(scratch_path=Path("/proc/scratch")))).state == "fail"


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server whose health is asked for: its address, and the paths that were asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(503 if "/broken" in self.path else 401 if "/closed" in self.path else 200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def test_tracking_server(server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, asked = server
    here = Surroundings(Path("c"), site=Site(tracking_uri=f"{address}/"))
    assert settings.tracking(here) == Finding("ok", f"MLflow server {address}/ answers")
    assert asked == ["/health"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{address}/closed")  # the environment comes first, as for MLflow
    assert settings.tracking(here).state == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{address}/broken")
    found = settings.tracking(here)
    assert found.state == "warn"
    assert "status 503" in found.what


def test_tracking_server_that_is_down() -> None:
    here = Surroundings(Path("c"), site=Site(tracking_uri="http://someone:secret@127.0.0.1:9/"))
    found = settings.tracking(here)
    assert found.state == "warn"
    assert "MLflow server http://127.0.0.1:9/ does not answer" in found.what
    assert "secret" not in found.what + found.remedy


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (None, "results/mlflow.db"),
        ("sqlite:///runs/m.db", "runs/m.db"),
        ("file:runs", "runs"),
        ("runs", "runs"),
    ],
)
def test_tracking_in_a_file(uri: str | None, shown: str, project: Path) -> None:
    here = Surroundings(Path("c"), site=Site(tracking_uri=uri))
    assert settings.tracking(here) == Finding("ok", f"MLflow writes {shown}")
    assert not list(project.iterdir())
    (project / shown.split("/")[0]).write_text("a file")
    found = settings.tracking(here)
    assert found.state == ("warn" if "/" in shown else "ok")


def test_tracking_in_a_file_with_an_absolute_path(tmp_path: Path) -> None:
    for uri in (f"sqlite:///{tmp_path}/m.db", f"file://{tmp_path}/m.db", f"file:{tmp_path}/m.db"):
        found = settings.tracking(Surroundings(Path("c"), site=Site(tracking_uri=uri)))
        assert found == Finding("ok", f"MLflow writes {tmp_path}/m.db")


def test_tracking_in_another_database() -> None:
    here = Surroundings(Path("c"), site=Site(tracking_uri="postgresql://someone:secret@host/db"))
    found = settings.tracking(here)
    assert found.state == "ok"
    assert "postgresql" in found.what
    assert "secret" not in found.what
