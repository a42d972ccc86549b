"""What differs from one computer to the next: folders, the tracking server, the cluster account."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from manyscope.errors import SettingsError
from manyscope.settings.explain import validated
from manyscope.settings.sections import Section
from manyscope.settings.source import filled, read_layer

SITE_FILE = Path("config/local.yaml")

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Site(Section):
    """The keys of `config/local.yaml`. Each is also a placeholder: `${data_path}` in any other file."""

    data_path: Path = Field(Path("data"), description="Folder of input data that is not downloaded.")
    weights_path: Path = Field(Path("data/weights"), description="Folder of pretrained weights.")
    scratch_path: Path = Field(Path("data/scratch"), description="Folder of large temporary files.")
    tracking_uri: str | None = Field(None, description="MLflow server; null keeps the runs in a local folder.")
    slurm_account: str | None = Field(None, description="Account that SLURM charges; null is the user's default.")
    variables: dict[Name, str] = Field(default_factory=dict, description="Placeholders of your own.")

    def placeholders(self) -> dict[str, str | None]:
        """Each name with its value; None for a key that has none."""
        own = {name: getattr(self, name) for name in type(self).model_fields if name != "variables"}
        return self.variables | {name: None if value is None else str(value) for name, value in own.items()}

    def environment(self) -> dict[str, str]:
        """Environment variables that carry the site to MLflow and SLURM."""
        given = {"MLFLOW_TRACKING_URI": self.tracking_uri, "SBATCH_ACCOUNT": self.slurm_account}
        return {name: value for name, value in given.items() if value is not None}


def load_site(path: Path = SITE_FILE) -> Site:
    """The site file, or the defaults where there is none. `${env:VAR}` works in it.

    Raises:
        SettingsError: the file cannot be read, or a key or value is wrong.
    """
    if not path.exists():
        return Site()
    layer, problems = filled(read_layer(path), {}, str(path))
    if problems:
        raise SettingsError(*problems)
    site, problems = validated(Site, layer)
    if problems:
        raise SettingsError(*problems)
    return site
