"""Comparisons of two pictures, and the geometry and medians behind the evaluation, beside values worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import CheckpointError
from manyscope.scopes.scenes.evaluate import quality
from manyscope.scopes.scenes.evaluate.baselines import median_without
from manyscope.scopes.scenes.evaluate.quality import MOST_DB, iou, lpips, mean_difference, ms_ssim, psnr, ssim
from manyscope.scopes.scenes.evaluate.truth import homography, pick, sample, transform

GREY = np.full((48, 64, 3), 100, np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --------------------------------------------------------------------------------------------------- whole pictures
def test_psnr_of_a_constant_difference() -> None:
    assert psnr(GREY + 10, GREY) == pytest.approx(20 * math.log10(255 / 10), abs=1e-6)
    assert psnr(GREY, GREY + 10) == psnr(GREY + 10, GREY)  # bytes do not wrap
    assert psnr(np.zeros_like(GREY), np.full_like(GREY, 255)) == pytest.approx(0)


def test_psnr_counts_the_wanted_pixels_alone() -> None:
    picture, where = GREY.copy(), np.zeros(GREY.shape[:2], bool)
    picture[0, 0], where[0, :2] = 120, True
    assert psnr(picture, GREY, where) == pytest.approx(10 * math.log10(255**2 / 200))  # one of two differs by 20
    assert psnr(picture, GREY, ~where) == MOST_DB
    assert math.isnan(psnr(picture, GREY, where & False))


def test_psnr_has_a_highest_value_so_that_means_are_finite() -> None:
    nearly = GREY.copy()
    nearly[0, 0, 0] += 1
    assert psnr(GREY, GREY) == psnr(nearly, GREY) == MOST_DB == 60
    visible = GREY.copy()
    visible[0, :, 0] += 10
    assert psnr(visible, GREY) < MOST_DB


def test_ssim_is_one_of_equals_and_small_of_noise() -> None:
    assert ssim(GREY, GREY) == 1
    assert ssim(noise(48, 64), noise(48, 64, 1)) < 0.1
    # Of two constants only the luminance term (2ab + c) / (a² + b² + c) is left, c being (0.01 · 255)².
    right = (2 * 100 * 110 + 2.55**2) / (100**2 + 110**2 + 2.55**2)
    assert ssim(GREY + 10, GREY) == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize(
    ("edge", "scales"), [(16, 1), (21, 1), (22, 2), (43, 2), (44, 3), (98, 3), (99, 4), (175, 4), (176, 5), (999, 5)]
)
def test_ms_ssim_takes_as_many_scales_as_fit(edge: int, scales: int) -> None:
    assert quality._scales(edge) == scales
    if edge < 200:
        picture = noise(edge, edge + 3)
        assert ms_ssim(picture, picture) == pytest.approx(1, abs=1e-5)
        assert ms_ssim(picture, 255 - picture) < 0.5


@pytest.mark.parametrize(("height", "width"), [(180, 190), (101, 140), (50, 47), (24, 33), (16, 17)])
def test_ms_ssim_is_that_of_torchmetrics(height: int, width: int) -> None:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    truth = noise(height, width)
    blurred = (truth.astype(int) + np.roll(truth, 1, 0) + np.roll(truth, 1, 1)) // 3
    one, other = (torch.from_numpy(p.astype(np.float32)).movedim(-1, 0)[None] for p in (blurred, truth))
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    taken = weights[: quality._scales(min(height, width))]
    betas = tuple(weight * sum(weights) / sum(taken) for weight in taken)
    right = float(measure(one, other, data_range=255.0, betas=betas, normalize="relu"))
    assert 0.3 < right < 0.98
    assert ms_ssim(255 - truth, truth) == 0
    assert ms_ssim(blurred.astype(np.uint8), truth) == pytest.approx(right, abs=1e-5)


# ------------------------------------------------------------------------------------------------------- opacities
def test_iou_by_hand() -> None:
    truth, found = np.zeros((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
    truth[0, :4], found[0, 1:4], found[1, :3] = 128, 255, 200
    found[5] = 127  # not half
    assert iou(found, truth) == pytest.approx(3 / 7)
    where = np.zeros((6, 6), bool)
    where[0] = True
    assert iou(found, truth, where) == pytest.approx(3 / 4)
    assert iou(found * 0, truth) == 0
    assert math.isnan(iou(found, truth * 0))


def test_mean_difference_of_opacities() -> None:
    truth, found = np.zeros((2, 5), np.uint8), np.zeros((2, 5), np.uint8)
    truth[0, 0], found[1, 1] = 255, 51
    assert mean_difference(found, truth) == pytest.approx((1 + 0.2) / 10)


# ------------------------------------------------------------------------------------------------------------ LPIPS
def alexnet(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights in the layout of torchvision's alexnet, of which LPIPS has the features."""
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {"classifier.6.bias": torch.zeros(1000)}
    for number, (out, inside, kernel) in shapes.items():
        spread = (2 / (inside * kernel**2)) ** 0.5
        state[f"features.{number}.weight"] = spread * torch.randn(out, inside, kernel, kernel, generator=generator)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(out, generator=generator)
    return state


def test_lpips_is_that_of_torchmetrics_with_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from torchmetrics.functional.image import lpips as peer

    state = alexnet()
    torch.save(state, tmp_path / "alexnet.pth")
    net = peer._LPIPS(net="alex", pnet_rand=True)  # random AlexNet, the heads of the wheel
    slices = [module for slice_ in (net.net.slice1, net.net.slice2, net.net.slice3, net.net.slice4, net.net.slice5)
              for module in slice_.named_children()]  # fmt: skip
    for number, module in slices:
        if f"features.{number}.weight" in state:
            module.load_state_dict({name: state[f"features.{number}.{name}"] for name in ("weight", "bias")})
    truth = noise(64, 80)
    other = np.roll(truth, 2, axis=1)
    one, two = (torch.from_numpy(p.astype(np.float32) / 255).movedim(-1, 0)[None] for p in (other, truth))
    right = float(net(one, two, normalize=True))
    distance = lpips(tmp_path / "alexnet.pth")
    assert right > 0.01
    assert distance(other, truth) == pytest.approx(right, rel=1e-4)
    assert distance(truth, truth) == 0


def test_lpips_needs_a_pixel_behind_the_second_pooling(tmp_path: Path) -> None:
    torch.save(alexnet(), tmp_path / "alexnet.pth")
    distance = lpips(tmp_path / "alexnet.pth")
    least = noise(quality.LEAST_LPIPS_PX, 64)
    assert distance(255 - least, least) > 0
    with pytest.raises(RuntimeError):
        distance(least[1:], least[1:])


def test_weights_for_lpips_that_cannot_be_used_are_explained(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    with pytest.raises(CheckpointError, match=r"weights\.pth: the file is missing; mend evaluate\.lpips_weights"):
        lpips(file)
    file.write_bytes(b"no weights at all")
    with pytest.raises(CheckpointError, match="cannot be read"):
        lpips(file)
    state = alexnet()
    del state["features.6.bias"]
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"not the weights of AlexNet: features\.6 .*alexnet"):
        lpips(file)
    torch.save({**alexnet(), "features.3.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(CheckpointError, match=r"features\.3 is missing or of another shape"):
        lpips(file)
    torch.save(torch.zeros(3), file)
    with pytest.raises(CheckpointError, match="a Tensor instead of a state dict"):
        lpips(file)


# --------------------------------------------------------------------------------------------------------- geometry
SQUARE = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)


@given(st.lists(st.floats(-0.2, 0.2), min_size=8, max_size=8), st.floats(5, 500), st.floats(-300, 300))
def test_a_homography_takes_the_corners_where_they_are(by: list[float], size: float, at: float) -> None:
    there = (SQUARE + np.reshape(by, (4, 2))) * size + at
    start = SQUARE * 40 + 7
    assert np.allclose(transform(homography(start, there), start), there, atol=1e-6 * size)


def test_a_homography_is_the_one_of_the_plane() -> None:
    matrix = np.array([[1.1, 0.2, 5], [-0.1, 0.9, 3], [1e-3, -2e-3, 1]])
    corners = SQUARE * (30, 20) + 4
    found = homography(corners, transform(matrix, corners))
    assert np.allclose(found, matrix, atol=1e-9)
    inner = np.array([(10.0, 12.0)])
    x, y = 1.1 * 10 + 0.2 * 12 + 5, -0.1 * 10 + 0.9 * 12 + 3
    assert np.allclose(transform(found, inner), np.array([(x, y)]) / (1 + 0.01 - 0.024))


def test_corners_on_one_line_have_no_homography() -> None:
    line = np.stack([np.arange(4.0), np.zeros(4)], 1)
    assert np.isnan(homography(line, SQUARE)).all()


def test_values_are_picked_from_the_pixel_that_holds_the_place() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    places = np.array([(2.0, 1.0), (2.99, 1.99), (3.0, 1.5), (2.5, 0.9), (-0.1, 1.5), (9, 1), (np.nan, 1)])
    assert pick(mask, places).tolist() == [True, True, False, False, False, False, False]
    corners = np.array([(0.0, 0.0), (4.0, 2.0), (3.9, 2.9), (1.0, 3.0)])
    assert pick(np.ones((3, 4), bool), corners).tolist() == [True, False, True, False]


def test_values_between_pixels_are_bilinear() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    places = np.array([(0.5, 0.5), (1.0, 0.5), (1.5, 1.0), (2.25, 1.5), (-5, 0.5), (9, 9)])
    assert sample(picture, places)[:, 0].tolist() == [0, 0.5, 3, 5.75, 0, 11]


# ---------------------------------------------------------------------------------------------------------- medians
def test_the_median_leaves_out_what_a_mask_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.zeros((5, 2, 3, 3), np.uint8)
    frames[:] = np.array([10, 20, 41, 250, 99], np.uint8)[:, None, None, None]
    masks = np.zeros((5, 2, 2, 3), np.uint8)
    rows = np.array([0, 1, 2, 3])  # not the fifth
    masks[3, 0, 0, 0] = 255
    masks[2, 1, 0, 0] = 1  # touched is masked
    masks[:, 0, 1, 1] = 255  # nowhere clear: all count
    for most in (10**6, 1):  # at once, and row by row
        monkeypatch.setattr("manyscope.scopes.scenes.evaluate.baselines._MOST_VALUES", most)
        median = median_without(frames, masks, rows)
        assert median[0, 0].tolist() == [15] * 3  # of 10 and 20
        assert median[0, 1].tolist() == [30] * 3  # of 20 and 41: 30.5, to even
        assert median[1, 1].tolist() == [30] * 3
    assert median_without(frames, masks[:, :0], np.array([0, 1, 4]))[0, 0].tolist() == [20] * 3
