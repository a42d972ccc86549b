"""index: build the vector index and audit it against exact search."""

from __future__ import annotations

import time

import polars as pl

from manyscope.latent.audit import audit
from manyscope.latent.filters import filterable, types_of
from manyscope.latent.index import build, open_index
from manyscope.latent.index import extend as extend_index
from manyscope.log import logger
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.annotations import annotated
from manyscope.tables.objects import object_columns
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.tables.samples import read_samples
from manyscope.tables.whole import whole_folder, write_json


def run(settings: ExperimentSettings, paths: ExperimentPaths) -> None:
    """Write the folder index/, whole: the store and audit.json.

    Raises:
        DataError: missing or broken tables, or vectors or columns that cannot be indexed.
        ManyscopeError: there is no such store, or it needs a package that is not installed.
    """
    table = read_predictions(paths.predictions)
    ids, vectors = table["object_id"].to_list(), embeddings(table)
    columns = indexed_columns(table, paths)
    del table  # as large as the vectors
    with whole_folder(paths.index) as folder:
        start = time.perf_counter()
        build(vectors, ids, folder, settings.index, columns)
        built = time.perf_counter() - start
        with open_index(folder) as index:
            result = audit(index, vectors, ids, settings.index)
        result["build_s"] = round(built, 3)
        write_json(folder / paths.audit.name, result)
    logger.info(
        "%d vectors of %d dimensions: recall@10 %.4f, query %.2f ms",
        result["count"], result["dimension"], result["recall_at_10"], result["query_p50_ms"],
    )  # fmt: skip


def extend(settings: ExperimentSettings, paths: ExperimentPaths) -> int:
    """Add to the index what the predictions have gained, and return how many objects that is. If other columns than
    the index has would be stored, or of other types, it is built anew.

    Raises:
        DataError: there is no readable index, or an object has another vector in it than in the predictions.
    """
    table = read_predictions(paths.predictions)
    columns = indexed_columns(table, paths)
    with open_index(paths.index) as index:
        before, types = index.count, index.columns
    if types_of(filterable(columns, settings.index.columns)) != types:
        logger.info("the index has other columns and is built anew")
        run(settings, paths)
        with open_index(paths.index) as index:
            return index.count - before
    return extend_index(paths.index, embeddings(table), table["object_id"].to_list(), columns, settings.index)


def indexed_columns(predictions: pl.DataFrame, paths: ExperimentPaths) -> pl.DataFrame:
    """What samples, predictions and annotations say of each object, under the names of the page.

    Raises:
        DataError: a table is missing or broken.
    """
    columns = object_columns(predictions, read_samples(paths.samples))
    return annotated(columns, predictions.select("object_id", "sample_id"), paths.annotations)
