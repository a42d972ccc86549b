"""Objects of an image: which are kept, what is measured, how features are pooled, what is shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manyscope.errors import DataError
from manyscope.scopes.cells.objects import crop, measure, minor_axes, object_ids, outline, pool, postprocess

ALL = ("mean", "std", "max")
ORANGE = (230, 159, 0)


def label_images(side: int = 12, largest: int = 9) -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=side)
    return hnp.arrays(np.uint32, shapes, elements=st.integers(0, largest))


def disk(size: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


# ------------------------------------------------------------------------------------------------------ postprocess
@given(label_images(), st.integers(0, 8), st.integers(0, 3), st.none() | st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_kept_cells_are_unchanged_and_numbered_in_their_order(
    masks: np.ndarray, min_area: int, margin: int, largest: int | None
) -> None:
    kept = postprocess(masks, min_area, margin, largest)
    assert kept.dtype == np.uint32
    count = kept.max()
    assert np.array_equal(np.unique(kept[kept > 0]), np.arange(1, count + 1))
    before = [np.unique(masks[kept == number]) for number in range(1, count + 1)]
    assert all(len(labels) == 1 for labels in before)
    old = [int(labels[0]) for labels in before]
    assert old == sorted(set(old) - {0})
    for number, label in enumerate(old, 1):
        assert np.array_equal(kept == number, masks == label)

    height, width = masks.shape
    y, x = np.mgrid[:height, :width]
    distance = np.minimum.reduce([y, x, height - 1 - y, width - 1 - x])
    candidates = {
        int(label): int((masks == label).sum())
        for label in np.unique(masks[masks > 0])
        if (masks == label).sum() >= min_area and distance[masks == label].min() >= margin
    }
    by_size = sorted(candidates, key=lambda label: (-candidates[label], label))
    assert set(old) == set(by_size[:largest])


@given(label_images())
@settings(deadline=None)
def test_a_second_pass_changes_nothing(masks: np.ndarray) -> None:
    once = postprocess(masks, 3, 1, 2)
    assert np.array_equal(postprocess(once, 3, 1, 2), once)


def test_without_limits_every_cell_stays() -> None:
    masks = np.array([[7, 0], [3, 3]], np.uint16)
    assert np.array_equal(postprocess(masks, 0, 0, None), [[2, 0], [1, 1]])


def test_a_margin_beyond_the_middle_leaves_nothing() -> None:
    assert not postprocess(np.ones((4, 9), np.uint16), 0, 3, None).any()


# ---------------------------------------------------------------------------------------------------------- measure
def test_a_disk_is_measured_as_one() -> None:
    masks = np.zeros((64, 64), np.uint32)
    masks[disk(64, (30, 25), 12)] = 4
    image = np.where(masks > 0, 90, 200).astype(np.uint8)
    found = {name: values[0] for name, values in measure(masks, image, (masks > 0) * np.float32(0.75)).items()}
    assert found["label"] == 4
    assert found["area_px"] == pytest.approx(np.pi * 12**2, rel=0.03)
    assert (found["centroid_y_px"], found["centroid_x_px"]) == pytest.approx((30, 25))
    assert (found["top_px"], found["left_px"], found["box_height_px"], found["box_width_px"]) == (18, 13, 25, 25)
    assert found["major_axis_px"] == pytest.approx(24, rel=0.02)
    assert found["minor_axis_px"] == pytest.approx(24, rel=0.02) == minor_axes(masks)[0]
    assert found["eccentricity"] < 0.1
    assert found["perimeter_px"] == pytest.approx(2 * np.pi * 12, rel=0.08)
    assert found["solidity"] > 0.9
    assert (found["mean_intensity"], found["std_intensity"], found["confidence"]) == (90, 0, 0.75)
    assert not found["touches_border"]


def test_a_long_bent_cell_is_neither_round_nor_solid() -> None:
    masks = np.zeros((40, 40), np.uint32)
    masks[:30, 3:8] = masks[25:30, 3:33] = 1
    found = measure(masks, np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.float32))
    assert found["solidity"][0] < 0.6
    assert found["eccentricity"][0] > 0.8
    assert found["touches_border"][0]


@given(label_images(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_each_cell_has_one_finite_value_of_its_own_pixels(masks: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, sure = rng.integers(0, 256, masks.shape, np.uint8), rng.random(masks.shape, np.float32)
    found = measure(masks, image, sure)
    labels = np.unique(masks[masks > 0])
    assert np.array_equal(found["label"], labels)
    assert all(len(values) == len(labels) and np.isfinite(values).all() for values in found.values())
    height, width = masks.shape
    for i, label in enumerate(labels):
        y, x = np.nonzero(masks == label)
        assert found["area_px"][i] == len(y)
        assert found["centroid_x_px"][i] == pytest.approx(x.mean())
        assert found["mean_intensity"][i] == pytest.approx(image[y, x].mean())
        assert found["std_intensity"][i] == pytest.approx(image[y, x].std(), abs=1e-9)
        assert found["confidence"][i] == pytest.approx(sure[y, x].mean(), rel=1e-5)
        assert found["box_height_px"][i] == np.ptp(y) + 1
        assert found["touches_border"][i] == (
            y.min() == 0 or x.min() == 0 or y.max() == height - 1 or x.max() == width - 1
        )


def test_an_empty_image_has_columns_of_no_value() -> None:
    nothing, one = (
        measure(masks, np.zeros((5, 5), np.uint8), np.zeros((5, 5), np.float32))
        for masks in (np.zeros((5, 5), np.uint32), np.eye(5, dtype=np.uint32))
    )
    assert {name: values.dtype for name, values in nothing.items()} == {n: v.dtype for n, v in one.items()}
    assert all(values.shape == (0,) for values in nothing.values())


def test_ids_are_of_the_sample_and_the_label() -> None:
    assert object_ids("plate/7", np.array([[0, 12], [3, 3]])) == ["plate/7/3", "plate/7/12"]


# ------------------------------------------------------------------------------------------------------------- pool
def pooled_by_hand(features: np.ndarray, masks: np.ndarray, stride: float, pooling: Sequence[str]) -> np.ndarray:
    gh, gw = features.shape[1:]
    rows = []
    for label in np.unique(masks[masks > 0]):
        seen = []
        for i in range(gh):
            for j in range(gw):
                y, x = int((i + 0.5) * stride), int((j + 0.5) * stride)
                if y < masks.shape[0] and x < masks.shape[1] and masks[y, x] == label:
                    seen.append(features[:, i, j])
        if not seen:
            for y, x in np.argwhere(masks == label):
                seen.append(features[:, min(int(y / stride), gh - 1), min(int(x / stride), gw - 1)])
        values = np.stack(seen).astype(np.float64)
        rows.append(np.concatenate([getattr(values, how)(axis=0) for how in pooling]))
    return np.array(rows).reshape(len(rows), -1)


@given(
    label_images(20, 6),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from([1.0, 1.7, 2.0, 4.0]),
    st.lists(st.sampled_from(ALL), min_size=1, max_size=3, unique=True),
    st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_pooling_is_what_loops_over_the_grid_give(
    masks: np.ndarray, grid: tuple[int, int], stride: float, pooling: list[str], seed: int
) -> None:
    features = np.random.default_rng(seed).standard_normal((35, *grid), np.float32)
    found = pool(features, masks, stride, pooling)
    assert found.dtype == np.float32
    assert found.shape == (len(np.unique(masks[masks > 0])), 35 * len(pooling))
    if len(found):
        assert found == pytest.approx(pooled_by_hand(features, masks, stride, pooling), abs=1e-5)


def test_a_cell_between_the_points_of_the_grid_votes_by_its_pixels() -> None:
    masks = np.zeros((16, 16), np.uint32)
    masks[5:11, 5:11], masks[0, 5:9] = 1, 2  # the points are at 4 and 12 in both directions
    masks[5:11, 11] = 3
    features = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    found = pool(features, masks, 8, ALL)
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx([(0 * 9 + 1 * 9 + 2 * 9 + 3 * 9) / 36, np.std([0, 1, 2, 3]), 3])
    assert found[1] == pytest.approx([1 / 4, np.std([0, 0, 0, 1]), 1])  # pixels 5, 6, 7 | 8
    assert found[2] == pytest.approx([2, 1, 3])


def test_no_cell_gives_no_vector() -> None:
    assert pool(np.ones((5, 2, 2), np.float32), np.zeros((8, 8), np.uint32), 4, ALL).shape == (0, 15)


# ------------------------------------------------------------------------------------------------------------- crop
def test_a_picture_differs_from_the_image_where_the_outline_is() -> None:
    masks = np.zeros((96, 96), np.uint32)
    masks[disk(96, (48, 40), 20)], masks[disk(96, (20, 80), 8)] = 3, 1
    image = np.random.default_rng(0).integers(1, 256, masks.shape, np.uint8)
    picture = np.asarray(crop(image, masks, 3, 64, 0.3))
    assert (picture.shape, picture.dtype) == ((64, 64, 3), np.uint8)
    coloured = (picture == ORANGE).all(-1)
    grey = (picture == picture[..., :1]).all(-1)
    assert (coloured ^ grey).all()  # nothing else is coloured, the other cell neither
    y, x = np.nonzero(coloured)
    side = 41 * 1.6
    radius = np.hypot(y - 31.5, x - 31.5) * side / 64
    assert 17 < radius.min() < radius.max() < 22.5
    assert len(y) > 100  # all around


@pytest.mark.parametrize("size", [24, 64])
def test_the_middle_of_a_picture_is_the_cells(size: int) -> None:
    masks = np.zeros((200, 200), np.uint16)
    masks[90:100, 120:160] = 1
    image = np.full(masks.shape, 250, np.uint8)
    image[masks > 0] = 10
    picture = np.asarray(crop(image, masks, 1, size))
    assert picture[size // 2, size // 2].tolist() == [10, 10, 10]
    assert picture[0, 0].tolist() == [250, 250, 250]


def test_a_cell_in_a_corner_is_shown_with_what_the_image_has() -> None:
    masks = np.zeros((50, 30), np.uint16)
    masks[40:50, 24:30] = 2
    image = np.full(masks.shape, 99, np.uint8)
    picture = np.asarray(crop(image, masks, 2))
    assert ((picture == 99).all(-1) | (picture == ORANGE).all(-1)).all()  # no black margin


def test_a_cell_as_large_as_its_image_gets_a_margin() -> None:
    image = np.full((10, 10), 50, np.uint8)
    picture = np.asarray(crop(image, np.ones((10, 10), np.uint16), 1))
    assert picture.shape == (64, 64, 3)
    assert not picture[0].any()


def test_an_unknown_cell_has_no_picture() -> None:
    with pytest.raises(DataError, match="there is no cell 5; allowed: labels up to 1"):
        crop(np.zeros((4, 4), np.uint8), np.eye(4, dtype=np.uint16), 5)


@given(label_images())
@settings(deadline=None)
def test_the_outline_is_where_another_label_is_beside(masks: np.ndarray) -> None:
    line = outline(masks)
    height, width = masks.shape
    for y in range(height):
        for x in range(width):
            beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            other = [not (0 <= v < height and 0 <= u < width) or masks[v, u] != masks[y, x] for v, u in beside]
            assert line[y, x] == (masks[y, x] > 0 and any(other))
