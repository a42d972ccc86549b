"""What a served page shows and saves while answers are late, and after some have failed: never a mixture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from playwright.sync_api import Route, expect

from made import made_page, serving
from visit import Open, Visit

N = 600


class Answers:
    """Between a page and its server: keeps answers back, or replaces them by failures."""

    def __init__(self, visit: Visit) -> None:
        self._visit, self._held, self._fails = visit, dict[str, list[Route]](), set[str]()
        visit.page.route("**/api/**", self._pass)

    def _pass(self, route: Route) -> None:
        question = route.request.url.split("?")[0].split("/api/experiments/made_up/")[-1]
        if question in self._fails:
            route.fulfill(status=500, json={"detail": "it failed"})
        elif question in self._held:
            self._held[question].append(route)
        else:
            route.continue_()

    @contextmanager
    def late(self, question: str) -> Iterator[None]:
        """What is asked inside is answered only at the end."""
        self._held[question] = []
        yield
        for route in self._held.pop(question):
            route.continue_()

    @contextmanager
    def failing(self, question: str) -> Iterator[None]:
        self._fails.add(question)
        yield
        self._fails.remove(question)
        # The browser logs them too; anything else that it logs is still a fault.
        self._visit.problems[:] = [problem for problem in self._visit.problems if "500" not in problem]


@pytest.fixture
def served(visit: Open) -> Iterator[Visit]:
    with serving(
        made_page(N, columns={"place": np.arange(N), "constructor": np.arange(N) / 7}, pictures=False)
    ) as place:
        page = visit(place)
        yield page
        page.page.close()


@pytest.fixture
def answers(served: Visit) -> Answers:
    return Answers(served)


def change(visit: Visit, values: dict[str, object]) -> None:
    visit.ask("(values) => manyscope.change(values)", values)


def below(end: int) -> dict[str, object]:
    return {"filters": {"place": {"low": None, "high": end}}}


def saved(visit: Visit) -> list[str]:
    """Ids in the file that the button gives."""
    lines = visit.download(visit.page.locator("#csv").click).decode().splitlines()
    return [line.split(",")[0] for line in lines[1:]]


def test_a_new_choice_is_saved_only_when_its_order_is_known(served: Visit, answers: Answers) -> None:
    page = served.page
    change(served, {**below(499), "sort": {"name": "place", "descending": True}})
    expect(page.locator("tbody tr")).to_have_count(200)
    with answers.late("sorted"):
        change(served, below(2))
        expect(page.locator("#count")).to_contain_text("3 of")
        expect(page.locator("#csv")).to_be_disabled()
        expect(page.locator("#ids")).to_be_disabled()
        # What asks for further rows must not make the page forget that it waits for the order.
        served.ask(
            "() => { document.getElementById('listing').scrollTop = 1e6; document.getElementById('more').click(); }"
        )
        page.wait_for_timeout(300)
    expect(page.locator("tbody tr")).to_have_count(3)
    assert saved(served) == ["object-2", "object-1", "object-0"]


def test_an_order_that_fails_leaves_nothing_to_save(served: Visit, answers: Answers) -> None:
    page = served.page
    change(served, below(9))
    expect(page.locator("tbody tr")).to_have_count(10)
    with answers.failing("sorted"):
        change(served, {"sort": {"name": "place", "descending": True}})
        expect(page.locator("#message")).to_contain_text("it failed")
        expect(page.locator("tbody tr")).to_have_count(0)
        expect(page.locator("#csv")).to_be_disabled()
    change(served, {"sort": None})
    assert saved(served) == [f"object-{i}" for i in range(10)]


def test_filters_that_fail_are_not_shown_as_active(served: Visit, answers: Answers) -> None:
    page = served.page
    change(served, below(9))
    expect(page.locator("tbody tr")).to_have_count(10)
    with answers.failing("find"):
        page.locator("#find").fill("object-1")
        expect(page.locator("#message")).to_contain_text("it failed")
        expect(page.locator("#find")).to_have_value("")
    assert served.ask("() => JSON.stringify(manyscope.state.filters)") == '{"place":{"low":null,"high":9}}'
    assert saved(served) == [f"object-{i}" for i in range(10)]


def test_the_legend_is_of_the_colours_that_are_drawn(served: Visit, answers: Answers) -> None:
    title = served.page.locator("#legend h2").first
    served.colour_by("kind")
    expect(title).to_have_text("kind")
    with answers.late("points"):
        served.colour_by("flux")
        served.page.locator("#theme").select_option("dark")  # draws anew
        served.page.wait_for_timeout(300)
        expect(title).to_have_text("kind")
    expect(title).to_have_text("flux")
    with answers.failing("points"):
        served.page.locator("#colour").select_option("kind")
        expect(served.page.locator("#message")).to_contain_text("it failed")
        expect(served.page.locator("#colour")).to_have_value("flux")
    expect(title).to_have_text("flux")


def test_an_object_without_neighbours_is_shown(served: Visit, answers: Answers) -> None:
    panel = served.page.locator("#object")
    change(served, {"focus": 5})
    expect(panel.locator(".strip button")).to_have_count(3)
    with answers.failing("neighbours/77"):
        change(served, {"focus": 77})
        expect(panel.locator(".id")).to_have_text("object-77")
        expect(panel).to_contain_text("neighbours cannot be shown: it failed")
    expect(panel.locator("dl")).to_contain_text("77")
    with answers.failing("records"):
        change(served, {"focus": 78})
        expect(panel).to_contain_text("cannot be shown: it failed")
        expect(panel).not_to_contain_text("object-77")


def test_a_column_may_have_the_name_of_what_every_object_knows(served: Visit) -> None:
    panel = served.filter_of("constructor")
    expect(panel.locator(".used")).to_be_hidden()
    panel.locator("input[type=number]").first.fill("80")
    panel.locator("input[type=number]").first.press("Enter")
    expect(panel.locator(".used")).to_be_visible()
    expect(served.page.locator("#count")).to_contain_text(f"{N - 560} of")
