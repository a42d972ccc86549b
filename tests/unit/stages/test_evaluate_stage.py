"""evaluate: what it writes around a scope's judgement, and in which order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from manyscope.errors import DataError
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings, ModelSettings
from manyscope.stages import evaluate
from manyscope.tables.metrics import read_metrics
from manyscope.tables.parquet import write_table

SCOPE = """
from manyscope.evaluation.bootstrap import compare
from manyscope.evaluation.figures import new_figure
from manyscope.scopes.base import Evaluation, Scope
from manyscope.settings.sections import ExperimentSettings


class Fake(Scope):
    name = "fake"
    Settings = ExperimentSettings
    data = download = model = predict_batch = preprocess = None

    def evaluate(self, settings, prepared, files, samples, predictions):
        written = "".join(file.read_text() for file in files.glob("*.txt"))
        table = predictions.join(samples, on="sample_id").filter(split="test")
        hit = (table["guess"] == table["truth"]).to_numpy()
        rows = compare(
            "accuracy", "all", unit="", higher_is_better=True, n=len(hit), draws=settings.evaluate.bootstrap_draws,
            model=lambda rows: hit[rows].mean(), baselines={"never": lambda rows: 0.0}, seed=settings.evaluate.seed,
        )
        figure, axes = new_figure()
        axes[0, 0].plot([0, 1], [1, 0])
        return Evaluation("accuracy", rows, {"errors": figure}, {"errors": "Where it errs." + written},
                          files={"own.md": lambda path: path.write_text(written)} if written else {})
"""


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentPaths:
    (tmp_path / "fake_scope_to_evaluate.py").write_text(SCOPE)
    monkeypatch.syspath_prepend(tmp_path)
    made = ExperimentPaths.of(tmp_path / "results", "tiny")
    ids = [f"s{i}" for i in range(30)]
    split = ["train", "validation", "test"] * 10
    samples = pl.DataFrame({"sample_id": ids, "group": ids, "split": split, "truth": [i % 2 for i in range(30)]})
    write_table(made.samples, samples)
    write_table(
        made.predictions,
        pl.DataFrame(
            {"object_id": ids, "sample_id": ids, "embedding": np.zeros((30, 4), np.float32), "guess": [0, 1, 1] * 10}
        ),
    )
    return made


@pytest.fixture
def settings() -> ExperimentSettings:
    whole = ExperimentSettings(scope="fake_scope_to_evaluate:Fake", model=ModelSettings(name="none"))
    return whole.for_stage("evaluate")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_metrics_figures_and_captions_are_written(paths: ExperimentPaths, settings: ExperimentSettings):
    evaluate.run(settings, paths)
    document, metrics = read_metrics(paths.metrics)
    assert [document[key] for key in ("experiment", "scope", "headline")] == ["tiny", "fake", "accuracy"]
    (metric,) = metrics
    assert (metric.n, metric.value, metric.baseline, metric.ahead) == (10, 0.5, "never", True)
    assert pl.read_parquet(paths.metrics_table).rows(named=True) == document["metrics"]
    assert sorted(files(paths.evaluate)) == [
        "figures/captions.json",
        "figures/errors.png",
        "metrics.json",
        "metrics.parquet",
        "metrics.png",
    ]
    assert json.loads((paths.figures / "captions.json").read_text()) == {"errors": "Where it errs."}
    for picture in (paths.evaluate / "metrics.png", paths.figures / "errors.png"):
        with Image.open(picture) as image:
            image.verify()


def test_a_scope_is_given_the_files_that_it_wrote(paths: ExperimentPaths, settings: ExperimentSettings):
    paths.files.mkdir(parents=True)
    (paths.files / "s2.txt").write_text(" Badly.")
    evaluate.run(settings, paths)
    assert json.loads((paths.figures / "captions.json").read_text()) == {"errors": "Where it errs. Badly."}


def test_a_scope_writes_files_of_its_own(paths: ExperimentPaths, settings: ExperimentSettings):
    paths.files.mkdir(parents=True)
    (paths.files / "s2.txt").write_text("Said.")
    evaluate.run(settings, paths)
    assert (paths.evaluate / "own.md").read_text() == "Said."


def test_curves_of_the_training_are_drawn_where_it_left_a_history(paths: ExperimentPaths, settings: ExperimentSettings):
    history = {"step": [1, 2], "epoch": [0.5, 1.0], "name": ["train/loss"] * 2, "value": [2.0, 1.0]}
    write_table(paths.history, pl.DataFrame(history))
    evaluate.run(settings, paths)
    assert list(json.loads((paths.figures / "captions.json").read_text())) == ["errors", "training"]
    with Image.open(paths.figures / "training.png") as image:
        assert image.width > 100


def test_a_second_run_gives_the_same_bytes_and_drops_old_figures(paths: ExperimentPaths, settings: ExperimentSettings):
    evaluate.run(settings, paths)
    first = files(paths.evaluate)
    (paths.figures / "of_an_older_version.png").write_bytes(b"x")
    evaluate.run(settings, paths)
    assert files(paths.evaluate) == first


def test_a_writing_that_is_interrupted_leaves_the_old_results_alone(
    paths: ExperimentPaths, settings: ExperimentSettings, monkeypatch: pytest.MonkeyPatch
):
    evaluate.run(settings, paths)
    before = files(paths.root)
    other = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"bootstrap_draws": 321})})
    monkeypatch.setattr(evaluate, "write_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(other, paths)
    assert files(paths.root) == before


def test_a_judgement_that_fails_leaves_the_old_results_alone(paths: ExperimentPaths, settings: ExperimentSettings):
    evaluate.run(settings, paths)
    before = files(paths.evaluate)
    write_table(paths.samples, pl.read_parquet(paths.samples).with_columns(split=pl.lit("train")))
    with pytest.raises(DataError, match="no object to be measured on"):
        evaluate.run(settings, paths)
    assert files(paths.evaluate) == before


def test_missing_predictions_name_the_file(paths: ExperimentPaths, settings: ExperimentSettings):
    paths.predictions.unlink()
    with pytest.raises(DataError, match=r"predictions\.parquet: the file is missing"):
        evaluate.run(settings, paths)
