"""The project's figures: what they show, and that their files are stable."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import polars as pl
import pytest
from PIL import Image

from manyscope.errors import DataError
from manyscope.evaluation.figures import COLOURS, forest_plot, new_figure, save_figure, style, training_curves
from manyscope.tables.metrics import Metric

ROWS = [
    Metric("accuracy", "all", "", 90, True, 0.9, 0.85, 0.95, "majority", 0.5, 0.4, 0.35, 0.45),
    Metric("accuracy", "all", "", 90, True, 0.9, 0.85, 0.95, "blind", 0.6, 0.3, 0.25, 0.35),
    Metric("accuracy", "rare", "", 9, True, 0.7, 0.4, 0.9, "majority", 0.0, 0.7, 0.4, 0.9),
    Metric("error", "all", "deg", 90, False, 3.0, 2.5, 3.5),
]


def test_forest_plot_has_a_panel_for_each_metric_and_a_row_for_each_group():
    figure = forest_plot(ROWS)
    accuracy, error = figure.axes
    assert [t.get_text() for t in accuracy.get_yticklabels()] == ["all  (n=90)", "rare  (n=9)"]
    assert accuracy.get_title(loc="left") == "accuracy, higher is better"
    assert error.get_title(loc="left") == "error (deg), lower is better"
    assert accuracy.yaxis_inverted()
    by_label: dict[str, list[tuple[float, float]]] = {}
    for line in accuracy.lines:
        by_label.setdefault(line.get_label(), []).append((line.get_xdata()[0], line.get_ydata()[0]))
    assert by_label["model, 95 % interval"] == [(0.9, 0), (0.7, 1)]
    assert by_label["majority"] == [(0.5, 0), (0.0, 1)]
    assert by_label["blind"] == [(0.6, 0)]
    intervals = [tuple(line.get_xdata()) for line in accuracy.lines if len(line.get_xdata()) == 2]
    assert intervals == [(0.85, 0.95), (0.4, 0.9)]
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.texts] == ["model, 95 % interval", "majority", "blind"]


def test_forest_plot_without_metrics_is_an_error():
    with pytest.raises(DataError, match="no metric"):
        forest_plot([])


def history(rows: list[tuple[int, float, str, float]]) -> pl.DataFrame:
    schema = {"step": pl.Int64, "epoch": pl.Float64, "name": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_training_curves_pair_the_phases_of_a_quantity():
    table = history(
        [
            (20, 2.0, "train/loss", 0.5),
            (10, 1.0, "train/loss", 1.0),
            (10, 1.0, "train/lr", 1e-3),
            (20, 2.0, "train/lr", float("nan")),
            (10, 1.0, "validation/loss", 1.2),
            (10, 1.0, "validation/accuracy", 0.3),
        ]
    )
    figure = training_curves(table)
    assert [a.get_title(loc="left") for a in figure.axes] == ["loss", "accuracy", "lr"]
    loss, accuracy, rate = figure.axes
    assert accuracy.lines[0].get_color() == loss.lines[1].get_color() != loss.lines[0].get_color()
    assert [line.get_label() for line in loss.lines] == ["train", "validation"]
    assert list(loss.lines[0].get_xdata()) == [1.0, 2.0]
    assert list(loss.lines[0].get_ydata()) == [1.0, 0.5]
    assert len(rate.lines[0].get_xdata()) == 1  # the value that is not finite is left out


def test_unused_panels_are_hidden_and_an_empty_history_is_an_error():
    names = [f"train/q{i}" for i in range(4)]
    figure = training_curves(history([(1, 0.1, name, 1.0) for name in names]))
    assert [a.get_visible() for a in figure.axes] == [True] * 4 + [False] * 2
    with pytest.raises(DataError, match="no finite value"):
        training_curves(history([(1, 0.1, "train/loss", float("inf"))]))


def test_saved_figures_have_stable_bytes_without_date_or_software(tmp_path: Path):
    for name in ("a.png", "b.png"):
        save_figure(forest_plot(ROWS), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert not {"Software", "Creation Time", "date:create"} & picture.info.keys()
        assert picture.width > 500
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.png", "b.png"]


def test_the_style_ends_with_its_block_and_reaches_new_figures():
    before = mpl.rcParams["axes.spines.top"]
    with style():
        assert mpl.rcParams["axes.spines.top"] is False
    assert mpl.rcParams["axes.spines.top"] == before
    figure, axes = new_figure(2, 3)
    assert axes.shape == (2, 3)
    assert not axes[0, 0].spines["right"].get_visible()
    (line,) = axes[0, 0].plot([0, 1])
    assert line.get_color() == COLOURS[0]
    assert figure.get_size_inches()[0] == pytest.approx(3 * 4.2)
