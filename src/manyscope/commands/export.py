"""`manyscope export`: the trained model as an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manyscope.settings.paths import ExperimentPaths


def export(
    experiment: str, output: Path | None, tolerance: float, opset: int, overrides: Sequence[str],
    results: Path | None, config_file: Path,
) -> str:  # fmt: skip
    """Export, and say what was measured.

    Args:
        output: a file that ends in .onnx; results/<experiment>/export/model.onnx if None.
        tolerance: largest allowed difference from torch, in units of the root mean square of an output.

    Returns:
        the file, and for each output how far onnxruntime is from torch.

    Raises:
        as `manyscope.scopes.export.write_onnx`.
    """
    from manyscope.scopes.export import write_onnx
    from manyscope.scopes.registry import find_scope
    from manyscope.settings import load_config
    from manyscope.tables.whole import explaining_full_disk

    config = load_config(
        config_file=config_file, experiments=[experiment], overrides=[f"{experiment}.{text}" for text in overrides]
    )
    paths = ExperimentPaths.of(results or config.results, experiment)
    settings = config.experiments[experiment].for_stage("infer")
    file = output or paths.onnx
    with explaining_full_disk(file):
        report = write_onnx(settings, find_scope(settings.scope), paths, file, tolerance, opset)
    lines = [
        f"{name} {measured['shape']}: at most {measured['relative']:.1e} of its root mean square from torch's"
        for name, measured in report["outputs"].items()
    ]
    return "\n".join([str(file), *lines])
