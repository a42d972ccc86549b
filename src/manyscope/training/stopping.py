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
_requests: list[StopRequest] = []


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

    def error(self, step: int, steps: int | None, place: Path) -> StoppedError:
        """To be raised once the checkpoint is written.

        Args:
            steps: of the whole training, where that is known.
        """
        of_all = f" of {steps}" if steps else ""
        return StoppedError(
            f"{self.name} stopped the training at step {step}{of_all}; the checkpoint is written",
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
    """A request that is listened to inside the block; afterwards the signals do what they did before. Inside of another
    such block, that one's request hears of them, too."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    request = StopRequest()
    request.listen()
    _requests.append(request)
    try:
        yield request
    finally:
        _requests.pop()
        if _requests and request.signal:
            _requests[-1].signal = request.signal
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def ignore_in_loader(worker: int) -> None:
    """For the loader processes of a training, which get the same signals: it is the training that ends them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
