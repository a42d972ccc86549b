"""Simulated events: their physics against brute force, their statistics against the prototype's, their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import kstest

from manyscope.errors import DataError
from manyscope.scopes.neutrinos import simulate as module
from manyscope.scopes.neutrinos.data.detector import Detector, built_in_detector, write_geometry
from manyscope.scopes.neutrinos.data.shards import line_fit, unit_vectors
from manyscope.scopes.neutrinos.settings import NeutrinosDownload, SimulatedSettings
from manyscope.scopes.neutrinos.simulate import (
    GROUP_INDEX,
    LIGHT_M_PER_NS,
    Simulated,
    SimulatedEvents,
    cascade_profile,
    cascade_time_ns,
    dead_modules,
    delay_parameters,
    hard_coincidence,
    muon_range_m,
    power_law,
    simulate,
    track_path,
    trigger_times,
)
from manyscope.tables.manifest import describe
from manyscope.tables.parquet import read_metadata

DEFAULT = SimulatedSettings()
DETECTOR = built_in_detector()


@pytest.fixture(scope="module")
def events() -> SimulatedEvents:
    return simulate(3, 1, 4000, DEFAULT, DETECTOR)


def event_of_pulse(events: SimulatedEvents) -> np.ndarray:
    return np.repeat(np.arange(len(events)), np.diff(events.offsets))


# --- statistics -------------------------------------------------------------------------------------------------------


def test_pulses_and_modules_are_distributed_as_in_the_prototype(events: SimulatedEvents) -> None:
    """Values of 20,000 events of the one-event-at-a-time prototype, with the real positions and ice."""
    pulses = np.diff(events.offsets)
    np.testing.assert_allclose(np.percentile(pulses, [5, 50, 75, 90]), [41, 65, 104, 238], rtol=0.1)
    assert np.percentile(pulses, 99) == pytest.approx(2241, rel=0.2)
    assert pulses.mean() == pytest.approx(166, rel=0.1)
    of_module, repeats = np.unique(
        event_of_pulse(events) * len(DETECTOR) + events.sensor_id.astype(int), return_counts=True
    )
    assert (repeats == 1).mean() == pytest.approx(0.76, rel=0.1)
    np.testing.assert_allclose(np.percentile(repeats, [90, 95, 98]), [4, 9, 19], atol=1)
    modules = np.bincount(of_module // len(DETECTOR))
    np.testing.assert_allclose(np.percentile(modules, [50, 90]), [53, 110], rtol=0.1)
    assert np.percentile(modules, 99) == pytest.approx(384, rel=0.2)
    assert events.auxiliary.mean() == pytest.approx(0.27, rel=0.1)
    assert (events.truth["class"] == "track").mean() == pytest.approx(0.46, rel=0.1)


def test_directions_are_isotropic_before_the_trigger_and_near_it_after(events: SimulatedEvents) -> None:
    azimuth, cosine = events.truth["azimuth"].to_numpy(), np.cos(events.truth["zenith"].to_numpy())
    assert kstest(azimuth / (2 * np.pi), "uniform").pvalue > 0.01
    assert ((azimuth >= 0) & (azimuth < 2 * np.pi)).all()
    assert abs(cosine.mean()) < 0.05
    counts = np.histogram(cosine, bins=5, range=(-1, 1))[0]
    assert counts.min() > 0.7 * len(events) / 5


def test_energies_and_vertices_lie_in_their_ranges(events: SimulatedEvents) -> None:
    energy = events.truth["energy_gev"]
    assert energy.is_between(1e2, 1e6).all()
    assert energy.median() < 1e4  # a falling spectrum
    assert energy.max() > 1e5
    vertex = events.truth.select("class", "^vertex_.*$").drop_nulls()
    x, y, z = (vertex[f"vertex_{axis}_m"].to_numpy() for axis in "xyz")
    assert (np.hypot(x, y) <= 600).all()
    assert (np.abs(z) <= 550).all()
    assert len(vertex.filter(pl.col("class") == "cascade")) == (events.truth["class"] == "cascade").sum()
    from_outside = events.truth.filter(pl.col("class") == "track")["vertex_x_m"].null_count()
    assert 0.7 < from_outside / (events.truth["class"] == "track").sum() < 0.95


@given(st.floats(1, 4), st.floats(0.1, 1e3), st.floats(1.1, 1e4))
def test_a_power_law_has_its_quantiles(index: float, low: float, ratio: float) -> None:
    u, high = np.linspace(0, 1, 21), low * ratio
    energy = power_law(u, low, high, index)
    assert (np.diff(energy) > 0).all()
    np.testing.assert_allclose(energy[[0, -1]], [low, high], rtol=1e-6)
    grid = np.geomspace(low, high, 20_001)
    density = grid ** (1 - index)  # per logarithm
    share = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    np.testing.assert_allclose(np.interp(energy, grid, share / share[-1]), u, atol=1e-3)


# --- light ------------------------------------------------------------------------------------------------------------


@given(st.floats(-800, 800), st.floats(2, 400))
def test_light_of_a_track_arrives_as_early_as_from_any_of_its_points(along: float, away: float) -> None:
    leaves, path, time = track_path(np.array(along), np.array(away))
    assert path == pytest.approx(np.hypot(along - leaves, away))
    points = np.linspace(along - 3 * away, along + away, 20_001)
    earliest = ((points + GROUP_INDEX * np.hypot(along - points, away)) / LIGHT_M_PER_NS).min()
    # The angle is that of the phase index, the speed that of the group: the two differ in the second order.
    assert 0 <= time - earliest + 1e-6 < 0.002 * away / LIGHT_M_PER_NS + 1e-3


def test_light_of_a_cascade_arrives_straight_and_peaks_at_the_cherenkov_angle() -> None:
    assert cascade_time_ns(np.array(100.0)) == pytest.approx(100 * 1.356 / 0.299792458)
    cosine = np.linspace(-1, 1, 200_001)
    profile = cascade_profile(cosine)
    assert profile.mean() == pytest.approx(1, abs=2e-3)
    assert cosine[profile.argmax()] == pytest.approx(1 / 1.32, abs=1e-4)


def test_scattered_light_is_the_later_the_farther_it_comes() -> None:
    path = np.array([5.0, 20, 50, 100, 200])
    rng = np.random.default_rng(0)

    def medians(scattering: float, absorption: float) -> np.ndarray:
        shape, scale = delay_parameters(path, np.full(5, scattering), np.full(5, absorption))
        return np.median(rng.gamma(shape, scale, (20_000, 5)), axis=0)

    clear, dusty = medians(60, 150), medians(15, 50)
    assert (np.diff(clear) > 0).all()
    assert (dusty[1:] > clear[1:]).all()


def test_delays_in_simulated_cascades_grow_with_distance(events: SimulatedEvents) -> None:
    slopes = []
    for row in np.flatnonzero((events.truth["class"] == "cascade").to_numpy() & (np.diff(events.offsets) > 100)):
        pulses = slice(events.offsets[row], events.offsets[row + 1])
        kept = ~events.auxiliary[pulses]
        vertex = np.array(events.truth.select("^vertex_.*$").row(row))
        path = np.linalg.norm(DETECTOR.position_m[events.sensor_id[pulses][kept]] - vertex, axis=1)
        slopes.append(np.polyfit(path, events.time_ns[pulses][kept] - cascade_time_ns(path), 1)[0])
    assert len(slopes) > 100
    assert np.median(slopes) > 0.5
    assert np.mean(np.array(slopes) > 0) > 0.8


def test_expected_light_is_that_of_the_formulas_at_every_module() -> None:
    rng = np.random.default_rng(0)
    n = 6
    point, energy = rng.uniform(-500, 500, (n, 3)), np.geomspace(1e2, 1e6, n)
    direction = unit_vectors(rng.uniform(0, 6, n), rng.uniform(0, 3, n))
    start, end = np.full(n, -100.0), np.full(n, 300.0)
    particles = module._Particles(np.arange(n), point, direction, energy, start, end)
    array = module._Array(DETECTOR, np.zeros(len(DETECTOR), bool))
    scattering, absorption = DETECTOR.scattering_m, DETECTOR.absorption_m
    attenuation = 1.35 * np.sqrt(scattering * absorption / 3)
    sine, tangent = np.sqrt(1 - 1.32**-2), np.sqrt(1.32**2 - 1)
    for make in (module._track_light, module._cascade_light):
        light = make(particles, array)
        found = np.zeros((n, len(DETECTOR)))
        found[light.event, light.module] = light.mean
        for row in range(n):
            offset = DETECTOR.position_m - point[row]
            if make is module._track_light:
                along = offset @ direction[row]
                away = np.sqrt(np.maximum((offset**2).sum(1) - along**2, 4))
                path, leaves = away / sine, along - away / tangent
                mean = 2.86e4 * (1 + energy[row] * 0.5 * 3.6e-4 / 0.26) * 0.0035 / (2 * np.pi * away * sine)
                mean *= (leaves > -100) & (leaves < 300)
            else:
                path = np.sqrt((offset**2).sum(1) + 25)
                straight = np.exp(-path / (2 * scattering))
                angular = np.exp(-2.61 * np.abs(offset @ direction[row] / path - 1 / 1.32) ** 0.39) / 0.1542
                mean = 1.5e5 * energy[row] * 0.0035 / (4 * np.pi * path**2) * (straight * angular + 1 - straight)
            mean *= np.exp(-path / attenuation) * DETECTOR.efficiency
            np.testing.assert_allclose(found[row], mean, rtol=2e-3, atol=1.01e-4)  # negligible light is left out
            assert mean.sum() - found[row].sum() < 0.1 + 1e-3 * mean.sum()


def test_a_muon_ranges_farther_with_more_energy() -> None:
    reach = muon_range_m(np.array([1.0, 1e2, 1e3, 1e5]))
    assert reach[0] == pytest.approx(1 / (0.917 * 0.26), rel=1e-2)  # ionisation alone
    assert (np.diff(reach) > 0).all()
    assert 2e3 < reach[2] < 4e3


# --- detector ---------------------------------------------------------------------------------------------------------


def coincident_by_pairs(sensor: np.ndarray, time: np.ndarray, window: float) -> np.ndarray:
    apart = np.abs(sensor[:, None] - sensor)
    near = (apart > 0) & (apart <= 2) & (sensor[:, None] // 60 == sensor // 60)
    return (near & (np.abs(time[:, None] - time) < window)).any(1)


# Few modules at the ends of strings and times near the limit, so that every border occurs.
pulse_lists = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([0, 1, 2, 57, 58, 59, 60, 61, 62, 118, 119, 120]),
        st.sampled_from([0.0, 1.0, 999.0, 1000.0, 1001.0, 4000.5, 9000.0, 9001.0, 9999.0, 10_000.0]),
    ),
    max_size=40,
)


@given(pulse_lists)
def test_coincidence_is_what_comparing_all_pairs_finds(pulses: list[tuple[int, int, float]]) -> None:
    event, sensor, time = (np.array(column) for column in zip(*sorted(pulses), strict=True)) if pulses else np.zeros(
        (3, 0)
    )  # fmt: skip
    found = hard_coincidence(event.astype(int), sensor.astype(int), time)
    expected = np.zeros(len(pulses), bool)
    for number in range(3):
        rows = event == number
        expected[rows] = coincident_by_pairs(sensor[rows], time[rows], 1000)
    np.testing.assert_array_equal(found, expected)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 24).map(lambda i: 625 * i)), max_size=60))
@example([(1, time) for time in (0, 10, 20, 30, 40, 50, 60, 5000)])
@example([(1, time) for time in (0, 10, 20, 30, 40, 50, 60, 4999)])
def test_the_trigger_is_the_eighth_pulse_of_the_first_full_window(pulses: list[tuple[int, int]]) -> None:
    pulses = sorted(pulses)
    event, time = np.array(pulses, dtype=float).reshape(-1, 2).T
    found = trigger_times(event.astype(int), time, 5)
    for number in range(5):
        times = [t for e, t in pulses if e == number]
        ends = [times[i] for i in range(7, len(times)) if times[i] - times[i - 7] < 5000]
        assert found[number] == ends[0] if ends else np.isnan(found[number])


def test_every_event_has_triggered_at_ten_thousand(events: SimulatedEvents) -> None:
    for first, last in zip(events.offsets[:-1], events.offsets[1:], strict=True):
        time = events.time_ns[first:last][~events.auxiliary[first:last]]
        ends = time[7:][time[7:] - time[:-7] < 5000]
        # Times are rounded, so that a window may seem to be full by a nanosecond.
        assert 10_000 in time
        assert len(ends)
        assert ends[0] == 10_000 or (time[7:] - time[:-7] == 5000).any()


def test_flags_of_events_are_those_of_the_pairs_of_their_pulses(events: SimulatedEvents) -> None:
    for row in range(0, len(events), 40):
        pulses = slice(events.offsets[row], min(events.offsets[row + 1], events.offsets[row] + 3000))
        if events.offsets[row + 1] > pulses.stop:
            continue
        sensor, time = events.sensor_id[pulses].astype(int), events.time_ns[pulses]
        flag = ~events.auxiliary[pulses]
        surely, perhaps = coincident_by_pairs(sensor, time, 999), coincident_by_pairs(sensor, time, 1001)
        assert (flag | ~surely).all()  # times are rounded
        assert (perhaps | ~flag).all()
        assert 0 < flag.sum() < len(flag)


def test_times_are_sorted_and_charges_are_steps(events: SimulatedEvents) -> None:
    assert (events.time_ns >= 0).all()
    assert (events.time_ns <= 20_000).all()
    step = np.diff(events.time_ns)
    step[events.offsets[1:-1] - 1] = 0
    assert (step >= 0).all()
    steps = events.charge / 0.025
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
    assert steps.min() > 0.99
    assert np.median(events.charge) == pytest.approx(1, abs=0.1)
    assert (np.diff(events.offsets) >= 8).all()


def test_pulses_of_a_module_are_merged(events: SimulatedEvents) -> None:
    order = np.lexsort((events.time_ns, events.sensor_id, event_of_pulse(events)))
    event, sensor, time = event_of_pulse(events)[order], events.sensor_id[order], events.time_ns[order]
    same = (event[1:] == event[:-1]) & (sensor[1:] == sensor[:-1])
    assert np.diff(time)[same].min() >= 12 - 1


def test_dead_modules_stay_silent_in_every_file() -> None:
    settings = SimulatedSettings(dead_dom_fraction=0.3)
    dead = dead_modules(5, len(DETECTOR), 0.3)
    assert dead.mean() == pytest.approx(0.3, abs=0.03)
    seen = [simulate(5, number, 100, settings, DETECTOR).sensor_id for number in (1, 2)]
    assert not dead[np.concatenate(seen)].any()
    assert len(np.unique(np.concatenate(seen))) > 0.9 * (~dead).sum()
    assert not dead_modules(5, len(DETECTOR), 0).any()


def test_an_unrelated_muon_adds_light_and_leaves_the_truth_alone() -> None:
    alone = simulate(0, 1, 600, DEFAULT, DETECTOR)
    crowded = simulate(0, 1, 600, SimulatedSettings(coincident_muon_fraction=1.0), DETECTOR)
    some = simulate(0, 1, 600, SimulatedSettings(coincident_muon_fraction=0.2), DETECTOR)
    assert crowded.truth["coincident_muon"].all()
    assert not alone.truth["coincident_muon"].any()
    assert some.truth["coincident_muon"].mean() == pytest.approx(0.2, abs=0.06)
    assert np.median(np.diff(crowded.offsets)) > 1.2 * np.median(np.diff(alone.offsets))


def test_no_event_is_there_for_the_light_of_its_muon_alone() -> None:
    faint = SimulatedSettings(energy_max_gev=300.0)
    crowded = faint.model_copy(update={"coincident_muon_fraction": 1.0})
    shared = []
    for number in range(1, 9):  # the first candidates of a file are the same with and without muons
        alone = simulate(0, number, 20, faint, DETECTOR).truth["azimuth"].to_list()
        shared.append(np.isin(simulate(0, number, 15, crowded, DETECTOR).truth["azimuth"], alone).mean())
    assert np.mean(shared) > 0.9


# --- repetition -------------------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 1000), st.integers(1, 40), st.integers(1, 40))
def test_events_depend_on_seed_and_file_and_more_of_them_change_none(
    seed: int, number: int, count: int, more: int
) -> None:
    few, many = (simulate(seed, number, n, DEFAULT, DETECTOR) for n in (count, count + more))
    assert len(few) == len(few.truth) == count
    np.testing.assert_array_equal(few.offsets, many.offsets[: count + 1])
    assert few.truth.equals(many.truth[:count])
    for name in ("sensor_id", "time_ns", "charge", "auxiliary"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[: few.offsets[-1]])
    for other in ((seed + 1, number), (seed, number + 1)):
        assert not few.truth["azimuth"].equals(simulate(*other, count, DEFAULT, DETECTOR).truth["azimuth"])


def test_settings_without_triggers_are_refused() -> None:
    with pytest.raises(DataError, match=r"0 of .* trigger; .*dead_dom_fraction"):
        simulate(0, 1, 1, SimulatedSettings(dead_dom_fraction=1.0), DETECTOR)


def test_a_detector_too_large_for_the_files_is_refused() -> None:
    with pytest.raises(DataError, match="40000 modules"):
        simulate(0, 1, 1, DEFAULT, Detector(np.zeros((40_000, 3)), DETECTOR.ice))


# --- files ------------------------------------------------------------------------------------------------------------


def download_settings(events: int, seed: int = 0, **changes: object) -> NeutrinosDownload:
    return NeutrinosDownload(seed=seed, simulated=SimulatedSettings(events=events, events_per_file=20, **changes))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    list(Simulated().download(download_settings(50), folder))
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of every file that is simulated from now on."""
    calls: list[int] = []
    genuine = module.simulate

    def watched(seed: int, number: int, *rest: object) -> object:
        calls.append(number)
        return genuine(seed, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "simulate", watched)
    return calls


def test_files_have_the_schema_of_the_competition(raw: Path) -> None:
    pulse_schema = {
        "sensor_id": pl.Int16,
        "time": pl.Int64,
        "charge": pl.Float64,
        "auxiliary": pl.Boolean,
        "event_id": pl.Int64,
    }
    integers, angles = ("batch_id", "event_id", "first_pulse_index", "last_pulse_index"), ("azimuth", "zenith")
    meta_schema = dict.fromkeys(integers, pl.Int64) | dict.fromkeys(angles, pl.Float64)
    meta = pl.read_parquet(raw / "train_meta.parquet")
    assert list(meta.schema.items()) == list(meta_schema.items())
    assert meta["batch_id"].to_list() == [1] * 20 + [2] * 20 + [3] * 10
    gaps = np.diff(meta["event_id"].to_numpy())
    assert gaps.min() >= 1
    assert len(set(gaps)) > 5
    assert sorted(path.name for path in (raw / "train").iterdir()) == [f"batch_{i}.parquet" for i in (1, 2, 3)]
    for number in (1, 2, 3):
        pulses = pl.read_parquet(raw / f"train/batch_{number}.parquet")
        assert list(pulses.schema.items()) == list(pulse_schema.items())
        rows = meta.filter(pl.col("batch_id") == number)
        assert rows["first_pulse_index"][0] == 0
        assert rows["last_pulse_index"][-1] == len(pulses) - 1
        for _, event, first, last, *_ in rows.iter_rows():
            assert pulses["event_id"][first : last + 1].unique().to_list() == [event]
    geometry = pl.read_csv(raw / "sensor_geometry.csv")
    assert geometry.columns == ["sensor_id", "x", "y", "z"]
    assert len(geometry) == 5160


def test_every_table_says_that_it_is_simulated(raw: Path) -> None:
    tables = list(raw.rglob("*.parquet"))
    assert len(tables) == 8
    for table in tables:
        about = json.loads(read_metadata(table)["manyscope.simulated"])
        assert about["seed"] == 0
        assert "events" not in about
    about = json.loads((raw / "simulated.json").read_text())
    assert about["simulated"] is True
    assert about["settings"]["events"] == 50


def test_files_are_read_as_events_with_their_truth(raw: Path) -> None:
    settings = download_settings(50)
    files = Simulated().files(settings, raw, pl.DataFrame())
    assert [file.number for file in files] == [1, 2, 3]
    assert all(file.labelled for file in files)
    events, simulated = files[1].read(), simulate(0, 2, 20, settings.simulated, DETECTOR)
    np.testing.assert_array_equal(events.sensor_id, simulated.sensor_id)
    np.testing.assert_array_equal(events.time_ns, simulated.time_ns)
    np.testing.assert_allclose(events.charge, simulated.charge)
    np.testing.assert_array_equal(events.azimuth, simulated.truth["azimuth"])
    assert events.truth["class"].equals(simulated.truth["class"])
    assert {"energy_gev", "vertex_x_m", "coincident_muon"} <= set(events.truth.columns)


def test_files_left_by_a_larger_download_are_not_read(raw: Path) -> None:
    assert [file.number for file in Simulated().files(download_settings(40), raw, pl.DataFrame())] == [1, 2]


def test_a_line_fit_finds_tracks_and_not_cascades(tmp_path: Path) -> None:
    settings = NeutrinosDownload(simulated=SimulatedSettings(events=1500, events_per_file=1500))
    list(Simulated().download(settings, tmp_path))
    (file,) = Simulated().files(settings, tmp_path, pl.DataFrame())
    events = file.read()
    from_where, velocity = unit_vectors(events.azimuth, events.zenith), line_fit(events, file.detector)
    cosine = -(from_where * velocity).sum(1) / np.linalg.norm(velocity, axis=1)
    error, is_track = np.arccos(cosine.clip(-1, 1)), (events.truth["class"] == "track").to_numpy()
    # the prototype's values
    assert error.mean() == pytest.approx(0.886, rel=0.1)
    assert error[is_track].mean() == pytest.approx(0.234, rel=0.2)
    assert error[~is_track].mean() == pytest.approx(1.447, rel=0.1)


def test_a_killed_download_continues_without_simulating_again(tmp_path: Path, drawn: list[int]) -> None:
    settings = download_settings(50)
    entries = Simulated().download(settings, tmp_path)
    while next(entries).path != "train/batch_2.parquet":
        pass
    entries.close()
    (tmp_path / "truth/truth_2.parquet").unlink()  # as if killed between the two files
    assert drawn == [1, 2]
    drawn.clear()
    done = list(Simulated().download(settings, tmp_path))
    assert drawn == [2, 3]
    assert len(describe(tmp_path, done)) == 6 + 4
    drawn.clear()
    list(Simulated().download(settings, tmp_path))
    assert drawn == []


def test_a_larger_data_set_keeps_its_files_and_other_settings_do_not(tmp_path: Path, drawn: list[int]) -> None:
    list(Simulated().download(download_settings(40), tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*.parquet")}
    drawn.clear()
    list(Simulated().download(download_settings(65), tmp_path))
    assert drawn == [3, 4]
    assert len(before) == 4
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(pl.read_parquet(tmp_path / "train_meta.parquet")) == 65
    drawn.clear()
    list(Simulated().download(download_settings(70), tmp_path))
    assert drawn == [4]
    drawn.clear()
    list(Simulated().download(download_settings(40, track_fraction=0.5), tmp_path))
    list(Simulated().download(download_settings(40, seed=1), tmp_path))
    assert drawn == [1, 2, 1, 2]


def test_the_same_settings_give_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    list(Simulated().download(download_settings(50), tmp_path))
    names = sorted(path.relative_to(raw) for path in raw.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((tmp_path / name).read_bytes() == (raw / name).read_bytes() for name in names)


def test_a_broken_file_is_simulated_again(tmp_path: Path, drawn: list[int]) -> None:
    list(Simulated().download(download_settings(40), tmp_path))
    (tmp_path / "train/batch_1.parquet").write_bytes(b"PAR1")
    drawn.clear()
    list(Simulated().download(download_settings(40), tmp_path))
    assert drawn == [1]


def test_own_geometry_and_ice_are_simulated_and_read_back(tmp_path: Path, drawn: list[int]) -> None:
    geometry, ice = tmp_path / "mine.csv", tmp_path / "ice.parquet"
    write_geometry(geometry, Detector(DETECTOR.position_m[:600], DETECTOR.ice))
    pl.DataFrame({"depth": [1000.0, 3000.0], "scattering_len": [25.0, 25.0], "absorption_len": [90.0, 95.0]}
                 ).write_parquet(ice)  # fmt: skip
    raw = tmp_path / "raw"
    list(Simulated().download(download_settings(20, geometry_file=str(geometry), ice_file=str(ice)), raw))
    (file,) = Simulated().files(download_settings(20), raw, pl.DataFrame())
    assert len(file.detector) == 600
    np.testing.assert_array_equal(file.detector.ice, [[1000, 25, 90], [3000, 25, 95]])
    assert file.read().sensor_id.max() < 600

    ice_alone = download_settings(20, ice_file=str(ice))
    list(Simulated().download(ice_alone, raw))
    assert drawn == [1, 1]  # another detector is another simulation
    assert len(Simulated().files(ice_alone, raw, pl.DataFrame())[0].detector) == 5160
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        list(Simulated().download(download_settings(20, geometry_file=str(tmp_path / "nowhere.csv")), raw))


def test_a_geometry_of_other_strings_is_refused(tmp_path: Path) -> None:
    built = built_in_detector()
    shorter = Detector(np.delete(built.position_m, 29, axis=0), built.ice)  # the first string has 59 modules
    write_geometry(tmp_path / "geometry.csv", shorter)
    download = NeutrinosDownload(simulated=SimulatedSettings(events=10, geometry_file=str(tmp_path / "geometry.csv")))
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(DataError, match=r"geometry\.csv:60: module 58 and the next one do not make strings of 60"):
        list(Simulated().download(download, raw))
    write_geometry(tmp_path / "geometry.csv", built)
    assert len(list(Simulated().download(download, raw))) > 3
