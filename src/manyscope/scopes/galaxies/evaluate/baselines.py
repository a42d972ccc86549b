"""The latent spaces that are judged: the model's, and those that cost no training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.latent.outliers import outlier_scores
from manyscope.scopes.galaxies.model import build_model, describe
from manyscope.tables.predictions import embeddings

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.data.stamps import StampData
    from manyscope.scopes.galaxies.settings import GalaxiesEvaluate, GalaxiesModel
    from manyscope.settings.sections import GatherSettings

OUTLIER = "outlier_"
_BATCH = 256
_PEAK_PIXELS = 20


@dataclass(frozen=True)
class Contender:
    """A latent space of the judged objects, training objects first.

    Attributes:
        train, test: latent vectors, (objects, dimensions), scaled as their nearest neighbours should be sought.
        outliers: name -> (test objects,), larger is stranger.
        error: (test objects,) mean squared error of the reconstruction, or None.
    """

    train: np.ndarray
    test: np.ndarray
    outliers: dict[str, np.ndarray] = field(default_factory=dict)
    error: np.ndarray | None = None

    @property
    def strangeness(self) -> np.ndarray:
        """Mean rank over all outlier scores, (test objects,) in (0, 1]."""
        ranks = [pl.Series(score).rank("average").to_numpy() / len(score) for score in self.outliers.values()]
        return np.mean(ranks, axis=0)


def of_model(predictions: pl.DataFrame, train: np.ndarray, test: np.ndarray) -> Contender:
    """The trained model, whose predictions are in the order of the samples; latent numbers are standardised."""
    latent = embeddings(predictions)
    outliers = {n: predictions[n].to_numpy()[test] for n in predictions.columns if n.startswith(OUTLIER)}
    error = predictions["reconstruction_error"].to_numpy()[test] if "reconstruction_error" in predictions else None
    return Contender(*_standardised(latent[train], latent[test]), outliers, error)


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
        network = build_model(model, data).eval()
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
    """
    import torch

    pixels = torch.from_numpy(data.images(np.concatenate([train, test]))).flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        mean = pixels[: len(train)].mean(0)
        rank = min(dimensions, len(train), pixels.shape[1])
        _, _, axes = torch.pca_lowrank(
            pixels[: len(train)] - mean, q=min(rank + 16, *pixels[: len(train)].shape), niter=4
        )
    latent = (pixels - mean) @ axes[:, :rank]
    residual = pixels[len(train) :] - mean - latent[len(train) :] @ axes[:, :rank].T
    squared = residual.square()
    outliers = {
        **shared,
        **_latent_outliers(latent.numpy(), len(train), gather, standardize=False),
        "error": squared.mean(1).numpy(),
        "peak": squared.topk(min(_PEAK_PIXELS, squared.shape[1])).values.mean(1).numpy(),
    }
    return Contender(latent[: len(train)].numpy(), latent[len(train) :].numpy(), outliers, outliers["error"])


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
