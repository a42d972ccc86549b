"""Prepared tiny rooms."""

from __future__ import annotations

import pytest

from manyscope.scopes.panoramas.data.panoramas import Panoramas
from small_pano import prepare, small_settings


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    return prepare(small_settings(), tmp_path_factory.mktemp("rooms"))


@pytest.fixture(scope="session")
def rooms(prepared):
    return Panoramas(prepared)
