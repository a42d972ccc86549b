"""`manyscope new`: an experiment file with every setting in it, or a package with a scope of its own."""

from __future__ import annotations

import importlib.util
import json
import keyword
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from manyscope.errors import ManyscopeError, SettingsError
from manyscope.registry import SCOPES
from manyscope.settings.explain import kind_and_limits, schema_at
from manyscope.settings.loading import known_experiments, scope_defaults, scope_settings
from manyscope.settings.sections import Section
from manyscope.settings.source import plain_value, read_layer
from manyscope.tables.whole import whole_file, whole_folder

SCHEMA_FOLDER = Path("config/schema")

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SCOPE_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_HEAD = ("scope", "title")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")

# Template in commands/templates/scope -> file of the package.
_SCOPE_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "init.py": "src/{{package}}/__init__.py",
    "settings.py": "src/{{package}}/settings.py",
    "defaults.yaml": "src/{{package}}/defaults.yaml",
    "simulate.py": "src/{{package}}/simulate.py",
    "data.py": "src/{{package}}/data.py",
    "model.py": "src/{{package}}/model.py",
    "evaluate.py": "src/{{package}}/evaluate.py",
    "scope.py": "src/{{package}}/scope.py",
    "config.yaml": "config/config.yaml",
    "experiment.yaml": "config/experiments/{{name}}.yaml",
    "test.py": "tests/test_{{package}}.py",
}


def write_experiment(name: str, scope: str, folder: Path) -> Path:
    """Write `<folder>/<name>.yaml`: every setting of the scope as a comment at its default, in its section.

    Raises:
        ManyscopeError: the name is no file name, the file is there already, or the scope is unknown.
    """
    if not _FILE_NAME.fullmatch(name):
        raise ManyscopeError(
            f"{name!r} cannot be the name of an experiment",
            allowed="letters, digits, '_' and '-', a letter or digit first",
        )
    path = folder / f"{name}.yaml"
    if path.exists():
        raise ManyscopeError("the file is there already", place=path, remedy="choose another name, or delete it")
    text = _experiment_text(name, scope, folder)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _experiment_text(name: str, scope: str, folder: Path) -> str:
    model, defaults = scope_settings(scope), scope_defaults(scope)
    lines = []
    schema = SCHEMA_FOLDER / f"{scope}.schema.json"
    if schema.is_file():
        lines.append(f"# yaml-language-server: $schema={os.path.relpath(schema, folder)}")
    lines += [
        "# Each setting stands here at its default, as a comment: take away the '# ' before it to change it.",
        f"scope: {_inline(scope)}",
        f"title: {_inline(name.replace('_', ' ').replace('-', ' ').capitalize())}",
    ]
    values = {} if defaults is None else defaults.values
    lines += _section_lines(model, values, _settings_of_others(scope, folder), model.model_json_schema(), 0)
    return "\n".join(lines) + "\n"


def _settings_of_others(scope: str, folder: Path) -> dict[str, Any]:
    """What the first experiment of the same scope in the folder sets; it knows a model's name that works."""
    for name in known_experiments(folder):
        with suppress(SettingsError):
            values = read_layer(folder / f"{name}.yaml").values
            if values.get("scope") == scope:
                return values
    return {}


def _section_lines(
    model: type[Section], defaults: dict[str, Any], examples: dict[str, Any], schema: dict[str, Any], depth: int
) -> Iterator[str]:
    """A line for each setting. The heading of a section is no comment: a section with nothing in it sets nothing.

    Args:
        defaults: values of the scope's default settings, which hide those of the model.
        examples: values of another experiment, for settings without a default.
        schema: JSON Schema of the model.
    """
    indent = "  " * depth
    for name, info in model.model_fields.items():
        if depth == 0 and name in _HEAD:
            continue
        inside = info.annotation
        if isinstance(inside, type) and issubclass(inside, Section):
            below, known = (v[name] if isinstance(v.get(name), dict) else {} for v in (defaults, examples))
            part = schema_at(schema, (name,)) or {}
            if depth == 0:
                yield ""
            yield f"{indent}{name}:{_remark(info.description or _first_sentence(inside))}"
            yield from _section_lines(inside, below, known, {**part, "$defs": schema.get("$defs", {})}, depth + 1)
            continue
        remark = _remark(info.description, _choices(schema, name))
        if name in defaults:
            yield f"{indent}# {name}: {_inline(defaults[name])}{remark}"
        elif not info.is_required():
            yield f"{indent}# {name}: {_inline(info.get_default(call_default_factory=True))}{remark}"
        else:
            yield f"{indent}{name}: {_inline(_working_value(name, info, schema, examples))}{remark}"


def _working_value(name: str, info: FieldInfo, schema: dict[str, Any], examples: dict[str, Any]) -> Any:
    """A value for a setting without a default: from another experiment, the model's own examples, or its choices;
    null, which the check of the settings will explain, where none of them knows one."""
    known = [examples[name]] if name in examples else []
    return next(iter([*known, *(info.examples or []), *(schema_at(schema, (name,)) or {}).get("enum", [])]), None)


def _choices(schema: dict[str, Any], name: str) -> str:
    limits = kind_and_limits(schema["properties"][name], schema)[1]
    return f"O{limits[1:]}" if limits.startswith("one of: ") else ""


def _remark(*parts: str | None) -> str:
    text = " ".join(" ".join(part.split()) for part in parts if part)
    return f"  # {text}" if text else ""


def _first_sentence(model: type[Section]) -> str:
    return (model.__doc__ or "").split("\n\n")[0]


def _inline(value: Any) -> str:
    """A value as YAML on one line."""
    value = to_jsonable_python(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_inline(key)}: {_inline(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and plain_value(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def write_scope(name: str, folder: Path) -> Path:
    """Write the package `<folder>/<name>/`: a small scope that runs the whole chain, and tests that pass.

    Raises:
        ManyscopeError: the name cannot be that of a package or is taken, or the folder is there already.
    """
    words = _scope_words(name)
    target = folder / name
    if target.exists():
        raise ManyscopeError("the folder is there already", place=target, remedy="choose another name, or delete it")
    templates = files("manyscope.commands") / "templates" / "scope"
    with whole_folder(target) as partial:
        for template, pattern in _SCOPE_FILES.items():
            file = partial / _filled(pattern, words)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = (templates / f"{template}.tmpl").read_text(encoding="utf-8")
            file.write_text(_filled(text, words), encoding="utf-8")
    return target


def _scope_words(name: str) -> dict[str, str]:
    """What the placeholders of the templates stand for: `light-curves` makes the package `light_curves` and classes
    whose names begin with `LightCurves`.

    Raises:
        ManyscopeError: the name cannot be that of a package, or is taken.
    """
    package = name.replace("-", "_")
    if not _SCOPE_NAME.fullmatch(name) or keyword.iskeyword(package):
        raise ManyscopeError(
            f"{name!r} cannot be the name of a scope",
            allowed="letters, digits, and '_' or '-' between them, a letter first, and no keyword of Python",
        )
    if {name, package} & {taken for known in SCOPES.names() for taken in (known, known.replace("-", "_"))}:
        raise ManyscopeError(f"there is a scope {name!r} already", remedy="choose another name")
    if _is_importable(package):
        raise ManyscopeError(
            f"there is a Python module {package!r} already, which the package would hide", remedy="choose another name"
        )
    camel = "".join(part[:1].upper() + part[1:] for part in package.split("_"))
    return {"name": name, "package": package, "class": camel}


def _is_importable(module: str) -> bool:
    if module in sys.stdlib_module_names:
        return True
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # a mere folder of the name hides nothing


def _filled(text: str, words: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: words[match.group(1)], text)
