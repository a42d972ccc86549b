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
    # A job step that Snakemake starts by itself has one task; only a launcher of our own has several.
    tasks, nodes = int(os.environ.get("SLURM_NTASKS", 1)), int(os.environ.get("SLURM_NNODES", 1))
    if tasks > 1:
        if tasks % nodes:
            raise ManyscopeError(
                f"{tasks} tasks on {nodes} nodes", place="SLURM", allowed="the same number of tasks on every node"
            )
        return Placement(accelerator, nodes, tasks // nodes)
    return Placement(accelerator, 1, torch.cuda.device_count() if accelerator == "gpu" else 1)


def check_world_size(expected: int, found: int) -> None:
    """
    Raises:
        ManyscopeError: fewer or more processes joined than the job asked for; training on would waste the others.
    """
    if expected != found:
        raise ManyscopeError(
            f"{found} processes joined the training",
            allowed=f"{expected}, as the launcher started",
            remedy="start training through the profile's launcher, or unset SLURM_* variables of another job",
        )
