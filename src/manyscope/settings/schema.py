"""The settings models as JSON Schema for editors, and as a page of tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from manyscope.errors import SettingsError
from manyscope.registry import SCOPES
from manyscope.settings.explain import kind_and_limits
from manyscope.settings.loading import WorkflowSettings, scope_defaults, scope_settings
from manyscope.settings.sections import ExperimentSettings, Section
from manyscope.settings.site import Site

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(settings_class: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a settings model, for validation of what a user writes."""
    return {"$schema": _DIALECT, **settings_class.model_json_schema()}


def scope_schema(scope: str) -> dict[str, Any]:
    """The JSON Schema of an experiment of one scope; what the plug-in's default settings give is not required."""
    schema = json_schema(scope_settings(scope))
    schema["properties"]["scope"]["const"] = scope
    defaults = scope_defaults(scope)
    if defaults is not None:
        _relax(schema, defaults.values, schema)
    return schema


def _relax(part: dict[str, Any], given: dict[str, Any], root: dict[str, Any]) -> None:
    if "$ref" in part:
        part = root["$defs"][part["$ref"].rpartition("/")[2]]
    part["required"] = [key for key in part.get("required", []) if key not in given]
    if not part["required"]:
        del part["required"]
    for key, value in given.items():
        if isinstance(value, dict) and key in part.get("properties", {}):
            _relax(part["properties"][key], value, root)


def write_schemas(folder: Path, reference: Path | None = None, check: bool = False) -> list[Path]:
    """Write `<scope>.schema.json` for every registered scope, `config.schema.json` and `local.schema.json`.

    Args:
        reference: also write the page of `settings_reference` here.
        check: write nothing.

    Returns:
        The files.

    Raises:
        SettingsError: with `check`, names the files that are missing or not up to date.
    """
    schemas = {scope: scope_schema(scope) for scope in SCOPES.names()}
    schemas |= {"config": json_schema(WorkflowSettings), "local": json_schema(Site)}
    texts = {
        folder / f"{name}.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas.items()
    }
    if reference is not None:
        texts[reference] = settings_reference()
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        raise SettingsError(*(f"{path}: not up to date; run: manyscope schema" for path in stale))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path], encoding="utf-8")
    return list(texts)


def settings_reference() -> str:
    """A Markdown page: the workflow file, the site file, the shared sections, and what each scope adds or changes."""
    parts = [
        "# Settings",
        "This page is generated from the models by `manyscope schema`.",
        "## The workflow: `config/config.yaml`",
        _table(_rows(WorkflowSettings)),
        "## This computer: `config/local.yaml`",
        "Each key is also a placeholder for the other files, such as `${data_path}`.",
        _table(_rows(Site)),
        "## An experiment: `config/experiments/<name>.yaml`",
        "These sections are the same for every scope, unless the scope's own tables below say otherwise.",
        _table([row for row in _rows(ExperimentSettings) if "." not in row[0] and row[0] not in _sections()]),
    ]
    for name, section in _sections().items():
        parts += [f"### `{name}`", _sentence(section), _table(_rows(section))]
    for scope in SCOPES.names():
        parts += [f"## Scope `{scope}`", *_scope_parts(scope)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sections(model: type[ExperimentSettings] = ExperimentSettings) -> dict[str, type[Section]]:
    return {
        name: info.annotation
        for name, info in model.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
    }


def _scope_parts(scope: str) -> Iterator[str]:
    settings = scope_settings(scope)
    shared = _sections()
    yield _sentence(settings)
    for name, section in _sections(settings).items():
        known = set(_rows(shared[name])) if name in shared else set()
        rows = [row for row in _rows(section) if row not in known]
        if rows:
            yield f"### `{scope}`: `{name}`"
            yield _sentence(section)
            yield _table(rows)


def _sentence(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


Row = tuple[str, str, str, str, str]


def _rows(model: type[BaseModel], prefix: str = "") -> list[Row]:
    """Key, kind, default, allowed, description of each field; those of a section within it with dotted keys."""
    root = model.model_json_schema()
    rows = []
    for name, info in model.model_fields.items():
        key = prefix + (info.alias or name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            if info.description:
                rows.append((key, "section", "", "", info.description))
            rows += _rows(info.annotation, f"{key}.")
            continue
        kind, allowed = kind_and_limits(root["properties"][info.alias or name], root)
        default = "required" if info.is_required() else _default(info.get_default(call_default_factory=True))
        rows.append((key, kind, default, allowed, info.description or ""))
    return rows


def _default(value: Any) -> str:
    plain = _plain(value)
    return f"`{plain}`" if isinstance(plain, str) and plain else f"`{json.dumps(plain, ensure_ascii=False)}`"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _table(rows: list[Row]) -> str:
    lines = ["| key | type | default | allowed | meaning |", "| --- | --- | --- | --- | --- |"]
    for key, kind, default, allowed, meaning in rows:
        cells = (f"`{key}`", kind, default, allowed, meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)
