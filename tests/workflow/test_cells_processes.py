"""A training of cells on two processes: averaged gradients, the same weights on both, and one end for both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from manyscope.errors import StoppedError
from manyscope.scopes.cells.data.images import CellImages
from manyscope.scopes.cells.data.prepare import prepare
from manyscope.scopes.cells.settings import (
    AugmentSettings,
    CellsDownload,
    CellsPreprocess,
    CellsSettings,
    SimulatedSettings,
)
from manyscope.scopes.cells.simulate import Simulated
from manyscope.tables.manifest import describe
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import check_samples

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("cells_processes")]

MODEL = {
    "args": {"image_size": 128, "embed_dim": 32, "depth": 2, "heads": 2},
    "decoder_features": 2,
    "patch_px": 128,
}
TRAIN = {
    "batch_size": 4, "epochs": 2, "patches_per_epoch": 8, "validation_patches": 2, "tracker": "none",
    "objects_per_image": 2, "prompt_steps": 2, "thresholds": (0.5,), "min_areas_px": (25,),
}  # fmt: skip
ONE_STEP = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "schedule": "constant", "patches_per_epoch": 4} | {
    "epochs": 1
}

# Each process trains, one after the other, what the parent wants, and leaves its weights and what it raised.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from manyscope.errors import ManyscopeError
from manyscope.scopes.cells.data.images import CellImages
from manyscope.scopes.cells.model import fit as module
from manyscope.scopes.cells.model.trainer import Continued
from manyscope.scopes.cells.settings import CellsSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.training.run import TrainingRun

prepared, folder, jobs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
rank = int(os.environ["SLURM_PROCID"])
train, set_rate = module._train, Continued.set_rate

def kept(settings, data, model, *others):
    train(settings, data, model, *others)
    torch.save({n: p.detach() for n, p in model.named_parameters()}, own / f"weights-{rank}.pt")

module._train = kept
for job in jobs:
    os.environ["MASTER_PORT"] = str(job["port"])
    def signalled(self, step, job=job):
        set_rate(self, step)
        if rank == 1 and step == job["signal"]:
            os.kill(os.getpid(), signal.SIGTERM)
    Continued.set_rate = signalled
    settings = CellsSettings.model_validate(job["settings"]).for_stage("train")
    own = folder / job["name"]
    own.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(settings, ExperimentPaths.of(own, "small"), "data", "code", {})
    raised = [0, ""]
    try:
        module.fit(settings, CellImages(prepared), run)
    except ManyscopeError as error:
        raised = [error.exit_code, str(error)]
        torch.distributed.destroy_process_group()  # which otherwise ends with the process
    (own / f"raised-{rank}-{job['signal']}.json").write_text(json.dumps(raised))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw, folder = (tmp_path_factory.mktemp("cells") / name for name in ("raw", "prepared"))
    download = CellsDownload(simulated=SimulatedSettings(count=6, size_px=160))
    write_table(raw / "manifest.parquet", describe(raw, Simulated().download(download, raw)))
    pairs = Simulated().pairs(download, raw, pl.read_parquet(raw / "manifest.parquet"))
    samples = prepare(pairs, CellsPreprocess(augment=AugmentSettings(copies=0)), raw, folder)
    write_table(folder / "samples.parquet", check_samples(samples, folder))
    return folder


def settings(**train: Any) -> dict[str, Any]:
    return {"scope": "cells", "model": MODEL, "train": {**TRAIN, **train}}


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that two processes train in these tests, in one folder each: to start them takes longer."""
    folder = tmp_path_factory.mktemp("trained")
    full = settings(mode="full", schedule="plateau", warmup_fraction=0)
    jobs = [
        {"name": "step", "settings": settings(**ONE_STEP), "signal": -1},
        {"name": "whole", "settings": full, "signal": -1},
        {"name": "stopped", "settings": full, "signal": 2},
        {"name": "stopped", "settings": full, "signal": -1},
        {"name": "uneven", "settings": settings(batch_size=3), "signal": -1},
    ]
    for job in jobs:
        job["port"] = free_port()
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "MANYSCOPE_PROCESSES": "2", "SLURM_NNODES": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0",
        "SLURM_JOB_NAME": "train", "MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, str(prepared), str(folder), json.dumps(jobs)]
    logs = [folder / f"{number}.log" for number in range(2)]
    running = []
    for number, log in enumerate(logs):
        own = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
        with log.open("w") as file:
            running.append(subprocess.Popen(command, env=environment | own, stdout=file, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    return folder


def weights(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(folder / f"weights-{number}.pt", weights_only=True) for number in range(2)]


def history(folder: Path) -> list[tuple[int, str, float]]:
    (file,) = folder.glob("small/train/resume/*/history.jsonl")
    return [(step, name, value) for step, _, name, value in map(json.loads, file.read_text().splitlines())]


def raised(folder: Path, signal: int = -1) -> list[tuple[int, str]]:
    return [tuple(json.loads((folder / f"raised-{number}-{signal}.json").read_text())) for number in range(2)]


def test_a_step_follows_the_mean_of_the_gradients(trained: Path, prepared: Path) -> None:
    from torch_em.loss import DiceBasedDistanceLoss

    from manyscope.scopes.cells.model.networks import build
    from manyscope.scopes.cells.model.patches import Patches, batches
    from manyscope.training.seeds import seed_weights

    found = CellsSettings.model_validate(settings(**ONE_STEP))
    seed_weights(found.train.seed)
    model = build(found.model)
    patches = Patches(CellImages(prepared).training_files(), found.train, found.model.patch_px, "train")
    ((x, y),) = batches(patches, [[0, 2, 1, 3]], 0)  # the halves of the first batch
    output = model.unetr.train()(x)  # with batch normalisation over both
    dice = DiceBasedDistanceLoss(mask_distances_in_bg=True)
    halves = [dice(output[:2], y[:2]), dice(output[2:], y[2:])]
    (sum(halves) / 2).backward()
    losses = [loss.item() for loss in halves]
    wanted = {n: p.detach() - 0.1 * p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert len(wanted) > 50
    for process in weights(trained / "step"):
        for name, value in wanted.items():
            torch.testing.assert_close(process[name], value, atol=1e-6, rtol=1e-4)
    assert abs(losses[0] - losses[1]) > 1e-4
    (loss,) = [value for _, name, value in history(trained / "step") if name == "train/loss"]
    assert loss == pytest.approx(sum(losses) / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["step", "whole", "stopped"])
def test_both_end_with_the_same_weights(trained: Path, name: str) -> None:
    one, other = weights(trained / name)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_signal_to_one_stops_both_and_both_continue_exactly(trained: Path) -> None:
    first, second = raised(trained / "stopped", 2)
    assert first[0] == second[0] == StoppedError.exit_code
    assert first[1].split(": ", 1)[1].startswith("a signal to another process stopped the training at step 3 of 4")
    assert second[1].split(": ", 1)[1].startswith("SIGTERM stopped the training at step 3 of 4")
    assert raised(trained / "stopped") == raised(trained / "whole") == [(0, ""), (0, "")]
    assert history(trained / "stopped") == history(trained / "whole")
    ends = [next((trained / name).glob("small/train/resume/*/best.ckpt")) for name in ("whole", "stopped")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_batch_that_does_not_divide_is_refused(trained: Path) -> None:
    for code, message in raised(trained / "uneven"):
        assert code == 1
        assert message == "train.batch_size: a batch of 3 patches for 2 processes; allowed: a multiple of 2"
    assert not list((trained / "uneven").rglob("history.jsonl"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
