"""What a layer looks like, as a vector: colours and opacity on a coarse grid, and the directions of its edges.

It is measured, not learned: fields of different planes have no coordinates in common, pictures have.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.color import rgb2lab
from torch.nn import functional as F

_GRID = 8
_CELLS, _BINS = 4, 8  # of the histograms of edges
_LEAST_ALPHA = 0.1
_LAB = np.array([100.0, 60.0, 60.0])  # spans that make its three axes comparable
DIMENSIONS = _GRID**2 * 4 + _CELLS**2 * _BINS


def box(alpha: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of what can be seen of a layer, from its opacity (h, w); None for nothing."""
    rows, columns = np.flatnonzero((alpha >= _LEAST_ALPHA).any(1)), np.flatnonzero((alpha >= _LEAST_ALPHA).any(0))
    if not len(rows):
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def describe(layer: np.ndarray) -> np.ndarray | None:
    """The vector of a layer, (DIMENSIONS,) float32; None if there is nothing to be seen.

    The layer is cut to its box, so that place and size in the frame do not matter. Two halves of equal weight: the mean
    of opacity and of L*a*b* colour times opacity in 8 x 8 cells; and in 4 x 4 cells a histogram of the directions of
    the edges of lightness, each weighted by its strength, brought to length 1 and then to square roots.

    Args:
        layer: (h, w, 4) in [0, 1], colour, not multiplied by it, and opacity.
    """
    inside = box(layer[..., 3])
    if inside is None:
        return None
    part = layer[inside].astype(np.float64)
    alpha = part[..., 3:]
    lab = rgb2lab(part[..., :3].clip(0, 1)) / _LAB
    colour = _pooled(np.concatenate([lab * alpha, alpha], -1), _GRID)
    edge_y, edge_x = (
        np.gradient(lab[..., 0] * alpha[..., 0], axis=axis) if part.shape[axis] > 1 else np.zeros(part.shape[:2])
        for axis in (0, 1)
    )
    turn = (np.arctan2(edge_y, edge_x) % np.pi) / np.pi * _BINS
    lower = np.floor(turn).astype(int)
    share, strength = turn - lower, np.hypot(edge_y, edge_x)
    bins = np.zeros((*turn.shape, _BINS))
    for number, weight in ((lower % _BINS, 1 - share), ((lower + 1) % _BINS, share)):
        np.put_along_axis(bins, number[..., None], (strength * weight)[..., None], -1)
    edges = _pooled(bins, _CELLS)
    edges = np.sqrt(edges / max(np.linalg.norm(edges), 1e-9))
    return np.concatenate([colour / np.sqrt(colour.size / 4), edges / np.sqrt(edges.size / _BINS)]).astype(np.float32)


def _pooled(values: np.ndarray, cells: int) -> np.ndarray:
    """Means of (h, w, c) in cells x cells parts, (cells * cells * c,)."""
    image = torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1).unsqueeze(0)
    return F.adaptive_avg_pool2d(image, cells)[0].permute(1, 2, 0).numpy().ravel()
