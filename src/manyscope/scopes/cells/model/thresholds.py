"""The thresholds of the decoder's watershed, chosen on the validation images alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from manyscope.log import logger, progress
from manyscope.scopes.cells.evaluate.matching import scores
from manyscope.scopes.cells.model.segment import Segmenter
from manyscope.scopes.cells.objects import postprocess

if TYPE_CHECKING:
    from manyscope.scopes.cells.data.images import CellImages
    from manyscope.scopes.cells.model.networks import CellSegmenter
    from manyscope.scopes.cells.settings import CellsSettings

_IMAGES = 24  # more tell no more about four numbers


# Mean segmentation accuracy; where that is the same, as for a model that finds nothing yet, how near the number of
# cells is to the true one.
Accuracy = tuple[float, float]
Values = tuple[float, float, float, int]


def choose_thresholds(model: CellSegmenter, settings: CellsSettings, data: CellImages) -> None:
    """Set `model.chosen` to what gives the best mean segmentation accuracy on at most 24 validation images.

    The thresholds of the two distances are tried in all pairs, then the one of the foreground, then the smallest area:
    the four together would be ten times as many watersheds, for the last two hardly depend on the first.
    """
    train = settings.train
    rows = data.labelled("validation")
    if len(rows) > _IMAGES:
        rows = np.sort(np.random.default_rng(train.seed).choice(rows, _IMAGES, replace=False))
    segmenter = Segmenter(model, settings.model)
    cases = []
    for row in progress(rows, "thresholds", len(rows)):
        image, truth = data.image(int(row)), data.labels(int(row))
        assert truth is not None
        cases.append((segmenter.fields(image, segmenter.embed(image)), truth))

    def accuracy(values: Values) -> Accuracy:
        centre, border, foreground, area = values
        found, apart = [], []
        for fields, truth in cases:
            masks = segmenter.instances(fields, centre=centre, border=border, foreground=foreground)
            masks = postprocess(masks, area, 0, None)
            found.append(scores(truth, masks)["msa"])
            apart.append(abs(int(masks.max()) - int(truth.max())))
        return float(np.mean(found)), -float(np.mean(apart))

    middle = _middle(train.thresholds)
    smallest = min(train.min_areas_px)
    best, _ = _best(((c, b, middle, smallest) for c in train.thresholds for b in train.thresholds), accuracy)
    best, _ = _best(((best[0], best[1], f, smallest) for f in train.thresholds), accuracy)
    best, value = _best(((best[0], best[1], best[2], area) for area in train.min_areas_px), accuracy)
    model.chosen.copy_(torch.tensor(best, dtype=torch.float32))
    logger.info(
        "thresholds chosen on %d validation images, mSA %.3f there:"
        " centre %g, border %g, foreground %g, at least %d px",
        len(rows), value[0], *best,
    )  # fmt: skip


def _middle(values: tuple[float, ...]) -> float:
    return sorted(values)[len(values) // 2]


def _best(candidates: Iterable[Values], accuracy: Callable[[Values], Accuracy]) -> tuple[Values, Accuracy]:
    """The first of the candidates with the highest accuracy, and that."""
    judged = [(accuracy(candidate), candidate) for candidate in candidates]
    value, best = max(judged, key=lambda pair: pair[0])
    return best, value
