"""The face for notebooks, and columns that are joined after the training, with real Snakemake."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import nbformat
import numpy as np
import polars as pl
import pytest
import torch
from nbclient import NotebookClient

from manyscope import Experiment
from manyscope.errors import DataError, ManyscopeError
from manyscope.scopes.registry import find_scope
from manyscope.tables.metrics import read_metrics
from workspace import REPOSITORY, Workspace, page_data

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chain")]

NOTEBOOK = REPOSITORY / "docs/notebooks/galaxies.ipynb"


def experiment_in(workspace: Workspace, **overrides: object) -> Experiment:
    return Experiment("galaxies", config=workspace.folder / "config/config.yaml", overrides=overrides)


def test_results_come_as_frames_and_arrays(finished: Workspace) -> None:
    galaxies = experiment_in(finished)
    samples, predictions = galaxies.samples(), galaxies.predictions()
    assert predictions["sample_id"].to_list() == samples["sample_id"].to_list()
    ids, vectors = galaxies.embeddings()
    assert ids == predictions["object_id"].to_list()
    np.testing.assert_array_equal(vectors, predictions["embedding"].to_numpy())
    near = galaxies.neighbours(ids[0], k=5)
    assert near["rank"].to_list() == [1, 2, 3, 4, 5]
    exact = ((vectors - vectors[0]) ** 2).sum(1)
    assert near["object_id"].to_list() == [ids[i] for i in np.argsort(exact)[1:6]]
    np.testing.assert_allclose(near["distance"], np.sort(exact)[1:6], rtol=1e-4)
    assert galaxies.neighbours(vector=vectors[3], k=1)["object_id"].to_list() == [ids[3]]
    strangest = galaxies.outliers(7)
    assert strangest["rank"].to_list() == list(range(1, 8))
    written = pl.read_csv(galaxies.paths.evaluate / "outliers.csv")
    assert strangest["object_id"].to_list() == written["object_id"].head(7).to_list()
    assert len(galaxies.metrics()) == len(read_metrics(galaxies.paths.metrics)[1])
    assert {"train/loss", "validation/loss"} <= set(galaxies.history()["name"])
    one = galaxies.lookup(ids[9])
    np.testing.assert_array_equal(one["embedding"].to_numpy()[0], vectors[9])
    known = galaxies.objects()
    assert known["object_id"].to_list() == ids
    assert one.drop("embedding").rows() == known.filter(object_id=ids[9]).select(one.drop("embedding").columns).rows()
    pictures = galaxies.thumbnails([ids[4], ids[1]])
    assert [picture.size for picture in pictures if picture] == [pictures[0].size] * 2  # type: ignore[union-attr]
    assert not galaxies.model().training
    assert "class_accuracy" in galaxies._repr_html_()


@pytest.mark.long
def test_a_second_training_in_one_session_is_the_one_that_counts(copy_of_finished: Workspace) -> None:
    first = experiment_in(copy_of_finished)
    before = first.embeddings()[1]
    second = experiment_in(copy_of_finished, **{"train.seed": 1})
    second.train()
    with pytest.raises(DataError, match=r"older than model.ckpt; call .infer\(\) again"):
        second.predictions()
    with pytest.raises(DataError, match=r"older than model.ckpt; call .index\(\) again"):
        second.neighbours("sim-000000")
    predictions = second.infer()
    vectors = predictions["embedding"].to_numpy()
    assert np.abs(vectors - before).max() > 1e-3
    scope, settings = find_scope("galaxies"), second.settings
    batch = next(iter(scope.data(settings, second.paths.prepared).predict_batches(predictions["sample_id"].head(8), 8)))
    with torch.inference_mode():
        said = scope.predict_batch(settings, second.model(), batch).embedding
    np.testing.assert_allclose(said, vectors[:8], atol=1e-5)
    with pytest.raises(DataError, match=r"older than predictions.parquet; call .index\(\) again|older than model.ckpt"):
        second.neighbours("sim-000000")


@pytest.mark.long
def test_a_failed_stage_says_why(copy_of_finished: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    galaxies = experiment_in(copy_of_finished, **{"model.args": {"channels": -1}})
    with pytest.raises(ManyscopeError) as caught:
        galaxies.train()
    said = capsys.readouterr().out
    assert "galaxies train:" in said
    assert "".join(caught.value.__notes__) in said
    assert "error: " in caught.value.__notes__[0] or "Error" in caught.value.__notes__[0]


def test_columns_joined_later_are_shown_and_nothing_is_inferred_again(copy_of_finished: Workspace) -> None:
    galaxies = experiment_in(copy_of_finished)
    ids = galaxies.predictions()["object_id"].to_list()
    file = copy_of_finished.folder / "cross match.csv"
    pl.DataFrame({"name": [*ids[:100], "elsewhere"], "redshift": np.arange(101) / 100, "class": "star"}).write_csv(file)
    arguments = ("annotate", str(file), "--experiment", "galaxies", "--id-column", "name", "--name", "survey")
    said = copy_of_finished.manyscope(*arguments).stdout
    assert "100 of 101 ids are known, 1 unknown; 140 of the experiment's have no value" in said
    assert copy_of_finished.rules_to_run() == {"index", "explore"}  # the index holds what a search is filtered by
    copy_of_finished.snakemake()
    assert copy_of_finished.rules_to_run() == set()
    columns = {column["name"]: column for column in page_data(galaxies.paths.page)["about"]["columns"]}
    assert (columns["redshift"]["kind"], columns["redshift"]["missing"]) == ("number", 140)
    assert (columns["redshift"]["low"], columns["redshift"]["high"]) == pytest.approx((0, 0.99))
    assert columns["class (survey)"]["levels"] == ["star"]
    assert "class" in columns
    found = galaxies.neighbours(ids[0], k=3)
    assert {"redshift", "class", "class (survey)"} <= set(found.columns)
    filtered = galaxies.neighbours(ids[0], k=5, where="redshift >= 0.5")
    assert len(filtered) == 5
    assert (filtered["redshift"] >= 0.5).all()
    assert galaxies.lookup(ids[7])["redshift"].to_list() == [0.07]
    copy_of_finished.manyscope("annotate", "--experiment", "galaxies", "--remove", "survey")
    assert copy_of_finished.rules_to_run() == {"index", "explore"}


def test_an_index_without_columns_is_not_made_again_for_new_ones(copy_of_finished: Workspace) -> None:
    settings = ("--config", 'set=["galaxies.index.columns=[]"]')
    copy_of_finished.snakemake(*settings)
    ids = pl.read_parquet(copy_of_finished.results / "galaxies/infer/predictions.parquet")["object_id"]
    file = copy_of_finished.folder / "survey.csv"
    pl.DataFrame({"object_id": ids, "redshift": np.arange(len(ids))}).write_csv(file)
    copy_of_finished.manyscope("annotate", str(file), "--experiment", "galaxies")
    assert copy_of_finished.rules_to_run(*settings) == {"explore"}


def test_the_notebook_runs(copy_of_finished: Workspace) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(copy_of_finished.folder)}}).execute()
    galaxies = experiment_in(copy_of_finished)
    assert "distance_to_centre" in galaxies.objects().columns
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 5


def test_a_notebook_below_the_project_finds_it(finished: Workspace, tmp_path: Path) -> None:
    below = finished.folder / "results/galaxies"
    with chdir(below):
        assert Experiment("galaxies").paths.root == finished.folder / "results/galaxies"
    with chdir(tmp_path), pytest.raises(ManyscopeError, match="neither this folder nor one above it"):
        Experiment("galaxies")
