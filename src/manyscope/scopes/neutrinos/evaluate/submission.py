"""The file that the competition "IceCube - Neutrinos in Deep Ice" wants."""

from __future__ import annotations

import math

import polars as pl

from manyscope.errors import DataError
from manyscope.tables.samples import UNLABELLED

FILE_NAME = "submission.csv"
_WHOLE_NUMBER = r"^(0|[1-9][0-9]{0,17})$"  # as the competition writes ids: no sign, no leading zero; fits 64 bits


def submission(samples: pl.DataFrame, predictions: pl.DataFrame) -> pl.DataFrame | None:
    """The predicted events without known direction or, if there are none, of the test split.

    Args:
        samples: sample_id, split.
        predictions: sample_id, azimuth, zenith; in any order.

    Returns:
        See `rows`. None if no such event has a whole number for an id, as those of the competition do.

    Raises:
        DataError: see `rows`.
    """
    known = predictions.join(samples.select("sample_id", "split"), on="sample_id", how="inner")
    numbered = known.filter(pl.col("sample_id").str.contains(_WHOLE_NUMBER))
    for split in (UNLABELLED, "test"):
        chosen = numbered.filter(split=split)
        if len(chosen):
            return rows(chosen)
    return None


def rows(predictions: pl.DataFrame) -> pl.DataFrame:
    """event_id (Int64, rising), azimuth in [0, 2 pi) and zenith in [0, pi] (Float64, radians).

    Args:
        predictions: sample_id, whole numbers as text; azimuth; zenith.

    Raises:
        DataError: an id is not a whole number or occurs twice, or an angle is missing or out of range.
    """
    table = predictions.select(
        pl.col("sample_id").cast(pl.Int64, strict=False).alias("event_id"), pl.col("azimuth", "zenith").cast(pl.Float64)
    ).sort("event_id")
    if table["event_id"].null_count():
        raise DataError("an id is not a whole number", place=FILE_NAME, allowed="ids such as 2059")
    repeated = table["event_id"].is_duplicated()
    if repeated.any():
        raise DataError(f"event {table['event_id'].filter(repeated)[0]} occurs twice", place=FILE_NAME)
    limits = {"azimuth": pl.col("azimuth") < 2 * math.pi, "zenith": pl.col("zenith") <= math.pi}
    for name, below in limits.items():
        right = (pl.col(name) >= 0) & below  # null for a null, which counts as wrong; so does NaN, which is above all
        wrong = table.filter(~right.fill_null(value=False))
        if len(wrong):
            allowed = f"a number in [0, {'2 pi)' if name == 'azimuth' else 'pi]'}"
            raise DataError(
                f"{name} {wrong[name][0]} of event {wrong['event_id'][0]}", place=FILE_NAME, allowed=allowed
            )
    return table
