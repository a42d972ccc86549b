"""`manyscope doctor` on a real cluster: all well, and one planted fault at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manyscope.commands.doctor import Surroundings, node
from manyscope.settings import Site, load_config

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240

pytestmark = pytest.mark.slurm


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a small and a full-size experiment, the profiles of this repository, and weights."""
    shutil.copytree(REPOSITORY / "workflow_profiles", tmp_path / "workflow_profiles")
    (tmp_path / "config/experiments").mkdir(parents=True)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/model.ckpt").write_text("weights")
    for name in ("small", "large_a100"):
        (tmp_path / f"config/experiments/{name}.yaml").write_text("scope: galaxies\n")
    (tmp_path / "config/config.yaml").write_text("experiments: [small, large_a100]\n")
    return tmp_path


def doctor(cluster: Any, project: Path, site: str, *options: str) -> tuple[int, list[str]]:
    """The exit code and the lines of `manyscope doctor` with a site file."""
    (project / "config/local.yaml").write_text(site)
    done = subprocess.run(
        [Path(sys.executable).with_name("manyscope"), "doctor", *options],
        cwd=project,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def failing(cluster: Any, project: Path, site: str, *options: str) -> list[str]:
    code, lines = doctor(cluster, project, site, *options)
    failed = [line.removeprefix("fail").strip() for line in lines if line.startswith("fail")]
    assert code == int(bool(failed))
    return failed


def queue(cluster: Any) -> str:
    command = ["squeue", "-h", "-n", "manyscope-doctor", "-t", "PENDING,RUNNING,COMPLETING", "-o", "%i %T"]
    return subprocess.run(
        command, env=cluster.environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


def files(project: Path) -> set[Path]:
    return set(project.rglob("*")) - {project / "config/local.yaml"}


def test_a_healthy_cluster(cluster: Any, project: Path) -> None:
    before = files(project)
    code, lines = doctor(cluster, project, "slurm_account: lab\nweights_path: nets\n", "--compute-node")
    assert code == 0, lines
    slurm = [line for line in lines if "SLURM: " in line]
    assert all(line.startswith("ok") for line in slurm)
    for wanted in ("accounting works", "partitions a100, cpu are up", "account lab is accepted"):
        assert any(wanted in line for line in slurm), slurm
    accepted = {line.split(": ")[1]: line for line in slurm if line.endswith(": accepted")}
    assert set(accepted) >= {"train of small", "train of large_a100", "infer", "group prepare", "group finish"}
    assert "GPUs a100:4 on each" in accepted["train of large_a100"]
    cpu, a100 = sorted((line for line in lines if "compute node of" in line), key=lambda line: "of a100" in line)
    assert cpu.startswith("ok")
    assert "results shared" in cpu
    assert "SLURM gave a GPU" in a100  # which no torch can see: the GPUs of the cluster under test are null devices
    assert "results shared" in a100
    assert not queue(cluster)
    assert files(project) == before


def test_no_such_partition(cluster: Any, project: Path) -> None:
    (fault,) = failing(cluster, project, "slurm_account: lab\nslurm_partitions: {a100: gpu-long}\n")
    assert fault.startswith("SLURM: partition gpu-long (train")
    assert "does not exist; there are: cpu, a100, scavenge" in fault
    assert fault.endswith("write in config/local.yaml: slurm_partitions: {a100: a100}")


def test_wrong_account(cluster: Any, project: Path) -> None:
    (fault,) = failing(cluster, project, "slurm_account: nobodys\n")
    assert fault.startswith("SLURM: account nobodys is not accepted")
    assert "yours: lab" in fault
    assert fault.endswith("write in config/local.yaml: slurm_account: lab")


def test_no_gpu_of_that_type(cluster: Any, project: Path) -> None:
    (fault,) = failing(cluster, project, "slurm_account: lab\nslurm_gpus: {a100: nvidia_a100_80gb}\n")
    assert fault.startswith("SLURM: no GPU type nvidia_a100_80gb in partition a100, there: a100")
    assert fault.endswith("write in config/local.yaml: slurm_gpus: {a100: a100}")


@pytest.mark.parametrize("folder", ["/proc/scratch", "nets/model.ckpt/scratch"])
def test_scratch_that_cannot_be_written(folder: str, cluster: Any, project: Path) -> None:
    """Root may write wherever there is something to write to, so these are places where there is not."""
    here, there, *more = failing(cluster, project, f"slurm_account: lab\nscratch_path: {folder}\n", "--compute-node")
    assert here.startswith(f"scratch_path {folder} cannot be written; write in config/local.yaml")
    for fault in (there, *more):
        assert f"scratch_path {folder} cannot be written" in fault
        assert fault.startswith("compute node of")


@pytest.mark.parametrize(("folder", "why"), [("absent", "is not there"), ("empty", "is empty")])
def test_missing_weights(folder: str, why: str, cluster: Any, project: Path) -> None:
    (project / "empty").mkdir()
    (fault,) = failing(cluster, project, f"slurm_account: lab\nweights_path: {folder}\n")
    assert fault.startswith(f"missing weights: weights_path {folder} {why}; ")


def test_faults_at_once(cluster: Any, project: Path) -> None:
    """Each has its own line."""
    site = "slurm_account: nobodys\nslurm_gpus: {a100: h100}\nweights_path: absent\nscratch_path: /proc/scratch\n"
    faults = failing(cluster, project, site)
    named = ("missing weights", "scratch_path", "account nobodys", "no GPU type h100")
    assert len(faults) == len(named)
    for fault, name in zip(faults, named, strict=True):
        assert name in fault


@pytest.fixture
def busy(cluster: Any) -> Iterator[None]:
    """Another job holds every GPU."""
    hold = ["sbatch", "--parsable", "-A", "lab", "-p", "a100", "-N2", "--gres=gpu:a100:4", "--mem=100", "-t", "5"]
    number = subprocess.run(
        [*hold, "--output=/dev/null", "--wrap=exec sleep 120"],
        env=cluster.environment, capture_output=True, text=True, timeout=60, check=True,
    ).stdout.strip()  # fmt: skip
    states = ["squeue", "-h", "-j", number, "-o", "%T"]
    end = time.monotonic() + 60
    while "RUNNING" not in subprocess.run(states, env=cluster.environment, capture_output=True, text=True).stdout:
        assert time.monotonic() < end
        time.sleep(0.2)
    yield
    subprocess.run(["scancel", number], env=cluster.environment, timeout=60, check=False)


@pytest.mark.usefixtures("busy")
def test_job_that_stays_pending(cluster: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported with SLURM's reason, and cancelled."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(node, "WAIT_S", 30.0)  # enough for the job that runs, on a busy machine too
    for name, value in cluster.environment.items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    config = Path("config/config.yaml")
    here = Surroundings(config, load_config(config_file=config), site=Site(slurm_account="lab"))
    found = {finding.what.split(":")[0].split()[3]: finding for finding in node.compute_nodes(here)}
    assert found["cpu"].state == "ok"
    assert found["a100"].state == "warn"  # a busy cluster is no fault
    assert "still PENDING (Resources)" in found["a100"].what
    assert not queue(cluster)
