"""Your own clip: paired by numbers, everything wrong said at once with a remedy, the files only read."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from manyscope.errors import DataError, ManyscopeError
from manyscope.log import logger
from manyscope.scopes.scenes.data.folder import Folder
from manyscope.scopes.scenes.data.reading import ValueCounts, read_boxes, read_depth, read_frame, read_values
from manyscope.scopes.scenes.data.sources import RawClip, find_source
from manyscope.scopes.scenes.data.video import write_mp4
from manyscope.scopes.scenes.settings import FolderSettings, ScenesDownload
from manyscope.tables.manifest import describe

SIZE = (48, 64)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger="manyscope")
    return caplog


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def values(*digits: int, at: int = 0) -> np.ndarray:
    """A value image with a disc for each number, beside each other, further to the right with `at`."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.zeros(SIZE, np.uint8)
    for place, digit in enumerate(digits):
        image[np.hypot(y - 24, x - 12 - 18 * place - at) < 8] = digit
    return image


class Own:
    """The folders frames/ and masks/ of a user."""

    def __init__(self, root: Path, frames: str = "own/frames", masks: str = "own/masks") -> None:
        self.root, self.frames, self.masks, self.raw = root, root / frames, root / masks, root / "raw"
        for folder in (self.frames, self.masks):
            folder.mkdir(parents=True)

    def fill(self, count: int = 5, *digits: int) -> None:
        for number in range(count):
            save(self.frames / f"{number:05d}.png", picture(number))
            save(self.masks / f"{number:05d}.png", values(*(digits or (1, 2)), at=number))

    def settings(self, **more: Any) -> ScenesDownload:
        given = {"frames": self.frames, "masks": self.masks, **more}
        return ScenesDownload(source="folder", folder=FolderSettings.model_validate(given))

    def clip(self, **more: Any) -> RawClip:
        settings = self.settings(**more)
        manifest = describe(self.raw, Folder().download(settings, self.raw))
        return find_source("folder").clip(settings, self.raw, manifest)

    def problems(self, **more: Any) -> list[str]:
        return list(Folder().problems(self.settings(**more)))

    def problem(self, **more: Any) -> str:
        (only,) = self.problems(**more)
        assert only.startswith("download.folder: ")
        return only


def save(path: Path, pixels: np.ndarray, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(tmp_path)


def test_frames_and_masks_are_paired_by_number_and_only_read(own: Own) -> None:
    for number in (9, 10, 11, 8):
        save(own.frames / f"frame_{number}.PNG", picture(number))
        save(own.masks / f"img_{number:04d}.png", values(3, 7, at=number - 8))
    before = {f: (hashlib.sha256(f.read_bytes()).digest(), f.stat().st_mtime_ns) for f in own.root.rglob("*.*")}
    clip = own.clip()
    assert clip.indices == (8, 9, 10, 11)
    for position, number in enumerate(clip.indices):
        assert np.array_equal(clip.frame(position), picture(number))
        masks = clip.masks(position)
        assert masks is not None
        assert list(masks) == [3, 7]
        for digit, mask in masks.items():
            assert np.array_equal(mask, values(3, 7, at=number - 8) == digit)
    assert {f: (hashlib.sha256(f.read_bytes()).digest(), f.stat().st_mtime_ns) for f in before} == before
    linked = own.raw / "frames/00008.png"
    assert linked.is_symlink()
    assert linked.resolve() == own.frames / "frame_8.PNG"


def test_masks_of_neural_atlas_graphs_may_overlap(own: Own) -> None:
    for number in range(3):
        save(own.frames / f"{number:05d}.jpg", picture(number))
        save(own.masks / f"img_{number:05d}_ov_0.png", values(1))
        save(own.masks / f"img_{number:05d}_ov_1.png", values(2, at=5))
    masks = own.clip().masks(1)
    assert masks is not None
    assert np.array_equal(masks[1], values(1) == 1)
    assert np.array_equal(masks[2], values(2, at=5) == 2)
    assert (masks[1] & masks[2]).any()


@pytest.mark.parametrize("below", ["480p/bear", "bear"])
def test_the_layout_of_davis_is_recognised(tmp_path: Path, below: str) -> None:
    """Masks of 2016 are black and white, with one object; without a folder of masks there is a background alone."""
    own = Own(tmp_path, f"DAVIS/JPEGImages/{below}", f"DAVIS/Annotations/{below}")
    own.fill(3, 255)
    masks = own.clip(masks=None).masks(2)
    assert masks is not None
    assert list(masks) == [1]
    assert np.array_equal(masks[1], values(255, at=2) == 255)
    for file in own.masks.iterdir():
        file.unlink()
    own.masks.rmdir()
    assert own.clip(masks=None).masks(2) == {}


def test_numbers_of_frames_may_be_times_but_not_of_any_length(own: Own, log: pytest.LogCaptureFixture) -> None:
    start, step = 1_403_636_579_763_555_584, 50_000_000  # nanoseconds
    own.fill(1)
    for name, folder in (("frames", own.frames), ("masks", own.masks)):
        content = (folder / "00000.png").read_bytes()
        (folder / "00000.png").unlink()
        for number in range(3):
            (own.root / "own" / name / f"{start + number * step}.png").write_bytes(content)
    assert own.clip().indices == (start, start + step, start + 2 * step)
    assert f"numbers of {2 * step - 2} frames are missing ({start + 1}, {start + 2}" in log.text
    (own.frames / "12345678901234567890.png").write_bytes(content)
    line = own.problem()
    assert "12345678901234567890.png: the number 12345678901234567890 is too large; allowed: 0 to" in line
    assert "rename the file, or mend download.folder.frame_pattern" in line
    for file in own.frames.glob("14*"):
        file.unlink()
    assert "is too large" in own.problem()
    (own.frames / f"{start}.png").write_bytes(content)
    (own.frames / "12345678901234567890.png").unlink()
    (own.masks / "12345678901234567890.png").write_bytes(content)
    assert "masks/12345678901234567890.png: the number" in own.problem()


def test_the_camera_of_chosen_frames_keeps_its_times_where_numbers_are_large(own: Own) -> None:
    start, step = 1_403_636_579_763_555_584, 50_000
    for number in range(5):
        save(own.frames / f"{start + number * step}.png", picture(number))
    path = {"focal": 1, "times": [0, 0.25, 1], "position": [[0, 0, 0]] * 3, "rotation": [[1, 0, 0, 0]] * 3}
    (own.root / "camera.json").write_text(json.dumps(path))
    own.masks.rmdir()
    clip = own.clip(masks=None, camera=own.root / "camera.json", first=start + step)
    assert clip.camera is not None
    assert clip.camera.times == pytest.approx([-1 / 3, 0, 1], abs=1e-12)


def test_palettes_hold_numbers(own: Own) -> None:
    own.fill(3)
    for number in range(3):
        image = Image.fromarray(values(1, 2, 3, at=number))
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
        assert image.mode == "P"
        image.save(own.masks / f"{number:05d}.png")
    assert list(own.clip().masks(0) or {}) == [1, 2, 3]
    # 255 is an object as any other where it is not alone.
    save(own.masks / "00001.png", values(1, 255))
    assert list(own.clip().masks(1) or {}) == [1, 255]
    assert list(own.clip(ignore_objects=(255, 3)).masks(1) or {}) == [1]


@pytest.mark.parametrize(
    ("names", "digits"),
    [(("car", "dog 2"), (1, 2)), (("obj_4", "obj_2"), (4, 2)), (("0", "1"), (1, 2)), (("a1", "b1"), (1, 2))],
)
def test_each_object_may_have_a_folder(
    own: Own, names: tuple[str, str], digits: tuple[int, int], log: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        save(own.frames / f"{number:05d}.png", picture(number))
        save(own.masks / names[0] / f"{number:05d}.png", values(255, at=number))
        if number != 2:
            save(own.masks / names[1] / f"{number:05d}.png", values(1, at=20) > 0)
    clip = own.clip()
    masks = clip.masks(0) or {}
    assert sorted(masks) == sorted(digits)
    assert np.array_equal(masks[digits[0]], values(255) > 0)
    assert np.array_equal(masks[digits[1]], values(1, at=20) > 0)
    without = clip.masks(2) or {}
    assert without[digits[1]] is None
    assert f"1 frames have no mask of object {digits[1]} (2)" in log.text
    assert clip.notes["folders"] == {str(d): n for d, n in sorted(zip(digits, names, strict=True))}
    assert list(own.clip(ignore_objects=[digits[0]]).masks(0) or {}) == [digits[1]]

    save(own.masks / names[0] / "00001.png", values(100, 200))
    assert "found 3 values; allowed: two, 0 and another" in own.problem()


def test_a_frame_without_a_mask_is_unknown_and_named_once(own: Own, log: pytest.LogCaptureFixture) -> None:
    own.fill(8)
    for number in (2, 5):
        (own.masks / f"{number:05d}.png").unlink()
    save(own.masks / "00077.png", values(1))
    clip = own.clip()
    assert [clip.masks(position) is None for position in range(8)] == [p in (2, 5) for p in range(8)]
    assert log.text.count("2 frames have no mask (2, 5)") == 1
    assert "1 masks have no frame (77) and are ignored" in log.text


def test_gaps_are_named_and_frames_are_chosen_by_number(own: Own, log: pytest.LogCaptureFixture) -> None:
    own.fill(12)
    for number in (4, 7):
        (own.frames / f"{number:05d}.png").unlink()
    assert own.clip().indices == (0, 1, 2, 3, 5, 6, 8, 9, 10, 11)
    assert "numbers of 2 frames are missing (4, 7)" in log.text
    log.clear()
    assert own.clip(first=8, last=10).indices == (8, 9, 10)
    assert "missing" not in log.text
    assert own.clip(first=1, every=3).indices == (1, 5, 9)
    assert "frames are numbered 0 to 11, and none of them is chosen" in own.problem(first=50)


def test_patterns_match_the_end_of_a_name(own: Own) -> None:
    for number in range(3):
        save(own.frames / f"take2_{number + 4}_left.png", picture(number))
        save(own.frames / f"take2_{number + 4}_right.png", picture(9))
        save(own.masks / f"{number + 4}.gt.tif", values(1))
    clip = own.clip(frame_pattern=r"(?P<index>\d+)_left\.png", mask_pattern=r"(?P<index>\d+)\.gt\.tif")
    assert clip.indices == (4, 5, 6)
    assert np.array_equal(clip.frame(2), picture(2))
    assert list(clip.masks(0) or {}) == [1]
    # Without the letters that say which, there are two of each number.
    both = own.problems(frame_pattern=r"(?P<index>\d+)_[a-z]+\.png", mask_pattern=r"(?P<index>\d+)\.gt\.tif")
    assert len(both) == 3
    assert "take2_4_left.png and take2_4_right.png have the same number 4; rename or remove one of them" in both[0]
    assert "which is no number" in own.problems(frame_pattern=r"(?P<index>[a-z]+)\.png")[0]


def test_a_video_is_read_with_masks_by_frame_number(own: Own) -> None:
    own.fill(8, 1)
    file = own.root / "clip.mp4"
    write_mp4(file, [np.full((*SIZE, 3), 20 * number, np.uint8) for number in range(8)], 10)
    clip = own.clip(frames=file, first=1, every=2)
    assert clip.indices == (1, 3, 5, 7)
    for position in (0, 3, 1, 2):
        assert abs(clip.frame(position).mean() - 20 * clip.indices[position]) < 4
        masks = clip.masks(position) or {}
        assert np.array_equal(masks[1], values(1, at=clip.indices[position]) > 0)
    assert (own.raw / "video.mp4").is_symlink()
    file.write_bytes(file.read_bytes()[:300])
    assert "clip.mp4: the " in own.problem(frames=file)


def test_depth_camera_and_boxes_come_along(own: Own) -> None:
    own.fill(9)
    for number in range(9):
        depth = np.linspace(1, 9, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE) + number
        save(own.root / f"depth/{number:05d}.tiff", depth)
    pose = {"focal": 1.0, "times": [0.0, 0.5, 1.0], "position": [[0, 0, 0], [1, 0, 0], [2, 0, 0]]}
    pose["rotation"] = [[1, 0, 0, 0]] * 3
    (own.root / "camera.json").write_text(json.dumps(pose))
    boxes = {"object_id": 2, "frame_times": [0, 4, 6], "center": [[0, 0, 5], [1, 0, 5], [2, 1, 6]], "other": None}
    (own.root / "boxes").mkdir()
    (own.root / "boxes/7.json").write_text(json.dumps(boxes))
    given = {"depth": own.root / "depth", "camera": own.root / "camera.json", "boxes": own.root / "boxes"}
    clip = own.clip(**given)
    assert clip.depth is not None
    assert clip.boxes is not None
    assert clip.camera is not None
    assert clip.depth(3)[0, 0] == 4
    assert clip.boxes(4) == {2: [1, 0, 5]}
    assert clip.boxes(1) == {}
    assert list(clip.camera.times) == [0, 0.5, 1]
    # Of frames 2 to 6 the first is a quarter of the way, and the last three quarters.
    some = own.clip(first=2, last=6, **given)
    assert some.camera is not None
    assert some.boxes is not None
    assert np.allclose(some.camera.times, [-0.5, 0.5, 1.5])
    assert some.boxes(4) == {2: [2, 1, 6]}

    (own.root / "depth/00004.tiff").unlink()
    boxes["center"] = boxes["center"][:2]  # type: ignore[index]
    (own.root / "boxes/7.json").write_text(json.dumps(boxes))
    pose["times"] = [0.0, 2.0, 1.0]
    (own.root / "camera.json").write_text(json.dumps(pose))
    depth, center, times = sorted(own.problems(**given), key=lambda line: line.split(":")[1].count("/boxes/"))
    said = "\n".join((depth, center, times))
    assert "1 frames have no depth (4)" in said
    assert "center of shape (2, 3) for 3 frame_times" in said
    assert "camera.json" in said


def test_sizes_must_agree(own: Own) -> None:
    own.fill(4)
    save(own.frames / "00002.png", picture(2)[:40])
    save(own.masks / "00003.png", np.repeat(values(1), 2, axis=0))
    frame, mask = own.problems()
    assert frame.startswith(f"download.folder: {own.frames / '00002.png'}: the frame is 64x40 (width x height)")
    assert mask.startswith(f"download.folder: {own.masks / '00003.png'}: the mask is 64x96 (width x height)")
    assert all("allowed: 64x48, the size of the first frame; bring all pictures" in line for line in (frame, mask))
    with pytest.raises(DataError, match=r"64x40 .*\(and 1 more errors, see the log\)"):
        list(Folder().download(own.settings(), own.raw))
    assert not own.raw.exists()


@pytest.mark.parametrize("how", ["blurred", "jpeg", "resized"])
def test_smoothed_masks_are_explained(own: Own, how: str) -> None:
    own.fill(4, 255)
    for number in range(4):
        white = values(255, at=number)
        if how == "blurred":
            white = np.rint(gaussian_filter(white.astype(float), 1.5)).astype(np.uint8)
        elif how == "resized":
            white = np.asarray(Image.fromarray(white[::2, ::2]).resize(SIZE[::-1], Image.Resampling.BILINEAR))
        else:
            save(own.root / "lossy.jpg", white, quality=80)
            white = read_frame(own.root / "lossy.jpg")[..., 0]
        save(own.masks / f"{number:05d}.png", white)
    line = own.problem()
    assert "values, and most of those in the clip only along edges" in line
    assert "masks are images of object numbers, saved as PNG without smoothing; save the masks again" in line


def test_a_mask_that_is_a_jpeg_or_coloured_is_explained(own: Own) -> None:
    own.fill(3)
    save(own.masks / "00001.png", picture(0))
    (own.masks / "00002.png").unlink()
    save(own.masks / "00002.jpg", values(255), quality=95)
    coloured, jpeg = own.problems(mask_pattern=r"(?P<index>[0-9]+)\.(png|jpg)")
    assert "00001.png: the mask is a coloured image" in coloured
    assert "00002.jpg: the mask is a JPEG, which changes values" in jpeg
    save(own.masks / "00001.png", np.repeat(values(1, 2)[..., None], 3, axis=2))  # grey, though saved as colours
    assert list(own.clip().masks(1) or {}) == [1, 2]


@given_settings(deadline=None, max_examples=25)
@given(st.sets(st.integers(1, 65_535), min_size=1, max_size=60), st.integers(0, 2**31 - 1))
def test_numbers_of_objects_are_never_taken_for_smoothing(digits: set[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.zeros((80, 120), np.uint16)
    for digit in digits:
        y, x = rng.integers(0, 72), rng.integers(0, 112)
        image[y : y + rng.integers(3, 9), x : x + rng.integers(3, 9)] = digit
    counts = ValueCounts()
    counts.add(np.kron(image, np.ones((2, 2), np.uint16)), Path("mask.png"))
    counts.check()
    assert set(counts.pixels) == set(np.unique(image[image > 0]).tolist())


def test_broken_and_missing_files_are_named(own: Own) -> None:
    own.fill(4)
    whole = (own.frames / "00001.png").read_bytes()
    (own.frames / "00001.png").write_bytes(whole[: len(whole) // 2])
    (own.masks / "00002.png").write_text("no image")
    frame, mask = own.problems()
    assert "00001.png: the image cannot be read" in frame
    assert "00002.png: the image cannot be read" in mask
    assert "copy or save it again; it may be cut off" in frame


def test_nothing_to_read_is_explained(own: Own, tmp_path: Path) -> None:
    assert f"{own.frames}: the folder holds no file; mend download.folder.frames" in own.problem(masks=None)
    (own.frames / "clip one.bmp").write_text("")
    line = own.problem(masks=None)
    assert "the end of none of 1 names, such as 'clip one.bmp', matches" in line
    assert "mend download.folder.frames or download.folder.frame_pattern" in line
    (own.frames / "clip one.bmp").unlink()
    own.fill(3)
    assert "no such folder; mend download.folder.masks" in own.problem(masks=tmp_path / "none")
    assert "no such folder; mend download.folder.frames" in own.problem(frames=tmp_path / "none")
    assert "no such folder; mend download.folder.depth" in own.problem(depth=tmp_path / "none")
    for number in range(3):
        (own.masks / f"{number:05d}.png").rename(own.masks / f"{number + 90:05d}.png")
    assert "no mask is of a frame: masks are numbered 90 to 92, the frames that are read 0 to 2" in own.problem()
    empty = ScenesDownload(source="folder")
    assert list(Folder().problems(empty)) == [
        "download.folder: download.folder.frames: empty; name the folder of your frames, or a video"
    ]


def test_a_plug_in_must_be_a_source() -> None:
    with pytest.raises(ManyscopeError, match=r"scene source 'foldr' is unknown.*did you mean 'folder'"):
        find_source("foldr")
    with pytest.raises(ManyscopeError, match="is not a scene source; allowed: a class with download, clip, problems"):
        find_source("pathlib:Path")


def test_a_manifest_of_another_source_is_refused(own: Own) -> None:
    own.fill(3)
    with pytest.raises(DataError, match=r"folder\.json"):
        Folder().clip(own.settings(), own.raw, pl.DataFrame({"path": ["frames/00000.png"]}))


def test_frames_of_many_kinds_are_read(tmp_path: Path) -> None:
    grey = (np.arange(12, dtype=np.uint16) * 5000).reshape(3, 4)
    save(tmp_path / "deep.png", grey)
    assert np.array_equal(read_frame(tmp_path / "deep.png"), np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, 2))
    save(tmp_path / "clear.png", np.dstack([picture(0), np.full(SIZE, 9, np.uint8)]))
    assert np.array_equal(read_frame(tmp_path / "clear.png"), picture(0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    save(tmp_path / "lying.png", picture(1), exif=exif)
    assert np.array_equal(read_frame(tmp_path / "lying.png"), np.rot90(picture(1), -1))
    save(tmp_path / "floats.tif", np.ones(SIZE, np.float32))
    with pytest.raises(DataError, match="image of floats"):
        read_frame(tmp_path / "floats.tif")
    with pytest.raises(DataError, match=r"values of type float32"):
        read_values(tmp_path / "floats.tif")
    with pytest.raises(DataError, match="the file is missing"):
        read_frame(tmp_path / "none.png")


def test_depth_must_be_finite_and_boxes_of_our_axes(tmp_path: Path) -> None:
    holes = np.ones(SIZE, np.float32)
    holes[3, :4] = np.nan
    save(tmp_path / "holes.tif", holes)
    with pytest.raises(DataError, match="4 pixels are not finite"):
        read_depth(tmp_path / "holes.tif")
    save(tmp_path / "colours.png", picture(0))
    with pytest.raises(DataError, match="allowed: one value for each pixel"):
        read_depth(tmp_path / "colours.png")
    boxes = tmp_path / "1.json"
    boxes.write_text(
        json.dumps({"object_id": 1, "frame_times": [3], "center": [[0, 1, 2]], "coordinate_system": "rfu"})
    )
    with pytest.raises(DataError, match="the coordinate system is rfu; allowed: rdf"):
        read_boxes(boxes)
    boxes.write_text("[]")
    with pytest.raises(DataError, match="no boxes of an object"):
        read_boxes(boxes)
    whole = {"object_id": 1, "frame_times": [3], "center": [[0, 1, 2]]}
    for change, said in (
        ({"center": [[0, 1, 10**400]]}, "no boxes of an object"),
        ({"frame_times": [float("inf")]}, "no boxes of an object"),
        ({"object_id": float("inf")}, "no boxes of an object"),
        ({"center": [[0, 1, 1e300]]}, "center holds numbers that are not finite or above"),
        ({"center": [[0, 1, float("nan")]]}, "center holds numbers that are not finite or above"),
    ):
        boxes.write_text(json.dumps(whole | change))
        with pytest.raises(DataError, match=said):
            read_boxes(boxes)
    for text in ("[" * 100_000, '{"object_id": 1' + "0" * 5000 + "}", "no JSON"):
        boxes.write_text(text)
        with pytest.raises(DataError, match=r"1\.json: not a readable box file .*see docs/scenes\.md"):
            read_boxes(boxes)
    boxes.write_text(json.dumps({"object_id": 4, "frame_times": [3, 5], "center": [[0, 1, 2], [1, 1, 2]]}))
    assert read_boxes(boxes) == (4, {3: [0, 1, 2], 5: [1, 1, 2]})
