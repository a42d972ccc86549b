"""Figures of an evaluation: outlines on images, accuracy by overlap, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from manyscope.evaluation.figures import COLOURS, MARKERS, new_figure
from manyscope.scopes.cells.evaluate.matching import THRESHOLDS
from manyscope.scopes.cells.objects import outline

_TRUE, _FOUND = COLOURS[0], COLOURS[1]
_MOST_PX = 512  # of a shown image's sides
_DRAWN_PX = 1024  # at least, of a drawn image's longer side: outlines are thinner than a pixel of the image
_MODEL = "model"


@dataclass(frozen=True)
class Found:
    """Cells of one image as a method found them: masks (h, w) and their mSA."""

    method: str
    masks: np.ndarray
    msa: float


@dataclass(frozen=True)
class Shown:
    """An image (h, w) uint8, its true labels (h, w), and what each of some methods found."""

    sample_id: str
    image: np.ndarray
    truth: np.ndarray
    found: Sequence[Found]


def overlays(shown: Sequence[Shown]) -> Figure:
    """A row for each image, a column for each method: the image with the outlines of true and found cells."""
    figure, axes = new_figure(len(shown), len(shown[0].found), panel=(4.6, 4.8))
    for row, one in zip(axes, shown, strict=True):
        part = tuple(_middle(length) for length in one.image.shape)
        for axis, found in zip(row, one.found, strict=True):
            axis.imshow(_outlined(one.image[part], one.truth[part], found.masks[part]))
            axis.set_title(f"{found.method}: mSA {found.msa:.2f}")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
        row[0].set_ylabel(one.sample_id)
    handles = [Line2D([], [], color=colour, label=label) for colour, label in ((_TRUE, "true"), (_FOUND, "found"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def accuracy(curves: Mapping[str, np.ndarray]) -> Figure:
    """Segmentation accuracy against the threshold of the IoU.

    Args:
        curves: method -> (images, 10) at each of `THRESHOLDS`; one of them the model.
    """
    figure, axes = new_figure(panel=(6.0, 4.0))
    axis = axes[0, 0]
    low, high = np.percentile(curves[_MODEL], [25, 75], axis=0)
    axis.fill_between(THRESHOLDS, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
    for (method, values), colour, marker in zip(curves.items(), COLOURS, ("o", *MARKERS), strict=False):
        label = f"{method}, mSA {values.mean():.2f}"
        axis.plot(THRESHOLDS, values.mean(0), color=colour, marker=marker, markersize=5, label=label)
    axis.set_xlabel("IoU from which a cell counts as right")
    axis.set_ylabel("segmentation accuracy")
    axis.set_ylim(0, 1)
    axis.legend()
    return figure


def per_image(msa: Mapping[str, np.ndarray]) -> Figure:
    """The mSA of each image: the model's against each baseline's.

    Args:
        msa: method -> (images,); one of them the model.
    """
    figure, axes = new_figure(panel=(4.8, 4.8))
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], color="0.4", linewidth=1)
    others = [method for method in msa if method != _MODEL]
    for method, colour, marker in zip(others, COLOURS[1:], MARKERS, strict=False):
        axis.plot(msa[method], msa[_MODEL], marker, color=colour, markersize=6, fillstyle="none", label=method)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_aspect("equal")
    axis.set_xlabel("mSA of the baseline")
    axis.set_ylabel("mSA of the model")
    axis.legend(loc="lower right")
    return figure


def _middle(length: int) -> slice:
    start = max(0, (length - _MOST_PX) // 2)
    return slice(start, start + _MOST_PX)


def _outlined(image: np.ndarray, truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(h, w) uint8 and labels -> (fine h, fine w, 3) uint8. The true outline is the wider, so that both are seen
    where they agree."""
    fine = -(-_DRAWN_PX // max(image.shape))
    image, truth, found = (pixels.repeat(fine, axis=0).repeat(fine, axis=1) for pixels in (image, truth, found))
    picture = np.repeat(image[..., None], 3, axis=2)
    for labels, colour, width in ((truth, _TRUE, 4), (found, _FOUND, 2)):
        inner = labels
        for _ in range(width):
            edge = outline(inner)
            picture[edge] = np.round(np.array(to_rgb(colour)) * 255).astype(np.uint8)
            inner = np.where(edge, 0, inner)
    return picture
