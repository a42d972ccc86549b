"""Finding the objects nearest to an object or a vector. Cheap to start: a search loads neither torch nor umap."""

from __future__ import annotations

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.latent.index import open_index
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.parquet import read_rows
from manyscope.tables.predictions import SCHEMA as PREDICTIONS
from manyscope.tables.samples import SCHEMA as SAMPLES


def search(
    paths: ExperimentPaths, k: int, *, object_id: str | None = None, vector: np.ndarray | None = None
) -> pl.DataFrame:
    """The k nearest objects of one experiment, answered by its index.

    Args:
        object_id: the object whose neighbours are wanted; it is not among the answers.
        vector: or any vector, (dimensions,).

    Returns:
        rank (from 1), object_id, distance, then what the predictions and the samples say of each object in columns of
        single values; of a name that both have, the prediction is called "<name> (predicted)".

    Raises:
        DataError: no readable index, an unknown id, a vector that does not fit, k below 1, not exactly one query, or an
            index that is older than the predictions.
    """
    if (object_id is None) == (vector is None):
        raise DataError("a search needs one query", allowed="either an object_id or a vector")
    with open_index(paths.index) as index:
        if vector is not None:
            ids, distances = index.search(vector, k)
        else:
            if k < 1:
                raise DataError(f"{k} neighbours were asked for", allowed="1 or more")
            ids, distances = index.search(index.vector(str(object_id)), k + 1)
    if len(ids) != 1:
        raise DataError(f"{len(ids)} vectors were given", allowed="one vector")
    found = pl.DataFrame({"object_id": ids[0], "distance": distances[0]}, schema_overrides={"object_id": pl.String})
    found = found.filter(pl.col("object_id") != (object_id or "")).head(k).with_row_index("rank", offset=1)
    return _described(found, paths)


def _described(found: pl.DataFrame, paths: ExperimentPaths) -> pl.DataFrame:
    predictions = read_rows(paths.predictions, "object_id", found["object_id"].to_list(), PREDICTIONS)
    samples = read_rows(paths.samples, "sample_id", predictions["sample_id"].unique().to_list(), SAMPLES)
    both = set(predictions.columns) & set(samples.columns) - {"sample_id"}
    predictions = predictions.rename({name: f"{name} (predicted)" for name in both - {"object_id"}})
    described = found.join(predictions, on="object_id", how="left", maintain_order="left")
    unknown = described.filter(pl.col("sample_id").is_null())["object_id"]
    if len(unknown):
        raise DataError(
            f"object {unknown[0]!r} of the index is not among the predictions",
            place=paths.index,
            remedy="run the stage index again",
        )
    return described.join(samples, on="sample_id", how="left", maintain_order="left", suffix=" (sample)")
