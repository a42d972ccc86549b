"""download: fetch, copy or simulate the raw data."""

from __future__ import annotations

from manyscope.log import logger
from manyscope.scopes.registry import find_scope
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.manifest import describe, read_manifest
from manyscope.tables.parquet import write_table


def run(settings: ExperimentSettings, paths: ExperimentPaths) -> None:
    """Fill `raw/` and describe it in raw/manifest.parquet, which is written last, and not where it says so already.

    Raises:
        DataError: nothing could be fetched, or a file that the scope reports is missing.
    """
    paths.raw.mkdir(parents=True, exist_ok=True)
    entries = find_scope(settings.scope).download(settings, paths.raw)
    manifest = describe(paths.raw, entries)
    if not paths.manifest.exists() or not read_manifest(paths.manifest).equals(manifest):
        write_table(paths.manifest, manifest)
    logger.info("%d files, %.1f MB in %s", len(manifest), int(manifest["bytes"].sum()) / 1e6, paths.raw)
