"""Checks of the machine: Python, packages, processor, GPU, disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import warnings
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from manyscope.commands.doctor.finding import Finding, Surroundings, first_line
from manyscope.commands.doctor.places import can_write, existing

_PYTHON = (3, 11)
_MIN_MEMORY_GIB = 4.0
_MIN_DISK_GIB = 5.0
_GIB = 2**30


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
        return Finding("fail", f"torch cannot be imported ({first_line(error)})", "install torch again")
    what = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'not built in'}"
    if names:
        return Finding("ok", f"{what}, {len(names)} GPU(s): {', '.join(sorted(set(names)))}")
    if shutil.which("nvidia-smi"):
        return Finding(
            "warn", f"{what}: CPU only, though nvidia-smi is here", "install a torch build that fits the GPU driver"
        )
    return Finding("ok", f"{what}: CPU only")


def hash_grid(_: Surroundings) -> Finding:
    """What computes the hash grids of scenes?"""
    try:
        import torch

        from manyscope.nn.hash_grid import backend

        on_gpu = torch.cuda.is_available()
        chosen = backend("cuda" if on_gpu else "cpu")
    except (ImportError, OSError):
        return Finding("warn", "hash grids: nothing computes them without torch", "install torch again")
    if chosen == "tinycudann":
        return Finding("ok", "hash grids: tinycudann, on the GPU")
    if not on_gpu:
        return Finding("ok", "hash grids: PyTorch, on the CPU")
    remedy = "for faster ones build tinycudann as envs/scenes-cuda.yaml says"
    return Finding("warn", "hash grids: PyTorch, on the GPU, as tinycudann cannot be imported", remedy)


def disk(surroundings: Surroundings) -> Finding:
    """Can results be written, and is there room for them?"""
    folder = surroundings.results
    if not can_write(folder):
        return Finding("fail", f"{folder} cannot be written", "change its rights, or set 'results' to another folder")
    free_gib = shutil.disk_usage(existing(folder)).free / _GIB
    what = f"{free_gib:.1f} GiB free for {folder}"
    if free_gib < _MIN_DISK_GIB:
        return Finding("warn", what, "free some space, or set 'results' to a folder on a larger disk")
    return Finding("ok", what)
