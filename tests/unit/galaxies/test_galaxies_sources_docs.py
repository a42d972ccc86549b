"""What the page of the sources shows is what the settings take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from manyscope.scopes.galaxies.data.sources import SOURCES
from manyscope.scopes.galaxies.data.transforms import Transforms
from manyscope.scopes.galaxies.settings import GalaxiesSettings

PAGE = (Path(__file__).resolve().parents[3] / "docs/galaxies-sources.md").read_text()


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_experiments_on_the_page_are_valid(text: str) -> None:
    values: dict[str, Any] = YAML(typ="safe").load(text)
    settings = GalaxiesSettings.model_validate(values)
    assert settings.download.source in SOURCES.names()
    Transforms(step.model_dump() for step in settings.preprocess.transforms)


def test_the_page_names_every_source() -> None:
    for name in SOURCES.names():
        assert f"| `{name}` |" in PAGE, name
