"""Preparation: frames dealt by their place, masks with grey edges, every array as the clip reads it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from manyscope.errors import DataError
from manyscope.log import logger
from manyscope.scopes.scenes.data.clip import Clip
from manyscope.scopes.scenes.data.folder import Folder
from manyscope.scopes.scenes.data.prepare import count_problems, deal, prepare, working_size
from manyscope.scopes.scenes.data.sources import Masks, RawClip
from manyscope.scopes.scenes.data.video import write_mp4
from manyscope.scopes.scenes.settings import (
    FolderSettings,
    ScenesDownload,
    ScenesPreprocess,
    ScenesSettings,
    SyntheticSettings,
)
from manyscope.scopes.scenes.simulate import Synthetic
from manyscope.tables.manifest import describe
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import check_samples

# A real clip, beside the repository where somebody has put it.
SAMPLES = Path(__file__).resolve().parents[4] / "shared/data/scenes/davis480p"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no clip in {SAMPLES}")

SIZE = (32, 48)
PLACE = Path("here")


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the placing was asked for; it does nothing here."""
    asked = SimpleNamespace()

    def place(frames: Any, masks: Any, known: Any, times: Any, trained: Any, settings: Any, **more: Any) -> Any:
        vars(asked).update(
            frames=frames, masks=masks, known=known, times=times, trained=trained, settings=settings, **more
        )
        return SimpleNamespace(save=lambda prepared: (prepared / "placement.npz").touch())

    module = ModuleType("placing")
    module.place = place  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "manyscope.scopes.scenes.data.placing", module)
    return asked


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger="manyscope")
    return caplog


def box(left: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[8:20, left : left + 10] = True
    return mask


def frame(position: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([y * 3, x * 2, np.full(size, 10 * position)], axis=2).astype(np.uint8)


def raw_clip(count: int = 9, masks: Callable[[int], Masks | None] | None = None, **more: Any) -> RawClip:
    return RawClip("made up", tuple(range(count)), frame, masks or (lambda p: {1: box(p), 4: box(30)}), **more)


def run(clip: RawClip, prepared: Path, **more: Any) -> tuple[Clip, pl.DataFrame]:
    samples = prepare(clip, ScenesPreprocess.model_validate(more), prepared.parent / "raw", prepared)
    write_table(prepared / "samples.parquet", check_samples(samples, prepared))
    return Clip(prepared), samples


@given(st.integers(1, 60), st.integers(2, 9))
def test_frames_are_dealt_by_their_place(count: int, every: int) -> None:
    if count < 2 * every + 1:
        with pytest.raises(DataError, match=rf"the clip has {count} frames?; allowed: at least {2 * every + 1}"):
            deal(count, every, PLACE)
        return
    split = deal(count, every, PLACE)
    held_out = [p for p in range(1, count - 1) if p % every == every - 1]
    assert [p for p in range(count) if split[p] != "train"] == held_out
    assert [split[p] == "validation" for p in held_out] == [i % 4 == 1 for i in range(len(held_out))]
    assert {"train", "validation", "test"} == set(split)
    assert split[0] == split[-1] == "train"
    assert deal(count + 1, every, PLACE)[: count - 1] == split[:-1]  # a longer clip moves none but the last


def test_too_short_a_clip_says_how_many_frames_are_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the clip has 1 frame; allowed: at least 7, with .*held_out_every 3"):
        run(raw_clip(1), tmp_path / "prepared", held_out_every=3)


def problems(source: str, held_out_every: int = 2, most_objects: int = 32, **download: Any) -> list[str]:
    given = {
        "scope": "scenes",
        "title": "A clip",
        "download": {"source": source, **download},
        "preprocess": {"held_out_every": held_out_every, "most_objects": most_objects},
    }
    return list(count_problems(ScenesSettings.model_validate(given)))


def test_a_synthetic_clip_that_is_too_short_is_said_before_it_is_drawn() -> None:
    (line,) = problems("synthetic", synthetic={"frames": 4})
    assert line.startswith("download.synthetic: the clip has 4 frames; allowed: at least 5, with preprocess.held_out_")
    assert "take more frames" in line
    assert problems("synthetic", synthetic={"frames": 5}) == []
    assert len(problems("synthetic", 3, synthetic={"frames": 6})) == 1
    (line,) = problems("synthetic", most_objects=1)
    assert line.startswith("download.synthetic: found 2 objects; allowed: 1;")
    assert "raise preprocess.most_objects" in line
    assert problems("somewhere:Else", synthetic={"frames": 1}) == []


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_with_too_few_frames_is_said_before_it_is_linked(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    for number in range(6):
        save(frames / f"clip_{number:05d}.png", frame(number))
    (frames / "notes.txt").touch()
    (frames / ".clip_00009.png").touch()
    assert problems("folder", folder={"frames": frames}) == []
    (line,) = problems("folder", 3, folder={"frames": frames})
    assert line.startswith("download.folder: the clip has 6 frames; allowed: at least 7, with")
    for chosen in ({"every": 2}, {"first": 2}, {"last": 3}, {"first": 1, "last": 4}):
        assert len(problems("folder", folder={"frames": frames, **chosen})) == 1, chosen
    # Of these the source says something.
    for wrong in ({"frames": tmp_path / "none"}, {"frames": frames, "first": 9}):
        assert problems("folder", folder=wrong) == []
    assert problems("folder", folder={"frames": frames, "frame_pattern": r"(?P<index>[a-z]+)_.*"}) == []


def test_a_video_with_too_few_frames_is_said(tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    write_mp4(file, [frame(number) for number in range(6)], 10)
    assert problems("folder", folder={"frames": file}) == []
    assert len(problems("folder", 3, folder={"frames": file})) == 1
    assert len(problems("folder", folder={"frames": file, "last": 3})) == 1
    file.write_text("no video")
    assert problems("folder", folder={"frames": file}) == []


def test_a_folder_with_too_many_objects_is_said(tmp_path: Path) -> None:
    frames, masks = tmp_path / "frames", tmp_path / "masks"
    for number in range(6):
        save(frames / f"{number:05d}.png", frame(number))
        save(masks / f"{number:05d}.png", box(10).astype(np.uint8) * (number + 1))
    given = {"frames": frames, "masks": masks}
    (line,) = problems("folder", most_objects=5, folder=given)
    assert line.startswith("download.folder: found 6 objects; allowed: 5;")
    assert problems("folder", most_objects=6, folder=given) == []
    for fewer in ({"ignore_objects": [2]}, {"last": 4}):
        assert problems("folder", most_objects=5, folder={**given, **fewer}) == []
    (masks / "00003.png").write_text("broken")  # of which the source says it
    assert problems("folder", most_objects=5, folder=given) == []
    each = {"frames": frames, "masks": tmp_path / "each"}
    for digit in (1, 2, 7):
        save(tmp_path / f"each/{digit}/00000.png", box(10).astype(np.uint8))
    assert len(problems("folder", most_objects=2, folder=each)) == 1
    assert problems("folder", most_objects=2, folder={**each, "ignore_objects": [7]}) == []


def test_smoothed_masks_are_not_taken_for_many_objects_too(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / f"frames/{number:05d}.png", frame(number))
        small = Image.fromarray(box(10).astype(np.uint8) * 255).resize((24, 16), Image.Resampling.BILINEAR)
        save(tmp_path / f"masks/{number:05d}.png", np.asarray(small.resize((48, 32), Image.Resampling.BICUBIC)))
    given = {"frames": tmp_path / "frames", "masks": tmp_path / "masks"}
    assert len(list(Folder().problems(ScenesDownload(source="folder", folder=FolderSettings(**given))))) == 1
    assert problems("folder", most_objects=3, folder=given) == []


@given(st.integers(20, 3000), st.integers(20, 3000), st.floats(0.01, 1), st.integers(32, 3000))
def test_the_working_size_keeps_the_shape(height: int, width: int, factor: float, longest: int) -> None:
    given = ScenesPreprocess(resolution_factor=factor, longest_px=longest)
    scale = min(factor, longest / max(height, width))
    if round(min(height, width) * scale) < 16:
        with pytest.raises(DataError, match=r"become \d+ x \d+; allowed: 16 px or more"):
            working_size(height, width, given, PLACE)
        return
    found = working_size(height, width, given, PLACE)
    assert max(found) <= min(longest, max(height, width))
    assert np.allclose(found, (height * scale, width * scale), atol=0.51)


def test_every_array_is_as_the_clip_reads_it(tmp_path: Path, placed: SimpleNamespace) -> None:
    clip, samples = run(raw_clip(notes={"author": "me"}), tmp_path / "prepared")
    assert samples["sample_id"].to_list() == [f"frame-{p:05d}" for p in range(9)]
    assert (samples["group"] == samples["sample_id"]).all()
    assert clip.objects == ["object-1", "object-4"]
    assert clip.meta["digits"] == [1, 4]
    assert clip.meta["source"] == "made up"
    assert clip.meta["author"] == "me"
    assert clip.size == SIZE
    for position in range(9):
        assert np.array_equal(clip.frames[position], frame(position))
        assert np.array_equal(clip.masks[position], np.stack([box(position), box(30)]) * np.uint8(255))
    assert clip.known.all()
    assert np.array_equal(clip.times, np.arange(9) / 8)
    assert samples["objects"].to_list() == [2] * 9
    union = [(box(p) | box(30)).mean() for p in range(9)]
    assert np.allclose(samples["covered"].to_numpy(), union)
    assert clip.truth is None
    assert (tmp_path / "prepared/placement.npz").exists()
    assert list(placed.trained) == [0, 2, 4, 6, 8]
    assert placed.depth is None
    assert placed.boxes is None
    assert np.array_equal(placed.masks, clip.masks)


def test_times_follow_the_numbers_of_frames(tmp_path: Path, placed: SimpleNamespace) -> None:
    numbers = (3, 4, 5, 7, 8, 13)
    clip, samples = run(replace(raw_clip(6), indices=numbers), tmp_path / "prepared")
    assert samples["index"].to_list() == list(numbers)
    assert samples["sample_id"][5] == "frame-00013"
    assert np.allclose(clip.times, [0, 0.1, 0.2, 0.4, 0.5, 1])
    assert np.array_equal(placed.times, clip.times)


def test_shrinking_averages_masks_and_does_not_alias(tmp_path: Path, placed: SimpleNamespace) -> None:
    checker = np.kron((np.indices((32, 48)).sum(0) % 2), np.ones((1, 1))).astype(np.uint8)[..., None] * 255
    depth = np.linspace(1, 2, 32 * 48, dtype=np.float32).reshape(SIZE)
    source = RawClip(
        "x", tuple(range(5)), lambda _: np.repeat(checker, 3, 2), lambda _: {1: box(9)}, depth=lambda _: depth
    )
    clip, samples = run(source, tmp_path / "prepared", resolution_factor=0.5)
    assert clip.size == (16, 24)
    assert np.abs(clip.frames.astype(int) - 127).max() < 12
    assert np.array_equal(
        clip.masks[0, 0, 4:10, 4:10], np.tile(np.array([128, 255, 255, 255, 255, 128], np.uint8), (6, 1))
    )
    assert clip.masks[0].sum() / 255 == pytest.approx(box(9).sum() / 4, rel=0.01)
    assert samples["covered"][0] == pytest.approx(box(9).mean(), rel=0.01)
    assert np.load(tmp_path / "prepared/depth.npy").mean() == pytest.approx(depth.mean(), rel=1e-3)
    assert run(source, tmp_path / "longest", longest_px=36)[0].size == (24, 36)


def test_what_is_not_known_is_not_taken_for_absent(tmp_path: Path, placed: SimpleNamespace) -> None:
    def masks(position: int) -> Masks | None:
        if position == 3:
            return None
        if position == 4:
            return {1: box(3), 2: None}
        return {1: box(3)} if position == 6 else {1: box(3), 2: box(20)}

    clip, samples = run(raw_clip(9, masks), tmp_path / "prepared")
    wanted = np.ones((9, 2), bool)
    wanted[3], wanted[4, 1] = False, False
    assert np.array_equal(clip.known, wanted)
    assert not clip.masks[3].any()
    assert samples["objects"].to_list() == [2, 2, 2, None, 1, 2, 1, 2, 2]
    assert samples["covered"][3] is None
    assert np.array_equal(placed.known, wanted)


def test_objects_that_no_training_frame_shows_are_dropped(
    tmp_path: Path, placed: SimpleNamespace, log: pytest.LogCaptureFixture
) -> None:
    def masks(position: int) -> Masks:
        found = {2: box(3), 9: box(30)} if position < 6 else {9: box(30)}
        return {**found, 5: box(18)} if position == 3 else found

    clip, samples = run(raw_clip(9, masks), tmp_path / "prepared")
    assert clip.objects == ["object-2", "object-9"]
    assert "1 objects are in no training frame and become background (5)" in log.text
    assert clip.masks.shape == (9, 2, *SIZE)
    assert clip.known.shape == (9, 2)
    assert np.array_equal(clip.masks[3], np.stack([box(3), box(30)]) * np.uint8(255))
    assert samples["objects"].to_list() == [2] * 6 + [1] * 3


def test_a_clip_without_objects_is_fine(tmp_path: Path, placed: SimpleNamespace) -> None:
    clip, samples = run(raw_clip(5, lambda _: {}), tmp_path / "prepared")
    assert clip.objects == []
    assert clip.masks.shape == (5, 0, *SIZE)
    assert clip.known.shape == (5, 0)
    assert samples["objects"].to_list() == [0] * 5
    assert samples["covered"].to_list() == [0] * 5


def test_masks_that_cover_everything_are_refused(tmp_path: Path, placed: SimpleNamespace) -> None:
    left = np.arange(48)[None].repeat(32, 0) < 20

    def halves(position: int) -> Masks:
        return {1: left, 2: ~left} if position % 2 == 0 else {1: left}

    with pytest.raises(DataError, match="the masks cover every pixel of all 5 training frames"):
        run(raw_clip(9, halves), tmp_path / "prepared")
    seen_once = raw_clip(9, lambda p: {1: left} if p == 4 else halves(p))
    assert run(seen_once, tmp_path / "other")[0].objects == ["object-1", "object-2"]


def test_too_many_objects_are_taken_for_an_error(tmp_path: Path, placed: SimpleNamespace) -> None:
    many = raw_clip(5, lambda _: {digit: box(digit) for digit in range(1, 8)})
    with pytest.raises(
        DataError, match=r"found 7 objects by frame 0, 7 of them in it; allowed: 6; masks are images of"
    ):
        run(many, tmp_path / "prepared", most_objects=6)
    assert len(run(many, tmp_path / "other", most_objects=7)[0].objects) == 7


def test_pictures_of_other_sizes_are_refused(tmp_path: Path, placed: SimpleNamespace) -> None:
    clip = replace(raw_clip(5), frame=lambda p: frame(p, (32, 48 - p // 3)))
    with pytest.raises(DataError, match=r"the frame of frame 3 has shape \(32, 47\); allowed: \(32, 48\)"):
        run(clip, tmp_path / "prepared")


def test_boxes_are_put_in_the_order_of_the_objects(tmp_path: Path, placed: SimpleNamespace) -> None:
    clip = raw_clip(5, boxes=lambda p: {4: (p, 1.0, 2.0), 7: (0.0, 0.0, 0.0)} if p != 2 else {})
    run(clip, tmp_path / "prepared")
    assert placed.boxes.shape == (5, 2, 3)
    assert np.isnan(placed.boxes[:, 0]).all()
    assert np.isnan(placed.boxes[2]).all()
    assert np.array_equal(placed.boxes[3, 1], [3, 1, 2])


def synthetic(tmp_path: Path, **more: Any) -> RawClip:
    download = ScenesDownload(synthetic=SyntheticSettings(height_px=48, width_px=64, frames=7, **more))
    raw = tmp_path / "raw"
    return Synthetic().clip(download, raw, describe(raw, Synthetic().download(download, raw)))


def test_truth_comes_along_where_it_is_true(
    tmp_path: Path, placed: SimpleNamespace, log: pytest.LogCaptureFixture
) -> None:
    source = synthetic(tmp_path)
    clip, _ = run(source, tmp_path / "prepared")
    assert clip.truth is not None
    assert clip.truth.layers.shape == (7, 2, 48, 64, 4)
    assert clip.truth.order == [0, 1]
    front = clip.truth.layers[:, 0, ..., 3]
    assert (clip.masks[:, 0][front > 200] == 255).all()
    assert "truth" not in log.text
    assert run(source, tmp_path / "shrunk", resolution_factor=0.5)[0].truth is None
    assert "the frames are shrunk, so that nothing can be compared with the truth" in log.text
    less = replace(source, masks=lambda p: {2: (source.masks(p) or {})[2]})
    assert run(less, tmp_path / "less")[0].truth is None
    assert "an object is left out" in log.text


@needs_samples
def test_a_real_clip_is_prepared(tmp_path: Path, placed: SimpleNamespace) -> None:
    frames = SAMPLES / "JPEGImages/blackswan"
    download = ScenesDownload(source="folder", folder=FolderSettings(frames=frames, last=19))
    assert list(Folder().problems(download)) == []
    raw = tmp_path / "raw"
    manifest = describe(raw, Folder().download(download, raw))
    clip, samples = run(Folder().clip(download, raw, manifest), tmp_path / "prepared", resolution_factor=0.25)
    assert clip.frames.shape == (20, 120, 214, 3)
    assert clip.objects == ["object-1"]
    assert clip.known.all()
    covered = samples["covered"].to_numpy()
    assert (covered > 0.07).all()
    assert (covered < 0.14).all()
    grey = ((clip.masks > 0) & (clip.masks < 255)).mean()
    assert 0.001 < grey < 0.03
    assert 60 < clip.frames.mean() < 140
    assert samples["split"].value_counts().sort("split")["count"].to_list() == [7, 11, 2]
