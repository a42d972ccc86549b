"""The table of objects that a user has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from manyscope.data.linking import absolute
from manyscope.data.tables import id_texts, read_any_table, say_left_out
from manyscope.errors import DataError, SettingsError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from manyscope.scopes.galaxies.settings import CatalogSettings

_PLACE = "download.catalog"
# What the chain adds to each sample; a column of the user's with such a name would be taken for it.
RESERVED = ("object_id", "sample_id", "group", "split", "missing_fraction", "coverage")
_NAMED = 8


def catalog_path(settings: CatalogSettings) -> Path:
    """The file `download.catalog.file`, absolute.

    Raises:
        SettingsError: no file is named.
        DataError: there is no such file.
    """
    if settings.file is None:
        raise SettingsError(f"{_PLACE}.file: no table is named; name the file with your objects")
    path = absolute(settings.file)
    if not path.is_file():
        raise DataError("no such file", place=path, remedy=f"mend {_PLACE}.file")
    return path


def read_catalog(
    settings: CatalogSettings,
    required: Sequence[str] = (),
    without: Sequence[str] = (),
    units: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """The table `download.catalog.file`, rows in their order.

    Args:
        required: columns that must be there; they are kept whatever `columns` says.
        without: columns of a Parquet file that another reads.
        units: of some columns, in which they are wanted; see `read_any_table`.

    Returns:
        object_id (String, never null, may repeat); group (String, of `group_column`, or the id); then the columns with
        their own names, masked values as null, numbers in native byte order. Columns of arrays, of complex numbers or
        of Python objects, and those whose name the chain needs itself, are left out with a warning.

    Raises:
        SettingsError: no file is named.
        DataError: the file is missing, not readable or empty, a column is missing, ids are missing or are
            floating-point numbers (which hold no 17-digit id), a group is missing, or a unit cannot be converted.
    """
    path = catalog_path(settings)
    table = read_any_table(path, settings.format, settings.id_column, f"{_PLACE}.format", without, units)
    if table.is_empty():
        raise DataError("the table has no row", place=path)
    wanted = [*required, *(settings.columns or ())]
    for name in [settings.id_column, *filter(None, [settings.group_column]), *wanted]:
        if name not in table.columns:
            hint = did_you_mean(name, table.columns) or f"it has {', '.join(table.columns[:_NAMED])}, …"
            raise DataError(f"column {name!r} is missing", place=path, remedy=hint)
    object_id = id_texts(table[settings.id_column], path)
    group = object_id if settings.group_column is None else id_texts(table[settings.group_column], path)
    spent = {settings.id_column, settings.group_column}
    kept = [name for name in table.columns if settings.columns is None or name in wanted]
    clashing = [name for name in kept if name in RESERVED and name not in spent]
    say_left_out(path, clashing, "the chain has columns of that name itself")
    kept = [name for name in kept if name not in RESERVED and (name not in spent or name in wanted)]
    return pl.DataFrame([object_id.alias("object_id"), group.alias("group")]).hstack(table.select(kept))


def read_targets(
    settings: CatalogSettings,
    required: Sequence[str],
    optional: Sequence[str] = (),
    units: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """The catalog, with columns of a source's own whether or not they are to be kept beside the objects.

    Args:
        required: columns that must be there and hold no null.
        optional: columns that are there, null if they are not in the catalog.
        units: as for `read_catalog`.

    Raises:
        DataError: the catalog cannot be read, or a required value is missing.
    """
    table = read_catalog(settings.model_copy(update={"columns": None}), required, units=units)
    for name in required:
        empty = table[name].is_null() | (table[name].is_nan() if table[name].dtype.is_float() else False)
        if empty.any():
            row = int(empty.arg_true()[0])
            raise DataError(
                f"column {name!r} is empty for object {table['object_id'][row]!r} (row {row + 1} of {len(table)})",
                place=settings.file,
                remedy="fill it or leave the object out",
            )
    kept = set(table.columns) if settings.columns is None else set(settings.columns)
    names = [n for n in table.columns if n in {"object_id", "group", *required, *optional, *kept}]
    return table.select(names).with_columns(pl.lit(None).alias(name) for name in optional if name not in names)


def refuse_repeats(catalog: pl.DataFrame, remedy: str) -> None:
    """
    Raises:
        DataError: an id occurs more than once.
    """
    twice = catalog.filter(pl.col("object_id").is_duplicated())
    if not twice.is_empty():
        raise DataError(
            f"{twice['object_id'].n_unique()} ids occur more than once, such as {twice['object_id'][0]!r}",
            place="download.catalog",
            allowed="a row for each object",
            remedy=remedy,
        )
