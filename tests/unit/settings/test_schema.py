"""What is exported from the models: JSON Schemas and the reference page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manyscope.errors import SettingsError
from manyscope.registry import SCOPES
from manyscope.settings import scope_settings
from manyscope.settings.explain import schema_at, words
from manyscope.settings.schema import json_schema, scope_schema, settings_reference, write_schemas
from manyscope.settings.sections import ExperimentSettings


@pytest.fixture(autouse=True)
def scopes(monkeypatch: pytest.MonkeyPatch, fake_scope: None) -> None:
    monkeypatch.setattr(SCOPES, "paths", {"fakes": "fake_scope:Fake", "plugged": "fake_scope:Plugin"})


def test_schema_is_as_strict_as_the_model() -> None:
    schema = json_schema(scope_settings("fakes"))
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["scope", "model"]
    assert schema_at(schema, ("train", "lr"))["exclusiveMinimum"] == 0  # type: ignore[index]
    assert schema_at(schema, ("train", "tracker"))["enum"] == ["mlflow", "tensorboard", "wandb", "none"]  # type: ignore[index]
    assert schema_at(schema, ("train", "schedule"))["pattern"] == "^(cosine|constant|linear)$|:"  # type: ignore[index]


def test_scope_is_fixed_and_plugin_defaults_are_not_required() -> None:
    assert scope_schema("fakes")["properties"]["scope"]["const"] == "fakes"
    assert scope_schema("fakes")["required"] == ["scope", "model"]
    plugged = scope_schema("plugged")
    assert plugged["required"] == ["scope"]
    assert "required" not in schema_at(plugged, ("model",))  # type: ignore[operator]
    assert schema_at(scope_schema("fakes"), ("model",))["required"] == ["name"]  # type: ignore[index]


def test_files_are_written_and_checked(tmp_path: Path) -> None:
    page = tmp_path / "docs/settings.md"
    files = write_schemas(tmp_path / "schema", page)
    names = ["fakes.schema.json", "plugged.schema.json", "config.schema.json", "local.schema.json", "settings.md"]
    assert [file.name for file in files] == names
    first = [file.read_bytes() for file in files]
    for text in first:
        assert text.endswith(b"\n")
        assert not text.endswith(b"\n\n")
    assert [file.read_bytes() for file in write_schemas(tmp_path / "schema", page)] == first
    assert json.loads(first[2])["properties"]["set"]["anyOf"]
    write_schemas(tmp_path / "schema", page, check=True)


def test_stale_files_are_named_and_left(tmp_path: Path) -> None:
    files = write_schemas(tmp_path)
    files[0].write_text("{}")
    files[2].unlink()
    with pytest.raises(SettingsError) as error:
        write_schemas(tmp_path, check=True)
    assert error.value.problems == tuple(f"{files[n]}: not up to date; run: manyscope schema" for n in (0, 2))
    assert files[0].read_text() == "{}"
    assert not files[2].exists()


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "number", "exclusiveMinimum": 0}, "a number > 0"),
        ({"type": "number", "minimum": 0, "maximum": 1.5}, "a number from 0 to 1.5"),
        ({"type": "integer", "minimum": 2, "exclusiveMaximum": 8}, "a whole number >= 2 and < 8"),
        ({"type": "integer", "multipleOf": 2}, "a whole number a multiple of 2"),
        ({"enum": ["a", 2, None]}, "one of: a, 2, null"),
        ({"const": "a", "type": "string"}, "one of: a"),
        ({"type": "boolean"}, "true or false"),
        ({"type": "string", "format": "path"}, "a path"),
        ({"type": "string", "pattern": "^a"}, "text that matches ^a"),
        ({"type": "string", "minLength": 1}, "text of 1 or more characters"),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "a number or null"),
        (
            {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
            "a list of 1 to 3 items, each text",
        ),
        ({"type": "array", "items": {}, "minItems": 2, "maxItems": 2}, "a list of 2 items"),
        ({"type": "array", "prefixItems": [{"type": "number"}, {"type": "string"}]}, "a list of a number, text"),
        ({"type": "object"}, "a mapping"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "a mapping of names to a number"),
        ({"type": "object", "properties": {"a": {}, "b": {}}}, "a mapping with the keys a, b"),
        ({}, "anything"),
    ],
)
def test_schemas_in_plain_words(schema: dict[str, Any], text: str) -> None:
    assert words(schema, schema) == text


def test_reference_names_every_key_once() -> None:
    page = settings_reference()
    head, _, scopes_part = page.partition("## Scope `fakes`")
    for name, info in ExperimentSettings.model_fields.items():
        model = info.annotation
        if not hasattr(model, "model_fields"):
            continue
        section = head.partition(f"### `{name}`")[2].partition("##")[0]
        for key in model.model_fields:  # type: ignore[union-attr]
            assert section.count(f"| `{key}` |") == 1
    assert "| `shards` | a whole number | `1` | > 0 | Slices" in head
    assert "| `set` |" in head
    assert "| `tracking_uri` | text or null | `null` |" in head
    assert "| `name` | text | required |" in head
    assert page.endswith("|\n")
    assert scopes_part


def test_scope_tables_hold_only_what_differs() -> None:
    fakes = settings_reference().partition("## Scope `fakes`")[2].partition("## Scope `plugged`")[0]
    assert "### `fakes`: `train`\n\nHow fakes train." in fakes
    assert "| `lr` | a number | `0.5` | > 0 | Peak learning rate. |" in fakes
    assert "`epochs`" not in fakes
    assert "### `fakes`: `umap`" not in fakes
    assert "| `folder` | a path | `raw` |  | Folder \\| file. |" in fakes
