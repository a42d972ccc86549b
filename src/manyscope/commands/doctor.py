"""`manyscope doctor`: what this machine has for the work, and what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import click

from manyscope.errors import SettingsError
from manyscope.settings import Config, Site, load_config, load_site
from manyscope.settings.site import SITE_FILE
from manyscope.settings.source import Layer, filled, leaves, read_layer

SITE_TEMPLATE = Path("config/local.template.yaml")
SLURM_PROFILE = Path("workflow_profiles/slurm")

_PYTHON = (3, 11)
_MIN_MEMORY_GIB = 4.0
_MIN_DISK_GIB = 5.0
_TIMEOUT_S = 5.0
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_PARTITION = re.compile(r"^slurm_partition\s*=\s*(.+)$")
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """The answer of one check.

    Attributes:
        state: `fail` where the work cannot be done, `warn` where it can be done less well.
        remedy: what the user can do about it; empty when all is well.
    """

    state: Literal["ok", "warn", "fail"]
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Surroundings:
    """What the checks look at besides the machine.

    Attributes:
        config: None when the settings have problems.
        problems: those problems, a line each.
    """

    config_file: Path
    config: Config | None = None
    problems: tuple[str, ...] = ()
    site: Site = field(default_factory=Site)
    site_file: Path = SITE_FILE

    @property
    def results(self) -> Path:
        return self.config.results if self.config else Path("results")


def examine(config_file: Path) -> int:
    """Print a line for each check; returns 1 if any failed, else 0."""
    surroundings = _surroundings(config_file)
    failed = False
    for check in CHECKS:
        finding = check(surroundings)
        failed |= finding.state == "fail"
        state = click.style(f"{finding.state:<4}", fg=_COLOURS[finding.state])
        click.echo(f"{state}  {'; '.join(part for part in (finding.what, finding.remedy) if part)}")
    return int(failed)


def _surroundings(config_file: Path) -> Surroundings:
    """Whatever can be read; that nothing else could be is for the check of the settings to say."""
    site_file, site = SITE_FILE, Site()
    with suppress(SettingsError):
        named = Layer({"site_file": str(read_layer(config_file).values.get("site_file", SITE_FILE))})
        site_file = Path(str(filled(named, {}, "")[0].values["site_file"]))
    with suppress(SettingsError):
        site = load_site(site_file)
    try:
        config = load_config(config_file=config_file)
    except SettingsError as error:
        return Surroundings(config_file, None, tuple(error.problems), site, site_file)
    return Surroundings(config_file, config, (), site, site_file)


# -------------------------------------------------------------------------------------------------- the machine
def python(_: Surroundings) -> Finding:
    """Is Python new enough?"""
    what = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info >= _PYTHON:
        return Finding("ok", what)
    return Finding("fail", what, f"install Python {'.'.join(map(str, _PYTHON))} or newer")


def packages(_: Surroundings) -> Finding:
    """Is each package that Manyscope needs installed, in a version that it works with?"""
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in requires("manyscope") or []]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = []
    for one in needed:
        try:
            if not one.specifier.contains(version(one.name), prereleases=True):
                wrong.append(f"{one.name} {version(one.name)} is not {one.specifier}")
        except PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
    if wrong:
        return Finding("fail", f"packages: {', '.join(wrong)}", "run: pip install --upgrade manyscope")
    return Finding("ok", f"packages: all {len(needed)} are there, in versions that fit")


def processor(_: Surroundings) -> Finding:
    """How many cores and how much memory may this process use?"""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gib = _memory_bytes() / _GIB
    what = f"{cores} CPU core(s), {memory_gib:.1f} GiB of memory"
    if memory_gib < _MIN_MEMORY_GIB:
        return Finding("warn", what, "run one experiment at a time, with --cores 1 and small batch sizes")
    return Finding("ok", what)


def _memory_bytes() -> int:
    """Memory of the machine, or of the container where that has less."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdecimal() else physical


def accelerator(_: Surroundings) -> Finding:
    """Which GPUs does torch see?"""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch grumbles over drivers that are too old; the line below says it
            import torch

            names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except (ImportError, OSError) as error:
        return Finding("fail", f"torch cannot be imported ({_first_line(error)})", "install torch again")
    what = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'not built in'}"
    if names:
        return Finding("ok", f"{what}, {len(names)} GPU(s): {', '.join(sorted(set(names)))}")
    if shutil.which("nvidia-smi"):
        return Finding(
            "warn", f"{what}: CPU only, though nvidia-smi is here", "install a torch build that fits the GPU driver"
        )
    return Finding("ok", f"{what}: CPU only")


def disk(surroundings: Surroundings) -> Finding:
    """Can results be written, and is there room for them?"""
    folder = surroundings.results
    if not _can_write(folder):
        return Finding("fail", f"{folder} cannot be written", "change its rights, or set 'results' to another folder")
    free_gib = shutil.disk_usage(_existing(folder)).free / _GIB
    what = f"{free_gib:.1f} GiB free for {folder}"
    if free_gib < _MIN_DISK_GIB:
        return Finding("warn", what, "free some space, or set 'results' to a folder on a larger disk")
    return Finding("ok", what)


# ------------------------------------------------------------------------------------------------- the settings
def settings(surroundings: Surroundings) -> Finding:
    """Are the workflow file and its experiments valid?"""
    if surroundings.config is None:
        count = len(surroundings.problems)
        what = f"{surroundings.config_file}: {count} problem(s) in the settings, the first: {surroundings.problems[0]}"
        return Finding("fail", what, "run: manyscope validate")
    names = ", ".join(surroundings.config.experiments)
    return Finding("ok", f"{surroundings.config_file}: {len(surroundings.config.experiments)} experiment(s): {names}")


def site(surroundings: Surroundings) -> Finding:
    """Has this computer a file of its own paths and accounts?"""
    file = surroundings.site_file
    if file.is_file():
        return Finding("ok", f"{file} is there")
    return Finding("warn", f"{file} is not there: default folders are used", f"run: cp {SITE_TEMPLATE} {file}")


def weights(surroundings: Surroundings) -> Finding:
    """Can pretrained weights be kept?"""
    folder = surroundings.site.weights_path
    what, remedy = f"weights_path {folder}", f"change its rights, or set weights_path in {surroundings.site_file}"
    if folder.is_dir():
        if os.access(folder, os.W_OK):
            return Finding("ok", f"{what} is there")
        return Finding("warn", f"{what} is read-only: weights that are not in it cannot be fetched", remedy)
    if _can_write(folder):
        return Finding("ok", f"{what} is not there yet and will be made when it is needed")
    return Finding("fail", f"{what} is not there and cannot be made", remedy)


def tracking(surroundings: Surroundings) -> Finding:
    """Can MLflow record the trainings?"""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or surroundings.site.tracking_uri
    remedy = "curves are in train/history.parquet alone"
    if uri and uri.startswith(("http://", "https://")):
        shown, reason = re.sub(r"//[^/@]*@", "//", uri), _unreachable(f"{uri.rstrip('/')}/health")
        if reason:
            return Finding(
                "warn", f"MLflow server {shown} does not answer ({reason})", f"start it; until then {remedy}"
            )
        return Finding("ok", f"MLflow server {shown} answers")
    # Three slashes before a relative path, four before an absolute one.
    path = Path(re.sub(r"^sqlite:///|^file:(//)?", "", uri)) if uri else surroundings.results / "mlflow.db"
    if "://" in str(uri) and not str(uri).startswith(("sqlite:", "file:")):
        return Finding("ok", f"MLflow uses a database of kind {str(uri).partition(':')[0]}, which is not looked into")
    if _can_write(path):
        return Finding("ok", f"MLflow writes {path}")
    return Finding(
        "warn", f"MLflow cannot write {path}", f"change its rights, or set tracking_uri; until then {remedy}"
    )


def _unreachable(address: str) -> str:
    """Why nobody answers at an HTTP address; empty if somebody does."""
    try:
        urllib.request.urlopen(address, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return f"status {error.code}" if error.code >= 500 else ""
    except (OSError, ValueError) as error:
        return _first_line(error)
    return ""


# -------------------------------------------------------------------------------------------------- the cluster
def slurm(_: Surroundings) -> Finding:
    """Can jobs be submitted, and do the partitions that the profile names exist?"""
    if not shutil.which("sbatch"):
        return Finding("ok", "SLURM: not on a cluster (there is no sbatch)")
    try:
        answer = subprocess.run(
            ["sinfo", "-h", "-o", "%P"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        ).stdout
    except subprocess.TimeoutExpired:
        return Finding("fail", f"SLURM: sinfo gave no answer in {_TIMEOUT_S:g} s", "ask whether the controller is up")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = _first_line(getattr(error, "stderr", None) or error)
        return Finding("fail", f"SLURM: sbatch is here, but sinfo fails ({reason})", "ask whether the controller is up")
    there = {name.rstrip("*") for name in answer.split()}  # a star marks the default partition
    missing = sorted(set(profile_partitions(SLURM_PROFILE)) - there)
    if missing:
        return Finding(
            "fail",
            f"SLURM: {SLURM_PROFILE} names the partition(s) {', '.join(missing)}, which are not there",
            f"name one of these in it: {', '.join(sorted(there))}",
        )
    return Finding("ok", f"SLURM: partitions {', '.join(sorted(there))}")


def profile_partitions(profile: Path) -> Iterator[str]:
    """The partitions that the files of a Snakemake profile name, as a mapping's value or as `slurm_partition=NAME`."""
    for file in sorted(profile.glob("config*.yaml")):
        for key, value in leaves(read_layer(file).values):
            text = _PARTITION.match(str(value))
            if key[-1] == "slurm_partition" or text:
                yield from re.split(r"\s*,\s*", text.group(1) if text else str(value))


# ----------------------------------------------------------------------------------------------------- the rest
def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _can_write(path: Path) -> bool:
    """Whether a file or folder can be written, or made where it is not there yet."""
    place = _existing(path)
    return os.access(place, os.W_OK) and (place == path.absolute() or place.is_dir())


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


CHECKS: tuple[Callable[[Surroundings], Finding], ...] = (
    python,
    packages,
    processor,
    accelerator,
    disk,
    settings,
    site,
    weights,
    tracking,
    slurm,
)
