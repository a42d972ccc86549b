"""Where a training runs, as the launcher says."""

from __future__ import annotations

import pytest

from manyscope.errors import ManyscopeError
from manyscope.training.launch import check_world_size, is_first_process, placement


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_PROCID", "LOCAL_RANK", "MANYSCOPE_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_one_cpu_process_by_default() -> None:
    where = placement()
    assert (where.accelerator, where.nodes, where.processes_per_node, where.world_size) == ("cpu", 1, 1, 1)
    assert is_first_process()


def test_every_gpu_of_a_workstation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert placement().world_size == 4


def test_layout_of_a_job_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert (placement().nodes, placement().processes_per_node) == (2, 4)
    assert not is_first_process()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "7")
    with pytest.raises(ManyscopeError, match="7 tasks on 2 nodes"):
        placement()


def test_a_job_step_of_one_task_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake starts its rule under `srun -n1`, on a job that may have more."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert (placement().world_size, placement().launched) == (1, False)


def test_other_processes_than_the_workflow_asked_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_world_size(1)  # a stage that somebody runs by hand
    monkeypatch.setenv("MANYSCOPE_PROCESSES", "4")
    check_world_size(4)
    with pytest.raises(ManyscopeError, match=r"1 process\(es\) train together; allowed: 4"):
        check_world_size(1)
