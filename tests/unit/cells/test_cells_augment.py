"""Augmentation: from seed, id and copy alone; labels keep their cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manyscope.scopes.cells.data.augment import augment, blur_sigma
from manyscope.scopes.cells.settings import AugmentSettings

Picture = tuple[np.ndarray, np.ndarray]
STILL = {"flip_horizontal": False, "flip_vertical": False, "rotate_90": False}
GREY = {"blur_probability": 0.0, "noise_probability": 0.0, "brightness_contrast_probability": 0.0}


def made(seed: int = 0) -> Picture:
    """An image with padding, (24, 36) uint8, whose labels tell every block of it apart."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 256, (24, 36)).astype(np.uint8)
    image[:3] = 0
    labels = np.kron(rng.permutation(24).reshape(4, 6), np.ones((6, 6), int)).astype(np.uint32)
    return image, labels


@hypothesis_settings(deadline=None)
@given(st.text(min_size=1, max_size=8), st.integers(0, 1500), st.integers(0, 2**40))
def test_a_copy_depends_on_seed_id_and_number_alone(name: str, copy: int, seed: int) -> None:
    settings = AugmentSettings(seed=seed)
    image, labels = made()
    np.random.seed(copy)  # noqa: NPY002 - no hidden state may matter
    one = augment(image, labels, name, copy, settings)
    augment(*made(1), "another", copy, settings)
    two = augment(image, labels, name, copy, settings)
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first, second)


def test_every_seed_id_and_number_draws_copies_of_its_own() -> None:
    noisy = AugmentSettings(noise_probability=1.0)
    drawn = {
        augment(*made(), name, copy, noisy.model_copy(update={"seed": seed}))[0].tobytes()
        for seed in (0, 1)
        for name in ("a", "b", "a_orig")
        for copy in range(4)
    }
    assert len(drawn) == 2 * 3 * 4


@hypothesis_settings(deadline=None)
@given(st.integers(0, 10_000))
def test_types_padding_and_labels_are_preserved(copy: int) -> None:
    image, labels = made()
    changed, cells = augment(image, labels, "a", copy, AugmentSettings())
    assert changed.dtype == np.uint8
    assert cells.dtype == labels.dtype
    assert changed.shape == cells.shape
    assert changed.shape in (image.shape, image.shape[::-1])
    np.testing.assert_array_equal(np.bincount(cells.ravel()), np.bincount(labels.ravel()))
    assert (changed == 0).sum() == (image == 0).sum()


@hypothesis_settings(deadline=None)
@given(st.integers(0, 10_000))
def test_labels_move_with_their_pixels(copy: int) -> None:
    image, labels = made()
    changed, cells = augment(image, labels, "a", copy, AugmentSettings(**GREY))
    for label in range(24):
        np.testing.assert_array_equal(np.sort(changed[cells == label]), np.sort(image[labels == label]))
    both = augment(labels.astype(np.uint8) + 1, labels, "a", copy, AugmentSettings(**GREY))
    np.testing.assert_array_equal(both[0], both[1] + 1)


def test_all_eight_positions_of_the_square_occur() -> None:
    image, labels = made()
    seen = {augment(image, labels, "a", c, AugmentSettings(**GREY))[0].tobytes() for c in range(200)}
    assert len(seen) == 8


def share_changed(settings: dict[str, Any], copies: int = 400) -> float:
    image, labels = made()
    chosen = AugmentSettings(**settings)
    return float(np.mean([not np.array_equal(augment(image, labels, "a", c, chosen)[0], image) for c in range(copies)]))


@pytest.mark.parametrize("only", ["flip_horizontal", "flip_vertical", "rotate_90"])
def test_flips_and_turns_are_every_second_copy(only: str) -> None:
    assert share_changed({**STILL, **GREY, only: True}) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("only", GREY)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_change_keeps_to_its_own_probability(only: str, probability: float) -> None:
    """The predecessor applied no noise when the probability of the blur was 0."""
    strong = {"noise": 0.5, "brightness": 0.2, "contrast": 0.2}
    found = share_changed({**STILL, **GREY, **strong, only: probability})
    assert found == pytest.approx(probability, abs=0.0 if probability in (0.0, 1.0) else 0.08)


def test_noise_multiplies_each_pixel_within_its_bound() -> None:
    image = np.full((50, 50), 200, np.uint8)
    settings = AugmentSettings(**STILL, **{**GREY, "noise_probability": 1.0}, noise=0.1)
    changed = augment(image, image, "a", 0, settings)[0]
    assert changed.min() >= 180
    assert changed.max() <= 220
    assert len(np.unique(changed)) > 30


def test_brightness_and_contrast_keep_to_their_bounds() -> None:
    image = np.full((4, 4), 100, np.uint8)
    settings = AugmentSettings(
        **STILL, **{**GREY, "brightness_contrast_probability": 1.0}, brightness=0.02, contrast=0.01
    )
    found = [int(augment(image, image, "a", c, settings)[0][0, 0]) for c in range(300)]
    assert 94 <= min(found) <= 96
    assert 104 <= max(found) <= 106


def test_the_blur_is_the_kernel_that_its_width_names() -> None:
    image = np.full((31, 31), 55, np.uint8)
    image[15, 15] = 255
    settings = AugmentSettings(**STILL, **{**GREY, "blur_probability": 1.0}, blur_min_px=7, blur_max_px=7)
    changed = augment(image, image, "a", 0, settings)[0].astype(int)
    x = np.arange(-3, 4)
    kernel = np.exp(-(x**2) / (2 * blur_sigma(7) ** 2))
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    np.testing.assert_allclose(changed[12:19, 12:19], 55 + 200 * kernel, atol=0.51)
    changed[12:19, 12:19] = 55
    assert (changed == 55).all()


@pytest.mark.parametrize(("width", "sigma"), [(3, 0.8), (5, 1.1), (11, 2.0)])
def test_the_blur_has_the_width_of_opencv(width: int, sigma: float) -> None:
    assert blur_sigma(width) == pytest.approx(sigma)


def test_switching_one_change_off_leaves_the_others() -> None:
    image, labels = made()
    for copy in range(40):
        full = augment(image, labels, "a", copy, AugmentSettings())[1]
        without = augment(image, labels, "a", copy, AugmentSettings(**GREY))[1]
        np.testing.assert_array_equal(full, without)
