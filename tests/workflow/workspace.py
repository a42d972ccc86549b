"""A folder in which real Snakemake runs this repository's workflow on tiny experiments."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Workspace:
    """A folder in which the workflow of this repository runs.

    Attributes:
        library: a copy of the library to be used instead of the installed one, or None.
    """

    folder: Path
    library: Path | None = None
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def environment(self) -> dict[str, str]:
        values = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        if self.library:
            values["PYTHONPATH"] = str(self.library)
        return values

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`snakemake` as a user types it, in this folder."""
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        return self._run(command, check)

    def manyscope(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._run([sys.executable, "-m", "manyscope.cli", *arguments], check)

    def rules_to_run(self, *arguments: str) -> set[str]:
        """Rules of the jobs that a dry run lists, without the target rule."""
        text = self.snakemake("--dry-run", *arguments).stdout
        return set(re.findall(r"^(?:local)?rule (\w+):", text, re.MULTILINE)) - {"all"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`manyscope` in the background, in a process group of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "manyscope.cli", *arguments],
            cwd=self.folder, env=self.environment(), text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def _run(self, command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=600
        )
        if check and done.returncode:
            logs = "\n".join(f"--- {p}\n{p.read_text()}" for p in sorted(self.folder.rglob("logs/*.log")))
            pytest.fail(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}\n{logs}")
        return done


def kill_tree(process: subprocess.Popen[str]) -> None:
    """kill -9 for a process and everything that it started, in one go as far as that is possible."""
    for pid in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = []
    pending = [pid]
    while pending:
        children = parents.get(pending.pop(), [])
        found += children
        pending += children
    return found


def command_line(pid: int) -> list[str]:
    """The words of a process's command; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def wait_for_stage(process: subprocess.Popen[str], stages: set[str], timeout_s: float = 300) -> set[str]:
    """Wait until descendants run any of the stages, and say which; empty if the process ended before."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        running = set()
        for pid in descendants(process.pid):
            words = command_line(pid)
            # The shell that Snakemake starts has the whole command in one word; the stage itself has it as its own.
            if "--results" in words:
                running |= stages & set(words)
        if running or process.poll() is not None:
            return running
        time.sleep(0.02)
    raise TimeoutError(f"none of {stages} started in {timeout_s} s")


def make_workspace(folder: Path, *, shards: int = 2, experiments: tuple[str, ...] = ("galaxies",)) -> Workspace:
    (folder / "config").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "config/test", folder / "config/experiments")
    names = ", ".join(experiments)
    (folder / "config/config.yaml").write_text(f"experiments: [{names}]\nshards: {shards}\n")
    for name in ("Snakefile", "rules", "envs", "docs", "workflow_profiles", "slurm"):
        (folder / name).symlink_to(REPOSITORY / name)
    return Workspace(folder)
