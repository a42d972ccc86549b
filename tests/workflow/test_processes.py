"""A training on two and on four processes is the training on one: the same batches, random numbers and losses."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from manyscope.errors import CheckpointError
from manyscope.settings.paths import ExperimentPaths
from workspace import Workspace, kill_tree, make_workspace, wait_for_file

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("processes")]

# Of losses in training and validation. A bias right before a batch normalisation has no gradient but rounding errors,
# which Adam scales up; it moves the running means, which only validation uses. In scenes rounding takes some ray over
# the border of a plane, and Adam scales up what that ray alone teaches: a learning rate that differs in the sixth digit
# does as much.
TOLERANCE = {
    "galaxies": (1e-4, 2e-3),
    "neutrinos": (1e-4, 1e-4),
    "panoramas": (1e-4, 1e-4),
    "scenes": (1e-3, 2e-3),
}
# Dropout draws from torch's own generator, another one in each process.
OPTIONS = {"panoramas": ("--set", "model.lora.dropout=0")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Prepared data of the experiments, and each trained by one process."""
    workspace = make_workspace(tmp_path_factory.mktemp("one") / "work", experiments=tuple(TOLERANCE))
    for experiment in TOLERANCE:
        for stage in ("download", "preprocess"):
            workspace.manyscope(stage, "--experiment", experiment)
        train(workspace, experiment, 1)
    return workspace


@pytest.mark.parametrize(
    ("experiment", "processes"), [("galaxies", 4), ("neutrinos", 2), ("neutrinos", 4), ("panoramas", 2), ("scenes", 2)]
)
def test_losses_are_those_of_one_process(prepared: Workspace, tmp_path: Path, experiment: str, processes: int) -> None:
    folder = tmp_path / "work"
    shutil.copytree(prepared.folder, folder, symlinks=True)
    paths = ExperimentPaths.of(folder / "results", experiment)
    shutil.rmtree(paths.train)
    log = train(Workspace(folder), experiment, processes)
    assert f"{processes} process(es) on" in log
    alone = ExperimentPaths.of(prepared.results, experiment)
    one, many = pl.read_parquet(alone.history), pl.read_parquet(paths.history)
    assert one.drop("value").equals(many.drop("value"))
    both = one.with_columns(many["value"].alias("found"))
    apart = (pl.col("found") - pl.col("value")).abs() / pl.col("value").abs().clip(lower_bound=0.01)
    trained = both.filter(pl.col("name").str.contains("(^|/)train/")).select(apart.max()).item()
    validated = both.filter(pl.col("name").str.contains("(^|/)validation/")).select(apart.max()).item()
    most_trained, most_validated = TOLERANCE[experiment]
    assert trained < most_trained
    assert validated < most_validated
    # Not a copy: rounding makes some digit differ.
    weights = [torch.load(p.model, weights_only=True)["state_dict"] for p in (alone, paths)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_processes_that_would_continue_from_different_steps_refuse(prepared: Workspace, tmp_path: Path) -> None:
    """As on a file system that shows one of them the checkpoint late."""
    folders = [tmp_path / "sees", tmp_path / "sees-not"]
    for folder in folders:
        shutil.copytree(prepared.folder, folder, symlinks=True)
        shutil.rmtree(ExperimentPaths.of(folder / "results", "neutrinos").train)
    paths = ExperimentPaths.of(folders[0] / "results", "neutrinos")
    longer = ("--set", "train.epochs=200")
    first = Workspace(folders[0]).start("train", "--experiment", "neutrinos", *longer)
    wait_for_file(first, paths.resume, "*/last.ckpt")
    kill_tree(first)
    codes, logs = together(folders, "neutrinos", *longer)
    assert codes == [CheckpointError.exit_code] * 2, logs
    assert all(
        re.search(r"processes would continue from steps 0 to [1-9]\d*; a checkpoint was just", log) for log in logs
    )
    assert list(paths.resume.glob("*/last.ckpt"))


def train(workspace: Workspace, experiment: str, processes: int) -> str:
    """What the first of the processes writes while they train together."""
    codes, logs = together([workspace.folder] * processes, experiment, *OPTIONS.get(experiment, ()))
    assert codes == [0] * processes, "\n".join(logs)
    return logs[0]


def together(folders: list[Path], experiment: str, *options: str) -> tuple[list[int], list[str]]:
    """Exit codes and logs of processes, one in each folder, that train together as if srun had started them."""
    environment, count = Workspace(folders[0]).environment() | {"OMP_NUM_THREADS": "1"}, str(len(folders))
    if len(folders) > 1:
        all_of_them = ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS_PER_NODE", "MANYSCOPE_PROCESSES")
        environment |= dict.fromkeys(all_of_them, count) | {
            "SLURM_NNODES": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        }  # fmt: skip
    command = [sys.executable, "-m", "manyscope.cli", "train", "--experiment", experiment, *options]
    logs = [folder / f"process-{number}.log" for number, folder in enumerate(folders)]
    running = []
    for number, (folder, log) in enumerate(zip(folders, logs, strict=True)):
        own = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)} if len(folders) > 1 else {}
        with log.open("w") as file:
            running.append(
                subprocess.Popen(command, cwd=folder, env=environment | own, stdout=file, stderr=subprocess.STDOUT)
            )
    try:
        codes = [process.wait(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    return codes, [log.read_text() for log in logs]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
