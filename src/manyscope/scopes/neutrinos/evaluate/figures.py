"""Figures of an evaluation: errors, their distribution, calibration, zenith."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure

from manyscope.evaluation.figures import COLOURS, new_figure
from manyscope.nn.directional import vmf_cone
from manyscope.scopes.neutrinos.evaluate.judged import Judged

MODEL, LINE_FIT = COLOURS[0], COLOURS[1]
_BAND = (16, 84)  # percentiles that bound 68 % of the events
_FEWEST_IN_BIN = 10
_SMALLEST_DEG = 0.1  # errors below are drawn there: an axis of decades has no zero
_SHARES = np.linspace(0.02, 0.98, 49)


def draw(events: Judged) -> tuple[dict[str, Any], dict[str, str]]:
    """All figures by name, and a sentence on each."""
    by_energy = " and by energy" if events.energy_gev is not None else ""
    by_class = " by class" if events.kinds else ""
    drawn = {
        "error_by_pulses": error_by_pulses(events),
        "error_distribution": error_distribution(events),
        "calibration": calibration(events),
        "zenith": zenith(events),
    }
    captions = {
        "error_by_pulses": f"Median and central 68 % of the angular error by number of pulses{by_energy}, "
        "model (shaded) and line fit (dashed) on the same test events.",
        "error_distribution": f"Share of the test events whose error is below an angle{by_class}, model (solid) "
        "and line fit (dashed).",
        "calibration": "Left: share of the test events inside the cone that should hold a given share of them, before "
        "and after calibration of kappa; right: error against kappa, with the angle below which 68 % should lie.",
        "zenith": f"Predicted against true cosine of the zenith{by_class}, as a share of the events of each true band; "
        "1 is from above, and a right prediction lies on the diagonal.",
    }
    return drawn, captions


def error_by_pulses(events: Judged) -> Figure:
    """Errors in logarithmic bins of the number of pulses and, where it is known, of the energy."""
    panels = [("pulses of the event", events.n_pulses.astype(float))]
    if events.energy_gev is not None:
        panels.append(("energy (GeV)", events.energy_gev))
    figure, axes = new_figure(1, len(panels), panel=(5.0, 3.8), sharey=True, gridspec_kw={"wspace": 0.06})
    for axis, (label, values) in zip(axes[0], panels, strict=True):
        centre, low, middle, high = _binned(values, np.degrees(events.error))
        axis.fill_between(centre, low, high, color=MODEL, alpha=0.2, linewidth=0)
        axis.plot(centre, middle, color=MODEL, marker="o", markersize=4, label="model")
        centre, low, middle, high = _binned(values, np.degrees(events.line_fit_error))
        for bound in (low, high):
            axis.plot(centre, bound, "--", color=LINE_FIT, linewidth=1)
        axis.plot(centre, middle, color=LINE_FIT, marker="s", markersize=4, label="line fit")
        axis.set_xscale("log")
        axis.set_xlabel(label)
    _decades_of_degrees(axes[0, 0], "y")
    axes[0, 0].set_ylabel("angular error")
    axes[0, 0].legend(loc="lower left")
    return figure


def error_distribution(events: Judged) -> Figure:
    """Cumulative distributions of the error, a colour for each class."""
    kinds = {kind: events.of_kind(kind) for kind in events.kinds} or {"all events": np.ones(len(events), bool)}
    figure, axes = new_figure(panel=(6.0, 4.0))
    axis = axes[0, 0]
    for (name, member), colour in zip(kinds.items(), COLOURS, strict=False):
        for who, error, dashes in (("model", events.error, "-"), ("line fit", events.line_fit_error, "--")):
            shown = np.sort(np.degrees(error[member])).clip(_SMALLEST_DEG)
            axis.step(shown, np.arange(1, len(shown) + 1) / len(shown), dashes, color=colour, label=f"{name}, {who}")
    isotropic = np.geomspace(_SMALLEST_DEG, 180, 200)
    share = (1 - np.cos(np.radians(isotropic))) / 2
    axis.plot(isotropic, share, ":", color="0.5", linewidth=1.2, label="by chance")
    _decades_of_degrees(axis, "x")
    axis.set_ylim(0, 1.01)
    axis.set_xlabel("angular error")
    axis.set_ylabel("share of events below")
    axis.legend(loc="upper left")
    return figure


def calibration(events: Judged) -> Figure:
    """Observed against nominal coverage, and error against kappa."""
    figure, axes = new_figure(1, 2, panel=(4.8, 4.0))
    left, right = axes[0]
    left.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle=":", label="exact")
    for name, kappa, colour, dashes in (
        ("before calibration", events.kappa_raw, LINE_FIT, "--"),
        ("after calibration", events.kappa, MODEL, "-"),
    ):
        observed = [(events.error <= vmf_cone(kappa, share)).mean() for share in _SHARES]
        left.plot(_SHARES, observed, dashes, color=colour, label=name)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="nominal share inside the cone", ylabel="observed share", aspect="equal")
    left.legend(loc="upper left")

    kappa, error = events.kappa.clip(1e-2), np.degrees(events.error).clip(_SMALLEST_DEG)
    cells = right.hexbin(
        kappa, error, xscale="log", yscale="log", gridsize=32, mincnt=1, norm=LogNorm(), cmap="Blues", linewidths=0.1
    )
    grid = np.geomspace(kappa.min(), kappa.max(), 200)
    right.plot(grid, np.degrees(vmf_cone(grid, 0.68)), color=COLOURS[3], label="68 % cone")
    _decades_of_degrees(right, "y")
    right.set(xlabel="kappa", ylabel="angular error")
    right.legend(loc="lower left")
    figure.colorbar(cells, ax=right, label="events")
    return figure


def zenith(events: Judged) -> Figure:
    """Two-dimensional histograms of the cosine of the zenith: a row for each method, a column for each class."""
    kinds = {kind: events.of_kind(kind) for kind in events.kinds} or {"all events": np.ones(len(events), bool)}
    methods = {"model": events.model, "line fit": events.line_fit}
    figure, axes = new_figure(2, len(kinds), panel=(3.5, 3.1), sharex=True, sharey=True)
    edges = np.linspace(-1, 1, 21)
    for row, (method, direction) in enumerate(methods.items()):
        for column, (name, member) in enumerate(kinds.items()):
            axis = axes[row, column]
            counts, _, _ = np.histogram2d(events.true[member, 2], direction[member, 2], bins=[edges, edges])
            share = counts / counts.sum(1, keepdims=True).clip(1)
            image = axis.pcolormesh(edges, edges, share.T, norm=PowerNorm(0.5, 0, 1), cmap="Blues")
            axis.plot([-1, 1], [-1, 1], color=COLOURS[3], linewidth=1, linestyle=":")
            axis.set_title(f"{name}, {method}")
            axis.set_aspect("equal")
            axis.grid(visible=False)
    for axis in axes[-1]:
        axis.set_xlabel("true cos zenith")
    for axis in axes[:, 0]:
        axis.set_ylabel("predicted cos zenith")
    figure.colorbar(image, ax=axes, label="share of the true band", shrink=0.7)
    return figure


def _binned(values: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres of the bins, four for each decade, that hold enough events; percentiles 16, 50 and 84 of the error."""
    known = np.isfinite(values) & (values > 0)
    bin_of = np.floor(4 * np.log10(np.where(known, values, 1))).astype(int)
    found = []
    for number in np.unique(bin_of[known]):
        some = error[known & (bin_of == number)]
        if len(some) >= _FEWEST_IN_BIN:
            low, high = np.percentile(some, _BAND)
            found.append((10 ** ((number + 0.5) / 4), low, np.median(some), high))
    centre, low, middle, high = np.array(found, float).reshape(-1, 4).T.clip(_SMALLEST_DEG)
    return centre, low, middle, high


def _decades_of_degrees(axes: Any, which: str) -> None:
    """Let the axis `which`, x or y, show tenths of a degree and half turns alike."""
    ticks = [0.1, 0.3, 1, 3, 10, 30, 90, 180]
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_ticks(ticks, [f"{tick:g}°" for tick in ticks])
    axis.set_ticks([], minor=True)
