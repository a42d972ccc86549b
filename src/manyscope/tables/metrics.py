"""evaluate/metrics.json: what a model reaches beside its baselines, each with an interval."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from manyscope.errors import DataError
from manyscope.tables.whole import read_json


@dataclass(frozen=True)
class Metric:
    """One metric of one group, against one baseline (null where none can exist); a row for each baseline.

    `higher_is_better` is null for a number that has a right value rather than a better side, such as a coverage.
    `low`/`high` and `difference_low`/`difference_high` bound 95 % bootstrap intervals; `difference` is model minus
    baseline, drawn on the same resamples.
    """

    name: str
    group: str
    unit: str
    n: int
    higher_is_better: bool | None
    value: float
    low: float
    high: float
    baseline: str | None = None
    baseline_value: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None

    def __post_init__(self) -> None:
        numbers = (self.value, self.low, self.high, self.baseline_value, self.difference)
        if not all(v is None or math.isfinite(v) for v in numbers):
            raise DataError(f"metric {self.name!r} of group {self.group!r} is not finite ({numbers})")

    @property
    def label(self) -> str:
        return f"{self.name} {self.group}".strip()

    @property
    def ahead(self) -> bool | None:
        """Whether the interval of the difference lies wholly on the better side; None without a baseline or a side."""
        if self.difference_low is None or self.difference_high is None:
            return None
        if self.higher_is_better is None:
            return None
        return self.difference_low > 0 if self.higher_is_better else self.difference_high < 0


def metrics_document(experiment: str, scope: str, headline: str, rows: list[Metric]) -> dict[str, Any]:
    """
    Raises:
        DataError: no row, or a headline that no row has.
    """
    if headline not in {row.name for row in rows}:
        raise DataError(f"headline metric {headline!r} is not among the metrics", place=experiment)
    return {"experiment": experiment, "scope": scope, "headline": headline, "metrics": [asdict(r) for r in rows]}


def read_metrics(path: Path) -> tuple[dict[str, Any], list[Metric]]:
    """
    Raises:
        DataError: missing or broken file.
    """
    document = read_json(path)
    try:
        return document, [Metric(**row) for row in document["metrics"]]
    except (TypeError, KeyError) as error:
        raise DataError(f"not a metrics file ({error})", place=path) from error


def metrics_table(rows: list[Metric]) -> pl.DataFrame:
    """The rows as a frame, one column for each field."""
    return pl.DataFrame([asdict(row) for row in rows], infer_schema_length=None)
