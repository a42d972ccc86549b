"""The judge: right about latent spaces whose worth is known, honest about its baselines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.scopes.base import Evaluation
from manyscope.scopes.galaxies.data.stamps import FEATURE, StampData
from manyscope.scopes.galaxies.evaluate import _auroc, _kinds, _r2, _vote, baselines, evaluate
from manyscope.scopes.galaxies.evaluate.baselines import Contender, pca
from manyscope.scopes.galaxies.evaluate.measured import measured
from manyscope.scopes.galaxies.settings import GalaxiesEvaluate, GalaxiesModel
from manyscope.settings.sections import GatherSettings
from manyscope.tables.metrics import Metric
from manyscope.tables.parquet import write_table

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
        "anomaly_recall": {"pca", "untrained", "rings"},
        "reconstruction_psnr": {"pca", "untrained"},
    }
    span = np.ptp(data.images(data.train_rows[:1000]))
    assert row(found, "reconstruction_psnr").value == pytest.approx(10 * np.log10(span**2 / 0.01))
    assert found.figures.keys() == found.captions.keys()
    assert {"properties", "classes", "anomalies", "recall", "strangers", "neighbours"} <= found.figures.keys()
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


@pytest.fixture
def bare(prepared: Path, tmp_path: Path) -> StampData:
    """The same stamps, of which nothing is known."""
    shutil.copytree(prepared, tmp_path / "bare")
    meta = json.loads((tmp_path / "bare/stamps.json").read_text())
    (tmp_path / "bare/stamps.json").write_text(json.dumps({**meta, "classes": []}))
    samples = pl.read_parquet(prepared / "samples.parquet").select("sample_id", "group", "split")
    write_table(tmp_path / "bare/samples.parquet", samples)
    return StampData(tmp_path / "bare")


def predictions_of(data: StampData, latent: np.ndarray) -> pl.DataFrame:
    ids = data.samples["sample_id"].to_list()
    return pl.DataFrame({"object_id": ids, "sample_id": ids, "embedding": latent.astype(np.float32)})


def test_stamps_of_which_nothing_is_known_are_measured(bare: StampData) -> None:
    size = np.log10(measured(bare, np.arange(240))["measured_radius"].to_numpy())
    found = evaluate(MODEL, SETTINGS, GATHER, bare, bare.samples, predictions_of(bare, np.stack([size, size], 1)))
    assert found.headline == "property_r2"
    assert row(found, "property_r2", "measured_radius").value > 0.95
    assert {m.group for m in found.metrics} == {"measured_flux", "measured_radius", "measured_colour"}


def test_features_of_which_nothing_is_known_cannot_be_judged(bare: StampData) -> None:
    bare.unit = FEATURE
    latent = np.random.default_rng(0).normal(size=(240, 2))
    with pytest.raises(DataError, match=r"nothing to judge.*evaluate\.properties"):
        evaluate(MODEL, SETTINGS, GATHER, bare, bare.samples, predictions_of(bare, latent))


def test_objects_of_unknown_class_neither_vote_nor_are_judged(data: StampData) -> None:
    hidden = data.samples.with_row_index().with_columns(
        pl.when(pl.col("index") % 2 == 0).then(None).otherwise(pl.col("class")).alias("class")
    )
    data.samples = hidden.drop("index")
    latent = np.eye(5)[codes(hidden["class"].fill_null("disc"))]
    accuracy = row(
        evaluate(MODEL, SETTINGS, GATHER, data, data.samples, predictions_of(data, latent)), "class_accuracy"
    )
    assert accuracy.value == 1
    assert accuracy.n == hidden.filter(pl.col("class").is_not_null(), split="test", anomaly="none").height


def test_what_a_network_itself_tells_is_judged_beside_the_votes_of_neighbours(data: StampData, judged: Judged) -> None:
    names, latent = data.samples["class"].to_numpy(), np.random.default_rng(0).normal(size=(240, 8))
    own = row(judged(latent, predicted_class=names), "classifier_accuracy")
    assert own.value == 1
    assert own.ahead is True


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


class Asked:
    """Images, and how many were asked for at once."""

    def __init__(self, data: StampData) -> None:
        self.data, self.shape, self.counts = data, data.shape, list[int]()

    def images(self, rows: np.ndarray) -> np.ndarray:
        self.counts.append(len(rows))
        return self.data.images(rows)


def test_pca_in_pieces_is_the_same(data: StampData, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = data.rows("train"), data.rows("test")
    whole = pca(SETTINGS, GATHER, data, train, test, 4, {})
    monkeypatch.setattr(baselines, "_PIECE", 20 * np.prod(data.shape))
    asked: Any = Asked(data)
    parts = pca(SETTINGS, GATHER, asked, train, test, 4, {})
    assert max(asked.counts) == 20
    np.testing.assert_allclose(parts.train, whole.train, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(parts.test, whole.test, rtol=1e-3, atol=1e-4)
    for name, values in whole.outliers.items():
        np.testing.assert_allclose(parts.outliers[name], values, rtol=1e-3)


def test_pca_of_more_than_memory_holds_learns_from_some(data: StampData, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = data.rows("train"), data.rows("test")
    monkeypatch.setattr(baselines, "_FITTED", 50 * np.prod(data.shape))
    asked: Any = Asked(data)
    some, again = (pca(SETTINGS, GATHER, asked, train, test, 4, {}) for _ in range(2))
    assert asked.counts == 2 * [50, len(train) + len(test)]
    np.testing.assert_array_equal(some.test, again.test)
    assert some.train.shape == (len(train), 4)
    assert np.isfinite(some.train).all()


# ------------------------------------------------------------------------------------------------ columns of a user's
def with_column(data: StampData, values: pl.Series) -> StampData:
    data.samples = data.samples.with_columns(values)
    return data


def judged_strangers(data: StampData) -> Evaluation:
    rng = np.random.default_rng(0)
    predictions = predictions_of(data, rng.normal(size=(240, 4)))
    predictions = predictions.with_columns(outlier_knn=(np.arange(240) % 3 == 0) + rng.random(240) * 0.1)
    return evaluate(MODEL, SETTINGS, GATHER, data, data.samples, predictions)


def every_third(odd: object, other: object) -> list[Any]:
    """`odd` for each third sample, else `other`, and null for some."""
    return [None if i % 5 == 1 else odd if i % 3 == 0 else other for i in range(240)]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("anomaly", every_third("merger", "none")),
        pl.Series("anomaly", every_third(True, False)),
    ],
    ids=["text", "booleans"],
)
def test_of_anomalies_only_those_that_are_known_count(data: StampData, column: pl.Series) -> None:
    found = judged_strangers(with_column(data, column))
    known = data.samples.filter(pl.col("anomaly").is_not_null(), split="test")
    assert column.null_count()
    auroc = row(found, "anomaly_auroc")
    assert (auroc.value, auroc.n) == (1, len(known))
    kind = "merger" if column.dtype != pl.Boolean else "anomaly"
    assert row(found, "anomaly_recall", f"{kind}, top 10%").n == len(known)
    odd = (known["anomaly"].cast(pl.String) != ("none" if column.dtype != pl.Boolean else "false")).sum()
    normal = data.samples.filter(split="test").height - odd  # of unknown ones nothing says that they are strange
    assert row(found, "class_accuracy").n == normal
    titles = {axis.get_title("center").split(": ")[-1].split("\n")[0] for axis in found.figures["strangers"].axes}
    assert titles <= {kind, "unknown", ""}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series(["none", "ring", None]), ["none", "ring", None]),
        (pl.Series(["none", "ring", None], dtype=pl.Categorical), ["none", "ring", None]),
        (pl.Series([False, True, None]), ["none", "anomaly", None]),
        (pl.Series([True, True]), None),
        (pl.Series([0, 1, None]), None),
        (pl.Series([0.3, 0.9]), None),
        (pl.Series(["yes", "no"]), None),
        (pl.Series([None, None]), None),
    ],
)
def test_kinds_of_anomalies(values: pl.Series, expected: list[str | None] | None) -> None:
    found = _kinds(pl.DataFrame({"anomaly": values}))
    assert (found if found is None else found.to_list()) == expected
    assert _kinds(pl.DataFrame({"other": values})) is None


def test_a_column_of_that_name_that_means_something_else_is_not_judged(data: StampData) -> None:
    found = judged_strangers(with_column(data, pl.Series("anomaly", np.linspace(0, 1, 240))))
    assert {m.name for m in found.metrics} == {"class_accuracy", "property_r2"}
    assert row(found, "class_accuracy").n == data.samples.filter(split="test").height
    assert not {"anomalies", "recall"} & found.figures.keys()
    assert "anomaly" in found.tables["outliers.csv"].columns
    titles = [axis.get_title("center") for axis in found.figures["strangers"].axes]
    assert titles[0].split(": ")[1].startswith("sim-")


@pytest.mark.parametrize("name", ["colour", "snr"])
def test_a_property_that_is_no_number_is_left_out(data: StampData, name: str) -> None:
    found = judged_strangers(with_column(data, pl.Series(name, ["red", "blue", None] * 80)))
    assert {m.group for m in found.metrics if m.name == "property_r2"} == {"half_light_radius"}
    assert "neighbours" in found.figures


def test_measured_properties_stand_for_columns_that_are_no_numbers(bare: StampData) -> None:
    words = pl.Series(["red", "blue"] * 120)
    bare.samples = bare.samples.with_columns(words.alias("colour"), words.alias("measured_flux"))
    size = np.log10(measured(bare, np.arange(240))["measured_radius"].to_numpy())
    found = evaluate(MODEL, SETTINGS, GATHER, bare, bare.samples, predictions_of(bare, np.stack([size, size], 1)))
    assert {m.group for m in found.metrics} == {"measured_flux", "measured_radius", "measured_colour"}


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
