"""explore: the page on which a user walks over the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from manyscope.data.splits import unit_hash
from manyscope.explorer.contents import Contents, read_contents
from manyscope.explorer.page import Page, write_page
from manyscope.latent.cells import Cells
from manyscope.latent.neighbours import nearest_neighbours
from manyscope.log import logger, progress
from manyscope.scopes.registry import find_scope
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.predictions import embeddings, read_predictions

_DISTANCE = {"l2": "squared Euclidean distance", "cosine": "1 - cosine", "ip": "1 - inner product"}


def run(settings: ExperimentSettings, paths: ExperimentPaths) -> None:
    """Write explore/index.html.

    Raises:
        DataError: a file of an earlier stage is missing or broken, or the map does not hold every object.
    """
    scope, section = find_scope(settings.scope), settings.explore
    contents = read_contents(paths, scope.name, settings.title, scope.card())
    predictions = read_predictions(paths.predictions)
    total = len(predictions)
    if total > section.objects:
        rows = chosen(contents.object_ids, section.objects)
        contents, predictions = _only(contents, rows), predictions[rows]
    vectors = embeddings(predictions)
    objects = predictions.drop("embedding")
    del predictions  # as large as the vectors
    distances, neighbours = latent_neighbours(vectors, contents.object_ids, section.neighbours, settings)

    pictured = chosen(contents.object_ids, section.thumbnails)
    thumbnails = scope.thumbnails(paths.prepared, paths.files, objects[pictured])
    page = Page(
        contents=contents,
        neighbours=neighbours,
        distances=distances,
        pictures=zip(pictured, progress(thumbnails, "thumbnails", len(pictured)), strict=True),
        notes=_notes(total, len(vectors), len(pictured), settings, paths.experiment),
    )
    write_page(paths.page, page)
    logger.info("%s: %d objects, %.1f MB", paths.page, len(vectors), paths.page.stat().st_size / 1e6)


def chosen(object_ids: Sequence[str], most: int) -> list[int]:
    """At most so many rows, ascending, chosen by a hash of the id, so that further objects rarely change the choice;
    those of a smaller choice are also in a larger one."""
    if len(object_ids) <= most:
        return list(range(len(object_ids)))
    return sorted(sorted(range(len(object_ids)), key=lambda row: unit_hash(0, object_ids[row]))[:most])


def latent_neighbours(
    vectors: np.ndarray, object_ids: Sequence[str], k: int, settings: ExperimentSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest others of each object, measured and ordered as `manyscope search` does: by the distance of the index
    in float32, equally near ones by id. Of more than `explore.exact_objects` they are sought in the nearest cells.

    Args:
        vectors: (n, dimensions) finite float32.
        k: fewer where there are fewer others.

    Returns:
        distances (n, k) float32, and rows (n, k) int64.
    """
    metric, k = settings.index.metric, min(k, len(vectors) - 1)
    # The largest inner product need not lie in the nearest cells.
    if metric == "ip" or len(vectors) <= settings.explore.exact_objects:
        distances, rows = nearest_neighbours(vectors, k, metric=metric)
    else:
        distances, rows = Cells(vectors, metric, settings.index.seed).neighbours(k)
    narrow = distances.astype(np.float32)
    place = np.argsort(np.argsort(np.asarray(object_ids, dtype=object)))
    order = np.lexsort((place[rows], narrow), axis=1)
    return np.take_along_axis(narrow, order, 1), np.take_along_axis(rows, order, 1)


def _only(contents: Contents, rows: list[int]) -> Contents:
    """The contents without the other objects; a category keeps its levels."""

    def values(whole: np.ndarray | list[str | None]) -> np.ndarray | list[str | None]:
        return whole[rows] if isinstance(whole, np.ndarray) else [whole[row] for row in rows]

    return replace(
        contents,
        object_ids=[contents.object_ids[row] for row in rows],
        coordinates=contents.coordinates[rows],
        columns=tuple(replace(column, values=values(column.values)) for column in contents.columns),
    )


def _notes(objects: int, shown: int, pictured: int, settings: ExperimentSettings, experiment: str) -> list[str]:
    notes, few = [], shown < objects
    if few:
        notes.append(
            f"{shown:,} of {objects:,} objects, chosen at random, are shown; all are on the page that"
            f" `manyscope explore {experiment}` serves"
        )
    if 0 < pictured < shown:
        notes.append(f"{pictured:,} of them, chosen at random, may have a picture")
    if settings.explore.neighbours and shown > 1:
        nearly = settings.index.metric != "ip" and shown > settings.explore.exact_objects
        where = (", nearly exactly" if nearly else "") + (" among the objects shown" if few else "")
        notes.append(f"neighbours are found by {_DISTANCE[settings.index.metric]}{where}")
    return notes
