"""raw/manifest.parquet: what the download stage fetched or made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from manyscope.errors import DataError
from manyscope.tables.parquet import read_table

SCHEMA: dict[str, type[pl.DataType]] = {
    "path": pl.String,
    "bytes": pl.Int64,
    "sha256": pl.String,
    "source": pl.String,
    "state": pl.String,
}


@dataclass(frozen=True)
class ManifestEntry:
    """One file of the raw data.

    Attributes:
        path: relative to `raw/`; may be absent when the state is `failed`.
        source: where it came from: an address, a file path, or the name of a simulator with its seed.
        state: `done`, or `failed` when every attempt failed and the scope goes on without the file.
        known: size in bytes and SHA-256, where the scope has just made sure of them; else the file is read.
    """

    path: str
    source: str
    state: Literal["done", "failed"] = "done"
    known: tuple[int, str] | None = None


def describe(raw: Path, entries: Iterable[ManifestEntry]) -> pl.DataFrame:
    """The manifest of the entries, with sizes and checksums read from the files, sorted by path.

    Raises:
        DataError: there is no entry, two have the same path, or a `done` file is missing.
    """
    rows = []
    for entry in entries:
        file = raw / entry.path
        if entry.state == "done" and not file.is_file():
            raise DataError("the download reported this file as done, but it is missing", place=file)
        done = entry.state == "done"
        size, digest = (entry.known or (file.stat().st_size, file_digest(file))) if done else (0, "")
        rows.append((entry.path, size, digest, entry.source, entry.state))
    if not rows:
        raise DataError("the download gave no file", place=raw, remedy="check the settings of section 'download'")
    table = pl.DataFrame(rows, schema=SCHEMA, orient="row").sort("path")
    if table["path"].is_duplicated().any():
        twice = table.filter(pl.col("path").is_duplicated())["path"][0]
        raise DataError("the download reported this file twice", place=raw / twice)
    return table


def read_manifest(path: Path) -> pl.DataFrame:
    return read_table(path, SCHEMA)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
