"""The check on compute nodes: a short job in each partition of the profile says what it sees there."""

from __future__ import annotations

import getpass
import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyscope.commands.doctor import probe
from manyscope.commands.doctor.clients import ask, environment, nodes, reason
from manyscope.commands.doctor.cluster import account, asked_for
from manyscope.commands.doctor.finding import Finding, Surroundings
from manyscope.commands.doctor.requests import Request, profile_values
from manyscope.errors import SettingsError

WAIT_S = 180.0
_NAME = "manyscope-doctor"
_END_S = 20.0
_BUSY = ("PENDING (Resources)", "PENDING (Priority)", "PENDING (None)")  # the last is not looked at yet


@dataclass(frozen=True)
class _Probe:
    """A job that runs, and the comment by which it is found among the user's."""

    partition: str
    gpus: str
    comment: str
    process: subprocess.Popen[str]


def compute_nodes(surroundings: Surroundings) -> Iterator[Finding]:
    """One finding for each partition; the jobs run side by side, and none outlives the check."""
    if not shutil.which("srun"):
        yield Finding("fail", "compute nodes: there is no srun", "run doctor on the cluster's login node")
        return
    there, failure = nodes()
    try:
        asked = asked_for(profile_values(surroundings.profile), surroundings)
    except SettingsError as error:
        failure, asked = error.problems[0], []
    if failure:
        yield Finding("fail", f"compute nodes: no job can be sent ({failure})", "see the lines above")
        return
    known = {group.partition for group in there if group.open}
    wanted: dict[str, str] = {}
    for request in asked:
        for partition in set(request.partition.split(",")) & known:
            wanted[partition] = _one_gpu(request) or wanted.get(partition, "")
    with _marker(surroundings.results) as marker:
        started = [_start(partition, gpus, marker, surroundings) for partition, gpus in sorted(wanted.items())]
        end = time.monotonic() + WAIT_S
        try:
            for job in started:
                yield _outcome(job, max(end - time.monotonic(), 0.1), surroundings)
        finally:
            for job in started:
                _stop(job)


def _one_gpu(request: Request) -> str:
    if not request.gpus:
        return ""
    return f"gpu:{request.gpu_type}:1" if request.gpu_type else "gpu:1"


@contextmanager
def _marker(results: Path) -> Iterator[Path]:
    """A file in the folder of results with its own name in it; afterwards everything is as it was."""
    made = [folder for folder in (results, *results.parents) if not folder.exists()]
    marker = results.absolute() / f".{_NAME}-{secrets.token_hex(8)}"
    with suppress(OSError):  # the check of the disk says so
        results.mkdir(parents=True, exist_ok=True)
        marker.write_text(marker.name)
    try:
        yield marker
    finally:
        with suppress(OSError):
            marker.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()


def _start(partition: str, gpus: str, marker: Path, surroundings: Surroundings) -> _Probe:
    comment = f"{marker.name}-{partition}"
    charged = account(surroundings)
    options = [
        f"--job-name={_NAME}", f"--comment={comment}", f"--partition={partition}", "--ntasks=1", "--cpus-per-task=1",
        "--mem=2000", "--time=5", *([f"--gres={gpus}"] if gpus else []), *([f"--account={charged}"] if charged else []),
    ]  # fmt: skip
    folders = [surroundings.site.scratch_path.absolute()]
    if surroundings.weights:
        folders.append(surroundings.weights.absolute())
    process = subprocess.Popen(
        ["srun", *options, sys.executable, "-m", probe.__name__, str(marker), *map(str, folders)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: text for name, text in environment().items() if name != "CUDA_VISIBLE_DEVICES"},
    )
    return _Probe(partition, gpus, comment, process)


def _outcome(job: _Probe, wait_s: float, surroundings: Surroundings) -> Finding:
    place = f"compute node of {job.partition}"
    try:
        output, errors = job.process.communicate(timeout=wait_s)
    except subprocess.TimeoutExpired:
        state = _state(job)
        _stop(job)
        why = f"still {state} after {WAIT_S:g} s" if state else f"without an answer after {WAIT_S:g} s"
        what = f"{place}: the job was {why} and is cancelled"
        if state in _BUSY:
            return Finding("warn", what, "try again when the cluster is less busy")
        return Finding("fail", what, "ask the administrators what keeps such a job from starting")
    try:
        seen = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return Finding(
            "fail",
            f"{place}: the job failed ({reason(errors) or f'exit code {job.process.returncode}'})",
            f"this Python and the project must be visible there: {sys.executable}",
        )
    return _judged(seen, place, bool(job.gpus), surroundings)


def _judged(seen: dict[str, Any], place: str, wants_gpu: bool, surroundings: Surroundings) -> Finding:
    """What the node's answers mean."""
    place = f"{place} ({seen['host']})"
    file = surroundings.site_file
    if not seen["is_shared"]:
        remedy = "set 'results' to a folder on a file system that all nodes share"
        return Finding(
            "fail", f"{place}: the folder {surroundings.results.absolute()} of this machine is not there", remedy
        )
    if not seen["scratch_writable"]:
        what = f"{place}: scratch_path {surroundings.site.scratch_path} cannot be written"
        return Finding("fail", what, f"set scratch_path in {file} to a folder that every node can write")
    if seen["missing_weights"]:
        what = f"{place}: missing weights: weights_path {surroundings.weights} {seen['missing_weights']}"
        return Finding("fail", what, f"set weights_path in {file} to a folder that every node can read")
    if seen["torch"] is None:
        return Finding("fail", f"{place}: torch cannot be imported ({seen['torch_error']})", "install torch again")
    what = (
        f"{place}: Python {seen['python']}, torch {seen['torch']}, CUDA {seen['cuda'] or 'not built in'},"
        f" {len(seen['gpus'])} GPU(s), scratch_path with {seen['scratch_free_gib']} GiB free, results shared"
    )
    if not wants_gpu or seen["gpus"]:
        return Finding("ok", what)
    if not seen["given_gpus"]:
        return Finding("fail", f"{what}; SLURM gave the job no GPU", "ask the administrators about gres.conf")
    if seen["has_driver"]:
        return Finding("fail", f"{what}; torch does not see the GPU", "install a torch build that fits the GPU driver")
    return Finding("warn", f"{what}; SLURM gave a GPU, but the node has no driver for it", "ask the administrators")


def _state(job: _Probe) -> str:
    """`PENDING (Resources)`: what SLURM says about the job; empty if nothing."""
    for text in _queue():
        _, comment, state = text.split("|", 2)
        if comment == job.comment:
            return state
    return ""


def _queue() -> list[str]:
    answer = ask("squeue", "-h", "-u", getpass.getuser(), "-n", _NAME, "-o", "%i|%k|%T (%r)")
    return [text for text in answer.text.splitlines() if text.count("|") >= 2]


def _stop(job: _Probe) -> None:
    """Cancel the job and end its srun, where they have not ended."""
    if job.process.poll() is not None:
        return
    for text in _queue():
        number, comment, _ = text.split("|", 2)
        if comment == job.comment:
            ask("scancel", number)
    job.process.terminate()
    try:
        job.process.communicate(timeout=_END_S)
    except subprocess.TimeoutExpired:
        job.process.kill()
        job.process.communicate()
