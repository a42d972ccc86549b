"""All experiments side by side: one table, for the terminal, for notebooks and as a page."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.metrics import Metric, read_metrics
from manyscope.tables.parquet import read_table, write_table
from manyscope.tables.whole import whole_file

SCHEMA: dict[str, type[pl.DataType]] = {
    "experiment": pl.String,
    "metric": pl.String,
    "group": pl.String,
    "unit": pl.String,
    "headline": pl.Boolean,
    "model": pl.Float64,
    "model_low": pl.Float64,
    "model_high": pl.Float64,
    "baseline": pl.String,
    "baseline_value": pl.Float64,
    "difference": pl.Float64,
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "ahead": pl.Boolean,
    "behind": pl.Boolean,
}
_HEADER = ("experiment", "metric", "model [95 %]", "baseline", "difference [95 %]")


def summary_table(documents: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """The metrics of all experiments, with the columns of `SCHEMA`: first every experiment's headline metric, then
    the rest, each in the order of the documents.

    `ahead` (`behind`): the 95 % interval of the difference lies wholly on the better (worse) side; null without a
    baseline.

    Args:
        documents: contents of metrics.json files.
    """
    rows = [
        _row(document["experiment"], document["headline"], Metric(**metric))
        for document in documents
        for metric in document["metrics"]
    ]
    table = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return table.sort("headline", descending=True, maintain_order=True)


def render_text(table: pl.DataFrame, colour: bool) -> str:
    """The table as aligned lines for a terminal; with colour, green marks rows ahead of their baseline, red behind."""
    lines = [_HEADER, *(_cells(row) for row in table.iter_rows(named=True))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    if colour:
        marks = [_COLOUR[_verdict(row)] for row in table.iter_rows(named=True)]
        texts = [f"\033[{m}m{t}\033[0m" if m else t for m, t in zip(["1", *marks], texts, strict=True)]
    texts.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(texts)


def render_html(table: pl.DataFrame) -> str:
    """The table as a page that stands alone and links to the page of each experiment."""
    body = []
    for row in table.iter_rows(named=True):
        experiment, *rest = _cells(row)
        link = f'<a href="{escape(quote(experiment))}/explore/index.html">{escape(experiment)}</a>'
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        classes = " ".join(filter(None, (_verdict(row), "headline" if row["headline"] else "")))
        body.append(f'<tr class="{classes}"><td>{link}</td>{cells}</tr>')
    header = "".join(f"<th>{escape(name)}</th>" for name in _HEADER)
    return _PAGE.format(header=header, body="\n".join(body))


def write_summary(results: Path, experiments: Sequence[str]) -> None:
    """Write results/summary.parquet and results/summary.html from the experiments' metrics.json.

    Raises:
        DataError: an experiment has not been evaluated, or its metrics are broken.
    """
    documents = [read_metrics(ExperimentPaths.of(results, name).metrics)[0] for name in experiments]
    table = summary_table(documents)
    write_table(results / "summary.parquet", table)
    with whole_file(results / "summary.html") as partial:
        partial.write_text(render_html(table), encoding="utf-8")


def print_summary(results: Path) -> None:
    """Print results/summary.parquet; in colour on a terminal.

    Raises:
        DataError: the summary has not been written.
    """
    print(render_text(read_table(results / "summary.parquet", SCHEMA), colour=sys.stdout.isatty()))


def _row(experiment: str, headline: str, m: Metric) -> tuple[Any, ...]:
    behind = None
    if m.ahead is not None and m.difference_low is not None and m.difference_high is not None:
        behind = m.difference_high < 0 if m.higher_is_better else m.difference_low > 0
    model = (m.value, m.low, m.high)
    difference = (m.difference, m.difference_low, m.difference_high)
    names = (experiment, m.name, m.group, m.unit, m.name == headline)
    return (*names, *model, m.baseline, m.baseline_value, *difference, m.ahead, behind)


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    metric = f"{row['metric']} {row['group']}".strip() + (f" ({row['unit']})" if row["unit"] else "")
    model = f"{row['model']:.4g} [{row['model_low']:.4g}, {row['model_high']:.4g}]"
    baseline = difference = ""
    if row["baseline_value"] is not None:
        baseline = f"{row['baseline']} {row['baseline_value']:.4g}"
    if row["difference_low"] is not None:
        difference = f"{row['difference']:+.4g} [{row['difference_low']:+.4g}, {row['difference_high']:+.4g}]"
    return row["experiment"], metric, model, baseline, difference


def _verdict(row: Mapping[str, Any]) -> str:
    return "ahead" if row["ahead"] else "behind" if row["behind"] else ""


_COLOUR = {"ahead": "32", "behind": "31", "": ""}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Manyscope: summary</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --good: #00734f; --bad: #b04a00; }}
@media (prefers-color-scheme: dark) {{ :root {{ --good: #4fd1a5; --bad: #ff9d5c; }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }}
main {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: right; white-space: nowrap; }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }}
.headline td {{ font-weight: 600; }}
.ahead td:last-child {{ color: var(--good); }}
.behind td:last-child {{ color: var(--bad); }}
</style>
</head>
<body>
<h1>Summary</h1>
<p>Every metric beside its baselines, headline metrics first. The difference is model minus baseline, with its 95 %
bootstrap interval; it is coloured where the interval does not contain zero.</p>
<main><table>
<thead><tr>{header}</tr></thead>
<tbody>
{body}
</tbody>
</table></main>
</body>
</html>
"""
