"""Bad images and labels of one's own, from the shell: each is named in a line, and nothing half-written is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from manyscope.settings.paths import ExperimentPaths
from workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("cells")]

SETTINGS, DATA, MISSING = 2, 3, 5  # exit codes
EXPERIMENT = """
scope: cells
title: Images of a user
download:
  source: folder
  folder: {images: own/images, labels: own/labels, unlabelled: own/more}
model: {name: tiny, patch_px: 128, decoder_features: 8}
"""
Change = Callable[[Path, np.ndarray, np.ndarray], None]


def rgb(own: Path, image: np.ndarray, labels: np.ndarray) -> None:
    tifffile.imwrite(own / "images/rgb.tif", np.stack([image // 256] * 3, -1).astype(np.uint8), photometric="rgb")
    tifffile.imwrite(own / "labels/rgb.tif", labels)


def size(own: Path, image: np.ndarray, labels: np.ndarray) -> None:
    tifffile.imwrite(own / "images/size.tif", image)
    tifffile.imwrite(own / "labels/size.tif", labels[:-3])


def blank(own: Path, image: np.ndarray, labels: np.ndarray) -> None:
    tifffile.imwrite(own / "images/blank.tif", image)
    tifffile.imwrite(own / "labels/blank.tif", np.zeros_like(labels))


def floats(own: Path, image: np.ndarray, labels: np.ndarray) -> None:
    tifffile.imwrite(own / "images/floats.tif", image)
    tifffile.imwrite(own / "labels/floats.tif", labels.astype(np.float32))


def stack(own: Path, image: np.ndarray, labels: np.ndarray) -> None:
    tifffile.imwrite(own / "images/stack.tif", np.stack([image] * 5), metadata={"axes": "ZYX"})
    tifffile.imwrite(own / "labels/stack.tif", labels)


def corrupt(own: Path, image: np.ndarray, labels: np.ndarray) -> None:
    file = own / "images/corrupt.tif"
    tifffile.imwrite(file, image)
    file.write_bytes(file.read_bytes()[:300])
    tifffile.imwrite(own / "labels/corrupt.tif", labels)


def alone(own: Path, image: np.ndarray, labels: np.ndarray) -> None:
    tifffile.imwrite(own / "images/alone.tif", image)


# What is wrong with the files, and what the line about it says.
BAD: dict[Change, tuple[str, ...]] = {
    rgb: ("own/images/rgb.tif: the image has 3 channels", "set download.folder.channel"),
    size: ("own/labels/size.tif: the labels have 64 x 61 px, their image has 64 x 64 px", "the same width"),
    blank: ("own/labels/blank.tif: the labels hold nothing but background", "move it to the folder", "unlabelled"),
    floats: ("own/labels/floats.tif: the labels are of type float32", "save them as uint16"),
    stack: ("own/images/stack.tif: this is a stack with the axes ZYX", "save each plane"),
    corrupt: ("own/images/corrupt.tif: the image cannot be decoded", "copy it again"),
    alone: ("own/labels: unpaired: 1 images without labels (alone)", "add or rename the missing ones", "unlabelled"),
}


@pytest.fixture
def own(workspace: Workspace) -> Path:
    """Five good images with labels and one without."""
    folder = workspace.folder / "own"
    for name in ("images", "labels", "more"):
        (folder / name).mkdir(parents=True)
    for number in range(5):
        image, labels = drawn(number)
        tifffile.imwrite(folder / f"images/good{number}.tif", image)
        tifffile.imwrite(folder / f"labels/good{number}.tif", labels)
    tifffile.imwrite(folder / "more/more.tif", drawn(9)[0])
    (workspace.folder / "config/experiments/mine.yaml").write_text(EXPERIMENT)
    return folder


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four dark squares in noise, 64 x 64 px uint16, and their labels."""
    labels = np.zeros((64, 64), np.uint16)
    for number, (y, x) in enumerate(((4, 4), (4, 40), (36, 8), (36, 40)), 1):
        labels[y : y + 16, x : x + 16] = number
    noise = np.random.default_rng(seed).normal(0, 300, labels.shape)
    return (np.where(labels, 9_000, 20_000) + noise).astype(np.uint16), labels


def manyscope(workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = workspace.manyscope(*arguments, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def problems(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in (done.stdout + done.stderr).splitlines() if "download.folder: " in line]


def results(workspace: Workspace) -> list[str]:
    """Every file that the stages left, but for logs and locks."""
    notes = ("logs", "benchmarks", ".locks")
    files = (file.relative_to(workspace.results) for file in workspace.results.rglob("*") if not file.is_dir())
    return sorted(str(file) for file in files if not set(notes) & set(file.parts))


def paths(workspace: Workspace) -> ExperimentPaths:
    return ExperimentPaths.of(workspace.results, "mine")


def test_validate_names_every_bad_input_at_once(workspace: Workspace, own: Path) -> None:
    done = manyscope(workspace, "validate", "mine")
    assert done.returncode == 0, done.stderr
    assert problems(done) == []
    for change in BAD:
        change(own, *drawn(1))
    done = manyscope(workspace, "validate", "mine")
    assert done.returncode == SETTINGS
    found = problems(done)
    assert len(found) == len(BAD), found
    for words in BAD.values():
        assert [line for line in found if all(word in line for word in words)], (words, found)
    assert not workspace.results.exists()


@pytest.mark.parametrize("change", BAD, ids=lambda change: change.__name__)
def test_a_download_refuses_each_and_leaves_nothing(workspace: Workspace, own: Path, change: Change) -> None:
    change(own, *drawn(1))
    done = manyscope(workspace, "download", "--experiment", "mine")
    assert done.returncode == DATA
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    for word in BAD[change]:
        assert word in last
    assert results(workspace) == []


@pytest.mark.parametrize("change", [c for c in BAD if c is not alone], ids=lambda change: change.__name__)
def test_files_that_go_bad_after_the_download_stop_the_preparation(
    workspace: Workspace, own: Path, change: Change
) -> None:
    """The manifest is written anew, as if the files had been bad and unnoticed from the start."""
    from manyscope.tables.manifest import ManifestEntry, describe
    from manyscope.tables.parquet import write_table

    manyscope(workspace, "download", "--experiment", "mine")
    change(own, *drawn(1))
    name = change.__name__
    for kind in ("images", "labels"):
        (paths(workspace).raw / kind / f"{name}.tif").symlink_to(own / kind / f"{name}.tif")
    files = sorted(paths(workspace).raw.rglob("*.tif"))
    entries = [ManifestEntry(str(file.relative_to(paths(workspace).raw)), "a test") for file in files]
    write_table(paths(workspace).manifest, describe(paths(workspace).raw, entries))
    before = results(workspace)
    done = manyscope(workspace, "preprocess", "--experiment", "mine")
    assert done.returncode == DATA
    last = done.stderr.splitlines()[-1]
    file, _, found = BAD[change][0].removeprefix("own/").partition(": ")
    assert f"raw/{file}: {found}" in last
    assert results(workspace) == before
    assert not paths(workspace).prepared.exists()


def test_a_pair_that_loses_an_image_after_the_download_stops_the_preparation(workspace: Workspace, own: Path) -> None:
    manyscope(workspace, "download", "--experiment", "mine")
    (own / "images/good1.tif").unlink()
    before = results(workspace)
    done = manyscope(workspace, "preprocess", "--experiment", "mine")
    assert done.returncode == DATA
    assert "raw/images/good1.tif: the file is missing; run the stage download again" in done.stderr.splitlines()[-1]
    assert results(workspace) == before
    assert not paths(workspace).prepared.exists()


def test_good_files_are_prepared_beside_those_without_labels(workspace: Workspace, own: Path) -> None:
    import polars as pl

    for stage in ("download", "preprocess"):
        done = manyscope(workspace, stage, "--experiment", "mine")
        assert done.returncode == 0, done.stderr
    samples = pl.read_parquet(paths(workspace).samples)
    assert samples.filter(pl.col("split") == "unlabelled")["sample_id"].to_list() == ["more"]
    assert len(samples) == 6


# ------------------------------------------------------------------------------------------ without the extra
WITHOUT = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None  # as if it were not installed
"""
SHELL = WITHOUT + "from manyscope.cli import main; main()"
DIGESTS = (
    WITHOUT + "from manyscope.settings import load_config; c = load_config(); c.settings('cells');"
    "print(c.code_digest('cells', 'train'), 'segment_anything' in sys.modules and 'torch' in sys.modules)"
)
ALL = "bioimage_cpp,imagecodecs,micro_sam,segment_anything,tifffile,torch_em,torchvision,trackastra,xxhash,zarr"


def without(
    workspace: Workspace, packages: str, *arguments: str, program: str = SHELL
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, packages, *arguments],
        cwd=workspace.folder, env=workspace.environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize("packages", [ALL, "tifffile", "micro_sam"])
def test_without_the_extra_every_stage_says_what_to_install(workspace: Workspace, own: Path, packages: str) -> None:
    for stage in ("download", "preprocess", "train", "infer", "evaluate", "explore"):
        before = results(workspace)
        done = without(workspace, packages, stage, "--experiment", "mine")
        assert done.returncode == MISSING, done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: scope: the scope 'cells' needs packages that are not installed: ")
        assert all(package in done.stderr for package in packages.split(","))
        assert "install the extra 'cells': pip install 'manyscope[cells]'" in done.stderr
        assert results(workspace) == before
        if stage in ("download", "preprocess"):  # of which the later ones need the files
            manyscope(workspace, stage, "--experiment", "mine")


def test_without_the_extra_validate_says_what_to_install_and_other_scopes_work(workspace: Workspace) -> None:
    done = without(workspace, ALL, "validate", "cells", "galaxies")
    assert done.returncode == SETTINGS
    lines = (done.stdout + done.stderr).splitlines()
    found = [line for line in lines if "needs packages" in line]
    assert len(found) == 1
    assert "cells: scope: the scope 'cells' needs" in found[0]
    assert "manyscope[cells]" in found[0]
    assert without(workspace, ALL, "validate", "galaxies").returncode == 0


def test_the_configuration_is_read_without_the_extra(workspace: Workspace) -> None:
    """Snakemake reads every experiment before it runs anything."""
    (workspace.folder / "config/config.yaml").write_text("experiments: [galaxies, cells]\nshards: 2\n")
    done = without(workspace, ALL, program=DIGESTS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "False"
