"""Pictures from addresses of the web, politely: one at a time, and with a pause for each host."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from string import punctuation
from urllib.parse import quote, urlsplit

from manyscope.data.fetching import SilentHostError, fetch
from manyscope.errors import DataError
from manyscope.log import logger, progress
from manyscope.scopes.panoramas.data.pictures import is_picture

_REMEDY = "run the same command again, remove its rows, or set download.csv.missing to 'skip'"
_SILENT = 3  # times in a row that a host does not answer, after which it is asked no more


def fetch_pictures(wanted: Mapping[str, Path], pause_s: float) -> dict[str, DataError]:
    """Fetch the pictures that are not there yet.

    Args:
        wanted: address -> file.
        pause_s: between the end of a request and the next one to the same host.

    Returns:
        Address -> why its picture cannot be had.
    """
    missing = {address: file for address, file in wanted.items() if not file.exists()}
    if missing:
        logger.info("%d of %d pictures are to be fetched", len(missing), len(wanted))
    failed: dict[str, DataError] = {}
    silent: Counter[str] = Counter()
    ready_s: dict[str, float] = {}
    for address, file in progress(missing.items(), "fetching pictures", len(missing)):
        host = urlsplit(address).netloc
        if silent[host] == _SILENT:
            failed[address] = DataError(f"{address} is left out, {host} does not answer", place=file, remedy=_REMEDY)
            continue
        time.sleep(max(0.0, ready_s.get(host, 0.0) - time.monotonic()))
        try:
            fetch(quote(address, safe=punctuation), file, None, _REMEDY)  # of blanks and letters beyond ASCII
            if not is_picture(file):
                file.unlink()
                raise DataError(f"what arrives from {address} is no picture", place=file, remedy=_REMEDY)
            silent[host] = 0
        except DataError as error:
            failed[address] = error
            silent[host] = silent[host] + 1 if isinstance(error, SilentHostError) else 0
        ready_s[host] = time.monotonic() + pause_s
    return failed
