"""How well the found cells agree with the true ones, beside classical methods on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.evaluation.bootstrap import Score, compare
from manyscope.log import logger, progress
from manyscope.scopes.base import Evaluation
from manyscope.scopes.cells.evaluate import baselines, figures
from manyscope.scopes.cells.evaluate.baselines import Choice
from manyscope.scopes.cells.evaluate.matching import Matching, match
from manyscope.scopes.cells.masks import MASKS, read_masks
from manyscope.tables.metrics import Metric

if TYPE_CHECKING:
    from manyscope.scopes.cells.data.images import CellImages
    from manyscope.scopes.cells.settings import CellsEvaluate

HEADLINE = "msa"
MODEL = "model"
FEWEST = 5  # images, below which a reader is warned of the interval
_AGAIN = "run the stage infer again"


@dataclass(frozen=True)
class _Test:
    """The judged images.

    Attributes:
        matchings: method -> of each image; the model is one of the methods.
    """

    sample_ids: list[str]
    matchings: dict[str, list[Matching]]

    def scores(self, method: str, name: str) -> np.ndarray:
        """(images,)"""
        return np.array([matching.scores[name] for matching in self.matchings[method]])


def evaluate(
    settings: CellsEvaluate, data: CellImages, files: Path, samples: pl.DataFrame, predictions: pl.DataFrame
) -> Evaluation:
    """Judge the masks of the test images that have labels; every score is the mean of those of the images.

    Args:
        files: folder of the stage infer, with the masks of each sample under `masks`.
        samples: the samples of `data`.
        predictions: a row with its sample_id for each found cell.

    Raises:
        DataError: there is no labelled test image, or none to choose the baselines' parameters on; masks are missing,
            of another size than their image, or of other cells than the predictions.
    """
    ids = samples.filter(pl.col("split") == "test", pl.col("cells").is_not_null())["sample_id"].to_list()
    if not ids:
        raise DataError(
            "no test image has labels, against which the masks could be judged",
            place=data.folder / "samples.parquet",
            remedy="label some images, or raise preprocess.test_fraction",
        )
    own = _of_model(data, files / MASKS, ids, predictions)
    chosen, table = _chosen(settings, data, samples)
    test = _Test(ids, {MODEL: own, **_of_baselines(data, ids, chosen)})
    if len(ids) < FEWEST:
        logger.warning("the intervals are from %d test images only: they say little of others", len(ids))

    metrics: list[Metric] = []
    for name in test.matchings[MODEL][0].scores:
        # Images, not cells, are what is drawn again: the cells of one image share its light and focus.
        metrics += compare(
            name,
            "all",
            unit="",
            higher_is_better=True,
            n=len(ids),
            model=_mean(test.scores(MODEL, name)),
            baselines={method: _mean(test.scores(method, name)) for method in chosen},
            draws=settings.bootstrap_draws,
            seed=settings.seed,
        )
    drawn, captions = _figures(settings, data, files / MASKS, test, chosen)
    tables = {"per_image.csv": _per_image(test), "baselines.csv": table}
    return Evaluation(HEADLINE, metrics, drawn, captions, tables)


def _chosen(settings: CellsEvaluate, data: CellImages, samples: pl.DataFrame) -> tuple[dict[str, Choice], pl.DataFrame]:
    """The classical methods, with parameters that some training and validation images chose; the test has no say."""
    labelled = samples.filter(pl.col("split").is_in(["train", "validation"]), pl.col("cells") > 0)
    sizes = (labelled["height_px"].cast(pl.Int64) * labelled["width_px"].cast(pl.Int64)).to_list()
    some = baselines.some_images(sizes, labelled["cells"].to_list(), settings.seed)
    rows = data.rows_of(labelled["sample_id"].gather(some).to_list())
    images = [data.image(row) for row in rows]
    return baselines.choose(settings.baselines, images, [_labels(data, row) for row in rows])


def _of_model(data: CellImages, folder: Path, ids: list[str], predictions: pl.DataFrame) -> list[Matching]:
    """The masks in the folder against the labels of these samples."""
    objects = dict(predictions["sample_id"].value_counts().iter_rows())
    matchings = []
    for sample_id, row in zip(ids, data.rows_of(ids), strict=True):
        truth, masks = _labels(data, row), read_masks(folder, sample_id)
        if masks.shape != truth.shape:
            raise DataError(
                f"the masks of sample {sample_id!r} have shape {masks.shape}, its image {truth.shape}",
                place=folder,
                remedy=_AGAIN,
            )
        matching = match(truth, masks)
        rows = objects.get(sample_id, 0)
        if matching.found != rows:
            raise DataError(
                f"the masks of sample {sample_id!r} hold {matching.found} cells, its predictions {rows}",
                place=folder,
                remedy=_AGAIN,
            )
        matchings.append(matching)
    return matchings


def _of_baselines(data: CellImages, ids: list[str], chosen: dict[str, Choice]) -> dict[str, list[Matching]]:
    """What each method finds in these samples, against their labels."""
    matchings: dict[str, list[Matching]] = {method: [] for method in chosen}
    for row in progress(data.rows_of(ids), "judge the baselines", len(ids)):
        image, truth = data.image(row), _labels(data, row)
        for method, choice in chosen.items():
            matchings[method].append(match(truth, choice.segment(image)))
    return matchings


def _labels(data: CellImages, row: int) -> np.ndarray:
    labels = data.labels(row)
    if labels is None:
        raise DataError(f"sample {data.ids(np.array([row]))[0]!r} has no labels", place=data.folder)
    return labels


def _mean(values: np.ndarray) -> Score:
    return lambda rows: float(values[rows].mean())


def _per_image(test: _Test) -> pl.DataFrame:
    return pl.DataFrame([
        {"sample_id": sample_id, "method": method, "cells_true": m.true, "cells_found": m.found, **m.scores}
        for i, sample_id in enumerate(test.sample_ids)
        for method, matchings in test.matchings.items()
        for m in matchings[i : i + 1]
    ])  # fmt: skip


def _figures(
    settings: CellsEvaluate, data: CellImages, folder: Path, test: _Test, chosen: dict[str, Choice]
) -> tuple[dict[str, object], dict[str, str]]:
    msa = {method: test.scores(method, HEADLINE) for method in test.matchings}
    count = len(test.sample_ids)
    of = f"{count} test image{'s' if count > 1 else ''}" + (", too few to say much of others" * (count < FEWEST))
    curves = {who: np.stack([m.accuracy for m in matchings]) for who, matchings in test.matchings.items()}
    drawn: dict[str, object] = {"accuracy": figures.accuracy(curves), "per_image": figures.per_image(msa)}
    captions = {
        "accuracy": "Segmentation accuracy against the overlap (intersection over union) that a found cell needs to "
        f"count as right: mean of {of}. Shaded: the middle half of the images, for the model.",
        "per_image": f"mSA of each image, model against baseline, on {of}. Above the line the model is better.",
    }
    if settings.overlays:
        best = max(chosen, key=lambda method: msa[method].mean())
        order = np.argsort(msa[MODEL], kind="stable")  # from the worst to the best
        some = order[np.unique(np.linspace(0, count - 1, min(settings.overlays, count)).round().astype(int))]
        rows = data.rows_of([test.sample_ids[i] for i in some])
        shown = []
        for i, row in zip(some, rows, strict=True):
            image, name = data.image(row), test.sample_ids[i]
            masks = {MODEL: read_masks(folder, name), best: chosen[best].segment(image)}
            found = [figures.Found(who, masks[who], float(msa[who][i])) for who in masks]
            shown.append(figures.Shown(name, image, _labels(data, row), found))
        drawn["overlays"] = figures.overlays(shown)
        captions["overlays"] = (
            f"Outlines of true (blue) and found cells (orange), from the model's worst to its best of {of}; right: "
            f"{best}, on the whole the best baseline. Of a large image its middle is shown; the mSA is of all of it."
        )
    return drawn, captions
