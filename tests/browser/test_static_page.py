"""The page of each scope, opened from its file: nothing is asked of a network, and all that it shows is what the tables
say. Mouse and keyboard are real."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import Locator, expect

from truth import Truth, from_outline, inside, star, unlike, within
from visit import SNAPSHOT, Open, Visit, apart, background, quoted, region

NEAR_PX = 1.0
COLOURS = 8  # of categories
LISTED = 200  # rows of the table, until more are asked for
SEVEN_DIGITS = 2e-6
"""Relative error of a number written with seven digits, with some room."""


# What depends on no scope is tried on one or two.
ON_TWO = pytest.mark.parametrize("truth", ["galaxies", "panoramas"], indirect=True)
ON_ONE = pytest.mark.parametrize("truth", ["scenes"], indirect=True)


def alone(visit: Visit, least_px: float = 1) -> list[int]:
    """Rows of objects in view that are drawn apart from all others, the most lonely first."""
    gaps = np.nan_to_num(apart(visit.pixels()), nan=0, posinf=0)
    order = [int(row) for row in np.argsort(-gaps) if gaps[row] > least_px]
    assert order, "every object on the map touches another"
    return order


def colour_at(visit: Visit, place: np.ndarray) -> np.ndarray:
    """What is seen at a pixel of the page."""
    box = visit.page.locator("#map").bounding_box()
    assert box is not None
    return visit.shot()[round(place[1] - box["y"]), round(place[0] - box["x"])].astype(int)


# ---- the map ----
def test_points_are_drawn_where_the_tables_say(static: Visit, truth: Truth) -> None:
    assert static.requests == [truth.paths.page.resolve().as_uri()]
    assert static.about["objects"] == len(truth.ids)
    shot = static.shot()
    ink = np.abs(shot.astype(int) - background(shot)).max(2) > 40
    assert ink.sum() > 3 * len(truth.ids) ** 0.5
    pixels = static.pixels()
    assert not np.isnan(pixels).any(), "at first every object is in view"
    # x to the right, y upwards, at one scale.
    to_pixels, residual, *_ = np.linalg.lstsq(np.column_stack([truth.places[:, :2], np.ones(len(pixels))]), pixels)
    assert (residual < 0.05 * len(pixels)).all()
    assert to_pixels[0, 0] > 0
    assert to_pixels[:2] == pytest.approx(to_pixels[0, 0] * np.diag([1, -1]), rel=1e-3, abs=1e-3 * to_pixels[0, 0])
    box = static.page.locator("#map").bounding_box()
    assert box is not None
    for row in alone(static)[:20]:
        x, y = round(pixels[row, 0] - box["x"]), round(pixels[row, 1] - box["y"])
        assert ink[y, x], truth.ids[row]


def test_the_card_at_the_pointer_is_of_the_object_there(static: Visit, truth: Truth) -> None:
    pixels, card = static.pixels(), static.page.locator("#card")
    rows = alone(static)
    for row in (rows[0], rows[len(rows) // 2], rows[-1]):
        static.point_at(pixels[row])
        expect(card.locator(".id")).to_have_text(truth.ids[row])
        expect(card).to_be_visible()
        own = truth.pictures[row]
        assert own is not None
        static.eventually(lambda: static.picture(card)[..., 3].any())
        shown = static.picture(card)
        assert unlike(shown, own) < 8
        others = [unlike(shown, picture) for picture in truth.pictures if picture is not None]
        assert unlike(shown, own) <= min(others) + 0.5, "the picture is of another object"
    static.page.mouse.move(2, 2)
    expect(card).to_be_hidden()


def test_a_lasso_selects_what_is_inside(static: Visit, truth: Truth) -> None:
    centre, reach = region(static)
    outline, pixels = star(centre, reach), static.pixels()
    rows = static.draw("lasso", outline)
    assert 0 < len(rows) < len(truth.ids)
    shape = static.ask("() => manyscope.state.selection.shape")
    assert shape["kind"] == "lasso"
    assert rows == np.flatnonzero(inside(truth.places[:, :2], shape["points"])).tolist()
    drawn, clear = inside(pixels, outline), from_outline(pixels, outline) > NEAR_PX
    assert set(np.flatnonzero(drawn & clear)) <= set(rows) <= set(np.flatnonzero(drawn | ~clear))
    expect(static.page.locator("#count")).to_contain_text(f"{len(rows):,}")


def test_a_box_selects_what_is_inside(static: Visit, truth: Truth) -> None:
    (x, y), reach = region(static)
    corners, pixels = [(x + reach, y - reach), (x - reach, y + reach)], static.pixels()
    rows = static.draw("box", corners)
    assert 0 < len(rows) < len(truth.ids)
    shape = static.ask("() => manyscope.state.selection.shape")
    assert shape["kind"] == "box"
    assert rows == np.flatnonzero(within(truth.places[:, :2], shape["corners"])).tolist()
    drawn = within(pixels, corners)
    clear = (np.abs(pixels[:, None] - np.array(corners)).min(1) > NEAR_PX).all(1)
    assert set(np.flatnonzero(drawn & clear)) <= set(rows) <= set(np.flatnonzero(drawn | ~clear))


@ON_TWO
def test_a_selection_stays_while_the_map_is_zoomed_and_moved(static: Visit) -> None:
    centre, reach = region(static)
    rows, before = static.draw("lasso", star(centre, reach)), static.pixels()
    static.take("pan")
    box = static.page.locator("#map").bounding_box()
    assert box is not None
    place = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    with static.change_of("state.view"):
        static.page.locator("#zoom-in").click()
    static.until(
        "([row, x]) => { const at = manyscope.pixel(row); return !at || at.x !== x; }", [rows[0], before[rows[0], 0]]
    )
    closer = static.pixels()
    seen = ~np.isnan(closer[:, 0])
    assert np.ptp(closer[seen], 0).max() > 0
    assert not np.allclose(closer[seen], before[seen], atol=5)
    assert static.rows("selected") == rows
    with static.change_of("state.view"):
        static.point_at(place)
        static.page.mouse.wheel(0, -240)
    with static.change_of("state.view"):
        static.drag([place, (place[0] + 60, place[1] + 30)])
    assert static.rows("selected") == rows
    static.page.locator("#reset").click()
    static.until("() => manyscope.state.view === null")
    static.eventually(lambda: np.allclose(static.pixels(), before, atol=0.5))
    assert static.rows("selected") == rows


# ---- colours ----
def test_every_column_colours_the_map(static: Visit, truth: Truth) -> None:
    offered = static.page.locator("#colour option").evaluate_all("(options) => options.map((option) => option.value)")
    about = {column["name"]: column for column in static.columns}
    assert set(about) == truth.columns
    assert set(offered) == {"", *(name for name, column in about.items() if column["kind"] != "text")}
    legend = static.page.locator("#legend")
    for name in filter(None, offered):
        static.colour_by(name)
        values, column = truth.values(name), about[name]
        if column["kind"] == "category":
            counts = dict(values.cast(pl.String).drop_nulls().value_counts().iter_rows())
            assert dict(zip(column["levels"], column["counts"], strict=True)) == counts
            # The commonest levels have lines of their own, all of them if they are few.
            static.eventually(lambda: (found := levels_of(legend)) != [] and set(found) <= set(counts))  # noqa: B023
            shown = levels_of(legend)
            assert len(shown) == min(len(counts), COLOURS)
            others = [counts[level] for level in counts.keys() - set(shown)]
            assert max(others, default=0) <= min(counts[level] for level in shown)
        else:
            finite = values.cast(pl.Float64).drop_nulls().drop_nans()
            finite = finite.filter(finite.is_finite())
            ends = [float(end) for end in np.quantile(finite.to_numpy(), [0.01, 0.99])]
            assert [column["first"], column["last"]] == pytest.approx(ends, rel=1e-5, abs=1e-6)
            static.eventually(lambda: legend.locator("button[data-level]").count() == 0)
            expect(legend).not_to_be_empty()
    static.colour_by("")
    expect(legend.locator("button[data-level]")).to_have_count(0)


def levels_of(legend: Locator) -> list[str]:
    lines = legend.locator("button[data-level]:not([data-missing])")
    return lines.evaluate_all("(lines) => lines.map((line) => line.dataset.level)")


def test_points_have_the_colours_of_the_legend(static: Visit, truth: Truth) -> None:
    static.colour_by("split")
    static.page.locator("#opacity").fill("1")
    while apart(static.pixels())[alone(static)[0]] <= 5:  # a map may be so dense
        with static.change_of("state.view"):
            static.point_at(static.pixels()[alone(static)[0]])
            static.page.mouse.wheel(0, -300)
    static.page.mouse.move(2, 2)
    static.frames()
    pixels, values = static.pixels(), truth.values("split")
    swatches = {
        row["level"]: row["colours"]
        for row in static.page.locator("#legend button[data-level]").evaluate_all(
            """(rows) => rows.map((row) => ({
                 level: row.dataset.level,
                 colours: [row, ...row.querySelectorAll("*")].map((part) => getComputedStyle(part).backgroundColor),
               }))"""
        )
    }
    checked = set()
    for row in alone(static, 5):  # so that no other covers its middle
        if values[row] not in checked:
            checked.add(values[row])
            static.eventually(
                lambda row=row: f"rgb({', '.join(map(str, colour_at(static, pixels[row])))})" in swatches[values[row]]
            )
    assert checked


# ---- filters ----
def test_a_range_drawn_in_a_histogram_filters(static: Visit, truth: Truth) -> None:
    numbers = [column for column in static.columns if column["kind"] == "number" and column["distinct"]]
    for column in (numbers[0], numbers[-1]):
        name = column["name"]
        panel = static.filter_of(name)
        panel.locator("svg").scroll_into_view_if_needed()
        box = panel.locator("svg").bounding_box()
        assert box is not None
        y = box["y"] + box["height"] / 2
        with static.change_of("chosen.passing"):
            static.drag([(box["x"] + share * box["width"], y) for share in (0.3, 0.7)])
        drawn = static.ask("(name) => manyscope.state.filters[name]", name)
        axis = static.answer("histogram", name, None)
        shares = [(drawn[end] - axis["low"]) / (axis["high"] - axis["low"]) for end in ("low", "high")]
        assert shares == pytest.approx([0.3, 0.7], abs=0.03)
        values = truth.values(name).cast(pl.Float64).fill_null(np.nan).to_numpy()
        passing = static.rows("passing")
        assert passing == np.flatnonzero((values >= drawn["low"]) & (values <= drawn["high"])).tolist()
        inputs = panel.locator("input[type=number]")
        assert [float(inputs.nth(i).input_value()) for i in (0, 1)] == [drawn["low"], drawn["high"]]
        expect(static.page.locator("#count")).to_contain_text(f"{len(passing):,}")
        # The ends can be typed, too.
        with static.change_of("chosen.passing"):
            inputs.nth(0).fill(str(float(np.nanmedian(values))))
            inputs.nth(0).press("Enter")
        low = static.ask("(name) => manyscope.state.filters[name].low", name)
        assert low == float(np.nanmedian(values))
        expected = (values.astype(np.float32) >= low) & (values <= drawn["high"])
        assert static.rows("passing") == np.flatnonzero(expected).tolist()
        panel.locator("button.reset").click()
        static.until("() => manyscope.chosen.passing === null")


def test_ticked_levels_filter_and_the_other_histograms_follow(static: Visit, truth: Truth) -> None:
    panel, values = static.filter_of("split"), truth.values("split")
    with static.change_of("chosen.passing"):
        panel.get_by_role("checkbox", name="test").check()
    passing = np.flatnonzero(values == "test").tolist()
    assert static.rows("passing") == passing
    for column in static.columns:
        if column["kind"] == "category":
            found = static.answer("histogram", column["name"], passing)
            own = truth.values(column["name"]).cast(pl.String)
            assert found["all"] == [(own == level).sum() for level in column["levels"]]
            assert found["chosen"] == [(own[passing] == level).sum() for level in column["levels"]]
        if column["kind"] == "number" and column["distinct"]:
            found = static.answer("histogram", column["name"], passing)
            numbers = truth.values(column["name"]).cast(pl.Float64).fill_null(np.nan).to_numpy()
            assert sum(found["all"]) == np.sum(~np.isnan(numbers))
            assert sum(found["chosen"]) == np.sum(~np.isnan(numbers[passing]))


def test_ids_are_found_by_a_part(static: Visit, truth: Truth) -> None:
    wanted = truth.ids[len(truth.ids) // 2]
    for part in (wanted, wanted[-3:].upper()):
        static.find(part)
        expected = [row for row, name in enumerate(truth.ids) if part.lower() in name.lower()]
        assert static.rows("passing") == expected
        expect(static.page.locator("#rows tbody tr[data-row]")).to_have_count(min(len(expected), LISTED))
    static.find("no such object")
    assert static.rows("listed") == []
    expect(static.page.locator("#rows tbody tr[data-row]")).to_have_count(0)


# ---- the table ----
def test_what_is_selected_comes_out_as_it_is_in_the_tables(static: Visit, truth: Truth) -> None:
    centre, reach = region(static)
    rows = static.draw("lasso", star(centre, reach))
    raw = static.download(static.page.locator("#csv").click)
    table = pl.read_csv(io.BytesIO(raw), infer_schema=False)
    axes = [f"map_{axis}" for axis in "xyz"[: truth.places.shape[1]]]
    assert table.columns[: 1 + len(axes)] == ["object_id", *axes]
    assert set(table.columns[1 + len(axes) :]) == truth.columns
    ids = table["object_id"].to_list()
    assert sorted(ids) == sorted(truth.ids[row] for row in rows)
    order = [truth.ids.index(name) for name in ids]
    assert table.select(pl.col(axes).cast(pl.Float64)).to_numpy() == pytest.approx(
        truth.places[order], rel=SEVEN_DIGITS
    )
    for name in truth.columns:
        expected = truth.values(name)[order]
        if expected.dtype.is_numeric():
            numbers = table[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
            expected = expected.cast(pl.Float64).fill_null(np.nan)
            span = np.ptp([0, *truth.values(name).drop_nulls().cast(pl.Float64).drop_nans()])
            assert numbers == pytest.approx(expected.to_numpy(), rel=SEVEN_DIGITS, abs=SEVEN_DIGITS * span, nan_ok=True)
        else:
            assert table[name].fill_null("").to_list() == expected.cast(pl.String).fill_null("").to_list()
    assert static.download(static.page.locator("#ids").click).decode().splitlines() == ids


@ON_TWO
def test_a_column_sorts_the_table(static: Visit, truth: Truth) -> None:
    centre, reach = region(static)
    rows = static.draw("lasso", star(centre, reach))
    buttons = static.page.locator("#rows th button[data-sort]")
    for name in buttons.evaluate_all("(all) => all.map((one) => one.dataset.sort)"):
        values = truth.values(name)
        if not values.dtype.is_numeric():
            values = values.cast(pl.String)
        present = [row for row in rows if values[row] is not None and values[row] == values[row]]
        for descending in (False, True):
            with static.change_of("state.sort"):
                static.page.locator(f"#rows th button[data-sort={quoted(name)}]").click()
            assert static.ask("() => manyscope.state.sort") == {"name": name, "descending": descending}
            order = sorted(present, key=lambda row: values[row], reverse=descending)
            expected = (order + sorted(set(rows) - set(present)))[:LISTED]
            static.eventually(lambda: [values[row] for row in listed(static)] == [values[row] for row in expected])  # noqa: B023


def listed(visit: Visit) -> list[int]:
    """Rows in the table, from the first to the last."""
    lines = visit.page.locator("#rows tbody tr[data-row]")
    return lines.evaluate_all("(lines) => lines.map((line) => Number(line.dataset.row))")


# ---- neighbours ----
def test_a_click_shows_the_neighbours_that_search_finds(static: Visit, truth: Truth) -> None:
    rows = alone(static)
    k = static.about["neighbours"]
    for row in (rows[0], rows[-1]):
        static.click(static.pixels()[row])
        assert static.ask("() => manyscope.state.focus") == row
        panel = static.page.locator("#object")
        expect(panel.locator(".id").first).to_have_text(truth.ids[row])
        buttons = panel.locator(".strip button[data-id]")
        expect(buttons).to_have_count(k)
        found = truth.search("--id", truth.ids[row], "--neighbours", str(k))
        names = buttons.evaluate_all("(all) => all.map((one) => one.dataset.id)")
        far = [float(text) for text in buttons.locator(".far").all_inner_texts()]
        assert far == pytest.approx([distance for _, distance in found], rel=1e-2, abs=1e-4)
        exact = [one["distance"] for one in static.answer("neighbours", row)]
        assert exact == pytest.approx([distance for _, distance in found], rel=1e-3, abs=1e-4)
        assert same_but_for_ties(names, found)
    # A neighbour can be walked to.
    other = buttons.first
    name = other.get_attribute("data-id")
    other.click()
    expect(static.page.locator("#object .id").first).to_have_text(name or "")


def same_but_for_ties(names: list[str], found: list[tuple[str, float]]) -> bool:
    """Whether names are in the order of a search, in which objects as far as another may take its place, and those as
    far as the last may be others."""
    last = found[-1][1]
    clear = [name for name, distance in found if distance < last * (1 - 1e-3) - 1e-4]
    return set(clear) <= set(names) and len(set(names)) == len(found)


# ---- the link ----
@ON_TWO
def test_a_copied_link_opens_the_page_as_it_was(visit: Open, static: Visit, truth: Truth) -> None:
    page = static.page
    numbers = [column["name"] for column in static.columns if column["kind"] == "number" and column["distinct"]]
    static.colour_by(numbers[-1])
    page.locator("#size").select_option(numbers[0])
    page.locator("#opacity").fill("0.5")
    page.locator("#theme").select_option("dark")
    with static.change_of("chosen.passing"):
        static.filter_of("split").get_by_role("checkbox", name="train").check()
    centre, reach = region(static)
    static.draw("lasso", star(centre, reach))
    page.locator(f"#rows th button[data-sort={quoted('object_id')}]").click()
    static.click(static.pixels()[alone(static)[0]])
    with static.change_of("state.view"):
        page.locator("#zoom-in").click()
    static.until("() => manyscope.state.opacity === 0.5")
    state, rows, pixels = static.ask(SNAPSHOT), static.rows("listed"), static.pixels()
    assert rows
    page.locator("#link").click()
    expect(page.locator("#message")).to_contain_text("clipboard")
    address = static.ask("() => navigator.clipboard.readText()")
    own, _, fragment = address.partition("#")
    assert own == truth.paths.page.resolve().as_uri()
    other = visit(truth.paths.page, fragment=f"#{fragment}")
    other.until("() => manyscope.chosen.listed !== null")
    assert other.ask(SNAPSHOT) == state
    assert other.rows("listed") == rows
    other.eventually(lambda: np.allclose(other.pixels(), pixels, atol=1, equal_nan=True))
    assert listed(other) == listed(static)
    expect(other.page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(other.page.locator("#colour")).to_have_value(numbers[-1])
    expect(other.page.locator("#object .id").first).to_have_text(truth.ids[state["focus"]])


@pytest.mark.parametrize("fragment", ["#shape=1&focus=nobody&filters=[", "#view=%7B%7D&colour=x&version=y&__proto__=1"])
def test_a_broken_link_opens_the_page_and_says_so(visit: Open, truths: dict[str, Truth], fragment: str) -> None:
    page = visit(truths["scenes"].paths.page, fragment=fragment)
    expect(page.page.locator("#message")).to_contain_text("unknown")
    assert page.ask("() => manyscope.state.selection") is None
    assert not np.isnan(page.pixels()).any()


# ---- light and dark ----
@ON_ONE
def test_light_and_dark_follow_the_system_and_the_choice(visit: Open, truth: Truth) -> None:
    page = visit(truth.paths.page, color_scheme="dark")

    def brightness() -> float:
        return float(background(page.shot()).mean())

    page.eventually(lambda: brightness() < 80)
    page.page.locator("#theme").select_option("light")
    page.eventually(lambda: brightness() > 200)
    page.page.locator("#theme").select_option("auto")
    page.eventually(lambda: brightness() < 80)
    page.page.emulate_media(color_scheme="light")
    page.eventually(lambda: brightness() > 200)


# ---- the keyboard ----
@ON_TWO
def test_the_page_is_walked_with_the_keyboard(static: Visit, truth: Truth) -> None:
    page, keys = static.page, static.page.keyboard
    keys.press("/")
    expect(page.locator("#find")).to_be_focused()
    wanted = truth.ids[-1]
    with static.change_of("chosen.passing"):
        keys.type(wanted)
    lines = page.locator("#rows tbody tr[data-row]")
    expect(lines).to_have_count(sum(wanted in name for name in truth.ids))
    row = int(lines.first.get_attribute("data-row") or -1)
    lines.first.focus()
    keys.press("Enter")
    expect(page.locator("#object .id").first).to_have_text(truth.ids[row])
    strip = page.locator("#object .strip button[data-id]")
    strip.first.focus()
    keys.press("ArrowRight")
    expect(strip.nth(1)).to_be_focused()
    keys.press("ArrowLeft")
    expect(strip.first).to_be_focused()
    nearest = strip.first.get_attribute("data-id")
    keys.press("Enter")
    expect(page.locator("#object .id").first).to_have_text(nearest or "")
    keys.press("Escape")
    static.until("() => manyscope.state.focus === null")
    page.locator("h1").click()
    keys.press("?")
    expect(page.locator("#help")).to_be_visible()
    keys.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    centre, reach = region(static)
    with static.change_of("chosen.passing"):
        page.locator("#find").fill("")
    static.draw("lasso", star(centre, reach))
    keys.press("Escape")
    static.until("() => manyscope.chosen.selected === null")


@ON_ONE
def test_the_first_tab_stop_leads_to_the_map(static: Visit) -> None:
    skip = static.page.locator("#skip")
    assert not static.ask("() => document.elementFromPoint(30, 15)?.id === 'skip'"), "seen without the keyboard"
    static.page.keyboard.press("Tab")
    expect(skip).to_be_focused()
    assert static.ask("() => document.elementFromPoint(30, 15)?.id === 'skip'")
    static.page.keyboard.press("Enter")
    expect(static.page.locator("#map")).to_be_focused()
    with static.change_of("state.view"):
        static.page.keyboard.press("+")


@ON_ONE
def test_everything_is_within_reach_of_the_tab_key(static: Visit) -> None:
    wanted = {"colour", "size", "opacity", "find", "theme", "link", "map", "tool-lasso", "zoom-in"}
    for _ in range(200):
        static.page.keyboard.press("Tab")
        wanted.discard(static.ask("() => document.activeElement.id"))
        if not wanted:
            return
    pytest.fail(f"not reached: {wanted}")
