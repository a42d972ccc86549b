"""One run in which all happens to trainings that can happen to jobs on a cluster, beside one that cannot succeed.

All at once, since waiting for SLURM and Snakemake to notice is most of the time. Each training is held at its first
checkpoint until its fault has come, so that neither a fast nor a slow machine makes it miss.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from cluster import ACCOUNT, NODES, Cluster
from manyscope.settings.paths import ExperimentPaths
from submission import ClusterWorkspace, NewWorkspace, Submission, wait_until
from workspace import Workspace

LONGER = "  epochs: 40\n  check_every_epochs: 1\n  tracker: none\n"
# What SLURM records of each training, and whether it is the same job that starts again.
REQUEUED, RESUBMITTED = True, False
FAULTS = {
    "cancelled": ("CANCELLED", RESUBMITTED),
    "warned": ("FAILED", RESUBMITTED),
    "timed_out": ("TIMEOUT", RESUBMITTED),
    "preempted": ("PREEMPTED", REQUEUED),
    "node_lost": ("NODE_FAIL", REQUEUED),
}
# Of the eight GPUs of the cluster node_lost takes all of one node, so that only it is lost there, and the others take
# all of the other one, so that whoever comes next must push one out.
GPUS = "'gpu:$MANYSCOPE_GPU_A100:4' if wildcards.experiment == 'node_lost' else 'gpu:$MANYSCOPE_GPU_A100:1'"
WARNING = "'' if wildcards.experiment == 'timed_out' else '--signal=USR1@600'"  # the latter as in the profile
PARTITION = "'$MANYSCOPE_PARTITION_A40' if wildcards.experiment == 'preempted' else '$MANYSCOPE_PARTITION_A100'"

ALWAYS_FAILS = """
from pathlib import Path
from manyscope.errors import ManyscopeError

class Silent:
    def download(self, settings, raw):
        with Path(__file__).with_name("asked").open("a") as file:
            file.write("once\\n")
        raise ManyscopeError("this source never answers")
    def files(self, settings, raw, manifest):
        return []
"""
BROKEN = 'scope: neutrinos\ndownload: {source: "always_fails:Silent"}\n'


def write_experiments(workspace: Workspace, *names: str) -> None:
    folder = workspace.folder / "config/experiments"
    tiny = (folder / "galaxies.yaml").read_text()
    longer = tiny.replace("  epochs: 3\n  check_every_epochs: 1\n", LONGER)
    assert longer != tiny
    for name in names:
        (folder / f"{name}.yaml").write_text(longer)


@pytest.fixture(scope="module")
def undisturbed(new_workspace: NewWorkspace) -> ExperimentPaths:
    workspace = new_workspace("undisturbed")
    write_experiments(workspace, "undisturbed")
    workspace.locally("results/undisturbed/evaluate/metrics.json")
    return workspace.paths("undisturbed")


@pytest.fixture(scope="module")
def disturbed(new_workspace: NewWorkspace, cluster: Cluster, undisturbed: ExperimentPaths) -> ClusterWorkspace:
    workspace = new_workspace(*FAULTS, "broken")
    write_experiments(workspace, *FAULTS)
    (workspace.folder / "config/experiments/broken.yaml").write_text(BROKEN)
    (workspace.folder / "always_fails.py").write_text(ALWAYS_FAILS)
    workspace.variables["PYTHONPATH"] = str(workspace.folder)
    workspace.site(slurm_account=ACCOUNT, slurm_partitions={"a40": "scavenge"})
    workspace.adopt(undisturbed, *FAULTS)
    train = {"gres": GPUS, "slurm_partition": PARTITION, "slurm_extra": WARNING}
    wanted = [f"results/{name}/evaluate/metrics.json" for name in [*FAULTS, "broken"]]
    run = workspace.submit(*wanted, profile=workspace.profile(train=train))
    workspace.hold([*FAULTS])

    def job(name: str) -> dict[str, str]:
        return run.trainings(name)[0]

    def ended(name: str) -> bool:
        return job(name)["State"] not in ("RUNNING", "PENDING")

    def warned() -> bool:
        if workspace.has_waiting("warned", signal.SIGUSR1):
            workspace.release("warned")
        return ended("warned")

    push = ("sbatch", "-A", ACCOUNT, "-p", "a100", "--gres=gpu:a100:1", "-o", "/dev/null", "--wrap", "true")
    cluster.run(*push)
    wait_until(lambda: ended("preempted"), "the preemption")
    cluster.run("scancel", job("cancelled")["JobID"])
    for name, minutes in {"timed_out": 1, "warned": 10}.items():
        cluster.run("scontrol", "update", f"JobId={job(name)['JobID']}", f"TimeLimit={minutes}")
    node = job("node_lost")["NodeList"]
    cluster.fail_node(node)
    try:
        wait_until(warned, "the signal before the time limit")
        wait_until(lambda: ended("node_lost"), "SLURM notices that a node is lost")
        run.wait()
    finally:
        cluster.start_node(node)
    return workspace


@pytest.fixture(scope="module")
def run(disturbed: ClusterWorkspace) -> Submission:
    return disturbed.submissions[0]


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_came_and_the_training_ran_once_more(name: str, run: Submission) -> None:
    fault, requeued = FAULTS[name]
    jobs = run.trainings(name)
    *before, last = [job["State"].split()[0] for job in jobs]  # "CANCELLED by 0"
    said = run.account_of(name)
    assert set(before) == {fault}, said  # more than once if other trainings pushed this one out again
    assert last == "COMPLETED", said
    assert len({job["JobID"] for job in jobs}) == (1 if requeued else 2)


@pytest.mark.parametrize("name", FAULTS)
def test_training_continued_to_the_same_end(
    name: str, disturbed: ClusterWorkspace, undisturbed: ExperimentPaths
) -> None:
    paths = disturbed.paths(name)
    assert "training continues from its checkpoint at step" in paths.log("train").read_text()
    assert json.loads(paths.run.read_text())["continued_from_step"] > 0
    assert paths.model.read_bytes() == undisturbed.model.read_bytes()
    assert paths.history.read_bytes() == undisturbed.history.read_bytes()
    assert metrics(paths) == metrics(undisturbed)


def metrics(paths: ExperimentPaths) -> dict[str, Any]:
    return {**json.loads(paths.metrics.read_text()), "experiment": None}


def test_another_node_took_over(run: Submission) -> None:
    first, second = run.trainings("node_lost")
    assert {first["NodeList"], second["NodeList"]} == set(NODES)


def test_preempted_training_ran_where_the_site_file_sends_it(run: Submission) -> None:
    assert {job["Partition"] for job in run.trainings("preempted")} == {"scavenge"}


def test_a_failing_rule_is_tried_as_often_as_the_profile_says(run: Submission, disturbed: ClusterWorkspace) -> None:
    assert [job["State"] for job in run.jobs("prepare")] == ["FAILED"] * 3
    assert (disturbed.folder / "asked").read_text().count("once") == 3
    assert run.process.returncode != 0


def test_the_log_of_a_failing_rule_is_named(run: Submission, disturbed: ClusterWorkspace) -> None:
    log = disturbed.paths("broken").log("download")
    assert "this source never answers" in log.read_text()
    assert str(log.relative_to(disturbed.folder)) in run.text[run.text.index("Error in") :]


def test_no_other_job_was_repeated(run: Submission) -> None:
    others = [*run.jobs("infer"), *run.jobs("finish")]
    assert {job["State"] for job in others} == {"COMPLETED"}
    assert len({job["JobID"] for job in others}) == len(others)


def test_no_temporary_file_is_left(disturbed: ClusterWorkspace) -> None:
    assert [*disturbed.results.rglob("*.partial"), *disturbed.results.rglob("*.old")] == []
