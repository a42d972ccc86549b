"""The judge of renderings: right about renderings whose worth is known, and about the frames that may have a say.

The clip is drawn on whole pixels: a background that passes by one pixel to the left in a frame, an object before it
that goes four pixels to the right, and behind that one another that moves with the background, so that what it hides is
never seen. Frames 1 and 5 judge, frame 3 chose the weights.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from manyscope.errors import DataError
from manyscope.evaluation.figures import save_figure
from manyscope.scopes.base import Evaluation
from manyscope.scopes.scenes.data.clip import Clip, Truth
from manyscope.scopes.scenes.data.video import read_frames
from manyscope.scopes.scenes.edits import checker
from manyscope.scopes.scenes.evaluate import FEWEST, HEADLINE, METRICS, evaluate, figures
from manyscope.scopes.scenes.evaluate.baselines import AsPlaced, NearestFrame, Placed, TemporalMedian
from manyscope.scopes.scenes.evaluate.quality import LEAST_LPIPS_PX
from manyscope.scopes.scenes.evaluate.rendered import CORNERS
from manyscope.scopes.scenes.evaluate.truth import TrueScene
from manyscope.scopes.scenes.files import atlas_file, edit_file, frame_file, layer_file
from manyscope.scopes.scenes.placement import Placement
from manyscope.scopes.scenes.settings import ScenesEvaluate
from manyscope.tables.metrics import Metric
from manyscope.tables.parquet import write_table
from manyscope.tables.whole import write_json

T, H, W = 8, 48, 64
TRAIN, TEST, VALIDATION = [0, 2, 4, 6, 7], [1, 5], [3]
OBJECTS = ["object-1", "object-2"]
SIZES = [(12, 12), (10, 14)]  # width, height
REFERENCE = [2, 0]
CAP = 60
BASELINES = {"temporal_median", "nearest_frame", "placed"}
SETTINGS = ScenesEvaluate(bootstrap_draws=100, shown=0)
GREY = np.full((H, W, 3), 128, np.uint8)


def grey(position: int, without: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A scene as placed of which nothing is known."""
    return GREY, GREY


def corner(number: int, position: int) -> tuple[int, int]:
    """Upper left corner (x, y) of an object in a frame."""
    return (4 + 4 * position, 10) if number == 0 else (30 - position, 14)


def part(number: int, position: int) -> tuple[slice, slice]:
    (x, y), (width, height) = corner(number, position), SIZES[number]
    return slice(y, y + height), slice(x, x + width)


def shift(x: float, y: float) -> np.ndarray:
    return np.array([(1, 0, x), (0, 1, y), (0, 0, 1)], float)


@dataclass
class World:
    """The drawn clip; edits and pictures of layers as they should be.

    Attributes:
        removed, painted: object -> (T, h, w, 3).
    """

    frames: np.ndarray
    masks: np.ndarray
    background: np.ndarray
    layers: np.ndarray
    removed: list[np.ndarray]
    painted: list[np.ndarray]


@pytest.fixture(scope="session")
def world() -> World:
    rng = np.random.default_rng(3)
    wide = rng.integers(60, 200, (H, W + T, 3), dtype=np.uint8)
    background = np.stack([wide[:, t : t + W] for t in range(T)])
    layers = np.zeros((T, 2, H, W, 4), np.uint8)
    painted_layers = layers.copy()
    for number, (width, height) in enumerate(SIZES):
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paint = checker(H, W)[part(number, REFERENCE[number])]
        for t in range(T):
            layers[(t, number, *part(number, t))] = np.dstack([picture, np.full((height, width), 255)])
            painted_layers[(t, number, *part(number, t))] = paint

    def over(t: int, *pictures: np.ndarray) -> np.ndarray:
        frame = background[t].copy()
        for picture in pictures:
            frame[picture[..., 3] > 0] = picture[picture[..., 3] > 0][:, :3]
        return frame

    def clip(of: Callable[[int], np.ndarray]) -> np.ndarray:
        return np.stack([of(t) for t in range(T)])

    near, far = (layers[:, number] for number in range(2))
    masks = layers[..., 3].copy()
    masks[:, 1][masks[:, 0] > 0] = 0  # one number for each pixel
    return World(
        clip(lambda t: over(t, far[t], near[t])), masks, background, layers,
        [clip(lambda t: over(t, far[t])), clip(lambda t: over(t, near[t]))],
        [clip(lambda t: over(t, far[t], painted_layers[t, 0])), clip(lambda t: over(t, painted_layers[t, 1], near[t]))],
    )  # fmt: skip


@dataclass
class Made:
    """A prepared clip, and renderings of it that equal the truth."""

    prepared: Path
    files: Path
    predictions: pl.DataFrame

    @property
    def clip(self) -> Clip:
        return Clip(self.prepared)

    def judged(self, settings: ScenesEvaluate = SETTINGS, placed: Placed | None = None) -> Evaluation:
        clip = self.clip
        return evaluate(settings, clip, self.files, clip.samples, self.predictions, placed or grey)

    def change(self, path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
        save(path, change(np.asarray(Image.open(path))))


def sample_id(position: int) -> str:
    return f"frame-{position:05d}"


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def placement(references: list[int]) -> Placement:
    """Of which the evaluation looks at the references alone."""
    some = np.zeros((1, 3))
    many = np.zeros((len(references), 1, 4))
    return Placement(
        1.0, some, some, some, some, some, some, some, many, many, many, np.array(references, int),
        [np.zeros((2, 2, 4))] * len(references),
    )  # fmt: skip


def make(folder: Path, world: World, objects: int = 2, truth: bool = True) -> Made:
    prepared, files = folder / "prepared", folder / "files"
    (prepared / "truth").mkdir(parents=True) if truth else prepared.mkdir(parents=True)
    frames = world.frames if objects else world.background
    arrays = {
        "frames": frames,
        "masks": world.masks[:, :objects],
        "known": np.ones((T, objects), bool),
        "truth/background": world.background,
        "truth/layers": world.layers[:, :objects],
        "truth/camera": np.stack([shift(t, 0) for t in range(T)]),
        "truth/motion": np.array([[shift(*corner(n, t)) for n in range(objects)] for t in range(T)]).reshape(
            T, -1, 3, 3
        ),
        "truth/order": np.arange(objects),
    }
    for name, array in arrays.items():
        if truth or not name.startswith("truth/"):
            np.save(prepared / f"{name}.npy", array)
    write_json(prepared / "clip.json", {"objects": OBJECTS[:objects], "digits": [1, 2][:objects], "source": "test"})
    placement(REFERENCE[:objects]).save(prepared)
    ids = [sample_id(t) for t in range(T)]
    split = ["train" if t in TRAIN else "test" if t in TEST else "validation" for t in range(T)]
    times = np.arange(T) / (T - 1)
    write_table(
        prepared / "samples.parquet",
        pl.DataFrame({"sample_id": ids, "group": ids, "split": split, "index": range(T), "time": times}),
    )
    rows = []
    for t in range(T):
        save(frame_file(files, ids[t]), frames[t])
        save(layer_file(files, "background", ids[t]), np.dstack([world.background[t], np.full((H, W), 255, np.uint8)]))
        rows.append([ids[t], "background", -t, 0, W + T - t, 0, W + T - t, H, -t, H])
        for number, name in enumerate(OBJECTS[:objects]):
            save(layer_file(files, name, ids[t]), world.layers[t, number])
            (x, y), (width, height) = corner(number, t), SIZES[number]
            edges = (x - 2, y - 1, x + width + 2, y + height + 1)  # the plane is larger than what is on it
            rows.append([ids[t], name, *(edges[i] for i in (0, 1, 2, 1, 2, 3, 0, 3))])
            if truth:
                save(edit_file(files, "remove", name, ids[t]), world.removed[number][t])
                save(edit_file(files, "paint", name, ids[t]), world.painted[number][t])
    schema = {"sample_id": pl.String, "layer": pl.String, **dict.fromkeys(CORNERS, pl.Float64)}
    return Made(prepared, files, pl.DataFrame(rows, schema=schema, orient="row", strict=False))


@pytest.fixture
def made(tmp_path: Path, world: World) -> Made:
    return make(tmp_path, world)


@pytest.fixture
def filmed(tmp_path: Path, world: World) -> Made:
    return make(tmp_path, world, truth=False)


def values(found: Evaluation) -> dict[tuple[str, str], float]:
    return {(m.name, m.group): m.value for m in found.metrics}


def beside(found: Evaluation, name: str, group: str) -> dict[str | None, Metric]:
    return {m.baseline: m for m in found.metrics if (m.name, m.group) == (name, group)}


def db(
    one: np.ndarray, other: np.ndarray, where: np.ndarray | tuple[slice, slice] = (slice(None), slice(None))
) -> float:
    square = np.mean((one[where].astype(float) - other[where].astype(float)) ** 2)
    return min(CAP, float(10 * np.log10(255**2 / square))) if square else CAP


def unlike(found: Evaluation, other: Evaluation) -> set[tuple[str, str]]:
    """Which metrics of the model differ."""
    one, two = values(found), values(other)
    return {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}


# ------------------------------------------------------------------------------------------------- the whole judgement
def test_renderings_that_equal_the_truth_have_the_best_of_every_metric(made: Made) -> None:
    found = made.judged()
    best = {"psnr": CAP, "ssim": 1, "ms_ssim": 1, "alpha_iou": 1, "alpha_mae": 0, "pose_error": 0, "edit_psnr": CAP}
    assert found.headline == HEADLINE == found.metrics[0].name
    for metric in found.metrics:
        assert metric.value == pytest.approx(best[metric.name], abs=1e-6), metric
        assert (metric.low, metric.high) == pytest.approx((metric.value, metric.value), abs=1e-6)
        assert (metric.unit, metric.higher_is_better) == METRICS[metric.name]
    groups = {name: {group for n, group in values(found) if n == name} for name in best}
    assert groups["psnr"] == {
        "trained", "held_out", "occluded_background", "never_seen", *OBJECTS, "object-1_colour", "object-2_colour",
    }  # fmt: skip
    assert groups["ssim"] == groups["ms_ssim"] == {"trained", "held_out"}
    assert groups["alpha_iou"] == {"all", *OBJECTS}
    assert groups["alpha_mae"] == groups["pose_error"] == set(OBJECTS)
    assert groups["edit_psnr"] == {"remove", "paint"}


def test_every_metric_has_the_baselines_that_can_have_it(made: Made) -> None:
    found = made.judged()
    for name, group in values(found):
        own = {"alpha_iou", "alpha_mae", "pose_error"}
        without = group.endswith("_colour") or group == "paint"
        right = {None} if without else {"nearest_frame"} if name in own else BASELINES
        assert set(beside(found, name, group)) == right, (name, group)
        for baseline, metric in beside(found, name, group).items():
            if baseline is not None and group != "never_seen":
                assert metric.ahead, metric
    alone = made.judged(SETTINGS.model_copy(update={"baselines": ("placed",)}))
    assert set(beside(alone, "psnr", "held_out")) == {"placed"}
    assert set(beside(alone, "alpha_iou", "all")) == {None}
    assert set(beside(alone, "pose_error", "object-1")) == {None}


def test_frames_are_counted(made: Made) -> None:
    number = {(m.name, m.group): m.n for m in made.judged().metrics}
    assert number["psnr", "trained"] == len(TRAIN)
    assert set(number.values()) - {len(TRAIN)} == {len(TEST)}


def test_held_out_is_the_test_alone(made: Made, world: World) -> None:
    before = made.judged()
    for layer in ("background", *OBJECTS):
        made.change(layer_file(made.files, layer, sample_id(3)), lambda p: 255 - p)
    made.change(frame_file(made.files, sample_id(3)), lambda p: 255 - p)
    assert not unlike(made.judged(), before)  # it chose the weights
    made.change(frame_file(made.files, sample_id(4)), lambda p: 255 - p)
    assert unlike(made.judged(), before) == {("psnr", "trained"), ("ssim", "trained"), ("ms_ssim", "trained")}
    made.change(frame_file(made.files, sample_id(5)), lambda p: 255 - p)
    right = (CAP + db(255 - world.frames[5], world.frames[5])) / 2
    assert values(made.judged())["psnr", "held_out"] == pytest.approx(right, abs=1e-4)


def test_a_shifted_rendering_has_the_values_of_the_formulas(made: Made, world: World) -> None:
    moved = np.roll(world.frames, 1, axis=2)
    for t in range(T):
        save(frame_file(made.files, sample_id(t)), moved[t])
    found = made.judged()
    for group, positions in (("trained", TRAIN), ("held_out", TEST)):
        psnr = np.mean([db(moved[t], world.frames[t]) for t in positions])
        ssim = np.mean(
            [structural_similarity(moved[t], world.frames[t], channel_axis=2, data_range=255) for t in positions]
        )
        assert values(found)["psnr", group] == pytest.approx(psnr, abs=1e-4)
        assert values(found)["ssim", group] == pytest.approx(ssim, abs=1e-6)
        assert values(found)["ms_ssim", group] < 0.1
    own = np.mean([db(moved[t], world.frames[t], part(0, t)) for t in TEST])
    assert values(found)["psnr", "object-1"] == pytest.approx(own, abs=1e-4)
    seen = [world.masks[t, 1] > 0 for t in TEST]  # less than the whole object, where the other is before it
    own = np.mean([db(moved[t], world.frames[t], where) for t, where in zip(TEST, seen, strict=True)])
    assert values(found)["psnr", "object-2"] == pytest.approx(own, abs=1e-4)


def test_metrics_are_the_same_each_time_and_means_of_the_table(made: Made, world: World) -> None:
    for t in range(T):
        save(frame_file(made.files, sample_id(t)), np.roll(world.frames[t], t, axis=0))
    found, again = made.judged(), made.judged()
    assert found.metrics == again.metrics
    table = found.tables["per_frame.csv"]
    assert table.equals(again.tables["per_frame.csv"])
    assert table.shape[0] == T * (1 + len(BASELINES))
    assert table.filter(method="model")["sample_id"].to_list() == [sample_id(t) for t in range(T)]
    for name in ("psnr", "ssim", "ms_ssim"):
        for metric in beside(found, name, "held_out").values():
            test = table.filter(split="test")
            assert test.filter(method="model")[name].mean() == pytest.approx(metric.value)
            assert test.filter(method=metric.baseline)[name].mean() == pytest.approx(metric.baseline_value)
    held_out = beside(found, "psnr", "trained")["placed"]
    assert held_out.low < held_out.value < held_out.high


def test_lpips_takes_the_place_of_ms_ssim_where_there_are_weights(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stand_in(weights: Path) -> Callable[[np.ndarray, np.ndarray], float]:
        asked.append(weights)
        return lambda picture, truth: float(np.abs(picture.astype(float) - truth).mean())

    monkeypatch.setattr("manyscope.scopes.scenes.evaluate.lpips", stand_in)
    found = made.judged(SETTINGS.model_copy(update={"lpips_weights": Path("alexnet.pth")}))
    assert asked == [Path("alexnet.pth")]
    assert "ms_ssim" not in {m.name for m in found.metrics}
    assert values(found)["lpips", "held_out"] == 0
    assert all(m.ahead for m in beside(found, "lpips", "held_out").values())


def small(made: Made, height: int) -> Made:
    """The upper rows alone."""
    for path in [*made.prepared.glob("truth/[bl]*.npy"), made.prepared / "frames.npy", made.prepared / "masks.npy"]:
        array = np.load(path)
        np.save(path, array[..., :height, :] if path.name == "masks.npy" else array[..., :height, :, :])
    for path in made.files.rglob("*.png"):
        made.change(path, lambda picture: picture[:height])
    return made


def test_frames_too_small_for_lpips_are_refused_before_anything_is_judged(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"lpips_weights": Path("alexnet.pth")})
    small(made, LEAST_LPIPS_PX - 1)
    made.predictions = made.predictions.clear()  # of which nothing could be judged
    with pytest.raises(
        DataError,
        match=r"^evaluate\.lpips_weights: frames of 30 x 64 pixels are too small for LPIPS; allowed: null, or .* 31 ",
    ):
        made.judged(settings)
    with pytest.raises(DataError, match="no held-out frame was rendered"):
        made.judged()


# ------------------------------------------------------------------------------------ layers, poses, edits by the truth
def test_the_background_is_judged_where_it_is_hidden(made: Made, world: World) -> None:
    before = made.judged()
    seen, unseen = np.zeros((H, W), bool), np.zeros((H, W), bool)
    seen[part(0, 1)] = unseen[part(1, 1)] = True  # apart in frame 1

    def off(where: np.ndarray, by: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda p: np.where(where[..., None] & (np.arange(4) < 3), p + by, p).astype(np.uint8)

    file = layer_file(made.files, "background", sample_id(1))
    made.change(file, off(~(seen | unseen), 9))
    assert not unlike(made.judged(), before)
    made.change(file, off(seen, 10))
    found = made.judged()
    assert unlike(found, before) == {("psnr", "occluded_background")}
    assert values(found)["psnr", "occluded_background"] == pytest.approx((CAP + 20 * np.log10(25.5)) / 2)
    made.change(file, off(unseen, 20))
    found = made.judged()
    assert unlike(found, before) == {("psnr", "occluded_background"), ("psnr", "never_seen")}
    assert values(found)["psnr", "never_seen"] == pytest.approx((CAP + 20 * np.log10(12.75)) / 2)


def test_baselines_are_judged_behind_the_objects(made: Made, world: World) -> None:
    found = beside(made.judged(), "psnr", "occluded_background")
    where = {1: np.zeros((H, W), bool), 5: np.zeros((H, W), bool)}
    where[1][part(0, 1)] = where[5][part(0, 5)] = True
    where[5][part(1, 5)] = False
    right = np.mean([db(GREY, world.background[t], where[t]) for t in TEST])
    assert found["placed"].baseline_value == pytest.approx(right, abs=1e-4)
    nearest = NearestFrame(made.clip)
    right = np.mean([db(nearest.background(t), world.background[t], where[t]) for t in TEST])
    assert found["nearest_frame"].baseline_value == pytest.approx(right, abs=1e-4)


def test_opacity_is_judged_also_where_another_object_is_before(made: Made) -> None:
    before = made.judged()

    def narrower(picture: np.ndarray) -> np.ndarray:
        picture = picture.copy()
        picture[:, :27, 3] = 0  # of the ten columns from 25 on, two, which are behind the other object
        return picture

    made.change(layer_file(made.files, "object-2", sample_id(5)), narrower)
    found = made.judged()
    # What is transparent keeps its colour.
    assert unlike(found, before) == {("alpha_iou", "object-2"), ("alpha_iou", "all"), ("alpha_mae", "object-2")}
    assert values(found)["alpha_iou", "object-2"] == pytest.approx((1 + 0.8) / 2)
    assert values(found)["alpha_iou", "all"] == pytest.approx((1 + (1 + 0.8) / 2) / 2)
    assert values(found)["alpha_mae", "object-2"] == pytest.approx(2 * 14 / (H * W) / 2)
    # Its own mask in frame 0 is ten columns from 30 on, in frame 1 from 29 on.
    nearest = beside(found, "alpha_iou", "object-2")["nearest_frame"]
    assert nearest.baseline_value is not None
    hidden = np.zeros((H, W), bool)
    hidden[part(1, 4)] = True
    hidden[part(0, 4)] = False
    own = np.zeros((H, W), bool)
    own[part(1, 5)] = True
    right = (9 / 11 + (hidden & own).sum() / (hidden | own).sum()) / 2
    assert nearest.baseline_value == pytest.approx(right)


def test_the_colour_of_an_object_alone_is_judged_where_it_is_solid(made: Made, world: World) -> None:
    before = made.judged()

    def off(picture: np.ndarray) -> np.ndarray:
        wrong = np.where(world.layers[1, 0, ..., :3] > 100, world.layers[1, 0, ..., :3] - 10, 10)
        return np.dstack([wrong.astype(np.uint8), picture[..., 3]])

    made.change(layer_file(made.files, "object-1", sample_id(1)), off)
    found = made.judged()
    assert unlike(found, before) == {("psnr", "object-1_colour")}
    right = db(off(world.layers[1, 0])[..., :3], world.layers[1, 0, ..., :3], part(0, 1))
    assert values(found)["psnr", "object-1_colour"] == pytest.approx((CAP + right) / 2, abs=1e-4)


def test_pose_error_is_the_distance_of_corners(made: Made) -> None:
    before = made.judged()
    moved = pl.col("layer").eq("object-1") & pl.col("sample_id").eq(sample_id(5))
    by = {"x": 3.0, "y": -4.0}
    changed = [
        pl.when(moved).then(pl.col(name) + by[name.split("_")[2]]).otherwise(name).alias(name) for name in CORNERS
    ]
    made.predictions = made.predictions.with_columns(changed)
    found = made.judged()
    assert unlike(found, before) == {("pose_error", "object-1")}
    assert values(found)["pose_error", "object-1"] == pytest.approx(5 / 2)  # of two frames
    # It goes four pixels a frame, and the nearest training frame is one away.
    assert beside(found, "pose_error", "object-1")["nearest_frame"].baseline_value == pytest.approx(4)
    assert beside(found, "pose_error", "object-2")["nearest_frame"].baseline_value == pytest.approx(1)


def test_a_plane_that_grows_about_its_centre_is_a_wrong_pose(made: Made) -> None:
    one = (pl.col("layer") == "object-2") & (pl.col("sample_id") == sample_id(1))
    middle = {"x": 29 + 5, "y": 14 + 7}
    double = [(2 * pl.col(name) - middle[name.split("_")[2]]).alias(name) for name in CORNERS]
    grown = made.predictions.filter(one).with_columns(double)
    made.predictions = pl.concat([made.predictions.filter(~one), grown])
    right = float(np.hypot(5, 7)) / 2  # of two frames
    assert values(made.judged())["pose_error", "object-2"] == pytest.approx(right)


@pytest.mark.parametrize(("edit", "by"), [("remove", 10), ("paint", 5)])
def test_edits_are_judged_where_the_object_was(made: Made, edit: str, by: int) -> None:
    before = made.judged()
    own = np.zeros((H, W, 1), bool)
    own[part(0, 1)] = True
    file = edit_file(made.files, edit, "object-1", sample_id(1))
    made.change(file, lambda p: np.where(own, p, p + 100).astype(np.uint8))
    assert not unlike(made.judged(), before)
    made.change(file, lambda p: np.where(own, np.where(p > 127, p - by, p + by), p).astype(np.uint8))
    found = made.judged()
    assert unlike(found, before) == {("edit_psnr", edit)}
    # In frame 1 the other object is judged if it is painted; if it is removed, what comes into view was never seen.
    first = 20 * np.log10(255 / by) if edit == "remove" else (20 * np.log10(255 / by) + CAP) / 2
    assert values(found)["edit_psnr", edit] == pytest.approx((first + CAP) / 2, abs=1e-4)


def test_removed_objects_are_judged_against_what_was_seen_elsewhere(made: Made) -> None:
    before = made.judged()
    # Behind the second object is what no training frame shows, so that any picture of it will do, except where the
    # first one is before both.
    both = np.zeros((H, W), bool)
    both[part(0, 5)] = True
    other = np.zeros((H, W), bool)
    other[part(1, 5)] = True
    both &= other
    file = edit_file(made.files, "remove", "object-2", sample_id(5))
    made.change(file, lambda p: np.where((other & ~both)[..., None], 255 - p, p).astype(np.uint8))
    assert not unlike(made.judged(), before)
    made.change(file, lambda p: np.where(both[..., None], 255 - p, p).astype(np.uint8))
    assert unlike(made.judged(), before) == {("edit_psnr", "remove")}


def test_baselines_remove_one_object_and_leave_the_others(made: Made, world: World) -> None:
    def perfect(position: int, without: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        frames = world.frames if without is None else world.removed[OBJECTS.index(without)]
        return frames[position], world.background[position]

    found = beside(made.judged(placed=perfect), "edit_psnr", "remove")
    # In frame 5 one object is before the other, and stays where that is taken out.
    assert (world.masks[5, 0] > 0)[part(1, 5)].any()
    assert found["placed"].baseline_value == CAP
    assert found["placed"].difference == 0
    both = np.zeros((H, W), bool)
    both[part(0, 5)] = True
    alone = both.copy()
    both[: part(1, 5)[0].start] = both[part(1, 5)[0].stop :] = False
    both[:, : part(1, 5)[1].start] = both[:, part(1, 5)[1].stop :] = False
    nearest, median = NearestFrame(made.clip), TemporalMedian(made.clip)
    first = np.zeros((H, W), bool)
    first[part(0, 1)] = True
    for name, baseline in (("nearest_frame", nearest), ("temporal_median", median)):
        scores = [
            [db(baseline.without(1, 0), world.removed[0][1], first)],
            # What is behind the second object was seen nowhere, and only the first, before it, is judged.
            [
                db(baseline.without(5, 0), world.removed[0][5], alone),
                db(baseline.without(5, 1), world.removed[1][5], both),
            ],
        ]
        right = np.mean([np.mean(scores_of_one) for scores_of_one in scores])
        assert found[name].baseline_value == pytest.approx(right, abs=1e-4)


def test_clips_whose_edits_were_not_made_have_no_metric_of_them(made: Made) -> None:
    before = made.judged()
    for edit in ("remove", "paint"):
        for file in (made.files / "edits").glob(f"{edit}-*/*.png"):
            file.unlink()
        for folder in (made.files / "edits").glob(f"{edit}-*"):
            folder.rmdir()
        assert unlike(made.judged(), before) >= {("edit_psnr", edit)}
    assert unlike(made.judged(), before) == {("edit_psnr", "remove"), ("edit_psnr", "paint")}


@pytest.mark.parametrize("size", [(H, W), (20, 30)])
def test_edits_of_an_earlier_clip_are_neither_judged_nor_shown(
    tmp_path: Path, world: World, size: tuple[int, int]
) -> None:
    shown = SETTINGS.model_copy(update={"shown": 2})
    for name, made in (
        ("filmed", make(tmp_path / "filmed", world, truth=False)),
        ("one", make(tmp_path / "one", world, objects=1)),
    ):
        before = made.judged(shown)
        stale = OBJECTS if name == "filmed" else OBJECTS[1:]
        for edit, layer, t in itertools.product(("remove", "paint"), stale, range(T)):
            save(edit_file(made.files, edit, layer, sample_id(t)), np.zeros((*size, 3), np.uint8))
        found = made.judged(shown)
        assert found.metrics == before.metrics
        assert set(found.figures) == set(before.figures)
        assert ("edits" in found.figures) == (name == "one")
        for one, other in zip(found.figures.values(), before.figures.values(), strict=True):
            assert [a.get_title() for a in one.axes] == [a.get_title() for a in other.axes]


def test_soft_objects_are_composited_by_their_opacity() -> None:
    layers = np.zeros((2, 2, 1, 8, 4), np.uint8)
    layers[:, 0, 0, 2:4] = (200, 100, 0, 102)  # the nearer, 40 %
    layers[:, 1, 0, 2:6] = (0, 50, 100, 204)  # 80 %
    layers[:, 0, 0, 7] = (9, 9, 9, 12)  # less than a trace
    truth = Truth.__new__(Truth)
    truth.background = np.full((2, 1, 8, 3), 100, np.uint8)
    truth.layers, truth.order = layers, [0, 1]
    truth.camera = np.stack([shift(0, 0), shift(4, 0)])
    truth.motion = np.array([[shift(0, 0)] * 2] * 2)
    scene = TrueScene(truth, [1])
    whole, painted = scene.painted(0, 1, np.full((1, 8, 4), 255, np.uint8), 0)
    far = 0.8 * 255 + 0.2 * 100
    assert whole[0, 5].tolist() == [round(far)] * 3
    assert whole[0, 2].tolist() == np.round(0.4 * np.array([200, 100, 0]) + 0.6 * far).astype(int).tolist()
    assert not painted.any()  # 80 % is not solid
    solid = layers.copy()
    solid[:, 1, 0, 2:6, 3] = 230
    truth.layers = solid
    assert TrueScene(truth, [1]).painted(0, 1, np.full((1, 8, 4), 255, np.uint8), 0)[1][0].tolist() == [
        False, False, False, False, True, True, False, False,
    ]  # fmt: skip
    truth.layers = layers
    without, known = TrueScene(truth, [1]).without(0, 1)
    assert without[0, 2].tolist() == np.round(0.4 * np.array([200, 100, 0]) + 0.6 * 100).astype(int).tolist()
    assert without[0, 4].tolist() == [100] * 3
    # Frame 1 shows the background four pixels farther left: places 4 and 5 of frame 0 are its 0 and 1, where it is
    # clear; 2 and 3 are outside of it.
    assert known[0].tolist() == [False, False, False, False, True, True, False, False]
    assert scene.hidden(0)[0].tolist() == [False, False, True, True, True, True, False, False]
    assert scene.seen(1, None, np.ones((1, 8), bool))[0].tolist() == [
        True, True, False, False, False, False, True, True,
    ]  # fmt: skip
    assert TrueScene(truth, [0]).seen(1, None, np.ones((1, 8), bool))[0].tolist() == [
        False, False, True, True, False, False, False, False,
    ]  # fmt: skip


def test_paint_is_carried_only_where_it_was_in_the_frame() -> None:
    truth = Truth.__new__(Truth)
    truth.background = np.zeros((2, 1, 6, 3), np.uint8)
    truth.layers = np.full((2, 1, 1, 6, 4), 255, np.uint8)
    truth.order, truth.camera = [0], np.stack([np.eye(3)] * 2)
    truth.motion = np.array([[shift(0, 0)], [shift(2, 0)]])
    paint = np.zeros((1, 6, 4), np.uint8)
    paint[0, :, 0], paint[0, :, 3] = np.arange(6) * 10, 255
    paint[0, 1, 3] = 0  # not painted
    picture, where = TrueScene(truth, [0]).painted(1, 0, paint, 0)
    assert where[0].tolist() == [False, False, True, True, True, True]
    assert picture[0, :, 0].tolist() == [255, 255, 0, 255, 20, 30]


# -------------------------------------------------------------------------------------------------------- baselines
def test_the_nearest_frame_is_another_one_and_the_earlier_of_two(made: Made, world: World) -> None:
    nearest = NearestFrame(made.clip)
    assert [nearest.position(t) for t in range(T)] == [2, 0, 0, 2, 2, 4, 7, 6]
    assert (nearest.frame(5) == world.frames[4]).all()
    assert (nearest.mask(5, 1) == world.masks[4, 1]).all()


def test_the_nearest_background_is_of_the_nearest_clear_frame(made: Made, world: World) -> None:
    ordered = [4, 6, 7, 2, 0]  # from frame 5
    clear = (world.masks == 0).all(1)
    picture = NearestFrame(made.clip).background(5)
    for y, x in np.ndindex(H, W):
        first = next((t for t in ordered if clear[t, y, x]), 4)
        assert (picture[y, x] == world.frames[first, y, x]).all()


def test_the_nearest_frame_without_an_object_shows_it_nowhere_and_all_else_as_it_is(made: Made, world: World) -> None:
    ordered = [4, 6, 7, 2, 0]  # from frame 5
    picture = NearestFrame(made.clip).without(5, 0)
    for y, x in np.ndindex(H, W):
        first = next((t for t in ordered if not world.masks[t, 0, y, x]), 4)
        assert (picture[y, x] == world.frames[first, y, x]).all()
    other = world.masks[4, 1] > 0
    assert other.any()
    assert (picture[other] == world.frames[4][other]).all()


def test_the_median_without_an_object_carries_the_others(made: Made, world: World) -> None:
    median = TemporalMedian(made.clip)
    for number in range(2):
        picture, other = median.without(5, number), world.masks[4, 1 - number] > 0
        assert other.any()
        assert (picture[other] == world.frames[4][other]).all()
        assert (picture[~other] == median.background(5)[~other]).all()


def test_the_median_carries_the_objects_of_the_nearest_frame(made: Made, world: World) -> None:
    median = TemporalMedian(made.clip)
    background = median.background(5)
    clear = (world.masks == 0).all(1)
    for y, x in ((0, 0), (12, 20), (16, 28), (40, 63)):
        shown = [t for t in TRAIN if clear[t, y, x]]
        assert (background[y, x] == np.round(np.median(world.frames[shown, y, x], axis=0))).all()
    assert len([t for t in TRAIN if clear[t, 12, 20]]) < len(TRAIN)
    frame, masked = median.frame(5), (world.masks[4] > 0).any(0)
    assert (frame[masked] == world.frames[4][masked]).all()
    assert (frame[~masked] == background[~masked]).all()


def test_baselines_know_nothing_of_frames_that_were_not_trained_on(made: Made) -> None:
    before = made.clip
    own = NearestFrame(before), TemporalMedian(before)
    frames, masks = np.load(made.prepared / "frames.npy"), np.load(made.prepared / "masks.npy")
    frames[TEST + VALIDATION] = 255 - frames[TEST + VALIDATION]
    masks[TEST + VALIDATION] = 255 - masks[TEST + VALIDATION]
    np.save(made.prepared / "frames.npy", frames)
    np.save(made.prepared / "masks.npy", masks)
    after = made.clip
    for one, other in zip(own, (NearestFrame(after), TemporalMedian(after)), strict=True):
        for t in range(T):
            assert (one.frame(t) == other.frame(t)).all()
            assert (one.background(t) == other.background(t)).all()
            assert (one.without(t, 0) == other.without(t, 0)).all()


def test_baselines_take_no_mask_that_is_not_known(made: Made, world: World) -> None:
    known, masks = np.ones((T, 2), bool), world.masks.copy()
    known[4], masks[4] = False, 0
    np.save(made.prepared / "known.npy", known)
    np.save(made.prepared / "masks.npy", masks)
    nearest, median = NearestFrame(made.clip), TemporalMedian(made.clip)
    assert (nearest.mask(5, 0) == world.masks[6, 0]).all()
    assert (nearest.frame(5) == world.frames[4]).all()
    assert (nearest.background(5)[40] == world.frames[6, 40]).all()
    assert (median.frame(5)[part(0, 6)] == world.frames[6][part(0, 6)]).all()
    shown = [t for t in TRAIN if t != 4]
    assert (median.background(5)[40] == np.round(np.median(world.frames[shown, 40], axis=0))).all()
    np.save(made.prepared / "known.npy", np.zeros((T, 2), bool))
    np.save(made.prepared / "masks.npy", np.zeros_like(masks))
    nearest, median = NearestFrame(made.clip), TemporalMedian(made.clip)
    assert not nearest.mask(5, 0).any()
    assert (nearest.background(5) == world.frames[4]).all()
    assert (median.frame(5) == np.round(np.median(world.frames[TRAIN], axis=0))).all()


def test_the_scene_as_placed_is_rendered_once_for_a_frame() -> None:
    asked = []

    def placed(position: int, without: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        asked.append((position, without))
        frame = position if without is None else position + 200
        return np.full((2, 2, 3), frame, np.uint8), np.full((2, 2, 3), 100 + position, np.uint8)

    method = AsPlaced(placed, OBJECTS)
    assert [method.frame(1)[0, 0, 0], method.background(1)[0, 0, 0], method.frame(2)[0, 0, 0]] == [1, 101, 2]
    assert asked == [(1, None), (2, None)]
    assert method.without(2, 1)[0, 0, 0] == 202
    assert method.frame(2)[0, 0, 0] == 2
    assert asked == [(1, None), (2, None), (2, "object-2")]


# ----------------------------------------------------------------------------------------------------- other clips
def test_a_filmed_clip_is_judged_by_its_masks(filmed: Made) -> None:
    found = filmed.judged()
    assert {(m.name, m.group) for m in found.metrics} == {
        *((name, group) for name in ("psnr", "ssim", "ms_ssim") for group in ("trained", "held_out")),
        *(("psnr", name) for name in OBJECTS), *(("alpha_iou", name) for name in ("all", *OBJECTS)),
    }  # fmt: skip
    assert values(found)["alpha_iou", "object-2"] == 1  # though the mask lacks what the other object hides
    # Opacity behind the other object is neither right nor wrong; beside it, it is wrong.
    behind, aside = part(0, 5), (slice(20, 24), slice(36, 46))  # 40 pixels right of both

    def more(where: tuple[slice, slice]) -> Callable[[np.ndarray], np.ndarray]:
        def change(picture: np.ndarray) -> np.ndarray:
            picture = picture.copy()
            picture[(*where, 3)] = 255
            return picture

        return change

    file = layer_file(filmed.files, "object-2", sample_id(5))
    filmed.change(file, more(behind))
    assert values(filmed.judged())["alpha_iou", "object-2"] == 1
    filmed.change(file, more(aside))
    own = (filmed.clip.masks[5, 1] > 0).sum()
    assert values(filmed.judged())["alpha_iou", "object-2"] == pytest.approx((1 + own / (own + 40)) / 2)


def test_unknown_masks_judge_nothing(filmed: Made) -> None:
    known, masks = np.load(filmed.prepared / "known.npy"), np.load(filmed.prepared / "masks.npy")
    known[5, 0], masks[5, 0] = False, 0
    known[TEST, 1], masks[TEST, 1] = False, 0
    np.save(filmed.prepared / "known.npy", known)
    np.save(filmed.prepared / "masks.npy", masks)
    number = {(m.name, m.group): m.n for m in filmed.judged().metrics}
    assert number["alpha_iou", "object-1"] == number["psnr", "object-1"] == number["alpha_iou", "all"] == 1
    assert not [key for key in number if key[1] == "object-2"]


@pytest.mark.parametrize("truth", [True, False])
def test_a_scene_without_objects(tmp_path: Path, world: World, truth: bool) -> None:
    made = make(tmp_path, world, objects=0, truth=truth)
    found = made.judged(SETTINGS.model_copy(update={"shown": 2}))
    assert {m.group for m in found.metrics} == {"trained", "held_out"}
    assert set(beside(found, "psnr", "held_out")) == BASELINES
    assert set(found.figures) == {"psnr", "frames", "layers"}


def test_an_object_outside_of_a_frame_is_an_empty_layer(made: Made) -> None:
    before = made.judged()
    out = (pl.col("layer") == "object-1") & (pl.col("sample_id") == sample_id(5))
    made.predictions = made.predictions.filter(~out)
    layer_file(made.files, "object-1", sample_id(5)).unlink()
    found = made.judged()
    assert values(found)["alpha_iou", "object-1"] == 1 / 2  # it is in the clip's frame
    assert {m.n for m in beside(found, "pose_error", "object-1").values()} == {1}
    assert values(found)["psnr", "object-1_colour"] < CAP
    assert values(found)["psnr", "held_out"] == values(before)["psnr", "held_out"]


def test_an_object_outside_of_the_clips_frame_is_not_judged_there(made: Made) -> None:
    layers, masks = np.load(made.prepared / "truth/layers.npy"), np.load(made.prepared / "masks.npy")
    layers[1, 0], masks[1, 0] = 0, 0
    np.save(made.prepared / "truth/layers.npy", layers)
    np.save(made.prepared / "masks.npy", masks)
    number = {(m.name, m.group): m.n for m in made.judged().metrics}
    for name in ("psnr", "alpha_iou", "pose_error"):
        assert number[name, "object-1"] == 1
        assert number[name, "object-2"] == 2
    assert number["alpha_mae", "object-1"] == 2


# ---------------------------------------------------------------------------------------------------- broken files
@pytest.mark.parametrize("folder", ["frames", "layers/background", "layers/object-2", "edits/remove-object-1"])
def test_pictures_that_are_missing_broken_or_of_another_size_ask_for_infer(made: Made, folder: str) -> None:
    file = made.files / folder / f"{sample_id(5)}.png"
    file.unlink()
    with pytest.raises(
        DataError, match=rf"{folder}/frame-00005\.png: the picture is missing; run the stage infer again"
    ):
        made.judged()
    file.write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"{folder}/frame-00005\.png: the picture cannot be read .*infer again"):
        made.judged()
    save(file, np.zeros((7, 9, 3), np.uint8))
    with pytest.raises(DataError, match="has 7 x 9 pixels; allowed: 48 x 64"):
        made.judged()


def test_without_held_out_frames_there_is_nothing_to_judge(made: Made) -> None:
    whole = made.predictions
    made.predictions = whole.filter(~pl.col("sample_id").is_in([sample_id(t) for t in TEST]))
    with pytest.raises(DataError, match=r"no held-out frame was rendered; add 'test' to infer\.splits"):
        made.judged()
    made.predictions = whole.filter(pl.col("sample_id") != sample_id(5))
    with pytest.raises(DataError, match="sample 'frame-00005' was not rendered; run the stage infer again"):
        made.judged()


def test_without_trained_frames_the_held_out_ones_are_judged(made: Made) -> None:
    ids = [sample_id(t) for t in TRAIN]
    made.predictions = made.predictions.filter(~pl.col("sample_id").is_in(ids))
    for name in ids:
        frame_file(made.files, name).unlink()
    found = made.judged(SETTINGS.model_copy(update={"shown": 1}))
    assert "trained" not in {m.group for m in found.metrics}
    assert "pose_error" not in {m.name for m in found.metrics}  # the reference frame was not rendered
    assert values(found)["psnr", "held_out"] == CAP


def test_predictions_of_another_model_are_refused(made: Made) -> None:
    made.predictions = made.predictions.drop("corner_2_y_px")
    with pytest.raises(DataError, match=r"predictions\.parquet: no column 'corner_2_y_px'"):
        made.judged()


def test_few_frames_are_named_as_few(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("manyscope")
    logger.addHandler(caplog.handler)
    try:
        made.judged()
    finally:
        logger.removeHandler(caplog.handler)
    assert len(TEST) < FEWEST
    assert f"from {len(TEST)} held-out frames only" in caplog.text


# ------------------------------------------------------------------------------------------------ figures and videos
def test_every_figure_has_a_caption_and_can_be_saved(made: Made, tmp_path: Path) -> None:
    save(atlas_file(made.files, "object-1"), np.full((30, 20, 4), 90, np.uint8))
    found = made.judged(SETTINGS.model_copy(update={"shown": 4}))
    assert set(found.figures) == set(found.captions) == {"psnr", "frames", "layers", "atlases", "edits"}
    for name, figure in found.figures.items():
        save_figure(figure, tmp_path / f"{name}.png")
        assert np.asarray(Image.open(tmp_path / f"{name}.png")).std() > 5
    titles = {name: [a.get_title() for a in figure.axes if a.images] for name, figure in found.figures.items()}
    assert titles["frames"] == [
        title for t in TEST for title in (f"frame {t} as filmed", "rendered: 60.0 dB", "difference × 4")
    ]
    assert titles["layers"] == ["frame 1 as rendered", "background alone", "object-1 alone", "object-2 alone"]
    assert titles["atlases"] == ["plane of object-1"]
    assert titles["edits"][:3] == ["frame 1 as rendered", "without object-1", "with object-1 painted"]
    assert len(titles["edits"]) == 6


def test_the_difference_is_shown_four_times_as_large(made: Made, world: World) -> None:
    made.change(frame_file(made.files, sample_id(1)), lambda p: np.where(p > 100, p - 9, p).astype(np.uint8))
    found = made.judged(SETTINGS.model_copy(update={"shown": 2}))
    pictures = [np.asarray(axis.images[0].get_array()) for axis in found.figures["frames"].axes]
    assert (pictures[0] == world.frames[1]).all()
    right = np.round(4 * 9 * (world.frames[1] > 100).mean(-1))
    assert (pictures[2] == right[..., None]).all()
    assert not pictures[5].any()


def test_without_shown_frames_there_is_the_curve_alone(made: Made) -> None:
    found = made.judged()
    assert set(found.figures) == set(found.captions) == {"psnr"}
    (axis,) = found.figures["psnr"].axes
    lines = {line.get_color(): line.get_xdata() for line in axis.lines if line.get_linestyle() == "-"}
    assert len(lines) == 1 + len(BASELINES)
    assert all(list(x) == list(range(T)) for x in lines.values())
    marked = [list(line.get_xdata()) for line in axis.lines if line.get_marker() not in ("None", "")]
    assert marked[-1] == TEST


def test_layers_are_shown_before_a_checkerboard() -> None:
    picture = np.zeros((24, 24, 4), np.uint8)
    picture[:, :12] = (200, 100, 0, 255)
    picture[12:, 12:] = (200, 100, 0, 51)
    shown = figures.on_checkerboard(picture)
    assert shown[0, 0].tolist() == [200, 100, 0]
    assert shown[0, 12].tolist() == [220] * 3
    assert shown[12, 12].tolist() == [160, 140, 120]  # a fifth of it before 150


def test_the_rendered_frames_become_a_video_and_a_moving_picture(made: Made, world: World, tmp_path: Path) -> None:
    found = made.judged()
    for name in ("scene.mp4", "scene.webp"):
        found.files[name](tmp_path / name)
    frames = list(read_frames(tmp_path / "scene.mp4"))
    assert len(frames) == T
    assert frames[0].shape == (H, W, 3)
    with Image.open(tmp_path / "scene.webp") as moving:
        assert moving.n_frames == T
        moving.seek(5)
        shown = np.asarray(moving.convert("RGB")).astype(float)
    likeness = [np.corrcoef(shown.ravel(), world.frames[t].ravel())[0, 1] for t in range(T)]
    assert int(np.argmax(likeness)) == 5


def test_each_layer_becomes_a_video_before_a_checkerboard(made: Made, world: World, tmp_path: Path) -> None:
    # In frame 5 the second object is outside.
    made.predictions = made.predictions.filter(pl.col("layer").ne("object-2") | pl.col("sample_id").ne(sample_id(5)))
    found = made.judged()
    layers = ["background", *OBJECTS]
    assert set(found.files) == {"scene.mp4", "scene.webp", *(f"{layer}.mp4" for layer in layers)}
    board = figures.on_checkerboard(np.zeros((H, W, 4), np.uint8)).astype(int)
    for layer in layers:
        found.files[f"{layer}.mp4"](tmp_path / f"{layer}.mp4")
        shown = [frame.astype(int) for frame in read_frames(tmp_path / f"{layer}.mp4")]
        assert len(shown) == T
        for t, frame in enumerate(shown):
            own = np.zeros((H, W), bool)
            if layer == "background":
                own[:] = True
            elif (layer, t) != ("object-2", 5):
                own[part(OBJECTS.index(layer), t)] = True
            right = board.copy()
            picture = world.background[t] if layer == "background" else world.layers[t, OBJECTS.index(layer), ..., :3]
            right[own] = picture[own]
            # Brightness alone: the format has colours for pairs of pixels.
            assert np.abs(frame.mean(-1) - right.mean(-1)).mean() < 12, (layer, t)


def test_videos_of_layers_read_one_picture_at_a_time(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made.judged()
    read, most = [], []
    whole = figures.on_checkerboard

    def watched(picture: np.ndarray) -> np.ndarray:
        read.append(weakref.ref(made_of := whole(picture)))
        most.append(sum(other() is not None for other in read))
        return made_of

    monkeypatch.setattr(figures, "on_checkerboard", watched)
    found.files["object-1.mp4"](tmp_path / "object-1.mp4")
    assert len(most) == T
    assert max(most) <= 3
