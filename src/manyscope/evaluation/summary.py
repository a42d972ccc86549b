"""All experiments side by side: one table, for the terminal, for notebooks and as a page."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import polars as pl

from manyscope.errors import DataError
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.metrics import Metric, read_metrics
from manyscope.tables.parquet import read_table, write_table
from manyscope.tables.whole import read_json, whole_file

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
_PREVIEW_PX = (400, 320)  # at most: a third of a page, on screens of two pixels for each
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


@dataclass(frozen=True)
class Overview:
    """What the page says of one experiment beside its metrics.

    Attributes:
        title: the name is shown if it is empty.
        preview: a picture of the map as a data address; empty without one.
        tracker, run_id: what followed the training, and its run there; empty without one.
    """

    experiment: str
    scope: str
    title: str = ""
    preview: str = ""
    tracker: str = ""
    run_id: str = ""


def render_html(table: pl.DataFrame, overviews: Sequence[Overview], tracking: str = "") -> str:
    """The page: a card for each experiment, then the table. It stands alone but for its links, to the experiments'
    pages and the report beside it and to the tracking server.

    Args:
        tracking: address of the MLflow server or store; empty for the file beside the page. Names and passwords in it
            are not shown.
    """
    cards = "\n".join(_card(table, overview, tracking) for overview in overviews)
    body = []
    for row in table.iter_rows(named=True):
        experiment, *rest = _cells(row)
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        classes = " ".join(filter(None, (_verdict(row), "headline" if row["headline"] else "")))
        body.append(
            f'<tr class="{classes}"><td><a href="{_page(experiment)}">{escape(experiment)}</a></td>{cells}</tr>'
        )
    header = "".join(f"<th>{escape(name)}</th>" for name in _HEADER)
    return _PAGE.format(cards=cards, header=header, body="\n".join(body))


def write_summary(results: Path, experiments: Sequence[str], titles: Mapping[str, str] | None = None) -> None:
    """Write results/summary.parquet and results/index.html from the experiments' metrics.json, map.png and run.json;
    of the last two those that there are.

    Raises:
        DataError: an experiment has not been evaluated, or one of its files is broken.
    """
    paths = [ExperimentPaths.of(results, name) for name in experiments]
    documents = [read_metrics(one.metrics)[0] for one in paths]
    table = summary_table(documents)
    overviews = [
        _overview(one, document["scope"], (titles or {}).get(one.experiment, ""))
        for one, document in zip(paths, documents, strict=True)
    ]
    write_table(results / "summary.parquet", table)
    with whole_file(results / "index.html") as partial:
        partial.write_text(
            render_html(table, overviews, os.environ.get("MLFLOW_TRACKING_URI", "")), encoding="utf-8", newline="\n"
        )


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


def _overview(paths: ExperimentPaths, scope: str, title: str) -> Overview:
    run = read_json(paths.run) if paths.run.exists() else {}
    preview = _preview(paths.map_figure) if paths.map_figure.exists() else ""
    return Overview(
        paths.experiment, scope, title, preview, str(run.get("tracker") or ""), str(run.get("tracker_run_id") or "")
    )


def _preview(figure: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(figure) as image:
            small = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"not a picture ({error})", place=figure, remedy="run the stage umap again") from error
    small.thumbnail(_PREVIEW_PX, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80, method=6)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _page(experiment: str) -> str:
    return escape(f"{quote(experiment)}/explore/index.html")


def _card(table: pl.DataFrame, overview: Overview, tracking: str) -> str:
    name, page = overview.experiment, _page(overview.experiment)
    rows = table.filter((pl.col("experiment") == name) & pl.col("headline")).rows(named=True)
    rows = [row for row in rows if row["group"] == rows[0]["group"]]  # one for each baseline
    _, metric, model, *_ = _cells(rows[0])
    value, _, interval = model.partition(" ")
    picture = f'<img src="{escape(overview.preview)}" alt="">' if overview.preview else ""
    judged = "".join(f'<li class="{_verdict(row)}">{escape(_judged(row))}</li>' for row in rows)
    links = [f'<a href="{page}">page</a>', _run(overview, tracking)]
    return (
        f'<article>\n<a class="map" href="{page}">{picture}</a>\n'
        f'<h2><a href="{page}">{escape(overview.title or name)}</a></h2>\n'
        f'<p class="names">{escape(name)} · {escape(overview.scope)}</p>\n'
        f'<p class="metric">{escape(metric)} <strong>{escape(value)}</strong> {escape(interval)}</p>\n'
        f"<ul>{judged}</ul>\n<p>{' · '.join(filter(None, links))}</p>\n</article>"
    )


def _judged(row: Mapping[str, Any]) -> str:
    *_, baseline, difference = _cells(row)
    if not baseline:
        return "no baseline"
    words = {"ahead": "ahead of", "behind": "behind"}.get(
        _verdict(row), "beside" if row["ahead"] is None else "level with"
    )
    return f"{words} {baseline}" + (f": {difference}" if difference else "")


def _run(overview: Overview, tracking: str) -> str:
    """The run at its tracker: a link where that has an address on the web, else in words."""
    if not overview.run_id:
        return ""
    run = f"run <code>{escape(overview.run_id)}</code>"
    if overview.tracker != "mlflow":
        return f"{escape(overview.tracker)} {run}"
    address = urlsplit(tracking)
    address = address._replace(netloc=address.netloc.rpartition("@")[2])
    if address.scheme in ("http", "https"):
        link = f"{urlunsplit(address).rstrip('/')}/#/runs/{quote(overview.run_id, safe='')}"
        return f'<a href="{escape(link)}">MLflow run</a>'
    return f"MLflow {run} in <code>{escape(urlunsplit(address) or 'mlflow.db')}</code>"


_COLOUR = {"ahead": "32", "behind": "31", "": ""}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'">
<title>Manyscope: all experiments</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --quiet: #666; --good: #00734f; --bad: #b04a00; --card: #8881; }}
@media (prefers-color-scheme: dark) {{ :root {{ --quiet: #aaa; --good: #4fd1a5; --bad: #ff9d5c; }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }}
h1, h2, p, ul {{ margin: 0 0 .5rem; }}
h2 {{ font-size: 1.05rem; }}
.cards {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); margin: 1.5rem 0; }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow-wrap: anywhere;
 padding: .8rem; }}
.map {{ display: block; margin-bottom: .6rem; }}
.map img {{ background: #fff; border-radius: 4px; display: block; height: 15rem; object-fit: contain; width: 100%; }}
.names, code {{ color: var(--quiet); font-size: .85rem; }}
.metric strong {{ font-size: 1.35rem; }}
ul {{ font-size: .9rem; list-style: none; padding: 0; }}
main {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: right; white-space: nowrap; }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }}
.headline td {{ font-weight: 600; }}
li.ahead, .ahead td:last-child {{ color: var(--good); }}
li.behind, .behind td:last-child {{ color: var(--bad); }}
</style>
</head>
<body>
<h1>All experiments</h1>
<p>Each with its headline metric, its 95 % bootstrap interval, and what it is judged beside: ahead or behind where the
interval of the difference does not contain zero, else level. All figures are in the
<a href="report.html">report (written here by <code>manyscope run</code>, at its end)</a>.</p>
<section class="cards">
{cards}
</section>
<h2>Every metric</h2>
<p>Headline metrics first. The difference is model minus baseline; it is coloured where its interval does not contain
zero.</p>
<main><table>
<thead><tr>{header}</tr></thead>
<tbody>
{body}
</tbody>
</table></main>
</body>
</html>
"""
