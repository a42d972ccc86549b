"""The judge of directions: right about predictions whose worth is known, whatever their order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from manyscope.errors import DataError
from manyscope.evaluation.figures import save_figure
from manyscope.nn.directional import vmf_cone
from manyscope.scopes.base import Evaluation
from manyscope.scopes.neutrinos.data.loading import EventData
from manyscope.scopes.neutrinos.data.shards import unit_vectors
from manyscope.scopes.neutrinos.evaluate import FEWEST, HEADLINE, coverage_gap, evaluate, too_narrow
from manyscope.scopes.neutrinos.evaluate.judged import angle, line_fit_directions, zenith
from manyscope.scopes.neutrinos.evaluate.submission import rows, submission
from manyscope.scopes.neutrinos.settings import InputSettings, NeutrinosEvaluate
from manyscope.tables.metrics import Metric

SETTINGS = NeutrinosEvaluate(bootstrap_draws=100, displays=0)
Judge = Callable[..., Evaluation]


@pytest.fixture(scope="module")
def data(prepared_events: Path) -> EventData:
    return EventData(prepared_events, InputSettings())


@pytest.fixture(scope="module")
def judge(data: EventData) -> Judge:
    """Judges predictions of all samples."""

    def judged(predictions: pl.DataFrame, settings: NeutrinosEvaluate = SETTINGS, **drop: list[str]) -> Evaluation:
        return evaluate(settings, data, data.samples.drop(drop.get("drop", [])), predictions)

    return judged


def perfect(data: EventData, kappa: float = 1e5) -> pl.DataFrame:
    """The truth, and zenith 1 where there is none."""
    s = data.samples
    angles = {"azimuth": s["azimuth"].fill_null(0.5), "zenith": s["zenith"].fill_null(1.0)}
    constant = {name: np.full(len(s), kappa, np.float32) for name in ("kappa", "kappa_raw")}
    return pl.DataFrame({"object_id": s["sample_id"], "sample_id": s["sample_id"], **angles, **constant})


def opposite(predictions: pl.DataFrame) -> pl.DataFrame:
    return predictions.with_columns((pl.col("azimuth") + np.pi) % (2 * np.pi), zenith=np.pi - pl.col("zenith"))


def of_test(data: EventData) -> pl.DataFrame:
    return data.samples.filter(split="test")


def row(found: Evaluation, name: str, group: str = "all") -> Metric:
    return next(m for m in found.metrics if (m.name, m.group) == (name, group))


def groups(found: Evaluation, name: str) -> dict[str, int]:
    return {m.group: m.n for m in found.metrics if m.name == name}


# ------------------------------------------------------------------------------------------------------- direction
def test_perfect_predictions_have_no_error_and_are_ahead(data: EventData, judge: Judge) -> None:
    found = judge(perfect(data))
    assert found.headline == HEADLINE
    assert (found.metrics[0].name, found.metrics[0].group, found.metrics[0].baseline) == (HEADLINE, "all", "line_fit")
    for name in (HEADLINE, "median_angular_error"):
        for group in ("all", "cascade"):
            assert row(found, name, group).value == pytest.approx(0, abs=1e-12)
            assert row(found, name, group).ahead is True
    assert row(found, "zenith_bias").value == pytest.approx(0, abs=1e-12)
    assert all(m.unit == "rad" for m in found.metrics if "angular" in m.name or m.name == "zenith_bias")


def test_opposite_predictions_err_by_half_a_turn(data: EventData, judge: Judge) -> None:
    found = judge(opposite(perfect(data)))
    assert row(found, HEADLINE).value == pytest.approx(np.pi, abs=1e-12)
    assert row(found, HEADLINE).ahead is False


def test_the_line_fit_is_judged_on_the_same_events(data: EventData, judge: Judge) -> None:
    """Predictions that are the line fit's differ from it in nothing; and it is good for tracks, not for cascades."""
    direction = line_fit_directions(data, np.arange(len(data.samples)))
    azimuth = np.arctan2(direction[:, 1], direction[:, 0]) % (2 * np.pi)
    found = judge(perfect(data).with_columns(azimuth=azimuth, zenith=zenith(direction)))
    for metric in (m for m in found.metrics if m.baseline == "line_fit"):
        assert metric.difference == pytest.approx(0, abs=1e-7)
        assert metric.difference_high == pytest.approx(0, abs=1e-7)
    assert row(found, HEADLINE, "track").value < 0.1
    assert row(found, HEADLINE, "cascade").value > 1


def test_a_line_fit_that_is_not_defined_points_up(data: EventData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.shards[0].__dict__, "line_fit", np.zeros_like(data.shards[0].line_fit))
    assert line_fit_directions(data, np.array([5, 1])).tolist() == [[0, 0, 1]] * 2


def test_line_fits_are_those_of_their_rows(data: EventData) -> None:
    some = np.array([200, 3, 117])
    velocity = data.shards[0].line_fit[some].astype(np.float64)
    assert (line_fit_directions(data, some) * velocity).sum(1) == pytest.approx(-np.linalg.norm(velocity, axis=1))


@given(st.floats(0, 2 * np.pi), st.floats(0, np.pi), st.floats(1e-9, np.pi - 1e-9))
def test_small_and_large_angles_are_exact(azimuth: float, polar: float, turn: float) -> None:
    u = unit_vectors(np.array([azimuth]), np.array([polar]))
    across = unit_vectors(np.array([azimuth]), np.array([polar + np.pi / 2]))
    v = np.cos(turn) * u + np.sin(turn) * across
    assert angle(u, v)[0] == pytest.approx(turn, rel=1e-6, abs=1e-15)
    assert angle(u, v)[0] == angle(v, u)[0]


def test_zenith_bias_is_the_distance_of_means(data: EventData, judge: Judge) -> None:
    tilted = perfect(data).with_columns(pl.col("zenith") * 0.9)
    expected = 0.1 * of_test(data)["zenith"].mean()  # type: ignore[operator]
    assert row(judge(tilted), "zenith_bias").value == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------------- groups
def test_groups_hold_the_events_that_they_name(data: EventData, judge: Judge) -> None:
    test = of_test(data)
    found = groups(judge(perfect(data)), HEADLINE)
    up = pl.col("zenith").cos()
    expected = {
        "all": len(test),
        "track": len(test.filter(pl.col("class") == "track")),
        "cascade": len(test.filter(pl.col("class") == "cascade")),
        "pulses < 100": len(test.filter(pl.col("n_pulses") < 100)),
        "pulses 100-1000": len(test.filter(pl.col("n_pulses").is_between(100, 999))),
        "down-going": len(test.filter(up > 0.33)),
        "horizontal": len(test.filter(up.abs() <= 0.33)),
        "up-going": len(test.filter(up < -0.33)),
    }
    assert {name: found[name] for name in expected if expected[name] >= FEWEST} == {
        name: n for name, n in expected.items() if n >= FEWEST
    }
    energies = {name: n for name, n in found.items() if name.startswith("energy")}
    assert energies
    for name, n in energies.items():
        low, high = (float(edge) for edge in name.removeprefix("energy ").removesuffix(" GeV").split("-"))
        energy = pl.col("energy_gev")
        assert n == len(test.filter((energy >= low * 0.999) & (energy < high * 1.001)))
    assert set(groups(judge(perfect(data)), "median_angular_error")) == {"all", "track", "cascade"}


def test_small_groups_are_left_out_and_named_in_the_log(
    data: EventData, judge: Judge, caplog: pytest.LogCaptureFixture
) -> None:
    many = of_test(data).filter(pl.col("n_pulses") >= 1000)
    assert 0 < len(many) < FEWEST
    with caplog.at_level(logging.WARNING, "manyscope"):
        found = judge(perfect(data))
    assert "pulses >= 1000" not in groups(found, HEADLINE)
    assert min(groups(found, HEADLINE).values()) >= FEWEST
    assert f"'pulses >= 1000' is left out: it has {len(many)} test events" in caplog.text


def test_events_without_class_and_energy_are_judged_together(data: EventData, judge: Judge) -> None:
    found = judge(perfect(data), drop=["class", "energy_gev"])
    assert set(groups(found, "median_angular_error")) == {"all"}
    assert not [name for name in groups(found, HEADLINE) if name.startswith("energy")]


def test_high_energies_share_one_band(data: EventData) -> None:
    samples = data.samples.with_columns(energy_gev=pl.when(split="test").then(10.0 ** (3 + pl.int_range(pl.len()) % 4)))
    found = groups(evaluate(SETTINGS, data, samples, perfect(data)), HEADLINE)
    assert {name: n for name, n in found.items() if name.startswith("energy")} == {
        "energy 1000-3162 GeV": 30,
        "energy 10000-31623 GeV": 30,
        "energy >= 100000 GeV": 60,
    }


# ---------------------------------------------------------------------------------------------------------- joining
def test_the_order_of_the_predictions_does_not_matter(data: EventData, judge: Judge) -> None:
    rng = np.random.default_rng(0)
    noisy = perfect(data).with_columns(zenith=np.arccos(rng.uniform(-1, 1, len(data.samples))))
    straight, shuffled = judge(noisy), judge(noisy.sample(fraction=1, shuffle=True, seed=3))
    assert straight.metrics == shuffled.metrics
    assert straight.tables["submission.csv"].equals(shuffled.tables["submission.csv"])


def test_predictions_of_the_test_split_suffice(data: EventData, judge: Judge) -> None:
    everything = perfect(data)
    some = everything.join(of_test(data), on="sample_id", how="semi")
    assert judge(some).metrics == judge(everything).metrics


def test_a_test_event_without_prediction_is_an_error(data: EventData, judge: Judge) -> None:
    lost = of_test(data)["sample_id"][4]
    with pytest.raises(DataError, match=rf"1 of 120 test samples have no prediction, for example '{lost}'; .*splits"):
        judge(perfect(data).filter(pl.col("sample_id") != lost))


def test_two_predictions_of_a_test_event_are_an_error(data: EventData, judge: Judge) -> None:
    twice = perfect(data).filter(sample_id=of_test(data)["sample_id"][7])
    with pytest.raises(DataError, match=f"{twice['sample_id'][0]}' has more than one prediction"):
        judge(pl.concat([perfect(data), twice]))


@pytest.mark.parametrize("value", [None, np.nan, np.inf])
@pytest.mark.parametrize("column", ["azimuth", "zenith", "kappa", "kappa_raw"])
def test_predictions_that_are_no_numbers_are_an_error(
    data: EventData, judge: Judge, column: str, value: float | None
) -> None:
    lost = of_test(data)["sample_id"][0]
    broken = perfect(data).with_columns(pl.when(sample_id=lost).then(value).otherwise(column).alias(column))
    with pytest.raises(DataError, match=f"predicted {column} of sample '{lost}' is not a number"):
        judge(broken)


def test_predictions_without_a_column_are_an_error(data: EventData, judge: Judge) -> None:
    with pytest.raises(DataError, match="no column 'kappa_raw'"):
        judge(perfect(data).drop("kappa_raw"))


def test_samples_without_test_split_are_an_error(data: EventData) -> None:
    with pytest.raises(DataError, match="no test sample"):
        evaluate(SETTINGS, data, data.samples.filter(split="train"), perfect(data))


# ------------------------------------------------------------------------------------------------------ calibration
def sampled_errors(kappa: np.ndarray, seed: int = 0) -> np.ndarray:
    """Angles of a von Mises-Fisher distribution about its mean, from its distribution of the cosine."""
    u = np.random.default_rng(seed).random(len(kappa))
    return np.arccos((1 + np.log(u + (1 - u) * np.exp(-2 * kappa)) / kappa).clip(-1, 1))


def test_true_concentrations_are_calibrated_and_wrong_ones_are_not() -> None:
    kappa = np.random.default_rng(1).lognormal(2, 1.5, 20_000)
    error = sampled_errors(kappa)
    assert coverage_gap(too_narrow(error, kappa)) < 0.01
    assert coverage_gap(too_narrow(error, 4 * kappa)) > 0.2
    assert coverage_gap(too_narrow(error, kappa / 4)) > 0.2


@given(hnp.arrays(float, 30, elements=st.floats(0, np.pi)), hnp.arrays(float, 30, elements=st.floats(0, 1e4)))
def test_the_gap_is_that_of_the_cones_themselves(error: np.ndarray, kappa: np.ndarray) -> None:
    levels = np.arange(1, 10) / 10
    gaps = [abs((error <= vmf_cone(kappa, level)).mean() - level) for level in levels]
    assert coverage_gap(too_narrow(error, kappa)) == pytest.approx(np.mean(gaps))


def test_calibration_is_compared_with_what_was_before(data: EventData, judge: Judge) -> None:
    true = data.samples["zenith"].fill_null(1.0).to_numpy()
    kappa = np.full(len(true), 40.0)
    off = sampled_errors(kappa)
    tilted = np.where(true + off > np.pi, true - off, true + off)  # along a meridian, which is a great circle
    predictions = perfect(data).with_columns(zenith=tilted, kappa=kappa, kappa_raw=kappa * 20)
    found = judge(predictions)
    calibrated = row(found, "kappa_calibration")
    assert calibrated.baseline == "uncalibrated"
    assert calibrated.value < 0.12
    assert calibrated.baseline_value is not None
    assert calibrated.baseline_value > 0.3
    assert calibrated.ahead is True
    share = row(found, "cone_68_share")
    assert share.baseline is None
    assert share.higher_is_better is None
    assert share.low < 0.68 < share.high


# ------------------------------------------------------------------------------------------------------- submission
def test_the_submission_holds_the_unlabelled_events(data: EventData, judge: Judge) -> None:
    table = judge(perfect(data)).tables["submission.csv"]
    unlabelled = data.samples.filter(split="unlabelled")["sample_id"]
    assert table.schema == {"event_id": pl.Int64, "azimuth": pl.Float64, "zenith": pl.Float64}
    assert table["event_id"].to_list() == sorted(map(int, unlabelled))
    assert table["zenith"].unique().to_list() == [1.0]


def test_the_submission_falls_back_on_the_test_events(data: EventData, judge: Judge) -> None:
    labelled = perfect(data).join(data.samples.filter(pl.col("split") != "unlabelled"), on="sample_id", how="semi")
    table = judge(labelled).tables["submission.csv"]
    test = of_test(data).select(pl.col("sample_id").cast(pl.Int64), "azimuth", "zenith").sort("sample_id")
    assert table.rows() == test.rows()


def test_ids_that_are_not_of_the_competition_are_not_submitted() -> None:
    ids = ["12", "b7", "7", "-3", "007", "1e3", "99999999999999999999", ""]
    samples = pl.DataFrame({"sample_id": ids, "split": "unlabelled"})
    predictions = samples.select("sample_id", azimuth=pl.lit(1.0), zenith=pl.lit(2.0))
    table = submission(samples, predictions)
    assert table is not None
    assert table["event_id"].to_list() == [7, 12]
    assert submission(samples, predictions.filter(pl.col("sample_id").is_in(["b7", "007"]))) is None


def test_events_of_train_are_never_submitted() -> None:
    samples = pl.DataFrame({"sample_id": ["1", "2"], "split": ["train", "validation"]})
    assert submission(samples, samples.select("sample_id", azimuth=pl.lit(1.0), zenith=pl.lit(2.0))) is None


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("azimuth", 2 * np.pi, r"azimuth 6\.28.* of event 5; allowed: a number in \[0, 2 pi\)"),
        ("azimuth", -1e-9, "azimuth -1e-09 of event 5"),
        ("azimuth", None, "azimuth None of event 5"),
        ("azimuth", np.nan, "azimuth nan of event 5"),
        ("zenith", 3.15, r"zenith 3\.15 of event 5; allowed: a number in \[0, pi\]"),
        ("zenith", np.inf, "zenith inf of event 5"),
        ("sample_id", "8", "event 8 occurs twice"),
        ("sample_id", "x", "not a whole number"),
    ],
)
def test_a_wrong_submission_is_refused(column: str, value: float | str | None, message: str) -> None:
    good = pl.DataFrame({"sample_id": ["8", "5"], "azimuth": [0.0, 1.0], "zenith": [np.pi, 0.0]})
    assert rows(good).rows() == [(5, 1.0, 0.0), (8, 0.0, np.pi)]
    wrong = good.with_columns(pl.when(sample_id="5").then(pl.lit(value)).otherwise(column).alias(column))
    with pytest.raises(DataError, match=message):
        rows(wrong)


# ---------------------------------------------------------------------------------------------------------- figures
@pytest.mark.parametrize("drop", [[], ["class", "energy_gev"]])
def test_every_figure_can_be_drawn_and_has_a_sentence(
    data: EventData, judge: Judge, drop: list[str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    guesses = perfect(data).with_columns(
        zenith=np.arccos(rng.uniform(-1, 1, len(data.samples))), kappa=rng.uniform(0, 3, len(data.samples))
    )
    found = judge(guesses, NeutrinosEvaluate(bootstrap_draws=100, displays=2), drop=drop)
    assert set(found.figures) == {"error_by_pulses", "error_distribution", "calibration", "zenith", "events"}
    assert set(found.captions) == set(found.figures)
    for name, figure in found.figures.items():
        assert found.captions[name].endswith(".")
        save_figure(figure, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.convert("L").getextrema() == (0, 255)


def test_predictions_without_error_and_without_certainty_can_be_drawn(
    data: EventData, judge: Judge, tmp_path: Path
) -> None:
    found = judge(perfect(data, kappa=0.0))
    save_figure(found.figures["calibration"], tmp_path / "calibration.png")
    assert "events" not in found.figures  # no displays were asked for


def test_displays_are_taken_from_the_best_event_to_the_worst(data: EventData, judge: Judge) -> None:
    off = np.linspace(0, 0.5, len(data.samples))
    tilted = perfect(data).with_columns((pl.col("zenith") - off).abs())
    found = judge(tilted, NeutrinosEvaluate(bootstrap_draws=100, displays=4))
    titles = [axis.get_title() for axis in found.figures["events"].axes if axis.get_visible() and axis.get_title()]
    errors = [float(title.split("error ")[1].split("°")[0]) for title in titles]
    assert len(errors) == 4
    assert errors == sorted(errors)
    assert errors[0] < errors[-1]
