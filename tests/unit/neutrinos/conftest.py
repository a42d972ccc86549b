"""A small folder of prepared events whose directions are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyscope.scopes.neutrinos.data.detector import Detector, built_in_detector
from manyscope.scopes.neutrinos.data.prepare import prepare
from manyscope.scopes.neutrinos.data.sources import EventFile, Events
from manyscope.scopes.neutrinos.settings import NeutrinosPreprocess
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import check_samples

SPEED_M_NS = 0.299792458
ICE_INDEX = 1.356
FILES = {"train": (1, 110), "validation": (2, 70), "test": (3, 120)}  # number and events
UNLABELLED_EVENTS = 30


@pytest.fixture(scope="module")
def prepared_events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `prepared`, to be read only: 300 events in three files, one for each split, with the columns class
    and energy_gev; and a file of 30 events without direction. Ids are whole numbers that do not rise."""
    folder = tmp_path_factory.mktemp("neutrinos") / "prepared"
    folder.mkdir()
    return write_prepared(folder)


@pytest.fixture(scope="session")
def prepare_events() -> Callable[[Path], Path]:
    """What makes such a folder of an empty one."""
    return write_prepared


def write_prepared(folder: Path) -> Path:
    detector = built_in_detector()
    files = [event_file(f"batch-{n}", n, detector, events) for n, events in FILES.values()]
    files.append(event_file("unknown", None, detector, UNLABELLED_EVENTS))
    settings = NeutrinosPreprocess(validation_batches=(2,), test_batches=(3,))
    write_table(folder / "samples.parquet", check_samples(prepare(files, settings, folder), folder))
    return folder


def event_file(name: str, number: int | None, detector: Detector, events: int) -> EventFile:
    """A file without number is not labelled."""
    first = 1000 * (number or 9)
    ids = [str(first + 7 * i) for i in reversed(range(events))]
    return EventFile(
        name, number, number is not None, detector, lambda: synthetic(detector, ids, first, number is not None)
    )


def synthetic(detector: Detector, ids: Sequence[str], seed: int, labelled: bool) -> Events:
    """Events without scattering: tracks are lines of light at the speed of light, cascades balls that grow."""
    rng = np.random.default_rng(seed)
    n = len(ids)
    azimuth, zenith = rng.uniform(0, 2 * np.pi, n), np.arccos(rng.uniform(-1, 1, n))
    track, energy = rng.random(n) < 0.5, 10 ** rng.uniform(2, 5, n)
    pulses = [one_event(detector, rng, -direction(azimuth[i], zenith[i]), bool(track[i]), energy[i]) for i in range(n)]
    sensor, time, charge, auxiliary = (np.concatenate(part) for part in zip(*pulses, strict=True))
    truth = pl.DataFrame({"class": np.where(track, "track", "cascade"), "energy_gev": energy})
    return Events(
        sample_id=list(ids),
        offsets=np.cumsum([0, *(len(p[0]) for p in pulses)]).astype(np.int64),
        sensor_id=sensor.astype(np.int32),
        time_ns=time,
        charge=charge.astype(np.float32),
        auxiliary=auxiliary,
        azimuth=azimuth if labelled else np.full(n, np.nan),
        zenith=zenith if labelled else np.full(n, np.nan),
        truth=truth if labelled else pl.DataFrame(),
    )


def direction(azimuth: float, zenith: float) -> np.ndarray:
    return np.array([np.cos(azimuth) * np.sin(zenith), np.sin(azimuth) * np.sin(zenith), np.cos(zenith)])


def one_event(
    detector: Detector, rng: np.random.Generator, along: np.ndarray, track: bool, energy_gev: float
) -> tuple[np.ndarray, ...]:
    """Module, time, charge and isolation of each pulse, by time; between two and five isolated ones are noise."""
    start = detector.position_m[rng.integers(len(detector))] * 0.7
    away = detector.position_m - start
    length = away @ along
    distance = np.linalg.norm(away - length[:, None] * along if track else away, axis=1)
    reach = 15 * np.log10(energy_gev) ** 1.5 * (1 if track else 1.6)
    seen = np.argsort(distance)[: max(8, int((distance < reach).sum()))]
    arrival = (length[seen] if track else 0) / SPEED_M_NS + distance[seen] * ICE_INDEX / SPEED_M_NS
    count = 1 + rng.poisson(np.clip(reach / (distance[seen] + 5) - 1, 0, 20))
    noise = rng.integers(2, 6)
    sensor = np.concatenate([np.repeat(seen, count), rng.integers(0, len(detector), noise)])
    late = rng.exponential(20, count.sum())
    late[np.cumsum(count) - count] = 0  # the first photon comes straight
    time = np.concatenate([np.repeat(arrival, count) + late, rng.uniform(-3000, 4000, noise)])
    charge = np.concatenate([rng.normal(1, 0.2, count.sum()).clip(0.2), np.full(noise, 0.7)])
    auxiliary = np.repeat([False, True], [count.sum(), noise])
    order = np.argsort(time, kind="stable")
    return sensor[order], time[order] + 10_000, charge[order], auxiliary[order]
