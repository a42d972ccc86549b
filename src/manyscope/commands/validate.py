"""`manyscope validate`: settings, and the data that is already there."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from typing import Any

from manyscope.errors import DataError, ManyscopeError
from manyscope.latent.stores import STORES
from manyscope.registry import unknown_names
from manyscope.scopes.base import Scope
from manyscope.scopes.registry import find_scope
from manyscope.settings import Config
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.manifest import file_digest, read_manifest
from manyscope.tables.samples import check_samples, read_samples
from manyscope.training.choices import training_problems

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra `onnx`


def validate(config: Config, experiment: str) -> Iterator[str]:
    """Every problem of one experiment, a line each. The settings themselves were checked while loading."""
    settings, paths = config.settings(experiment), config.paths(experiment)
    try:
        scope = find_scope(settings.scope)
        for problem in chain(scope.problems(settings), _engine_problems(scope, settings)):
            yield f"{experiment}: {problem}"
        for problem in training_problems(settings.train):
            yield f"{experiment}: {problem}"
        for problem in unknown_names([("index.store", STORES, settings.index.store)]):
            yield f"{experiment}: {problem}"
        yield from _raw_problems(paths)
        if paths.samples.exists():
            check_samples(read_samples(paths.samples), paths.samples)
    except ManyscopeError as error:
        yield f"{experiment}: {error}"


def _engine_problems(scope: Scope[Any], settings: ExperimentSettings) -> Iterator[str]:
    if settings.infer.engine != "onnx":
        return
    if type(scope).exportable is Scope.exportable:
        yield f"infer.engine: models of scope {settings.scope!r} cannot be exported to ONNX; leave it at torch"
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        yield f"infer.engine: not installed: {', '.join(missing)}; pip install 'manyscope[onnx]', or leave it at torch"


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
