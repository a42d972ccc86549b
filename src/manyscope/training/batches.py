"""What one process of a training is fed: its share of every batch, the share's size, and the size of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, Sampler

from manyscope.data.loading import Schedule, TrainingData
from manyscope.errors import ManyscopeError


class StepBatches(Dataset[Any]):
    """Batch of global step i at position i: this process's share, its size, and the size of the whole."""

    def __init__(self, data: TrainingData, schedule: Schedule, rank: int, world: int) -> None:
        self._data, self._schedule, self._rank, self._world = data, schedule, rank, world

    def __getitem__(self, step: int) -> tuple[Any, int, int]:
        rows = self._schedule.batch(step)
        if len(rows) < self._world:
            raise ManyscopeError(
                f"step {step} has {len(rows)} samples for {self._world} processes",
                place="train.batch_size",
                remedy="raise it, or train on fewer processes",
            )
        own = rows[self._rank :: self._world]
        return self._data.train_batch(own), len(own), len(rows)


class RoundSampler(Sampler[int]):
    """The steps of the present round that are not done yet.

    Lightning calls `set_epoch` with the number of rounds done, but fetches the first batch of a continued training
    before it does so.
    """

    def __init__(self, steps: int, done: int) -> None:
        self._steps, self._done, self._round = steps, done, done // steps

    def set_epoch(self, epoch: int) -> None:
        self._round = epoch

    def __len__(self) -> int:
        return self._steps  # of the whole round: Lightning counts those that are done

    def __iter__(self) -> Iterator[int]:
        first = self._round * self._steps
        return iter(range(max(first, min(self._done, first + self._steps)), first + self._steps))


class ValidationBatches(IterableDataset[Any]):
    """This process's share of every batch of the validation split, with its size and the size of the whole.

    A process for which none is left gets the first sample again and a size of 0: each step is one of all together.
    """

    def __init__(self, data: TrainingData, batch_size: int, rank: int, world: int) -> None:
        self._data, self._batch_size, self._rank, self._world = data, batch_size, rank, world

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        for rows in self._data.validation_schedule(self._batch_size):
            own: Sequence[int] | np.ndarray = rows[self._rank :: self._world]
            yield self._data.validation_batch(own if len(own) else rows[:1]), len(own), len(rows)
