"""Stages of an experiment as a user runs them, with settings changed, for benchmarks that train."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import OURS, ROOT, environment


def run_stage(results: Path, experiment: str, stage: str, changes: Sequence[str] = ()) -> None:
    """Run one stage in one thread, its log beside the results.

    Raises:
        RuntimeError: it failed.
    """
    results.mkdir(parents=True, exist_ok=True)
    changed = [word for change in changes for word in ("--set", change)]
    command = [OURS / "manyscope", stage, "--experiment", experiment, "--results", results, *changed]
    env = {**environment(), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    log = results / f"{stage}.log"
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(list(map(str, command)), cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{stage} failed, see {log}")
