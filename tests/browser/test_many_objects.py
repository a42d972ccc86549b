"""The served page of more objects than are drawn at once: a part of them is drawn, and all of them are there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import expect

from manyscope.explorer.contents import Contents, plain_columns
from manyscope.explorer.store import Store
from truth import Truth, inside, star
from visit import SNAPSHOT, Open, Visit, apart, region

DRAWN = 30


@pytest.fixture(scope="session")
def address(serve: Callable[..., str]) -> str:
    return serve("galaxies", "--points", str(DRAWN))


@pytest.fixture
def truth(truths: dict[str, Truth]) -> Truth:
    return truths["galaxies"]


@pytest.fixture
def store(truth: Truth) -> Store:
    columns = plain_columns(truth.samples.select("split"))
    contents = Contents(truth.name, truth.name, "", truth.ids, truth.places.astype(np.float32), columns)
    return Store(contents, DRAWN)


@pytest.fixture
def part(visit: Open, address: str, truth: Truth) -> Visit:
    page = visit(address)
    assert page.about["all"] is False
    assert len(truth.ids) > 3 * DRAWN
    return page


def drawn(page: Visit) -> list[int]:
    """Rows of the objects in view that are drawn."""
    return np.flatnonzero(~np.isnan(page.pixels()[:, 0])).tolist()


def marks(page: Visit) -> int:
    """How many Plotly draws, in view or not."""
    return int(page.ask("() => document.getElementById('map').data.reduce((sum, { x }) => sum + x.length, 0)"))


def shows(page: Visit, expected: list[int]) -> None:
    page.eventually(lambda: drawn(page) == expected)


def hidden(page: Visit) -> int:
    """A row that is not drawn, far from those that are neighbours of others."""
    return min(set(range(page.about["objects"])) - set(drawn(page)))


def test_the_drawn_objects_are_those_of_the_store(part: Visit, store: Store) -> None:
    assert drawn(part) == store.points().rows.tolist()
    assert len(drawn(part)) == marks(part) == DRAWN
    said = f"{DRAWN} of the {store.objects:,} objects in view are drawn"
    expect(part.page.locator("#legend")).to_contain_text(said)


def test_a_closer_view_shows_more_of_its_objects(part: Visit, store: Store) -> None:
    before = set(drawn(part))
    for _ in range(3):
        asked = part.ask("() => manyscope.state.view")
        part.page.locator("#zoom-in").click()
        part.until("(asked) => JSON.stringify(manyscope.state.view) !== JSON.stringify(asked)", asked)
        view = part.ask("() => manyscope.state.view")
        shows(part, store.points(view).rows.tolist())
    closer = set(drawn(part))
    assert closer - before, "nothing new is seen"
    x, y = store.contents.coordinates.T
    (x0, x1), (y0, y1) = view
    in_view = set(np.flatnonzero((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)).tolist())
    assert before & in_view <= closer, "what was seen has gone"
    legend = part.page.locator("#legend")
    if len(in_view) > DRAWN:
        expect(legend).to_contain_text(f"{DRAWN} of the {len(in_view):,} objects in view are drawn")
    else:
        expect(legend).not_to_contain_text("in view are drawn")
    part.page.locator("#reset").click()
    shows(part, sorted(before))


def test_a_lasso_selects_what_is_not_drawn_too(part: Visit, truth: Truth) -> None:
    shown = set(drawn(part))
    rows = part.draw("lasso", star(*region(part)))
    shape = part.ask("() => manyscope.state.selection.shape")
    assert rows == np.flatnonzero(inside(truth.places[:, :2], shape["points"])).tolist()
    assert set(rows) - shown, "all that it selects was drawn"
    expect(part.page.locator("#count")).to_contain_text(f"{len(rows):,}")
    part.eventually(lambda: set(rows) <= set(drawn(part)))  # from now on they are


def test_what_a_filter_finds_is_drawn(part: Visit, store: Store, truth: Truth) -> None:
    row = hidden(part)
    part.find(truth.ids[row])
    assert row in (part.rows("passing") or [])
    part.eventually(lambda: row in drawn(part))
    assert marks(part) == DRAWN
    assert part.ask("(row) => manyscope.pixel(row) !== null", row)
    part.page.locator("#find").fill("")
    shows(part, store.points().rows.tolist())


def test_an_object_in_focus_and_its_neighbours_are_drawn(part: Visit, truth: Truth) -> None:
    shown = set(drawn(part))
    row = hidden(part)
    part.find(truth.ids[row])
    part.page.locator(f'#rows tbody tr[data-row="{row}"]').click()
    part.until("(row) => manyscope.state.focus === row", row)
    near = [one["row"] for one in part.answer("neighbours", row)]
    assert set(near) - shown
    with part.change_of("chosen.passing"):
        part.page.locator("#find").fill("")
    part.eventually(lambda: {row, *near} <= set(drawn(part)))
    rings = part.page.locator("#map svg.layer circle[data-row]")
    expect(rings).to_have_count(1 + len(near))
    circles = rings.evaluate_all("(all) => all.map((one) => Number(one.dataset.row))")
    assert set(circles) == {row, *near}


def test_hover_and_click_are_of_a_drawn_object(part: Visit, truth: Truth) -> None:
    part.page.locator("#zoom-in").click()
    part.until("() => manyscope.state.view !== null")
    part.page.wait_for_load_state("networkidle")
    part.frames()
    pixels = part.pixels()
    gaps = np.where(np.isnan(pixels[:, 0]), -1, apart(pixels))
    row = int(gaps.argmax())
    part.point_at(pixels[row])
    expect(part.page.locator("#card .id")).to_have_text(truth.ids[row])
    part.click(pixels[row])
    assert part.ask("() => manyscope.state.focus") == row
    expect(part.page.locator("#object .id").first).to_have_text(truth.ids[row])


def test_a_link_brings_the_same_objects_back(visit: Open, part: Visit, address: str, truth: Truth) -> None:
    part.draw("lasso", star(*region(part)))
    with part.change_of("state.view"):
        part.page.locator("#zoom-in").click()
    part.page.wait_for_load_state("networkidle")
    part.page.locator("#link").click()
    expect(part.page.locator("#message")).to_contain_text("clipboard")
    fragment = part.ask("() => navigator.clipboard.readText()").partition("#")[2]
    other = visit(address, fragment=f"#{fragment}")
    other.until("() => manyscope.chosen.listed !== null")
    assert other.ask(SNAPSHOT) == part.ask(SNAPSHOT)
    assert other.rows("selected") == part.rows("selected")
    other.eventually(lambda: drawn(other) == drawn(part))
    other.eventually(lambda: np.allclose(other.pixels(), part.pixels(), atol=1, equal_nan=True))
