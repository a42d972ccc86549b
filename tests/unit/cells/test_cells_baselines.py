"""The classical methods: honest rivals, whose parameters labelled images choose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.scopes.cells.data.normalize import invert, normalise
from manyscope.scopes.cells.evaluate import baselines
from manyscope.scopes.cells.evaluate.baselines import (
    GRID,
    METHODS,
    Choice,
    Parameters,
    TypicalCell,
    choose,
    segment,
    some_images,
)
from manyscope.scopes.cells.evaluate.matching import scores
from manyscope.scopes.cells.settings import SimulatedSettings
from manyscope.scopes.cells.simulate import simulate

Images = tuple[list[np.ndarray], list[np.ndarray]]
DARK = TypicalCell(20, 300, bright=False)


def simulated(seeds: range, size_px: int = 128) -> Images:
    drawn = [simulate(size_px, seed, SimulatedSettings()) for seed in seeds]
    return [normalise(image, 1, 99.5) for image, _ in drawn], [labels for _, labels in drawn]


@pytest.fixture(scope="module")
def chosen() -> dict[str, Choice]:
    found, table = choose(list(METHODS), *simulated(range(3)))
    assert table["method"].to_list() == list(METHODS)
    return found


@pytest.fixture
def disks() -> tuple[np.ndarray, np.ndarray]:
    """Four dark disks, two of which touch, on a bright ground: image (96, 96) uint8 and labels."""
    y, x = np.mgrid[:96, :96]
    labels = np.zeros((96, 96), np.uint16)
    for number, (cy, cx) in enumerate(((20, 20), (20, 39), (60, 30), (65, 70)), 1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= 81] = number
    noise = np.random.default_rng(0).integers(-5, 6, labels.shape)
    return (np.where(labels > 0, 60, 180) + noise).astype(np.uint8), labels


def msa(choice: Choice, images: Images) -> float:
    return float(np.mean([scores(labels, choice.segment(image))["msa"] for image, labels in zip(*images, strict=True)]))


def test_a_method_is_a_strong_rival_once_it_takes_the_light_into_account(chosen: dict[str, Choice]) -> None:
    test = simulated(range(1000, 1003))
    found = {method: msa(choice, test) for method, choice in chosen.items()}
    assert found["flat_otsu_watershed"] > 0.55  # about 0.69 on images of 256 px
    assert found["local_threshold"] > 0.4  # about 0.66
    assert 0.15 < found["otsu_watershed"] < found["flat_otsu_watershed"]


def test_the_choice_is_from_the_grid_and_no_neighbour_in_it_is_better(chosen: dict[str, Choice]) -> None:
    images = simulated(range(3))
    for method, choice in chosen.items():
        assert msa(choice, images) == pytest.approx(choice.msa)
        assert choice.msa >= msa(replace(choice, parameters=Parameters()), images)
        for name, values in GRID.items():
            here = getattr(choice.parameters, name)
            assert here in values
            if name == "shift":
                for value in values:
                    other = replace(choice, parameters=replace(choice.parameters, shift=value))
                    assert msa(other, images) <= choice.msa, method


def test_the_table_says_what_was_chosen_in_pixels(chosen: dict[str, Choice]) -> None:
    choice = chosen["flat_otsu_watershed"]
    row, width = choice.row(), choice.cell.width_px
    assert row["chosen_on_images"] == 3
    assert row["msa_there"] == choice.msa
    assert row["window_px"] == pytest.approx(choice.parameters.window * width)
    assert row["min_area_px"] == pytest.approx(choice.parameters.min_area * choice.cell.area_px)
    assert chosen["otsu_watershed"].row()["window_px"] is None


@pytest.mark.parametrize("method", METHODS)
def test_touching_disks_are_found_one_by_one(method: str, disks: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = disks
    found = segment(method, image, Parameters(window=4), TypicalCell(18, 250, bright=False))
    assert found.dtype == np.uint32
    assert scores(labels, found)["f1"] == 1
    assert scores(labels, found)["msa"] > 0.6


@pytest.mark.parametrize("method", METHODS)
def test_bright_cells_are_found_as_dark_ones_are(method: str, disks: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = disks
    cell = TypicalCell.of([image, invert(image), invert(image)], [labels] * 3)
    assert cell.bright
    assert not TypicalCell.of([image], [labels]).bright
    dark = segment(method, image, Parameters(), replace(cell, bright=False))
    assert dark.any()
    assert np.array_equal(segment(method, invert(image), Parameters(), cell), dark)


@pytest.mark.parametrize("method", METHODS)
def test_padding_is_no_cell(method: str, disks: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = disks
    padded, true = np.pad(image, ((0, 40), (0, 64))), np.pad(labels, ((0, 40), (0, 64)))
    found = segment(method, padded, Parameters(window=4), TypicalCell(18, 250, bright=False))
    assert not found[padded == 0].any()
    assert scores(true, found)["f1"] == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grey", [0, 1, 128, 255])
def test_nothing_is_found_where_there_is_nothing(method: str, grey: int) -> None:
    assert not segment(method, np.full((40, 50), grey, np.uint8), Parameters(), DARK).any()


def test_two_cells_are_cut_where_their_neck_is_deep_enough() -> None:
    y, x = np.mgrid[:60, :60]
    both = np.minimum((y - 30) ** 2 + (x - 24) ** 2, (y - 30) ** 2 + (x - 36) ** 2) <= 81
    image = np.where(both, 60, 180).astype(np.uint8)
    counts = [
        len(np.unique(segment("otsu_watershed", image, Parameters(marker_height=height), DARK))) - 1
        for height in (0.03, 0.15, 0.6)
    ]
    assert counts == [2, 1, 0]  # the neck is 2 px, a tenth of a width, below the middles; none is half a width deep


@pytest.mark.parametrize("height", [0.5, 1.2, 2.5])
def test_the_basins_are_those_of_the_h_maxima(height: float) -> None:
    from scipy import ndimage
    from skimage.morphology import h_maxima
    from skimage.segmentation import watershed

    inside = simulated(range(3, 4), 192)[1][0] > 0
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside).astype(np.float32), 1)
    markers = ndimage.label(h_maxima(depth, height).astype(bool) & inside, np.ones((3, 3)))[0]
    true = watershed(-depth, markers, mask=inside)
    assert scores(true, baselines._basins(depth, inside, height))["f1"] > 0.95


def test_small_finds_are_dropped(disks: tuple[np.ndarray, np.ndarray]) -> None:
    image, _ = disks
    image[80:88, 5:13] = 60
    cell = TypicalCell(18, 250, bright=False)
    for share, count in ((0.1, 5), (0.3, 4)):
        found = segment("otsu_watershed", image, Parameters(min_area=share, marker_height=0.03), cell)
        assert len(np.unique(found)) - 1 == count


def test_holes_are_filled_if_told(disks: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = disks
    image[58:63, 28:33] = 180
    cell = TypicalCell(18, 250, bright=False)
    filled, kept = (segment("otsu_watershed", image, Parameters(fill_holes=f, opening=0), cell) for f in (True, False))
    hole = (slice(59, 62), slice(29, 32))
    assert filled[hole].all()
    assert not kept[hole].any()
    assert labels[hole].all()


def test_one_grid_serves_images_of_any_scale(disks: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = disks
    cell = TypicalCell.of([image], [labels])
    assert cell.width_px == pytest.approx(18, abs=0.5)
    assert cell.area_px == pytest.approx(np.pi * 81, rel=0.05)
    large, true = (pixels.repeat(3, 0).repeat(3, 1) for pixels in (image, labels))
    larger = TypicalCell.of([large], [true])
    assert larger.width_px == pytest.approx(3 * cell.width_px, rel=0.02)
    assert larger.area_px == 9 * cell.area_px
    found = segment("local_threshold", large, Parameters(window=4), larger)
    assert scores(true, found)["f1"] == 1


@given(
    st.lists(st.tuples(st.integers(1, 4_000_000), st.integers(1, 3000)), min_size=1, max_size=40), st.integers(0, 99)
)
def test_some_images_are_a_seeded_choice_within_a_budget(drawn: list[tuple[int, int]], seed: int) -> None:
    sizes, cells = map(list, zip(*drawn, strict=True))
    some = some_images(sizes, cells, seed)
    assert np.array_equal(some, some_images(sizes, cells, seed))
    assert np.array_equal(some, np.unique(some))
    assert some[-1] < len(sizes)
    assert min(2, len(sizes)) <= len(some) <= 8
    assert len(some) <= 2 or sum(sizes[i] for i in some) <= 8 * 512 * 512


def test_images_of_many_cells_are_drawn_more_often() -> None:
    drawn = [some_images([256 * 256] * 20, [40] * 10 + [2] * 10, seed) for seed in range(20)]
    assert {len(some) for some in drawn} == {8}
    assert len({tuple(some) for some in drawn}) > 10
    assert np.mean(np.concatenate(drawn) < 10) > 0.7


def test_without_labels_nothing_can_be_chosen() -> None:
    with pytest.raises(DataError, match="no training or validation image has labelled cells"):
        some_images([], [], 0)
