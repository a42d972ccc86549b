"""Runs of the workflow on the test cluster, followed and interfered with from outside."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ruamel.yaml import YAML

from cluster import ACCOUNT, Cluster
from manyscope.settings.paths import ExperimentPaths
from workspace import REPOSITORY, Workspace, command_line, kill_tree

PROFILE = REPOSITORY / "workflow_profiles/slurm/config.v9+.yaml"
# The defaults suit jobs of hours: the first look at a job after 40 s.
POLLING = ("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2")


def wait_until(ready: Callable[[], Any], what: str, timeout_s: float = 180) -> Any:
    """The first true answer of `ready`."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if answer := ready():
            return answer
        time.sleep(0.3)
    raise TimeoutError(f"not in {timeout_s:g} s: {what}")


@dataclass
class Submission:
    """One Snakemake that submits to the cluster."""

    process: subprocess.Popen[str]
    output: Path
    cluster: Cluster

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def name(self) -> str:
        """What SLURM calls every job of this run."""
        found = re.search(r"SLURM run ID: (\S+)", self.text)
        return found[1] if found else ""

    def jobs(self, rule: str = "", *fields: str) -> list[dict[str, str]]:
        """What the accounting says of the jobs of this run or of a rule in it, once all have ended; oldest first."""
        found = [job for job in self.cluster.jobs("Start", *fields) if job["JobName"] == self.name]
        mine = [job for job in found if job["Comment"].startswith(f"rule_{rule}")]
        return sorted(mine, key=lambda job: (int(job["JobID"].partition("_")[0]), job["Start"]))

    def trainings(self, experiment: str) -> list[dict[str, str]]:
        """Each start of an experiment's training; by number, since the accounting has the comment only at the end."""
        numbers = re.findall(rf"SLURM jobid (\d+) \(log: \S*/rule_train/{experiment}/", self.text)
        found = [job for job in self.cluster.jobs("Start", "End", "ExitCode") if job["JobID"] in numbers]
        return sorted(found, key=lambda job: (int(job["JobID"]), job["Start"]))

    def account_of(self, experiment: str) -> str:
        """What became of an experiment's training, for the message of a failed assertion: each start, then the logs."""
        starts = [" ".join(f"{key}={value}" for key, value in job.items()) for job in self.trainings(experiment)]
        folder = self.output.parent / ".snakemake/slurm_logs/rule_train" / experiment
        logs = [self.output.parent / f"results/{experiment}/logs/train.log", *sorted(folder.glob("*.log"))]
        texts = [f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in logs if log.exists()]
        return "\n".join([*starts, *texts])

    def wait(self, timeout_s: float = 600) -> int:
        """Its exit code. Requeued jobs, which SLURM holds back for two minutes, start at once."""
        end = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < end, f"still running after {timeout_s:g} s\n{self.text}"
            self.hurry()
            time.sleep(0.5)
        # Snakemake asks the controller; the accounting, which is asked from here on, hears of it later.
        wait_until(lambda: not self.still_accounted(), "the accounting has the end of every job")
        return self.process.returncode

    def still_accounted(self) -> list[str]:
        """Jobs of this run that the accounting does not yet know the end of."""
        found = [job for job in self.cluster.jobs() if job["JobName"] == self.name]
        return [job["JobID"] for job in found if job["State"] in ("PENDING", "RUNNING", "COMPLETING")]

    def hurry(self) -> None:
        for line in self.cluster.run("squeue", "-h", "-t", "PD", "-o", "%i %r").splitlines():
            job, reason = line.split(maxsplit=1)
            if reason == "BeginTime":
                self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)


@dataclass
class ClusterWorkspace(Workspace):
    """A workspace from which jobs are submitted to `cluster`.

    Attributes:
        variables: further environment variables of all that is started here.
    """

    cluster: Cluster = field(kw_only=True)
    variables: dict[str, str] = field(default_factory=dict)
    submissions: list[Submission] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.site(slurm_account=ACCOUNT)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **self.cluster.environment, **self.variables}

    def paths(self, experiment: str) -> ExperimentPaths:
        return ExperimentPaths.of(self.results, experiment)

    def site(self, **values: Any) -> None:
        """Write config/local.yaml."""
        YAML(typ="safe").dump(values, self.folder / "config/local.yaml")

    def profile(self, **changes: Mapping[str, Any]) -> str:
        """A copy of the profile `slurm` in which rules have other resources."""
        profile = YAML(typ="safe").load(PROFILE)
        for rule, resources in changes.items():
            profile["set-resources"].setdefault(rule, {}).update(resources)
        folder = self.folder / "profile"
        folder.mkdir()
        YAML(typ="safe").dump(profile, folder / PROFILE.name)
        return folder.name

    def locally(self, *arguments: str) -> None:
        """The same workflow on this machine alone, with the threads of the cluster, which decide the last digit."""
        threads = [f"{rule}={number}" for rule, number in YAML(typ="safe").load(PROFILE)["set-threads"].items()]
        command = [sys.executable, "-m", "snakemake", "--profile", "workflow_profiles/local", *arguments]
        self._run([*command, "--set-threads", *threads], check=True)

    def adopt(self, other: ExperimentPaths, *experiments: str) -> None:
        """Take over the raw and prepared data of another workspace's experiment."""
        for paths in map(self.paths, experiments):
            shutil.copytree(other.raw, paths.raw)
            shutil.copytree(other.prepared, paths.prepared)

    def submit(self, *arguments: str, profile: str = "slurm") -> Submission:
        """`snakemake --profile slurm` as a user types it, but for the polling; in the background."""
        output = self.folder / f"snakemake-{len(self.submissions)}.out"
        command = [sys.executable, "-m", "snakemake", "--profile", profile, *POLLING, *arguments]
        with output.open("w") as file:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(), text=True, start_new_session=True,
                stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.submissions.append(Submission(process, output, self.cluster))
        return self.submissions[-1]

    def complaint(self) -> str:
        """Everything that was said, for the message of a failed assertion."""
        logs = [*self.folder.glob("snakemake-*.out"), *self.folder.rglob("logs/*.log")]
        logs += (self.folder / ".snakemake/slurm_logs").rglob("*.log")
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')}" for log in sorted(logs))

    def hold(self, experiments: list[str], timeout_s: float = 300) -> None:
        """Stop each training in its tracks as soon as it has a checkpoint, however fast the machine is.

        SLURM wakes a stopped process when it cancels or preempts it, or has it run out of time.
        """
        waiting = set(experiments)
        end = time.monotonic() + timeout_s
        while waiting:
            assert time.monotonic() < end, f"no checkpoint of {waiting}\n{self.complaint()}"
            for name in sorted(waiting):
                paths = self.paths(name)
                assert not paths.model.exists(), f"{name} was too fast"
                if list(paths.resume.glob("*/last.ckpt")) and self._tell(name, signal.SIGSTOP):
                    waiting.discard(name)
            time.sleep(0.02)

    def release(self, experiment: str) -> None:
        self._tell(experiment, signal.SIGCONT)

    def has_waiting(self, experiment: str, number: int) -> bool:
        """Whether a signal has come that the stopped training has yet to see."""
        masks = []
        for pid in self.training(experiment):
            with suppress(OSError):
                masks += re.findall(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return any(int(mask, 16) & 1 << number - 1 for mask in masks)

    def _tell(self, experiment: str, number: int) -> list[int]:
        told = self.training(experiment)
        for pid in told:
            os.kill(pid, number)
        return told

    def training(self, experiment: str) -> list[int]:
        """The processes that train an experiment here."""
        found = []
        for entry in Path("/proc").iterdir():
            words = command_line(int(entry.name)) if entry.name.isdigit() else []
            # Shells have the whole command in one word, and srun comes first in a command of its own.
            if {"train", "--experiment", experiment} <= set(words) and "srun" not in Path(words[0]).name:
                try:
                    here = (entry / "cwd").readlink() == self.folder
                except OSError:
                    continue
                if here:
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        """Kill what still runs, and cancel its jobs."""
        for submission in self.submissions:
            if submission.process.poll() is None:
                kill_tree(submission.process)
                if submission.name:
                    self.cluster.run("scancel", "--name", submission.name)


class NewWorkspace(Protocol):
    def __call__(self, *experiments: str, shards: int = 1) -> ClusterWorkspace: ...
