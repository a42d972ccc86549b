"""infer: the objects of a shard, and the files that a scope writes of its samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings, ModelSettings
from manyscope.stages import gather, infer
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import read_predictions

SCOPE = """
import numpy as np

from manyscope.scopes.base import Scope
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.predictions import Objects
from manyscope.tables.whole import whole_file


class Fake(Scope):
    name = "fake"
    Settings = ExperimentSettings
    data = download = evaluate = model = predict_batch = preprocess = None

    def predict(self, settings, prepared, weights, sample_ids, files):
        for name in sample_ids:
            with whole_file(files / "masks" / f"{name}.txt") as partial:
                partial.write_text(weights.read_text())
            yield Objects.one_each([name], np.full((1, 2), len(name), np.float32), {})
"""
IDS = [f"s{i}" for i in range(20)]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentPaths:
    (tmp_path / "fake_scope_to_infer.py").write_text(SCOPE)
    monkeypatch.syspath_prepend(tmp_path)
    made = ExperimentPaths.of(tmp_path / "results", "tiny")
    split = ["train", "validation", "test", "train"] * 5
    write_table(made.samples, pl.DataFrame({"sample_id": IDS, "group": IDS, "split": split}))
    made.model.parent.mkdir(parents=True)
    made.model.write_text("first")
    return made


def settings(stage: str) -> ExperimentSettings:
    values = {"scope": "fake_scope_to_infer:Fake", "model": ModelSettings(name="none")}
    return ExperimentSettings.model_validate(values).for_stage(stage)


def written(paths: ExperimentPaths) -> dict[str, str]:
    return {str(p.relative_to(paths.files)): p.read_text() for p in paths.files.rglob("*") if p.is_file()}


def test_files_of_all_shards_lie_together_and_a_shard_replaces_only_its_own(paths: ExperimentPaths) -> None:
    for shard in range(3):
        infer.run(settings("infer"), paths, shard, 3)
    assert written(paths) == {f"masks/{name}.txt": "first" for name in IDS}
    gather.run(settings("gather"), paths, 3)
    assert read_predictions(paths.predictions)["object_id"].to_list() == IDS
    paths.model.write_text("second")
    infer.run(settings("infer"), paths, 1, 3)
    again = read_predictions(paths.shard(1))["sample_id"].to_list()
    assert 0 < len(again) < len(IDS)
    assert written(paths) == {f"masks/{name}.txt": "second" if name in again else "first" for name in IDS}


def test_without_a_sample_nothing_is_asked_and_nothing_written(paths: ExperimentPaths) -> None:
    write_table(paths.samples, pl.DataFrame({"sample_id": ["a"], "group": ["a"], "split": ["test"]}))
    for shard in range(2):
        infer.run(settings("infer"), paths, shard, 2)
    lengths = [len(read_predictions(paths.shard(shard))) for shard in range(2)]
    assert sorted(lengths) == [0, 1]
    assert written(paths) == {"masks/a.txt": "first"}
    np.testing.assert_array_equal(read_predictions(paths.shard(lengths.index(1)))["embedding"].to_numpy(), [[1.0, 1.0]])
