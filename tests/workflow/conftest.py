"""Real Snakemake on a tiny experiment, in folders of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from workspace import Workspace, kill_tree, make_workspace


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One undisturbed run of the whole chain; tests that change anything use a copy."""
    workspace = make_workspace(tmp_path_factory.mktemp("finished") / "work")
    workspace.snakemake("--profile", "workflow_profiles/local")
    return workspace


@pytest.fixture
def copy_of_finished(finished: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(finished.folder, tmp_path / "work", symlinks=True)
    return Workspace(tmp_path / "work")


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """An empty folder to run in; whatever still runs at the end is killed."""
    made = make_workspace(tmp_path / "work")
    yield made
    for process in made.processes:
        if process.poll() is None:
            kill_tree(process)
