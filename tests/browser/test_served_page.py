"""The page that `manyscope explore` serves: the same answers as the page in a file, and what only a server can do."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from playwright.sync_api import expect

from manyscope.scopes.scenes.files import layer_file
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.metrics import read_metrics
from truth import Truth, inside, star, unlike
from visit import Open, Visit, apart, region
from workspace import Workspace

SCOPES = ("cells", "galaxies", "neutrinos", "panoramas", "scenes")
QUESTIONS = (Path(__file__).parent / "questions.js").read_text()


@pytest.fixture(scope="session")
def address(serve: Callable[..., str]) -> str:
    return serve(*SCOPES)


@pytest.fixture
def served(visit: Open, address: str, truth: Truth) -> Visit:
    """The served page, at one scope's experiment."""
    return chosen(visit(address), truth.name)


def chosen(page: Visit, experiment: str) -> Visit:
    menu = page.page.locator("#experiments")
    if page.about["experiment"] != experiment:
        menu.select_option(experiment)
        page.until("(name) => window.manyscope?.source?.about.experiment === name", experiment)
        page.ask("() => manyscope.ready.then(() => null)")
    return page


def test_both_pages_answer_alike(visit: Open, served: Visit, truth: Truth) -> None:
    static = visit(truth.paths.page)
    ours, others = static.ask(QUESTIONS), served.ask(QUESTIONS)
    assert list(islice(differences(ours, others), 5)) == []


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Places at which two values of JSON differ, with what is there."""
    if type(one) is type(other) and isinstance(one, dict) and one.keys() == other.keys():
        for key in one:
            yield from differences(one[key], other[key], f"{place}.{key}")
    elif type(one) is type(other) and isinstance(one, list) and len(one) == len(other):
        for number, both in enumerate(zip(one, other, strict=True)):
            yield from differences(*both, f"{place}[{number}]")
    elif one != other:
        yield f"{place}: {str(one)[:400]} in the file, {str(other)[:400]} served"


def test_the_experiments_are_in_one_menu(visit: Open, address: str, truths: dict[str, Truth]) -> None:
    page = visit(address)
    menu = page.page.locator("#experiments")
    expect(menu).to_be_visible()
    assert menu.locator("option").all_inner_texts() == list(SCOPES)
    for name in ("scenes", "galaxies"):
        chosen(page, name)
        assert page.about["objects"] == len(truths[name].ids)
        expect(page.page.locator("h1")).to_have_text(page.about["title"])


def test_hover_click_and_lasso_on_the_served_map(served: Visit, truth: Truth) -> None:
    pixels = served.pixels()
    gaps = apart(pixels)
    row = int(gaps.argmax())
    assert gaps[row] > 1
    served.point_at(pixels[row])
    card = served.page.locator("#card")
    expect(card.locator(".id")).to_have_text(truth.ids[row])
    own = truth.pictures[row]
    assert own is not None
    assert unlike(served.picture(card), own) < 8
    served.click(pixels[row])
    strip = served.page.locator("#object .strip button[data-id]")
    k = served.about["neighbours"]
    expect(strip).to_have_count(k)
    names = strip.evaluate_all("(all) => all.map((one) => one.dataset.id)")
    found = truth.search("--id", truth.ids[row], "--neighbours", str(k))
    assert names == [name for name, _ in found]
    exact = [one["distance"] for one in served.answer("neighbours", row)]
    assert exact == pytest.approx([distance for _, distance in found], rel=1e-4, abs=1e-5)
    place, reach = region(served)
    rows = served.draw("lasso", star(place, reach))
    shape = served.ask("() => manyscope.state.selection.shape")
    assert rows == np.flatnonzero(inside(truth.places[:, :2], shape["points"])).tolist()
    assert 0 < len(rows) < len(truth.ids)


# ---- search ----
def shown_order(page: Visit) -> list[str]:
    lines = page.page.locator("#rows tbody tr[data-row]")
    expect(lines.first).to_be_visible()
    rows = lines.evaluate_all("(lines) => lines.map((line) => Number(line.dataset.row))")
    return [record["id"] for record in page.answer("records", rows, [])]


def test_a_text_is_searched(visit: Open, address: str, truths: dict[str, Truth]) -> None:
    truth = truths["panoramas"]
    page = chosen(visit(address), "panoramas")
    question = truth.values("question")[7]
    page.page.locator("#query-text").fill(question)
    with page.change_of("chosen.selected"):
        page.page.locator("#query-text").press("Enter")
    names = shown_order(page)
    found = dict(truth.search("--text", question, "--neighbours", str(len(names))))
    assert sorted(found.values()) == pytest.approx([found[name] for name in names], rel=1e-4, abs=1e-5)


def query(truth: Truth, folder: Path) -> Path:
    """An image that a user of the scope may have."""
    if truth.name == "galaxies":
        stamp = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(stamp).save(folder / "query.png")
        return folder / "query.png"
    return {
        "cells": truth.paths.raw / "images" / "cells-0001.tif",
        "panoramas": truth.paths.raw / "pictures" / "room-test-00003.png",
        "scenes": layer_file(truth.paths.files, "object-1", "frame-00004"),
    }[truth.name]


@pytest.mark.parametrize("scope", ["cells", "galaxies", "panoramas", "scenes"])
def test_an_image_is_searched(visit: Open, address: str, truths: dict[str, Truth], scope: str, tmp_path: Path) -> None:
    truth = truths[scope]
    image = query(truth, tmp_path)
    page = chosen(visit(address), scope)
    with page.change_of("chosen.selected"):
        page.page.locator("#query-image").set_input_files(image)
    names = shown_order(page)
    found = dict(truth.search("--image", str(image), "--neighbours", str(len(names))))
    assert sorted(found.values()) == pytest.approx([found[name] for name in names], rel=1e-4, abs=1e-5)


def test_only_what_a_scope_can_search_is_offered(served: Visit, truth: Truth) -> None:
    text, image = served.page.locator("#query-form"), served.page.locator("#query-image-label")
    assert text.is_visible() is (truth.name == "panoramas")
    assert image.is_visible() is (truth.name != "neutrinos")


def test_a_file_that_is_no_image_is_refused_with_a_sentence(visit: Open, address: str, tmp_path: Path) -> None:
    page = chosen(visit(address), "scenes")
    (tmp_path / "no.png").write_text("no image")
    page.page.locator("#query-image").set_input_files(tmp_path / "no.png")
    expect(page.page.locator("#message")).to_contain_text("did not work")
    assert page.rows("selected") is None
    page.problems = [problem for problem in page.problems if "status of 4" not in problem]


# ---- what evaluate and train found ----
def test_metrics_curves_and_figures(served: Visit, truth: Truth) -> None:
    page = served.page
    page.locator("#tab-training").click()
    panel = page.locator("#panel-training")
    expect(panel).to_be_visible()
    document, rows = read_metrics(truth.paths.metrics)
    expect(panel.locator("table.metrics tbody tr")).to_have_count(len(rows))
    expect(panel.locator("table.metrics tr.headline").first).to_contain_text(document["headline"])
    text = panel.locator("table.metrics").inner_text()
    assert all(row.name in text and (row.baseline or "") in text for row in rows)
    curves = pl.read_parquet(truth.paths.history)["name"].unique()
    assert 0 < panel.locator(".chart").count() <= len(curves)
    served.eventually(lambda: panel.locator(".chart svg.main-svg .trace").count() >= panel.locator(".chart").count())
    captions = json.loads((truth.paths.figures / "captions.json").read_text())
    figures = panel.locator(".figures img")
    expect(figures).to_have_count(len(list(truth.paths.figures.glob("*.png"))))
    for number in range(figures.count()):
        figures.nth(number).scroll_into_view_if_needed()
        served.until("(at) => document.querySelectorAll('.figures img')[at].naturalWidth > 0", number)
    shown = " ".join(panel.locator("figcaption").all_inner_texts())
    assert all(caption in shown for caption in captions.values())
    page.locator("#tab-map").click()
    expect(page.locator("#map")).to_be_visible()


# ---- what must not go wrong ----
def test_an_experiment_that_ran_again_is_said(
    visit: Open, serve: Callable[..., str], workspace: Workspace, tmp_path: Path
) -> None:
    """The page has rows of tables that are not there any more: it says so, and shows no other object's values."""
    copied = ExperimentPaths.of(tmp_path / "results", "scenes")
    shutil.copytree(ExperimentPaths.of(workspace.results, "scenes").root, copied.root, symlinks=True)
    page = visit(serve("scenes", "--results", str(copied.root.parent)))
    assert page.about["objects"] == 36
    table = pl.read_parquet(copied.map)
    table.with_columns(x=-pl.col("x")).write_parquet(copied.map)
    page.page.locator("#find").fill("background")
    expect(page.page.locator("#message")).to_contain_text("reload")
    page.problems = [problem for problem in page.problems if "status of 4" not in problem]


def test_nothing_is_told_without_the_token(visit: Open, address: str) -> None:
    base = address.split("?")[0].split("#")[0]
    wrong = address.replace(address[-6:], "abcdef")
    assert wrong != address
    for place in (base, wrong):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(place)
        assert refused.value.code in (401, 403, 404)
        text = refused.value.read().decode()
        assert not any(scope in text for scope in SCOPES)
    page = visit(wrong, wait=False)
    assert not any(scope in page.page.content() for scope in SCOPES)
    page.problems.clear()
