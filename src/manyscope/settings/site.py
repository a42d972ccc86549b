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
_PARTITIONS = ("cpu", "a100", "a40")
_GPUS = ("a100", "a40")

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Site(Section):
    """The keys of `config/local.yaml`. Each is also a placeholder: `${data_path}` in any other file."""

    data_path: Path = Field(Path("data"), description="Folder of input data that is not downloaded.")
    weights_path: Path = Field(Path("data/weights"), description="Folder of pretrained weights.")
    scratch_path: Path = Field(Path("data/scratch"), description="Folder of large temporary files.")
    tracking_uri: str | None = Field(None, description="MLflow server; null keeps the runs in a local folder.")
    slurm_account: str | None = Field(None, description="Account that SLURM charges; null is the user's default.")
    slurm_partitions: dict[Name, str] = Field(
        default_factory=dict, description="What the partitions cpu, a100 and a40 of the profiles are called here."
    )
    slurm_gpus: dict[Name, str] = Field(
        default_factory=dict, description="What the GPU types a100 and a40 of the profiles are called here."
    )
    variables: dict[Name, str] = Field(default_factory=dict, description="Placeholders of your own.")

    def placeholders(self) -> dict[str, str | None]:
        """Each name with its value; None for a key that has none."""
        own = {name: value for name, value in self if not isinstance(value, dict)}
        return self.variables | {name: None if value is None else str(value) for name, value in own.items()}

    @property
    def partitions(self) -> dict[str, str]:
        """The partitions of the profiles by the name they have there, with their names on this cluster."""
        return {name: name for name in _PARTITIONS} | self.slurm_partitions

    @property
    def gpus(self) -> dict[str, str]:
        """The GPU types of the profiles by the name they have there, with SLURM's names for them on this cluster."""
        return {name: name for name in _GPUS} | self.slurm_gpus

    def environment(self) -> dict[str, str]:
        """Environment variables that carry the site to MLflow, to SLURM, and to the expressions in the profiles."""
        given = {"MLFLOW_TRACKING_URI": self.tracking_uri, "SBATCH_ACCOUNT": self.slurm_account}
        named = {"MANYSCOPE_ACCOUNT": self.slurm_account or ""}
        named |= {f"MANYSCOPE_PARTITION_{name.upper()}": value for name, value in self.partitions.items()}
        named |= {f"MANYSCOPE_GPU_{name.upper()}": value for name, value in self.gpus.items()}
        return {name: value for name, value in given.items() if value is not None} | named


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
