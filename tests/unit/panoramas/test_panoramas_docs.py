"""What the page of the scope shows is what the settings take."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from manyscope.scopes.panoramas.data.sources import SOURCES
from manyscope.scopes.panoramas.model.overlap import LOSSES
from manyscope.scopes.panoramas.model.resamplers import RESAMPLERS
from manyscope.scopes.panoramas.settings import (
    STAGES,
    LanguageSettings,
    PanoramasSettings,
    RoomsSettings,
    ViewSettings,
    VisionSettings,
)
from manyscope.scopes.panoramas.views.strategies import STRATEGIES, find_views

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = (REPOSITORY / "docs/panoramas.md").read_text()


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_experiments_on_the_page_are_valid(text: str) -> None:
    values: dict[str, Any] = YAML(typ="safe").load(text)
    found = PanoramasSettings.model_validate({"scope": "panoramas", **values})
    assert found.download.source == "csv" or found.download.hub.names
    assert set(found.download.hub.names) == {found.model.vision.pretrained, found.model.language.pretrained} - {None}


def test_the_page_names_every_choice() -> None:
    types = [get_args(part.model_fields["type"].annotation) for part in (VisionSettings, LanguageSettings)]
    questions = get_args(get_args(RoomsSettings.model_fields["questions"].annotation)[0])
    assert len(questions) == 9
    known = (SOURCES, STRATEGIES, RESAMPLERS, LOSSES)
    for name in (*(name for registry in known for name in registry.names()), *sum(types, ()), *questions, *STAGES):
        assert f"`{name}`" in PAGE, name


def test_the_page_counts_the_views() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE, re.MULTILINE)
    assert {name for name, _ in rows} == set(STRATEGIES.names())
    for name, count in rows:
        assert len(find_views(ViewSettings(strategy=name))) == int(count), name


def test_keys_on_the_page_exist() -> None:
    """Every `section.key` of the settings that the page speaks of, of the sections and of those within them."""
    settings = PanoramasSettings.model_validate({"scope": "panoramas"})
    known: dict[str, set[str]] = defaultdict(set)  # some sections have the same name, such as model.vision
    for section in ("download", "preprocess", "model", "train", "infer", "evaluate"):
        own = type(getattr(settings, section))
        for name, part in [(section, own), *((name, field.annotation) for name, field in own.model_fields.items())]:
            if isinstance(part, type) and issubclass(part, BaseModel):
                known[name] |= part.model_fields.keys()
    named = [path.split(".")[-2:] for path in re.findall(r"`((?:\w+\.)+\w+)(?:: [^`]*)?`", PAGE)]
    named = [(section, key) for section, key in named if section in known]
    assert len(named) > 12
    for section, key in named:
        assert key in known[section], f"{section}.{key}"
