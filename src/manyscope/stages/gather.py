"""gather: join the shards into one latent table and add outlier scores."""

from __future__ import annotations

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.latent.outliers import outlier_scores
from manyscope.log import logger
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables import predictions
from manyscope.tables.samples import chosen_ids, read_samples


def run(settings: ExperimentSettings, paths: ExperimentPaths, shards: int) -> None:
    """Write infer/predictions.parquet. The result does not depend on the number of shards.

    Raises:
        DataError: a shard is missing, broken or of another data set, an object id occurs twice, or a latent vector is
            not finite.
    """
    samples = read_samples(paths.samples)
    ids = chosen_ids(samples, settings.infer.splits, paths.samples)
    table = predictions.gather([paths.shard(i) for i in range(shards)], ids)
    vectors = predictions.embeddings(table)
    bad = ~np.isfinite(vectors).all(1)
    if bad.any():
        raise DataError(
            f"the embedding of object {table['object_id'][int(bad.argmax())]!r} is not finite",
            place=paths.infer,
            remedy="delete the folder infer/ and run again",
        )
    reference = table["sample_id"].is_in(samples.filter(pl.col("split") == "train")["sample_id"].implode()).to_numpy()
    if not reference.any():
        logger.warning("no training sample has an object: outlier scores compare with all objects")
        reference = np.ones(len(table), bool)
    most = settings.gather.reference_objects
    if reference.sum() > most:
        members = np.random.default_rng(settings.gather.seed).choice(np.flatnonzero(reference), most, replace=False)
        reference = np.isin(np.arange(len(table)), members)

    # A score of the same name that the scope brought stays.
    wanted = {name: k for name, k in settings.gather.neighbours.items() if f"outlier_{name}" not in table.columns}
    section = settings.gather
    scores = outlier_scores(vectors, reference, wanted, exact=section.exact_objects, seed=section.seed)
    columns = [pl.Series(f"outlier_{name}", score, pl.Float32, nan_to_null=True) for name, score in scores.items()]
    predictions.write_predictions(paths.predictions, table.with_columns(columns))
    logger.info("%d objects of %d samples, %d dimensions", len(table), len(ids), vectors.shape[1])
