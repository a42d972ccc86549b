"""prepared/samples.parquet: one row for each sample, with its split, labels and metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from manyscope.errors import DataError
from manyscope.tables.parquet import read_metadata, read_table

SPLITS = ("train", "validation", "test")  # each needs samples
UNLABELLED = "unlabelled"  # samples that are only predicted; there may be none
SCHEMA: dict[str, type[pl.DataType]] = {"sample_id": pl.String, "group": pl.String, "split": pl.String}
DIGEST_KEY = "manyscope.data_digest"


def check_samples(samples: pl.DataFrame, place: Path) -> pl.DataFrame:
    """The table with the required columns first, after checking ids and splits.

    Raises:
        DataError: no sample at all, a missing column, a repeated or empty id, an unknown split, or a split
            without samples.
    """
    for name, dtype in SCHEMA.items():
        if samples.schema.get(name) != dtype:
            raise DataError(f"column {name!r} must be {dtype}, found {samples.schema.get(name)}", place=place)
    if samples.is_empty():
        raise DataError("the data set is empty", place=place, remedy="check the data source and its filters")
    ids = samples["sample_id"]
    if ids.null_count() or (ids == "").any():
        raise DataError("a sample has no id", place=place)
    if ids.is_duplicated().any():
        raise DataError(f"sample_id {ids.filter(ids.is_duplicated())[0]!r} occurs twice", place=place)
    counts = dict(samples.group_by("split").len().iter_rows())
    unknown = set(counts) - {*SPLITS, UNLABELLED}
    if unknown:
        raise DataError(
            f"unknown split {sorted(map(str, unknown))}", place=place, allowed=", ".join((*SPLITS, UNLABELLED))
        )
    for split in SPLITS:
        if not counts.get(split):
            raise DataError(
                f"split {split!r} has no samples ({ids.len()} samples in all)",
                place=place,
                remedy="use more data, or another fraction in section 'preprocess'",
            )
    return samples.select(*SCHEMA, pl.exclude(*SCHEMA))


def read_samples(path: Path) -> pl.DataFrame:
    return read_table(path, SCHEMA)


def chosen_ids(samples: pl.DataFrame, splits: Sequence[str], place: Path) -> list[str]:
    """Ids of the samples of these splits, in the order of the table.

    Raises:
        DataError: there are none.
    """
    ids = samples.filter(pl.col("split").is_in(list(splits)))["sample_id"].to_list()
    if not ids:
        raise DataError(f"no sample is of the splits {', '.join(splits)}", place=place, remedy="see infer.splits")
    return ids


def data_digest(path: Path) -> str:
    """The digest of everything in `prepared/`, which samples.parquet carries in its metadata."""
    return read_metadata(path).get(DIGEST_KEY, "")
