"""A folder in which real Snakemake runs this repository's workflow on tiny experiments."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from contextlib import chdir
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from manyscope.errors import StoppedError
from manyscope.settings.paths import ExperimentPaths
from warm import Warm

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Workspace:
    """A folder in which the workflow of this repository runs.

    Attributes:
        library: a copy of the library to be used instead of the installed one, or None.
        cold: whether each command loads all that it needs by itself, and hashes text in an order of its own.
    """

    folder: Path
    library: Path | None = None
    cold: bool = False
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
        return self.python("-m", "snakemake", "--cores", "2", *arguments, check=check)

    def manyscope(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "manyscope.cli", *arguments, check=check)

    def python(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._run([sys.executable, *arguments], check)

    def here(self, *arguments: str) -> Result:
        """`manyscope` in this process, which saves what it takes to load torch once more. The result has the exit
        code, stdout and stderr."""
        from manyscope.cli import main

        with chdir(self.folder), patch.dict(os.environ):
            return CliRunner().invoke(main, list(arguments))

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
        environment = self.environment()
        if not self.cold and (ready := warm()):
            command = ready.command(command)
            environment["PATH"] = f"{ready.programs}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)
        if check and done.returncode:
            logs = "\n".join(f"--- {p}\n{p.read_text()}" for p in sorted(self.folder.rglob("logs/*.log")))
            pytest.fail(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}\n{logs}")
        return done


@cache
def warm() -> Warm | None:
    """What commands of this session begin from; None if all are to begin cold."""
    counted = any(name.startswith("COV") for name in os.environ)
    if "MANYSCOPE_COLD" in os.environ or counted or not hasattr(os, "pidfd_open"):  # which only Linux has
        return None
    made = Warm()
    assert made.ready
    return made


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


def wait_for_file(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    """Wait until a process has left a file; a test whose process ends without it fails."""
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def train_apart(
    workspace: Workspace,
    source: ExperimentPaths,
    results: Path,
    *options: str,
    interrupt: signal.Signals | None = None,
    checkpoint: str = "*/last.ckpt",
) -> ExperimentPaths:
    """Train on what another run prepared, in a folder of results of its own.

    Args:
        interrupt: sent when there is a checkpoint to continue from, SIGKILL to all that the training started and any
            other to the training alone; then the same command runs again. None: the training is left alone.
        checkpoint: pattern of that file, below the folder of unfinished trainings.
    """
    (results / source.experiment).mkdir(parents=True)
    (results / source.experiment / "prepared").symlink_to(source.prepared)
    own = ExperimentPaths.of(results, source.experiment)
    command = ("train", "--experiment", source.experiment, "--results", str(results), *options)
    if interrupt is not None:
        process = workspace.start(*command)
        wait_for_file(process, own.resume, checkpoint)
        if interrupt == signal.SIGKILL:
            kill_tree(process)
        else:
            process.send_signal(interrupt)
            said = process.communicate(timeout=120)[0]
            assert process.returncode == StoppedError.exit_code, said
            assert "Traceback" not in said
            assert f": {interrupt.name} stopped the training at step " in said.splitlines()[-1], said
        assert list(own.resume.glob(checkpoint))
        assert not own.model.exists()
    done = workspace.manyscope(*command)
    assert ("continues from its checkpoint" in done.stderr) is (interrupt is not None)
    return own


def page_data(page: Path) -> dict[str, Any]:
    """What a page that stands alone embeds: see `packed_contents`."""
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    data: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(json.loads(text)["packed"]), -15))
    return data


def pictures_on_page(page: Path) -> dict[str, np.ndarray]:
    """The picture of each object that has one on the page, RGBA uint8 in a square cell with transparent margins."""
    content = page_data(page)
    packed = content["pictures"]
    sheets = []
    for address in packed["sheets"]:
        kind, _, code = address.partition(";base64,")
        assert kind == "data:image/webp"
        with Image.open(io.BytesIO(base64.b64decode(code))) as sheet:
            sheets.append(np.asarray(sheet.convert("RGBA")))
    slots = np.frombuffer(base64.b64decode(packed["slots"]["data"]), packed["slots"]["dtype"])
    cell, across = packed["cell"], packed["across"]
    pictures = {}
    for name, slot in zip(content["ids"], slots.tolist(), strict=True):
        if slot >= 0:
            sheet, place = divmod(slot, across**2)
            y, x = (cell * number for number in divmod(place, across))
            pictures[name] = sheets[sheet][y : y + cell, x : x + cell]
    return pictures


def make_workspace(folder: Path, *, shards: int = 2, experiments: tuple[str, ...] = ("galaxies",)) -> Workspace:
    (folder / "config").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "config/test", folder / "config/experiments")
    names = ", ".join(experiments)
    (folder / "config/config.yaml").write_text(f"experiments: [{names}]\nshards: {shards}\n")
    for name in ("Snakefile", "rules", "envs", "docs", "workflow_profiles", "slurm"):
        (folder / name).symlink_to(REPOSITORY / name)
    return Workspace(folder)
