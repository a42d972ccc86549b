"""A catalog grows after the chain has run: `manyscope extend`, killed at every step, and Snakemake afterwards."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML

from manyscope.latent.index import open_index
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.predictions import read_predictions
from workspace import Workspace, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("extend")]

# A user's source: the numbers of simulated galaxies, one on each line of a file.
SOURCE = """
from pathlib import Path

import numpy as np
import polars as pl

from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.scopes.galaxies.simulate import BANDS, simulate
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.whole import whole_file


class Listed:
    def download(self, settings, raw):
        for number in map(int, Path("catalog.txt").read_text().split()):
            pixels, labels = raw / f"{number:04d}.npy", raw / f"{number:04d}.parquet"
            if not labels.exists():
                drawn, table = simulate(settings.seed, np.array([number]), settings.simulated)
                with whole_file(pixels) as partial, partial.open("wb") as file:
                    np.save(file, drawn)
                with whole_file(labels) as partial:
                    table.write_parquet(partial)
            yield ManifestEntry(pixels.name, "catalog.txt")
            yield ManifestEntry(labels.name, "catalog.txt")

    def cut(self, settings, raw, manifest):
        names = [name for name in manifest["path"] if name.endswith(".parquet")]
        table = pl.concat([pl.read_parquet(raw / name) for name in names])
        chunks = (np.load(raw / name.replace(".parquet", ".npy")) for name in names)
        return Cutouts(chunks, table.with_columns(group=pl.col("sample_id")), BANDS)
"""
OLD, GROWN = range(100, 300), [*range(90, 300), *range(320, 340)]
DUE = {"evaluate", "explore", "summary"}
EXTEND = ("extend", "--experiment", "galaxies")


def list_objects(workspace: Workspace, numbers: Any) -> None:
    (workspace.folder / "catalog.txt").write_text("\n".join(map(str, numbers)))


def paths_of(workspace: Workspace) -> ExperimentPaths:
    return ExperimentPaths.of(workspace.results, "galaxies")


def run_chain(workspace: Workspace) -> None:
    """As tests run it: every job has one thread."""
    workspace.snakemake("--profile", "workflow_profiles/local")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The chain of the old objects."""
    workspace = make_workspace(tmp_path_factory.mktemp("before") / "work")
    file = workspace.folder / "config/experiments/galaxies.yaml"
    yaml = YAML()
    values = yaml.load(file)
    values["download"]["source"] = "listed:Listed"
    values["umap"]["reducer"] = "tsne"
    yaml.dump(values, file)
    (workspace.folder / "listed.py").write_text(SOURCE)
    list_objects(workspace, OLD)
    run_chain(workspace)
    return workspace


def copied(workspace: Workspace, folder: Path) -> Workspace:
    shutil.copytree(workspace.folder, folder, symlinks=True)
    return Workspace(folder)


@pytest.fixture(scope="module")
def extended(before: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = copied(before, tmp_path_factory.mktemp("extended") / "work")
    list_objects(workspace, GROWN)
    said = workspace.manyscope(*EXTEND).stderr
    assert "30 samples join 200" in said
    return workspace


def test_snakemake_finds_nothing_stale_but_what_judges_and_shows(before: Workspace, extended: Workspace) -> None:
    assert extended.rules_to_run() == DUE
    assert paths_of(extended).model.read_bytes() == paths_of(before).model.read_bytes()
    run_chain(extended)
    assert extended.rules_to_run() == set()
    assert "nothing is new" in extended.manyscope(*EXTEND).stderr
    assert extended.rules_to_run() == set()


def content(paths: ExperimentPaths) -> dict[str, Any]:
    predictions = read_predictions(paths.predictions)
    ids = predictions["object_id"].to_list()
    with open_index(paths.index) as index:
        stored = index.count, index.vectors(ids).tobytes()
    return {
        "manifest": paths.manifest.read_bytes(), "samples": paths.samples.read_bytes(),
        "predictions": paths.predictions.read_bytes(), "index": stored,
        "map": pl.read_parquet(paths.map)["object_id"].to_list(),
    }  # fmt: skip


def test_the_content_is_that_of_a_full_rebuild_with_the_same_weights(
    before: Workspace, extended: Workspace, tmp_path: Path
) -> None:
    rebuilt = copied(before, tmp_path / "work")
    shutil.rmtree(rebuilt.results)
    list_objects(rebuilt, GROWN)
    paths = paths_of(rebuilt)
    for stage in ("download", "preprocess"):
        assert rebuilt.here(stage, "--experiment", "galaxies").exit_code == 0
    shutil.copytree(paths_of(before).train, paths.train)
    for shard in range(2):
        rebuilt.here("infer", "--experiment", "galaxies", "--shards", "2", "--shard", str(shard))
    rebuilt.here("gather", "--experiment", "galaxies", "--shards", "2")
    for stage in ("umap", "index"):
        assert rebuilt.here(stage, "--experiment", "galaxies").exit_code == 0
    assert content(paths) == content(paths_of(extended))
    old, now = (pl.read_parquet(paths_of(workspace).map) for workspace in (before, extended))
    assert now.join(old, on="object_id", how="semi").equals(old)
    assert len(now) == len(GROWN) > len(old) == len(OLD)


KILLED = """
import os, signal, sys
from importlib import import_module
module, name, call = sys.argv[1], sys.argv[2], int(sys.argv[3])
module = import_module(module)
original = getattr(module, name)

def killed(*args, **options):
    global call
    call -= 1
    if not call:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **options)

setattr(module, name, killed)
from manyscope.cli import main
main(["extend", "--experiment", "galaxies"])
"""


def test_killed_at_every_step_it_ends_the_same(before: Workspace, extended: Workspace, tmp_path: Path) -> None:
    workspace = copied(before, tmp_path / "work")
    list_objects(workspace, GROWN)
    extension = "manyscope.commands.extension"
    steps = [
        ("manyscope.stages.preprocess", "run", 1), (extension, "write_table", 1), (extension, "whole_folder", 1),
        (extension, "_touch", 1), (extension, "_extend_shard", 2), ("manyscope.stages.gather", "run", 1),
        ("manyscope.stages.umap", "save_figure", 1), ("manyscope.latent.index", "_audit_again", 1),
        (extension, "_touch", 4),
    ]  # fmt: skip
    for module, name, call in steps:
        command = [sys.executable, "-c", KILLED, module, name, str(call)]
        done = subprocess.run(
            command, cwd=workspace.folder, env=workspace.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == -9, (name, done.stderr)
    assert "finishing the extension that was interrupted" in workspace.manyscope(*EXTEND).stderr
    assert content(paths_of(workspace)) == content(paths_of(extended))
    assert pl.read_parquet(paths_of(workspace).map).equals(pl.read_parquet(paths_of(extended).map))
    assert workspace.rules_to_run() == DUE
    root = paths_of(workspace).root
    assert not [*root.rglob("*.partial"), *root.rglob("*.old"), *root.glob(".extend")]


def test_a_catalog_that_is_a_setting_is_recorded_as_read(before: Workspace, tmp_path: Path) -> None:
    """As when the source is `simulated` and its number grows: without a record Snakemake would train again."""
    workspace = copied(before, tmp_path / "work")
    list_objects(workspace, GROWN)
    changed = ("--config", "set=[galaxies.download.simulated.count=241]")
    assert {"download", "preprocess", "train"} <= workspace.rules_to_run(*changed)
    workspace.manyscope(*EXTEND, "--set", "download.simulated.count=241")
    assert workspace.rules_to_run(*changed) == DUE


def test_what_cannot_be_extended_is_said_in_one_line(before: Workspace, tmp_path: Path) -> None:
    workspace = copied(before, tmp_path / "work")
    list_objects(workspace, GROWN)
    lock = paths_of(workspace).root / ".locks" / "umap"
    code = "from pathlib import Path; from manyscope.tables.whole import sole_worker; import time\n"
    code += f"with sole_worker(Path({str(lock)!r})): print('holds', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=workspace.environment())
    assert holder.stdout is not None
    holder.stdout.readline()
    busy = workspace.here(*EXTEND)
    holder.kill()
    holder.wait()
    assert busy.exit_code == 6
    assert "still working" in busy.stderr
    gone = workspace.here(*EXTEND, "--results", "elsewhere")
    assert gone.exit_code == 3
    assert gone.stderr.splitlines() == [
        "error: elsewhere/galaxies/train/model.ckpt: nothing was trained yet; manyscope run galaxies"
    ]
    assert not (workspace.folder / "elsewhere").exists()
