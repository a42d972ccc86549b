"""`manyscope edit`: show what was trained, changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manyscope.errors import ManyscopeError, SettingsError
from manyscope.settings.explain import validated
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.source import Layer, parse_layer, read_layer


def edit(
    experiment: str, edits: Sequence[str], file: Path | None, name: str, results: Path | None, config_file: Path
) -> list[Path]:
    """Carry out edits on an experiment's trained model.

    Args:
        edits: one each as "do: remove, object: object-1".
        file: a YAML file with a list `edits` instead.
        name: of the folder below results/<experiment>/edits/ that is written.

    Returns:
        what was written.

    Raises:
        SettingsError: an edit is not understood.
        ManyscopeError: none or both of `edits` and `file` are given, or the scope has nothing to edit.
    """
    from manyscope.scopes.registry import find_scope
    from manyscope.settings import load_config

    if bool(edits) == (file is not None):
        raise ManyscopeError(
            "edits come from the command line or from a file", allowed='one of: "do: remove, object: NAME" …, --file'
        )
    if not name or Path(name).name != name or name.startswith("."):
        raise ManyscopeError(f"{name!r} cannot be the name of a folder", place="--name")
    config = load_config(config_file=config_file, experiments=[experiment])
    settings = config.experiments[experiment]
    scope = find_scope(settings.scope)
    if scope.Edits is None:
        raise ManyscopeError(f"scope {scope.name!r} has nothing to edit", place=experiment)
    made, problems = validated(scope.Edits, _layer(edits, file))
    if problems:
        raise SettingsError(*problems)
    paths = ExperimentPaths.of(results or config.results, experiment)
    return scope.edit(settings, paths.export, made, paths.edits / name)


def _layer(edits: Sequence[str], file: Path | None) -> Layer:
    if file is not None:
        return read_layer(file)
    items = [text if text.lstrip().startswith("{") else f"{{{text}}}" for text in edits]
    return parse_layer(f"edits: [{', '.join(items)}]", "the command line", has_lines=False)
