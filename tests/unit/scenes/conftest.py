"""Graphs of the small scene."""

from __future__ import annotations

import pytest

from small_scene import small_graph


@pytest.fixture
def graph():
    return small_graph()
