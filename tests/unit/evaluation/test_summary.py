"""The summary of all experiments: the table, the terminal, the page."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from manyscope.errors import DataError
from manyscope.evaluation.summary import Overview, print_summary, render_html, render_text, summary_table, write_summary
from manyscope.tables.metrics import Metric, metrics_document
from manyscope.tables.whole import write_json

BETTER = Metric("acc", "all", "", 9, True, 0.9, 0.8, 0.95, "prior", 0.5, 0.4, 0.3, 0.5)
UNSURE = Metric("acc", "rare", "", 9, True, 0.6, 0.3, 0.8, "prior", 0.5, 0.1, -0.1, 0.3)
ALONE = Metric("speed", "", "m/s", 9, True, 7.0, 6.0, 8.0)
LOWER = Metric("angle", "all", "deg", 9, False, 2.0, 1.0, 3.0, "fit", 5.0, -3.0, -4.0, -2.0)
WORSE = Metric("angle", "all", "deg", 9, False, 2.0, 1.0, 3.0, "oracle", 0.5, 1.5, 1.0, 2.0)


def documents() -> list[dict[str, Any]]:
    return [
        metrics_document("first", "one", "acc", [ALONE, BETTER, UNSURE]),
        metrics_document("second", "two", "angle", [LOWER, WORSE]),
    ]


def test_headline_rows_come_first_and_keep_their_order():
    table = summary_table(documents())
    assert table.select("experiment", "metric", "group", "baseline").rows() == [
        ("first", "acc", "all", "prior"),
        ("first", "acc", "rare", "prior"),
        ("second", "angle", "all", "fit"),
        ("second", "angle", "all", "oracle"),
        ("first", "speed", "", None),
    ]
    assert table["ahead"].to_list() == [True, False, True, False, None]
    assert table["behind"].to_list() == [False, False, False, True, None]
    assert table["difference"].to_list() == [0.4, 0.1, -3.0, 1.5, None]


def test_no_experiment_gives_an_empty_table_that_still_renders():
    table = summary_table([])
    assert table.is_empty()
    assert len(render_text(table, colour=False).splitlines()) == 2


def test_text_is_aligned_and_colour_only_adds_escapes():
    table = summary_table(documents())
    header, rule, *lines = render_text(table, colour=False).splitlines()
    assert len(rule) == max(map(len, [header, *lines]))
    for column in ("model [95 %]", "baseline", "difference [95 %]"):
        start = header.index(column)
        assert all(line[start - 2 : start].strip() == "" for line in lines)
        assert all(line[start] != " " for line in lines if len(line) > start)
    assert "+0.4 [+0.3, +0.5]" in lines[0]
    assert "speed (m/s)" in lines[-1]
    coloured = render_text(table, colour=True).splitlines()
    assert coloured[2] == f"\033[32m{lines[0]}\033[0m"
    assert coloured[3] == lines[1]
    assert coloured[5] == f"\033[31m{lines[3]}\033[0m"


class Html(HTMLParser):
    """The texts, the tags that occur, where links lead, what pictures show, and the classes of texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.texts: list[str] = []
        self.classes: dict[str, str] = {}
        self._class = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._class = dict(attrs).get("class") or ""
        self.links += [value or "" for name, value in attrs if name == "href"]
        self.pictures += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        self.classes[data] = self._class


def overviews(**changes: str) -> list[Overview]:
    return [Overview("first", "one", **changes), Overview("second", "two")]


def test_a_card_says_what_is_reached_beside_each_baseline():
    page = Html(render_html(summary_table(documents()), overviews(title="A title")))
    assert page.tags.count("article") == 2
    assert {"A title", "first · one", "second", "second · two"} <= set(page.texts)
    cards = [text for text, name in page.classes.items() if name in ("ahead", "behind", "metric") and " " in text]
    assert cards == [
        "acc all ",
        "ahead of prior 0.5: +0.4 [+0.3, +0.5]",
        "angle all (deg) ",
        "ahead of fit 5: -3 [-4, -2]",
        "behind oracle 0.5: +1.5 [+1, +2]",
    ]
    assert "0.9" in page.texts  # the headline's first group, without its other groups
    assert not any("0.6" in text and "level" in text for text in page.texts)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (UNSURE, "level with prior 0.5: +0.1 [-0.1, +0.3]"),
        (ALONE, "no baseline"),
        (
            Metric("cover", "", "", 9, None, 0.9, 0.8, 1.0, "exact", 0.68, 0.2, 0.1, 0.3),
            "beside exact 0.68: +0.2 [+0.1, +0.3]",
        ),
    ],
)
def test_without_a_clear_side_no_verdict_is_coloured(metric: Metric, words: str):
    page = Html(render_html(summary_table([metrics_document("first", "s", metric.name, [metric])]), overviews()[:1]))
    assert page.classes[words] == ""


def test_page_escapes_everything_and_loads_nothing():
    evil = Metric("<script>alert(1)</script>", '"&', "<b>", 9, True, 1.0, 0.0, 2.0, "<img src=x>", 0.5, 0.5, 0.1, 0.9)
    table = summary_table([metrics_document('a "b', "<i>", evil.name, [evil])])
    plain = Html(render_html(table, [Overview('a "b', "s", "title", "", "wandb", "7")]))
    text = render_html(table, [Overview('a "b', "<i>", "<script>x</script>", 'data:,"><script>', "<u>", "<script>")])
    page = Html(text)
    assert [tag for tag in page.tags if tag != "img"] == plain.tags
    assert page.pictures == ['data:,"><script>']
    assert {link for link in page.links if link != "report.html"} == {"a%20%22b/explore/index.html"}
    assert {'<script>alert(1)</script> "& (<b>)', "<script>x</script>", 'a "b · <i>', "<script>"} <= set(page.texts)
    assert "ahead of <img src=x> 0.5: +0.5 [+0.1, +0.9]" in page.texts
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:;" in text
    assert "<script" not in text


@pytest.mark.parametrize(
    ("tracking", "link"),
    [
        ("http://host:5000/", "http://host:5000/#/runs/ab%2Fc"),
        ("https://me:secret@host/mlflow", "https://host/mlflow/#/runs/ab%2Fc"),
    ],
)
def test_a_run_on_a_server_is_a_link_without_passwords(tracking: str, link: str):
    text = render_html(summary_table(documents()), overviews(tracker="mlflow", run_id="ab/c"), tracking)
    assert link in Html(text).links
    assert "secret" not in text


@pytest.mark.parametrize(
    ("tracker", "tracking", "words"),
    [
        ("mlflow", "", ["MLflow run ", "abc", " in ", "mlflow.db"]),
        ("mlflow", "postgresql://me:secret@host/db", ["MLflow run ", "abc", " in ", "postgresql://host/db"]),
        ("mlflow", "javascript:alert(1)", ["MLflow run ", "abc", " in ", "javascript:alert(1)"]),
        ("wandb", "http://host:5000", ["wandb run ", "abc"]),
    ],
)
def test_another_run_is_told_in_words(tracker: str, tracking: str, words: list[str]):
    text = render_html(summary_table(documents()), overviews(tracker=tracker, run_id="abc"), tracking)
    page = Html(text)
    assert "".join(words) in "".join(page.texts)
    assert not any("abc" in link or "javascript" in link for link in page.links)
    assert "secret" not in text


def test_no_experiment_gives_a_page_without_cards():
    assert "article" not in Html(render_html(summary_table([]), [])).tags


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for document in documents():
        write_json(tmp_path / document["experiment"] / "evaluate" / "metrics.json", document)
    return tmp_path


def test_summary_is_written_whole_printed_and_needs_every_experiment(results: Path, capsys: pytest.CaptureFixture[str]):
    write_summary(results, ["first", "second"])
    assert pl.read_parquet(results / "summary.parquet").equals(summary_table(documents()))
    page = Html((results / "index.html").read_text())
    assert set(page.links) == {"report.html", "first/explore/index.html", "second/explore/index.html"}
    assert "report (written here by manyscope run, at its end)" in "".join(page.texts)  # it is not there yet
    assert page.pictures == []
    print_summary(results)
    assert capsys.readouterr().out == render_text(summary_table(documents()), colour=False) + "\n"
    with pytest.raises(DataError, match=r"third.*missing"):
        write_summary(results, ["first", "third"])


def test_the_page_holds_the_map_small_and_names_the_run(results: Path):
    (results / "first/umap").mkdir()
    picture = Image.new("RGB", (1000, 500), "white")
    picture.paste((0, 114, 178), (0, 0, 500, 500))
    picture.save(results / "first/umap/map.png")
    write_json(results / "first/train/run.json", {"tracker": "mlflow", "tracker_run_id": "abc"})
    write_json(results / "second/train/run.json", {"tracker": "none", "tracker_run_id": None})
    write_summary(results, ["first", "second"], {"first": "A title"})
    first = (results / "index.html").read_bytes()
    page = Html(first.decode())
    assert "A title" in page.texts
    assert "".join(page.texts).count("MLflow run abc in mlflow.db") == 1
    assert "none" not in page.texts
    (address,) = page.pictures
    with Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/webp;base64,")))) as shown:
        assert shown.size == (400, 200)
        assert shown.getpixel((20, 20))[2] > 150 > shown.getpixel((20, 20))[0]
    write_summary(results, ["first", "second"], {"first": "A title"})
    assert (results / "index.html").read_bytes() == first


def test_a_broken_picture_is_named(results: Path):
    (results / "first/umap").mkdir()
    (results / "first/umap/map.png").write_text("no picture")
    with pytest.raises(DataError, match=r"map\.png.*run the stage umap again"):
        write_summary(results, ["first"])
