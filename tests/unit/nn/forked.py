"""Work on several processes of a training, in processes that share nothing with the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import torch
import torch.distributed
import torch.multiprocessing

from manyscope.nn.across import Share, sharing

SAMPLES = 7  # shared unevenly by two and by three


def on_processes(processes: int, folder: Path, work: Callable[[Share], dict[str, Any]]) -> list[dict[str, Any]]:
    """What each of the processes answers for its share of the batch.

    They are forked from a server, not from the test's process, whose threads may hold locks that a fork never gets.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "manyscope.nn.across"])
    packed = cloudpickle.dumps(work)
    running = [context.Process(target=_work, args=(rank, processes, folder, packed)) for rank in range(processes)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0] * processes
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def _work(rank: int, processes: int, folder: Path, packed: bytes) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    share = Share(rank, processes, SAMPLES, seed=5)
    with sharing(share):
        torch.save(cloudpickle.loads(packed)(share), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
