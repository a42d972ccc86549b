"""Pages of strange contents, in files and served: few objects or very many, missing values, long and hostile texts,
numbers of many digits, a map in space."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import expect

from made import made_page, serving
from manyscope.explorer.page import write_page
from truth import inside, projected, star
from visit import Open, Visit, quoted

SCRIPT = (
    '</script><script>window.alerted = 1</script><img src=x onerror="window.alerted = 2">\'"&amp;<!--\\u003cb\n${7*7}'
)
UNICODE = "Ñandú 星系 🔭 \u202eabc\u202c e\u0301 \u0000".replace("\u0000", "")
LONG = "a long caption, " * 625  # 10,000 characters

Write = Callable[..., Path | str]


@pytest.fixture(scope="module")
def servers() -> Iterator[ExitStack]:
    """They end after the pages that ask them."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["file", "served"])
def write(request: pytest.FixtureRequest, tmp_path: Path, servers: ExitStack) -> Write:
    """Makes a page, see `made_page`, and gives its file or, served, its address."""

    def page(n: int, **own: Any) -> Path | str:
        made = made_page(n, **own)
        if request.param == "served":
            return servers.enter_context(serving(made))
        file = tmp_path / "page" / "index.html"
        file.parent.mkdir()
        write_page(file, made)
        return file

    return page


IN_A_FILE = pytest.mark.parametrize("write", ["file"], indirect=True)


def frame(visit: Visit) -> tuple[tuple[float, float], float]:
    """The middle of the map, and how far a shape may reach."""
    box = visit.page.locator("#map").bounding_box()
    assert box is not None
    return (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2), min(box["width"], box["height"]) / 2 - 50


@pytest.mark.parametrize("n", [1, 3])
def test_very_few_objects(visit: Open, write: Write, n: int) -> None:
    page = visit(write(n))
    pixels = page.pixels()
    assert not np.isnan(pixels).any()
    page.click(pixels[0])
    expect(page.page.locator("#object .id").first).to_have_text("object-0")
    expect(page.page.locator("#object .strip button[data-id]")).to_have_count(n - 1)
    for column in ("flux", "kind", ""):
        page.colour_by(column)
    pixels = page.pixels()
    assert page.draw("box", [pixels.min(0) - 9, pixels.max(0) + 9]) == list(range(n))
    raw = page.download(page.page.locator("#csv").click)
    assert len(pl.read_csv(io.BytesIO(raw))) == n


def test_an_empty_selection_is_a_table_without_rows(visit: Open, write: Write) -> None:
    page = visit(write(3, coordinates=np.array([[0, 0], [1, 1], [2, 0]], np.float32)))
    corner = page.pixels().min(0) - 4
    assert page.draw("box", [corner, corner - 20]) == []
    expect(page.page.locator("#count")).to_be_visible()
    expect(page.page.locator("#rows tbody tr[data-row]")).to_have_count(0)
    raw = page.download(page.page.locator("#csv").click)
    assert raw.decode().strip().split(",")[:3] == ["object_id", "map_x", "map_y"]
    assert page.download(page.page.locator("#ids").click) == b""
    page.page.locator("#clear").click()
    page.until("() => manyscope.chosen.selected === null")


def test_columns_without_values(visit: Open, write: Write) -> None:
    n = 12
    columns = {
        "empty": np.full(n, np.nan),
        "infinite": [np.inf, -np.inf, np.nan] * 4,
        "none": pl.Series([None] * n, dtype=pl.String),
        "one value": np.full(n, 2.5),
        "gaps": [None if i % 2 else i / 3 for i in range(n)],
    }
    page = visit(write(n, columns=columns))
    for name in columns:
        page.colour_by(name)
        expect(page.page.locator("#map")).to_be_visible()
        assert not np.isnan(page.pixels()).any()
    page.colour_by("gaps")
    expect(page.page.locator("#legend")).to_contain_text("6")  # the number of those without a value
    found = page.answer("histogram", "gaps", None)
    assert (sum(found["all"]), found["missing"]) == (6, 6)
    for name in columns:
        page.filter_of(name)
    page.page.locator("#size").select_option("gaps")
    page.until("() => manyscope.state.size === 'gaps'")
    page.find("object")
    raw = page.download(page.page.locator("#csv").click)
    table = pl.read_csv(io.BytesIO(raw), infer_schema=False)
    assert table["empty"].null_count() == n
    assert table["gaps"].null_count() == 6
    assert table["one value"].to_list() == ["2.5"] * n


def test_objects_at_one_place(visit: Open, write: Write) -> None:
    """Hyrax's and others' maps hold copies of an image: all of them are selected, and one of them is found."""
    places = np.repeat(np.array([[0, 0], [1, 2], [3, 1]], np.float32), 4, axis=0)
    page = visit(write(12, coordinates=places))
    x, y = page.pixels()[5]
    assert page.draw("box", [(x - 20, y - 20), (x + 20, y + 20)]) == [4, 5, 6, 7]
    page.click(page.pixels()[5])  # the table below has made the map smaller
    assert page.ask("() => manyscope.state.focus") in (4, 5, 6, 7)


def test_all_objects_at_one_place(visit: Open, write: Write) -> None:
    page = visit(write(5, coordinates=np.full((5, 2), 7, np.float32)))
    x, y = page.pixels()[0]
    assert page.draw("lasso", star((x, y - 20), 60, 3)) == list(range(5))


@pytest.mark.parametrize("text", [SCRIPT, UNICODE, LONG], ids=["script", "unicode", "long"])
def test_texts_are_shown_as_they_are(visit: Open, write: Write, text: str) -> None:
    """In names, ids, values and notes; whatever they hold, they are no markup."""
    n = 6
    name = text[:300]
    ids = [f"{text}{i}" for i in range(n)]
    columns = {
        "caption": [f"{text}{i}" for i in range(n)],
        name: [f"{text}{i % 2}" for i in range(n)],
        f"{name} number": np.arange(n) + 0.5,
    }
    path = write(n, columns=columns, object_ids=ids, title=text, experiment=name, card=(name, "caption"))
    page = visit(path)
    expect(page.page.locator("h1")).to_have_text(text, use_inner_text=False)
    page.colour_by(name)
    levels = page.page.locator("#legend button[data-level]")
    expect(levels).to_have_count(2)
    assert levels.evaluate_all("(all) => all.map((one) => one.dataset.level)") == [f"{text}0", f"{text}1"]
    place = page.pixels()[4]
    page.point_at(place)
    expect(page.page.locator("#card")).to_be_visible()
    box = page.page.locator("#card").bounding_box()
    assert box is not None
    assert box["width"] < 700
    assert box["height"] < 700
    page.click(place)
    assert page.page.locator("#object .id").first.evaluate("(shown) => shown.textContent") == ids[4]
    assert f"{text}4" in page.page.locator("#object dd").all_text_contents()
    page.filter_of(name).get_by_role("checkbox").first.check()
    page.until("() => manyscope.chosen.passing !== null")
    assert page.rows("passing") == [0, 2, 4]
    raw = page.download(page.page.locator("#csv").click)
    table = pl.read_csv(io.BytesIO(raw), infer_schema=False)
    assert table["object_id"].to_list() == [ids[row] for row in (0, 2, 4)]
    assert table["caption"].to_list() == [f"{text}{row}" for row in (0, 2, 4)]
    page.page.locator(f"#rows th button[data-sort={quoted(name)}]").click()
    page.colour_by(f"{name} number")
    page.page.locator("#size").select_option(f"{name} number")
    page.page.keyboard.press("Escape")
    assert page.ask("() => window.alerted") is None
    assert page.page.locator("img[src=x]").count() == 0
    width = page.ask("() => document.documentElement.scrollWidth")
    assert width <= 1280, "the page is wider than the window"


def test_every_digit_of_a_number_is_told(visit: Open, write: Write) -> None:
    """Numbers of runs are beyond the precision of single floats, ids of 64 bits beyond that of double ones."""
    n = 20
    columns = {
        "run": np.arange(n) + 67_326_551,
        "id": np.arange(n) + 2**53 + 1,
        "last": np.uint64(2**64 - 1) - np.arange(n, dtype=np.uint64),
    }
    page = visit(write(n, columns=columns, card=tuple(columns)))
    page.find("object")
    raw = page.download(page.page.locator("#csv").click)
    table = pl.read_csv(io.BytesIO(raw), infer_schema=False)
    for name, values in columns.items():
        assert table[name].to_list() == [str(value) for value in values.tolist()]
    page.find("object-1")
    lines = page.page.locator("#rows tbody tr[data-row]")
    for line in lines.all():
        row = int(line.get_attribute("data-row") or -1)
        assert {str(values[row]) for values in columns.values()} <= set(line.locator("td").all_inner_texts())
    lines.first.press("Enter")
    expect(page.page.locator("#object .id").first).to_have_text("object-1")
    assert {str(values[1]) for values in columns.values()} <= set(page.page.locator("#object dd").all_inner_texts())


SPACE = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)


@pytest.fixture
def space(visit: Open, write: Write) -> Visit:
    return visit(write(len(SPACE), coordinates=SPACE))


def test_a_map_in_space_is_drawn_and_turned(space: Visit) -> None:
    page = space
    pixels = page.pixels()
    assert not np.isnan(pixels).any()
    shot = page.shot().astype(int)
    box = page.page.locator("#map").bounding_box()
    assert box is not None
    paper = shot[5, 5]
    seen = [np.abs(shot[round(y - box["y"]), round(x - box["x"])] - paper).max() > 30 for x, y in pixels]
    assert np.mean(seen) > 0.9, "points are not drawn where they are said to be"
    rows = page.draw("lasso", star(frame(page)[0], frame(page)[1], 3))
    page.take("pan")
    (x, y), _ = frame(page)
    with page.change_of("state.view"):
        page.drag([(x, y), (x + 120, y + 40)])
    page.eventually(lambda: not np.allclose(page.pixels(), pixels, atol=5))
    assert page.rows("selected") == rows


def test_a_lasso_in_space_selects_what_the_camera_shows_inside(space: Visit) -> None:
    page = space
    centre, reach = frame(page)
    for _ in range(2):
        outline, pixels = star(centre, reach), page.pixels()
        rows = page.draw("lasso", outline)
        shape = page.ask("() => manyscope.state.selection.shape")
        shown, before = projected(SPACE.astype(np.float64), shape["camera"])
        assert rows == np.flatnonzero(inside(shown, shape["points"]) & before).tolist()
        assert 0 < len(rows) < len(SPACE)
        assert rows == np.flatnonzero(inside(pixels, outline)).tolist()
        page.take("pan")
        with page.change_of("state.view"):
            page.drag([centre, (centre[0] - 150, centre[1] + 60)])
        page.eventually(lambda pixels=pixels: not np.allclose(page.pixels(), pixels, atol=5))


def test_hover_and_click_in_space(space: Visit) -> None:
    page = space
    pixels = page.pixels()
    far = np.linalg.norm(pixels[:, None] - pixels[None], axis=2) + np.diag(np.full(len(pixels), np.inf))
    row = int(far.min(1).argmax())
    page.point_at(pixels[row])
    expect(page.page.locator("#card .id")).to_have_text(f"object-{row}")
    page.click(pixels[row])
    assert page.ask("() => manyscope.state.focus") == row


@IN_A_FILE
@pytest.mark.slow
def test_two_hundred_thousand_objects(visit: Open, write: Write) -> None:
    n = 200_000
    places = np.random.default_rng(1).normal(size=(n, 2)).astype(np.float32)
    page = visit(write(n, coordinates=places))
    shot = page.shot().astype(int)
    assert (np.abs(shot - shot[3, 3]).max(2) > 30).sum() > 20_000
    centre, reach = frame(page)
    rows = page.draw("lasso", star(centre, reach / 2))
    shape = page.ask("() => manyscope.state.selection.shape")
    assert rows == np.flatnonzero(inside(places.astype(np.float64), shape["points"])).tolist()
    assert len(rows) > 1000
    with page.change_of("state.view"):
        page.page.locator("#zoom-in").click()
    page.colour_by("kind")
    assert page.rows("selected") == rows
