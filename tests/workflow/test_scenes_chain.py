"""The scope `scenes` through the whole chain: a clip in, every layer of every frame an object; edits, interruptions."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from manyscope.scopes.registry import find_scope
from manyscope.scopes.scenes.data.video import read_frames
from manyscope.scopes.scenes.edits import checker
from manyscope.scopes.scenes.files import BACKGROUND, atlas_file, edit_file, frame_file, layer_file
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.manifest import file_digest
from manyscope.tables.metrics import read_metrics
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.tables.samples import read_samples
from workspace import REPOSITORY, Workspace, make_workspace, pictures_on_page, train_apart

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("scenes")]

SAMPLES = REPOSITORY.parent / "shared" / "data" / "scenes" / "davis480p"
HEIGHT, WIDTH, FRAMES = 48, 64, 12
OBJECTS = ["object-1", "object-2"]
LAYERS = [BACKGROUND, *OBJECTS]
SETTINGS, DATA, CHECKPOINT = 2, 3, 4  # exit codes


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("scenes") / "work", experiments=("scenes",))
    workspace.snakemake("--profile", "workflow_profiles/local")
    return workspace


@pytest.fixture(scope="module")
def paths(synthetic: Workspace) -> ExperimentPaths:
    return ExperimentPaths.of(synthetic.results, "scenes")


def picture(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of any value, of 255."""
    return int(np.abs(one.astype(int) - other).max())


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def composed(files: Path, sample: str, depths: dict[str, float]) -> np.ndarray:
    """A frame of its layers, from the farthest to the nearest."""
    frame = np.zeros((HEIGHT, WIDTH, 3))
    for layer in sorted(depths, key=lambda layer: -depths[layer]):
        values = picture(layer_file(files, layer, sample)).astype(float)
        opacity = values[..., 3:] / 255
        frame = opacity * values[..., :3] + (1 - opacity) * frame
    return frame


def test_frames_are_held_out_by_their_place_in_the_clip(paths: ExperimentPaths) -> None:
    samples = read_samples(paths.samples)
    assert samples["sample_id"].to_list() == [f"frame-{number:05d}" for number in range(FRAMES)]
    assert samples["time"].to_numpy() == pytest.approx(np.linspace(0, 1, FRAMES))
    expected = ["train"] * FRAMES
    for number in (1, 3, 5, 7, 9):
        expected[number] = "validation" if number == 3 else "test"
    assert samples["split"].to_list() == expected


def test_every_frame_is_what_its_layers_make(paths: ExperimentPaths) -> None:
    samples, predictions = read_samples(paths.samples), read_predictions(paths.predictions)
    for sample in samples["sample_id"]:
        own = predictions.filter(pl.col("sample_id") == sample)
        depths = dict(own.select("layer", "depth").iter_rows())
        frame = picture(frame_file(paths.files, sample))
        assert frame.shape == (HEIGHT, WIDTH, 3)
        assert apart(composed(paths.files, sample, depths), frame) <= 3
        for layer in OBJECTS:
            others = {name: depth for name, depth in depths.items() if name != layer}
            removed = picture(edit_file(paths.files, "remove", layer, sample))
            assert apart(composed(paths.files, sample, others), removed) <= 3
            assert apart(removed, frame) > 30
            painted = picture(edit_file(paths.files, "paint", layer, sample))
            changed = (painted != frame).any(2)
            opaque = picture(layer_file(paths.files, layer, sample))[..., 3] > 0
            assert changed.any()
            assert not (changed & ~opaque).any()


def test_every_layer_that_a_frame_shows_is_an_object(paths: ExperimentPaths) -> None:
    predictions = read_predictions(paths.predictions)
    expected = {f"frame-{number:05d}/{layer}" for number in range(FRAMES) for layer in LAYERS}
    assert sorted(predictions["object_id"]) == sorted(expected)
    assert embeddings(predictions).shape == (FRAMES * len(LAYERS), 384)
    corners = [f"corner_{number}_{axis}_px" for number in range(4) for axis in "xy"]
    assert {"frame", "share", "outlier_knn", "outlier_lof", *corners} <= set(predictions.columns)
    for row in predictions.iter_rows(named=True):
        assert row["sample_id"] == f"frame-{row['frame']:05d}"
        assert row["object_id"] == f"{row['sample_id']}/{row['layer']}"
        opacity = picture(layer_file(paths.files, row["layer"], row["sample_id"]))[..., 3] / 255
        assert opacity.shape == (HEIGHT, WIDTH)
        assert row["area_px"] == pytest.approx(opacity.sum(), rel=0.02)
        assert row["share"] == pytest.approx(row["area_px"] / (HEIGHT * WIDTH))
        y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        for axis, place in (("x", x), ("y", y)):
            assert row[f"{axis}_px"] == pytest.approx((place * opacity).sum() / opacity.sum(), abs=0.1)
            ends = [row[f"corner_{number}_{axis}_px"] for number in range(4)]
            assert min(ends) < row[f"{axis}_px"] < max(ends)
        # The axes of a plane are those of the frame: u to the right, v down.
        assert row["corner_0_x_px"] < row["corner_1_x_px"]
        assert row["corner_0_y_px"] < row["corner_3_y_px"]
        assert (row["width_px"], row["height_px"]) == tuple(
            np.ptp(np.flatnonzero((opacity >= 0.1).any(axis))) + 1 for axis in (0, 1)
        )
        assert row["depth"] > 0
    backgrounds = predictions.filter(pl.col("layer") == BACKGROUND)
    assert backgrounds["share"].to_list() == [1.0] * FRAMES


def test_atlases_videos_and_pictures_on_the_way_are_left(paths: ExperimentPaths) -> None:
    assert sorted(p.name for p in (paths.files / "atlases").iterdir()) == sorted(f"{layer}.png" for layer in LAYERS)
    assert (picture(atlas_file(paths.files, BACKGROUND))[..., 3] == 255).all()
    for layer in OBJECTS:
        opacity = picture(atlas_file(paths.files, layer))[..., 3]
        assert (opacity.min() < 50, opacity.max() > 200) == (True, True)

    frames = [picture(frame_file(paths.files, f"frame-{number:05d}")) for number in range(FRAMES)]
    filmed = list(read_frames(paths.evaluate / "scene.mp4"))
    assert len(filmed) == FRAMES
    assert all(psnr(one, other) > 25 for one, other in zip(filmed, frames, strict=True))
    with Image.open(paths.evaluate / "scene.webp") as moving:
        assert (moving.n_frames, moving.size) == (FRAMES, (WIDTH, HEIGHT))

    checks = pl.read_parquet(paths.history).filter(pl.col("name") == "validation/loss")["step"].to_list()
    assert len(checks) == 3
    drawn = sorted((paths.export / "pictures").iterdir())
    assert [file.name for file in drawn] == [f"step-{step:06d}.png" for step in checks]
    for file in drawn:
        filmed, rendered, difference = np.split(picture(file), 3, axis=1)
        assert filmed.shape == (3 * HEIGHT, WIDTH, 3)
        assert apart(np.abs(filmed.astype(int) - rendered), difference) <= 1
    assert (paths.export / "scene.ckpt").is_file()
    expected = {"frames", "layers", "edits", "atlases", "psnr", "training"}
    assert {file.stem for file in paths.figures.glob("*.png")} == expected


def test_it_is_judged_on_the_frames_held_out_beside_simple_ways(paths: ExperimentPaths) -> None:
    document, rows = read_metrics(paths.metrics)
    assert document["headline"] == "psnr"
    found = {(row.name, row.group): row for row in rows}
    whole, judged = {"trained", "held_out"}, {"occluded_background", "never_seen", *OBJECTS}
    groups = {
        "psnr": whole | judged | {f"{layer}_colour" for layer in OBJECTS},
        "ssim": whole,
        "ms_ssim": whole,
        "alpha_iou": {*OBJECTS, "all"},
        "alpha_mae": set(OBJECTS),
        "pose_error": set(OBJECTS),
        "edit_psnr": {"remove", "paint"},
    }
    assert set(found) == {(name, group) for name, some in groups.items() for group in some}
    for name, group in [
        ("psnr", "trained"),
        ("psnr", "held_out"),
        ("psnr", "occluded_background"),
        ("ssim", "held_out"),
    ]:
        baselines = {row.baseline for row in rows if (row.name, row.group) == (name, group)}
        assert baselines == {"temporal_median", "nearest_frame", "placed"}
    samples = read_samples(paths.samples)
    clip = np.load(paths.prepared / "frames.npy")
    for group, split in (("trained", "train"), ("held_out", "test")):
        own = np.flatnonzero((samples["split"] == split).to_numpy())
        values = [psnr(picture(frame_file(paths.files, samples["sample_id"][int(row)])), clip[row]) for row in own]
        assert found["psnr", group].value == pytest.approx(np.mean(values), abs=1e-3)
        assert found["psnr", group].n == len(own)
    tested = samples.filter(pl.col("split") == "test").height
    assert {row.n for (_, group), row in found.items() if group not in ("trained", "never_seen")} == {tested}
    table = pl.read_csv(paths.evaluate / "per_frame.csv")
    assert table["sample_id"].unique().sort().to_list() == samples["sample_id"].to_list()
    assert set(table["method"]) == {"model", "temporal_median", "nearest_frame", "placed"}


def test_the_number_of_shards_changes_no_digit_and_no_picture(
    synthetic: Workspace, paths: ExperimentPaths, tmp_path: Path
) -> None:
    (tmp_path / "scenes").mkdir()
    for name in ("prepared", "train"):
        (tmp_path / "scenes" / name).symlink_to(paths.root / name)
    common = ("--experiment", "scenes", "--results", str(tmp_path))
    synthetic.manyscope("infer", *common)
    synthetic.manyscope("gather", *common)
    other = ExperimentPaths.of(tmp_path, "scenes")
    assert other.predictions.read_bytes() == paths.predictions.read_bytes()
    assert contents(other.files) == contents(paths.files)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_page_shows_every_layer(paths: ExperimentPaths) -> None:
    shown = pictures_on_page(paths.page)
    predictions = read_predictions(paths.predictions)
    assert list(shown) == predictions["object_id"].to_list()
    thumbnails = find_scope("scenes").thumbnails(paths.prepared, paths.files, predictions.drop("embedding"))
    for (name, found), thumbnail in zip(shown.items(), thumbnails, strict=True):
        assert thumbnail is not None
        thumbnail.thumbnail(found.shape[:2])
        (height, width), size = (thumbnail.height, thumbnail.width), len(found)
        top, left = (size - height) // 2, (size - width) // 2
        inside = found[top : top + height, left : left + width]
        expected = np.asarray(thumbnail)
        solid = expected[..., 3] > 200
        assert solid.any()
        assert psnr(inside[solid], expected[solid]) > 25, name
        assert apart(inside[..., 3], expected[..., 3]) <= 16
        around = found[..., 3].copy()
        around[top : top + height, left : left + width] = 0
        assert not around.any()
        assert (inside[..., 3] == 255).all() == name.endswith(BACKGROUND)


@pytest.mark.parametrize(("sample", "layer"), [("frame-00004", "object-2"), ("frame-00007", BACKGROUND)])
def test_a_layer_is_found_by_its_own_picture(
    synthetic: Workspace, paths: ExperimentPaths, sample: str, layer: str
) -> None:
    file = layer_file(paths.files, layer, sample)
    search = ("search", "--experiment", "scenes", "--json", "-k", "3", "--image", str(file))
    found = json.loads(synthetic.manyscope(*search).stdout)
    assert [each["object_id"].split("/")[1] for each in found] == [layer] * 3
    assert found[0]["object_id"] == f"{sample}/{layer}"
    # Rounding to 8 bits is all that tells the picture from the layer.
    assert found[0]["distance"] < 0.5 * found[1]["distance"]


# ------------------------------------------------------------------------------------------------------------- edits
def test_removing_by_the_command_line_is_what_was_judged(synthetic: Workspace, paths: ExperimentPaths) -> None:
    said = synthetic.manyscope("edit", "--experiment", "scenes", "--name", "alone", "do: remove, object: object-1")
    folder = paths.edits / "alone"
    relative = folder.relative_to(synthetic.folder)
    assert said.stdout.split() == [str(relative / name) for name in ("scene.mp4", "scene.webp", "frames")]
    assert sorted(file.name for file in (folder / "frames").iterdir()) == [f"{n:05d}.png" for n in range(FRAMES)]
    filmed = list(read_frames(folder / "scene.mp4"))
    assert len(filmed) == FRAMES
    for number in range(FRAMES):
        edited = picture(folder / f"frames/{number:05d}.png")
        assert apart(edited, picture(edit_file(paths.files, "remove", "object-1", f"frame-{number:05d}"))) <= 1
        assert psnr(filmed[number], edited) > 25
    with Image.open(folder / "scene.webp") as moving:
        assert moving.n_frames == FRAMES


def test_painting_by_a_file_after_another_edit(synthetic: Workspace, paths: ExperimentPaths, tmp_path: Path) -> None:
    Image.fromarray(checker(HEIGHT, WIDTH)).save(tmp_path / "checker.png")
    edits = [{"do": "paint", "object": "object-2", "image": str(tmp_path / "checker.png")}]
    for name, some in (("painted", edits), ("both", [{"do": "remove", "object": "object-1"}, *edits])):
        with (tmp_path / f"{name}.yaml").open("w") as file:
            YAML(typ="safe").dump({"edits": some}, file)
        synthetic.manyscope("edit", "--experiment", "scenes", "--name", name, "--file", str(tmp_path / f"{name}.yaml"))
    for number in range(FRAMES):
        sample = f"frame-{number:05d}"
        painted, both = (picture(paths.edits / f"{name}/frames/{number:05d}.png") for name in ("painted", "both"))
        assert apart(painted, picture(edit_file(paths.files, "paint", "object-2", sample))) <= 1
        without = picture(layer_file(paths.files, "object-1", sample))[..., 3] == 0
        assert apart(both[without], painted[without]) <= 1
        assert apart(both, painted) > 30


REMOVE = "do: remove, object: object-1"
BAD_EDITS: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "unknown": (("do: remuve, object: object-1",), SETTINGS, ("edits[0]", "'remuve'", "paint, remove, retime, shift")),
    "key": ((f"{REMOVE}, objct: x",), SETTINGS, ("edits[0].objct: unknown key", "did you mean 'object'?")),
    "object": (
        ("do: remove, object: objekt-1",), 1,
        ("'objekt-1'", "allowed: object-1, object-2, background", "did you mean 'object-1'?"),
    ),
    "background": (("do: remove, object: background",), 1, ("background", "allowed: paint")),
    "frame": (("do: paint, object: object-1, image: IMAGE, frame: 99",), 1, ("no frame 99", "allowed: 0 to 11")),
    "image": (("do: paint, object: object-1, image: no.png",), DATA, ("no.png: the picture is missing",)),
    "neither": ((), 1, ("edits come from the command line or from a file", "--file")),
    "both": (("--file", "edits.yaml", REMOVE), 1, ("edits come from the command line or from a file", "--file")),
    "file": (("--file", "no.yaml"), SETTINGS, ("no.yaml: cannot be read",)),
    "results": (
        ("--results", "elsewhere", REMOVE), CHECKPOINT,
        ("elsewhere/scenes/train/export/scene.ckpt: ", "missing", "run the stage train"),
    ),
    "scope": (("--experiment", "galaxies", REMOVE), 1, ("galaxies: scope 'galaxies' has nothing to edit",)),
    "name": (("--name", "../failed", REMOVE), 1, ("--name: '../failed' cannot be the name of a folder",)),
}  # fmt: skip


def refused(workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that must fail with a line, and leave nothing."""
    before = sorted(workspace.folder.rglob("*.*"))
    done = workspace.manyscope(*arguments, check=False)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert sorted(workspace.folder.rglob("*.*")) == before
    return done


@pytest.mark.parametrize("case", BAD_EDITS)
def test_an_edit_that_cannot_be_is_refused(synthetic: Workspace, paths: ExperimentPaths, case: str) -> None:
    arguments, code, words = BAD_EDITS[case]
    image = str(atlas_file(paths.files, "object-1"))
    done = refused(
        synthetic, "edit", "--experiment", "scenes", "--name", "failed", *(a.replace("IMAGE", image) for a in arguments)
    )
    assert done.returncode == code
    assert all(word in done.stderr for word in words), done.stderr


def test_an_unknown_edit_is_said_with_the_nearest(synthetic: Workspace) -> None:
    done = refused(synthetic, "edit", "--experiment", "scenes", "do: remuve, object: object-1")
    assert "did you mean 'remove'?" in done.stderr


# ------------------------------------------------------------------------------------------------ kill and continue
LONGER = ("--set", "train.epochs=10", "--set", "train.check_every_epochs=1")


@pytest.fixture(scope="module")
def undisturbed(
    synthetic: Workspace, paths: ExperimentPaths, tmp_path_factory: pytest.TempPathFactory
) -> ExperimentPaths:
    return train_apart(synthetic, paths, tmp_path_factory.mktemp("undisturbed"), *LONGER)


@pytest.mark.long
@pytest.mark.parametrize("interrupt", [signal.SIGKILL, signal.SIGTERM], ids=lambda interrupt: interrupt.name)
def test_an_interrupted_training_ends_with_the_same_weights(
    synthetic: Workspace,
    paths: ExperimentPaths,
    undisturbed: ExperimentPaths,
    tmp_path: Path,
    interrupt: signal.Signals,
) -> None:
    own = train_apart(synthetic, paths, tmp_path, *LONGER, interrupt=interrupt)
    assert own.model.read_bytes() == undisturbed.model.read_bytes()
    assert own.history.read_bytes() == undisturbed.history.read_bytes()
    assert contents(own.export) == contents(undisturbed.export)
    assert len(list((own.export / "pictures").iterdir())) == 10
    assert not own.resume.exists() or not list(own.resume.iterdir())


def test_an_experiment_starts_from_the_weights_of_another(synthetic: Workspace, paths: ExperimentPaths) -> None:
    yaml = YAML(typ="safe")
    values = yaml.load(synthetic.folder / "config/experiments/scenes.yaml")
    values["train"] |= {"start_from": "scenes", "epochs": 1, "lr": 1e-7}
    with (synthetic.folder / "config/experiments/onward.yaml").open("w") as file:
        yaml.dump(values, file)
    onward = paths.beside("onward")
    onward.root.mkdir()
    onward.prepared.symlink_to(paths.prepared)
    synthetic.manyscope("train", "--experiment", "onward")
    record = json.loads(onward.run.read_text())
    assert (record["start_from"], record["start_sha256"]) == ("scenes", file_digest(paths.model))
    first, second = (torch.load(p.model, weights_only=True)["state_dict"] for p in (paths, onward))
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    # From weights of its own, a few steps so small would have left the scene as it was placed.
    losses = [
        pl.read_parquet(p.history).filter(pl.col("name") == "validation/loss")["value"].to_list()
        for p in (paths, onward)
    ]
    assert losses[1] == pytest.approx([losses[0][-1]], rel=1e-3)


def test_a_start_from_a_scene_that_was_placed_otherwise_is_refused(
    synthetic: Workspace, paths: ExperimentPaths
) -> None:
    change = ("--set", "preprocess.placement.focal=0.8", "--set", "train.start_from=scenes")
    yaml = YAML()
    values = yaml.load((synthetic.folder / "config/experiments/scenes.yaml").read_text())
    with (synthetic.folder / "config/experiments/elsewhere.yaml").open("w") as file:
        yaml.dump(values, file)
    elsewhere = paths.beside("elsewhere")
    elsewhere.root.mkdir()
    elsewhere.raw.symlink_to(paths.raw)
    synthetic.manyscope("preprocess", "--experiment", "elsewhere", *change)
    done = synthetic.manyscope("train", "--experiment", "elsewhere", *change, check=False)
    assert done.returncode == 4
    assert "placed otherwise" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not elsewhere.model.exists()


# -------------------------------------------------------------------------------------------------------- real clips
FILMED = """
scope: scenes
title: A filmed clip
download:
  source: folder
  folder: {frames: FRAMES, last: 7}
preprocess: {longest_px: 96}
model:
  colour: &small {levels: 3, log2_table: 8, base: 8, width: 16, layers: 1}
  alpha: *small
  flow: *small
  view: *small
train: {epochs: 2, batch_size: 4096}
umap: {reducer: pca, quality_objects: 200}
evaluate: {bootstrap_draws: 100}
"""


@pytest.mark.long
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample clip is not beside the repository")
def test_a_filmed_clip_has_layers_but_no_truth(tmp_path: Path) -> None:
    frames = SAMPLES / "JPEGImages" / "blackswan"
    before = {file: file.stat().st_mtime_ns for file in SAMPLES.rglob("*")}
    workspace = make_workspace(tmp_path / "work", experiments=("swan",))
    (workspace.folder / "config/experiments/swan.yaml").write_text(FILMED.replace("FRAMES", str(frames)))
    workspace.manyscope("validate")
    workspace.snakemake("--profile", "workflow_profiles/local")
    paths = ExperimentPaths.of(workspace.results, "swan")
    samples, predictions = read_samples(paths.samples), read_predictions(paths.predictions)
    assert samples["index"].to_list() == list(range(8))
    assert samples["covered"].is_between(0.05, 0.2).all()
    assert dict(predictions.group_by("layer").len().iter_rows()) == {BACKGROUND: 8, "object-1": 8}
    for sample in samples["sample_id"]:
        assert picture(frame_file(paths.files, sample)).shape == (54, 96, 3)
    assert not (paths.files / "edits").exists()
    assert not (paths.prepared / "truth").exists()
    _, rows = read_metrics(paths.metrics)
    found = {(row.name, row.group): row.value for row in rows}
    whole, swan = {"trained", "held_out"}, {"object-1"}
    groups = {"psnr": whole | swan, "ssim": whole, "ms_ssim": whole, "alpha_iou": swan | {"all"}}
    assert set(found) == {(name, group) for name, some in groups.items() for group in some}
    assert found["psnr", "held_out"] > 18
    assert found["alpha_iou", "object-1"] > 0.7
    assert "edits" not in {file.stem for file in paths.figures.glob("*.png")}
    assert len(pictures_on_page(paths.page)) == 16
    assert {file: file.stat().st_mtime_ns for file in SAMPLES.rglob("*")} == before
