"""Tables of objects that a user has, in any format that astropy or polars read."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manyscope.errors import DataError, did_you_mean
from manyscope.log import logger

_NAMED = 8


def read_any_table(
    path: Path,
    named: str | None,
    text_column: str,
    setting: str,
    without: Collection[str] = (),
    units: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """The rows of a file in their order, with its columns of plain values.

    Args:
        named: its format, "parquet", "csv", "tsv" or one of astropy's words; None: told by the file's name.
        text_column: the column of ids, read as text where the format knows no types, so that leading zeros stay.
        setting: what the user would change to name the format, for messages.
        without: columns of a Parquet file that are not read.
        units: column -> the unit in which its numbers are wanted, in astropy's words; converted where the file says
            another one, taken for granted where it says none. Other columns keep the file's.

    Returns:
        masked values as null, numbers in native byte order. Columns of arrays, of complex numbers or of Python objects
        are left out with a warning.

    Raises:
        DataError: the file is missing, not readable, or of a format that neither its name nor `named` tells; or a
            unit cannot be converted.
    """
    if not path.is_file():
        raise DataError("no such file", place=path)
    named = named or _format(path)
    try:
        if named == "parquet":
            return _read_parquet(path, without, units or {})
        if named in ("csv", "tsv"):
            # As text, so that an id keeps its leading zeros.
            return pl.read_csv(
                path,
                separator="\t" if named == "tsv" else ",",
                schema_overrides={text_column: pl.String},
                infer_schema_length=None,
                comment_prefix="#",
                null_values=["", "null", "NULL"],
            )
        return _read_astropy(path, named, setting, units or {})
    except DataError:
        raise
    except Exception as error:  # each reader raises types of its own for a broken file
        reason = next(iter(str(error).split("\n")), "") or type(error).__name__
        raise DataError(
            f"not a readable table ({reason})", place=path, remedy=f"mend the file, or {setting}"
        ) from error


def is_parquet(path: Path, named: str | None) -> bool:
    """Whether a file is read as Parquet, by the name of its format or, if that is None, by its own."""
    return named == "parquet" if named else path.suffix.lower() in (".parquet", ".pq")


def _format(path: Path) -> str | None:
    """parquet, csv and tsv, which polars reads; None for what astropy tells itself."""
    if is_parquet(path, None):
        return "parquet"
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        with path.open("rb") as file:
            return None if file.read(7) == b"# %ECSV" else name[-3:]
    return None


def _read_astropy(path: Path, named: str | None, setting: str, units: Mapping[str, str]) -> pl.DataFrame:
    from astropy.io.registry import IORegistryError, get_formats
    from astropy.table import Table

    if named is not None:
        formats = [str(row["Format"]) for row in get_formats(Table, readwrite="Read")]
        if named not in formats:
            raise DataError(
                f"format {named!r} is unknown",
                place=setting,
                allowed=f"parquet, csv, tsv, fits, votable, ascii.ecsv, hdf5, … ({len(formats)} formats of astropy)",
                remedy=did_you_mean(named, ["parquet", "csv", "tsv", *formats]),
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, which are not read, and units of columns that keep them
        try:
            table = Table.read(path, format=named)
        except IORegistryError as error:
            raise DataError(
                "its format is not told by its name",
                place=path,
                remedy=f"set {setting}, for example fits, votable, ascii.ecsv, ascii.csv, hdf5 or parquet",
            ) from error
    columns, left_out = [], []
    for name in table.colnames:
        column = _column(name, table[name])
        if column is None:
            left_out.append(name)
        else:
            unit = getattr(table[name], "unit", None)
            columns.append(_in_unit(column, unit, units[name], path) if name in units else column)
    say_left_out(path, left_out, "they hold no plain values")
    return pl.DataFrame(columns)


def _column(name: str, column: Any) -> pl.Series | None:
    """One column of astropy's as a series; None if it does not hold one plain value a row."""
    dtype = getattr(column, "dtype", None)
    if dtype is None or column.ndim != 1:
        return None
    mask = np.ma.getmaskarray(column) if isinstance(column, np.ma.MaskedArray) else np.zeros(len(column), bool)
    values = np.ma.getdata(column)
    if dtype.kind == "O":
        if not all(isinstance(v, str | bytes) for v in values[~mask] if v is not None):
            return None
        texts = [None if hidden else v for v, hidden in zip(values, mask, strict=True)]
        return pl.Series(name, [v.decode() if isinstance(v, bytes) else v for v in texts], pl.String)
    if dtype.kind == "S":
        values = np.char.decode(np.asarray(values), "utf-8")
    elif dtype.kind not in "biufU":
        return None
    if dtype.kind in "SU":
        texts = [None if hidden else v.rstrip() for v, hidden in zip(values.tolist(), mask, strict=True)]
        return pl.Series(name, texts, pl.String)
    native = np.asarray(values, dtype.newbyteorder("="))
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        native = native.astype(np.float32 if dtype.itemsize < 4 else np.float64)
    series = pl.Series(name, native)
    return series.set(pl.Series(mask), None) if mask.any() else series


def _in_unit(values: pl.Series, found: Any, wanted: str, path: Path) -> pl.Series:
    """Numbers in a wanted unit.

    Args:
        found: astropy's unit, or a word for one; None or nothing: the wanted.

    Raises:
        DataError: they measure something else.
    """
    from astropy.units import Unit

    text = "" if found is None else str(found).strip()
    if not text or not values.dtype.is_numeric():
        return values
    try:
        unit = Unit(text, parse_strict="silent")
        if not unit.is_equivalent(wanted):
            unit = Unit(text.lower().removesuffix("s"), parse_strict="silent")  # "Degrees" is common
        factor = float(unit.to(wanted))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"column {values.name!r} has the unit {str(found)!r}",
            place=path,
            allowed=f"a unit that can be converted to {wanted!r}, or none, which means that",
        ) from error
    return values if factor == 1 else values.cast(pl.Float64) * factor


def _read_parquet(path: Path, without: Collection[str], units: Mapping[str, str]) -> pl.DataFrame:
    """Without columns of lists, structures and bytes; embeddings may be most of a table and are not even read."""
    schema = {name: dtype for name, dtype in pl.read_parquet_schema(path).items() if name not in without}
    nested = [n for n, t in schema.items() if t.is_nested() or t in (pl.Binary, pl.Object, pl.Null)]
    say_left_out(path, nested, "they hold no plain values")
    table = pl.read_parquet(path, columns=[name for name in schema if name not in nested]).with_columns(
        pl.col(pl.Categorical, pl.Enum).cast(pl.String), pl.selectors.decimal().cast(pl.Float64)
    )
    said = _parquet_units(path) if units else {}
    return table.with_columns(
        _in_unit(table[name], said[name], units[name], path) for name in table.columns if name in units and name in said
    )


def _parquet_units(path: Path) -> dict[str, Any]:
    """Units of columns, where astropy has written the file; Parquet itself knows none."""
    text = pl.read_parquet_metadata(path).get("table_meta_yaml")
    if text is None:
        return {}
    from astropy.table.meta import get_header_from_yaml

    return {column["name"]: column.get("unit") for column in get_header_from_yaml(text.splitlines())["datatype"]}


def id_texts(values: pl.Series, path: Path) -> pl.Series:
    """Ids or groups as text.

    Raises:
        DataError: one is missing, or they are floating-point numbers.
    """
    if values.dtype.is_float():
        raise DataError(
            f"column {values.name!r} holds floating-point numbers, which round long ids",
            place=path,
            allowed="integers or text",
        )
    texts = values.cast(pl.String).str.strip_chars()
    missing = texts.is_null() | (texts == "")
    if missing.any():
        raise DataError(
            f"{missing.sum()} rows have no {values.name!r}, the first is row {missing.arg_true()[0]}", place=path
        )
    return texts


def say_left_out(path: Path, names: Iterable[str], reason: str) -> None:
    """Warn of columns of a user's table that are not used."""
    names = list(names)
    if names:
        more = ", …" if len(names) > _NAMED else ""
        logger.warning("%s: left out the columns %s%s: %s", path, ", ".join(names[:_NAMED]), more, reason)
