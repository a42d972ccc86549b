"""The scope `cells` through the whole chain: images in, every cell an object; masks, export, kill and continue."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
import torch
from ruamel.yaml import YAML

from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.metrics import read_metrics
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.tables.samples import read_samples
from workspace import Workspace, make_workspace, pictures_on_page, train_apart

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("cells_chain")]

CHECKPOINT = "*/checkpoints/cells/latest.pt"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("cells") / "work", experiments=("cells",))
    workspace.snakemake("--profile", "workflow_profiles/local")
    return workspace


@pytest.fixture(scope="module")
def paths(simulated: Workspace) -> ExperimentPaths:
    return ExperimentPaths.of(simulated.results, "cells")


def test_every_instance_of_every_mask_is_an_object(paths: ExperimentPaths) -> None:
    samples, predictions = read_samples(paths.samples), read_predictions(paths.predictions)
    for sample, height, width in samples.select("sample_id", "height_px", "width_px").iter_rows():
        masks = tifffile.imread(paths.files / "masks" / f"{sample}.tif")
        assert masks.shape == (height, width)
        assert masks.dtype == np.uint16
        own = predictions.filter(pl.col("sample_id") == sample)
        labels, areas = np.unique(masks[masks > 0], return_counts=True)
        assert own["label"].to_list() == labels.tolist() == list(range(1, len(labels) + 1))
        assert own["area_px"].to_list() == areas.tolist()
        assert own["object_id"].to_list() == [f"{sample}/{label}" for label in labels]
    assert embeddings(predictions).shape[1] == 3 * 256
    assert predictions["confidence"].is_between(0, 1).all()
    assert len(predictions) > len(samples)


def test_it_is_judged_beside_a_classical_method_on_the_test_images(paths: ExperimentPaths) -> None:
    document, rows = read_metrics(paths.metrics)
    assert document["headline"] == "msa"
    assert {row.name for row in rows} == {"msa", "sa50", "sa75", "precision", "recall", "f1"}
    assert {row.baseline for row in rows} == {"otsu_watershed"}
    test = read_samples(paths.samples).filter(pl.col("split") == "test")["sample_id"]
    judged = pl.read_csv(paths.evaluate / "per_image.csv")
    assert set(judged["sample_id"]) == set(test)
    assert {row.n for row in rows} == {len(test)}
    model = judged.filter(pl.col("method") == "model")
    assert np.isclose(model["msa"].mean(), next(row.value for row in rows if row.name == "msa"))
    assert {"overlays", "accuracy", "per_image", "training"} <= {f.stem for f in paths.figures.glob("*.png")}


def test_the_export_is_what_micro_sam_reads(paths: ExperimentPaths) -> None:
    export = paths.train / "export"
    content = torch.load(export / "cells.pt", weights_only=True)
    assert set(content) == {"model_state", "decoder_state"}
    best = torch.load(export / "checkpoints" / "cells" / "best.pt", weights_only=True)
    for name, value in content["model_state"].items():
        if name.startswith("image_encoder."):
            assert torch.equal(best["model_state"][name.removeprefix("image_")], value)
    assert (export / "checkpoints" / "cells" / "latest.pt").is_file()
    assert list((export / "logs" / "cells").glob("events*"))
    names = set(pl.read_parquet(paths.history)["name"])
    assert names == {"train/loss", "train/lr", "validation/loss", "validation/metric"}


def test_the_number_of_shards_and_the_form_of_the_masks_change_no_digit(
    simulated: Workspace, paths: ExperimentPaths
) -> None:
    results = simulated.folder / "other"
    (results / "cells").mkdir(parents=True)
    for name in ("prepared", "train"):
        (results / "cells" / name).symlink_to(paths.root / name)
    common = ("--experiment", "cells", "--results", str(results), "--set", "infer.masks=ome-zarr")
    simulated.manyscope("infer", *common)
    simulated.manyscope("gather", *common)
    other = ExperimentPaths.of(results, "cells")
    assert other.predictions.read_bytes() == paths.predictions.read_bytes()
    assert {p.suffix for p in (other.files / "masks").iterdir()} == {".zarr"}
    simulated.manyscope("evaluate", "--experiment", "cells", "--results", str(results))
    assert other.metrics.read_bytes() == paths.metrics.read_bytes()


def test_a_cell_is_found_by_its_id_and_by_its_image(simulated: Workspace, paths: ExperimentPaths) -> None:
    first = read_predictions(paths.predictions)["object_id"][0]
    search = ("search", "--experiment", "cells", "--json", "-k", "3")
    found = json.loads(simulated.manyscope(*search, "--id", first).stdout)
    assert len(found) == 3
    image = paths.raw / "images" / f"{first.rpartition('/')[0]}.tif"
    nearest = json.loads(simulated.manyscope(*search, "--image", str(image)).stdout)[0]
    assert nearest["object_id"].startswith(f"{image.stem}/")
    assert nearest["distance"] == pytest.approx(0, abs=1e-3)


def test_the_page_shows_every_cell(paths: ExperimentPaths) -> None:
    pictures = pictures_on_page(paths.page)
    assert list(pictures) == read_predictions(paths.predictions)["object_id"].to_list()
    # Each is a piece of an image, with what is in it, and no two are the same.
    assert all(picture[picture[..., 3] == 255][:, :3].std() > 1 for picture in pictures.values())
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)


def test_a_killed_training_ends_with_the_same_weights_and_history(
    simulated: Workspace, paths: ExperimentPaths, tmp_path: Path
) -> None:
    longer = ("--set", "train.epochs=8", "--set", "train.check_every_epochs=1")
    found = [
        train_apart(simulated, paths, tmp_path / name, *longer, interrupt=interrupt, checkpoint=CHECKPOINT)
        for name, interrupt in (("undisturbed", None), ("killed", signal.SIGKILL))
    ]
    for name in ("model", "history"):
        one, other = (getattr(own, name).read_bytes() for own in found)
        assert one == other, name


def test_new_images_without_labels_are_segmented_by_a_model_that_starts_from_another(
    simulated: Workspace, paths: ExperimentPaths, tmp_path: Path
) -> None:
    """Own folders, as most users have them: labelled images, new ones, and weights that are there."""
    folder = tmp_path / "own"
    for kind in ("images", "labels", "new"):
        (folder / kind).mkdir(parents=True)
    for number, image in enumerate(sorted((paths.raw / "images").iterdir())):
        if number < 2:
            shutil.copy(image, folder / "new")
            continue
        shutil.copy(image, folder / "images")
        shutil.copy(paths.raw / "labels" / image.name, folder / "labels")
    yaml = YAML(typ="safe")
    values = yaml.load(simulated.folder / "config/experiments/cells.yaml")
    places = {"images": folder / "images", "labels": folder / "labels", "unlabelled": folder / "new"}
    values["download"] = {"source": "folder", "folder": {name: str(place) for name, place in places.items()}}
    values["train"] |= {"start_from": "cells", "epochs": 1, "check_every_epochs": 1}
    with (simulated.folder / "config/experiments/own.yaml").open("w") as file:
        yaml.dump(values, file)
    simulated.manyscope("validate", "own")
    for stage in ("download", "preprocess", "train", "infer"):
        simulated.manyscope(stage, "--experiment", "own")
    own = ExperimentPaths.of(simulated.results, "own")
    samples = read_samples(own.samples)
    new = samples.filter(pl.col("split") == "unlabelled")["sample_id"]
    assert sorted(new) == sorted(path.stem for path in (folder / "new").iterdir())
    assert {p.stem for p in (own.files / "masks").iterdir()} == set(samples["sample_id"])
