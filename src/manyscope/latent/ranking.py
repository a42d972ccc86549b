"""Which objects are the strangest: all outlier scores of the predictions as one ranking."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from manyscope.errors import DataError

PREFIX = "outlier_"


def mean_rank(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mean over all scores of an object's rank, as a share of the objects that have the score.

    Args:
        scores: name -> (n,), larger is stranger; NaN where an object has no such score.

    Returns:
        (n,) in (0, 1]; NaN for an object without any score.

    Raises:
        DataError: there is no score.
    """
    if not scores:
        raise DataError("there is no outlier score", remedy="see section gather")
    ranks = pl.DataFrame({
        name: pl.Series(values, strict=False).cast(pl.Float64).fill_nan(None) for name, values in scores.items()
    }).select(pl.all().rank("average") / pl.all().count())  # fmt: skip
    return ranks.mean_horizontal(ignore_nulls=True).cast(pl.Float64).fill_null(np.nan).to_numpy()


def ranking(predictions: pl.DataFrame) -> pl.DataFrame:
    """All objects, the strangest first; of equally strange ones in the order of their ids.

    Args:
        predictions: object_id and the columns of scores, `outlier_<name>`.

    Returns:
        rank (from 1), object_id, percentile (per cent of the objects that are at most as strange), strangeness (see
        `mean_rank`), then the scores. Objects without any score come last, without a percentile.

    Raises:
        DataError: there is no score.
    """
    names = [name for name in predictions.columns if name.startswith(PREFIX)]
    strangeness = pl.Series("strangeness", mean_rank({name: predictions[name].to_numpy() for name in names}))
    table = predictions.select("object_id", strangeness.fill_nan(None), *names)
    percentile = 100 * pl.col("strangeness").rank("max") / pl.col("strangeness").count()
    ordered = table.with_columns(percentile=percentile).sort(
        "strangeness", "object_id", descending=[True, False], nulls_last=True
    )
    return ordered.with_row_index("rank", offset=1).select("rank", "object_id", "percentile", "strangeness", *names)
