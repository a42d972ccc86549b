"""Bad clips of one's own, from the shell: each is named in a line, and nothing half-written is left; odd ones work."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.metrics import read_metrics
from manyscope.tables.predictions import read_predictions
from manyscope.tables.samples import read_samples
from workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("scenes_bad_input")]

SETTINGS, DATA = 2, 3  # exit codes
HEIGHT, WIDTH, FRAMES = 48, 64, 8
EXPERIMENT = """
scope: scenes
title: A clip of a user
download:
  source: folder
  folder: {frames: own/frames, masks: own/masksMORE}
"""
SMALL = """
model:
  colour: &small {levels: 3, log2_table: 8, base: 8, width: 16, layers: 1}
  alpha: *small
  flow: *small
  view: *small
train: {epochs: 1, batch_size: 2048}
umap: {reducer: pca, quality_objects: 200}
evaluate: {bootstrap_draws: 100}
"""
Change = Callable[[Path], None]


def drawn(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A camera that moves to the right over a chequered wall, and a red square that moves faster; it has left the
    frame by the fifth. The mask is 1 in the square."""
    wall = np.random.default_rng(0).integers(60, 200, (HEIGHT // 4, WIDTH // 4 + 8, 3), np.uint8)
    frame = wall.repeat(4, 0).repeat(4, 1)[:, number : number + WIDTH].copy()
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:26, 8 + 14 * number : 24 + 14 * number] = 1
    frame[mask == 1] = (220, 40, 60)
    return frame, mask


def save(values: np.ndarray, file: Path) -> None:
    Image.fromarray(values).save(file)


def masks(own: Path) -> list[Path]:
    return sorted((own / "masks").iterdir())


@pytest.fixture
def own(workspace: Workspace) -> Path:
    """A clip without a fault."""
    folder = workspace.folder / "own"
    for name in ("frames", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(FRAMES):
        for name, values in zip(("frames", "masks"), drawn(number), strict=True):
            save(values, folder / name / f"{number:05d}.png")
    configure(workspace)
    return folder


def configure(workspace: Workspace, folder: str = "", more: str = "") -> None:
    text = EXPERIMENT.replace("MORE", f", {folder}" if folder else "") + more
    (workspace.folder / "config/experiments/mine.yaml").write_text(text)


def manyscope(workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = workspace.manyscope(*arguments, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def results(workspace: Workspace) -> list[str]:
    """Every file that the stages left, but for logs and locks."""
    notes = ("logs", "benchmarks", ".locks")
    files = (file.relative_to(workspace.results) for file in workspace.results.rglob("*") if not file.is_dir())
    return sorted(str(file) for file in files if not set(notes) & set(file.parts))


def paths(workspace: Workspace) -> ExperimentPaths:
    return ExperimentPaths.of(workspace.results, "mine")


# ------------------------------------------------------------------------------------------------- bad from the start
def frame_size(own: Path) -> None:
    save(np.zeros((HEIGHT, WIDTH - 4, 3), np.uint8), own / "frames/00003.png")


def mask_size(own: Path) -> None:
    save(np.zeros((HEIGHT, WIDTH - 4), np.uint8), own / "masks/00003.png")


def smoothed(own: Path) -> None:
    for file in masks(own):
        with Image.open(file) as image:
            half = image.point(lambda value: 255 * value).resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BILINEAR)
        half.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file)


def coloured(own: Path) -> None:
    save(np.stack([np.asarray(drawn(2)[1]) * value for value in (255, 0, 30)], -1), own / "masks/00002.png")


def cut_off(own: Path) -> None:
    file = own / "frames/00002.png"
    file.write_bytes(file.read_bytes()[:200])


def no_image(own: Path) -> None:
    (own / "masks/00002.png").write_text("not an image")


def no_frames(own: Path) -> None:
    shutil.rmtree(own / "frames")


def no_masks(own: Path) -> None:
    shutil.rmtree(own / "masks")


def no_video(own: Path) -> None:
    shutil.rmtree(own / "frames")
    (own / "frames").write_text("not a video")


def twice(own: Path) -> None:
    shutil.copy(own / "frames/00003.png", own / "frames/again_3.png")


def other_numbers(own: Path) -> None:
    for file in masks(own):
        file.rename(file.with_name(f"{100 + int(file.stem)}.png"))


# What is wrong with the files, and what the line about it says.
BAD: dict[Change, tuple[str, ...]] = {
    frame_size: ("own/frames/00003.png: the frame is 60x48", "64x48", "bring all pictures of the clip to one size"),
    mask_size: ("own/masks/00003.png: the mask is 60x48", "64x48", "masks without smoothing"),
    smoothed: ("own/masks/0000", "values, and most of those in the clip only along edges", "by the nearest pixel"),
    coloured: ("own/masks/00002.png: the mask is a coloured image", "save it with the numbers as grey values"),
    cut_off: ("own/frames/00002.png: the image cannot be read", "it may be cut off"),
    no_image: ("own/masks/00002.png: the image cannot be read", "copy or save it again"),
    no_frames: ("own/frames: no such folder", "mend download.folder.frames"),
    no_masks: ("own/masks: no such folder", "mend download.folder.masks"),
    no_video: ("own/frames: the video cannot be read at frame 0", "copy or convert it again"),
    twice: ("own/frames: 00003.png and again_3.png have the same number 3", "rename or remove one"),
    other_numbers: ("own/masks: no mask is of a frame", "100 to 107", "0 to 7", "mend download.folder.mask_pattern"),
}
CAMERAS = {
    "broken": ('{"focal": 1.2, "times": [0, 0.5', ("not a readable camera file", "docs/scenes.md")),
    "focal": ('{"times": [0, 1]}', ("has no 'focal", "docs/scenes.md")),
    "lengths": (
        json.dumps({"focal": 1, "times": [0, 1], "position": [[0, 0, 0]], "rotation": [[1, 0, 0, 0]] * 2}),
        ("'position' has shape (1, 3)", "2 x 3"),
    ),
    "missing": (None, ("camera.json: ", "No such file")),
}


def is_refused(workspace: Workspace, words: tuple[str, ...]) -> None:
    """By `validate` in one line, and by the download, which leaves nothing."""
    done = manyscope(workspace, "validate", "mine")
    assert done.returncode == SETTINGS
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: mine: download.folder: ")
    assert all(word in line for word in words), line
    assert not workspace.results.exists()
    done = manyscope(workspace, "download", "--experiment", "mine")
    assert done.returncode == DATA
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert all(word in last for word in words), last
    assert results(workspace) == []


@pytest.mark.parametrize("change", BAD, ids=lambda change: change.__name__)
def test_files_that_break_a_rule_are_named(workspace: Workspace, own: Path, change: Change) -> None:
    change(own)
    is_refused(workspace, BAD[change])


@pytest.mark.parametrize("case", CAMERAS)
def test_a_camera_that_cannot_be_read_is_named(workspace: Workspace, own: Path, case: str) -> None:
    text, words = CAMERAS[case]
    if text is not None:
        (own / "camera.json").write_text(text)
    configure(workspace, "camera: own/camera.json")
    is_refused(workspace, ("own/camera.json: ", *words))


def test_validate_names_every_bad_file_at_once(workspace: Workspace, own: Path) -> None:
    some = (mask_size, cut_off, coloured, twice)
    for change in some:
        change(own)
    lines = manyscope(workspace, "validate", "mine").stderr.splitlines()
    assert len(lines) == len(some), lines
    for change in some:
        assert [line for line in lines if all(word in line for word in BAD[change])], (change, lines)


# -------------------------------------------------------------------------------- bad only when all is seen together
def one_frame(own: Path) -> None:
    fewer(own, 1)


def too_few(own: Path) -> None:
    fewer(own, 4)


def fewer(own: Path, count: int) -> None:
    for file in [*(own / "frames").iterdir(), *masks(own)]:
        if int(file.stem) >= count:
            file.unlink()


def covered(own: Path) -> None:
    for file in masks(own):
        save(np.ones((HEIGHT, WIDTH), np.uint8), file)


def forty(own: Path) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number in range(40):
        y, x = divmod(number, 8)
        values[8 * y : 8 * y + 6, 8 * x : 8 * x + 6] = number + 1
    save(values, own / "masks/00000.png")


TOGETHER: dict[Change, tuple[str, ...]] = {
    one_frame: ("the clip has 1 frame;", "at least 5", "take more frames"),
    too_few: ("the clip has 4 frames;", "at least 5", "take more frames"),
    covered: ("the masks cover every pixel", "check that the masks' background is 0", "ignore_objects"),
    forty: ("found 40 objects", "allowed: 32", "raise preprocess.most_objects"),
}


@pytest.mark.parametrize("change", TOGETHER, ids=lambda change: change.__name__)
def test_a_clip_that_makes_no_scene_stops_the_preparation(workspace: Workspace, own: Path, change: Change) -> None:
    change(own)
    done = manyscope(workspace, "validate", "mine")
    if change is covered:  # which the masks of the training frames tell, and those are not dealt yet
        assert done.returncode == 0
    else:
        assert done.returncode == SETTINGS
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: mine: download.folder: ")
        assert all(word in line for word in TOGETHER[change]), line
    assert manyscope(workspace, "download", "--experiment", "mine").returncode == 0
    before = results(workspace)
    done = manyscope(workspace, "preprocess", "--experiment", "mine")
    assert done.returncode == DATA
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: results/mine/raw: ")
    assert all(word in line for word in TOGETHER[change]), line
    assert results(workspace) == before
    assert not paths(workspace).prepared.exists()


def test_files_that_go_bad_after_the_download_stop_the_preparation(workspace: Workspace, own: Path) -> None:
    manyscope(workspace, "download", "--experiment", "mine")
    (own / "masks/00005.png").unlink()
    before = results(workspace)
    done = manyscope(workspace, "preprocess", "--experiment", "mine")
    assert done.returncode == DATA
    (line,) = done.stderr.splitlines()
    assert "raw/masks/00005_0.png: the file is missing; run the stage download again" in line
    assert results(workspace) == before
    assert not paths(workspace).prepared.exists()


# ---------------------------------------------------------------------------------------------------- bad settings
BAD_SETTINGS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "preset": (
        "", "model: {preset: larg}",
        ("mine.yaml:", "model.preset: found 'larg'", "cpu, tiny, small, medium, large", "did you mean 'large'?"),
    ),
    "model": (
        "", "model: {name: atlas_grap}",
        ("mine: model.name: ", "'atlas_grap' is unknown", "allowed: atlas_graph", "did you mean 'atlas_graph'?"),
    ),
    "object plane": (
        "", "model: {object_plane: plannar}",
        ("mine: model.object_plane: ", "'plannar' is unknown", "allowed: planar", "did you mean 'planar'?"),
    ),
    "background plane": (
        "", "model: {background_plane: flat}",
        ("mine: model.background_plane: ", "'flat' is unknown", "allowed: planar", "import path"),
    ),
    "sampler": (
        "", "train: {sampler: pixel}",
        ("mine: train.sampler: ", "'pixel' is unknown", "pixels, uv_grid", "did you mean 'pixels'?"),
    ),
    "splits": ("", "infer: {splits: [train, validation]}", ("mine: infer.splits: ", "'test'", "add them")),
    "lpips": (
        "", "evaluate: {lpips_weights: no.pth}",
        ("mine: evaluate.lpips_weights: no.pth is missing", "or leave it out"),
    ),
    "index": (
        r"frame_pattern: '([0-9]+)\.png'", "",
        ("mine.yaml:6: download.folder.frame_pattern", "no group 'index'", "(?P<index>[0-9]+)"),
    ),
    "expression": (
        r"mask_pattern: '(?P<index>[0-9]+'", "",
        ("mine.yaml:6: download.folder.mask_pattern", "is not a regular expression"),
    ),
    "order": ("first: 5, last: 2", "", ("mine.yaml:6: download.folder: ", "last 2 is below first 5")),
    "none": (
        "first: 20", "",
        ("own/frames: frames are numbered 0 to 7, and none of them is chosen", "mend download.folder.first and last"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_cannot_be_used_are_said_before_anything_runs(workspace: Workspace, own: Path, case: str) -> None:
    folder, more, words = BAD_SETTINGS[case]
    configure(workspace, folder, more)
    done = manyscope(workspace, "validate", "mine")
    assert done.returncode == SETTINGS
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert not workspace.results.exists()


def test_an_unknown_source_is_named_with_those_there_are(workspace: Workspace, own: Path) -> None:
    done = manyscope(workspace, "validate", "mine", "--set", "mine.download.source=foldr")
    assert done.returncode == SETTINGS
    (line,) = done.stderr.splitlines()
    assert "download.source: " in line
    assert "allowed: folder, synthetic, or an import path" in line
    assert "did you mean 'folder'?" in line
    done = manyscope(workspace, "download", "--experiment", "mine", "--set", "download.source=foldr")
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: scene source 'foldr' is unknown; ")
    assert results(workspace) == []


def test_a_synthetic_clip_that_is_too_short_is_said_before_it_is_drawn(workspace: Workspace, own: Path) -> None:
    short = ("--set", "mine.download.source=synthetic", "--set", "mine.download.synthetic.frames=4")
    done = manyscope(workspace, "validate", "mine", *short)
    assert done.returncode == SETTINGS
    assert done.stderr.startswith("error: mine: download.synthetic: the clip has 4 frames; allowed: at least 5")
    assert len(done.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------------------------------ odd, not bad
def test_a_frame_that_is_missing_is_a_gap_in_time(workspace: Workspace, own: Path) -> None:
    for name in ("frames", "masks"):
        (own / name / "00003.png").unlink()
    done = manyscope(workspace, "validate", "mine")
    assert done.returncode == 0
    assert "own/frames: numbers of 1 frames are missing (3); times follow the numbers" in done.stderr
    for stage in ("download", "preprocess"):
        assert manyscope(workspace, stage, "--experiment", "mine").returncode == 0
    samples = read_samples(paths(workspace).samples)
    assert samples["index"].to_list() == [0, 1, 2, 4, 5, 6, 7]
    assert samples["time"].to_numpy() == pytest.approx(samples["index"].to_numpy() / 7)


def run_all(workspace: Workspace, *stages: str) -> ExperimentPaths:
    configure(workspace, more=SMALL)
    for stage in ("download", "preprocess", "train", "infer", "gather", *stages):
        done = manyscope(workspace, stage, "--experiment", "mine")
        assert done.returncode == 0, done.stderr
    return paths(workspace)


@pytest.mark.long
def test_a_clip_without_objects_is_a_background_alone(workspace: Workspace, own: Path) -> None:
    for file in masks(own):
        save(np.zeros((HEIGHT, WIDTH), np.uint8), file)
    left = run_all(workspace, "umap", "index", "evaluate", "explore")
    assert read_samples(left.samples)["objects"].to_list() == [0] * FRAMES
    assert read_predictions(left.predictions)["layer"].to_list() == ["background"] * FRAMES
    assert [folder.name for folder in (left.files / "layers").iterdir()] == ["background"]
    _, rows = read_metrics(left.metrics)
    assert {(row.name, row.group) for row in rows} == {
        (name, group) for name in ("psnr", "ssim", "ms_ssim") for group in ("trained", "held_out")
    }
    done = manyscope(workspace, "edit", "--experiment", "mine", "do: remove, object: object-1")
    assert done.returncode == 1
    assert done.stderr == "error: edits: there is no 'object-1'; allowed: background\n"


@pytest.mark.long
def test_an_object_that_leaves_the_frame_is_in_those_before(workspace: Workspace, own: Path) -> None:
    left = run_all(workspace, "evaluate")
    assert read_samples(left.samples)["objects"].to_list() == [1] * 4 + [0] * 4
    predictions = read_predictions(left.predictions)
    assert predictions.filter(pl.col("layer") == "background")["frame"].to_list() == list(range(FRAMES))
    seen = predictions.filter((pl.col("layer") == "object-1") & (pl.col("area_px") > 20))
    assert seen["frame"].to_list() == list(range(4))
    assert (seen["x_px"].diff().drop_nulls() > 8).all()
    _, rows = read_metrics(left.metrics)
    judged = {(row.name, row.group): row.n for row in rows}
    # Of the frames held out to judge by, 1, 5 and so on, the object is in the first alone.
    assert judged["psnr", "held_out"] == 2
    assert judged["alpha_iou", "object-1"] == judged["psnr", "object-1"] == 1
