"""`manyscope run`: Snakemake with the right profile, then the report and the summary."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click

from manyscope.errors import BusyError, ManyscopeError
from manyscope.settings import Config, load_config
from manyscope.tables.freshness import confirm
from manyscope.tables.whole import sole_worker, write_json

_STATE = Path(".snakemake")
LOCK = _STATE / "manyscope.lock"
_GPUS = Path("/proc/driver/nvidia/gpus")
_LOOK_EVERY_S = 0.5
_WITHOUT_JOBS = {"-n", "-np", "--dry-run", "--dryrun", "--touch", "--unlock"}


def run_workflow(
    experiments: tuple[str, ...], profile: str, cores: int | None, overrides: tuple[str, ...], config_file: Path,
    report: bool, snakemake: tuple[str, ...], until: str | None = None, results: Path | None = None,
) -> int:  # fmt: skip
    """Run the chain and print what came out; returns Snakemake's exit code.

    Args:
        until: a stage after which the chain ends; there is no report and no summary then.
        results: folder in the place of the workflow file's.

    Raises:
        ManyscopeError: there is no Snakefile here.
        SettingsError: the settings have problems; nothing was started.
        BusyError: another run is working in this folder.
    """
    if not Path("Snakefile").exists():
        raise ManyscopeError("no Snakefile here", place=Path.cwd(), remedy="run from the project's folder")
    config = load_config(config_file=config_file, experiments=experiments or None, overrides=overrides)
    config = replace(config, results=results or config.results)
    command = _command(config, config_file, overrides, "--profile", profile)
    environment = _environment()
    with sole_worker(LOCK):
        _release_lock_of_killed_run(command, environment)
        with _Following(config):
            last = ["--until", until] if until else []
            code = _snakemake([*command, *_local_choices(cores, profile), *last, *snakemake], environment)
        if not (code or snakemake):  # Snakemake's own options may have left stages out
            for name in config.experiments:
                confirm(config.paths(name), until)
        if code or until or _WITHOUT_JOBS & set(snakemake):
            return code
        page = config.results / "report.html"
        if report:
            code = _snakemake([*command, "--report", str(page), "--quiet", "all"], environment)
    _print_results(config, page if report and not code else None)
    return code


def record_as_made(
    config: Config, config_file: Path, overrides: tuple[str, ...], rules: Sequence[str], targets: Sequence[Path]
) -> None:
    """Tell Snakemake, where it keeps a record here, that these rules have just made their files with the settings and
    the code of now.

    Raises:
        ManyscopeError: Snakemake fails.
    """
    if not (Path("Snakefile").exists() and (_STATE / "metadata").is_dir()):
        return
    command = _command(config, config_file, overrides, "--cores", "1", "--quiet", "all", "--touch")
    command += ["--allowed-rules", *rules, "--", *map(str, targets)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise ManyscopeError(f"Snakemake cannot record what was made ({' '.join(words)})", place=Path.cwd())


def _command(config: Config, config_file: Path, overrides: tuple[str, ...], *options: str) -> list[str]:
    # Snakemake lays the file over config/config.yaml, the library reads it alone: what both must agree on is said.
    chosen = {"experiments": list(config.experiments), "shards": config.shards, "results": str(config.results)}
    chosen |= {"set": overrides} if overrides else {}
    command = [sys.executable, "-m", "snakemake", *options, "--configfile", str(config_file)]
    return [*command, "--config", *(f"{key}={json.dumps(value)}" for key, value in chosen.items())]


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def _local_choices(cores: int | None, profile: str) -> list[str]:
    """What is said beside the profile: less noise, since the logs are shown, and how many jobs run at once here."""
    choices = ["--quiet", "host", "rules", *(["--cores", str(cores)] if cores else [])]
    if Path(profile).name == "local" and not _GPUS.is_dir():
        choices += ["--resources", f"gpu={cores or os.cpu_count() or 1}"]  # nothing to take turns for
    return choices


class _Following:
    """Shows what the stages write into their logs, line by line, while Snakemake runs them."""

    def __init__(self, config: Config) -> None:
        self._logs = {name: config.paths(name).log("*") for name in config.known}
        self._before = {log: log.stat().st_mtime_ns for _, log in self._found()}
        self._read: dict[Path, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            with suppress(OSError):  # Snakemake removes the logs of a job that starts anew
                self._show_new_lines()
        with suppress(OSError):
            self._show_new_lines()

    def _show_new_lines(self) -> None:
        for experiment, log in self._found():
            stat = log.stat()
            if stat.st_mtime_ns == self._before.get(log):
                continue  # of an earlier run; a rule begins its log anew, so it is read from the start
            start = self._read.get(log, 0)
            if stat.st_size < start:
                start = 0  # another attempt
            with log.open("rb") as file:
                file.seek(start)
                text = file.read()
            complete = text[: text.rfind(b"\n") + 1]
            self._read[log] = start + len(complete)
            for line in complete.decode(errors="replace").splitlines():
                click.echo(f"{experiment} {log.stem}: {line}")

    def _found(self) -> list[tuple[str, Path]]:
        return [(name, log) for name, logs in self._logs.items() for log in sorted(logs.parent.glob(logs.name))]


def _snakemake(command: list[str], environment: dict[str, str]) -> int:
    """Run Snakemake, leaving a note of its process for the next run in case this one is killed."""
    process = subprocess.Popen(command, env=environment)
    note = _STATE / "manyscope-run.json"
    try:
        write_json(note, {"host": platform.node(), "pid": process.pid})
    except ManyscopeError:
        process.terminate()  # a run of which the next one knows nothing must not go on
        process.wait()
        raise
    try:
        code = process.wait()
    except KeyboardInterrupt:
        code = process.wait()  # Snakemake got the same signal and stops its jobs
    note.unlink(missing_ok=True)
    return code


def _release_lock_of_killed_run(command: list[str], environment: dict[str, str]) -> None:
    """Unlock the folder if, and only if, the lock is of an earlier run of ours that was killed on this machine."""
    note = _STATE / "manyscope-run.json"
    if not note.exists():
        return
    try:
        killed = json.loads(note.read_text())
        host, pid = killed["host"], killed["pid"]
    except (json.JSONDecodeError, TypeError, KeyError):
        return
    if host != platform.node():
        return
    if _is_snakemake(pid):
        raise BusyError(
            f"Snakemake (process {pid}) of an earlier run is still working",
            place=Path.cwd(),
            remedy="wait for it or end it, then run the same command again",
        )
    click.echo("an earlier run was killed; continuing from what it left")
    subprocess.run([*command, "--unlock", "--quiet", "all"], env=environment, capture_output=True, check=False)
    note.unlink(missing_ok=True)


def _is_snakemake(pid: int) -> bool:
    try:
        return b"snakemake" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _print_results(config: Config, report: Path | None) -> None:
    from manyscope.evaluation.summary import print_summary

    print_summary(config.results)
    for name in config.experiments:
        click.echo(f"page    {config.paths(name).page}")
    if report:
        click.echo(f"report  {report}")
