"""What training and inference ask of a scope's prepared data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


class TrainingData(Protocol):
    """What a training is fed.

    A batch is a dict of tensors and lists, whatever the scope's model takes.
    """

    @property
    def train_size(self) -> int:
        """Number of training samples."""

    def train_schedule(self, batch_size: int, seed: int) -> Schedule:
        """The endless order of training batches."""

    def train_batch(self, indices: Sequence[int] | np.ndarray) -> Any:
        """The batch of the training samples with these positions."""

    def validation_schedule(self, batch_size: int) -> Iterable[Sequence[int] | np.ndarray]:
        """Positions of the validation samples, batch by batch, always in the same order."""

    def validation_batch(self, positions: Sequence[int] | np.ndarray) -> Any:
        """The batch of the validation samples with these positions."""


class ScopeData(TrainingData, Protocol):
    """Prepared samples, ready to be cut into batches; the "sample_id" of a batch is a list of str."""

    def predict_batches(self, sample_ids: Sequence[str], batch_size: int) -> Iterable[Any]:
        """The named samples, each exactly once."""


class Schedule(Protocol):
    """Which samples form which optimiser step: a pure function of the step, which makes a resumed run exact."""

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps in one pass over the training samples; need not be whole."""

    def batch(self, step: int) -> Sequence[int] | np.ndarray:
        """Positions of the training samples of global step `step`, over all processes."""
