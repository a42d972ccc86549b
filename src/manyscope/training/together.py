"""What processes that train together ask of each other; one alone answers itself."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed

from manyscope.errors import CheckpointError


def any_process(answer: bool, device: torch.device | str) -> bool:
    """Whether any of the processes says so; each of them has to ask."""
    if not _several():
        return answer
    said = torch.tensor(float(answer), device=device)
    torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
    return bool(said)


def check_same_step(step: int, device: torch.device | str, place: Path) -> None:
    """
    Args:
        step: from which this process would continue.
        place: of the checkpoints.

    Raises:
        CheckpointError: another process would continue from another step.
    """
    if not _several():
        return
    steps = torch.tensor([-step, step], device=device)
    torch.distributed.all_reduce(steps, torch.distributed.ReduceOp.MAX)
    if steps.sum():
        raise CheckpointError(
            f"processes would continue from steps {-int(steps[0])} to {int(steps[1])}",
            place=place,
            remedy="a checkpoint was just being written, or the file system shows it late: start again",
        )


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
