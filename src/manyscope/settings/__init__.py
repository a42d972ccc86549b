"""Strict settings: reading, checking and explaining them. Imports nothing heavy, as the workflow imports it often."""

from manyscope.errors import SettingsError
from manyscope.settings.loading import (
    Config,
    known_experiments,
    load_config,
    load_experiment,
    scope_settings,
    stage_settings,
)
from manyscope.settings.overrides import parse_override
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import STAGES, ExperimentSettings
from manyscope.settings.site import Site, load_site

__all__ = [
    "STAGES",
    "Config",
    "ExperimentPaths",
    "ExperimentSettings",
    "SettingsError",
    "Site",
    "known_experiments",
    "load_config",
    "load_experiment",
    "load_site",
    "parse_override",
    "scope_settings",
    "stage_settings",
]
