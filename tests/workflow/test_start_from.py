"""An experiment that starts from the trained weights of another, through real Snakemake."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.manifest import file_digest
from workspace import Workspace, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("start")]

FIRST, SECOND = "galaxies", "tuned"
OTHER_FIRST = ("--config", f"set=[{FIRST}.train.seed=5]")
OF_ANOTHER_MODEL = ("--config", f"set=[{FIRST}.model.args.latent=8]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The second experiment, asked for alone."""
    workspace = make_workspace(tmp_path_factory.mktemp("start") / "work", experiments=(SECOND,))
    folder = workspace.folder / "config/experiments"
    first = (folder / f"{FIRST}.yaml").read_text()
    assert first.count("\ntrain:\n") == 1
    second = first.replace("\ntrain:\n", f"\ntrain:\n  start_from: {FIRST}\n")
    (folder / f"{SECOND}.yaml").write_text(second)
    workspace.snakemake(str(paths(workspace, SECOND).model.relative_to(workspace.folder)))
    return workspace


@pytest.fixture
def copy(trained: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(trained.folder, tmp_path / "work", symlinks=True)
    return Workspace(tmp_path / "work")


def paths(workspace: Workspace, experiment: str) -> ExperimentPaths:
    return ExperimentPaths.of(workspace.results, experiment)


def jobs(workspace: Workspace, *arguments: str) -> set[tuple[str, str]]:
    """Rule and experiment of the jobs that a dry run lists, up to the training of the second experiment."""
    target = str(paths(workspace, SECOND).model.relative_to(workspace.folder))
    text = workspace.snakemake("--dry-run", target, *arguments).stdout
    return set(re.findall(r"^rule (\w+):\n(?:    .*\n)*?    wildcards: experiment=(\w+)", text, re.MULTILINE))


def test_the_first_is_trained_before_the_second_which_starts_from_it(trained: Workspace) -> None:
    first, second = paths(trained, FIRST), paths(trained, SECOND)
    record = json.loads(second.run.read_text())
    assert (record["start_from"], record["start_sha256"]) == (FIRST, file_digest(first.model))
    assert f"weights of results/{FIRST}/train/model.ckpt to start from" in second.log("train").read_text()
    assert json.loads(first.run.read_text())["start_from"] is None
    assert first.model.stat().st_mtime_ns < second.model.stat().st_mtime_ns
    assert second.model.read_bytes() != first.model.read_bytes()


def test_only_what_was_asked_for_is_carried_to_the_end(trained: Workspace) -> None:
    text = trained.snakemake("--dry-run").stdout
    ended = set(re.findall(r"^    output: results/(\w+)/(?:evaluate|explore|index)/", text, re.MULTILINE))
    assert ended == {SECOND}
    commands = trained.snakemake("--dry-run", "--printshellcmds").stdout
    (summary,) = re.findall(r"manyscope (summary .*) > ", commands)
    words = shlex.split(summary)
    assert words[-1] == SECOND
    assert FIRST not in words


def test_a_second_run_has_nothing_to_do(trained: Workspace) -> None:
    assert jobs(trained) == set()


def test_a_changed_first_model_is_trained_again_and_so_is_the_second(copy: Workspace) -> None:
    assert jobs(copy, *OTHER_FIRST) == {("train", FIRST), ("train", SECOND)}
    before = paths(copy, SECOND).model.read_bytes()
    copy.snakemake(str(paths(copy, SECOND).model.relative_to(copy.folder)), *OTHER_FIRST)
    record = json.loads(paths(copy, SECOND).run.read_text())
    assert record["start_sha256"] == file_digest(paths(copy, FIRST).model)
    assert record["continued_from_step"] is None
    assert paths(copy, SECOND).model.read_bytes() != before
    assert jobs(copy, *OTHER_FIRST) == set()


def test_a_start_that_is_taken_away_trains_the_second_alone(trained: Workspace) -> None:
    assert jobs(trained, "--config", f"set=[{SECOND}.train.start_from=null]") == {("train", SECOND)}


def test_the_verb_of_the_stage_finds_the_weights_or_says_what_is_missing(copy: Workspace) -> None:
    first, second = paths(copy, FIRST), paths(copy, SECOND)
    second.run.unlink()
    copy.manyscope("train", "--experiment", SECOND)
    assert json.loads(second.run.read_text())["start_sha256"] == file_digest(first.model)
    before = second.model.read_bytes()
    first.model.unlink()
    failed = copy.manyscope("train", "--experiment", SECOND, check=False)
    assert failed.returncode == 4
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert f"results/{FIRST}/train/model.ckpt: the weights to start from (train.start_from) are missing" in line
    assert f"run the stage train of experiment {FIRST!r} first" in line
    assert second.model.read_bytes() == before


def test_weights_of_another_shape_name_the_tensor(copy: Workspace) -> None:
    done = copy.snakemake(str(paths(copy, SECOND).model.relative_to(copy.folder)), *OF_ANOTHER_MODEL, check=False)
    assert done.returncode != 0
    log = paths(copy, SECOND).log("train").read_text()
    assert re.search(r"error: .*tensor '[\w.]+' is \(.*give both experiments the same model", log)
    assert "Traceback" not in log
