"""infer: apply the trained model to one shard of the samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from manyscope.log import logger
from manyscope.scopes.registry import find_scope
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import Objects, shard_of, shard_table
from manyscope.tables.samples import chosen_ids, read_samples


def run(settings: ExperimentSettings, paths: ExperimentPaths, shard: int = 0, shards: int = 1) -> None:
    """Write infer/shard-NN.parquet: the objects of the samples whose hash falls into the shard. A scope may write
    files of each sample under infer/files/ besides.

    Raises:
        CheckpointError: the weights are missing or of another model.
        DataError: samples are missing, or the model's answers break the contract.
        ManyscopeError: the engine is onnx, and the model cannot be exported or does not give what torch gives.
    """
    ids = chosen_ids(read_samples(paths.samples), settings.infer.splits, paths.samples)
    wanted = [ids[row] for row in np.flatnonzero(shard_of(ids, shards) == shard)]
    output = paths.shard(shard)
    batches = predicted(settings, paths, wanted)
    table, metadata = shard_table(batches, wanted, output)
    write_table(output, table, metadata)
    logger.info("shard %d of %d: %d samples, %d objects", shard, shards, len(wanted), len(table))


def predicted(settings: ExperimentSettings, paths: ExperimentPaths, sample_ids: Sequence[str]) -> Iterable[Objects]:
    """What the trained model says of these samples, by the engine of the settings.

    Raises:
        as `run`, once the first batch is asked for.
    """
    if not sample_ids:
        return ()
    scope = find_scope(settings.scope)
    if settings.infer.engine == "onnx":
        from manyscope.scopes.export import predict

        return predict(settings, scope, paths, sample_ids)
    return scope.predict(settings, paths.prepared, paths.model, sample_ids, paths.files)
