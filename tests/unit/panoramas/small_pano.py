"""Tiny rooms, prepared, and networks for them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyscope.scopes.panoramas.data.panoramas import Panoramas
from manyscope.scopes.panoramas.model.names import build_network
from manyscope.scopes.panoramas.model.network import PanoramaModel
from manyscope.scopes.panoramas.scope import Panoramas as Scope
from manyscope.scopes.panoramas.settings import PanoramasSettings
from manyscope.settings import load_config
from manyscope.tables.manifest import describe
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import check_samples

ROOT = Path(__file__).parents[3]


def small_settings(*changes: str) -> PanoramasSettings:
    """Those of config/test/panoramas.yaml with changes such as "train.seed=1"."""
    text = f"experiments_folder: {ROOT / 'config' / 'test'}\nexperiments: [panoramas]\n"
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(text)
        overrides = tuple(f"panoramas.{change}" for change in changes)
        return load_config(config_file=config, experiments=["panoramas"], overrides=overrides).experiments["panoramas"]


def prepare(settings: PanoramasSettings, folder: Path) -> Path:
    """Download and preprocess; returns the prepared folder."""
    raw, prepared = folder / "raw", folder / "prepared"
    raw.mkdir(parents=True)
    prepared.mkdir()
    scope = Scope()
    manifest = describe(raw, scope.download(settings, raw))
    samples = check_samples(scope.preprocess(settings, raw, manifest, prepared), prepared / "samples.parquet")
    write_table(prepared / "samples.parquet", samples)
    return prepared


def small_network(data: Panoramas, *changes: str, seed: int = 0, **sections: Any) -> PanoramaModel:
    """
    Args:
        sections: of the model, in the place of those of the file.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - models may use numpy's global generator
    network: Any = build_network(small_settings(*changes).model.model_copy(update=sections), data)
    return network.eval()
