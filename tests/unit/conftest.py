"""Synthetic latent tables for the tests of the stages and rooms behind inference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings, ModelSettings
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import Objects, gather, shard_of, shard_table

LatentTables = Callable[..., ExperimentPaths]
StageSettings = Callable[..., ExperimentSettings]


def clusters(n: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """Vectors in five blobs, (n, dimensions) float32."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(scale=4, size=(5, dimensions))
    return (centres[rng.integers(0, 5, n)] + rng.normal(size=(n, dimensions))).astype(np.float32)


@pytest.fixture
def latent_tables(tmp_path: Path) -> LatentTables:
    """A function that writes samples.parquet, the shards and predictions.parquet of a made-up experiment.

    Every third sample has two objects, every seventh none, or all have one (`one_each`).
    """

    def write(
        n: int = 120, *, shards: int = 1, dimensions: int = 8, vectors: np.ndarray | None = None,
        one_each: bool = False, columns: tuple[str, ...] = (), name: str = "made_up",
    ) -> ExperimentPaths:  # fmt: skip
        paths = ExperimentPaths.of(tmp_path / "results", name)
        samples = [f"s{i:04d}" for i in range(n)]
        split = ["test" if i % 5 == 0 else "validation" if i % 5 == 1 else "train" for i in range(n)]
        label = pl.Series("label", [f"kind {i % 4}" for i in range(n)])
        frame = {"sample_id": samples, "group": samples, "split": split, "label": label, "area": np.arange(n) / 2}
        write_table(paths.samples, pl.DataFrame(frame).with_columns(box=pl.lit([1, 2])))

        owner = [i for i in range(n) for _ in range(1 if one_each else 2 if i % 3 == 0 else 0 if i % 7 == 6 else 1)]
        part = [sum(o == before for before in owner[max(0, j - 2) : j]) for j, o in enumerate(owner)]
        objects = [f"{samples[i]}/{p}" for i, p in zip(owner, part, strict=True)]
        if vectors is None:
            vectors = clusters(len(objects), dimensions)
        extra = {
            "area": np.arange(len(objects), dtype=np.float32),
            **dict.fromkeys(columns, np.full(len(objects), 7.0)),
        }
        shard = shard_of(samples, shards)
        for number in range(shards):
            wanted = [s for s, of in zip(samples, shard, strict=True) if of == number]
            rows = [j for j, i in enumerate(owner) if shard[i] == number]
            batch = Objects(
                wanted, [samples[owner[j]] for j in rows], [objects[j] for j in rows], vectors[rows],
                {name: values[rows] for name, values in extra.items()},
            )  # fmt: skip
            write_table(paths.shard(number), *shard_table([batch], wanted, paths.shard(number)))
        write_table(paths.predictions, gather([paths.shard(i) for i in range(shards)], samples))
        return paths

    return write


@pytest.fixture
def stage_settings() -> StageSettings:
    """A function from a stage and some sections to the settings that the stage gets."""

    def settings(stage: str, **sections: object) -> ExperimentSettings:
        values = {"scope": "made_up", "model": ModelSettings(name="none"), **sections}
        return ExperimentSettings.model_validate(values).for_stage(stage)

    return settings
