"""What the page of the scope shows is what the settings take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from manyscope.scopes.cells.data.sources import SOURCES
from manyscope.scopes.cells.data.weights import NAMES
from manyscope.scopes.cells.settings import CellsEvaluate, CellsSettings, PeftSettings

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = (REPOSITORY / "docs/cells.md").read_text()


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_experiments_on_the_page_are_valid(text: str) -> None:
    values: dict[str, Any] = YAML(typ="safe").load(text)
    found = CellsSettings.model_validate({"scope": "cells", **values})
    assert found.download.source == "folder" or found.download.weights.names
    assert set(found.download.weights.names) <= set(NAMES)


def test_the_page_names_every_choice() -> None:
    methods = get_args(PeftSettings.model_fields["method"].annotation)
    baselines = CellsEvaluate().baselines
    for name in (*SOURCES.names(), *methods, *baselines):
        assert f"`{name}`" in PAGE, name


def test_keys_on_the_page_exist() -> None:
    """Every `section.key` of the settings that the page speaks of."""
    settings = CellsSettings.model_validate({"scope": "cells"})
    sections = ("download", "preprocess", "model", "train", "infer", "evaluate")
    named = re.findall(rf"`({'|'.join(sections)})\.(\w+)(?::[^`]*)?`", PAGE)
    assert len(named) > 12
    for section, key in named:
        assert key in type(getattr(settings, section)).model_fields, f"{section}.{key}"
