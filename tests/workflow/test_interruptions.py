"""kill -9 in every stage, then the same command again."""

from __future__ import annotations

import pytest

from manyscope.settings.paths import ExperimentPaths
from workspace import Workspace, kill_tree, make_workspace, wait_for_file, wait_for_stage

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("kill")]

STAGES = ("download", "preprocess", "train", "infer", "gather", "umap", "index", "evaluate", "explore")
LONGER = ("--set", "galaxies.train.epochs=24", "--set", "galaxies.train.check_every_epochs=1")
COMMAND = ("run", "--no-report", *LONGER)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> ExperimentPaths:
    workspace = make_workspace(tmp_path_factory.mktemp("undisturbed") / "work")
    workspace.manyscope(*COMMAND)
    return ExperimentPaths.of(workspace.results, "galaxies")


def test_killed_in_every_stage_ends_with_the_same_files(workspace: Workspace, undisturbed: ExperimentPaths) -> None:
    paths = ExperimentPaths.of(workspace.results, "galaxies")
    final = {"train": paths.model, "evaluate": paths.metrics, "explore": paths.page, "index": paths.audit}
    alive = set(STAGES)
    while alive:
        process = workspace.start(*COMMAND)
        running = wait_for_stage(process, alive)
        if not running:
            pytest.fail(f"the run ended before {alive} began:\n{process.communicate()[0]}")
        if "train" in running:
            # Late enough to have a checkpoint behind it, early enough to have training before it.
            wait_for_file(process, paths.resume, "*/last.ckpt")
        kill_tree(process)
        for stage in running & final.keys():
            assert not final[stage].exists(), f"{stage} had ended already"
        alive -= running
    last = workspace.manyscope(*COMMAND)
    assert "continuing from what it left" in last.stdout
    assert "training continues from its checkpoint at step" in paths.log("train").read_text()
    for name in ("model", "history", "predictions", "map", "metrics", "page"):
        assert getattr(paths, name).read_bytes() == getattr(undisturbed, name).read_bytes(), name
    leftovers = [*paths.root.rglob("*.partial"), *paths.root.rglob("*.old")]
    assert leftovers == []


def test_a_second_run_in_the_same_folder_is_refused(workspace: Workspace) -> None:
    first = workspace.start(*COMMAND)
    assert wait_for_stage(first, {"download"})
    second = workspace.manyscope(*COMMAND, check=False)
    assert second.returncode == 6
    assert "still working" in second.stderr
    assert "Traceback" not in second.stderr
    kill_tree(first)
