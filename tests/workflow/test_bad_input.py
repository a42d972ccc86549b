"""Bad input from the shell: one line that names the place and the remedy, and every earlier file as it was."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.manifest import SCHEMA as MANIFEST
from manyscope.tables.manifest import ManifestEntry, describe
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import embeddings, read_predictions
from workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chain")]

SETTINGS, DATA, CHECKPOINT = 2, 3, 4  # exit codes
# Notes of a run rather than results; train/resume/ is there to outlive a failure.
NOTES = re.compile(r"(^|/)(logs|benchmarks|\.locks|train/resume)/|(^|/)mlflow\.db$|(^|/)\.mlflow\.lock$")
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING) ")

FULL_AT_NTH_WRITE = """
import errno, os, sys
left, sync = int(sys.argv.pop(1)), os.fsync
def fsync(file):
    global left
    left -= 1
    if left <= 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sync(file)
os.fsync = fsync
from manyscope.cli import main
main()
"""
# The file system exists only inside the namespace, so what is on it at the end has to be copied out.
ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=$1k tmpfs small
cp -a results/galaxies small/
cp -a small before
shift
cat /dev/zero > small/filler 2> /dev/null || true
"$@" --results small && code=0 || code=$?
rm small/filler
cp -a small after
exit $code
"""


def digests(results: Path) -> dict[str, str]:
    """Of every result below a folder."""
    files = {str(file.relative_to(results)): file for file in sorted(results.rglob("*")) if file.is_file()}
    return {name: hashlib.sha256(f.read_bytes()).hexdigest() for name, f in files.items() if not NOTES.search(name)}


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error of a command that failed as it should."""
    assert done.returncode > 0, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    *before, last = done.stderr.splitlines() or [""]
    assert last.startswith("error: "), done.stderr
    assert [line for line in before if not LOG_LINE.match(line)] == []
    assert "--debug" not in last, f"nobody foresaw this: {last}"
    return last


def refused(workspace: Workspace, *arguments: str, code: int, says: Sequence[str], python: Sequence[str] = ()) -> None:
    """The command fails with this code and one line that holds all of `says`, and changes no result.

    Args:
        python: run by this instead of by `-m manyscope.cli`.
    """
    # Opening a store of Chroma writes into it, also for a search.
    searched = {"galaxies/index/chroma.sqlite3"} if arguments[0] == "search" else set()
    before = digests(workspace.results)
    done = workspace.python(*(python or ("-m", "manyscope.cli")), *arguments, check=False)
    line = one_line(done)
    assert done.returncode == code, line
    for words in says:
        assert words in line
    after = digests(workspace.results)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} <= searched
    assert left_over(workspace.results) == []


def left_over(results: Path) -> list[Path]:
    return [*results.rglob("*.partial"), *results.rglob("*.old")]


def stage(name: str, *arguments: str, experiment: str = "galaxies") -> tuple[str, ...]:
    return (name, "--experiment", experiment, *arguments)


def galaxies(workspace: Workspace) -> ExperimentPaths:
    return ExperimentPaths.of(workspace.results, "galaxies")


def edit(workspace: Workspace, old: str, new: str) -> None:
    file = workspace.folder / "config/experiments/galaxies.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


# Settings


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("epochs: 3", "epoch: 3", ["train.epoch: unknown key", "did you mean 'epochs'"]),
        ("epochs: 3", "epochs: many", ["train.epochs: found 'many'", "allowed: a number"]),
        ("epochs: 3", "epochs: -3", ["train.epochs: found -3", "allowed: "]),
        ("scope: galaxies", "scope: spectra", ["scope: ", "'spectra' is unknown", "allowed: ", "galaxies"]),
        ("scope: galaxies", "scope: galaxie", ["scope: ", "did you mean 'galaxies'"]),
        (
            "scope: galaxies",
            "scope: manyscope_spectra.scope:Spectra",
            ["scope: manyscope_spectra.scope:Spectra", "cannot be imported", "install the package"],
        ),
    ],
)
def test_a_wrong_setting(copy_of_finished: Workspace, old: str, new: str, says: list[str]) -> None:
    edit(copy_of_finished, old, new)
    text = (copy_of_finished.folder / "config/experiments/galaxies.yaml").read_text()
    line = 1 + text[: text.index(new)].count("\n")
    refused(copy_of_finished, *stage("train"), code=SETTINGS, says=[*says, f"galaxies.yaml:{line}"])


def test_a_file_that_is_no_yaml(copy_of_finished: Workspace) -> None:
    edit(copy_of_finished, "epochs: 3", "epochs: [3")
    says = ["galaxies.yaml:25: not YAML", "expected ',' or ']'"]
    refused(copy_of_finished, *stage("train"), code=SETTINGS, says=says)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (stage("umap", "--config", "absent.yaml"), SETTINGS, ["absent.yaml: there is no such file", "run in the"]),
        (stage("umap", "--settings", "absent.json"), 1, ["absent.json: cannot be read", "allowed: a JSON object"]),
        (stage("umap", experiment="galaxis"), SETTINGS, ["galaxis.yaml: there is no such exp", "did you mean"]),
        (stage("umap", experiment="stars"), SETTINGS, ["stars.yaml: there is no such experiment", "known: cells"]),
        (stage("umap", "--set", "umap.sed=1"), SETTINGS, ["--set galaxies.umap.sed", "did you mean 'seed'"]),
        (stage("umap", "--set", "umap.reducer=my:Map"), 1, ["my:Map: module 'my' cannot be", "install the package"]),
    ],
    ids=lambda value: " ".join(value[3:]) or value[2] if isinstance(value, tuple) else "",
)
def test_a_wrong_command(copy_of_finished: Workspace, arguments: tuple[str, ...], code: int, says: list[str]) -> None:
    refused(copy_of_finished, *arguments, code=code, says=says)


@pytest.mark.parametrize(
    ("verb", "name", "says"),
    [
        (
            "train",
            "my_networks.models:MyNet",
            ["my_networks.models:MyNet: module", "cannot be imported", "install the package"],
        ),
        (
            "infer",
            "manyscope.scopes.galaxies.model.invariant:Invarian",
            ["model.invariant:Invarian: ", "has no 'Invarian'", "did you mean 'Invariant'"],
        ),
        ("infer", "autoencodr", ["'autoencodr' is unknown", "allowed: autoencoder", "did you mean 'autoencoder'"]),
    ],
)
def test_a_model_that_does_not_exist(copy_of_finished: Workspace, verb: str, name: str, says: list[str]) -> None:
    refused(copy_of_finished, *stage(verb, "--set", f"model.name={name}"), code=1, says=says)


# Files of earlier stages


@pytest.mark.parametrize(
    ("broken", "arguments"),
    [
        ("manifest", stage("preprocess")),
        ("samples", stage("train")),
        ("samples", stage("infer")),
        ("shard", stage("gather", "--shards", "2")),
        ("predictions", stage("umap")),
        ("predictions", stage("index")),
        ("predictions", stage("evaluate")),
        ("predictions", stage("explore")),
        ("predictions", stage("search", "--vector", "vector.npy")),
        ("map", stage("explore")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_broken_table(copy_of_finished: Workspace, broken: str, arguments: tuple[str, ...]) -> None:
    paths = galaxies(copy_of_finished)
    if "--vector" in arguments:
        np.save(copy_of_finished.folder / "vector.npy", embeddings(read_predictions(paths.predictions))[0])
    file = paths.shard(1) if broken == "shard" else getattr(paths, broken)
    cut_in_half(file)
    says = [f"{file.name}: not a readable Parquet file", "delete it and run the stage that makes it"]
    refused(copy_of_finished, *arguments, code=DATA, says=says)


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("manifest", stage("preprocess")),
        ("samples", stage("infer")),
        ("shard", stage("gather", "--shards", "2")),
        ("predictions", stage("index")),
        ("map", stage("explore")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_missing_table(copy_of_finished: Workspace, missing: str, arguments: tuple[str, ...]) -> None:
    paths = galaxies(copy_of_finished)
    file = paths.shard(1) if missing == "shard" else getattr(paths, missing)
    file.unlink()
    says = [f"{file.name}: the file is missing", "run the stage that makes it"]
    refused(copy_of_finished, *arguments, code=DATA, says=says)


def test_a_broken_array(copy_of_finished: Workspace) -> None:
    cut_in_half(galaxies(copy_of_finished).prepared / "stamps.npy")
    refused(copy_of_finished, *stage("train"), code=DATA, says=["stamps.npy: not a readable array", "run the stage"])


def test_shards_of_another_number(copy_of_finished: Workspace) -> None:
    says = ["shard-00.parquet: the shard does not hold the samples", "delete the folder infer/ and run again"]
    refused(copy_of_finished, *stage("gather", "--shards", "1"), code=DATA, says=says)


def test_no_index_and_a_broken_one(copy_of_finished: Workspace) -> None:
    paths = galaxies(copy_of_finished)
    command = stage("search", "--id", read_predictions(paths.predictions)["object_id"][0])
    cut_in_half(paths.index / "chroma.sqlite3")
    refused(copy_of_finished, *command, code=DATA, says=["galaxies/index: not a readable index", "run the stage index"])
    shutil.rmtree(paths.index)
    refused(copy_of_finished, *command, code=DATA, says=["galaxies/index: this experiment has no", "run the stage"])


# Raw data


def test_a_raw_file_that_changed_since_its_download(copy_of_finished: Workspace) -> None:
    file = galaxies(copy_of_finished).raw / "images-0000000.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    says = ["images-0000000.npy: the file changed since its download", "run the stage download again"]
    refused(copy_of_finished, "validate", "galaxies", code=SETTINGS, says=says)
    file.write_bytes(content + b"more")
    says = [f"images-0000000.npy: the file has {len(content) + 4} bytes", "run the stage download again"]
    refused(copy_of_finished, *stage("preprocess"), code=DATA, says=says)
    file.unlink()
    says = ["images-0000000.npy: the file is missing", "run the stage download again"]
    refused(copy_of_finished, *stage("preprocess"), code=DATA, says=says)


def half_a_photograph(file: Path) -> None:
    import skimage.data

    shutil.copyfile(Path(skimage.data.__file__).parent / "hubble_deep_field.jpg", file)
    cut_in_half(file)


def grey(file: Path) -> None:
    Image.fromarray(np.zeros((300, 300), np.uint8)).save(file)


def black(file: Path) -> None:
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(file)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (half_a_photograph, ["the image cannot be decoded", "download it again"]),
        (lambda file: file.write_bytes(b"rubbish" * 100), ["the image cannot be decoded", "download it again"]),
        (grey, ["the image has shape (300, 300)", "allowed: (height, width, 3), uint8"]),
        (black, ["no source was found in the image", "lower preprocess.detection_threshold"]),
    ],
    ids=["half", "rubbish", "grey", "black"],
)
def test_an_image_that_cannot_be_used(
    copy_of_finished: Workspace, make: Callable[[Path], None], says: list[str]
) -> None:
    edit(copy_of_finished, "source: simulated", "source: hubble")
    paths = galaxies(copy_of_finished)
    make(paths.raw / "hubble_deep_field.jpg")
    write_table(paths.manifest, describe(paths.raw, [ManifestEntry("hubble_deep_field.jpg", "a test")]))
    refused(copy_of_finished, *stage("preprocess"), code=DATA, says=["raw/hubble_deep_field.jpg: ", *says])


def test_an_empty_data_set(copy_of_finished: Workspace) -> None:
    paths = galaxies(copy_of_finished)
    write_table(paths.manifest, pl.DataFrame(schema=MANIFEST))
    says = ["raw: the data set is empty", "run the stage 'download'"]
    refused(copy_of_finished, *stage("preprocess"), code=DATA, says=says)


@pytest.mark.parametrize(
    ("fractions", "says"),
    [
        ((0.15, 0.0), ["split 'test' has no samples (240 samples in all)", "use more data, or another fraction"]),
        ((0.0, 0.25), ["split 'validation' has no samples", "use more data, or another fraction"]),
        ((0.7, 0.3), ["preprocess.validation_fraction", "leave nothing for training", "allowed: a sum below 1"]),
    ],
)
def test_a_split_without_samples(copy_of_finished: Workspace, fractions: tuple[float, float], says: list[str]) -> None:
    names = ("preprocess.validation_fraction", "preprocess.test_fraction")
    overrides = [part for name, value in zip(names, fractions, strict=True) for part in ("--set", f"{name}={value}")]
    refused(copy_of_finished, *stage("preprocess", *overrides), code=DATA, says=says)


# Checkpoints


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "  name: invariant\n  args: {channels: 4, latent: 16, tied: 8}",
            "  name: autoencoder\n  args: {channels: 4, latent: 16}",
            ["holds model 'invariant'", "allowed: model 'autoencoder'", "run the stage train again"],
        ),
        ("latent: 16", "latent: 12", ["is (", "in the file and (", "run the stage train again"]),
    ],
    ids=["another model", "another shape"],
)
def test_weights_of_another_model(copy_of_finished: Workspace, old: str, new: str, says: list[str]) -> None:
    edit(copy_of_finished, old, new)
    refused(copy_of_finished, *stage("infer"), code=CHECKPOINT, says=["train/model.ckpt: ", *says])


class Code:
    """Pickled, it is a call."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("damage", ["cut", "rubbish", "code", "gone"])
def test_a_broken_checkpoint(copy_of_finished: Workspace, damage: str) -> None:
    file = galaxies(copy_of_finished).model
    says = ["train/model.ckpt: not a readable checkpoint", "delete it and run the stage train again"]
    if damage == "cut":
        cut_in_half(file)
    elif damage == "rubbish":
        file.write_bytes(b"rubbish" * 100)
    elif damage == "code":
        file.write_bytes(pickle.dumps({"format": 1, "state_dict": Code()}, protocol=2))
    else:
        file.unlink()
        says = ["train/model.ckpt: the checkpoint is missing", "run the stage train"]
    refused(copy_of_finished, *stage("infer"), code=CHECKPOINT, says=says)
    assert not (copy_of_finished.folder / "executed").exists()


# A full disk

WRITES = {
    "download": stage("download", "--set", "download.simulated.count=500"),
    "preprocess": stage("preprocess", "--set", "preprocess.stamp_px=30"),
    "train": stage("train", "--set", "train.epochs=1", "--set", "train.tracker=none"),
    "infer": stage("infer", "--set", "infer.batch_size=7", "--shards", "2"),
    "gather": stage("gather", "--set", "gather.outlier_neighbours=3", "--shards", "2"),
    "umap": stage("umap", "--set", "umap.standardize=true"),
    "index": stage("index", "--set", "index.ef_search=111"),
    "evaluate": stage("evaluate", "--set", "evaluate.bootstrap_draws=150"),
    "explore": stage("explore", "--set", "explore.neighbours=3"),
}
FULL = ["the disk is full", "free some space and run the same command again"]


@pytest.mark.parametrize(
    ("name", "write"), [("preprocess", 2), ("infer", 1), ("gather", 1), ("umap", 3), ("index", 1), ("explore", 1)]
)
def test_a_disk_that_fills_while_writing(copy_of_finished: Workspace, name: str, write: int) -> None:
    python = ("-c", FULL_AT_NTH_WRITE, str(write))
    refused(copy_of_finished, *WRITES[name], code=DATA, says=["results/galaxies/", *FULL], python=python)


@pytest.mark.parametrize("name", WRITES)
def test_a_really_full_disk(copy_of_finished: Workspace, name: str) -> None:
    """A file system of its own without a free page."""
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*alone, "mount -t tmpfs none /mnt"], capture_output=True).returncode
    ):
        pytest.skip("mounting is not permitted here, not even in a namespace of its own")
    folder = copy_of_finished.folder
    (folder / "small").mkdir()
    entries = [p.stat().st_size for p in galaxies(copy_of_finished).root.rglob("*")]
    enough_kib = sum(-(-size // 4096) + 1 for size in entries) * 4
    command = [*alone, ON_A_SMALL_DISK, "sh", str(enough_kib), sys.executable, "-m", "manyscope.cli", *WRITES[name]]
    done = subprocess.run(
        command, cwd=folder, env=copy_of_finished.environment(), capture_output=True, text=True, timeout=300
    )
    line = one_line(done)
    assert done.returncode == DATA, line
    for words in ("small/galaxies", *FULL):
        assert words in line
    before, after = digests(folder / "before"), digests(folder / "after")
    assert before
    assert after == before
    assert left_over(folder / "after") == []


# Through Snakemake


def test_a_broken_setting_starts_nothing(copy_of_finished: Workspace) -> None:
    edit(copy_of_finished, "epochs: 3", "epoch: 3")
    before = {p: p.stat().st_mtime_ns for p in copy_of_finished.folder.rglob("*") if p.is_file()}
    refused(copy_of_finished, "run", code=SETTINGS, says=["galaxies.yaml:", "train.epoch", "did you mean 'epochs'"])
    assert {p: p.stat().st_mtime_ns for p in copy_of_finished.folder.rglob("*") if p.is_file()} == before


def test_corrupted_raw_data_fails_its_own_rule_only(copy_of_finished: Workspace) -> None:
    paths = galaxies(copy_of_finished)
    before = digests(copy_of_finished.results)
    file = paths.raw / "images-0000000.npy"
    whole = file.read_bytes()
    cut_in_half(file)
    change = ("--set", "galaxies.preprocess.split_seed=5")
    done = copy_of_finished.manyscope("run", "--no-report", *change, check=False)
    assert done.returncode == 1
    shown = done.stdout + done.stderr
    half = len(whole) // 2
    error = (
        f"error: {file.relative_to(copy_of_finished.folder)}: the file has {half} bytes, the manifest says {len(whole)}"
    )
    assert paths.log("preprocess").read_text().startswith(error)
    assert error in shown
    assert "Traceback" not in shown
    file.write_bytes(whole)
    after = digests(copy_of_finished.results)
    # Snakemake deletes the declared output of a rule before it runs it.
    assert before.keys() - after.keys() == {"galaxies/prepared/samples.parquet"}
    assert after.items() <= before.items()
    assert left_over(copy_of_finished.results) == []
