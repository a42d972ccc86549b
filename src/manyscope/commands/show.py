"""`manyscope show`: draw what a scope makes of one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manyscope.errors import DataError, ManyscopeError


def show(file: Path, experiment: str, output: Path | None, overrides: Sequence[str], config_file: Path) -> Path:
    """Write the picture of one raw file, as an experiment's settings have it.

    Args:
        output: a .png file; the file's name with the experiment's, in the current folder, if None.
        overrides: "key=value" of the experiment's settings.

    Returns:
        what was written.

    Raises:
        DataError: there is no such file, or the picture cannot be written.
        SettingsError: the settings are not valid.
        ManyscopeError: the output cannot be a PNG file, or is the file itself; or the scope has nothing to show.
    """
    from manyscope.scopes.registry import find_scope
    from manyscope.settings import load_config

    if not file.is_file():
        raise DataError("there is no such file", place=file)
    output = output or Path(f"{file.stem}-{experiment}.png")
    if output.suffix.lower() != ".png" or output.is_dir():
        raise ManyscopeError("no name of a picture to be written", place=output, allowed="a file that ends in .png")
    if output.exists() and output.samefile(file):
        raise ManyscopeError("would take the place of the file that it shows", place=output, remedy="see --output")
    config = load_config(
        config_file=config_file, experiments=[experiment], overrides=[f"{experiment}.{text}" for text in overrides]
    )
    settings = config.experiments[experiment]
    scope = find_scope(settings.scope)

    from manyscope.evaluation.figures import save_figure, style

    with style():
        figure = scope.show(settings, file)
    save_figure(figure, output)
    return output
