"""The summary of all experiments: the table, the terminal, the page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from manyscope.errors import DataError
from manyscope.evaluation.summary import print_summary, render_html, render_text, summary_table, write_summary
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


class Cells(HTMLParser):
    """The texts of the table's cells, the tags that occur, and where links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_page_escapes_everything_and_links_to_each_experiment():
    evil = Metric("<script>alert(1)</script>", '"&', "<b>", 9, True, 1.0, 0.0, 2.0, "<img src=x>", 0.5, 0.5, 0.1, 0.9)
    page = Cells(render_html(summary_table([metrics_document("a b", "s", evil.name, [evil])])))
    assert not page.tags & {"script", "img", "b"}
    assert page.links == ["a%20b/explore/index.html"]
    assert '<script>alert(1)</script> "& (<b>)' in page.texts
    assert "<img src=x> 0.5" in page.texts


def test_summary_is_written_whole_printed_and_needs_every_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for document in documents():
        write_json(tmp_path / document["experiment"] / "evaluate" / "metrics.json", document)
    write_summary(tmp_path, ["first", "second"])
    assert pl.read_parquet(tmp_path / "summary.parquet").equals(summary_table(documents()))
    page = Cells((tmp_path / "summary.html").read_text())
    assert set(page.links) == {"first/explore/index.html", "second/explore/index.html"}
    print_summary(tmp_path)
    assert capsys.readouterr().out == render_text(summary_table(documents()), colour=False) + "\n"
    with pytest.raises(DataError, match=r"third.*missing"):
        write_summary(tmp_path, ["first", "third"])
