"""The whole chain of two scopes through `snakemake --profile slurm` on a real cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster import ACCOUNT
from submission import ClusterWorkspace, NewWorkspace, Submission

EXPERIMENTS = ("galaxies", "neutrinos")
SHARDS = 3


@pytest.fixture(scope="module")
def local(new_workspace: NewWorkspace) -> ClusterWorkspace:
    workspace = new_workspace(*EXPERIMENTS, shards=SHARDS)
    workspace.locally()
    return workspace


@pytest.fixture(scope="module")
def submitted(new_workspace: NewWorkspace) -> ClusterWorkspace:
    workspace = new_workspace(*EXPERIMENTS, shards=SHARDS)
    code = workspace.submit().wait()
    assert code == 0, workspace.complaint()
    return workspace


@pytest.fixture(scope="module")
def run(submitted: ClusterWorkspace) -> Submission:
    return submitted.submissions[0]


def test_every_job_ended_well_at_the_first_try(run: Submission) -> None:
    jobs = run.jobs("", "Account")
    assert len({job["JobID"] for job in jobs}) == len(jobs) == len(EXPERIMENTS) * (3 + SHARDS)
    assert {job["State"] for job in jobs} == {"COMPLETED"}
    assert {job["Account"] for job in jobs} == {ACCOUNT}


def test_training_and_inference_asked_for_an_a100(run: Submission) -> None:
    train, infer = run.jobs("train"), run.jobs("infer")
    assert sorted(job["Comment"] for job in train) == [f"rule_train_wildcards_{name}" for name in sorted(EXPERIMENTS)]
    for job in train + infer:
        assert job["Partition"] == "a100"
        assert "gres/gpu:a100=1" in job["ReqTRES"].split(",")


def test_the_shards_of_an_inference_are_one_submission(run: Submission) -> None:
    infer = run.jobs("infer")
    assert len(infer) == len(EXPERIMENTS) * SHARDS
    assert all(re.fullmatch(r"\d+_\d+", job["JobID"]) for job in infer)
    # One for each experiment, or one for all if their trainings ended together.
    assert len({job["JobID"].partition("_")[0] for job in infer}) <= len(EXPERIMENTS)


def test_short_stages_share_jobs(run: Submission) -> None:
    light = [job for job in run.jobs() if "rule_train_" not in job["Comment"] and "rule_infer_" not in job["Comment"]]
    expected = ["rule_finish_evaluate_explore_gather_index_umap", "rule_prepare_download_preprocess"]
    assert sorted(job["Comment"] for job in light) == sorted(expected * len(EXPERIMENTS))
    assert all(job["Partition"] == "cpu" and "gpu" not in job["ReqTRES"] for job in light)
    assert "localrule summary:" in run.text


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("name", ["model", "history", "predictions", "map", "metrics"])
def test_files_are_those_of_a_local_run(
    name: str, experiment: str, submitted: ClusterWorkspace, local: ClusterWorkspace
) -> None:
    ours, theirs = submitted.paths(experiment), local.paths(experiment)
    assert getattr(ours, name).read_bytes() == getattr(theirs, name).read_bytes()


@pytest.mark.parametrize("profile", ["slurm", "workflow_profiles/local"])
def test_nothing_is_left_to_do(profile: str, submitted: ClusterWorkspace) -> None:
    assert submitted.rules_to_run("--profile", profile) == set()


def record_submissions(workspace: ClusterWorkspace, folder: Path) -> Path:
    """Put an `sbatch` first that submits nothing and writes down how it is called, a call in each line of a file."""
    calls = folder / "calls"
    recorder = folder / "bin/sbatch"
    recorder.parent.mkdir()
    recorder.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {calls}\nexit 1\n')
    recorder.chmod(0o755)
    workspace.variables["PATH"] = f"{recorder.parent}:{workspace.environment()['PATH']}"
    return calls


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_names_of_the_site_file_reach_sbatch(new_workspace: NewWorkspace, tmp_path: Path) -> None:
    workspace = new_workspace(*EXPERIMENTS, shards=SHARDS)
    untrained, trained = map(workspace.paths, EXPERIMENTS)
    touch(untrained.manifest, untrained.samples, trained.manifest, trained.samples, trained.model)
    workspace.site(
        slurm_account=ACCOUNT,
        slurm_partitions={"cpu": "normal", "a100": "gpu-long"},
        slurm_gpus={"a100": "nvidia_a100"},
    )
    written = record_submissions(workspace, tmp_path)
    wanted = [str(file.relative_to(workspace.folder)) for file in (untrained.model, *map(trained.shard, range(SHARDS)))]
    assert workspace.submit("--retries", "0", "--", *wanted).wait(120) != 0
    calls = [call.partition("--wrap")[0] for call in written.read_text().splitlines()]
    rules = [re.findall(r"--comment rule_(\w+?)_wildcards", call) for call in calls]
    assert sorted(rules) == [["infer"], ["train"]], workspace.complaint()
    for call in calls:
        assert "-p gpu-long " in call
        assert f"-A {ACCOUNT} " in call
        assert re.search(r"--(gres=gpu:|gpus=)nvidia_a100:1\b", call)
        assert "$" not in call


def test_however_many_shards_are_all_submitted(new_workspace: NewWorkspace, tmp_path: Path) -> None:
    """The executor keeps an array back until the rest is ready too, and jobs in the queue for a slot never are."""
    shards = 200
    workspace = new_workspace("galaxies", shards=shards)
    paths = workspace.paths("galaxies")
    touch(paths.manifest, paths.samples, paths.model)
    written = record_submissions(workspace, tmp_path)
    wanted = [str(paths.shard(number).relative_to(workspace.folder)) for number in range(shards)]
    run = workspace.submit("--retries", "0", "--", *wanted)
    assert run.wait(180) != 0
    ranges = re.findall(r"--array=(\d+)-(\d+)", written.read_text())
    assert sum(int(last) - int(first) + 1 for first, last in ranges) == shards
