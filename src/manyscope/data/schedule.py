"""The order of training batches as a pure function of the step."""

from __future__ import annotations

import numpy as np


class ShuffledSchedule:
    """Seeded permutations of all samples, one after another, cut into batches of equal size.

    Every sample comes exactly once in each pass; a batch may straddle two passes, so that none is smaller.

    Args:
        size: number of training samples.
        batch_size: samples in one step; at most `size`.
        seed: two schedules of the same size and seed are the same.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, min(batch_size, size), seed
        self._passes: dict[int, np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> float:
        return self.size / self.batch_size

    def batch(self, step: int) -> np.ndarray:
        """Positions of the samples of step `step`, (batch_size,) int64."""
        first = step * self.batch_size
        epoch, offset = divmod(first, self.size)
        head = self._permutation(epoch)[offset : offset + self.batch_size]
        if len(head) == self.batch_size:
            return head
        return np.concatenate([head, self._permutation(epoch + 1)[: self.batch_size - len(head)]])

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._passes:
            if len(self._passes) > 2:
                self._passes.clear()
            self._passes[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.size)
        return self._passes[epoch]
