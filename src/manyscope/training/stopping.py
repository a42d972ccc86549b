"""Stopping a training when the cluster asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from manyscope.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether SIGTERM or SIGUSR1 has come: SLURM sends the one when it cancels, preempts or has run out of patience,
    the other some minutes before the time limit where the profile says so.

    Attributes:
        signal: its number, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0

    @property
    def name(self) -> str:
        return signal.Signals(self.signal).name if self.signal else "a signal to another process"

    def error(self, step: int, steps: int, place: Path) -> StoppedError:
        """To be raised once the checkpoint is written."""
        return StoppedError(
            f"{self.name} stopped the training at step {step} of {steps}; the checkpoint is written",
            place=place,
            remedy="the same command continues",
        )

    def listen(self) -> None:
        """From now on the signals are noted, whoever else has asked for them. Only the main thread gets any."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A request that is listened to inside the block; afterwards the signals do what they did before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    request = StopRequest()
    request.listen()
    try:
        yield request
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def ignore_in_loader(worker: int) -> None:
    """For the loader processes of a training, which get the same signals: it is the training that ends them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
