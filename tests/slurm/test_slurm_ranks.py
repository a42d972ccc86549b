"""Training over two nodes with two processes each, started by the profile."""

from __future__ import annotations

import re

import pytest

from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.metrics import read_metrics
from manyscope.tables.parquet import read_table
from submission import ClusterWorkspace, NewWorkspace, Submission

SAME = 1e-4
WANTED = "results/neutrinos/evaluate/metrics.json"
TWO_NODES = {"nodes": 2, "tasks_per_node": 2, "mpi": "srun", "gres": "'gpu:$MANYSCOPE_GPU_A100:2'"}


@pytest.fixture(scope="module")
def alone(new_workspace: NewWorkspace) -> ExperimentPaths:
    workspace = new_workspace("neutrinos")
    workspace.locally(WANTED)
    return workspace.paths("neutrinos")


@pytest.fixture(scope="module")
def together(new_workspace: NewWorkspace, alone: ExperimentPaths) -> ClusterWorkspace:
    workspace = new_workspace("neutrinos")
    workspace.adopt(alone, "neutrinos")
    model = str(workspace.paths("neutrinos").model.relative_to(workspace.folder))
    code = workspace.submit(model, profile=workspace.profile(train=TWO_NODES)).wait()
    assert code == 0, workspace.complaint()
    workspace.locally(WANTED, "--rerun-triggers", "mtime")
    return workspace


@pytest.fixture(scope="module")
def run(together: ClusterWorkspace) -> Submission:
    return together.submissions[0]


def test_four_processes_on_two_nodes_trained(together: ClusterWorkspace, run: Submission) -> None:
    [job] = run.jobs("train", "AllocTRES", "NNodes")
    assert job["State"] == "COMPLETED"
    assert job["NNodes"] == "2"
    assert "gres/gpu:a100=4" in job["AllocTRES"].split(",")
    assert len(run.jobs()) == 1
    log = together.paths("neutrinos").log("train").read_text()
    assert re.findall(r"(\d+) process\(es\)", log) == ["4"]


def test_losses_are_those_of_one_process(together: ClusterWorkspace, alone: ExperimentPaths) -> None:
    ours, theirs = read_table(together.paths("neutrinos").history), read_table(alone.history)
    assert ours.select("step", "epoch", "name").equals(theirs.select("step", "epoch", "name"))
    assert theirs["name"].str.ends_with("/loss").sum() >= 6
    difference = (ours["value"] - theirs["value"]).abs() / theirs["value"].abs().clip(lower_bound=1)
    assert difference.max() < SAME, ours.with_columns(difference.alias("difference")).sort("difference").tail(5)


def test_metrics_are_those_of_one_process(together: ClusterWorkspace, alone: ExperimentPaths) -> None:
    (_, ours), (_, theirs) = read_metrics(together.paths("neutrinos").metrics), read_metrics(alone.metrics)
    assert [(row.name, row.group) for row in ours] == [(row.name, row.group) for row in theirs]
    assert [row.value for row in ours] == pytest.approx([row.value for row in theirs], rel=SAME)
