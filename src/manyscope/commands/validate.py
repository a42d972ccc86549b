"""`manyscope validate`: settings, and the data that is already there."""

from __future__ import annotations

from collections.abc import Iterator

from manyscope.errors import DataError, ManyscopeError
from manyscope.scopes.registry import find_scope
from manyscope.settings import Config
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.manifest import file_digest, read_manifest
from manyscope.tables.samples import check_samples, read_samples


def validate(config: Config, experiment: str) -> Iterator[str]:
    """Every problem of one experiment, a line each. The settings themselves were checked while loading."""
    settings, paths = config.settings(experiment), config.paths(experiment)
    try:
        for problem in find_scope(settings.scope).problems(settings):
            yield f"{experiment}: {problem}"
        yield from _raw_problems(paths)
        if paths.samples.exists():
            check_samples(read_samples(paths.samples), paths.samples)
    except ManyscopeError as error:
        yield f"{experiment}: {error}"


def _raw_problems(paths: ExperimentPaths) -> Iterator[str]:
    if not paths.manifest.exists():
        return
    for path, digest, state in read_manifest(paths.manifest).select("path", "sha256", "state").iter_rows():
        file = paths.raw / path
        if state != "done":
            continue
        if not file.is_file():
            yield str(DataError("the file is missing", place=file, remedy="run the stage download again"))
        elif file_digest(file) != digest:
            yield str(
                DataError("the file changed since its download", place=file, remedy="run the stage download again")
            )
