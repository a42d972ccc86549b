"""Figures of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from manyscope.evaluation.figures import COLOURS, new_figure
from manyscope.scopes.galaxies.data.thumbnails import Painter
from manyscope.scopes.galaxies.evaluate import outliers

Panel = tuple[np.ndarray, np.ndarray, np.ndarray]


def properties(shown: Mapping[str, Panel]) -> Figure:
    """Predicted against measured values.

    Args:
        shown: property -> measured values, the model's predictions, the predictions of PCA; (objects,) each.
    """
    figure, axes = new_figure(1, len(shown), panel=(3.4, 3.4))
    for axis, (name, (truth, model, pca)) in zip(axes[0], shown.items(), strict=True):
        span = [truth.min(), truth.max()]
        axis.plot(span, span, color="0.4", linewidth=1)
        axis.plot(truth, pca, ".", color="0.7", markersize=3, label="pca", rasterized=True)
        axis.plot(truth, model, ".", color=COLOURS[0], markersize=4, label="model", rasterized=True)
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel("measured")
    axes[0, 0].set_ylabel("from neighbours")
    axes[0, 0].legend(markerscale=3)
    return figure


def confusion(truth: np.ndarray, vote: np.ndarray, names: Sequence[str]) -> Figure:
    """Shares of each true class (row) that went to each class (column).

    Args:
        truth, vote: (objects,) positions in `names`.
    """
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (truth, vote), 1)
    share = counts / counts.sum(1, keepdims=True).clip(1)
    figure, axes = new_figure(panel=(5.2, 4.6))
    axis = axes[0, 0]
    axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
    for row, column in np.ndindex(share.shape):
        colour = "white" if share[row, column] > 0.5 else "black"
        axis.text(column, row, f"{share[row, column]:.2f}", ha="center", va="center", color=colour)
    labels = [name.replace("_", " ") for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), labels)
    axis.set_xlabel("vote of the neighbours")
    axis.grid(visible=False)
    return figure


def roc(strangeness: Mapping[str, np.ndarray], kind: np.ndarray, normal: str) -> Figure:
    """ROC curves: all anomalies for each latent space, and each kind for the model.

    Args:
        strangeness: name -> (objects,); one of them "model".
        kind: (objects,) kind of anomaly, or `normal`.
    """
    figure, axes = new_figure(1, 2, panel=(4.2, 4.0))
    for name, values in strangeness.items():
        _curve(axes[0, 0], values, kind != normal, name)
    for name in np.unique(kind[kind != normal]):
        rows = (kind == name) | (kind == normal)
        _curve(axes[0, 1], strangeness["model"][rows], kind[rows] == name, name.replace("_", " "))
    for axis, title in zip(axes[0], ("all kinds", "each kind, model"), strict=True):
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        axis.set_title(title)
        axis.set_xlabel("share of normal objects flagged")
        axis.legend(loc="lower right")
    axes[0, 0].set_ylabel("share of anomalies found")
    return figure


def recall(strangeness: Mapping[str, np.ndarray], kind: np.ndarray, normal: str) -> Figure:
    """Share of the anomalies found against the share of the objects looked at; arguments as for `roc`."""
    figure, axes = new_figure(1, 2, panel=(4.2, 4.0), sharey=True)
    n, odd = len(kind), kind != normal
    shares = np.geomspace(min(0.5, 1 / n), 1, 120)
    for name, values in strangeness.items():
        axes[0, 0].plot(shares, outliers.curve(values, odd, shares), linewidth=1.4, label=name)
    for name in np.unique(kind[odd]):
        found = outliers.curve(strangeness["model"], kind == name, shares)
        axes[0, 1].plot(shares, found, linewidth=1.4, label=name.replace("_", " "))
    axes[0, 0].plot(shares, np.minimum(1, shares / max(odd.mean(), 1 / n)), ":", color="0.4", linewidth=1)
    for axis, title in zip(axes[0], ("all kinds", "each kind, model"), strict=True):
        axis.plot(shares, shares, ":", color="0.4", linewidth=1)
        axis.set_xscale("log")
        axis.set_xticks(ticks := [s for s in (0.001, 0.01, 0.05, 0.1, 0.3, 1) if s >= shares[0]])
        axis.set_xticklabels([f"{tick:.1%}" if tick < 0.01 else f"{tick:.0%}" for tick in ticks])
        axis.minorticks_off()
        axis.set_title(title)
        axis.set_xlabel("share of objects looked at")
        axis.legend(loc="upper left")
    axes[0, 0].set_ylabel("share of anomalies found")
    return figure


def gallery(stamps: np.ndarray, names: Sequence[str], paint: Painter, columns: int = 8) -> Figure:
    """Stamps, (n, bands, height, width), under their names of one or two lines."""
    rows = -(-len(stamps) // columns)
    figure, axes = new_figure(rows, columns, panel=(1.15, 1.45))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, stamp, name in zip(axes.flat, stamps, names, strict=False):
        axis.imshow(paint(stamp), origin="upper")
        axis.set_title(name.replace("_", " "), fontsize=7, loc="center")
    return figure


def strips(stamps: np.ndarray, paint: Painter) -> Figure:
    """Rows of stamps, (rows, columns, bands, height, width); the first of each row stands apart."""
    figure, axes = new_figure(*stamps.shape[:2], panel=(1.0, 1.0))
    for index in np.ndindex(stamps.shape[:2]):
        axis: Any = axes[index]
        axis.imshow(paint(stamps[index]), origin="upper")
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(visible=index[1] == 0, color=COLOURS[3], linewidth=2)
    return figure


def _curve(axis: Any, values: np.ndarray, odd: np.ndarray, label: str) -> None:
    found = odd[np.argsort(-values, kind="stable")]
    axis.plot(
        np.concatenate([[0], np.cumsum(~found) / max(1, (~found).sum())]),
        np.concatenate([[0], np.cumsum(found) / max(1, found.sum())]),
        linewidth=1.4,
        label=label,
    )
