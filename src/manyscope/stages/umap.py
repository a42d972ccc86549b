"""umap: map the latent vectors to two or three dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.evaluation.figures import new_figure, save_figure, style
from manyscope.latent.quality import MapQuality, map_quality
from manyscope.latent.reducers import REDUCERS, Reducer, metric_of, scale_of
from manyscope.log import logger
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.tables.whole import whole_folder, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = "xyz"
_MANY = 20_000  # points above which the figure shows counts instead of points


def run(settings: ExperimentSettings, paths: ExperimentPaths) -> None:
    """Write the folder umap/, whole: umap.parquet, reducer.npz, quality.json and map.png.

    Raises:
        DataError: missing or broken predictions, latent vectors that are not finite, or a reducer that returns
            coordinates that do not fit.
    """
    section = settings.umap
    table = read_predictions(paths.predictions)
    ids, vectors = table["object_id"], embeddings(table)
    del table  # as large as the vectors
    reducer: Reducer = REDUCERS.find(section.reducer)(section)
    rows = np.arange(len(vectors))
    if len(rows) > section.fit_objects:
        rows = np.sort(np.random.default_rng(section.seed).choice(rows, section.fit_objects, replace=False))
    coordinates = _coordinates(reducer, vectors, rows)
    write_map(settings, paths, reducer, ids, vectors, coordinates, scale_of(vectors[rows], section))
    logger.info("%d of %d objects were fitted", len(rows), len(vectors))


def write_map(
    settings: ExperimentSettings, paths: ExperimentPaths, reducer: Reducer, ids: pl.Series, vectors: np.ndarray,
    coordinates: np.ndarray, scale: np.ndarray,
) -> None:  # fmt: skip
    """Measure and draw the map, and write all that `run` writes.

    Args:
        vectors: (n, dimensions), in the order of the ids.
        coordinates: (n, 2 or 3).
        scale: (dimensions,), what the vectors are divided by before they are compared.

    Raises:
        DataError: the coordinates do not fit.
    """
    section = settings.umap
    if coordinates.shape != (len(vectors), section.components) or not np.isfinite(coordinates).all():
        raise DataError(
            f"the reducer gives coordinates of shape {coordinates.shape}, or such as are not finite",
            place=f"umap.reducer {section.reducer!r}",
            allowed=f"({len(vectors)}, {section.components}) finite numbers",
        )
    quality = map_quality(
        vectors / scale, coordinates, objects=section.quality_objects,
        neighbours=section.quality_neighbours, seed=section.seed, metric=metric_of(section),
    )  # fmt: skip
    figure = map_figure(coordinates, f"{paths.experiment}: latent space", quality)

    axes = {axis: coordinates[:, i] for i, axis in enumerate(AXES[: section.components])}
    with whole_folder(paths.umap) as folder:
        reducer.save(folder / paths.reducer.name)
        save_figure(figure, folder / paths.map_figure.name)
        write_json(folder / paths.map_quality.name, quality.document())
        write_table(folder / paths.map.name, pl.DataFrame({"object_id": ids, **axes}))
    logger.info("map of %d objects: %s", len(vectors), _words(quality))


def _coordinates(reducer: Reducer, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Fit the chosen rows and transform the others, (n, 2 or 3) float32."""
    fitted = np.asarray(reducer.fit(vectors[rows]), np.float32)
    if len(rows) == len(vectors):
        return fitted
    others = np.setdiff1d(np.arange(len(vectors)), rows, assume_unique=True)
    coordinates = np.empty((len(vectors), fitted.shape[1]), np.float32)
    coordinates[rows], coordinates[others] = fitted, reducer.transform(vectors[others])
    return coordinates


def map_figure(coordinates: np.ndarray, title: str, quality: MapQuality) -> Figure:
    """The map seen along its third axis, if it has one: points coloured by how many lie near, or only their counts."""
    figure, axes = new_figure(panel=(7.0, 6.0))
    axis, (x, y) = axes[0, 0], coordinates[:, :2].T
    with style():
        if len(x) > _MANY:
            shown = axis.hexbin(x, y, gridsize=180, bins="log", mincnt=1, linewidths=0)
            label = "objects in a cell"
        else:
            counts, *edges = np.histogram2d(x, y, bins=max(4, min(80, int(len(x) ** 0.5))))
            cell = [
                np.clip(np.searchsorted(e, v, "right") - 1, 0, len(e) - 2) for e, v in zip(edges, (x, y), strict=True)
            ]
            near = counts[cell[0], cell[1]]
            order = np.argsort(near, kind="stable")  # crowds are drawn over single points
            size = float(np.clip(30_000 / len(x), 4, 36))
            shown = axis.scatter(x[order], y[order], c=near[order], s=size, linewidths=0, alpha=0.8)
            label = "objects near by"
        figure.colorbar(shown, ax=axis, label=label, shrink=0.7, pad=0.02)
        axis.set(xlabel="x", ylabel="y", aspect="equal", xticks=[], yticks=[])
        axis.set_title(f"{title}, {len(x):,} objects\n{_words(quality)}", fontsize=10)
    return figure


def _words(quality: MapQuality) -> str:
    if quality.trustworthiness is None:
        return "too few objects to measure the quality of the map"
    return (
        f"trustworthiness {quality.trustworthiness:.3f}, {quality.neighbour_overlap:.0%} of the"
        f" {quality.neighbours} nearest neighbours kept"
    )
