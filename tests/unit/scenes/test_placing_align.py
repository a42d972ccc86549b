from __future__ import annotations

import cmath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from manyscope.scopes.scenes.data.placing.align import (
    Level,
    Similarity,
    align,
    bilinear,
    correlated_shift,
    errors,
    grid,
    pyramid,
)

HEIGHT, WIDTH = 64, 90
complexes = st.complex_numbers(min_magnitude=0.2, max_magnitude=5, allow_nan=False)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(200, 240)), 2.5)
    return 0.5 + 0.2 * noise / noise.std()


def seen(photo: np.ndarray, motion: Similarity) -> np.ndarray:
    """A frame whose places p show the photo's places motion(p)."""
    places = motion(grid(HEIGHT, WIDTH))
    where = [places.imag + photo.shape[0] / 2 - 0.5, places.real + photo.shape[1] / 2 - 0.5]
    return ndimage.map_coordinates(photo, where, order=3)


def picture(image: np.ndarray, weight: np.ndarray | None = None, longest_px: int = 320) -> list[Level]:
    return pyramid(image[..., None], np.ones((*image.shape, 1)) if weight is None else weight[..., None], longest_px)


def farthest(found: Similarity, truth: Similarity) -> float:
    places = grid(HEIGHT, WIDTH)
    return float(np.abs(found(places) - truth(places)).max())


MOTIONS = [
    Similarity(shift=3.3 - 2.6j),
    Similarity(cmath.rect(1.0, 0.08), 1 + 2j),
    Similarity(1.07 + 0j, -2j),
    Similarity(cmath.rect(0.94, -0.06), -4.2 + 1.5j),
]


@pytest.mark.parametrize("truth", MOTIONS, ids=["shift", "turn", "scale", "all"])
def test_a_similarity_is_recovered(photo: np.ndarray, truth: Similarity) -> None:
    # moving(p) = photo(p) and template(p) = photo(truth(p)), so that template(p) = moving(truth(p)).
    found = align(picture(seen(photo, truth)), picture(seen(photo, Similarity())), [Similarity()])
    assert farthest(found.transform, truth) < 0.1
    assert found.error < 0.1


def test_it_is_the_same_for_shrunken_pictures(photo: np.ndarray) -> None:
    truth = MOTIONS[3]
    found = align(
        picture(seen(photo, truth), longest_px=61), picture(seen(photo, Similarity()), longest_px=61), [Similarity()]
    )
    assert farthest(found.transform, truth) < 0.2


def test_brightness_may_differ(photo: np.ndarray) -> None:
    truth = MOTIONS[3]
    found = align(picture(seen(photo, truth)), picture(0.8 * seen(photo, Similarity()) + 0.15), [Similarity()])
    assert farthest(found.transform, truth) < 0.1


def test_what_has_no_weight_is_not_compared(photo: np.ndarray) -> None:
    truth = Similarity(shift=2.5 + 1j)
    template, moving = seen(photo, truth), seen(photo, Similarity())
    weights = np.ones((2, HEIGHT, WIDTH))
    for image, weight, columns in ((template, weights[0], slice(20, 45)), (moving, weights[1], slice(40, 70))):
        weight[:, columns] = 0
        image[:, columns] = np.random.default_rng(0).uniform(size=image[:, columns].shape)
    found = align(picture(template, weights[0]), picture(moving, weights[1]), [Similarity()])
    assert farthest(found.transform, truth) < 0.15


def test_a_third_that_moves_otherwise_does_not_draw_it_away(photo: np.ndarray) -> None:
    truth = Similarity(shift=2.5 + 1j)
    template, moving = seen(photo, truth), seen(photo, Similarity())
    template[:, 60:] = seen(photo, Similarity(shift=40 + 30j))[:, 60:]
    found = align(picture(template), picture(moving), [Similarity()])
    assert np.abs(found.transform.shift - truth.shift) < 0.3


def test_the_start_is_kept_where_nothing_is_to_be_seen() -> None:
    start = Similarity(1.1 + 0j, 3j)
    plain = picture(np.full((HEIGHT, WIDTH), 0.4))
    assert farthest(align(plain, plain, [start]).transform, start) < 1e-3
    nothing = picture(np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH)))
    found = align(nothing, plain, [start])
    assert found.transform == start
    assert found.error == np.inf


def test_the_best_of_several_starts_is_taken(photo: np.ndarray) -> None:
    truth = Similarity(cmath.rect(1.0, 0.7), 15 + 8j)
    template, moving = picture(seen(photo, truth)), picture(seen(photo, Similarity()))
    near = Similarity(cmath.rect(1.0, 0.66), 13.5 + 9j)
    found = align(template, moving, [Similarity(), Similarity(shift=-9), near])
    assert farthest(found.transform, truth) < 0.2
    assert found.error <= errors(template[0], moving[0], near).sum()


@pytest.mark.parametrize("shift", [20 + 6j, -14 - 12j])
def test_a_large_shift_is_found_by_correlation(photo: np.ndarray, shift: complex) -> None:
    template, moving = picture(seen(photo, Similarity(shift=shift))), picture(seen(photo, Similarity()))
    start = correlated_shift(template, moving)
    assert abs(start.shift - shift) < 2
    assert farthest(align(template, moving, [Similarity(), start]).transform, Similarity(shift=shift)) < 0.1


def test_masks_alone_give_shift_and_size() -> None:
    places = grid(HEIGHT, WIDTH)

    def disc(middle: complex, radius: float) -> list[Level]:
        mask = np.clip(radius - np.abs(places - middle) + 0.5, 0, 1)
        smooth = ndimage.gaussian_filter(mask, 2)
        return pyramid(np.stack([np.full_like(mask, 0.5), smooth], 2), np.stack([mask, np.ones_like(mask)], 2), 320)

    found = align(disc(2 + 1j, 14), disc(5 - 2j, 16), [Similarity()]).transform
    assert abs(found(np.array(2 + 1j)) - (5 - 2j)) < 0.2
    assert found.scale == pytest.approx(16 / 14, rel=0.03)


def test_bilinear_is_exact_for_a_plane_and_goes_on_outside() -> None:
    rows, columns = np.mgrid[:5, :7]
    image = np.stack([2 * columns + 3 * rows, np.ones_like(rows)], axis=2)
    x, y = np.array([0.25, 5.9, 6.0, -3.0]), np.array([1.5, 3.2, 4.0, 9.0])
    assert bilinear(image, x, y) == pytest.approx(np.array([[5, 1], [21.4, 1], [24, 1], [12, 1]]), abs=1e-5)
    assert bilinear(np.full((1, 1, 1), 3.0), x, y) == pytest.approx(np.full((4, 1), 3.0))


@settings(max_examples=50, deadline=None)
@given(complexes, complexes, complexes, complexes, complexes)
def test_similarities_are_a_group(a: complex, b: complex, c: complex, d: complex, place: complex) -> None:
    first, second = Similarity(a, b), Similarity(c, d)
    assert abs(second.after(first)(np.array(place)) - second(first(np.array(place)))) < 1e-9
    assert abs(first.inverse()(first(np.array(place))) - place) < 1e-9
    assert second.after(first).scale == pytest.approx(first.scale * second.scale)
