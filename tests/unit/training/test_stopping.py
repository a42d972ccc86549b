"""Signals that ask a training to stop."""

from __future__ import annotations

import os
import signal

import pytest

from manyscope.training.stopping import SIGNALS, stop_request


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_afterwards_does_what_it_did(number: int) -> None:
    heard = list[int]()
    before = signal.signal(number, lambda found, frame: heard.append(found))
    try:
        with stop_request() as request:
            os.kill(os.getpid(), number)
            assert request.signal == number
        assert not heard
        os.kill(os.getpid(), number)
        assert heard == [number]
    finally:
        signal.signal(number, before)


def test_the_request_around_another_hears_what_the_inner_one_heard() -> None:
    with stop_request() as outer:
        with stop_request() as inner:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert (inner.signal, outer.signal) == (signal.SIGUSR1, 0)
        assert outer.signal == signal.SIGUSR1
        with stop_request() as other:
            assert other.signal == 0
        assert outer.signal == signal.SIGUSR1
    with stop_request() as later:
        assert later.signal == 0
