"""The trained model of any scope as an ONNX file, and predictions by onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manyscope.errors import CheckpointError, ManyscopeError
from manyscope.log import logger, progress
from manyscope.scopes.base import Scope
from manyscope.settings.loading import stage_code_digest
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.manifest import file_digest
from manyscope.tables.predictions import Objects
from manyscope.tables.samples import read_samples
from manyscope.tables.whole import sole_worker, write_json
from manyscope.training import onnx
from manyscope.training.checkpoints import load_weights
from manyscope.training.provenance import settings_digest, versions

_BATCHES = (64, 1, 7)  # sizes of the batches on which the export is compared with torch
_PATIENCE_S = 1800.0  # for another shard that exports
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


def write_onnx(
    settings: ExperimentSettings,
    scope: Scope[Any],
    paths: ExperimentPaths,
    file: Path,
    tolerance: float = onnx.TOLERANCE,
    opset: int = onnx.OPSET,
) -> dict[str, Any]:
    """Export the trained model of an experiment, compared with torch on its prepared samples, and write the measured
    differences to a JSON file beside it.

    Args:
        settings: of the stage infer.
        file: its name ends in .onnx.

    Returns:
        what the JSON file holds.

    Raises:
        CheckpointError: the weights are missing or of another model.
        DataError: the prepared samples are missing.
        ManyscopeError: the scope or the model cannot be exported, or the outputs differ. Nothing is written.
        MissingDependencyError: a package of the extra `onnx` is not installed.
    """
    if file.suffix != ".onnx":
        raise ManyscopeError("no name of a model to be written", place=file, allowed="a file that ends in .onnx")
    with _sole(paths):
        what, data = _exportable(settings, scope, paths)
        return _write(settings, paths, file, what, _real_batches(data, paths.samples), tolerance, opset)


def predict(
    settings: ExperimentSettings, scope: Scope[Any], paths: ExperimentPaths, sample_ids: Sequence[str]
) -> Iterator[Objects]:
    """What `Scope.predict` says, computed by onnxruntime on the CPU. A file of these very weights, settings, code and
    packages is used as it is; in the place of any other the model is exported first. Of several shards one exports.

    Raises:
        as `write_onnx`.
    """
    what, data = _exportable(settings, scope, paths)
    with _sole(paths):
        try:
            model = onnx.OnnxModel(paths.onnx)
            model.require(_origin(settings, paths, what, onnx.TOLERANCE))
        except CheckpointError as error:
            logger.info("%s: %s; exporting", paths.onnx, error.found)
            real = _real_batches(data, paths.samples)
            _write(settings, paths, paths.onnx, what, real, onnx.TOLERANCE, onnx.OPSET)
            model = onnx.OnnxModel(paths.onnx)
    size = settings.infer.batch_size
    batches = data.predict_batches(sample_ids, size)
    yield from onnx.apply(what, model, progress(batches, "infer", -(-len(sample_ids) // size)))


def _sole(paths: ExperimentPaths) -> Any:
    return sole_worker(paths.root / ".locks" / "export", _PATIENCE_S)


def _exportable(settings: ExperimentSettings, scope: Scope[Any], paths: ExperimentPaths) -> tuple[onnx.Exportable, Any]:
    data = scope.data(settings, paths.prepared)
    model = scope.model(settings, data)
    load_weights(paths.model, model, settings.scope, settings.model.model_dump(mode="json"))
    return scope.exportable(settings, data, model), data


def _origin(
    settings: ExperimentSettings, paths: ExperimentPaths, what: onnx.Exportable, tolerance: float
) -> dict[str, str]:
    """All that a file must agree with to be used: whatever it was made from, and what was asked of it."""
    values = {"scope": settings.scope, "model": settings.model.model_dump(mode="json"), "about": dict(what.about)}
    return {
        "weights_sha256": file_digest(paths.model),
        "settings_digest": settings_digest(values),
        "code_digest": stage_code_digest(settings, "infer"),
        "versions": json.dumps(versions(_PACKAGES)),
        "tolerance": f"{tolerance:g}",
    }


def _write(
    settings: ExperimentSettings, paths: ExperimentPaths, file: Path, what: onnx.Exportable, batches: list[Any],
    tolerance: float, opset: int,
) -> dict[str, Any]:  # fmt: skip
    origin = {"experiment": paths.experiment, "scope": settings.scope, **_origin(settings, paths, what, tolerance)}
    outputs = onnx.export(what, file, batches, origin, tolerance, opset)
    sizes = [len(batch[what.inputs[0]]) for batch in batches]
    report = {
        **origin, "versions": versions(_PACKAGES), "file_sha256": file_digest(file), "opset": opset,
        "tolerance": tolerance, "batches": sizes, "outputs": outputs,
    }  # fmt: skip
    write_json(file.with_suffix(".json"), report)
    for name, measured in outputs.items():
        logger.info(
            "%s: %s differs from torch's by %.2g of its root mean square on %d samples",
            file, name, measured["relative"], sum(sizes),
        )  # fmt: skip
    return report


def _real_batches(data: Any, place: Path) -> list[Any]:
    """Batches of prepared samples, evenly over all of them."""
    ids = read_samples(place)["sample_id"]
    chosen = ids.gather(np.linspace(0, len(ids) - 1, min(len(ids), sum(_BATCHES))).astype(np.int64)).to_list()
    batches, first = [], 0
    for size in _BATCHES:
        some = chosen[first : first + size] or chosen[:size]
        batches.append(next(iter(data.predict_batches(some, size))))
        first += size
    return batches
