"""Settings given beside the files: `train.lr=3e-4` on the command line, `galaxies.train.lr=3e-4` in the workflow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from manyscope.errors import SettingsError
from manyscope.settings.source import Layer, Place, found, parse_layer

# Where one override ends and the next begins in a text that holds several.
_NEXT = re.compile(r"[\s,]+(?=[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+\s*=)")

_EXAMPLE = "EXPERIMENT.section.key=value, such as galaxies.train.lr=3e-4"


def parse_override(text: str, prefix: str = "", place: Place | None = None) -> Layer:
    """A layer with the one key that `section.key=value` sets; the value is YAML.

    Args:
        prefix: the experiment, for messages.
        place: where the override was written, when that is a file; otherwise problems name `--set KEY`.

    Raises:
        SettingsError: there is no "=", the key has an empty part, or the value is not YAML.
    """
    path, equals, value = text.partition("=")
    key = tuple(part.strip() for part in path.split("."))
    named = ".".join((prefix, *key) if prefix else key)
    source = f"{place.source}:{place.line}: set {named}" if place else f"--set {named}"
    if not equals:
        raise SettingsError(f"{source}: '=' is missing, allowed: section.key=value, such as train.lr=3e-4")
    if not all(key):
        raise SettingsError(f"{source}: the key has an empty part, allowed: section.key=value, such as train.lr=3e-4")
    values: Any = parse_layer(value.strip(), source, has_lines=False).values
    for part in reversed(key):
        values = {part: values}
    return Layer(values, {key: Place(source, key=key)})


def split_overrides(given: object) -> list[str]:
    """One text for each override.

    Snakemake reads `--config 'set=[a.b.c=1,d.e.f=2]'` as YAML: it hands over a list of texts, or the bracketed text
    itself where a value holds brackets or braces and the whole is no YAML.

    Raises:
        SettingsError: an item is not a text.
    """
    if given is None:
        return []
    if isinstance(given, str):
        text = given.strip()
        if text.startswith("[") and text.endswith("]"):
            text = text[1:-1].strip()
        return _split(text)
    if not isinstance(given, Sequence):
        raise SettingsError(_not_text(given))
    for item in given:
        if not isinstance(item, str):
            raise SettingsError(_not_text(item))
    return [item.strip() for item in given if item.strip()]


def _not_text(value: object) -> str:
    return f"found {found(value)}, allowed: a list of {_EXAMPLE}"


def _split(text: str) -> list[str]:
    """Cut before each `name.name=` that stands outside quotes, brackets and braces."""
    depth, quote, before, outside = 0, "", "=", []
    for letter in text:
        outside.append(not quote and depth == 0)
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and before in "=,:[{ ":  # an apostrophe within a word quotes nothing
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        before = letter
    cuts = [match for match in _NEXT.finditer(text) if outside[match.start()]]
    starts = [0, *(match.end() for match in cuts)]
    ends = [*(match.start() for match in cuts), len(text)]
    return [part for start, end in zip(starts, ends, strict=True) if (part := text[start:end].strip(" ,\n\t"))]


def by_experiment(overrides: Iterable[tuple[str, Place | None]]) -> tuple[dict[str, list[Layer]], list[str]]:
    """The overrides of each experiment, in the order given, and what is wrong with those that cannot be read.

    Args:
        overrides: `EXPERIMENT.section.key=value`, with the file and line where it stands in a file.
    """
    result: dict[str, list[Layer]] = {}
    problems: list[str] = []
    for text, place in overrides:
        path = text.partition("=")[0]
        experiment, _, rest = text.partition(".")
        experiment = experiment.strip()
        if "." not in path or not experiment:
            where = f"{place.source}:{place.line}: set" if place else "--set"
            problems.append(f"{where} {path.strip()}: names no experiment, allowed: {_EXAMPLE}")
            continue
        try:
            result.setdefault(experiment, []).append(parse_override(rest, experiment, place))
        except SettingsError as error:
            problems += error.problems
    return result, problems
