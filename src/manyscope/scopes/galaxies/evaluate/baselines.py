"""The latent spaces that are judged: the model's, and those that cost no training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.latent.outliers import outlier_scores
from manyscope.latent.ranking import mean_rank
from manyscope.scopes.galaxies.model import describe, new_model
from manyscope.tables.predictions import embeddings

if TYPE_CHECKING:
    from torch import Tensor

    from manyscope.scopes.galaxies.data.stamps import StampData
    from manyscope.scopes.galaxies.settings import GalaxiesEvaluate, GalaxiesModel
    from manyscope.settings.sections import GatherSettings

OUTLIER = "outlier_"
_BATCH = 256
_PEAK_PIXELS = 20
# Float32 pixels: a GiB that principal components are learned from, and a quarter of one that is looked at at once.
_FITTED = 2**28
_PIECE = 2**26


@dataclass(frozen=True)
class Contender:
    """A latent space of the judged objects, training objects first.

    Attributes:
        train, test: latent vectors, (objects, dimensions), scaled as their nearest neighbours should be sought.
        outliers: name -> (test objects,), larger is stranger.
        error: (test objects,) mean squared error of the reconstruction, or None.
        told: (test objects,) names of the classes that the network itself tells, or None.
    """

    train: np.ndarray
    test: np.ndarray
    outliers: dict[str, np.ndarray] = field(default_factory=dict)
    error: np.ndarray | None = None
    told: np.ndarray | None = None

    @property
    def strangeness(self) -> np.ndarray:
        """Mean rank over all outlier scores, (test objects,) in (0, 1]."""
        return mean_rank(self.outliers)


def of_model(predictions: pl.DataFrame, train: np.ndarray, test: np.ndarray) -> Contender:
    """The trained model, whose predictions are in the order of the samples; latent numbers are standardised."""
    latent = embeddings(predictions)
    outliers = {n: predictions[n].to_numpy()[test] for n in predictions.columns if n.startswith(OUTLIER)}
    error = (
        predictions["reconstruction_error"].to_numpy()[test] if "reconstruction_error" in predictions.columns else None
    )
    told = predictions["predicted_class"].to_numpy()[test] if "predicted_class" in predictions.columns else None
    return Contender(*_standardised(latent[train], latent[test]), outliers, error, told)


def untrained(
    model: GalaxiesModel,
    settings: GalaxiesEvaluate,
    gather: GatherSettings,
    data: StampData,
    train: np.ndarray,
    test: np.ndarray,
) -> Contender:
    """The same network with random weights, of a seed of their own: what its form alone is worth."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(settings.untrained_seed)
        network = new_model(model, data).eval()
        parts = [describe(network, data.batch(rows)) for rows in _batches(np.concatenate([train, test]))]
    latent = np.concatenate([part.embedding for part in parts])
    columns = {name: np.concatenate([part.columns[name] for part in parts])[len(train) :] for name in parts[0].columns}
    outliers = {name: values for name, values in columns.items() if name.startswith(OUTLIER)}
    outliers |= _latent_outliers(latent, len(train), gather, standardize=True)
    latents = _standardised(latent[: len(train)], latent[len(train) :])
    return Contender(*latents, outliers, columns.get("reconstruction_error"))


def pca(
    settings: GalaxiesEvaluate,
    gather: GatherSettings,
    data: StampData,
    train: np.ndarray,
    test: np.ndarray,
    dimensions: int,
    shared: dict[str, np.ndarray],
) -> Contender:
    """Principal components of the same images, as many as the model has latent numbers.

    Its components are not standardised: that would raise the noise of the last ones to the level of the first, and
    make it a weaker opponent. For strangers it has four scores of its own, and those of `shared` that need no model.
    Memory does not grow with the objects, but for a few numbers of each.
    """
    import torch

    mean, axes = _components(data, train, dimensions, settings.seed)
    latents: list[Tensor] = []
    errors: list[Tensor] = []
    peaks: list[Tensor] = []
    rows = np.concatenate([train, test])
    at_once = max(1, _PIECE // len(mean))
    for first in range(0, len(rows), at_once):
        centred = torch.from_numpy(data.images(rows[first : first + at_once])).flatten(1) - mean
        latents.append(centred @ axes)
        of_test = slice(max(0, len(train) - first), None)
        squared = (centred[of_test] - latents[-1][of_test] @ axes.T).square()
        errors.append(squared.mean(1))
        peaks.append(squared.topk(min(_PEAK_PIXELS, squared.shape[1])).values.mean(1))
    latent, error = torch.cat(latents).numpy(), torch.cat(errors).numpy()
    outliers = {
        **shared,
        **_latent_outliers(latent, len(train), gather, standardize=False),
        "error": error,
        "peak": torch.cat(peaks).numpy(),
    }
    return Contender(latent[: len(train)], latent[len(train) :], outliers, error)


def _components(data: StampData, train: np.ndarray, dimensions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean, (pixels,), and principal components, (pixels, at most `dimensions`), of the training images, or of a seeded
    choice of them where all take more memory than `_FITTED`."""
    import torch

    size = int(np.prod(data.shape))
    most = max(1, _FITTED // size)
    if len(train) > most:
        train = np.sort(np.random.default_rng(seed).choice(train, most, replace=False))
    pixels, at_once = torch.empty(len(train), size), max(1, _PIECE // size)
    for first in range(0, len(train), at_once):
        some = slice(first, first + at_once)
        pixels[some] = torch.from_numpy(data.images(train[some])).flatten(1)
    mean = pixels.mean(0)
    pixels -= mean
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rank = min(dimensions, *pixels.shape)
        _, _, axes = torch.pca_lowrank(pixels, q=min(rank + 16, *pixels.shape), niter=4)
    return mean, axes[:, :rank]


def rings(
    settings: GalaxiesEvaluate,
    gather: GatherSettings,
    data: StampData,
    train: np.ndarray,
    test: np.ndarray,
    shared: dict[str, np.ndarray],
) -> Contender:
    """Whitened ring amplitudes: how far the rotation-invariant description gets without any network."""
    import torch

    from manyscope.scopes.galaxies.model.rings import Rings, Whitening

    describe_rings = Rings(data.shape)
    rows = np.concatenate([train, test])
    with torch.inference_mode():
        features = torch.cat([describe_rings(data.batch(some)["images"]) for some in _batches(rows)])
        whitening = Whitening(describe_rings.features, settings.ring_components)
        whitening.fit(features[: len(train)])
        latent = whitening(features).numpy()
    outliers = {**shared, **_latent_outliers(latent, len(train), gather, standardize=False)}
    return Contender(latent[: len(train)], latent[len(train) :], outliers)


def _latent_outliers(
    latent: np.ndarray, reference: int, gather: GatherSettings, standardize: bool
) -> dict[str, np.ndarray]:
    """The model's own kinds of latent score, for all vectors after the first `reference`, which judge them."""
    judges = np.arange(len(latent)) < reference
    scores = outlier_scores(latent, judges, gather.neighbours, standardize=standardize)
    return {f"{OUTLIER}{name}": values[reference:] for name, values in scores.items()}


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = train.mean(0), train.std(0)
    deviation[deviation == 0] = 1
    return (train - mean) / deviation, (test - mean) / deviation


def _batches(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[first : first + _BATCH] for first in range(0, len(rows), _BATCH)]
