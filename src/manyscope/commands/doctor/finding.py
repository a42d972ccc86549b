"""What a check of `manyscope doctor` is told, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from manyscope.commands.doctor.places import has_manifest
from manyscope.settings import Config, Site
from manyscope.settings.site import SITE_FILE

SLURM_PROFILE = Path("workflow_profiles/slurm")


@dataclass(frozen=True)
class Finding:
    """The answer of one check.

    Attributes:
        state: `fail` where the work cannot be done, `warn` where it can be done less well.
        remedy: what the user can do about it; empty when all is well.
    """

    state: Literal["ok", "warn", "fail"]
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Surroundings:
    """What the checks look at besides the machine.

    Attributes:
        config: None when the settings have problems.
        problems: those problems, a line each.
        profile: folder of the Snakemake profile that the checks of a cluster read.
    """

    config_file: Path
    config: Config | None = None
    problems: tuple[str, ...] = ()
    site: Site = field(default_factory=Site)
    site_file: Path = SITE_FILE
    profile: Path = SLURM_PROFILE

    @property
    def results(self) -> Path:
        return self.config.results if self.config else Path("results")

    @property
    def weights(self) -> Path | None:
        """The folder in which weights have to be; None where it is the default, which is made when needed, and nothing
        was fetched into it yet."""
        folder = self.site.weights_path
        return None if folder == Site().weights_path and not has_manifest(folder) else folder


def first_line(error: object) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
