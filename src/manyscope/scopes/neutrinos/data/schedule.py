"""Batches of events of like length within a budget of tokens, as a pure function of the step."""

from __future__ import annotations

import numpy as np

FEWEST = 16  # events in a batch, however long they are: each process of a distributed training gets some


class LengthSchedule:
    """Every event once in each pass, in batches of neighbouring lengths.

    Files are joined to windows of at least `window` events, which are the same in every pass. Within a window events
    are sorted by length, equal ones in a new random order in each pass, and cut into batches; the order of lengths is
    the same in each pass, hence so are the cuts and the number of batches. Windows, and batches within a window, come
    in a new random order in each pass.

    Args:
        lengths: tokens of each event, (events,) int, at least 1.
        files: number of the file of each event, (events,) int; events of a file are next to each other.
        shards: number of the shard of each event, (events,) int; a batch has those of a shard together, as it is read.
        batch_size: most events in a batch.
        budget: most tokens in a batch, padding included; a batch of the longest events may exceed it so that it
            holds `FEWEST` of them, or a few more at the end.
        seed: of the order, and of what files share a window.
        window: events in a window; a training that reads from disk has locality, one from memory has none to lose.
    """

    def __init__(
        self, lengths: np.ndarray, files: np.ndarray, shards: np.ndarray, batch_size: int, budget: int, seed: int,
        window: int,
    ) -> None:  # fmt: skip
        self._shards = shards
        self._lengths = np.asarray(lengths, np.int64)
        self._seed = seed
        self._windows = self._join(np.asarray(files), window)
        self._cuts = [cut(np.sort(self._lengths[rows]), batch_size, budget) for rows in self._windows]
        self.batches_per_epoch = sum(len(cuts) - 1 for cuts in self._cuts)
        self._epoch = -1

    @property
    def steps_per_epoch(self) -> float:
        return float(self.batches_per_epoch)

    def batch(self, step: int) -> np.ndarray:
        """Positions of the events of step `step`, (n,) int64."""
        epoch, number = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._begin(epoch)
        place = int(np.searchsorted(self._starts, number, "right")) - 1
        window = int(self._order[place])
        rows, order, cuts = self._window(epoch, window)
        i = order[number - self._starts[place]]
        rows = rows[cuts[i] : cuts[i + 1]]
        return rows[np.argsort(self._shards[rows], kind="stable")]

    def _begin(self, epoch: int) -> None:
        self._order = np.random.default_rng((self._seed, epoch)).permutation(len(self._windows))
        sizes = np.array([len(self._cuts[w]) - 1 for w in self._order])
        self._starts = np.cumsum(sizes) - sizes
        self._epoch, self._held = epoch, (-1, -1)

    def _window(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._held != (epoch, window):
            rng = np.random.default_rng((self._seed, epoch, window))
            shuffled = rng.permutation(self._windows[window])
            self._rows = shuffled[np.argsort(self._lengths[shuffled], kind="stable")]
            self._batches = rng.permutation(len(self._cuts[window]) - 1)
            self._held = (epoch, window)
        return self._rows, self._batches, self._cuts[window]

    def _join(self, files: np.ndarray, window: int) -> list[np.ndarray]:
        """The rows of each window: files in a seeded order, joined until the window is full."""
        starts = np.flatnonzero(np.diff(files, prepend=-1))
        runs = np.split(np.arange(len(files)), starts[1:])
        windows, waiting, count = [], list[np.ndarray](), 0
        for i in np.random.default_rng(self._seed).permutation(len(runs)):
            waiting.append(runs[i])
            count += len(runs[i])
            if count >= window:
                windows.append(np.concatenate(waiting))
                waiting, count = [], 0
        if waiting and windows:  # too few for a window of their own
            windows[-1] = np.concatenate([windows[-1], *waiting])
        elif waiting:
            windows.append(np.concatenate(waiting))
        return windows


def cut(lengths: np.ndarray, batch_size: int, budget: int) -> np.ndarray:
    """Where to cut events sorted by length into batches, (batches + 1,) int64 with 0 first and the count last.

    Args:
        lengths: (events,) int, ascending.

    A batch holds at most `batch_size` events, and at most `budget` tokens when padded to the longest, but `FEWEST`
    events or more whatever that takes (half of `batch_size` where this is less than twice `FEWEST`).
    """
    cuts = [0]
    while cuts[-1] < len(lengths):
        first = cuts[-1]
        most = min(batch_size, len(lengths) - first)
        padded = lengths[first : first + most] * np.arange(1, most + 1)  # ascending
        fitting = int(np.searchsorted(padded, budget, "right"))
        cuts.append(first + min(most, max(fitting, FEWEST)))
    if len(cuts) > 2 and cuts[-1] - cuts[-2] < FEWEST:
        # Rather than leave a few of the longest events on their own, join the last two batches or share them evenly.
        total = cuts[-1] - cuts[-3]
        cuts[-2:-1] = [] if total <= batch_size and total < 2 * FEWEST else [(cuts[-3] + cuts[-1]) // 2]
    return np.array(cuts, np.int64)
