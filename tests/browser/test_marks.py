"""The marks of objects that lie apart: their colours are those of the legend, their areas grow with the values."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from made import made_page
from manyscope.explorer.page import write_page
from visit import Open, Visit, background

ACROSS, DOWN = 6, 5
N = ACROSS * DOWN
GRID = np.array([(i % ACROSS, i // ACROSS) for i in range(N)], np.float32)
LEVELS = [f"level {i:02d}" for i in range(14)]
"""More than there are colours."""
REACH = 25
"""Pixels to either side of an object in which it is alone."""
KINDS = [*LEVELS[:12], *LEVELS, None, None, None, None]

Apart = Callable[..., Visit]


@pytest.fixture
def apart(visit: Open, tmp_path: Path) -> Apart:
    """Opens a page of objects in lines and columns, whose marks are opaque. A column is shown from the start, so that
    its legend does not lie over objects."""

    def open_page(shown: str, theme: str = "light", **columns: Any) -> Visit:
        write_page(tmp_path / "index.html", made_page(N, coordinates=GRID, columns=columns))
        page = visit(tmp_path / "index.html", fragment=f"#opacity=1&theme={theme}&{shown}")
        page.page.mouse.move(2, 2)
        return page

    return open_page


def colours(page: Visit) -> np.ndarray:
    """What is seen in the middle of each object, (n, 3)."""
    box = page.page.locator("#map").bounding_box()
    assert box is not None
    x, y = np.round(page.pixels() - [box["x"], box["y"]]).astype(int).T
    return page.shot()[y, x].astype(int)


def widths(page: Visit) -> np.ndarray:
    """Pixels across the mark of each object, edges by how much of a pixel they cover, (n,)."""
    box = page.page.locator("#map").bounding_box()
    assert box is not None
    shot = page.shot().astype(float)
    paper = background(shot).astype(float)
    ink = np.pad(np.abs(shot - paper).sum(2), ((0, 0), (REACH, REACH)))
    places = np.round(page.pixels() - [box["x"], box["y"]]).astype(int)
    return np.array([(line := ink[y, x : x + 2 * REACH + 1]).sum() / line.max() for x, y in places])


def rgb(text: str) -> list[list[int]]:
    return [[int(part) for part in found] for found in re.findall(r"rgb\((\d+), (\d+), (\d+)\)", text)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_level_has_the_colour_of_its_line_in_the_legend(apart: Apart, theme: str) -> None:
    assert len(KINDS) == N
    page = apart("colour=many", theme, many=KINDS)
    told = page.page.locator("#legend .key").evaluate_all(
        """(lines) => lines.map((line) => [line.dataset.level ?? null, line.dataset.missing ?? null,
             getComputedStyle(line.querySelector(".swatch")).backgroundColor])"""
    )
    of_level = {level: rgb(colour)[0] for level, missing, colour in told if level is not None and missing is None}
    assert list(of_level) == LEVELS[: len(of_level)]  # the commonest ones
    assert len({tuple(colour) for colour in of_level.values()}) == len(of_level) >= 8
    (rest,) = [rgb(colour)[0] for level, missing, colour in told if level is None and missing is None]
    expected = [of_level.get(kind, rest) for kind in KINDS if kind is not None]
    page.eventually(lambda: np.abs(colours(page)[: len(expected)] - expected).max() <= 1)
    # Objects without a value recede: between their colour and the paper.
    (grey,) = [rgb(colour)[0] for _, missing, colour in told if missing is not None]
    paper = background(page.shot())
    assert colours(page)[-1] == pytest.approx(0.7 * np.array(grey) + 0.3 * paper, abs=3)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_have_the_colours_of_the_ramp(apart: Apart, theme: str) -> None:
    values = np.random.default_rng(3).permutation(N) * 2.5 - 10
    page = apart("colour=number", theme, number=values)
    (column,) = [column for column in page.columns if column["name"] == "number"]
    ends = page.page.locator("#legend .ends span").all_inner_texts()
    low, high = (float(re.sub("[^0-9.-]", "", end.replace("−", "-"))) for end in ends)
    assert [low, high] == pytest.approx([column["first"], column["last"]], rel=1e-4)
    assert column["low"] < low < high < column["high"]
    shares = np.clip((values - low) / (high - low), 0, 1)
    page.eventually(lambda: off_ramp(page, shares) < 3)
    assert off_ramp(page, 1 - shares) > 30
    assert off_ramp(page, np.clip(shares + 0.1, 0, 1)) > 10


def off_ramp(page: Visit, shares: np.ndarray) -> float:
    """The most by which a channel of an object's colour differs from those that the ramp has near its value. The scale
    has twenty colours, so that they are up to a twentieth away."""
    text = page.page.locator("#legend .ramp").evaluate("(ramp) => getComputedStyle(ramp).backgroundImage")
    assert text.startswith("linear-gradient(to right, ")
    stops = np.array(rgb(text), float)
    near = np.clip(shares[:, None] + np.linspace(-0.052, 0.052, 105), 0, 1)
    ramp = np.stack([np.interp(near, np.linspace(0, 1, len(stops)), channel) for channel in stops.T], axis=2)
    return float(np.abs(ramp - colours(page)[:, None]).max(2).min(1).max())


def test_areas_grow_with_the_values(apart: Apart) -> None:
    values = np.random.default_rng(3).permutation(N) * 2.5 - 10
    page = apart("colour=", number=pl.Series([*values[:-1], None]))
    one_size = widths(page)
    assert np.ptp(one_size) < 1
    page.page.locator("#size").select_option("number")
    page.eventually(lambda: np.ptp(widths(page)) > 5)
    (column,) = [column for column in page.columns if column["name"] == "number"]
    shares = np.clip((values[:-1] - column["first"]) / (column["last"] - column["first"]), 0, 1)
    found = widths(page)
    least, most = found[shares.argmin()], found[shares.argmax()]
    assert 3 < most / least < 5
    assert found[:-1] == pytest.approx(np.sqrt(least**2 + (most**2 - least**2) * shares), abs=1.2)
    assert found[-1] == pytest.approx(least, abs=1.2)  # without a value
