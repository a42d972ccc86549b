"""A picture of how a panorama is cut: every view outlined on it, and what each of them shows."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from manyscope.evaluation.figures import COLOURS, new_figure, style
from manyscope.scopes.panoramas.views.geometry import View, Views, angles, rays

_WIDTH_IN, _AXIS_IN, _TITLE_IN = 12.0, 0.35, 0.45
_MOST_COLUMNS = 9
_EDGE_POINTS = 65  # along each of the four edges of a view
_SEAM_DEG = 8.0  # labels keep this far from the seam
_BORDER = 0.8  # labels of strips lie at this share of their half width and height
_TICKS_DEG = 45
_INSET_DEG = 1.2  # of outlines, so that those of views that meet are both seen
_MANY = 12  # from so many views on, lines are thinner


def draw_layout(panorama: np.ndarray, views: Views, rendered: np.ndarray) -> Figure:
    """The panorama with the outline of every view, numbered as in their array, above the views themselves.

    Args:
        panorama: (H, 2H, 3) uint8.
        rendered: (views, 3, size_px, size_px) uint8.
    """
    columns = _columns(len(views))
    rows = math.ceil(len(views) / columns)
    heights = [_WIDTH_IN / 2 + _AXIS_IN, rows * (_WIDTH_IN / columns + _TITLE_IN)]
    figure, axes = new_figure(2, 1, panel=(_WIDTH_IN, 1.0), heights=heights)
    with style():
        _draw_panorama(axes[0, 0], panorama, views)
        place = axes[1, 0].get_subplotspec()
        axes[1, 0].remove()
        cells = place.subgridspec(rows, columns)
        for number, (view, pixels) in enumerate(zip(views.views, rendered, strict=True)):
            axis = figure.add_subplot(cells[number // columns, number % columns])
            _draw_view(axis, number, view, pixels)
    return figure


def outline(view: View, inset_deg: float = 0.0) -> np.ndarray:
    """Yaw and pitch along the border of a view, clockwise from its upper left corner, (n, 2) degrees.

    The yaw has no jump at the seam: it goes on beyond 180 or -180. The border of a view around a pole does not close.

    Args:
        inset_deg: inwards from the border by so much of the view's width and height on either side.
    """
    along = np.linspace(-1, 1, _EDGE_POINTS)
    one = np.ones(_EDGE_POINTS)
    u = np.concatenate([along, one, -along, -one]) * (1 - 2 * inset_deg / view.width_deg)
    v = np.concatenate([-one, along, one, -along]) * (1 - 2 * inset_deg / view.height_deg)
    if view.kind == "strip":  # of which the left and the right edge may be one
        return np.stack([view.yaw_deg + u * view.width_deg / 2, view.pitch_deg - v * view.height_deg / 2], axis=-1)
    yaw_deg, pitch_deg = angles(rays(view, u, v))
    return np.stack([np.unwrap(yaw_deg, period=360), pitch_deg], axis=-1)


def _columns(number: int) -> int:
    """As many as leave the fewest cells of the last row empty, of those that make pictures of a fair size."""
    if number <= _MOST_COLUMNS:
        return max(number, 4)
    return min(range(6, _MOST_COLUMNS + 1), key=lambda columns: (-number % columns, -columns))


def _draw_panorama(axis: Axes, panorama: np.ndarray, views: Views) -> None:
    axis.imshow(panorama, extent=(-180, 180, -90, 90), aspect="equal", interpolation="antialiased")
    line = 1.8 if len(views) < _MANY else 1.2
    for number, view in enumerate(views.views):
        if view.is_global:
            continue  # the picture's own frame
        colour = _colour(number)
        border = outline(view, min(_INSET_DEG, view.width_deg / 10, view.height_deg / 10))
        for turn in (-360, 0, 360):
            moved = border[:, 0] + turn
            if moved.max() >= -180 and moved.min() <= 180:
                for width, shade in ((2 * line, "white"), (line, colour)):
                    axis.plot(moved, border[:, 1], color=shade, linewidth=width, solid_joinstyle="round")
    labels = [(number, *_label(view)) for number, view in enumerate(views.views) if not view.is_global]
    for number, yaw_deg, pitch_deg in labels:
        axis.text(
            yaw_deg, pitch_deg, str(number), color=_ink(_colour(number)), ha="center", va="center", fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": _colour(number), "edgecolor": "white"}, clip_on=True,
        )  # fmt: skip
    axis.set(xlim=(-180, 180), ylim=(-90, 90), xlabel="yaw (°)", ylabel="pitch (°)")
    axis.set_xticks(range(-180, 181, _TICKS_DEG))
    axis.set_yticks(range(-90, 91, _TICKS_DEG))
    axis.grid(visible=False)


def _draw_view(axis: Axes, number: int, view: View, pixels: np.ndarray) -> None:
    axis.imshow(pixels.transpose(1, 2, 0), interpolation="antialiased")
    axis.set(xticks=[], yticks=[])
    colour = "black" if view.is_global else _colour(number)
    for spine in axis.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)
    fields = f"{view.width_deg:.3g}° × {view.height_deg:.3g}°"
    if view.is_global:
        title = f"{number}: whole panorama\n{fields}"
    else:
        title = f"{number}: yaw {_degrees(view.yaw_deg)}\npitch {_degrees(view.pitch_deg)}, {fields}"
    axis.set_title(title, fontsize=8)


def _degrees(value: float) -> str:
    return f"{value:.4g}°".replace("-", "\N{MINUS SIGN}")


def _label(view: View) -> tuple[float, float]:
    """Where the number of a view stands: in its middle; of strips, which may share it, in the upper left corner."""
    yaw_deg, pitch_deg = view.yaw_deg, view.pitch_deg
    if view.kind == "strip":
        yaw_deg -= _BORDER * view.width_deg / 2
        pitch_deg += _BORDER * view.height_deg / 2
    yaw_deg = (yaw_deg + 180) % 360 - 180
    return min(max(yaw_deg, _SEAM_DEG - 180), 180 - _SEAM_DEG), min(max(pitch_deg, _SEAM_DEG - 90), 90 - _SEAM_DEG)


def _colour(number: int) -> str:
    return COLOURS[number % (len(COLOURS) - 1)]  # without black, which does not stand out on a picture


def _ink(colour: str) -> str:
    """Black or white, whichever is read better on this colour, by its luminance (ITU-R BT.709)."""
    red, green, blue = to_rgb(colour)
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5 else "white"
