"""Synthetic clips: layers that compose to the frames, exact motion, masks as asked for, and files that come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates

from manyscope.scopes.scenes import simulate
from manyscope.scopes.scenes.data.sources import find_source
from manyscope.scopes.scenes.settings import ScenesDownload, SyntheticSettings
from manyscope.scopes.scenes.simulate import Synthetic, SyntheticClip, clip
from manyscope.tables.manifest import describe, file_digest

SMALL = {"height_px": 48, "width_px": 64, "frames": 6}


def small(**more: object) -> SyntheticSettings:
    return SyntheticSettings.model_validate({**SMALL, **more})


def composed(drawn: SyntheticClip) -> np.ndarray:
    """The layers over the background, the farthest first."""
    total = drawn.background.astype(float)
    for number in drawn.order[::-1]:
        layer = drawn.layers[:, number].astype(float)
        total += layer[..., 3:] / 255 * (layer[..., :3] - total)
    return total


def moved(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Places (2, ...) by a homography."""
    x, y, w = np.einsum("ij,j...->i...", matrix, np.stack([x, y, np.ones_like(x)]))
    return np.stack([x / w, y / w])


@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 2**31 - 1), st.integers(0, 2), st.sampled_from(["pan", "zoom", "handheld"]), st.floats(0, 3),
    st.floats(0, 0.3), st.sampled_from([(48, 64), (64, 48), (32, 90)]),
)  # fmt: skip
def test_layers_compose_to_the_frames(
    seed: int, sprites: int, camera: str, bend: float, brightness: float, size: tuple[int, int]
) -> None:
    drawn = clip(
        seed,
        small(
            frames=3, sprites=sprites, camera=camera, bend_px=bend, brightness=brightness, height_px=size[0],
            width_px=size[1],
        ),
    )  # fmt: skip
    assert drawn.frames.shape == drawn.background.shape == (3, *size, 3)
    assert drawn.layers.shape == (3, sprites, *size, 4)
    assert np.abs(composed(drawn) - drawn.frames).max() < 2  # of 255, from rounding the layers
    for number in range(sprites):
        assert (drawn.layers[:, number, ..., 3] > 250).any((1, 2)).all()
    front = np.zeros((3, *size), int)
    for number in drawn.order[::-1]:
        front[drawn.layers[:, number, ..., 3] >= 128] = number + 1
    assert (front == drawn.masks).mean() > 0.999  # opacity is rounded in the layers, not for the masks


@pytest.mark.parametrize("camera", ["pan", "zoom", "handheld"])
def test_the_camera_takes_each_frame_to_the_first_one(camera: str) -> None:
    drawn = clip(1, SyntheticSettings(height_px=96, width_px=160, frames=5, sprites=0, camera=camera))
    x, y = np.meshgrid(np.arange(160) + 0.5, np.arange(96) + 0.5)
    assert np.allclose(drawn.camera[0], np.eye(3))
    for position in range(1, 5):
        px, py = moved(drawn.camera[position], x, y)
        inside = (px > 1) & (px < 159) & (py > 1) & (py < 95)
        found = map_coordinates(drawn.background[0, ..., 1].astype(float), [py - 0.5, px - 0.5], order=3)
        error = (found - drawn.background[position, ..., 1])[inside]
        shuffled = (drawn.background[0, ..., 1].astype(float) - drawn.background[position, ..., 1])[inside]
        assert inside.mean() > 0.5
        assert np.sqrt((error**2).mean()) < min(4, 0.25 * np.sqrt((shuffled**2).mean()))
    left = moved(drawn.camera[-1], np.array([80.0]), np.array([48.0]))[0, 0]
    assert abs(left - 80) == pytest.approx(40, abs=6)  # a quarter of the width


def test_the_motion_takes_each_picture_to_its_frames() -> None:
    """Opacity at a place of the picture is the same in all frames."""
    drawn = clip(3, SyntheticSettings(height_px=120, width_px=200, frames=5, camera="handheld"))
    x, y = np.meshgrid(np.linspace(10, 60, 40), np.linspace(10, 44, 30))
    for number in range(2):
        seen = []
        for position in range(5):
            px, py = moved(drawn.motion[position, number], x, y)
            alpha = drawn.layers[position, number, ..., 3].astype(float)
            seen.append(map_coordinates(alpha, [py - 0.5, px - 0.5], order=1, cval=np.nan))
        assert np.nanmean(np.nanstd(seen, axis=0)) < 1
        assert np.nanmax(np.nanstd(seen, axis=0)) < 15  # of 255, from interpolation at the rim
        assert np.ptp(np.nanmean(seen, axis=0)) > 100
    scale = np.sqrt(np.linalg.det(drawn.motion[:, :, :2, :2]))
    assert np.allclose(scale, np.linspace(1, 1.15, 5)[:, None])


def test_the_second_sprite_passes_behind_the_first() -> None:
    drawn = clip(0, SyntheticSettings(height_px=60, width_px=106, frames=11))
    both = (drawn.layers[..., 3] > 128).all(1)
    assert list(drawn.order) == [0, 1]
    assert both[5].mean() > 0.03
    assert not both[0].any()
    assert not both[-1].any()
    assert (drawn.masks[both] == 1).all()
    centre = drawn.motion @ [20, 13, 1]
    across = centre[-1, :, 0] - centre[0, :, 0]
    assert across[0] * across[1] < 0  # in opposite directions


def test_equal_seeds_give_equal_clips_and_others_do_not() -> None:
    one, same, other = clip(5, small()), clip(5, small()), clip(6, small())
    for name in ("frames", "masks", "background", "layers", "camera", "motion"):
        assert np.array_equal(getattr(one, name), getattr(same, name))
    assert not np.array_equal(one.frames, other.frames)


def test_masks_are_worn_and_missing_as_asked_for() -> None:
    sizes = {"height_px": 96, "width_px": 160, "frames": 10, "sprites": 1}
    right = clip(2, SyntheticSettings.model_validate(sizes))
    wrong = clip(2, SyntheticSettings.model_validate({**sizes, "mask_error_px": 2, "mask_drop_fraction": 0.3}))
    assert np.array_equal(right.frames, wrong.frames)
    assert wrong.known.sum() == 7
    assert right.known.all()
    grown = (wrong.masks > 0).sum((1, 2)) / (right.masks > 0).sum((1, 2))
    assert (np.abs(grown - 1) > 0.05).all()
    assert (grown > 1).any()
    assert (grown < 1).any()
    for before, after in zip(right.masks > 0, wrong.masks > 0, strict=True):
        assert (before <= after).all() or (after <= before).all()


def test_light_and_bending_change_the_sprites_alone() -> None:
    plain, lit, bent = (
        clip(4, small(sprites=1, **more)) for more in ({}, {"brightness": 0.3}, {"bend_px": 3.0})
    )  # fmt: skip
    assert np.array_equal(plain.background, lit.background)
    assert np.array_equal(plain.background, bent.background)
    assert np.array_equal(plain.layers[..., 3], lit.layers[..., 3])
    assert not np.array_equal(plain.layers[..., 3], bent.layers[..., 3])
    opaque = plain.layers[:, 0, ..., 3] > 200
    change = [lit.layers[t, 0][opaque[t]].mean() / plain.layers[t, 0][opaque[t]].mean() for t in range(6)]
    assert max(change) > 1.05
    assert min(change) < 0.95


def test_without_photographs_there_are_clouds(monkeypatch: pytest.MonkeyPatch) -> None:
    import skimage.data

    def missing() -> np.ndarray:
        raise OSError("not in this wheel")

    monkeypatch.setattr(skimage.data, "rocket", missing)
    drawn = clip(0, small())
    assert drawn.frames.std() > 15
    assert np.array_equal(drawn.frames, clip(0, small()).frames)
    monkeypatch.undo()
    assert not np.array_equal(drawn.frames, clip(0, small()).frames)


def test_files_hold_the_clip_and_come_back_as_a_source(tmp_path: Path) -> None:
    download = ScenesDownload(seed=7, synthetic=small(mask_drop_fraction=0.2))
    source = find_source("synthetic")
    manifest = describe(tmp_path, source.download(download, tmp_path))
    drawn, found = clip(7, download.synthetic), source.clip(download, tmp_path, manifest)
    assert found.indices == tuple(range(6))
    assert found.truth is not None
    for position in range(6):
        assert np.array_equal(found.frame(position), drawn.frames[position])
        masks = found.masks(position)
        assert (masks is not None) == drawn.known[position]
        if masks is not None:
            assert list(masks) == [1, 2]
            for digit, mask in masks.items():
                assert np.array_equal(mask, drawn.masks[position] == digit)
    for name in ("background", "layers", "camera", "motion", "order"):
        assert np.array_equal(np.load(found.truth / f"{name}.npy"), getattr(drawn, name))
    assert list(source.problems(download)) == []


def test_a_download_continues_and_starts_anew_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ScenesDownload(synthetic=small())
    manifest = describe(tmp_path, Synthetic().download(first, tmp_path))
    whole = dict(manifest.select("path", "sha256").iter_rows())
    frame, layers = tmp_path / "frames/00003.png", tmp_path / "truth/layers.npy"
    frame.unlink()
    layers.unlink()
    kept = (tmp_path / "frames/00002.png").stat().st_mtime_ns
    again = describe(tmp_path, Synthetic().download(first, tmp_path))
    assert dict(again.select("path", "sha256").iter_rows()) == whole
    assert (tmp_path / "frames/00002.png").stat().st_mtime_ns == kept

    with monkeypatch.context() as patch:
        patch.setattr(simulate._Stage, "draw", lambda *_: pytest.fail("drawn again"))
        describe(tmp_path, Synthetic().download(first, tmp_path))

    # Another clip, in whose place a file of the user's is linked: the link goes, the file stays.
    own = tmp_path / "own.png"
    Image.new("RGB", (3, 3)).save(own)
    before = file_digest(own)
    frame.unlink()
    frame.symlink_to(own)
    second = ScenesDownload(seed=1, synthetic=small(frames=5))
    other = describe(tmp_path, Synthetic().download(second, tmp_path))
    assert file_digest(own) == before
    assert not frame.is_symlink()
    assert not (tmp_path / "frames/00005.png").exists()
    assert "frames/00005.png" not in set(other["path"])
    assert file_digest(frame) != whole["frames/00003.png"]
