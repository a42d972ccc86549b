from __future__ import annotations

import numpy as np
import pytest

from manyscope.scopes.panoramas.model.variants import Variants
from manyscope.scopes.panoramas.settings import ViewSettings
from manyscope.scopes.panoramas.views.render import Renderer
from manyscope.scopes.panoramas.views.strategies import find_views

STRATEGIES = {
    "e2p": ({"fov_deg": 60, "overlap": 0.25, "pitch_deg": -15}, 16, 16),
    "cubemap": ({}, 8, 8),
    "resize": ({}, 16, 16),
    "anyres_e2p": ({}, 16, 32),
    "sliding_window": ({"fov_deg": 90, "overlap": 0.5}, 16, 16),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_views_of_a_changed_panorama_are_views_of_the_original(strategy):
    given, variants, sources = STRATEGIES[strategy]
    settings = ViewSettings(strategy=strategy, size_px=32, antialias=False, **given)
    views = find_views(settings)
    render = Renderer(views, settings)
    rng = np.random.default_rng(0)
    panorama = np.kron(rng.integers(0, 255, (16, 32, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    original = render(panorama)
    found = Variants(views, True)
    assert (len(found.all), len(found.sources)) == (variants, sources)
    assert found.all[0].turn_deg == 0
    assert not found.all[0].mirror
    for variant in found.all:
        changed = panorama[:, ::-1] if variant.mirror else panorama
        changed = np.roll(changed, round(variant.turn_deg / 360 * 128), 1)
        expected = render(np.ascontiguousarray(changed)).astype(int)
        made = np.stack([found.sources[number].apply(original) for number in variant.sources]).astype(int)
        # A strip is mirrored exactly; in perspective the last bit of a position may differ.
        assert np.abs(made - expected).mean() < 0.5
        assert (np.abs(made - expected) > 2).mean() < 0.01


def test_without_change_each_view_is_its_own():
    views = find_views(ViewSettings(strategy="anyres_e2p", size_px=16))
    found = Variants(views, False)
    assert [(s.view, s.mirrored, s.shift_px) for s in found.sources] == [(i, False, 0) for i in range(len(views))]
    assert len(found.all) == 1


def test_views_that_do_not_repeat_are_not_turned():
    views = find_views(ViewSettings(strategy="e2p", size_px=16, fov_deg=70, overlap=0.0))  # six views, 60 degrees apart
    turns = {variant.turn_deg for variant in Variants(views, True).all}
    assert turns == {0.0, 180.0}
