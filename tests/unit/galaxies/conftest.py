"""A small simulated data set, prepared once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.scope import Galaxies
from manyscope.scopes.galaxies.settings import GalaxiesSettings
from manyscope.tables.manifest import describe
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import check_samples

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def tiny() -> GalaxiesSettings:
    values: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "config/test/galaxies.yaml")
    return GalaxiesSettings(**values)


@pytest.fixture(scope="session")
def raw(tiny: GalaxiesSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("galaxies") / "raw"
    folder.mkdir()
    write_table(folder / "manifest.parquet", describe(folder, Galaxies().download(tiny, folder)))
    return folder


@pytest.fixture(scope="session")
def prepared(tiny: GalaxiesSettings, raw: Path) -> Path:
    from manyscope.tables.manifest import read_manifest

    folder = raw.parent / "prepared"
    folder.mkdir()
    samples = Galaxies().preprocess(tiny, raw, read_manifest(raw / "manifest.parquet"), folder)
    write_table(folder / "samples.parquet", check_samples(samples, folder))
    return folder


@pytest.fixture
def data(prepared: Path) -> StampData:
    return StampData(prepared)
