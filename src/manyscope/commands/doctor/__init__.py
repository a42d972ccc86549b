"""`manyscope doctor`: what this machine and its cluster have for the work, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import click

from manyscope.commands.doctor import cluster, machine, node, settings
from manyscope.commands.doctor.finding import SLURM_PROFILE, Finding, Surroundings
from manyscope.errors import SettingsError
from manyscope.settings import Site, load_config, load_site
from manyscope.settings.site import SITE_FILE
from manyscope.settings.source import Layer, filled, read_layer

__all__ = ["CHECKS", "Finding", "Surroundings", "examine"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}

CHECKS: tuple[Callable[[Surroundings], Finding], ...] = (
    machine.python,
    machine.packages,
    machine.processor,
    machine.accelerator,
    machine.hash_grid,
    machine.disk,
    settings.settings,
    settings.site,
    settings.weights,
    settings.scratch,
    settings.tracking,
)


def examine(config_file: Path, profile: Path = SLURM_PROFILE, on_compute_nodes: bool = False) -> int:
    """Print a line for each finding; returns 1 if any failed, else 0.

    Args:
        profile: folder of the Snakemake profile that is checked against the cluster.
        on_compute_nodes: whether to run a job in each partition of the profile, to check what a node sees.
    """
    failed = False
    for finding in _findings(_surroundings(config_file, profile), on_compute_nodes):
        failed |= finding.state == "fail"
        state = click.style(f"{finding.state:<4}", fg=_COLOURS[finding.state])
        click.echo(f"{state}  {'; '.join(part for part in (finding.what, finding.remedy) if part)}")
    return int(failed)


def _findings(surroundings: Surroundings, on_compute_nodes: bool) -> Iterator[Finding]:
    for check in CHECKS:
        yield check(surroundings)
    yield from cluster.cluster(surroundings)
    if on_compute_nodes:
        yield from node.compute_nodes(surroundings)


def _surroundings(config_file: Path, profile: Path) -> Surroundings:
    """Whatever can be read; that nothing else could be is for the check of the settings to say."""
    site_file, site = SITE_FILE, Site()
    with suppress(SettingsError):
        named = Layer({"site_file": str(read_layer(config_file).values.get("site_file", SITE_FILE))})
        site_file = Path(str(filled(named, {}, "")[0].values["site_file"]))
    with suppress(SettingsError):
        site = load_site(site_file)
    try:
        config = load_config(config_file=config_file)
    except SettingsError as error:
        return Surroundings(config_file, None, tuple(error.problems), site, site_file, profile)
    return Surroundings(config_file, config, (), site, site_file, profile)
