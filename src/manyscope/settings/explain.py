"""Settings models in plain words: what a field allows, and what a validation error means for the user's file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from manyscope.errors import did_you_mean
from manyscope.settings.source import Key, Layer, found, leaves

Schema = dict[str, Any]

_KEY = "[key]"  # pydantic's mark of an error in the name of a mapping's item, not in its value


def validated(model: type[BaseModel], layer: Layer) -> tuple[Any, list[str]]:
    """The model of the layer's values, or None and one line for each problem, in the order of the file.

    Validation is strict, as for JSON: a list may become a tuple and text a path, but text is never a number.
    """
    problems = [
        (_rank(layer, path), layer.problem(path, f"found {value}, allowed: a finite number"))
        for path, value in leaves(layer.values)
        if isinstance(value, float) and not math.isfinite(value)
    ]
    try:
        made = model.model_validate_json(json.dumps(layer.values), strict=True)
    except ValidationError as error:
        problems += explained(error, model, layer)
        made = None
    return (made, []) if not problems else (None, [line for _, line in sorted(problems, key=lambda p: p[0])])


def explained(error: ValidationError, model: type[BaseModel], layer: Layer) -> list[tuple[tuple[int, int], str]]:
    """For each problem, its rank in the order of the file, and its line."""
    root = model.model_json_schema()
    lines = []
    for path, detail in _without_unions(error.errors(include_url=False), layer.values):
        lines.append((_rank(layer, path), layer.problem(path, _explanation(path, detail, root, layer))))
    return list(dict.fromkeys(lines))


def _rank(layer: Layer, path: Key) -> tuple[int, int]:
    place = layer.place(path)
    return (place.key is not None, place.line or 0)


def _explanation(path: Key, detail: Any, root: Schema, layer: Layer) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"unknown key; {_nearest_key(path, root, _value_at(layer.values, path[:-1]))}"
    if kind in ("value_error", "assertion_error"):
        message = str(detail.get("ctx", {}).get("error", detail["msg"]))
        value = detail["input"]
        return message if isinstance(value, dict) else f"found {found(value)}: {message}"
    if detail["loc"][-1:] == (_KEY,):
        pattern = detail.get("ctx", {}).get("pattern")
        return f"the name cannot be used, allowed: {f'text that matches {pattern}' if pattern else detail['msg']}"
    schema = schema_at(root, path)
    if kind.startswith("union_tag") and schema is not None:
        tag = str(detail["ctx"]["discriminator"]).strip("'")
        value = detail["input"].get(tag) if isinstance(detail["input"], dict) else None
        text = "missing" if value is None else f"found {found(value)}"
        known = list(schema["discriminator"]["mapping"])
        remedy = did_you_mean(value, known) if isinstance(value, str) else ""
        return f"key {tag!r}: {text}, allowed: one of: {', '.join(known)}" + (f"; {remedy}" if remedy else "")
    allowed = words(schema, root) if schema is not None else str(detail["msg"])
    if kind == "missing":
        return f"missing, allowed: {allowed}"
    value = _value_at(layer.values, path)
    remedy = ""
    if isinstance(value, str) and schema is not None:
        remedy = did_you_mean(value, [v for v in _choices(schema, root) if isinstance(v, str)])
    elif kind == "string_type" and isinstance(value, bool | int | float):
        remedy = "put it in quotes"
    return f"found {found(value)}, allowed: {allowed}" + (f"; {remedy}" if remedy else "")


def _nearest_key(path: Key, root: Schema, given: dict[str, Any]) -> str:
    word = str(path[-1])
    schema = schema_at(root, path[:-1])
    known = _keys(schema, root, given) if schema is not None else []
    near = did_you_mean(word, known)
    if near:
        return near
    elsewhere = [
        f"{section}.{word}"
        for section, part in root.get("properties", {}).items()
        if word in _resolved(part, root).get("properties", {})
    ]
    if elsewhere:
        return f"did you mean {' or '.join(map(repr, elsewhere))}?"
    return f"known: {', '.join(known)}"


def _keys(schema: Schema, root: Schema, given: dict[str, Any]) -> list[str]:
    """The keys of a mapping; of a union, those of the member that the given tag chooses, or else of all members."""
    schema = _resolved(schema, root)
    tag = schema.get("discriminator", {"propertyName": None, "mapping": {}})
    chosen = tag["mapping"].get(given.get(tag["propertyName"]))
    members = [{"$ref": chosen}] if chosen else _members(schema)
    inner = (key for member in members for key in _keys(member, root, given))
    return list(dict.fromkeys([*schema.get("properties", {}), *inner]))


def _without_unions(details: Iterable[Any], values: Any) -> list[tuple[Key, Any]]:
    """The path of each error in the file. Of the members of a union that all failed, the one that came nearest
    speaks; where none fits the value's kind, they speak as one."""
    single: list[tuple[Key, Any]] = []
    unions: dict[Key, dict[Any, list[tuple[Key, Any]]]] = {}
    for detail in details:
        path, member_at, member = _path(detail, values)
        if member_at is None:
            single.append((path, detail))
        else:
            unions.setdefault(member_at, {}).setdefault(member, []).append((path, detail))
    for at, members in unions.items():
        inside = [errors for errors in members.values() if any(len(path) > len(at) for path, _ in errors)]
        if inside:
            inside.sort(key=len)
            single += inside[0]
        else:
            single.append(next(iter(members.values()))[0])
    return single


def _path(detail: Any, values: Any) -> tuple[Key, Key | None, Any]:
    """The error's location without the names of union members, which stand in no file."""
    path: Key = ()
    member_at, member = None, None
    here = values
    location = detail["loc"]
    for number, part in enumerate(location):
        inside = (isinstance(here, dict) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        )
        if inside:
            here = here[part]
            path = (*path, part)
        elif detail["type"] == "missing" and number == len(location) - 1:
            path = (*path, part)
        elif member_at is None and part != _KEY:
            member_at, member = path, part
    return path, member_at, member


def _value_at(values: Any, path: Key) -> Any:
    for part in path:
        values = values[part]
    return values


def _resolved(schema: Schema, root: Schema) -> Schema:
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _members(schema: Schema) -> list[Schema]:
    return schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf") or []


def schema_at(schema: Schema, path: Key, root: Schema | None = None) -> Schema | None:
    """The part of a JSON Schema that speaks of one key, or None."""
    root = schema if root is None else root
    schema = _resolved(schema, root)
    if not path:
        return schema
    first, rest = path[0], path[1:]
    for member in _members(schema):
        inside = schema_at(member, path, root)
        if inside is not None:
            return inside
    if isinstance(first, int):
        fixed = schema.get("prefixItems", [])
        inside = fixed[first] if first < len(fixed) else schema.get("items")
    else:
        named = [part for pattern, part in schema.get("patternProperties", {}).items() if re.search(pattern, first)]
        inside = schema.get("properties", {}).get(first) or next(iter(named), schema.get("additionalProperties"))
    return schema_at(inside, rest, root) if isinstance(inside, dict) else None


def _choices(schema: Schema, root: Schema) -> list[Any]:
    schema = _resolved(schema, root)
    own = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return [*own, *(choice for member in _members(schema) for choice in _choices(member, root))]


def words(schema: Schema, root: Schema) -> str:
    """`a number > 0`, `one of: knn, lof`, … for one field of a JSON Schema."""
    kind, limits = kind_and_limits(schema, root)
    return limits if limits.startswith("one of: ") else f"{kind} {limits}".strip()


def kind_and_limits(schema: Schema, root: Schema) -> tuple[str, str]:
    """The kind of value (`a whole number`) and what it must keep to (`>= 0`), which may be empty."""
    schema = _resolved(schema, root)
    members = _members(schema)
    if len(members) == 1:
        return kind_and_limits(members[0], root)
    if members:
        each = dict.fromkeys(words(member, root) for member in members)
        return (", or " if any(", " in part for part in each) else " or ").join(each), ""
    if choices := _choices(schema, root):
        kind = kind_and_limits({"type": schema["type"]}, root)[0] if "type" in schema else "a choice"
        return kind, f"one of: {', '.join(_text(choice) for choice in choices)}"
    match schema.get("type"):
        case "number" | "integer" as number:
            return "a number" if number == "number" else "a whole number", _range(schema)
        case "string" if schema.get("format") in ("path", "file-path", "directory-path"):
            return "a path", ""
        case "string":
            return "text", _text_limits(schema)
        case "boolean":
            return "true or false", ""
        case "null":
            return "null", ""
        case "array":
            return _list_kind(schema, root), ""
        case "object" if "properties" in schema:
            return f"a mapping with the keys {', '.join(schema['properties'])}", ""
        case "object":
            named = list(schema.get("patternProperties", {}).values())
            inside = named[0] if named else schema.get("additionalProperties")
            values = words(inside, root) if isinstance(inside, dict) and inside else "anything"
            return "a mapping" if values == "anything" else f"a mapping of names to {values}", ""
    return "anything", ""


def _list_kind(schema: Schema, root: Schema) -> str:
    if "prefixItems" in schema:
        return f"a list of {', '.join(words(item, root) for item in schema['prefixItems'])}"
    kind = " ".join(part for part in ("a list", _count(schema, "Items", "items")) if part)
    inside = words(schema.get("items", {}), root)
    return kind if inside == "anything" else f"{kind}, each {inside}"


def _range(schema: Schema) -> str:
    if "minimum" in schema and "maximum" in schema:
        parts = [f"from {_number(schema['minimum'])} to {_number(schema['maximum'])}"]
    else:
        signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
        parts = [f"{sign} {_number(schema[key])}" for key, sign in signs.items() if key in schema]
    if "multipleOf" in schema:
        parts.append(f"a multiple of {_number(schema['multipleOf'])}")
    return " and ".join(parts)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(value)


def _text_limits(schema: Schema) -> str:
    pattern = f"that matches {schema['pattern']}" if "pattern" in schema else ""
    return " and ".join(part for part in (pattern, _count(schema, "Length", "characters")) if part)


def _count(schema: Schema, suffix: str, unit: str) -> str:
    least, most = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    if most is None:
        return f"of {least} or more {unit}" if least else ""
    if least == most:
        return f"of {most} {unit}"
    return f"of {least or 0} to {most} {unit}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
