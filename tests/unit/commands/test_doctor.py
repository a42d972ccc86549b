"""`manyscope doctor`: one line for each check, and what to do about what is missing."""

from __future__ import annotations

import builtins
import http.server
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
from manyscope.commands import doctor
from manyscope.commands.doctor import CHECKS, Surroundings
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


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], None]:
    """Puts a shell script on the PATH."""

    def add(name: str, script: str = "exit 0") -> None:
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    return add


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
    assert len(lines) == len(CHECKS)
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
    assert len(done.output.splitlines()) == len(CHECKS)
    assert "config/config.yaml: " in done.output


def test_site_of_a_broken_workflow_counts(project: Path) -> None:
    """The other checks know the site although the settings cannot be loaded."""
    write_config(project, "scope: galaxi\n", more="site_file: here.yaml\n")
    (project / "here.yaml").write_text("weights_path: nets\n")
    output = CliRunner().invoke(main, ["doctor"]).output
    assert "here.yaml is there" in output
    assert "weights_path nets is not there yet" in output
    assert "1 problem(s)" in output


# -------------------------------------------------------------------------------------------------- the machine
def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.python(HERE).state == "ok"
    assert platform.python_version() in doctor.python(HERE).what
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    found = doctor.python(HERE)
    assert (found.state, found.remedy) == ("fail", "install Python 3.11 or newer")


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.packages(HERE).state == "ok"
    wanted = ["numpy>=999", "no-such-package>=1", "click>=8", "pytest>=999; extra == 'dev'", "x; python_version<'3'"]
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    found = doctor.packages(HERE)
    assert found.state == "fail"
    assert "is not >=999" in found.what
    assert "no-such-package is missing" in found.what
    assert "click" not in found.what
    assert "pytest" not in found.what
    assert "pip install" in found.remedy


def test_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(doctor, "_memory_bytes", lambda: 8 * 2**30)
    assert doctor.processor(HERE) == doctor.Finding("ok", "3 CPU core(s), 8.0 GiB of memory")
    monkeypatch.setattr(doctor, "_memory_bytes", lambda: 3 * 2**30)
    found = doctor.processor(HERE)
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
    assert doctor._memory_bytes() == expected


def fake_torch(names: list[str]) -> Any:
    cuda = SimpleNamespace(device_count=lambda: len(names), get_device_name=lambda number: names[number])
    return SimpleNamespace(__version__="2.9", cuda=cuda, version=SimpleNamespace(cuda="12.8"))


def test_accelerator(monkeypatch: pytest.MonkeyPatch, program: Callable[..., None]) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch([]))
    assert doctor.accelerator(HERE) == doctor.Finding("ok", "torch 2.9, CUDA 12.8: CPU only")
    program("nvidia-smi")
    found = doctor.accelerator(HERE)
    assert found.state == "warn"
    assert "fits the GPU driver" in found.remedy
    monkeypatch.setitem(sys.modules, "torch", fake_torch(["A100", "A100"]))
    assert doctor.accelerator(HERE) == doctor.Finding("ok", "torch 2.9, CUDA 12.8, 2 GPU(s): A100")


def test_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open\nmore")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    found = doctor.accelerator(HERE)
    assert found.state == "fail"
    assert "(libcudart.so.12: cannot open)" in found.what


def test_disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(config_file=write_config(project, more="results: deep/down/results\n"))
    here = Surroundings(Path("config/config.yaml"), config)
    free = {"bytes": 6 * 2**30}
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=free["bytes"])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert doctor.disk(here) == doctor.Finding("ok", "6.0 GiB free for deep/down/results")
    assert asked == [project]
    free["bytes"] = 2**30
    assert doctor.disk(here).state == "warn"
    (project / "deep").write_text("a file in the way")
    found = doctor.disk(here)
    assert (found.state, found.what) == ("fail", "deep/down/results cannot be written")


# ------------------------------------------------------------------------------------------------- the settings
def test_site(project: Path) -> None:
    found = doctor.site(HERE)
    assert found.state == "warn"
    assert found.remedy == "run: cp config/local.template.yaml config/local.yaml"
    (project / "config").mkdir()
    (project / "config/local.yaml").write_text("{}")
    assert doctor.site(HERE).state == "ok"


def test_the_template_that_is_named_exists() -> None:
    assert (Path(__file__).resolve().parents[3] / doctor.SITE_TEMPLATE).is_file()


def test_weights(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Surroundings(Path("c"), site=Site(weights_path=Path("nets/pretrained")))
    assert doctor.weights(here).state == "ok"
    assert not (project / "nets").exists()
    (project / "nets/pretrained").mkdir(parents=True)
    assert doctor.weights(here) == doctor.Finding("ok", "weights_path nets/pretrained is there")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doctor.weights(here).state == "warn"
    (project / "nets/pretrained").rmdir()
    found = doctor.weights(here)
    assert found.state == "fail"
    assert "set weights_path in config/local.yaml" in found.remedy


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
    assert doctor.tracking(here) == doctor.Finding("ok", f"MLflow server {address}/ answers")
    assert asked == ["/health"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{address}/closed")  # the environment comes first, as for MLflow
    assert doctor.tracking(here).state == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{address}/broken")
    found = doctor.tracking(here)
    assert found.state == "warn"
    assert "status 503" in found.what


def test_tracking_server_that_is_down() -> None:
    here = Surroundings(Path("c"), site=Site(tracking_uri="http://someone:secret@127.0.0.1:9/"))
    found = doctor.tracking(here)
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
    assert doctor.tracking(here) == doctor.Finding("ok", f"MLflow writes {shown}")
    assert not list(project.iterdir())
    (project / shown.split("/")[0]).write_text("a file")
    found = doctor.tracking(here)
    assert found.state == ("warn" if "/" in shown else "ok")


def test_tracking_in_a_file_with_an_absolute_path(tmp_path: Path) -> None:
    for uri in (f"sqlite:///{tmp_path}/m.db", f"file://{tmp_path}/m.db", f"file:{tmp_path}/m.db"):
        found = doctor.tracking(Surroundings(Path("c"), site=Site(tracking_uri=uri)))
        assert found == doctor.Finding("ok", f"MLflow writes {tmp_path}/m.db")


def test_tracking_in_another_database() -> None:
    here = Surroundings(Path("c"), site=Site(tracking_uri="postgresql://someone:secret@host/db"))
    found = doctor.tracking(here)
    assert found.state == "ok"
    assert "postgresql" in found.what
    assert "secret" not in found.what


# -------------------------------------------------------------------------------------------------- the cluster
@pytest.fixture
def profile(project: Path) -> Path:
    folder = project / "workflow_profiles/slurm"
    folder.mkdir(parents=True)
    (folder / "config.v9+.yaml").write_text(
        "executor: slurm\ndefault-resources:\n  slurm_partition: cpu\n  runtime: 60\n"
        "set-resources:\n  train:\n    slurm_partition: a100\n  infer:\n    slurm_partition: a100,small\n"
    )
    return folder


def test_no_cluster() -> None:
    found = doctor.slurm(HERE)
    assert found.state == "ok"
    assert "not on a cluster" in found.what


def test_partitions_of_the_profile(profile: Path, program: Callable[..., None]) -> None:
    program("sbatch")
    program("sinfo", 'test "$*" = "-h -o %P" && printf "cpu*\\na100\\nsmall\\n"')
    assert doctor.slurm(HERE) == doctor.Finding("ok", "SLURM: partitions a100, cpu, small")
    program("sinfo", 'printf "batch*\\na100\\n"')
    found = doctor.slurm(HERE)
    assert found.state == "fail"
    assert "names the partition(s) cpu, small, which are not there" in found.what
    assert found.remedy == "name one of these in it: a100, batch"


def test_profile_as_a_list(profile: Path) -> None:
    """Snakemake reads the older form of a profile too."""
    (profile / "config.yaml").write_text("default-resources:\n  - slurm_partition=old\n  - mem_mb=slurm_partition\n")
    assert set(doctor.profile_partitions(profile)) == {"cpu", "a100", "small", "old"}


def test_profile_of_this_repository_names_partitions() -> None:
    repository = Path(__file__).resolve().parents[3]
    assert set(doctor.profile_partitions(repository / doctor.SLURM_PROFILE)) >= {"a100"}


def test_controller_that_is_down(program: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    program("sbatch")
    found = doctor.slurm(HERE)  # no sinfo at all
    assert found.state == "fail"
    program("sinfo", 'echo "slurm_load_partitions: Unable to contact slurm controller" >&2; exit 1')
    found = doctor.slurm(HERE)
    assert found.state == "fail"
    assert "Unable to contact slurm controller" in found.what
    program("sinfo", "exec /bin/sleep 30")
    monkeypatch.setattr(doctor, "_TIMEOUT_S", 0.2)
    found = doctor.slurm(HERE)
    assert found.state == "fail"
    assert "no answer in 0.2 s" in found.what
