"""annotations/NAME.parquet: what a user joins to the objects after the training, such as a cross-match.

The first column is the key, `object_id` or `sample_id`, unique and without missing values; the others are shown,
coloured by, filtered and found like those that the chain made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import polars as pl

from manyscope.errors import DataError
from manyscope.tables.objects import RESERVED
from manyscope.tables.parquet import read_metadata, read_table, write_table

KEYS = ("object_id", "sample_id")
# Also those that one view shows and another leaves out.
_AVOIDED = frozenset({*RESERVED, *KEYS, "embedding", "group", "split"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SOURCE = "manyscope.source"


def annotation_path(folder: Path, name: str) -> Path:
    """
    Raises:
        DataError: the name cannot be that of a file.
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name!r} cannot name an annotation",
            allowed="letters, digits, '_' and '-', the first a letter or digit",
            remedy="give another --name",
        )
    return folder / f"{name}.parquet"


def annotation_files(folder: Path) -> list[Path]:
    """The annotations of an experiment, in the order of their names."""
    return sorted(folder.glob("*.parquet"))


def write_annotation(path: Path, table: pl.DataFrame, source: str) -> None:
    """
    Args:
        table: the key, then the columns.
        source: where they came from, for people.
    """
    write_table(path, table, {_SOURCE: source})


def read_annotation(path: Path) -> pl.DataFrame:
    """The table, with its key first.

    Raises:
        DataError: the file is broken, or is not an annotation.
    """
    table = read_table(path)
    if not table.columns or table.columns[0] not in KEYS or table[table.columns[0]].dtype != pl.String:
        raise DataError(
            "not an annotation", place=path, allowed=f"a first column {' or '.join(KEYS)} of text",
            remedy="remove it, and use `manyscope annotate`",
        )  # fmt: skip
    return table


def source_of(path: Path) -> str:
    return read_metadata(path).get(_SOURCE, "")


def annotated(columns: pl.DataFrame, objects: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """The columns of some objects, followed by those of all annotations; null where an annotation has no value.

    A column keeps its name unless the objects have one of that name already, a view needs it for itself, or another
    annotation brings it too: then it is called "<name> (<annotation>)", with a number if that is taken as well. What
    an annotation's columns are called thus depends neither on the order in which they came nor on the view.

    Args:
        columns: (n rows).
        objects: object_id and sample_id of the same n rows.

    Raises:
        DataError: an annotation is broken.
    """
    files = annotation_files(folder)
    tables = [read_annotation(path) for path in files]
    brought = Counter(name for table in tables for name in table.columns[1:])
    avoided = {*_AVOIDED, *columns.columns, *(name for name, times in brought.items() if times > 1)}
    taken = {*avoided, *brought}
    for path, table in zip(files, tables, strict=True):
        key, *names = table.columns
        found = objects.select(key).join(table, on=key, how="left", maintain_order="left")
        if len(found) != len(columns):
            raise DataError(
                f"a value of {key} occurs twice", place=path, remedy="remove it, and use `manyscope annotate`"
            )
        shown = dict(zip(names, _shown_names(names, path.stem, avoided, taken), strict=True))
        columns = columns.with_columns(found.select(names).rename(shown).get_columns())
    return columns


def _shown_names(names: Sequence[str], annotation: str, avoided: set[str], taken: set[str]) -> Iterator[str]:
    for name in names:
        if name not in avoided:
            yield name
            continue
        forms = (f"{name} ({annotation}{f' {number}' if number > 1 else ''})" for number in count(1))
        shown = next(form for form in forms if form not in taken)
        taken.add(shown)
        yield shown
