"""The judge: right about latent spaces whose worth is known, honest about its baselines."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.scopes.base import Evaluation
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.evaluate import _auroc, _r2, _vote, evaluate
from manyscope.scopes.galaxies.evaluate.baselines import Contender, pca
from manyscope.scopes.galaxies.settings import GalaxiesEvaluate, GalaxiesModel
from manyscope.settings.sections import GatherSettings
from manyscope.tables.metrics import Metric

MODEL = GalaxiesModel(name="invariant", args={"channels": 4, "latent": 16, "tied": 8})
GATHER = GatherSettings()
SETTINGS = GalaxiesEvaluate(bootstrap_draws=100)
Judged = Callable[..., Evaluation]


@pytest.fixture
def judged(data: StampData) -> Judged:
    """Judges latent vectors of all samples."""

    def judge(latent: np.ndarray, model: GalaxiesModel = MODEL, **columns: np.ndarray) -> Evaluation:
        ids = data.samples["sample_id"].to_list()
        table = {"object_id": ids, "sample_id": ids, "embedding": latent.astype(np.float32), **columns}
        return evaluate(model, SETTINGS, GATHER, data, data.samples, pl.DataFrame(table))

    return judge


def row(found: Evaluation, name: str, group: str = "all", baseline: str = "pca") -> Metric:
    return next(m for m in found.metrics if (m.name, m.group, m.baseline) == (name, group, baseline))


def codes(column: pl.Series) -> np.ndarray:
    return np.unique(column.to_numpy(), return_inverse=True)[1]


def test_a_latent_space_that_knows_the_class_is_right_and_ahead(data: StampData, judged: Judged) -> None:
    rng = np.random.default_rng(0)
    latent = np.eye(5)[codes(data.samples["class"])] + rng.normal(0, 0.01, (240, 5))
    accuracy = row(judged(latent), "class_accuracy")
    assert accuracy.value == accuracy.low == accuracy.high == 1
    assert accuracy.ahead is True
    assert accuracy.n == data.samples.filter(split="test", anomaly="none").height


def test_a_latent_space_of_noise_is_at_chance_and_behind(judged: Judged) -> None:
    latent = np.random.default_rng(0).normal(size=(240, 8))
    found = judged(latent)
    assert row(found, "class_accuracy").value < 0.45
    assert row(found, "property_r2", "half_light_radius").value < 0.2


def test_a_property_that_the_latent_space_holds_is_found(data: StampData, judged: Judged) -> None:
    size = np.log10(data.samples["half_light_radius"].to_numpy())
    found = row(judged(np.stack([size, size], 1)), "property_r2", "half_light_radius")
    assert found.value > 0.95
    assert found.ahead is True


def test_strangers_are_judged_by_all_kinds_and_by_each(data: StampData, judged: Judged) -> None:
    kind = data.samples["anomaly"].to_numpy()
    perfect = (kind != "none") + np.random.default_rng(0).random(240) * 0.1
    found = judged(np.random.default_rng(1).normal(size=(240, 4)), outlier_knn=perfect, outlier_lof=perfect)
    groups = {m.group for m in found.metrics if m.name == "anomaly_auroc"}
    present = set(kind[(data.samples["split"] == "test").to_numpy()]) - {"none"}
    assert "all" in groups
    assert groups - {"all"}
    # a kind of which many resamples hold no object has no interval, and no row
    assert groups - {"all"} <= present
    assert all(m.value == 1 for m in found.metrics if m.name == "anomaly_auroc")
    assert row(found, "anomaly_auroc").ahead is True


def test_every_metric_stands_beside_every_baseline(data: StampData, judged: Judged) -> None:
    error = np.full(240, 0.01)
    found = judged(
        np.random.default_rng(0).normal(size=(240, 16)),
        GalaxiesModel(name="autoencoder", args={"channels": 4, "latent": 16}),
        reconstruction_error=error,
        outlier_reconstruction=error,
        outlier_knn=np.arange(240.0),
    )
    beside = {name: {m.baseline for m in found.metrics if m.name == name} for name in {m.name for m in found.metrics}}
    assert beside == {
        "class_accuracy": {"pca", "untrained", "rings"},
        "property_r2": {"pca", "untrained", "rings"},
        "anomaly_auroc": {"pca", "untrained", "rings"},
        "reconstruction_psnr": {"pca", "untrained"},
    }
    span = np.ptp(data.images(data.train_rows[:1000]))
    assert row(found, "reconstruction_psnr").value == pytest.approx(10 * np.log10(span**2 / 0.01))
    assert found.figures.keys() == found.captions.keys()
    assert {"properties", "classes", "anomalies", "strangers", "neighbours"} <= found.figures.keys()
    assert found.headline in beside


def test_baselines_do_not_depend_on_the_global_generator(judged: Judged) -> None:
    import torch

    latent = np.random.default_rng(0).normal(size=(240, 8))
    torch.manual_seed(1)
    first = judged(latent)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = judged(latent)
    assert first.metrics == second.metrics
    assert torch.equal(torch.get_rng_state(), state)


def test_predictions_of_other_samples_are_refused(data: StampData) -> None:
    ids = data.samples["sample_id"].to_list()[::-1]
    predictions = pl.DataFrame({"object_id": ids, "sample_id": ids, "embedding": np.zeros((240, 2), np.float32)})
    with pytest.raises(DataError, match="not of the 240 samples"):
        evaluate(MODEL, SETTINGS, GATHER, data, data.samples, predictions)


def test_nothing_to_judge_by_is_an_error(data: StampData) -> None:
    ids = data.samples["sample_id"].to_list()
    latent = np.random.default_rng(0).normal(size=(240, 2)).astype(np.float32)
    predictions = pl.DataFrame({"object_id": ids, "sample_id": ids, "embedding": latent})
    bare = data.samples.select("sample_id", "group", "split")
    with pytest.raises(DataError, match="nothing to judge"):
        evaluate(MODEL, SETTINGS, GATHER, data, bare, predictions)


def test_pca_learns_from_training_images_only_and_more_components_see_more(data: StampData) -> None:
    train, test = data.rows("train"), data.rows("test")
    few, many = (pca(SETTINGS, GATHER, data, train, test, d, {}) for d in (4, 32))
    assert few.error is not None
    assert many.error is not None
    assert many.error.mean() < few.error.mean()
    pixels = data.images(train).reshape(len(train), -1)
    exact = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)[1][:4]
    np.testing.assert_allclose(np.linalg.norm(few.train, axis=0), exact, rtol=1e-2)
    assert set(few.outliers) == {"outlier_knn", "outlier_lof", "error", "peak"}


# ---------------------------------------------------------------------------------------------------- small parts
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auroc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    score, odd = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    found = _auroc(score, odd)(np.arange(len(pairs)))
    if odd.all() or not odd.any():
        assert np.isnan(found)
    else:
        wins = [(a > b) + 0.5 * (a == b) for a in score[odd] for b in score[~odd]]
        assert found == pytest.approx(np.mean(wins))


def test_auroc_of_a_resample_counts_repeats() -> None:
    score = _auroc(np.array([0.1, 0.9, 0.5]), np.array([False, True, True]))
    assert score(np.array([0, 1, 1, 2])) == 1
    assert np.isnan(score(np.array([1, 1, 2])))


def test_votes_go_to_the_most_frequent_and_then_to_the_nearer() -> None:
    near = np.array([[2, 1, 1], [0, 1, 2], [2, 0, 1], [2, 2, 0]])
    assert list(_vote(near, 3)) == [1, 0, 2, 2]
    assert list(_vote(np.array([[1, 0, 0, 1]]), 3)) == [1]
    assert list(_vote(np.array([[0, 0, 1, 1, 1]]), 3)) == [1]


def test_r2_is_one_for_truth_and_zero_for_the_mean() -> None:
    truth = np.array([1.0, 2.0, 4.0, 8.0])
    rows = np.arange(4)
    assert _r2(truth, truth)(rows) == 1
    assert _r2(np.full(4, truth.mean()), truth)(rows) == pytest.approx(0)
    assert np.isnan(_r2(truth, truth)(np.array([1, 1])))


def test_strangeness_is_the_mean_rank() -> None:
    scores = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([10.0, 30.0, 20.0])}
    contender = Contender(np.zeros((1, 1)), np.zeros((3, 1)), scores)
    np.testing.assert_allclose(contender.strangeness, [1 / 3, 2.5 / 3, 2.5 / 3])
