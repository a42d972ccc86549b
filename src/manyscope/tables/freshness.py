"""Whether results are of what they stand beside: the neighbours in an older index would mislead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from manyscope.errors import DataError
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.whole import read_json, write_json

MADE_OF = {
    "train": ("preprocess",),
    "infer": ("train", "preprocess"),
    "map": ("infer", "train", "preprocess"),
    "index": ("infer", "train", "preprocess"),
    "evaluate": ("infer", "train", "preprocess"),
    "explore": ("map", "infer", "train", "preprocess"),
}
"""Method of `manyscope.api` -> those whose newer files its own must not stand beside, the next in the chain first."""
_BROUGHT_BY = {
    "train": ("train",),
    "infer": ("train",),
    "gather": ("train", "infer"),
    "umap": ("train", "infer", "map"),
    "index": ("train", "infer", "index"),
    "evaluate": ("train", "infer", "evaluate"),
    "explore": ("train", "infer", "map", "explore"),
}
"""Stage -> the methods whose files are up to date once it is."""
COPIED = "results that were copied need their times, too (cp -a, rsync -t, scp -p)"
"""What else may be wrong where a file is older than its source."""


def result_files(paths: ExperimentPaths) -> dict[str, Path]:
    """The file that tells of each stage, by the method that makes it, in the order of the chain."""
    return {
        "download": paths.manifest, "preprocess": paths.samples, "train": paths.model, "infer": paths.predictions,
        "map": paths.map, "index": paths.audit, "evaluate": paths.metrics, "explore": paths.page,
    }  # fmt: skip


def newer_source(paths: ExperimentPaths, method: str, sources: Sequence[str] | None = None) -> Path | None:
    """A file that is newer than the one of a method, which no run has found right since; None if there is none.

    Args:
        sources: the methods that are looked at; None are all of `MADE_OF`.
    """
    ages = dict(_ages(paths, method, MADE_OF.get(method, ()) if sources is None else sources))
    known = _confirmed(paths) if ages else set()
    return next((source for source, age in ages.items() if age not in known), None)


def confirm(paths: ExperimentPaths, until: str | None = None) -> None:
    """Note that the chain is up to date, as far as the stage `until`, whatever the files' ages.

    A stage that ran again and made the same bytes leaves what hangs on it older and yet right: Snakemake does not make
    that again, so its age alone would condemn it for ever.
    """
    states = {method: {age for _, age in _ages(paths, method, MADE_OF[method])} for method in MADE_OF}
    brought = MADE_OF if until is None else _BROUGHT_BY.get(until, ())
    before = _confirmed(paths)
    now = {age for ages in states.values() for age in ages} & before
    now |= {age for method in brought for age in states[method]}
    if now != before:
        write_json(paths.confirmed, sorted(now))


def _ages(paths: ExperimentPaths, method: str, sources: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """What the file of a method is older than, with the states of both."""
    files = result_files(paths)
    for source in sources:
        try:
            newer, older = files[source].stat(), files[method].stat()
        except FileNotFoundError:
            continue
        if newer.st_mtime_ns > older.st_mtime_ns:
            states = [f"{state.st_size} {state.st_mtime_ns}" for state in (newer, older)]
            yield files[source], f"{source} {states[0]} {method} {states[1]}"


def _confirmed(paths: ExperimentPaths) -> set[str]:
    try:
        return set(map(str, read_json(paths.confirmed))) if paths.confirmed.is_file() else set()
    except DataError:
        return set()  # the next run writes it anew
