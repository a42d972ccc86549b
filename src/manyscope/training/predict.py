"""Applying a trained model to batches, one process and one device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from manyscope.log import progress
from manyscope.training.memory import keep_freed_memory

T = TypeVar("T")


def on_device(model: nn.Module, batches: Iterable[Any], total: int, apply: Callable[[Any], T]) -> Iterator[T]:
    """What `apply` gives for each batch, with model and batch on the GPU where there is one; in eval mode, without
    gradients, with progress out of `total` batches."""
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()
    for batch in progress(batches, "infer", total):
        # Not around the loop: the caller's own work between two batches is none of ours.
        with torch.inference_mode():
            result = apply(to_device(batch, device))
        yield result


def to_device(batch: Any, device: str) -> Any:
    """The batch with every tensor in it on the device; other values stay as they are."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
