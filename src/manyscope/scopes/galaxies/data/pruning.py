"""Objects that are left out, and why: reported, and an error if they are many."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from manyscope.errors import DataError
from manyscope.log import logger
from manyscope.tables.whole import whole_file

PRUNED = "pruned.csv"
_SCHEMA: dict[str, type[pl.DataType]] = {"object_id": pl.String, "reason": pl.String, "detail": pl.String}
_WARN_ABOVE = 0.01


def pruned_table(rows: Iterable[tuple[str, str, str]]) -> pl.DataFrame:
    """Rows of object_id, reason (one of few, so that they can be counted) and detail."""
    return pl.DataFrame(list(rows), schema=_SCHEMA, orient="row")


def check_pruned(pruned: pl.DataFrame, objects: int, largest: float, place: Path) -> None:
    """
    Args:
        objects: how many there were before.
        largest: share of them that may be left out, `preprocess.pruned_max`.

    Raises:
        DataError: more were left out.
    """
    if len(pruned) > largest * objects:
        raise DataError(
            f"{len(pruned)} of {objects} objects cannot be used: {_counts(pruned)}; "
            f"for example {pruned['object_id'][0]!r} ({' '.join(filter(None, pruned.row(0)[1:]))})",
            place=place,
            remedy="mend the data, or raise preprocess.pruned_max",
        )


def report_pruned(pruned: pl.DataFrame, objects: int, prepared: Path) -> None:
    """Write `pruned.csv`, also if nothing was left out, and warn where it is more than one per cent."""
    with whole_file(prepared / PRUNED) as partial:
        pruned.sort("object_id", maintain_order=True).write_csv(partial)
    if not pruned.is_empty():
        say = logger.warning if len(pruned) > _WARN_ABOVE * objects else logger.info
        say("left out %d of %d objects (%s), see %s", len(pruned), objects, _counts(pruned), PRUNED)


def _counts(pruned: pl.DataFrame) -> str:
    counts = pruned.group_by("reason").len().sort("len", "reason", descending=[True, False])
    return ", ".join(f"{count} {reason}" for reason, count in counts.iter_rows())
