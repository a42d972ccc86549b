"""The one logger: coloured by level on a terminal, timed plain lines in a file; and progress that suits either."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger("manyscope")

_COLOURS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1"}
_LINE_EVERY_S = 10.0


class _TerminalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        colour = _COLOURS.get(record.levelno)
        message = record.getMessage()
        return f"\033[{colour}m{message}\033[0m" if colour else message


def configure(verbose: bool = False) -> None:
    """Send the log to stderr, once; `verbose` adds debug lines."""
    handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        handler.setFormatter(_TerminalFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Pass the items through: a bar on a terminal, a timed line every ten seconds in a log."""
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, total=total, leave=False)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            of = f"/{total}" if total else ""
            logger.info("%s: %d%s after %.0f s, %.1f/s", what, done, of, now - start, done / (now - start))
            last = now
