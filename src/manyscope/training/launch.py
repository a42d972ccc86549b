"""On how many processes a training runs: what the launcher gave, checked against what Lightning makes of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from manyscope.errors import ManyscopeError


@dataclass(frozen=True)
class Placement:
    """Nodes of the job and processes on each; one process drives one GPU, or the CPU where there is none."""

    accelerator: str
    nodes: int
    processes_per_node: int
    launched: bool  # by srun; otherwise Lightning starts the further processes

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


def is_first_process() -> bool:
    """Whether this is the one process of a distributed training that writes outputs; always true elsewhere."""
    return not (int(os.environ.get("LOCAL_RANK", 0)) or int(os.environ.get("SLURM_PROCID", 0)))


def placement() -> Placement:
    """Read the placement from the environment.

    Under `srun` it is the step's layout; elsewhere one node with every visible GPU, or one CPU process.

    Raises:
        ManyscopeError: the step's tasks are not spread evenly over its nodes.
    """
    import torch

    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    # Of the step, which `srun` made, and not of the job: a shell in an allocation is one process.
    tasks, nodes = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)), int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    if tasks > 1:
        if tasks % nodes:
            raise ManyscopeError(
                f"{tasks} tasks on {nodes} nodes", place="SLURM", allowed="the same number of tasks on every node"
            )
        return Placement(accelerator, nodes, tasks // nodes, launched=True)
    return Placement(accelerator, 1, torch.cuda.device_count() if accelerator == "gpu" else 1, launched=False)


def check_world_size(found: int) -> None:
    """
    Args:
        found: processes that train together.

    Raises:
        ManyscopeError: the workflow asked for another number (`MANYSCOPE_PROCESSES`); the others would be wasted.
    """
    expected = int(os.environ.get("MANYSCOPE_PROCESSES", found))
    if expected != found:
        raise ManyscopeError(
            f"{found} process(es) train together",
            allowed=f"{expected}, for which the job has room",
            remedy="let 'launcher', 'nodes', 'tasks_per_node' and the GPUs of train in the profile fit together",
        )
