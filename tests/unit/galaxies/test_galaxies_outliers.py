"""The ranking of strangers, and the recall of injected ones."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.evaluate import evaluate
from manyscope.scopes.galaxies.evaluate.outliers import SHARES, curve, recall, table
from manyscope.scopes.galaxies.settings import GalaxiesEvaluate, GalaxiesModel
from manyscope.settings.sections import GatherSettings

SETTINGS = GalaxiesEvaluate(bootstrap_draws=100, gallery=5)
MODEL = GalaxiesModel(name="invariant", args={"channels": 4, "latent": 16, "tied": 8})


def predictions(data: StampData, **columns: np.ndarray) -> pl.DataFrame:
    ids = data.samples["sample_id"].to_list()
    latent = np.random.default_rng(0).normal(size=(len(ids), 4)).astype(np.float32)
    return pl.DataFrame({"object_id": ids, "sample_id": ids, "embedding": latent, **columns})


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40).filter(
        lambda pairs: any(odd for _, odd in pairs)
    ),
    st.floats(0, 1),
)
def test_recall_is_what_a_search_from_the_top_finds(pairs: list[tuple[int, bool]], share: float) -> None:
    strangeness, odd = np.array([s for s, _ in pairs], float), np.array([o for _, o in pairs])
    rng, seen = np.random.default_rng(0), share * len(pairs)
    found = []
    for _ in range(400):  # of equally strange ones any may come first
        order = odd[np.lexsort([rng.random(len(pairs)), -strangeness])]
        whole = int(seen)
        found.append((order[:whole].sum() + (seen - whole) * order[whole : whole + 1].sum()) / odd.sum())
    assert recall(strangeness, odd, share)(np.arange(len(pairs))) == pytest.approx(np.mean(found), abs=0.12)


def test_recall_of_a_resample_looks_at_a_share_of_the_resample() -> None:
    score = recall(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]), 0.5)
    assert score(np.arange(4)) == 0.5
    assert score(np.array([0, 0, 2, 2])) == 0.5
    assert score(np.array([2, 2, 3, 3])) == 1
    assert np.isnan(score(np.array([1, 3])))


def test_the_curve_rises_from_nothing_to_all() -> None:
    rng = np.random.default_rng(0)
    found = curve(rng.random(50), rng.random(50) < 0.3, np.linspace(0, 1, 20))
    assert (found[0], found[-1]) == (0, 1)
    assert (np.diff(found) >= 0).all()


def test_the_table_ranks_all_objects_and_says_what_is_known_of_them(data: StampData) -> None:
    n = len(data.samples)
    scores = {"outlier_knn": np.arange(n, dtype=np.float32), "outlier_lof": np.arange(n, dtype=np.float32)}
    found = table(data.samples, predictions(data, **scores))
    assert found.columns == [
        "rank", "object_id", "percentile", "strangeness", "outlier_knn", "outlier_lof", "split", "class", "anomaly",
    ]  # fmt: skip
    assert found["rank"].to_list() == list(range(1, n + 1))
    assert found["object_id"].to_list() == data.samples["sample_id"].to_list()[::-1]
    assert found["anomaly"].to_list() == data.samples["anomaly"].to_list()[::-1]
    assert set(found["split"]) == {"train", "validation", "test"}
    assert found["percentile"][0] == 100


def test_recall_is_judged_for_each_kind_and_share(data: StampData) -> None:
    kind = data.samples["anomaly"].to_numpy()
    perfect = (kind != "none") + np.random.default_rng(0).random(len(kind)) * 0.1
    found = evaluate(MODEL, SETTINGS, GatherSettings(), data, data.samples, predictions(data, outlier_knn=perfect))
    rows = {m.group: m for m in found.metrics if m.name == "anomaly_recall" and m.baseline == "pca"}
    assert {f"all, top {share:.0%}" for share in SHARES} == {group for group in rows if group.startswith("all")}
    test = data.samples.filter(split="test")
    odd = test.filter(pl.col("anomaly") != "none").height
    for share in SHARES:  # all that is looked at is strange, as long as there is such
        assert rows[f"all, top {share:.0%}"].value == pytest.approx(min(1, share * len(test) / odd))
    kinds = {group.partition(",")[0] for group in rows} - {"all"}
    assert kinds
    assert kinds <= set(test["anomaly"]) - {"none"}
    first = found.tables["outliers.csv"].head(5)
    titles = [axis.get_title("center") for axis in found.figures["strangers"].axes[:5]]
    assert [title.split(":")[0] for title in titles] == ["1", "2", "3", "4", "5"]
    assert [title.split(": ")[1].split("\n")[0] for title in titles] == first["anomaly"].str.replace_all(
        "_", " "
    ).to_list()


def test_without_injected_anomalies_there_is_the_ranking_and_the_gallery(data: StampData) -> None:
    samples = data.samples.drop("anomaly").with_columns(sample_id="a long way to " + pl.col("sample_id"))
    data.samples = samples
    scores = np.random.default_rng(0).random(len(samples))
    found = evaluate(MODEL, SETTINGS, GatherSettings(), data, samples, predictions(data, outlier_knn=scores))
    assert not {m.name for m in found.metrics} & {"anomaly_recall", "anomaly_auroc"}
    assert "recall" not in found.figures
    titles = [axis.get_title("center").split("\n")[0] for axis in found.figures["strangers"].axes[:5]]
    strangest = found.tables["outliers.csv"]["object_id"][:5]
    assert titles == [f"{rank}: …{name[-15:]}" for rank, name in enumerate(strangest, 1)]
    assert found.tables["outliers.csv"]["object_id"][0] == samples["sample_id"][int(scores.argmax())]


def test_without_scores_there_is_no_ranking(data: StampData) -> None:
    found = evaluate(MODEL, SETTINGS, GatherSettings(), data, data.samples, predictions(data))
    assert not found.tables
    assert "strangers" not in found.figures
