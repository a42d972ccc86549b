"""A small simulated data set, prepared once; folders of images as a user may have them; and models briefly trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from manyscope.scopes.cells.data.images import CellImages
from manyscope.scopes.cells.data.prepare import prepare
from manyscope.scopes.cells.settings import (
    AugmentSettings,
    CellsDownload,
    CellsPreprocess,
    CellsSettings,
    SimulatedSettings,
)
from manyscope.scopes.cells.simulate import Simulated
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.manifest import describe
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import check_samples

if TYPE_CHECKING:
    from manyscope.scopes.cells.model.networks import CellSegmenter
    from manyscope.training.run import TrainingRun


@pytest.fixture(scope="session")
def simulated() -> CellsDownload:
    return CellsDownload(simulated=SimulatedSettings(count=8, size_px=96))


@pytest.fixture(scope="session")
def raw(simulated: CellsDownload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells") / "raw"
    write_table(folder / "manifest.parquet", describe(folder, Simulated().download(simulated, folder)))
    return folder


@pytest.fixture(scope="session")
def manifest(raw: Path) -> pl.DataFrame:
    return pl.read_parquet(raw / "manifest.parquet")


@pytest.fixture(scope="session")
def prepared(simulated: CellsDownload, raw: Path, manifest: pl.DataFrame) -> Path:
    folder = raw.parent / "prepared"
    samples = prepare(Simulated().pairs(simulated, raw, manifest), CellsPreprocess(), raw, folder)
    write_table(folder / "samples.parquet", check_samples(samples, folder))
    return folder


@pytest.fixture
def data(prepared: Path) -> CellImages:
    return CellImages(prepared)


@pytest.fixture
def picture() -> tuple[np.ndarray, np.ndarray]:
    """A grey image, (40, 60) uint16, with a dark and a less dark cell that touch, and their labels, uint16."""
    labels = np.zeros((40, 60), np.uint16)
    labels[10:25, 10:30], labels[10:25, 30:45] = 1, 2
    noise = np.random.default_rng(0).normal(0, 30, labels.shape)
    return (np.array([9000, 4000, 5000])[labels] + noise).astype(np.uint16), labels


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared simulated images of 160 pixels: four to train on, without copies, one to validate, one to test."""
    raw, folder = tmp_path_factory.mktemp("small") / "raw", tmp_path_factory.mktemp("small") / "prepared"
    download = CellsDownload(simulated=SimulatedSettings(count=6, size_px=160))
    write_table(raw / "manifest.parquet", describe(raw, Simulated().download(download, raw)))
    pairs = Simulated().pairs(download, raw, pl.read_parquet(raw / "manifest.parquet"))
    samples = prepare(pairs, CellsPreprocess(augment=AugmentSettings(copies=0)), raw, folder)
    write_table(folder / "samples.parquet", check_samples(samples, folder))
    return folder


@pytest.fixture
def small_data(small_images: Path) -> CellImages:
    return CellImages(small_images)


@pytest.fixture(scope="session")
def small_settings() -> Callable[..., CellsSettings]:
    """Settings of the smallest model and of its short training, with sections that differ: `(model={...}, ...)`."""

    def settings(**sections: dict[str, Any]) -> CellsSettings:
        given: dict[str, dict[str, Any]] = {
            "model": {
                "args": {"image_size": 128, "embed_dim": 32, "depth": 2, "heads": 2},
                "decoder_features": 2,
                "patch_px": 128,
            },
            "train": {
                "batch_size": 2, "epochs": 2, "patches_per_epoch": 6, "validation_patches": 2, "tracker": "none",
                "objects_per_image": 2, "prompt_steps": 2, "thresholds": (0.5,), "min_areas_px": (25,),
            },
        }  # fmt: skip
        for name, values in sections.items():
            given[name] = {**given.get(name, {}), **values}
        return CellsSettings.model_validate({"scope": "cells", **given})

    return settings


@dataclass(frozen=True)
class Training:
    """A training that came to its end.

    Attributes:
        steps: number, learning rate and loss of each step that this process took.
    """

    settings: CellsSettings
    run: TrainingRun
    steps: list[tuple[int, float, float]]

    def checkpoint(self, name: str) -> dict[str, Any]:
        import torch

        return torch.load(self.run.folder / "checkpoints" / "small" / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="session")
def train(small_images: Path) -> Callable[[CellsSettings, Path], Training]:
    """Trains in a folder, or continues what a training has left there."""

    def train(settings: CellsSettings, folder: Path) -> Training:
        from manyscope.scopes.cells.model.fit import fit
        from manyscope.scopes.cells.model.trainer import Continued
        from manyscope.training.run import TrainingRun

        steps: list[tuple[int, float, float]] = []
        note = Continued.note

        def noted(self: Continued, values: dict[str, float]) -> None:
            steps.append((self.iteration, self.optimizer.param_groups[0]["lr"], values["loss"]))
            note(self, values)

        settings = settings.for_stage("train")
        run = TrainingRun(settings, ExperimentPaths.of(folder, "small"), "data", "code", {})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Continued, "note", noted)
            fit(settings, CellImages(small_images), run)
        return Training(settings, run, steps)

    return train


@pytest.fixture(scope="session")
def undisturbed(
    train: Callable[[CellsSettings, Path], Training],
    small_settings: Callable[..., CellsSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Training]:
    """One short training of each mode: two rounds of three steps."""
    return cache(lambda mode: train(small_settings(train={"mode": mode}), tmp_path_factory.mktemp(mode)))


@pytest.fixture(scope="session")
def seeing(
    train: Callable[[CellsSettings, Path], Training],
    small_settings: Callable[..., CellsSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> Training:
    """Trained for 60 steps: enough to find half of the cells, roughly."""
    settings = small_settings(
        model={"decoder_features": 4},
        train={"batch_size": 4, "epochs": 3, "patches_per_epoch": 80, "lr": 3e-3, "thresholds": (0.3, 0.5)},
    )
    return train(settings, tmp_path_factory.mktemp("seeing"))


@pytest.fixture
def seeing_model(seeing: Training) -> CellSegmenter:
    from manyscope.scopes.cells.model.networks import build
    from manyscope.training.checkpoints import load_weights

    model = build(seeing.settings.model)
    load_weights(seeing.run.best, model, "cells", seeing.settings.model.model_dump(mode="json"))
    return model
