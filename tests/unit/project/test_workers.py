"""How the tests are dealt to the workers of pytest-xdist."""

from __future__ import annotations

import os

import pytest


@pytest.mark.xdist_group("grouped")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process, nothing to deal")
def test_a_group_goes_to_one_worker(request: pytest.FixtureRequest) -> None:
    # Without the suffix each worker builds the fixtures of a session or module anew: `make test` took 25 minutes.
    assert request.node.nodeid.endswith("@grouped")
