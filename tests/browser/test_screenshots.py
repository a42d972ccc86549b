"""Pictures of the pages in each of their states, for people: into the folder that MANYSCOPE_SCREENSHOTS names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from truth import Truth, star
from visit import Open, apart, quoted, region

pytestmark = pytest.mark.skipif(
    "MANYSCOPE_SCREENSHOTS" not in os.environ, reason="MANYSCOPE_SCREENSHOTS names no folder for pictures"
)
SCHEMES = ("light", "dark")


def folder() -> Path:
    made = Path(os.environ["MANYSCOPE_SCREENSHOTS"])
    made.mkdir(parents=True, exist_ok=True)
    return made


@pytest.mark.parametrize("scheme", SCHEMES)
def test_states_of_a_page(visit: Open, truth: Truth, scheme: str) -> None:
    page = visit(truth.paths.page, color_scheme=scheme)

    def keep(state: str) -> None:
        page.frames()
        page.page.screenshot(path=folder() / f"{truth.name}-{state}-{scheme}.png")

    keep("1-opened")
    pixels = page.pixels()
    row = int(apart(pixels).argmax())
    page.point_at(pixels[row])
    expect(page.page.locator("#card")).to_be_visible()
    page.eventually(lambda: page.picture(page.page.locator("#card"))[..., 3].any())
    keep("2-card")
    page.click(pixels[row])
    expect(page.page.locator("#object .strip button").first).to_be_visible()
    page.page.mouse.move(2, 2)
    keep("3-neighbours")
    numbers = [column["name"] for column in page.columns if column["kind"] == "number" and column["distinct"]]
    page.colour_by(numbers[-1])
    page.page.locator("#size").select_option(numbers[0])
    keep("4-number")
    page.colour_by("split")
    page.page.locator("#size").select_option("")
    page.draw("lasso", star(*region(page)))
    expect(page.page.locator("#rows tbody tr[data-row]").first).to_be_visible()
    keep("5-lasso")
    with page.change_of("state.sort"):
        page.page.locator(f"#rows th button[data-sort={quoted('object_id')}]").click()
    with page.change_of("chosen.passing"):
        page.filter_of("split").get_by_role("checkbox", name="test").check()
    keep("6-filtered")
    page.take("pan")
    x, y = np.nanmedian(page.pixels(), 0)
    for _ in range(3):
        with page.change_of("state.view"):
            page.page.mouse.move(x, y)
            page.page.mouse.wheel(0, -300)
    keep("7-zoomed")
    page.find("no such object")
    keep("8-nothing")
    page.page.locator("#help-open").click()
    keep("9-help")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_only_the_served_page_has(visit: Open, serve: Callable[..., str], truth: Truth, scheme: str) -> None:
    page = visit(serve(truth.name), color_scheme=scheme)
    page.page.locator("#tab-training").click()
    expect(page.page.locator("#panel-training table.metrics")).to_be_visible()
    page.page.screenshot(path=folder() / f"{truth.name}-served-training-{scheme}.png")
    page.page.locator(".figures").scroll_into_view_if_needed()
    page.until("() => [...document.querySelectorAll('.figures img')].some((image) => image.naturalWidth > 0)")
    page.page.screenshot(path=folder() / f"{truth.name}-served-figures-{scheme}.png")
    if truth.name == "panoramas":
        page.page.locator("#tab-map").click()
        page.page.locator("#query-text").fill(truth.values("question")[0])
        with page.change_of("chosen.selected"):
            page.page.locator("#query-text").press("Enter")
        expect(page.page.locator("#rows tbody tr[data-row]").first).to_be_visible()
        page.page.screenshot(path=folder() / f"{truth.name}-served-text-{scheme}.png")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_overview(visit: Open, truths: dict[str, Truth], scheme: str) -> None:
    page = visit(truths["cells"].workspace.results / "index.html", wait=False, color_scheme=scheme)
    page.page.screenshot(path=folder() / f"overview-{scheme}.png", full_page=True)
