"""The picture of a layout: outlines on the panorama, each with its number, and the views with where they look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from manyscope.evaluation.figures import save_figure
from manyscope.scopes.panoramas.settings import ViewSettings
from manyscope.scopes.panoramas.views.geometry import View, Views, project
from manyscope.scopes.panoramas.views.layout import draw_layout, outline
from manyscope.scopes.panoramas.views.render import Renderer
from manyscope.scopes.panoramas.views.strategies import STRATEGIES, find_views


def laid_out(**given: Any) -> tuple[Views, Axes, list[Axes], np.ndarray]:
    """The views, the axes of the panorama, those of the views, and the views' pixels."""
    settings = ViewSettings(size_px=8, **given)
    views = find_views(settings)
    panorama = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
    pixels = Renderer(views, settings)(panorama)
    axes = draw_layout(panorama, views, pixels).axes
    np.testing.assert_array_equal(axes[0].images[0].get_array(), panorama)
    return views, axes[0], axes[1:], pixels


def directions_of(border: np.ndarray) -> np.ndarray:
    yaw, pitch = np.radians(border).T
    return np.stack([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)], axis=-1)


@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_every_view_is_outlined_numbered_and_shown(strategy: str) -> None:
    views, panorama, cells, pixels = laid_out(strategy=strategy)
    parts = [number for number, view in enumerate(views.views) if not view.is_global]
    assert [text.get_text() for text in panorama.texts] == [str(number) for number in parts]
    assert len(panorama.lines) >= 2 * len(parts)
    assert len(cells) == len(views)
    for number, (cell, view) in enumerate(zip(cells, views.views, strict=True)):
        np.testing.assert_array_equal(cell.images[0].get_array(), pixels[number].transpose(1, 2, 0))
        title = cell.get_title(loc="left")
        assert title.startswith(f"{number}: whole panorama" if view.is_global else f"{number}: yaw ")


def test_a_title_says_yaw_pitch_and_fields() -> None:
    _, _, cells, _ = laid_out(strategy="e2p", fov_deg=80, overlap=0.4375, pitch_deg=-30.5)
    titles = [cell.get_title(loc="left") for cell in cells]
    assert titles[0] == "0: yaw 0°\npitch −30.5°, 80° × 80°"
    assert titles[-1] == "7: yaw −45°\npitch −30.5°, 80° × 80°"


@pytest.mark.parametrize(
    "view",
    [
        View("perspective", 0, 0, 90, 90),
        View("perspective", 180, 10, 90, 60),
        View("perspective", -100, 70, 80, 80),
        View("perspective", 40, -90, 60, 60),
        View("strip", 170, 30, 100, 50),
        View("strip", 0, 0, 360, 180),
    ],
)
def test_an_outline_goes_along_the_border_without_a_jump(view: View) -> None:
    border = outline(view)
    if view.width_deg < 360:
        places, inside = project(view, directions_of(border))
        assert inside.all()
        np.testing.assert_allclose(np.abs(places).max(-1), 1, atol=1e-6)
    assert np.abs(np.diff(border[:, 0])).max() < (181 if view.kind == "strip" else 30)
    within, inside = project(view, directions_of(outline(view, inset_deg=3)))
    assert inside.all()
    assert np.abs(within).max() < 0.99


def test_an_outline_around_a_pole_goes_all_around() -> None:
    around = outline(View("perspective", 0, 80, 60, 60))[:, 0]
    assert abs(around[-1] - around[0]) == pytest.approx(360)
    beside = outline(View("perspective", 0, 50, 60, 60))[:, 0]
    assert beside[-1] == pytest.approx(beside[0])


def test_a_view_at_the_seam_is_drawn_at_both_sides_and_its_number_within_the_picture() -> None:
    views, panorama, _, _ = laid_out(strategy="cubemap")
    colours: dict[Any, list[np.ndarray]] = {}
    for line in panorama.lines:
        colours.setdefault(line.get_color(), []).append(np.asarray(line.get_xdata()))
    _, front, right, back, left = colours.values()  # the first is the white line below the others
    assert [len(lines) for lines in (front, right, back, left)] == [1, 1, 2, 1]
    shown = [(lines.min(), lines.max()) for lines in back]
    assert shown[0] == pytest.approx((-225, -135), abs=3)
    assert shown[1] == pytest.approx((135, 225), abs=3)
    assert panorama.get_xlim() == (-180, 180)
    for text in panorama.texts:
        assert abs(text.get_position()[0]) < 180
    assert views.views[2].yaw_deg == 180


def test_the_picture_is_written_and_shows_the_panorama_large(tmp_path: Path) -> None:
    settings = ViewSettings(strategy="anyres_e2p", size_px=8, pitch_min_deg=-90, pitch_max_deg=90)
    views = find_views(settings)
    panorama = np.full((16, 32, 3), (0, 255, 0), np.uint8)
    save_figure(draw_layout(panorama, views, Renderer(views, settings)(panorama)), tmp_path / "layout.png")
    with Image.open(tmp_path / "layout.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    green = (pixels == (0, 255, 0)).all(-1)
    assert 1000 < pixels.shape[1] < 2000
    assert green.mean() > 0.4
    assert green[:, -30:].any()  # no empty margin
