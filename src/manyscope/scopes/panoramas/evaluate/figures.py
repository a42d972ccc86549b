"""Figures of an evaluation: accuracy by type, example answers, counts."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from manyscope.evaluation.figures import COLOURS, MARKERS, new_figure, style
from manyscope.scopes.panoramas.data.room import NUMBERS
from manyscope.scopes.panoramas.data.words import words_of
from manyscope.tables.metrics import Metric

_RIGHT, _WRONG = COLOURS[0], COLOURS[3]
_OTHER = "other"
_COLUMNS = 2  # of examples on the page
_WIDTH_IN = 4.4  # of an example
_LETTERS = 52  # that fit into this width
_MOST_LINES = 4  # of one text
_LINE_PT = 13.5
_MOST_REFERENCES = 3
_IN_A_ROW = 8  # views
_VIEW_PX, _GAP_PX = 96, 4


@dataclass(frozen=True)
class Example:
    """A question with its answer.

    Attributes:
        panorama: (h, w, 3) uint8.
        views: (views, p, p, 3) uint8.
        right: whether the answer is one of the references.
    """

    panorama: np.ndarray
    views: np.ndarray
    question: str
    answer: str
    references: Sequence[str]
    right: bool


def accuracy(metrics: Sequence[Metric]) -> Figure:
    """A bar with its interval for each group, and a mark for each baseline.

    Args:
        metrics: of one name, with a row for each baseline of each group.
    """
    groups: dict[str, list[Metric]] = {}
    for metric in metrics:
        groups.setdefault(metric.group, []).append(metric)
    figure, axes = new_figure(panel=(7.5, 1.3 + 0.42 * len(groups)))
    axis = axes[0, 0]
    with style():
        own = [rows[0] for rows in groups.values()]
        places = np.arange(len(own))
        value = np.array([metric.value for metric in own])
        # An interval drawn from resamples need not hold the value itself.
        sides = [(value - [metric.low for metric in own]).clip(0), ([metric.high for metric in own] - value).clip(0)]
        axis.barh(places, value, 0.62, color=COLOURS[0], alpha=0.55, label="model")
        axis.errorbar(value, places, xerr=sides, fmt="none", ecolor="black", capsize=3, label="95 % interval")
        marked = [metric for metric in metrics if metric.baseline is not None]
        baselines = list(dict.fromkeys(metric.baseline for metric in marked))
        for i, baseline in enumerate(baselines):
            aside = 0.3 * (i - (len(baselines) - 1) / 2)  # equal ones are both seen
            rows = [metric for metric in marked if metric.baseline == baseline]
            axis.plot(
                [metric.baseline_value for metric in rows],
                [list(groups).index(metric.group) + aside for metric in rows],
                MARKERS[i % len(MARKERS)],
                color=COLOURS[(1, 3)[i % 2]],
                markeredgecolor="black",
                markersize=8,
                label=baseline,
            )
        axis.set_yticks(places, [f"{metric.group}  (n={metric.n})" for metric in own])
        axis.set_ylim(len(own) - 0.5, -0.5)
        axis.set_xlim(0, 1.02)
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("share of right answers")
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def choose(right: np.ndarray, pictures: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of the questions to be shown, ascending: drawn at random, half of them right if there are as many, and
    of a picture a second one only if there are too few pictures.

    Args:
        right, pictures: (n,) of each question.
    """
    drawn = np.random.default_rng(seed).permutation(len(right))
    kinds = [_one_of_each_first(drawn[right[drawn] == kind], pictures) for kind in (False, True)]
    wrong = min(len(kinds[0]), max(-(-count // 2), count - len(kinds[1])))
    return np.sort(np.concatenate([kinds[0][:wrong], kinds[1][: count - wrong]]))


def answers(examples: Sequence[Example]) -> Figure:
    """A page of questions: panorama, views, question, answer, and whether it is right."""
    rows = -(-len(examples) // _COLUMNS)
    columns = min(_COLUMNS, len(examples))
    texts = [_told(example) for example in examples]
    tiles = [_mosaic(example.views) for example in examples]
    lines = max(len(text) for text in texts)
    panorama = max(example.panorama.shape[0] / example.panorama.shape[1] for example in examples)
    views = max(tile.shape[0] / tile.shape[1] for tile in tiles)
    heights = [_WIDTH_IN * panorama, _WIDTH_IN * views, lines * _LINE_PT / 72 + 0.15]
    figure, axes = new_figure(3 * rows, columns, panel=(_WIDTH_IN + 0.2, 1.0), heights=heights * rows)
    with style():
        for axis in axes.flat:
            axis.axis("off")
        for i, (example, text, tile) in enumerate(zip(examples, texts, tiles, strict=True)):
            row, column = 3 * (i // columns), i % columns
            above, below = axes[row, column], axes[row + 1, column]
            above.imshow(example.panorama, interpolation="bilinear")
            below.imshow(tile, interpolation="nearest")
            above.set_anchor("SW")
            below.set_anchor("NW")
            _write(axes[row + 2, column], text, example.right)
    return figure


def counts(true: Sequence[str], answered: Sequence[str]) -> Figure:
    """How often each number is answered where each is true.

    Args:
        true: a reference of each question.
        answered: what is no reference of any is gathered in one column.
    """
    rows, columns = ([" ".join(words_of(text)) for text in texts] for texts in (true, answered))
    names = sorted(set(rows), key=_in_order)
    known = [name if name in names else _OTHER for name in columns]
    headings = [*names, _OTHER] if _OTHER in known and _OTHER not in names else names
    table = np.zeros((len(names), len(headings)), int)
    for row, column in zip(rows, known, strict=True):
        table[names.index(row), headings.index(column)] += 1
    share = table / table.sum(1, keepdims=True)
    figure, axes = new_figure(panel=(1.6 + 0.62 * len(headings), 1.2 + 0.5 * len(names)))
    axis = axes[0, 0]
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), number in np.ndenumerate(table):
        colour = "white" if share[row, column] > 0.55 else "black"
        axis.text(column, row, f"{number}", ha="center", va="center", color=colour)
    axis.set_xticks(range(len(headings)), headings)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("answer")
    axis.set_ylabel("true")
    axis.grid(visible=False)
    return figure


def _in_order(name: str) -> tuple[int, str]:
    """Numbers in words or digits, then all else."""
    if name in NUMBERS:
        return NUMBERS.index(name), ""
    return (int(name), "") if name.isdecimal() else (sys.maxsize, name)


def _one_of_each_first(rows: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """The rows in their order, but the second of a picture after the first ones of all, and so on."""
    seen: dict[object, int] = {}
    turn = []
    for picture in pictures[rows].tolist():
        turn.append(seen.get(picture, 0))
        seen[picture] = turn[-1] + 1
    return rows[np.argsort(turn, kind="stable")]


def _mosaic(views: np.ndarray) -> np.ndarray:
    """(views, p, p, 3) uint8 -> (h, w, 3) uint8: all views in rows, on white."""
    side = min(_VIEW_PX, views.shape[1])
    small = [
        np.asarray(Image.fromarray(np.ascontiguousarray(view)).resize((side, side), Image.Resampling.BOX))
        for view in views
    ]
    columns = min(_IN_A_ROW, len(small))
    rows = -(-len(small) // columns)
    # One view alone is not drawn larger than one of two.
    width = max(columns, 2)
    step = side + _GAP_PX
    sheet = np.full((rows * step, width * step - _GAP_PX, 3), 255, np.uint8)
    for i, view in enumerate(small):
        y, x = _GAP_PX + i // columns * step, i % columns * step
        sheet[y : y + side, x : x + side] = view
    return sheet


def _told(example: Example) -> list[tuple[str, bool]]:
    """Lines of the question, of the verdict with the answer, and of the references; with whether it is the verdict."""
    more = len(example.references) - _MOST_REFERENCES
    some = example.references[:_MOST_REFERENCES]
    share = _LETTERS * _MOST_LINES // len(some) - 16  # each begins within the lines that there are
    references = " / ".join(textwrap.shorten(text, share, placeholder=" …") for text in some)
    references += f" / {more} more" if more > 0 else ""
    verdict = "right" if example.right else "wrong"
    lines = [(line, False) for line in _lines(example.question)]
    lines += [(line, True) for line in _lines(f"{verdict}: {example.answer.strip() or '(no answer)'}")]
    if not (example.right and len(example.references) == 1):
        lines += [(line, False) for line in _lines(f"reference: {references}")]
    return lines


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, _LETTERS, max_lines=_MOST_LINES, placeholder=" …") or [""]


def _write(axis: Axes, lines: Sequence[tuple[str, bool]], right: bool) -> None:
    for i, (line, is_verdict) in enumerate(lines):
        axis.annotate(
            line,
            (0, 1),
            (2, -_LINE_PT * i - 2),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=10,
            color=(_RIGHT if right else _WRONG) if is_verdict else "black",
            fontweight="bold" if is_verdict else "normal",
            parse_math=False,  # a dollar sign is one
        )
