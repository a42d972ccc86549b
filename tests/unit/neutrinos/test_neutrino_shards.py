"""Grouping pulses by module: nothing is lost, and what is computed of them is what a loop would compute."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.scopes.neutrinos.data.detector import Detector, built_in_detector
from manyscope.scopes.neutrinos.data.shards import (
    CHARGE,
    COINCIDENT,
    DELAY_NS,
    FIRST_NS,
    PROMPT,
    SPREAD_NS,
    Shard,
    build,
    concatenate,
    line_fit,
    normalise,
    ranges,
    sensor_table,
    times_ns,
    unit_vectors,
)
from manyscope.scopes.neutrinos.data.sources import Events
from manyscope.scopes.neutrinos.settings import NeutrinosPreprocess

DETECTOR = built_in_detector()


def random_events(seed: int, sizes: list[int], sensors: int = 12, coincident: float = 0.6) -> Events:
    rng = np.random.default_rng(seed)
    n, total = len(sizes), sum(sizes)
    offsets = np.cumsum([0, *sizes])
    time = np.round(rng.uniform(0, 3000, total))
    for first, last in itertools.pairwise(offsets):
        time[first:last].sort()
    return Events(
        sample_id=[f"{seed}-{i}" for i in range(n)],
        offsets=offsets,
        sensor_id=rng.integers(0, sensors, total).astype(np.int32) * 61,
        time_ns=time + 9000,
        charge=rng.uniform(0.05, 4, total).astype(np.float32),
        auxiliary=rng.random(total) > coincident,
        azimuth=rng.uniform(0, 6, n),
        zenith=rng.uniform(0, 3, n),
        truth=pl.DataFrame(),
    )


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@given(st.integers(0, 1000), sizes, st.sampled_from([0.0, 0.3, 1.0]))
def test_each_pulse_is_kept_once_and_under_its_module(seed: int, sizes: list[int], coincident: float) -> None:
    events = random_events(seed, sizes, coincident=coincident)
    shard = build(events, DETECTOR, 0, NeutrinosPreprocess())
    of_event = np.repeat(np.arange(len(sizes)), sizes)
    of_module = np.repeat(np.arange(len(shard.sensor)), np.diff(shard.pulse_offsets))
    event_of_module = np.repeat(np.arange(len(sizes)), shard.n_modules)
    raw = np.column_stack(
        [
            of_event,
            events.sensor_id,
            normalise(events.time_ns, events.charge.astype(float), events.auxiliary).astype(float),
        ]
    )
    kept = np.column_stack([event_of_module[of_module], shard.sensor[of_module], shard.pulses.astype(np.float64)])
    assert sorted(map(tuple, raw)) == sorted(map(tuple, kept))
    assert shard.n_pulses.tolist() == sizes
    assert len(set(zip(event_of_module.tolist(), shard.sensor.tolist(), strict=True))) == len(shard.sensor)
    inside = np.diff(shard.pulses[:, 0])[np.diff(of_module) == 0]
    assert (inside >= 0).all(), "pulses of a module are in the order of time"


@given(st.integers(0, 1000), sizes)
def test_modules_stand_in_the_order_of_their_worth(seed: int, sizes: list[int]) -> None:
    events = random_events(seed, sizes)
    shard = build(events, DETECTOR, 0, NeutrinosPreprocess())
    for i, (first, last) in enumerate(zip(shard.module_offsets[:-1], shard.module_offsets[1:], strict=True)):
        modules = shard.modules[first:last]
        coincident = modules[:, COINCIDENT].astype(bool)
        count = int(shard.shown[i, 0])
        assert coincident[:count].all()
        assert not coincident[count:].any()
        assert (np.diff(modules[:count, CHARGE]) <= 0).all()
        where = DETECTOR.position_m[shard.sensor[first:last]]
        far = np.linalg.norm(where - shard.origin[i, :3], axis=1) / 120 + np.abs(modules[:, FIRST_NS]) / 400
        assert (np.diff(far[count:]) >= -1e-4).all()
        near = int(shard.shown[i, 1]) - count
        assert (far[count : count + near] < 4 + 1e-4).all()
        assert (far[count + near :] >= 4 - 1e-4).all()


def test_the_summary_of_a_module_is_what_a_loop_finds() -> None:
    events = random_events(3, [200])
    shard = build(events, DETECTOR, 100, NeutrinosPreprocess())
    for row, sensor in enumerate(shard.sensor - 100):
        at = events.sensor_id == sensor
        time, charge = events.time_ns[at], events.charge[at].astype(float)
        coincident = ~events.auxiliary[at]
        first = time[coincident].min() if coincident.any() else time.min()
        mean = (charge * time).sum() / charge.sum()
        prompt = charge[(time >= first) & (time < first + 60)].sum()
        spread = np.sqrt((charge * (time - mean) ** 2).sum() / charge.sum())
        expected = {FIRST_NS: first - shard.origin[0, 3], CHARGE: charge.sum(), COINCIDENT: float(coincident.any())}
        expected |= {SPREAD_NS: spread, DELAY_NS: mean - first, PROMPT: prompt}
        for column, value in expected.items():
            assert shard.modules[row, column] == pytest.approx(value, rel=1e-4, abs=2e-3)


@given(st.integers(0, 1000), sizes)
def test_modules_beside_each_other_are_found(seed: int, sizes: list[int]) -> None:
    events = random_events(seed, sizes)
    events.sensor_id[:] = events.sensor_id // 61 % 7 + 57  # the end of one string and the beginning of the next
    shard = build(events, DETECTOR, 0, NeutrinosPreprocess())
    for first, last in itertools.pairwise(shard.module_offsets):
        row = {int(sensor): first + i for i, sensor in enumerate(shard.sensor[first:last])}
        for sensor, own in row.items():
            for column, step in enumerate((-2, -1, 1, 2)):
                same_string = (sensor + step) // 60 == sensor // 60
                expected = row.get(sensor + step) if same_string else None
                away = shard.beside[own, column]
                assert away == (0 if expected is None else expected - own)


def test_the_origin_is_the_weighted_mean_of_coincident_modules() -> None:
    events = random_events(5, [80])
    shard = build(events, DETECTOR, 0, NeutrinosPreprocess())
    used = shard.modules[:, COINCIDENT] == 1
    weight = np.sqrt(shard.modules[used, CHARGE].astype(float))
    where = DETECTOR.position_m[shard.sensor[used]]
    np.testing.assert_allclose(shard.origin[0, :3], (where * weight[:, None]).sum(0) / weight.sum(), rtol=1e-4)
    assert (shard.modules[used, FIRST_NS] * weight).sum() / weight.sum() == pytest.approx(0, abs=0.01)


def test_an_event_without_coincidence_has_an_origin_too() -> None:
    shard = build(random_events(1, [6, 1], coincident=0.0), DETECTOR, 0, NeutrinosPreprocess())
    assert np.isfinite(shard.origin).all()
    assert shard.shown[:, 0].tolist() == [0, 0]
    assert np.isfinite(shard.modules).all()


def line(direction: np.ndarray, speed: float, coincident: bool = True) -> Events:
    """Pulses at the times at which a plane of light passes the modules."""
    rng = np.random.default_rng(0)
    sensor = rng.choice(len(DETECTOR), 60, replace=False).astype(np.int32)
    # exactly on a line, so that least squares has no error: a detector whose modules stand on it
    time = np.sort(rng.uniform(0, 4000, 60))
    return Events(
        ["a"], np.array([0, 60]), sensor, time, np.ones(60, np.float32), np.full(60, not coincident),
        np.zeros(1), np.zeros(1), pl.DataFrame(),
    )  # fmt: skip


@pytest.mark.parametrize("coincident", [True, False])
def test_line_fit_recovers_a_particle_on_a_line(coincident: bool) -> None:
    velocity = 0.28 * np.array([0.6, -0.48, 0.64])
    events = line(velocity, 0.28, coincident)
    position = DETECTOR.position_m.copy()
    position[events.sensor_id] = 50 + velocity * events.time_ns[:, None]
    found = line_fit(events, Detector(position, DETECTOR.ice))
    np.testing.assert_allclose(found, velocity[None], rtol=1e-9)


def test_line_fit_uses_coincident_pulses_alone_where_there_are_three() -> None:
    events = random_events(2, [40])
    coincident = ~events.auxiliary
    alone = Events(
        ["a"], np.array([0, coincident.sum()]), events.sensor_id[coincident], events.time_ns[coincident],
        events.charge[coincident], events.auxiliary[coincident], events.azimuth, events.zenith, pl.DataFrame(),
    )  # fmt: skip
    np.testing.assert_allclose(line_fit(events, DETECTOR), line_fit(alone, DETECTOR), rtol=1e-9)


def test_line_fit_of_one_instant_is_zero() -> None:
    events = random_events(2, [1])
    assert line_fit(events, DETECTOR).tolist() == [[0.0, 0.0, 0.0]]


@given(st.integers(0, 100), sizes, sizes)
def test_joined_shards_hold_what_each_held(seed: int, one: list[int], other: list[int]) -> None:
    parts = [build(random_events(seed + i, s), DETECTOR, 0, NeutrinosPreprocess()) for i, s in enumerate((one, other))]
    joined = concatenate(parts)
    assert len(joined) == len(one) + len(other)
    assert joined.n_pulses.tolist() == one + other
    for name in ("sensor", "modules", "pulses", "origin", "shown", "line_fit", "direction"):
        np.testing.assert_array_equal(getattr(joined, name), np.concatenate([getattr(p, name) for p in parts]))
    second = joined.module_offsets[len(one)]
    np.testing.assert_array_equal(joined.module_offsets[len(one) :] - second, parts[1].module_offsets)


def test_a_saved_shard_is_the_same_and_memory_mapped(tmp_path: Path) -> None:
    shard = build(random_events(1, [5, 9]), DETECTOR, 0, NeutrinosPreprocess())
    shard.save(tmp_path / "00000")
    found = Shard.open(tmp_path / "00000")
    for name in ("module_offsets", "pulse_offsets", "pulses", "modules", "direction"):
        np.testing.assert_array_equal(getattr(found, name), getattr(shard, name))
    assert not found.pulses.flags.writeable


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    shard = build(random_events(1, [5, 9]), DETECTOR, 0, NeutrinosPreprocess())
    shard.save(tmp_path / "00000")
    with (tmp_path / "00000" / "pulses.npy").open("r+b") as file:
        file.truncate(150)
    with pytest.raises(DataError, match=r"pulses\.npy: not a readable array"):
        Shard.open(tmp_path / "00000")
    np.save(tmp_path / "00000" / "pulses.npy", shard.pulses[:-1])
    with pytest.raises(DataError, match="do not fit together"):
        Shard.open(tmp_path / "00000")


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 5)), max_size=20))
def test_ranges_are_those_of_a_loop(runs: list[tuple[int, int]]) -> None:
    starts, counts = (np.array([run[i] for run in runs], np.int64) for i in (0, 1))
    expected = [start + i for start, count in runs for i in range(count)]
    assert ranges(starts, counts).tolist() == expected


def test_the_one_normaliser() -> None:
    pulses = normalise(np.array([10_000.0, 40_000.0, 0.0]), np.array([1.0, 1000.0, 0.1]), np.array([True, False, True]))
    np.testing.assert_allclose(pulses, [[0, 0, 1], [1, 1, 0], [-1 / 3, -1 / 3, 1]], rtol=1e-6)
    assert pulses.dtype == np.float32
    np.testing.assert_allclose(times_ns(pulses), [0, 30_000, -10_000], rtol=1e-6)


def test_hand_made_directions() -> None:
    """x and y are not swapped: azimuth pi/2 at the horizon is +y."""
    found = unit_vectors(np.array([0, np.pi / 2, np.pi, 1.0]), np.array([np.pi / 2, np.pi / 2, np.pi / 2, 0.0]))
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=1e-12)


def test_the_table_of_sensors_has_ice_and_the_dense_core() -> None:
    table = sensor_table(DETECTOR)
    assert table.shape == (5160, 7)
    assert table[:, 6].sum() == 8 * 60
    deep = table[np.abs(table[:, 2] + 100).argmin()]  # the dust layer, some 2,050 m below the surface
    assert deep[3] < 12 < table[table[:, 2] < -400, 3].min()
