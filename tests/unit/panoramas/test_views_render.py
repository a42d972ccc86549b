"""Rendering: as py360convert where it has no antialiasing, as the mean over a pixel's area where it has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import py360convert
import pytest
from PIL import Image

from manyscope.errors import DataError, SettingsError
from manyscope.scopes.panoramas.settings import ViewSettings
from manyscope.scopes.panoramas.views import render
from manyscope.scopes.panoramas.views.geometry import View, Views, angles, rays
from manyscope.scopes.panoramas.views.render import Renderer
from manyscope.scopes.panoramas.views.strategies import STRATEGIES, find_views

# Real panoramas, beside the repository where somebody has put them.
SAMPLES = Path(__file__).resolve().parents[4] / "shared/data/panoramas/images"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no panoramas in {SAMPLES}")

PLAIN = ViewSettings(antialias=False, pixels="borders")
AVERAGED = ViewSettings()
SIZE = 32


def noise(height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, 2 * height, 3), np.uint8)


def drawn(panorama: np.ndarray, *views: View, given: ViewSettings = PLAIN, size: int = SIZE) -> np.ndarray:
    return Renderer(Views(views, size, given.pixels), given)(panorama)


def differ(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def interpolated(panorama: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(…, 3) float64: the slow and plain way, on a panorama with one more row above and below."""
    height, width = panorama.shape[:2]
    over = np.concatenate([np.roll(panorama[:1], height, 1), panorama, np.roll(panorama[-1:], height, 1)])
    yaw, pitch = angles(directions)
    x, y = (yaw / 360 + 0.5) * width - 0.5, (0.5 - pitch / 180) * height + 0.5
    left, above = np.floor(x).astype(int), np.minimum(np.floor(y).astype(int), height)
    right, down = (x - left)[..., None], (y - above)[..., None]
    upper = over[above, left % width] * (1 - right) + over[above, (left + 1) % width] * right
    lower = over[above + 1, left % width] * (1 - right) + over[above + 1, (left + 1) % width] * right
    return upper * (1 - down) + lower * down


def averaged(panorama: np.ndarray, view: View, size: int, samples: int) -> np.ndarray:
    """(3, size, size) float64: means of so many samples along both edges of each pixel."""
    places = (2 * np.arange(size * samples) + 1) / (size * samples) - 1
    v, u = np.meshgrid(places, places, indexing="ij")
    values = interpolated(panorama, rays(view, u, v)).reshape(size, samples, size, samples, 3)
    return values.mean((1, 3)).transpose(2, 0, 1)


@pytest.fixture
def exact_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """py360convert without OpenCV, which rounds places to 1/32 of a pixel."""
    cached = py360convert.utils.EquirecSampler
    monkeypatch.setattr(py360convert.utils, "cv2", None)
    for made in (cached.from_perspective, cached.from_cubemap):
        made.cache_clear()


# ------------------------------------------------------------------------------------------- beside py360convert
@pytest.mark.usefixtures("exact_peer")
@pytest.mark.parametrize("yaw", [0, 45, 180, -180, -97.3])
@pytest.mark.parametrize("pitch", [0, 60, 90, -90, -33.3])
@pytest.mark.parametrize(("width", "height"), [(90, 90), (120, 70)])
def test_a_view_is_that_of_py360convert(yaw: float, pitch: float, width: float, height: float) -> None:
    panorama = noise(64)
    peer = py360convert.e2p(panorama, (width, height), yaw, pitch, (SIZE, SIZE)).transpose(2, 0, 1)
    (ours,) = drawn(panorama, View("perspective", yaw, pitch, width, height))
    assert differ(ours, peer) <= 2
    assert np.ptp(ours) > 200


@pytest.mark.usefixtures("exact_peer")
def test_all_faces_of_the_cube_are_those_of_py360convert() -> None:
    panorama = noise(64)
    faces = py360convert.e2c(panorama, SIZE, cube_format="dict")
    looks = {"F": (0, 0), "R": (90, 0), "B": (180, 0), "L": (-90, 0), "U": (0, 90), "D": (0, -90)}
    ours = drawn(panorama, *(View("perspective", *looks[name], 90, 90) for name in looks))
    for name, view in zip(looks, ours, strict=True):
        assert differ(view.transpose(1, 2, 0), faces[name]) <= 2, name


@pytest.mark.usefixtures("exact_peer")
def test_the_renderer_py360convert_is_py360convert() -> None:
    given = PLAIN.model_copy(update={"renderer": "py360convert", "size_px": SIZE})
    views, panorama = find_views(given), noise(64)
    theirs = Renderer(views, given)(panorama)
    expected = [py360convert.e2p(panorama, 90, view.yaw_deg, 0, (SIZE, SIZE)) for view in views.views]
    np.testing.assert_array_equal(theirs, np.stack(expected).transpose(0, 3, 1, 2))
    assert differ(theirs, Renderer(views, PLAIN)(panorama)) <= 2


def test_the_renderer_py360convert_refuses_strips() -> None:
    views = Views((View("perspective", 0, 0, 90, 90), View("strip", 0, 0, 90, 90)), SIZE, "borders")
    with pytest.raises(SettingsError, match=r"1 of 2 are not, the first is view 1"):
        Renderer(views, PLAIN.model_copy(update={"renderer": "py360convert"}))


# ----------------------------------------------------------------------------------------------------- geometry
@pytest.mark.parametrize("pixels", ["centres", "borders"])
@pytest.mark.parametrize(
    "view",
    [
        View("perspective", 130, 40, 100, 80),
        View("perspective", 10, -90, 90, 90),
        View("strip", 170, 0, 120, 150),
        View("strip", 0, 0, 360, 180),
    ],
)
def test_a_pixel_is_what_its_ray_meets(view: View, pixels: str) -> None:
    panorama = noise(24)
    views = Views((view,), SIZE, pixels)  # type: ignore[arg-type]
    (ours,) = Renderer(views, PLAIN)(panorama)
    expected = interpolated(panorama, views.token_rays(SIZE)[0]).transpose(2, 0, 1)
    assert np.abs(ours - expected).max() < 1.5


def test_a_panorama_of_the_views_size_is_itself() -> None:
    panorama = noise(SIZE)
    halves = drawn(panorama, View("strip", -90, 0, 180, 180), View("strip", 90, 0, 180, 180), given=AVERAGED, size=SIZE)
    np.testing.assert_array_equal(np.concatenate([*halves], axis=2), panorama.transpose(2, 0, 1))


@pytest.mark.parametrize("given", [PLAIN, AVERAGED])
@pytest.mark.parametrize("strategy", ["e2p", "anyres_e2p", "anyres_max"])
def test_turning_the_panorama_turns_the_views(strategy: str, given: ViewSettings) -> None:
    panorama = noise(64)
    views = find_views(given.model_copy(update={"strategy": strategy, "size_px": 16, "most_patches": 8}))
    by_view = dict(zip(views.views, Renderer(views, given)(panorama), strict=True))
    turned = Renderer(views, given)(np.roll(panorama, 32, axis=1))  # 90 degrees
    compared = 0
    for view, pixels in zip(views.views, turned, strict=True):
        for other, expected in by_view.items():
            alike = (other.kind, other.pitch_deg, other.width_deg) == (view.kind, view.pitch_deg, view.width_deg)
            if alike and not view.is_global and (view.yaw_deg - other.yaw_deg) % 360 == 90:
                np.testing.assert_array_equal(pixels, expected)
                compared += 1
    assert compared >= 4


# ---------------------------------------------------------------------------------------------------- antialias
@pytest.mark.parametrize("height", [64, 128, 96])
def test_the_whole_panorama_small_is_means_of_blocks(height: int) -> None:
    panorama = noise(height)
    (ours,) = drawn(panorama, View("strip", 0, 0, 360, 180), given=AVERAGED, size=16)
    blocks = panorama.reshape(16, height // 16, 16, height // 8, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(ours - blocks).max() <= 1


@pytest.mark.parametrize("height", [90, 128, 250, 256, 499])
@pytest.mark.parametrize(
    "view", [View("perspective", 60, 0, 90, 90), View("perspective", 0, 20, 80, 60), View("strip", 100, 0, 90, 150)]
)
def test_an_antialiased_pixel_is_the_mean_over_its_area(view: View, height: int) -> None:
    """Of the error that a sample at its centre has, little is left."""
    panorama = noise(height)
    expected = averaged(panorama, view, 16, 40)
    (ours,), (plain,) = (
        Renderer(Views((view,), 16), AVERAGED.model_copy(update={"antialias": antialias}))(panorama)
        for antialias in (True, False)
    )
    left, before = (np.sqrt(np.mean((found - expected) ** 2)) for found in (ours, plain))
    assert left < before / 4


def test_without_more_pixels_than_a_view_has_antialiasing_changes_nothing() -> None:
    panorama, view = noise(32), View("perspective", 30, 0, 90, 90)
    plain = AVERAGED.model_copy(update={"antialias": False})
    np.testing.assert_array_equal(drawn(panorama, view, given=AVERAGED), drawn(panorama, view, given=plain))


@pytest.mark.parametrize("pitch", [0, 90, -60])
def test_one_colour_stays_itself(pitch: float) -> None:
    for value in (0, 1, 127, 255):
        panorama = np.full((120, 240, 3), value, np.uint8)
        views = View("perspective", 0, pitch, 90, 60), View("strip", 0, 0, 360, 180)
        assert (drawn(panorama, *views, given=AVERAGED, size=8) == value).all()


# ------------------------------------------------------------------------------------------------- the grids
def test_a_renderer_draws_panoramas_of_any_sizes_and_layouts() -> None:
    views = find_views(AVERAGED.model_copy(update={"size_px": 16, "strategy": "anyres_e2p"}))
    renderer = Renderer(views, AVERAGED)
    for height in (64, 33, 64):
        panorama = noise(height)
        expected = Renderer(views, AVERAGED)(panorama)
        panorama.flags.writeable = False
        np.testing.assert_array_equal(renderer(panorama), expected)
        np.testing.assert_array_equal(renderer(np.asfortranarray(panorama)), expected)


def test_views_that_differ_in_yaw_share_a_grid_and_old_grids_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    views = find_views(
        PLAIN.model_copy(update={"size_px": 16, "strategy": "anyres_e2p", "pitch_min_deg": -90, "pitch_max_deg": 90})
    )
    renderer = Renderer(views, PLAIN)
    panoramas = [noise(height) for height in (32, 48, 64)]
    expected = [renderer(panorama) for panorama in panoramas]
    one = 16 * 16 * 8
    assert sum(grid.bytes for grid in renderer._grids.values()) == 3 * 4 * one  # the whole, and three pitches

    for room in (5 * one, one - 1):
        monkeypatch.setattr(render, "CACHE_BYTES", room)
        bounded = Renderer(views, PLAIN)
        for panorama, found in zip(panoramas, expected, strict=True):
            np.testing.assert_array_equal(bounded(panorama), found)
            assert sum(grid.bytes for grid in bounded._grids.values()) <= room


@pytest.mark.parametrize(
    "panorama",
    [
        np.zeros((32, 60, 3), np.uint8),
        np.zeros((32, 64), np.uint8),
        np.zeros((32, 64, 4), np.uint8),
        np.zeros((32, 64, 3), np.float32),
        np.zeros((0, 0, 3), np.uint8),
    ],
)
def test_what_is_no_panorama_is_refused(panorama: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"allowed: \(H, 2 H, 3\) of uint8"):
        drawn(panorama, View("strip", 0, 0, 360, 180))


# ---------------------------------------------------------------------------------------------- real panoramas
def opened(name: str) -> np.ndarray:
    with Image.open(SAMPLES / name) as image:
        image.draft("RGB", (1024, 512))
        return np.asarray(image.convert("RGB"))


@needs_samples
@pytest.mark.usefixtures("exact_peer")
def test_views_of_real_panoramas_are_those_of_py360convert() -> None:
    looks = [(0, 0), (180, 0), (45, 60), (0, 90), (-120, -90)]
    views = [View("perspective", yaw, pitch, 90, 90) for yaw, pitch in looks]
    files = sorted(file.name for file in SAMPLES.glob("*.jpg"))
    assert files
    for name in files:
        panorama = opened(name)
        for (yaw, pitch), ours in zip(looks, drawn(panorama, *views, size=48), strict=True):
            peer = py360convert.e2p(panorama, 90, yaw, pitch, (48, 48))
            assert differ(ours.transpose(1, 2, 0), peer) <= 2, name


@needs_samples
@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_every_strategy_shows_a_real_panorama(strategy: str) -> None:
    panorama = opened("workshop.jpg")
    given = ViewSettings(strategy=strategy, size_px=32)
    views = find_views(given)
    found = Renderer(views, given)(panorama)
    assert found.shape == (len(views), 3, 32, 32)
    for view, pixels in zip(views.views, found, strict=True):
        assert pixels.std() > 5
        assert np.abs(pixels - averaged(panorama, view, 32, 12)).mean() < 2.5
