"""One normalisation for training, inference and queries; polarity that can be undone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manyscope.scopes.cells.data.images import CellImages
from manyscope.scopes.cells.data.normalize import cells_are_bright, grey_range, invert, normalise

IMAGES = st.one_of(
    hnp.arrays(np.uint16, (7, 9)),
    hnp.arrays(np.uint8, (5, 4), elements=st.integers(0, 4)),
    hnp.arrays(np.int64, (6, 6), elements=st.integers(-(2**60), 2**60)),
    hnp.arrays(np.float64, (5, 8), elements=st.floats(-1e30, 1e30, allow_subnormal=False)),
)


@given(IMAGES, st.floats(0, 49), st.floats(51, 100))
def test_range_padding_and_order(image: np.ndarray, low: float, high: float) -> None:
    grey = normalise(image, low, high)
    assert grey.dtype == np.uint8
    assert grey.shape == image.shape
    np.testing.assert_array_equal(grey == 0, image == 0)
    seen = image != 0
    order = np.argsort(image[seen], kind="stable")
    assert (np.diff(grey[seen][order].astype(int)) >= 0).all()


@given(hnp.arrays(np.uint16, (9, 9), elements=st.integers(1, 60_000)))
def test_black_and_white_are_the_percentiles(image: np.ndarray) -> None:
    dark, bright = grey_range(image, 10, 90)
    grey = normalise(image, 10, 90)
    assert (grey[image <= dark] == 1).all()
    if image.min() < image.max():
        assert (grey[image >= bright] == 255).all()


def test_padding_does_not_shift_the_percentiles() -> None:
    image = np.random.default_rng(0).integers(1, 5000, (30, 30))
    padded = np.pad(image, 25)
    np.testing.assert_array_equal(normalise(padded, 1, 99.5)[25:-25, 25:-25], normalise(image, 1, 99.5))


@pytest.mark.parametrize("value", [1, 7, 65_535, -3.5, 1e300])
def test_a_constant_image_is_black(value: float) -> None:
    image = np.full((4, 4), value)
    image[0] = 0
    np.testing.assert_array_equal(normalise(image, 1, 99.5), (image != 0).astype(np.uint8))


def test_few_other_pixels_between_equal_percentiles_are_kept() -> None:
    image = np.full((30, 30), 100)
    image[3, 3], image[4, 4] = 50, 200
    grey = normalise(image, 1, 99.5)
    assert (grey[3, 3], grey[4, 4], grey[0, 0]) == (1, 255, round(1 + 254 / 3))


@given(hnp.arrays(np.uint8, (6, 5)))
def test_inverting_twice_changes_nothing_and_keeps_padding(image: np.ndarray) -> None:
    once = invert(image)
    np.testing.assert_array_equal(once == 0, image == 0)
    np.testing.assert_array_equal(once[image > 0], 256 - image[image > 0].astype(int))
    np.testing.assert_array_equal(invert(once), image)


@pytest.mark.parametrize("brighter", [False, True])
def test_polarity_is_told_without_padding(brighter: bool) -> None:
    image = np.full((20, 20), 120, np.uint8)
    labels = np.zeros((20, 20), np.uint16)
    labels[5:9, 5:9] = 3
    image[5:9, 5:9] = 160 if brighter else 80
    image[12:] = 0  # with padding counted, the background would be darker than either
    assert cells_are_bright(image, labels) is brighter
    assert cells_are_bright(invert(image), labels) is not brighter


@pytest.mark.parametrize("fill", [0, 1])
def test_polarity_needs_cells_and_background(fill: int) -> None:
    assert not cells_are_bright(np.full((3, 3), 9, np.uint8), np.full((3, 3), fill))


def test_a_query_is_normalised_as_the_prepared_images_were(raw: Path, data: CellImages) -> None:
    """The predecessor took percentiles in training, and smallest and largest values in inference."""
    for row, name in enumerate(data.samples["sample_id"]):
        file = raw / "images" / f"{name}.tif"
        np.testing.assert_array_equal(data.normalised(file), data.image(row))
        np.testing.assert_array_equal(normalise(tifffile.imread(file), 1, 99.5), data.image(row))
