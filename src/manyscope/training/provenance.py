"""Where a trained model came from: code, packages, settings and data."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import manyscope

_PACKAGES = (
    "manyscope",
    "torch",
    "pytorch-lightning",
    "numpy",
    "polars",
    "scikit-image",
    "sep",
    "umap-learn",
    "chromadb",
    "micro-sam",
    "torch-em",
    "transformers",
    "peft",
)


def settings_digest(values: dict[str, Any]) -> str:
    """SHA-256 of settings, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def git_state() -> dict[str, Any]:
    """Commit of the source tree that Manyscope runs from, and whether it was changed since; nulls outside git."""
    folder = Path(manyscope.__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(("git", "-C", str(folder), *words), capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "changed": bool(changed) if changed is not None else None}


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
