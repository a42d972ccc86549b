"""What Lightning is told of the launcher."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

from manyscope.training.environment import environment
from manyscope.training.launch import Placement

NODE = "absent-node-of-manyscope"


def slurm(monkeypatch: pytest.MonkeyPatch, nodes: str) -> SLURMEnvironment:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    monkeypatch.setenv("SLURM_NODELIST", nodes)
    made = environment(Placement("cpu", 2, 2, launched=True))
    assert isinstance(made, SLURMEnvironment)
    return made


def scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_only_what_srun_started_is_slurms_and_it_never_submits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm(monkeypatch, "localhost").auto_requeue is False
    assert isinstance(environment(Placement("cpu", 1, 1, launched=False)), LightningEnvironment)


def test_a_node_that_a_name_server_knows_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm(monkeypatch, "localhost,other").main_address == "localhost"


def test_another_node_by_the_address_that_slurm_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scontrol(tmp_path, monkeypatch, 'echo "NodeName=$3 Arch=x86_64\n   NodeAddr=10.1.2.3 NodeHostName=$3"')
    assert slurm(monkeypatch, f"{NODE}[1-2]").main_address == "10.1.2.3"


@pytest.mark.parametrize("script", ["exit 1", "echo nothing of use"])
def test_and_by_its_name_where_slurm_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    scontrol(tmp_path, monkeypatch, script)
    assert slurm(monkeypatch, f"{NODE}1,{NODE}2").main_address == f"{NODE}1"
