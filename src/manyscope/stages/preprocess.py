"""preprocess: validate and convert once; deal the samples to train, validation and test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl

from manyscope.errors import DataError
from manyscope.log import logger
from manyscope.scopes.registry import find_scope
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.manifest import file_digest, read_manifest
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import DIGEST_KEY, check_samples
from manyscope.tables.whole import whole_folder


def run(settings: ExperimentSettings, paths: ExperimentPaths) -> None:
    """Make `prepared/` whole: the scope's files and samples.parquet, which carries a digest of all of them.

    Raises:
        DataError: raw files are missing or changed since the download, or the samples break the contract.
    """
    manifest = read_manifest(paths.manifest)
    _check_raw(paths.raw, manifest)
    with whole_folder(paths.prepared) as folder:
        samples = find_scope(settings.scope).preprocess(settings, paths.raw, manifest, folder)
        samples = check_samples(samples, paths.samples)
        # Without the digest, arrays that change while the table does not would go unnoticed by later stages.
        write_table(folder / paths.samples.name, samples, {DIGEST_KEY: _digest(folder)})
    counts = dict(samples.group_by("split").len().sort("split").iter_rows())
    logger.info("%d samples: %s", len(samples), ", ".join(f"{n} {split}" for split, n in counts.items()))


def _check_raw(raw: Path, manifest: pl.DataFrame) -> None:
    for path, size, state in manifest.select("path", "bytes", "state").iter_rows():
        if state == "done" and not (raw / path).is_file():
            raise DataError("the file is missing", place=raw / path, remedy="run the stage download again")
        if state == "done" and (raw / path).stat().st_size != size:
            raise DataError(
                f"the file has {(raw / path).stat().st_size} bytes, the manifest says {size}",
                place=raw / path,
                remedy="run the stage download again",
            )


def _digest(folder: Path) -> str:
    lines = [f"{f.relative_to(folder)} {file_digest(f)}" for f in sorted(folder.rglob("*")) if f.is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
