"""Figures of an evaluation: frames, layers and planes as they were rendered, and PSNR along the clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from manyscope.evaluation.figures import COLOURS, MARKERS, new_figure
from manyscope.scopes.scenes.data.clip import HALF, Clip
from manyscope.scopes.scenes.evaluate.quality import psnr
from manyscope.scopes.scenes.evaluate.rendered import Rendered
from manyscope.scopes.scenes.files import BACKGROUND

_CHECK_PX = 12
_CHECK_GREYS = (150, 220)
_AMPLIFIED = 4
_WIDTH_IN, _TITLE_IN = 3.6, 0.35  # of a picture and of what is above it
_MOST_COLUMNS = 4
_EDITS = {"remove": "without {}", "paint": "with {} painted"}


def draw(
    shown: int, clip: Clip, rendered: Rendered, held_out: Sequence[int], curves: Mapping[str, Mapping[int, float]]
) -> tuple[dict[str, Figure], dict[str, str]]:
    """Every figure for which there is something to show, and its caption.

    Args:
        shown: how many held-out frames; 0 is no picture at all.
        held_out: positions of the judged frames.
        curves: method -> position -> PSNR; the first one is the model.
    """
    drawn = {"psnr": along(curves, clip, held_out)}
    captions = {
        "psnr": "PSNR of each whole frame, model and baselines. Markers: held-out frames that judge; grey: frames that"
        " no training saw, light ones chose the weights."
    }
    if not shown:
        return drawn, captions
    some = [
        held_out[i] for i in np.unique(np.linspace(0, len(held_out) - 1, min(shown, len(held_out))).round().astype(int))
    ]
    drawn["frames"] = frames(clip, rendered, some)
    captions["frames"] = (
        f"Held-out frames as filmed, as rendered, and {_AMPLIFIED} times their difference (mean of the channels)."
    )
    layered = max(held_out, key=lambda position: len(_layers_in(clip, rendered, position)))
    drawn["layers"] = layers(clip, rendered, layered)
    captions["layers"] = f"The layers of the held-out frame {_number(clip, layered)}, each alone, on a checkerboard."
    pictures = {name: rendered.atlas(name) for name in (BACKGROUND, *clip.objects)}
    if atlases := {name: picture for name, picture in pictures.items() if picture is not None}:
        drawn["atlases"] = planes(atlases)
        captions["atlases"] = "The picture that the plane of each layer carries, of no single frame."
    if edited := [name for name in clip.objects if any(rendered.has_edit(edit, name) for edit in _EDITS)]:
        drawn["edits"] = edits(clip, rendered, edited, held_out)
        captions["edits"] = "A held-out frame as rendered, and after an edit of one of its objects."
    return drawn, captions


def along(curves: Mapping[str, Mapping[int, float]], clip: Clip, held_out: Sequence[int]) -> Figure:
    """PSNR over the number of the frame.

    Args:
        curves: method -> position -> PSNR; the first one is the model.
        held_out: positions of the frames that judge.
    """
    numbers, split = clip.samples["index"].to_numpy(), clip.samples["split"].to_numpy()
    figure, axes = new_figure(panel=(7.5, 4.0))
    axis = axes[0, 0]
    greys = {"test": "0.86", "validation": "0.95"}
    half = np.diff(numbers).min() / 2 if len(numbers) > 1 else 0.5
    for name, grey in greys.items():
        for number in numbers[split == name]:
            axis.axvspan(number - half, number + half, color=grey, linewidth=0, zorder=0)
    for values, colour, marker in zip(curves.values(), COLOURS, ("o", *MARKERS), strict=False):
        positions = sorted(values)
        axis.plot(numbers[positions], [values[p] for p in positions], color=colour, linewidth=1.4)
        axis.plot(numbers[held_out], [values[p] for p in held_out], marker, color=colour, markersize=6)
    axis.set_xlabel("number of the frame")
    axis.set_ylabel("PSNR (dB)")
    axis.set_title("PSNR of whole frames")
    handles: list[Any] = [
        Line2D([], [], color=colour, marker=marker, label=method)
        for method, colour, marker in zip(curves, COLOURS, ("o", *MARKERS), strict=False)
    ]
    handles.append(Patch(color=greys["test"], label="held out: judges"))
    if "validation" in split:
        handles.append(Patch(color=greys["validation"], label="held out: chose the weights"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def frames(clip: Clip, rendered: Rendered, positions: Sequence[int]) -> Figure:
    """A row for each frame: as filmed, as rendered, and their difference."""
    figure, axes = _panels(len(positions), 3, *clip.size)
    for row, position in zip(axes, positions, strict=True):
        truth, picture = np.asarray(clip.frames[position]), rendered.frame(position)
        difference = np.abs(picture.astype(np.float32) - truth).mean(-1)
        _show(row[0], truth, f"frame {_number(clip, position)} as filmed")
        _show(row[1], picture, f"rendered: {psnr(picture, truth):.1f} dB")
        _show(row[2], np.repeat(_bytes(difference * _AMPLIFIED)[..., None], 3, 2), f"difference × {_AMPLIFIED}")
    return figure


def layers(clip: Clip, rendered: Rendered, position: int) -> Figure:
    """The frame and each of its layers alone."""
    inside = _layers_in(clip, rendered, position)
    columns = min(_MOST_COLUMNS, len(inside) + 1)
    figure, axes = _panels(-(-(len(inside) + 1) // columns), columns, *clip.size)
    _show(axes.flat[0], rendered.frame(position), f"frame {_number(clip, position)} as rendered")
    for axis, name in zip(axes.flat[1:], inside, strict=False):
        _show(axis, on_checkerboard(rendered.layer(position, name)), f"{name} alone")
    return figure


def planes(atlases: Mapping[str, np.ndarray]) -> Figure:
    """The pictures of planes.

    Args:
        atlases: layer -> (height, width, 4) uint8, of any sizes.
    """
    columns = min(_MOST_COLUMNS, len(atlases))
    shape = max(picture.shape[0] / picture.shape[1] for picture in atlases.values())
    figure, axes = _panels(-(-len(atlases) // columns), columns, shape, 1)
    for axis, (name, picture) in zip(axes.flat, atlases.items(), strict=False):
        _show(axis, on_checkerboard(picture), f"plane of {name}")
    return figure


def edits(clip: Clip, rendered: Rendered, names: Sequence[str], held_out: Sequence[int]) -> Figure:
    """A row for each object, in the frame that shows most of it: as rendered, and after each edit that was made."""
    made = [edit for edit in _EDITS if any(rendered.has_edit(edit, name) for name in names)]
    figure, axes = _panels(len(names), 1 + len(made), *clip.size)
    for row, name in zip(axes, names, strict=True):
        position = max(held_out, key=lambda p: int((rendered.layer(p, name)[..., 3] >= HALF).sum()))
        _show(row[0], rendered.frame(position), f"frame {_number(clip, position)} as rendered")
        for axis, edit in zip(row[1:], made, strict=True):
            if rendered.has_edit(edit, name):
                _show(axis, rendered.edited(position, edit, name), _EDITS[edit].format(name))
    return figure


def on_checkerboard(picture: np.ndarray) -> np.ndarray:
    """(h, w, 4) uint8, colour not multiplied by opacity -> (h, w, 3) uint8."""
    rows, columns = np.indices(picture.shape[:2]) // _CHECK_PX
    board = np.array(_CHECK_GREYS)[(rows + columns) % 2][..., None]
    alpha = picture[..., 3:] / 255
    return _bytes(picture[..., :3] * alpha + board * (1 - alpha))


def _panels(rows: int, columns: int, height: float, width: float) -> tuple[Figure, np.ndarray]:
    """Axes of pictures of this shape, unseen until one is shown."""
    figure, axes = new_figure(rows, columns, panel=(_WIDTH_IN, _WIDTH_IN * height / width + _TITLE_IN))
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _show(axis: Any, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture)
    axis.set_title(title)


def _layers_in(clip: Clip, rendered: Rendered, position: int) -> list[str]:
    return [name for name in (BACKGROUND, *clip.objects) if rendered.corners(position, name) is not None]


def _number(clip: Clip, position: int) -> int:
    return int(clip.samples["index"][position])


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(np.clip(values, 0, 255)).astype(np.uint8)
