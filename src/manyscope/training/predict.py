"""Applying a trained model to samples, one process and one device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from manyscope.log import progress
from manyscope.scopes.base import Scope
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.predictions import Objects
from manyscope.training.checkpoints import load_weights


def predict(
    scope: Scope[Any], settings: ExperimentSettings, prepared: Path, weights: Path, sample_ids: Sequence[str]
) -> Iterator[Objects]:
    """The default of `Scope.predict`.

    Raises:
        CheckpointError: the weights are of another model.
    """
    data = scope.data(settings, prepared)
    model = scope.model(settings, data)
    load_weights(weights, model, settings.scope, settings.model.model_dump(mode="json"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()
    batches = data.predict_batches(sample_ids, settings.infer.batch_size)
    total = -(-len(sample_ids) // settings.infer.batch_size)
    with torch.inference_mode():
        for batch in progress(batches, "infer", total):
            yield scope.predict_batch(settings, model, to_device(batch, device))


def to_device(batch: Any, device: str) -> Any:
    """The batch with every tensor in it on the device; other values stay as they are."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
