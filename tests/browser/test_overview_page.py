"""results/index.html: all experiments on one page, which leads to each one's own."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from manyscope.tables.metrics import read_metrics
from truth import Truth
from visit import Open
from workspace import Workspace


def test_the_overview_shows_every_experiment_and_leads_to_its_page(
    visit: Open, workspace: Workspace, truths: dict[str, Truth]
) -> None:
    overview = workspace.results / "index.html"
    page = visit(overview, wait=False)
    assert page.requests == [overview.resolve().as_uri()]
    text = page.page.locator("body").inner_text()
    for name, truth in truths.items():
        document, _ = read_metrics(truth.paths.metrics)
        assert name in text
        assert document["headline"] in text
        link = page.page.locator(f'a[href="{name}/explore/index.html"]').first
        expect(link).to_be_visible()
    previews = page.page.locator("img")
    assert previews.count() >= len(truths)
    for number in range(previews.count()):
        previews.nth(number).scroll_into_view_if_needed()
        page.until("(at) => document.images[at].complete && document.images[at].naturalWidth > 0", number)
    width = page.ask("() => document.documentElement.scrollWidth")
    assert width <= 1280, "the page is wider than the window"


def test_a_link_of_the_overview_opens_the_page(visit: Open, workspace: Workspace) -> None:
    page = visit(workspace.results / "index.html", wait=False)
    page.own = workspace.results.resolve().as_uri()
    page.page.locator('a[href="scenes/explore/index.html"]').first.click()
    page.until("() => window.manyscope?.source")
    assert page.about["experiment"] == "scenes"
    assert Path(page.page.url.removeprefix("file://")) == workspace.results.resolve() / "scenes/explore/index.html"
