"""Every verb of the command line ends with 0 when it has done its work; a workflow cannot use one that ends with 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from manyscope.cli import main
from manyscope.settings.paths import ExperimentPaths
from workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chain")]

# Of other scopes, whose tests run them; and one that says of the machine what it finds.
ELSEWHERE = {"edit", "show", "doctor"}
ONE = "sim-000003"
VERBS: dict[str, tuple[str, ...]] = {
    "validate": (),
    "download": (),
    "preprocess": (),
    "train": (),
    "infer": ("--shard", "1", "--shards", "2"),
    "gather": ("--shards", "2"),
    "umap": (),
    "index": (),
    "evaluate": (),
    "explore": (),
    "search": ("--id", ONE),
    "lookup": (ONE,),
    "outliers": ("-n", "3"),
    "annotate": ("--list",),
    "export": (),
    "extend": (),
    "summary": ("galaxies",),
    "schema": ("--folder", "schemas"),
    "new": ("experiment", "another", "--scope", "galaxies"),
    "run": ("galaxies", "--cores", "1", "--until", "download"),
}
WITHOUT_EXPERIMENT = {"validate", "summary", "schema", "new", "run"}


@pytest.fixture(scope="module")
def place(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("verbs") / "work"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return Workspace(folder)


def test_no_verb_is_forgotten() -> None:
    assert VERBS.keys() | ELSEWHERE == main.commands.keys()


@pytest.mark.parametrize("verb", VERBS)
def test_success_is_0(place: Workspace, verb: str) -> None:
    named = () if verb in WITHOUT_EXPERIMENT else ("--experiment", "galaxies")
    done = place.here(verb, *VERBS[verb], *named)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("verb", "check"),
    [
        ("lookup", lambda out: json.loads(out)["object_id"] == ONE),
        ("outliers", lambda out: len(out.splitlines()) == 4),
        ("search", lambda out: ONE not in out and len(out.splitlines()) == 11),
    ],
)
def test_what_is_asked_for_is_printed(place: Workspace, verb: str, check: Callable[[str], bool]) -> None:
    done = place.here(verb, *VERBS[verb], "--experiment", "galaxies")
    assert check(done.stdout), done.output


def test_the_ranking_of_all_objects_is_a_file(place: Workspace, tmp_path: Path) -> None:
    assert place.here("outliers", "--experiment", "galaxies", "--csv", str(tmp_path / "all.csv")).exit_code == 0
    known = pl.read_parquet(ExperimentPaths.of(place.results, "galaxies").predictions)["object_id"]
    assert set(pl.read_csv(tmp_path / "all.csv")["object_id"]) == set(known)
