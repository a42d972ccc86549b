"""Reading YAML into plain values that remember their file and line, layering them, and filling in placeholders."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from manyscope.errors import SettingsError, did_you_mean

Key = tuple[str | int, ...]

_STANDARD_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+")
_BASED_INT = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}
_PLACEHOLDER = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_ENVIRONMENT = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """Where a value was written.

    Attributes:
        source: the file, or the override such as `--set galaxies.train.lr`.
        line: counted from 1; None for what has no lines.
        key: for an override, the key that `source` already names.
    """

    source: str
    line: int | None = None
    key: Key | None = None

    def problem(self, path: Key, text: str) -> str:
        """One line: the place, the path of the key unless the place names it, and the text."""
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        key = "" if path == self.key else dotted(path)
        return " ".join(": ".join(part for part in (where, key, text) if part).split())


@dataclass
class Layer:
    """Plain values, and the place of each key; the place of `()` is the whole source."""

    values: dict[str, Any]
    places: dict[Key, Place] = field(default_factory=dict)

    def place(self, path: Key) -> Place:
        """The place of a key; of one that an override made in passing, the override's; or of the nearest key above."""
        if path in self.places:
            return self.places[path]
        for inside, place in self.places.items():
            if path and inside[: len(path)] == path:
                return place
        return self.place(path[:-1]) if path else Place("settings")

    def problem(self, path: Key, text: str) -> str:
        return self.place(path).problem(path, text)


def dotted(path: Key) -> str:
    """`train.lr`; positions in a list as `scores[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def plain_value(text: str) -> Any:
    """What an unquoted scalar means by the core schema of YAML 1.2: 3e-4 is a number, on and 1_000 are text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED_INT.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


def read_layer(path: Path) -> Layer:
    """The mapping in a YAML file.

    Raises:
        SettingsError: the file is missing, unreadable, empty, not YAML, not a mapping, or names a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{path}: cannot be read ({reason})") from error
    layer = parse_layer(text, str(path))
    if not isinstance(layer.values, dict):
        kind = "the file is empty" if layer.values is None else f"found {found(layer.values)}"
        raise SettingsError(f"{path}:1: {kind}, allowed: a mapping of keys to values")
    return layer


def parse_layer(text: str, source: str, has_lines: bool = True) -> Layer:
    """The value of any YAML text, with the places of its keys.

    Args:
        source: file name, or what stands for it in messages.
        has_lines: False where a line number in `source` would mean nothing to the user.

    Raises:
        SettingsError: the text is not YAML, or a mapping names a key twice.
    """
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and has_lines else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise SettingsError(" ".join(f"{source}{line}: not YAML: {what}".split())) from error
    except YAMLError as error:
        raise SettingsError(" ".join(f"{source}: not YAML: {error}".split())) from error
    layer = Layer({}, {(): Place(source)})
    problems: list[str] = []
    layer.values = _value(node, (), layer, problems, (), has_lines) if node is not None else None  # type: ignore[assignment]
    if problems:
        raise SettingsError(*problems)
    return layer


def _value(node: Node, path: Key, layer: Layer, problems: list[str], above: tuple[int, ...], has_lines: bool) -> Any:
    source = layer.places[()].source

    def place(at: Node) -> Place:
        return Place(source, at.start_mark.line + 1 if has_lines else None)

    def report(at: Node, key: Key, text: str) -> None:
        problems.append(place(at).problem(key, text))

    if id(node) in above:
        report(node, path, "an anchor that contains itself")
        return None
    above = (*above, id(node))
    if not str(node.tag).startswith(_STANDARD_TAG):
        report(node, path, f"the tag {node.tag} is unknown, allowed: plain YAML")
        return None
    if isinstance(node, SequenceNode):
        items = []
        for position, item in enumerate(node.value):
            layer.places[*path, position] = place(item)
            items.append(_value(item, (*path, position), layer, problems, above, has_lines))
        return items
    if isinstance(node, MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                report(key_node, path, "a key that is a list or a mapping, allowed: text")
                continue
            key = key_node.value
            here = (*path, key)
            if str(key_node.tag) == _STANDARD_TAG + "merge":
                report(key_node, here, "merge keys are not supported; repeat the keys")
            elif key in values:
                first = layer.places[here].line
                where = f" (first in line {first})" if first else ""
                report(key_node, here, f"the key is there twice{where}; remove one")
            else:
                layer.places[here] = place(key_node)
                values[key] = _value(value_node, here, layer, problems, above, has_lines)
        return values
    # A scalar that YAML takes for text is quoted, tagged, or none of the other kinds.
    is_text = str(node.tag) == _STANDARD_TAG + "str" or getattr(node, "style", None)
    return node.value if is_text else plain_value(node.value)


def merged(layers: Iterable[Layer]) -> Layer:
    """Later layers over earlier ones: mappings are merged key by key, everything else is replaced whole."""
    result = Layer({})
    for layer in layers:
        if () in layer.places:
            result.places[()] = layer.places[()]
        _lay(result, result.values, layer.values, layer.places, ())
    return result


def _lay(result: Layer, under: dict[str, Any], over: Mapping[str, Any], places: dict[Key, Place], path: Key) -> None:
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            if here in places:
                result.places[here] = places[here]
            _lay(result, under[key], value, places, here)
            continue
        if key in under:
            result.places = {k: p for k, p in result.places.items() if k[: len(here)] != here}
        under[key] = copy.deepcopy(value)
        result.places.update({k: p for k, p in places.items() if k[: len(here)] == here})


def leaves(value: Any, path: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value that is neither a mapping nor a list, with its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from leaves(item, (*path, position))
    else:
        yield path, value


def filled(layer: Layer, names: Mapping[str, str | None], names_from: str) -> tuple[Layer, list[str]]:
    """The layer with its placeholders filled in, and what is wrong with them.

    `${env:VAR}` and `${env:VAR:-default}` stand for environment variables, `${name}` for one of `names`, `$${` for
    a literal `${`. A text that is one placeholder and nothing else becomes what YAML would read in its place.

    Args:
        names: None stands for a name that is known but not set.
        names_from: the file in which the user sets names, for messages.
    """
    problems: list[str] = []

    def fill(value: Any, path: Key) -> Any:
        if isinstance(value, dict):
            return {key: fill(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item, (*path, position)) for position, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value

        def one(match: re.Match[str]) -> str:
            if match.group() == "$${":
                return "${"
            try:
                return _meaning(match.group(1), names, names_from)
            except LookupError as error:
                problems.append(layer.problem(path, str(error.args[0])))
                return match.group()

        whole = _PLACEHOLDER.fullmatch(value)
        text = _PLACEHOLDER.sub(one, value)
        return plain_value(text) if whole and whole.group(1) is not None and text != value else text

    return Layer(fill(layer.values, ()), layer.places), problems


def _meaning(inside: str | None, names: Mapping[str, str | None], names_from: str) -> str:
    if inside is None:
        raise LookupError("found '${' without '}', allowed: ${name}, ${env:VARIABLE}, or $${ for a literal ${")
    variable = _ENVIRONMENT.fullmatch(inside)
    if variable:
        name, default = variable.groups()
        value = os.environ.get(name, default)
        if value is None:
            raise LookupError(f"environment variable {name!r} is not set; set it, or write ${{env:{name}:-default}}")
        return value
    if inside not in names:
        hint = did_you_mean(inside, list(names)) or (f"set it under variables in {names_from}" if names else "")
        allowed = ", ".join([*names, "env:VARIABLE"])
        raise LookupError(f"placeholder '${{{inside}}}' is unknown, allowed: {allowed}" + (f"; {hint}" if hint else ""))
    known = names[inside]
    if known is None:
        raise LookupError(f"placeholder '${{{inside}}}' has no value; set {inside} in {names_from}")
    return known


def found(value: Any) -> str:
    """A value in the words of YAML, with its kind where that may be the mistake."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (true or false)"
    if isinstance(value, int | float):
        return f"{value}"
    if isinstance(value, str):
        return f"{_short(repr(value))} (text)"
    return f"{_short(str(value))} ({'a mapping' if isinstance(value, dict) else 'a list'})"


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
