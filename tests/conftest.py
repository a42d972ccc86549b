"""For all tests: properties are checked however slow or busy the machine is, and each process takes one thread."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
MARKED = ("browser", "slurm")
"""Folders whose tests all have the mark of the same name, and share what is started once for them."""

settings.register_profile("any_speed", deadline=None)
settings.load_profile("any_speed")

# Tests run side by side: threads that wait for a core spin, and a training of a second takes half a minute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # umap-learn called by a test would set it for torch, too


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for folder in MARKED:
            if HERE / folder in item.path.parents:
                item.add_marker(getattr(pytest.mark, folder))
                item.add_marker(pytest.mark.xdist_group(folder))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # PyTorch and its like are millions of objects, which no collection of garbage need look at again
