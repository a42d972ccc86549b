"""The vector of a layer: alike for what looks alike, wherever it is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from manyscope.errors import DataError
from manyscope.scopes.scenes.model.descriptor import DIMENSIONS, box, describe
from manyscope.scopes.scenes.model.infer import embed_picture


def disc(colour, size=40, radius=12, at=(20, 20), stripes=None):
    y, x = np.mgrid[:size, :size]
    layer = np.zeros((size, size, 4))
    layer[..., :3] = colour
    if stripes:
        layer[..., :3] *= 0.6 + 0.4 * np.sin((x if stripes == "upright" else y)[..., None] * 1.5)
    layer[..., 3] = np.hypot(y - at[0], x - at[1]) < radius
    return layer


def test_place_and_size_do_not_matter_and_colour_does():
    red, blue = (0.8, 0.1, 0.1), (0.1, 0.2, 0.8)
    one = describe(disc(red))
    moved, larger = describe(disc(red, at=(14, 25))), describe(disc(red, size=80, radius=24, at=(40, 40)))
    other = describe(disc(blue))
    assert one.shape == (DIMENSIONS,)
    assert one.dtype == np.float32
    np.testing.assert_allclose(moved, one, atol=1e-6)
    assert np.linalg.norm(larger - one) < 0.3 * np.linalg.norm(other - one)


def test_directions_of_edges_tell_stripes_apart():
    upright, level = (describe(disc((0.7, 0.7, 0.7), stripes=way)) for way in ("upright", "level"))
    assert np.linalg.norm(upright - level) > 0.3


def test_nothing_to_be_seen_has_no_vector():
    layer = disc((1.0, 1, 1))
    layer[..., 3] *= 0.05
    assert describe(layer) is None
    assert box(layer[..., 3]) is None


def test_one_pixel_has_a_vector():
    layer = np.zeros((5, 5, 4))
    layer[2, 3] = 1
    assert np.isfinite(describe(layer)).all()


def test_the_box_holds_what_is_seen():
    alpha = np.zeros((6, 8))
    alpha[2:4, 1:7] = 0.5
    assert box(alpha) == (slice(2, 4), slice(1, 7))


def test_a_picture_from_anywhere_has_the_vector_of_the_same_layer(tmp_path):
    layer = disc((0.8, 0.4, 0.2))
    Image.fromarray((layer * 255).round().astype(np.uint8)).save(tmp_path / "layer.png")
    np.testing.assert_allclose(embed_picture(tmp_path / "layer.png"), describe(layer), atol=5e-3)
    Image.new("RGBA", (4, 4)).save(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="transparent everywhere"):
        embed_picture(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="missing"):
        embed_picture(tmp_path / "nowhere.png")
