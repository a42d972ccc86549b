"""`manyscope annotate`: join columns to the objects after the training, for colours, filters and searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from manyscope.data.tables import id_texts, read_any_table, say_left_out
from manyscope.errors import DataError, ManyscopeError, did_you_mean
from manyscope.settings.loading import results_folder
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.annotations import (
    annotation_files,
    annotation_path,
    read_annotation,
    source_of,
    write_annotation,
)
from manyscope.tables.parquet import read_column

_SHOWN = 8


def annotate(
    experiment: str, file: Path | None, id_column: str | None, key: str, name: str | None,
    columns: Sequence[str], named: str | None, remove: str | None, listed: bool, results: Path | None,
    config_file: Path,
) -> str:  # fmt: skip
    """Add, remove or list annotations; the arguments are those of the command line.

    Returns:
        what was done, for the user.

    Raises:
        ManyscopeError: not exactly one of `file`, `remove` and `listed` is given.
        DataError: see `add` and `remove_annotation`.
    """
    paths = ExperimentPaths.of(results or results_folder(config_file), experiment)
    if sum((file is not None, remove is not None, listed)) != 1:
        raise ManyscopeError("nothing to do, or too much", allowed="exactly one of FILE, --remove NAME, --list")
    if listed:
        return "\n".join(_described(path) for path in annotation_files(paths.annotations)) or "no annotations"
    if remove is not None:
        remove_annotation(paths, remove)
        return f"removed {remove}; {_next(experiment)}"
    assert file is not None
    id_column = id_column or key
    table = read_any_table(file, named, id_column, "--format")
    name = name or file.name.partition(".")[0]
    return f"{add(paths, table, name, id_column, key, columns, file)}; {_next(experiment)}"


def add(
    paths: ExperimentPaths, table: pl.DataFrame, name: str, id_column: str, key: str = "object_id",
    columns: Sequence[str] = (), source: Path | str = "a table",
) -> str:  # fmt: skip
    """Join the columns of a table to the objects; an annotation of the same name is replaced. Rows of ids that are
    unknown now are kept: their objects may come later.

    Args:
        id_column: of the table; its values are those of `key`, "object_id" or "sample_id".
        columns: names of those to be joined; all others but the ids if empty.
        source: where the table is from, for messages.

    Returns:
        one line for the user, with the number of ids that are unknown.

    Raises:
        DataError: the experiment has no objects yet, a column is missing, ids are missing, repeated, not text or
            integers, or all unknown, or no column holds plain values.
    """
    path = annotation_path(paths.annotations, name)
    columns = tuple(dict.fromkeys(columns))
    for wanted in (id_column, *columns):
        if wanted not in table.columns:
            hint = did_you_mean(wanted, table.columns) or f"it has {', '.join(table.columns[:_SHOWN])}"
            raise DataError(f"column {wanted!r} is missing", place=source, remedy=hint)
    ids = id_texts(table[id_column], Path(source)).alias(key)
    repeated = ids.filter(ids.is_duplicated())
    if len(repeated):
        raise DataError(
            f"{repeated.n_unique()} ids in {id_column!r} occur more than once, the first is {repeated[0]!r}",
            place=source,
            allowed="one row for each",
        )
    chosen = [wanted for wanted in columns or table.columns if wanted != id_column]
    opaque = [c for c in chosen if table[c].dtype.is_nested() or table[c].dtype in (pl.Binary, pl.Object)]
    say_left_out(Path(source), opaque, "they hold no plain values")
    kept = [wanted for wanted in chosen if wanted not in opaque and wanted != key]
    if not kept:
        raise DataError("no column to be joined", place=source, allowed="columns of plain values beside the ids")
    known = read_column(paths.predictions, key) if key == "object_id" else read_column(paths.samples, key)
    unknown = ids.filter(~ids.is_in(known.implode()))
    if ids.is_empty():
        raise DataError("the table has no row", place=source)
    if len(unknown) == len(ids):
        raise DataError(
            f"none of the {len(ids)} ids in {id_column!r} is of this experiment, the first is {ids[0]!r}",
            place=source,
            allowed=f"ids such as {known[0]!r}",
            remedy="see --id-column and --by",
        )
    replaced = path.exists()
    write_annotation(path, pl.DataFrame([ids]).hstack(table.select(kept)), str(source))
    missing = known.n_unique() - (len(ids) - len(unknown))
    return (
        f"{'replaced' if replaced else 'added'} {name}: {', '.join(kept)}; {len(ids) - len(unknown)} of {len(ids)} ids"
        f" are known, {len(unknown)} unknown; {missing} of the experiment's have no value"
    )


def remove_annotation(paths: ExperimentPaths, name: str) -> None:
    """
    Raises:
        DataError: there is no such annotation.
    """
    path = annotation_path(paths.annotations, name)
    if not path.is_file():
        known = [file.stem for file in annotation_files(paths.annotations)]
        raise DataError(
            f"there is no annotation {name!r}", place=paths.annotations, allowed=", ".join(known) or "none is there",
            remedy=did_you_mean(name, known),
        )  # fmt: skip
    path.unlink()


def _described(path: Path) -> str:
    key, *columns = (table := read_annotation(path)).columns
    return f"{path.stem}: {', '.join(columns)} ({len(table)} rows by {key}, from {source_of(path)})"


def _next(experiment: str) -> str:
    return f"the served page shows it at once, `manyscope run {experiment}` writes explore/index.html again"
