"""The project's one look for matplotlib figures, and the figures that every experiment has.

Figures are made without pyplot, so that they are always drawn by Agg and no global state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import polars as pl
from cycler import cycler
from matplotlib.figure import Figure

from manyscope.errors import DataError
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from manyscope.tables.metrics import Metric

# Okabe and Ito, Color Universal Design (2008), in the order in which neighbours differ most; black last.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")
MARKERS = ("D", "s", "^", "v", "P", "X")
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 11,
    "grid.alpha": 0.25,
    "image.cmap": "viridis",
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 130,
    "savefig.facecolor": "white",
}


@contextmanager
def style() -> Iterator[None]:
    """Within the block, matplotlib draws in the project's style; afterwards in the caller's again."""
    with mpl.rc_context(STYLE):
        yield


def new_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    panel: tuple[float, float] = (4.2, 3.2),
    heights: Sequence[float] | None = None,
    **subplots: Any,
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, (rows, columns) object array, in the project's style.

    Args:
        panel: width and height of one panel, in inches.
        heights: height of each row of panels in inches, instead of the panel's.
        subplots: further arguments of `Figure.subplots`, such as `sharex`.
    """
    total = sum(heights) if heights else panel[1] * rows
    with style():
        figure = Figure(figsize=(panel[0] * columns, total), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights, **subplots)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole. The same figure gives the same bytes: no date and no software version is kept.

    Raises:
        DataError: the file cannot be written.
    """
    with style(), whole_file(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def forest_plot(metrics: Sequence[Metric]) -> Figure:
    """The model with its interval beside each baseline: a panel for each metric, a row for each group.

    Raises:
        DataError: there is no metric.
    """
    if not metrics:
        raise DataError("there is no metric to draw")
    panels: dict[tuple[str, str, bool | None], dict[str, list[Metric]]] = {}
    for metric in metrics:
        panel = panels.setdefault((metric.name, metric.unit, metric.higher_is_better), {})
        panel.setdefault(metric.group, []).append(metric)
    baselines = list(dict.fromkeys(m.baseline for m in metrics if m.baseline is not None))
    looks = {name: (COLOURS[1 + i % 6], MARKERS[i % len(MARKERS)]) for i, name in enumerate(baselines)}
    heights = [0.95 + 0.34 * len(groups) for groups in panels.values()]
    figure, axes = new_figure(len(panels), 1, panel=(7.5, 1.0), heights=heights)
    with style():
        for axis, ((name, unit, higher), groups) in zip(axes[:, 0], panels.items(), strict=True):
            for row, versions in enumerate(groups.values()):
                model = versions[0]
                axis.plot([model.low, model.high], [row, row], color=COLOURS[0], linewidth=3, alpha=0.45)
                axis.plot(model.value, row, "o", color=COLOURS[0], markersize=7, label="model, 95 % interval")
                for version in versions:
                    if version.baseline is not None and version.baseline_value is not None:
                        colour, marker = looks[version.baseline]
                        value = version.baseline_value
                        axis.plot(
                            value, row, marker, color=colour, markersize=7, fillstyle="none", label=version.baseline
                        )
            axis.set_yticks(range(len(groups)), [f"{group or 'all'}  (n={v[0].n})" for group, v in groups.items()])
            axis.set_ylim(len(groups) - 0.5, -0.5)
            axis.margins(x=0.08)
            axis.grid(visible=False, axis="y")
            better = "" if higher is None else f", {'higher' if higher else 'lower'} is better"
            axis.set_title(f"{name}{f' ({unit})' if unit else ''}{better}")
        handles = {
            label: handle
            for axis in axes[:, 0]
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def training_curves(history: pl.DataFrame) -> Figure:
    """The curves of a training: a panel for each quantity, with a line for each of its phases.

    Args:
        history: columns step, epoch, name ("train/loss", "validation/loss", "train/lr", …) and value; values that
            are not finite are left out.

    Raises:
        DataError: the history has no finite value.
    """
    history = history.filter(pl.col("value").is_finite()).sort("step", maintain_order=True)
    names = list(dict.fromkeys(history["name"]))
    quantities = list(dict.fromkeys(_quantity(name) for name in sorted(names, key=_curve_order)))
    if not quantities:
        raise DataError("the history of the training holds no finite value")
    phases = sorted({_phase(name) for name in names})  # each has one colour in all panels
    columns = min(3, len(quantities))
    figure, axes = new_figure(math.ceil(len(quantities) / columns), columns)
    with style():
        for axis, quantity in zip(axes.flat, quantities, strict=False):
            for name in sorted(name for name in names if _quantity(name) == quantity):
                curve, phase = history.filter(pl.col("name") == name), _phase(name)
                look = {"color": COLOURS[phases.index(phase) % len(COLOURS)], "marker": "o" if len(curve) < 30 else ""}
                axis.plot(curve["epoch"], curve["value"], markersize=3, label=phase or name, **look)
            axis.set_title(quantity)
            axis.set_xlabel("epoch")
            axis.legend()
        for axis in axes.flat[len(quantities) :]:
            axis.set_visible(False)
    return figure


def _phase(name: str) -> str:
    return name.rpartition("/")[0]


def _quantity(name: str) -> str:
    return name.rpartition("/")[2]


def _curve_order(name: str) -> tuple[int, str]:
    """The loss first, the learning rate last."""
    quantity = _quantity(name)
    return {"loss": 0, "lr": 2}.get(quantity, 1), quantity
