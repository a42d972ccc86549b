"""The judge of masks: right about masks whose worth is known, and silent about what it cannot know."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from manyscope.errors import DataError
from manyscope.evaluation.figures import save_figure
from manyscope.scopes.base import Evaluation
from manyscope.scopes.cells.data.images import CellImages
from manyscope.scopes.cells.evaluate import FEWEST, HEADLINE, evaluate, figures
from manyscope.scopes.cells.evaluate.matching import scores
from manyscope.scopes.cells.masks import write_masks
from manyscope.scopes.cells.settings import CellsEvaluate
from manyscope.tables.metrics import Metric

SETTINGS = CellsEvaluate(bootstrap_draws=100, overlays=0, baselines=("flat_otsu_watershed", "local_threshold"))
TEST = 5  # images
Masks = Callable[[np.ndarray], np.ndarray]


@pytest.fixture
def images(prepared: Path) -> CellImages:
    """The prepared images, of which five are for the test and the others for training."""
    data = CellImages(prepared)
    split = pl.Series("split", ["test"] * TEST + ["train"] * (len(data.samples) - TEST))
    data.samples = data.samples.with_columns(split)
    return data


def as_they_are(labels: np.ndarray) -> np.ndarray:
    return labels


def shifted(labels: np.ndarray) -> np.ndarray:
    return np.roll(labels, 3, axis=1)


def inferred(data: CellImages, files: Path, masks: Masks) -> pl.DataFrame:
    """Write masks made of the true labels; the predictions that belong to them."""
    ids = []
    for row, sample_id in enumerate(data.samples["sample_id"]):
        labels = data.labels(row)
        found = masks(labels if labels is not None else np.zeros_like(data.image(row)))
        write_masks(files / "masks", sample_id, found, "tif")
        ids += [sample_id] * (len(np.unique(found)) - 1)
    return pl.DataFrame({"sample_id": ids}, schema={"sample_id": pl.String})


def judged(data: CellImages, files: Path, masks: Masks = as_they_are, settings: CellsEvaluate = SETTINGS) -> Evaluation:
    return evaluate(settings, data, files, data.samples, inferred(data, files, masks))


def rows(found: Evaluation, name: str) -> dict[str | None, Metric]:
    return {m.baseline: m for m in found.metrics if m.name == name}


# ---------------------------------------------------------------------------------------------------------- metrics
def test_the_true_cells_score_one_beside_each_baseline(images: CellImages, tmp_path: Path) -> None:
    found = judged(images, tmp_path)
    assert found.headline == HEADLINE == found.metrics[0].name
    assert {m.name for m in found.metrics} == {"msa", "sa50", "sa75", "precision", "recall", "f1"}
    for metric in found.metrics:
        assert (metric.value, metric.low, metric.high, metric.group, metric.n) == (1, 1, 1, "all", TEST)
    for name in ("msa", "f1"):
        beside = rows(found, name)
        assert set(beside) == set(SETTINGS.baselines)
        assert all(0.2 < m.baseline_value < 1 for m in beside.values() if m.baseline_value is not None)
        assert all(m.ahead for m in beside.values())


def test_no_cell_at_all_scores_zero(images: CellImages, tmp_path: Path) -> None:
    found = judged(images, tmp_path, lambda labels: np.zeros_like(labels))
    assert {m.value for m in found.metrics} == {0.0}
    assert not any(m.ahead for m in found.metrics)


def test_a_metric_is_the_mean_of_the_images_and_the_table_says_each(images: CellImages, tmp_path: Path) -> None:
    found = judged(images, tmp_path, shifted)
    table = found.tables["per_image.csv"]
    test_ids = images.samples["sample_id"].head(TEST).to_list()
    assert table.filter(method="model")["sample_id"].to_list() == test_ids
    for metric in found.metrics:
        assert table.filter(method="model")[metric.name].mean() == pytest.approx(metric.value)
        assert table.filter(method=metric.baseline)[metric.name].mean() == pytest.approx(metric.baseline_value)
        assert metric.low <= metric.value <= metric.high
    assert found.metrics[0].low < found.metrics[0].value < found.metrics[0].high
    for row, line in enumerate(table.filter(method="model").iter_rows(named=True)):
        labels = images.labels(row)
        assert labels is not None
        assert {name: line[name] for name in scores(labels, labels)} == scores(labels, shifted(labels))
        assert line["cells_true"] == images.samples["cells"][row]
        assert line["cells_found"] == len(np.unique(shifted(labels))) - 1


def test_the_same_input_gives_the_same_numbers(images: CellImages, tmp_path: Path) -> None:
    first, second = (judged(images, tmp_path, shifted) for _ in range(2))
    assert first.metrics == second.metrics
    assert all(first.tables[name].equals(second.tables[name]) for name in ("per_image.csv", "baselines.csv"))


def test_the_baselines_never_see_the_labels_of_the_test(
    images: CellImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = judged(images, tmp_path).tables["baselines.csv"]
    assert before["method"].to_list() == list(SETTINGS.baselines)
    assert before["chosen_on_images"].to_list() == [len(images.samples) - TEST] * 2
    own = CellImages.labels

    def spoilt(data: CellImages, row: int) -> np.ndarray | None:
        labels = own(data, row)
        return labels if row >= TEST or labels is None else labels[::-1]

    monkeypatch.setattr(CellImages, "labels", spoilt)
    after = judged(images, tmp_path)
    assert after.tables["baselines.csv"].equals(before)
    assert rows(after, "msa")["local_threshold"].baseline_value != pytest.approx(before["msa_there"][1])


# ----------------------------------------------------------------------------------------------- what is not judged
def test_images_without_labels_are_not_judged(images: CellImages, tmp_path: Path) -> None:
    known = pl.when(pl.int_range(pl.len()) < 2).then(None).otherwise("cells").alias("cells")
    images.samples = images.samples.with_columns(known)
    found = judged(images, tmp_path)
    assert {m.n for m in found.metrics} == {TEST - 2}
    assert found.tables["per_image.csv"]["sample_id"].unique().sort().to_list() == (
        images.samples["sample_id"][2:TEST].sort().to_list()
    )


def test_without_a_labelled_test_image_there_is_nothing_to_judge(images: CellImages, tmp_path: Path) -> None:
    predictions = inferred(images, tmp_path, as_they_are)
    images.samples = images.samples.with_columns(cells=pl.when(pl.col("split") != "test").then("cells"))
    with pytest.raises(DataError, match="no test image has labels"):
        evaluate(SETTINGS, images, tmp_path, images.samples, predictions)


def test_without_labels_outside_the_test_no_baseline_can_be_chosen(images: CellImages, tmp_path: Path) -> None:
    predictions = inferred(images, tmp_path, as_they_are)
    images.samples = images.samples.with_columns(cells=pl.when(pl.col("split") == "test").then("cells"))
    with pytest.raises(DataError, match="no training or validation image has labelled cells"):
        evaluate(SETTINGS, images, tmp_path, images.samples, predictions)


def test_few_images_are_named_as_few(images: CellImages, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("manyscope")
    logger.addHandler(caplog.handler)
    try:
        enough = judged(images, tmp_path)
        assert "test images only" not in caplog.text
        images.samples = images.samples.filter((pl.col("split") != "test") | (pl.int_range(pl.len()) < FEWEST - 1))
        few = evaluate(SETTINGS, images, tmp_path, images.samples, inferred(images, tmp_path, shifted))
        assert f"from {FEWEST - 1} test images only" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)
    assert few.metrics[0].low < few.metrics[0].high
    assert "too few" in few.captions["per_image"]
    assert "too few" not in enough.captions["per_image"]


# ----------------------------------------------------------------------------------------------------- broken files
def test_missing_masks_ask_for_infer(images: CellImages, tmp_path: Path) -> None:
    predictions = inferred(images, tmp_path, as_they_are)
    (tmp_path / "masks" / f"{images.samples['sample_id'][0]}.tif").unlink()
    with pytest.raises(DataError, match="masks of this sample are missing; run the stage infer again"):
        evaluate(SETTINGS, images, tmp_path, images.samples, predictions)


def test_masks_of_another_size_are_refused(images: CellImages, tmp_path: Path) -> None:
    predictions = inferred(images, tmp_path, as_they_are)
    write_masks(tmp_path / "masks", images.samples["sample_id"][0], np.ones((7, 9), np.uint8), "tif")
    with pytest.raises(DataError, match=r"shape \(7, 9\), its image \(96, 96\)"):
        evaluate(SETTINGS, images, tmp_path, images.samples, predictions)


def test_masks_of_other_cells_than_the_predictions_are_refused(images: CellImages, tmp_path: Path) -> None:
    predictions = inferred(images, tmp_path, as_they_are)
    with pytest.raises(DataError, match="its predictions"):
        evaluate(SETTINGS, images, tmp_path, images.samples, predictions[1:])


# ---------------------------------------------------------------------------------------------------------- figures
def test_every_figure_has_a_caption_and_can_be_saved(images: CellImages, tmp_path: Path) -> None:
    found = judged(images, tmp_path, shifted, SETTINGS.model_copy(update={"overlays": 3}))
    assert set(found.figures) == set(found.captions) == {"overlays", "accuracy", "per_image"}
    for name, figure in found.figures.items():
        save_figure(figure, tmp_path / f"{name}.png")
        assert np.asarray(Image.open(tmp_path / f"{name}.png")).std() > 5
    overlays = found.figures["overlays"]
    titles = [axis.get_title() for axis in overlays.axes]
    assert len(titles) == 6
    own = [float(title.split()[-1]) for title in titles if title.startswith("model")]
    assert own == sorted(own)
    mean = {method: rows(found, "msa")[method].baseline_value or 0 for method in SETTINGS.baselines}
    assert max(mean, key=lambda method: mean[method]) in titles[1]


def test_an_overlay_shows_both_outlines_where_they_are() -> None:
    truth, masks = np.zeros((40, 40), np.uint32), np.zeros((40, 40), np.uint32)
    truth[5:20, 5:20], masks[8:23, 5:20] = 1, 1
    image = np.full((40, 40), 128, np.uint8)
    figure = figures.overlays([figures.Shown("a", image, truth, [figures.Found("model", masks, 0.5)])])
    picture = np.asarray(figure.axes[0].images[0].get_array())
    blue, orange = ((picture == colour).all(-1) for colour in ((0, 114, 178), (230, 159, 0)))
    grey = (picture == 128).all(-1)
    assert (blue.astype(int) + orange + grey == 1).all()
    fine = picture.shape[0] // 40
    for colour, cell in ((blue, truth), (orange, masks)):
        y, x = np.nonzero(colour)
        inside = cell.repeat(fine, 0).repeat(fine, 1) > 0
        assert inside[colour].all()
        assert (y.min() // fine, x.min() // fine) == tuple(np.argwhere(cell > 0).min(0))
    agreed = figures.overlays([figures.Shown("a", image, truth, [figures.Found("model", truth, 1.0)])])
    picture = np.asarray(agreed.axes[0].images[0].get_array())
    assert (picture == (0, 114, 178)).all(-1).any()  # also where the two agree


def test_without_overlays_no_picture_is_made(images: CellImages, tmp_path: Path) -> None:
    assert set(judged(images, tmp_path).figures) == {"accuracy", "per_image"}


def test_of_a_large_image_the_middle_is_shown() -> None:
    image = np.zeros((600, 700), np.uint8)
    image[300, 350] = 255
    masks = np.zeros(image.shape, np.uint32)
    figure = figures.overlays([figures.Shown("a", image, masks, [figures.Found("model", masks, 0)])])
    picture = np.asarray(figure.axes[0].images[0].get_array())
    fine = picture.shape[0] // 512
    assert picture.shape == (512 * fine, 512 * fine, 3)
    assert picture[256 * fine, 256 * fine].tolist() == [255, 255, 255]
