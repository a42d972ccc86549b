"""infer: apply the trained model to one shard of the samples."""

from __future__ import annotations

import numpy as np

from manyscope.log import logger
from manyscope.scopes.registry import find_scope
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import shard_of, shard_table
from manyscope.tables.samples import chosen_ids, read_samples


def run(settings: ExperimentSettings, paths: ExperimentPaths, shard: int = 0, shards: int = 1) -> None:
    """Write infer/shard-NN.parquet: the objects of the samples whose hash falls into the shard. A scope may write
    files of each sample under infer/files/ besides.

    Raises:
        CheckpointError: the weights are missing or of another model.
        DataError: samples are missing, or the model's answers break the contract.
    """
    ids = chosen_ids(read_samples(paths.samples), settings.infer.splits, paths.samples)
    wanted = [ids[row] for row in np.flatnonzero(shard_of(ids, shards) == shard)]
    output = paths.shard(shard)
    scope = find_scope(settings.scope)
    batches = scope.predict(settings, paths.prepared, paths.model, wanted, paths.files) if wanted else ()
    table, metadata = shard_table(batches, wanted, output)
    write_table(output, table, metadata)
    logger.info("shard %d of %d: %d samples, %d objects", shard, shards, len(wanted), len(table))
