"""explore: the page on which a user walks over the map."""

from __future__ import annotations

import numpy as np
import polars as pl

from manyscope.data.splits import unit_hash
from manyscope.errors import DataError
from manyscope.explorer.page import Page, write_page
from manyscope.latent.neighbours import nearest_neighbours
from manyscope.log import logger, progress
from manyscope.scopes.registry import find_scope
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.parquet import read_table
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.tables.samples import read_samples


def run(settings: ExperimentSettings, paths: ExperimentPaths) -> None:
    """Write explore/index.html.

    Raises:
        DataError: a file of an earlier stage is missing or broken, or the map does not hold every object.
    """
    scope = find_scope(settings.scope)
    predictions = read_predictions(paths.predictions)
    ids = predictions["object_id"].to_list()
    squared, neighbours = nearest_neighbours(embeddings(predictions), settings.explore.neighbours)

    rows = pictured(ids, settings.explore.thumbnails)
    thumbnails = scope.thumbnails(paths.prepared, paths.files, predictions.drop("embedding")[rows])
    few = len(rows) < len(ids)
    page = Page(
        title=settings.title or paths.experiment,
        experiment=paths.experiment,
        scope=scope.name,
        object_ids=ids,
        coordinates=_coordinates(paths, predictions),
        columns=object_columns(predictions, read_samples(paths.samples)),
        neighbours=neighbours,
        distances=np.sqrt(squared),
        pictures=zip(rows, progress(thumbnails, "thumbnails", len(rows)), strict=True),
        notes=[f"{len(rows):,} of them, chosen at random, may have a picture"] if few and rows else [],
    )
    write_page(paths.page, page)
    logger.info("%s: %d objects, %.1f MB", paths.page, len(ids), paths.page.stat().st_size / 1e6)


def pictured(object_ids: list[str], most: int) -> list[int]:
    """The rows that carry a picture, ascending: at most so many, chosen by a hash of the id, so that further objects
    rarely change the choice."""
    chosen = sorted(range(len(object_ids)), key=lambda row: unit_hash(0, object_ids[row]))[:most]
    return sorted(chosen)


def object_columns(predictions: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
    """One row for each object: what the samples' table says of it, its predictions, then split and group.

    A prediction of the same name as a column of the samples is called "<name> (predicted)".
    """
    metadata = samples.select("sample_id", pl.exclude("sample_id", "split", "group"), "split", "group")
    own = predictions.drop("object_id", "embedding")
    own = own.rename({name: f"{name} (predicted)" for name in own.columns if name in metadata.columns[1:]})
    joined = own.join(metadata, on="sample_id", how="left", maintain_order="left")
    order = [*metadata.columns[1:-2], *own.columns[1:], "split", "group", "sample_id"]
    # Where each sample is one object, its id and group would only repeat the object's.
    repeats = [name for name in ("group", "sample_id") if (joined[name] == predictions["object_id"]).all()]
    return joined.select(order).drop(repeats)


def _coordinates(paths: ExperimentPaths, predictions: pl.DataFrame) -> np.ndarray:
    """The map in the order of the predictions, (objects, 2 or 3)."""
    table = read_table(paths.map, {"object_id": pl.String})
    axes = [axis for axis in ("x", "y", "z") if axis in table.columns]
    ordered = predictions.select("object_id").join(table, on="object_id", how="left", maintain_order="left")
    coordinates = ordered.select(axes).to_numpy().astype(np.float32)
    if len(axes) < 2 or len(ordered) != len(predictions) or np.isnan(coordinates).any():
        raise DataError(
            "the map does not hold each object of the predictions once", place=paths.map, remedy="run the umap stage"
        )
    return coordinates
