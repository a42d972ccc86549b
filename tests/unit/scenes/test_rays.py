"""What the training of a scene is fed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import ManyscopeError
from manyscope.scopes.scenes.model.rays import STEPS, Pixels, Rays, UvGrid, bilinear, decode, encode
from manyscope.scopes.scenes.settings import ScenesTrain

HEIGHT, WIDTH = 6, 9


class SomeClip:
    """Twelve frames of noise, two objects; frames 1, 5, 9 are tests, 3 and 7 validate."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.frames = rng.integers(0, 256, (12, HEIGHT, WIDTH, 3), dtype=np.uint8)
        self.masks = rng.integers(0, 256, (12, 2, HEIGHT, WIDTH), dtype=np.uint8)
        self.known = rng.random((12, 2)) < 0.5
        self.size = HEIGHT, WIDTH

    def rows(self, split):
        chosen = {"train": [0, 2, 4, 6, 8, 10, 11], "validation": [3, 7], "test": [1, 5, 9]}
        return np.array(chosen[split])


@given(st.integers(0, 50), st.integers(0, HEIGHT * STEPS - 1), st.integers(0, WIDTH * STEPS - 1))
def test_a_ray_is_one_number(frame, y, x):
    found, place = decode(encode(np.array([frame]), np.array([x]), np.array([y]), HEIGHT, WIDTH), HEIGHT, WIDTH)
    assert found[0] == frame
    np.testing.assert_allclose(place[0] * STEPS - 0.5, [x, y], atol=1e-3)


@pytest.mark.parametrize("sampler", [Pixels, UvGrid])
def test_a_step_is_a_function_of_seed_and_step(sampler):
    one, same, other = (sampler(7, HEIGHT, WIDTH, 100, seed, 3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.batch(5), same.batch(5))
    assert (one.batch(5) != other.batch(5)).any()
    assert (one.batch(5) != one.batch(6)).any()
    assert len(one.batch(5)) == 100
    assert one.steps_per_epoch == 7 * HEIGHT * WIDTH / 100


def test_pixels_are_drawn_at_their_centres_and_evenly():
    frame, place = decode(Pixels(3, HEIGHT, WIDTH, 30_000, 0, 1).batch(0), HEIGHT, WIDTH)
    np.testing.assert_allclose(place % 1, 0.5, atol=1e-5)
    counts = np.histogramdd(np.column_stack([frame, place]), bins=(3, WIDTH, HEIGHT))[0]
    expected = 30_000 / counts.size
    assert counts.min() > 0.7 * expected
    assert counts.max() < 1.3 * expected


def test_a_grid_of_places_is_the_same_in_each_of_its_frames():
    rays = UvGrid(7, HEIGHT, WIDTH, 60, 0, timestamps=3).batch(4)
    frame, place = decode(rays, HEIGHT, WIDTH)
    drawn = [set(map(tuple, place[frame == f])) for f in np.unique(frame)]
    assert len(drawn) == 3
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(drawn[0]) == 20


def test_a_grid_may_ask_for_more_frames_than_there_are():
    frame, _ = decode(UvGrid(2, HEIGHT, WIDTH, 60, 0, timestamps=20).batch(0), HEIGHT, WIDTH)
    assert set(frame) == {0, 1}


def test_training_rays_are_of_training_frames_with_their_pixels():
    clip = SomeClip()
    rays = Rays(clip, ScenesTrain())
    assert rays.train_size == 7 * HEIGHT * WIDTH
    batch = rays.train_batch(rays.train_schedule(500, 0).batch(0))
    rows = batch["frame"].numpy()
    assert set(rows) == set(clip.rows("train"))
    x, y = batch["places"].numpy().astype(int).T
    np.testing.assert_array_equal(batch["colour"].numpy(), clip.frames[rows, y, x].astype(np.float32) / 255)
    np.testing.assert_array_equal(batch["masks"].numpy(), clip.masks[rows, :, y, x].astype(np.float32) / 255)
    np.testing.assert_array_equal(batch["known"].numpy(), clip.known[rows])


def test_a_check_looks_at_every_pixel_of_the_validation_frames_if_they_are_small():
    clip = SomeClip()
    rays = Rays(clip, ScenesTrain())
    batches = [rays.validation_batch(some) for some in rays.validation_schedule(50)]
    rows = np.concatenate([b["frame"].numpy() for b in batches])
    assert set(rows) == {3, 7}
    assert len(rows) == 2 * HEIGHT * WIDTH
    places = np.concatenate([b["places"].numpy() for b in batches])
    assert len({(r, *p) for r, p in zip(rows.tolist(), places.tolist(), strict=True)}) == len(rows)


def test_a_check_of_large_frames_looks_at_some_pixels_of_all_of_them():
    rays = Rays(SimpleNamespace(rows=lambda split: np.arange(3), size=(500, 700)), ScenesTrain())
    frame, place = decode(np.concatenate(list(rays.validation_schedule(10_000))), 500, 700)
    assert len(frame) <= 65_536
    assert set(frame) == {0, 1, 2}
    assert place.min() < 5
    assert place[:, 0].max() > 690


def test_no_object_gives_no_masks():
    clip = SomeClip()
    clip.masks, clip.known = clip.masks[:, :0], clip.known[:, :0]
    assert Rays(clip, ScenesTrain()).train_batch([0, 1])["masks"].shape == (2, 0)


def test_between_pixels_colours_are_interpolated():
    images = np.zeros((2, 3, 4, 1), np.uint8)
    images[1, 1, 2] = 200
    places = np.array([[2.5, 1.5], [3.0, 1.5], [3.0, 1.0], [2.5, 2.5]], np.float32)
    found = bilinear(images, np.ones(4, int), places)[:, 0] * 255
    np.testing.assert_allclose(found, [200, 100, 50, 0], atol=1e-3)
    border = bilinear(images + np.uint8(7), np.zeros(1, int), np.array([[0.01, 2.99]], np.float32))
    np.testing.assert_allclose(border * 255, 7, atol=1e-4)


def test_an_unknown_sampler_is_named():
    with pytest.raises(ManyscopeError, match=r"sampler 'pixel' is unknown.*did you mean 'pixels'"):
        Rays(SomeClip(), ScenesTrain(sampler="pixel")).train_schedule(10, 0)
