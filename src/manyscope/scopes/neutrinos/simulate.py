"""Simulated neutrino events in ice: small, repeatable, and in the files of the Kaggle competition.

Tracks and cascades shine on the modules of a detector; their photons scatter on the way, and noise, merging of pulses,
local coincidence and a trigger make of them what a file of the competition holds. This stands in for official
simulation in tests and first steps, and does not replace it.

Ahrens et al. (2004), https://doi.org/10.1016/j.nima.2004.01.065, is where the constants of the ice and the Pandel
function of the arrival times come from. Yields of photons are the order of magnitude of Cherenkov light between 300 and
600 nm; the effective area, the spectrum, the share of tracks and the window of noise are chosen so that pulses, modules
and single pulses of an event are distributed much like those of the competition.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manyscope.data.linking import absolute
from manyscope.errors import DataError
from manyscope.log import progress
from manyscope.scopes.neutrinos.data.detector import (
    ICE_COLUMNS,
    MODULES_PER_STRING,
    Detector,
    built_in_detector,
    read_detector,
    write_geometry,
)
from manyscope.scopes.neutrinos.data.kaggle import GEOMETRY, TRAIN_META, kaggle_files
from manyscope.settings.code import module_digest
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.parquet import read_metadata, write_table
from manyscope.tables.whole import write_json

if TYPE_CHECKING:
    from manyscope.scopes.neutrinos.data.sources import EventFile
    from manyscope.scopes.neutrinos.settings import NeutrinosDownload, SimulatedSettings

LIGHT_M_PER_NS = 0.299792458
PHASE_INDEX, GROUP_INDEX = 1.32, 1.356  # of ice, about 400 nm
COS_CHERENKOV = 1 / PHASE_INDEX
SIN_CHERENKOV = math.sqrt(1 - COS_CHERENKOV**2)
TAN_CHERENKOV = SIN_CHERENKOV / COS_CHERENKOV

# The Pandel function, with the lengths of bulk ice at the scattering length _BULK_M.
TAU_NS, LAMBDA_M, _BULK_M, _EFFECTIVE = 557.0, 33.3, 35.0, 0.84

# A muon loses a + b E per metre, and so does its light grow with its energy.
_LOSS_GEV_PER_M, _LOSS_PER_M = 0.26, 3.6e-4
_TRACK_PHOTONS_PER_M, _CASCADE_PHOTONS_PER_GEV, _AREA_M2 = 2.86e4, 1.5e5, 0.0035
_PROPAGATION = 1.35  # ratio of the length of attenuation to sqrt(absorption * scattering / 3)
_NEAREST_TRACK_M, _CASCADE_SIZE_M = 2.0, 5.0
_MOST_PHOTONS = 3000.0  # a module saturates

_RADIUS_M, _HALF_HEIGHT_M = 600.0, 550.0  # of the cylinder of vertices
_THROUGH_GOING, _HADRONIC = 0.8, 0.3
_ENTRY_M, _EXIT_M, _SHORTEST_M = -1500.0, 1e4, 50.0
_MUON_INDEX, _MUON_GEV = 2.7, (3e2, 1e5)

_JITTER_NS, _MERGE_NS = 3.0, 12.0
_BEFORE_NS, _AFTER_NS = 4000.0, 6000.0  # the window about the median photon
_NOISE_PER_NS = 620e-9
COINCIDENCE_NS, COINCIDENCE_MODULES = 1000.0, 2
TRIGGER_PULSES, TRIGGER_WINDOW_NS, TRIGGER_NS = 8, 5000.0, 10_000
CHARGE_STEP = 0.025

_BLOCK = 64  # candidates at a time: their arrays of all modules stay in the cache
_FEWEST_PHOTONS = 5  # noise does not make a trigger of fewer
_NEGLIGIBLE = 1e-4  # expected photons in a module
_NEAR_M = 150.0  # modules up to here are looked at in any case
_SLOT_NS = 12_000.0  # of a module on the axis of all events and modules; more than the window and a coincidence
_FEWEST_TRIGGERS = 1e-4

_KEY = "manyscope.simulated"
_ICE = "ice.parquet"
_ID_STRIDE = 40


@dataclass(frozen=True)
class SimulatedEvents:
    """Triggered events, with n events and P pulses.

    Attributes:
        offsets: (n + 1,) int64; event i has the pulses offsets[i] … offsets[i + 1] - 1, in the order of time.
        sensor_id: (P,) int16.
        time_ns: (P,) int64, at least 0; the trigger is at 10,000.
        charge: (P,) float64, photoelectrons, in steps of 0.025.
        auxiliary: (P,) bool, False for hard local coincidence.
        truth: azimuth in [0, 2 pi), zenith in [0, pi]: where the particle came from; class, track or cascade;
            energy_gev; vertex_x_m, vertex_y_m, vertex_z_m, null for a track from outside; coincident_muon, whether an
            unrelated muon was added.
    """

    offsets: np.ndarray
    sensor_id: np.ndarray
    time_ns: np.ndarray
    charge: np.ndarray
    auxiliary: np.ndarray
    truth: pl.DataFrame

    def __len__(self) -> int:
        return len(self.offsets) - 1


class Simulated:
    """The simulator as a source. Raw data have the layout of the competition, with a table of truth for each file."""

    def download(self, settings: NeutrinosDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Simulate the files that are not there yet. The truth of a file is written last and carries its settings: a
        file with the right truth is whole.

        Raises:
            DataError: the geometry or the ice cannot be read, or hardly any event triggers.
        """
        chosen, seed = settings.simulated, settings.seed
        source = f"simulated, seed {seed}"
        detector = _detector(chosen)
        common = _common(seed, chosen, detector)
        write_geometry(raw / GEOMETRY, detector)
        yield ManifestEntry(GEOMETRY, source)
        ice = pl.DataFrame(detector.ice, schema=list(ICE_COLUMNS), orient="row")
        write_table(raw / _ICE, ice, {_KEY: _signature(common, 0, 0)})
        yield ManifestEntry(_ICE, source)
        size, truths = chosen.events_per_file, []
        for number in progress(_numbers(chosen), "simulate"):
            pulses, truth = f"train/batch_{number}.parquet", f"truth/truth_{number}.parquet"
            count = min(size, chosen.events - (number - 1) * size)
            signature = _signature(common, number, count)
            if not (_is_signed(raw / pulses, signature) and _is_signed(raw / truth, signature)):
                events = simulate(seed, number, count, chosen, detector)
                ids = _event_ids(seed, number, size)[:count]
                write_table(raw / pulses, _pulse_table(events, ids), {_KEY: signature})
                write_table(raw / truth, _truth_table(events, ids, number), {_KEY: signature})
            truths.append(raw / truth)
            yield ManifestEntry(pulses, source)
            yield ManifestEntry(truth, source)
        columns = ("batch_id", "event_id", "first_pulse_index", "last_pulse_index", "azimuth", "zenith")
        meta = pl.concat([pl.read_parquet(path, columns=list(columns)) for path in truths]).select(columns)
        write_table(raw / TRAIN_META, meta, {_KEY: _signature(common, 0, chosen.events)})
        yield ManifestEntry(TRAIN_META, source)
        about = {"simulated": True, "seed": seed, "settings": chosen.model_dump(mode="json")}
        write_json(raw / "simulated.json", about)
        yield ManifestEntry("simulated.json", source)

    def files(self, settings: NeutrinosDownload, raw: Path, manifest: pl.DataFrame) -> list[EventFile]:
        """
        Raises:
            DataError: a file is missing, or the geometry breaks a rule.
        """
        detector = read_detector(raw / GEOMETRY, raw / _ICE)  # the ice may not be that of the South Pole
        found = kaggle_files(raw, _numbers(settings.simulated))
        return [replace(file, detector=detector) for file in found if file.labelled]


def simulate(seed: int, number: int, count: int, settings: SimulatedSettings, detector: Detector) -> SimulatedEvents:
    """The first `count` triggered events of a file. They depend on the seed, the number, the detector and the settings
    of physics alone, so that a larger count only adds to them.

    Args:
        number: of the file, from 1.

    Raises:
        DataError: hardly any event triggers, or the detector has more modules than the files can number.
    """
    if len(detector) > np.iinfo(np.int16).max:
        raise DataError(f"{len(detector)} modules", place="download.simulated", allowed="at most 32767, as in Kaggle's")
    array = _Array(detector, dead_modules(seed, len(detector), settings.dead_dom_fraction))
    rng = np.random.default_rng((seed, number))
    blocks: list[SimulatedEvents] = []
    have = tried = 0
    while have < count:
        blocks.append(_block(rng, settings, array))
        have, tried = have + len(blocks[-1]), tried + _BLOCK
        if have < tried * _FEWEST_TRIGGERS - 1:
            raise DataError(
                f"{have} of {tried} simulated events trigger",
                place="download.simulated",
                remedy="raise the energies, or lower dead_dom_fraction",
            )
    return _first(blocks, count)


def dead_modules(seed: int, modules: int, fraction: float) -> np.ndarray:
    """(modules,) bool, the same for every file of a seed."""
    return np.random.default_rng((seed, 0)).random(modules) < fraction  # 0 is the number of no file


def power_law(u: np.ndarray, low: float, high: float, index: float) -> np.ndarray:
    """Map numbers that are uniform in [0, 1) to a density E^-index between two energies."""
    power = 1 - index
    if abs(power) < 1e-6:  # where rounding is worse than the limit
        return low * (high / low) ** u
    return ((1 - u) * low**power + u * high**power) ** (1 / power)


def muon_range_m(energy_gev: np.ndarray) -> np.ndarray:
    """Length of the track of a muon, ln(1 + E b / a) / (0.917 b): losses a + b E per metre of water, in ice."""
    return np.log1p(energy_gev * (_LOSS_PER_M / _LOSS_GEV_PER_M)) / (0.917 * _LOSS_PER_M)


def track_path(along_m: np.ndarray, away_m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The light that reaches a point from a track without scattering leaves it at the Cherenkov angle.

    Args:
        along_m, away_m: the point in coordinates of the track: along its direction from where it is at time 0, and
            perpendicular to it.

    Returns:
        Where on the track the light leaves (m), its path (m), and when it arrives (ns), the particle being as fast as
        light in vacuum and the light travelling at its group velocity.
    """
    leaves, path = along_m - away_m / TAN_CHERENKOV, away_m / SIN_CHERENKOV
    return leaves, path, (leaves + path * GROUP_INDEX) / LIGHT_M_PER_NS


def cascade_time_ns(path_m: np.ndarray) -> np.ndarray:
    """When light arrives straight from a point."""
    return path_m * (GROUP_INDEX / LIGHT_M_PER_NS)


def cascade_profile(cosine: np.ndarray) -> np.ndarray:
    """Light of a cascade by the cosine of the angle to its direction, a exp(b |cos - cos Cherenkov|^0.39): the usual
    form, with mean 1 over the sphere."""
    return np.exp(-2.61 * np.abs(cosine - COS_CHERENKOV) ** 0.39) / 0.1542


def delay_parameters(
    path_m: np.ndarray, scattering_m: np.ndarray, absorption_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shape, and scale in ns, of the gamma distribution of the delay of scattered light: Pandel's function, Ahrens et
    al. (2004), with its scattering length scaled to the local ice and 0.84 of the path as effective
    distance.

    Args:
        path_m: straight path of the light.
        scattering_m, absorption_m: effective lengths at the module.
    """
    shape = np.maximum(path_m * _EFFECTIVE * _BULK_M / (LAMBDA_M * scattering_m), 1e-3)
    return shape, 1 / (1 / TAU_NS + LIGHT_M_PER_NS / GROUP_INDEX / absorption_m)


def hard_coincidence(event: np.ndarray, sensor_id: np.ndarray, time_ns: np.ndarray) -> np.ndarray:
    """Whether a pulse has another one in its event on the same string, one or two modules away, within 1000 ns. Strings
    have 60 modules.

    Args:
        event, sensor_id: (P,) integers.
        time_ns: (P,) in [0, 10,000]; pulses in the order of event, module and time.

    Returns:
        (P,) bool.
    """
    place = sensor_id % MODULES_PER_STRING
    strings = int(sensor_id.max(initial=0)) // MODULES_PER_STRING + 1
    key = _axis(event * (strings * MODULES_PER_STRING) + sensor_id, time_ns)
    padded = np.concatenate([[-np.inf], key, [np.inf]])
    found = np.zeros(len(key), bool)
    for step in (s for s in range(-COINCIDENCE_MODULES, COINCIDENCE_MODULES + 1) if s):
        wanted = key + step * _SLOT_NS  # this time in the neighbour
        after = np.searchsorted(key, wanted)  # the index in `padded` is one more
        near = (padded[after + 1] - wanted < COINCIDENCE_NS) | (wanted - padded[after] < COINCIDENCE_NS)
        found |= near & (place + step >= 0) & (place + step < MODULES_PER_STRING)
    return found


def trigger_times(event: np.ndarray, time_ns: np.ndarray, events: int) -> np.ndarray:
    """When each event has the eighth coincident pulse within 5000 ns for the first time.

    Args:
        event, time_ns: (P,) of coincident pulses alone, in the order of event and time.

    Returns:
        (events,) float64 in ns, NaN for events that do not trigger.
    """
    last = TRIGGER_PULSES - 1
    first, eighth = slice(None, max(len(event) - last, 0)), slice(last, None)
    full = np.flatnonzero((event[eighth] == event[first]) & (time_ns[eighth] - time_ns[first] < TRIGGER_WINDOW_NS))
    triggered, position = np.unique(event[eighth][full], return_index=True)
    times = np.full(events, np.nan)
    times[triggered] = time_ns[eighth][full[position]]
    return times


class _Array:
    """What the simulation of light needs of a detector, in single precision."""

    def __init__(self, detector: Detector, dead: np.ndarray) -> None:
        self.size = len(detector)
        self.position = detector.position_m.astype(np.float32)
        self.efficiency = np.where(dead, 0, detector.efficiency).astype(np.float32)
        self.scattering = detector.scattering_m.astype(np.float32)
        self.absorption = detector.absorption_m.astype(np.float32)
        self.attenuation = np.float32(_PROPAGATION) * np.sqrt(self.absorption * self.scattering / 3)
        self.noise = np.cumsum(self.efficiency.astype(np.float64))

    @cached_property
    def quadratic(self) -> np.ndarray:
        """x, y, z, their squared sum and 1 of each module, (5, modules): what squared distances are linear in."""
        x, y, z = self.position.T
        return np.stack([x, y, z, (self.position**2).sum(1), np.ones_like(x)])


@dataclass(frozen=True)
class _Particles:
    """Sources of light. Attributes, with n of them: event (n,) int64, number in the block; point, direction (n, 3)
    float64, of travel; energy_gev (n,); for tracks, start and end along the direction from the point in m, (n,)."""

    event: np.ndarray
    point: np.ndarray
    direction: np.ndarray
    energy_gev: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> _Particles:
        return _Particles(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class _Light:
    """Expected photons of particles in modules, one row for each pair that matters: number of the event, module, mean
    of the photons, time without scattering (ns), path (m)."""

    event: np.ndarray
    module: np.ndarray
    mean: np.ndarray
    time: np.ndarray
    path: np.ndarray

    def photons(self, rng: np.random.Generator, array: _Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Event, module and time (ns, float64) of each photon that is seen."""
        number = rng.poisson(np.minimum(self.mean, _MOST_PHOTONS))
        seen = np.flatnonzero(number)
        module, number = self.module[seen], number[seen]
        shape, scale = delay_parameters(self.path[seen], array.scattering[module], array.absorption[module])
        photon = np.repeat(np.arange(len(seen)), number)
        delay = rng.standard_gamma(shape[photon], dtype=np.float32) * scale[photon]
        delay += np.float32(_JITTER_NS) * rng.standard_normal(len(photon), dtype=np.float32)
        return self.event[seen][photon], module[photon], self.time[seen].astype(np.float64)[photon] + delay


def _block(rng: np.random.Generator, settings: SimulatedSettings, array: _Array) -> SimulatedEvents:
    """Simulate a block of candidates and keep those that trigger."""
    particles, is_track, through, truth = _draw(rng, settings)
    # Cascades shine all of their energy, or part of it where neutral particles take the rest along.
    share = np.where(is_track, _HADRONIC, rng.uniform(0.5, 1, _BLOCK))
    cascades = replace(particles, energy_gev=particles.energy_gev * share)[~through]
    lights = (_track_light(particles[is_track], array), _cascade_light(cascades, array))
    event, module, time = _joined([light.photons(rng, array) for light in lights])

    bright = np.bincount(event, minlength=_BLOCK) >= _FEWEST_PHOTONS
    kept = bright[event]
    event, module, time = event[kept], module[kept], time[kept]
    middle = _medians(event, time)
    parts = [(event, module, time)]
    with_muon = bright & (rng.random(_BLOCK) < settings.coincident_muon_fraction)
    if with_muon.any():
        muons = _draw_muons(rng, np.flatnonzero(with_muon))
        event, module, time = _track_light(muons, array).photons(rng, array)
        passes = middle + rng.uniform(-_BEFORE_NS, _AFTER_NS, _BLOCK)
        parts.append((event, module, time + passes[event]))
    parts.append(_noise(rng, np.flatnonzero(bright), middle, array))
    of_muon = np.repeat(np.arange(len(parts)) == 1, [len(part[0]) for part in parts]) & with_muon.any()

    event, module, time = _joined(parts)
    time = time - middle[event] + _BEFORE_NS
    inside = (time > 0) & (time < _BEFORE_NS + _AFTER_NS)
    pulses = _Pulses.merged(rng, event[inside], module[inside], time[inside], of_muon[inside], array.size)
    return pulses.triggered(truth.with_columns(coincident_muon=with_muon))


def _draw(
    rng: np.random.Generator, settings: SimulatedSettings
) -> tuple[_Particles, np.ndarray, np.ndarray, pl.DataFrame]:
    """Candidates of a block: the particle of each, whether it is a track, a track from outside, and the truth."""
    is_track = rng.random(_BLOCK) < settings.track_fraction
    through = is_track & (rng.random(_BLOCK) < _THROUGH_GOING)
    low, high = settings.energy_min_gev, settings.energy_max_gev
    energy = power_law(rng.random(_BLOCK), low, high, settings.spectral_index)
    cosine, azimuth = rng.uniform(-1, 1, _BLOCK), rng.random(_BLOCK) * (2 * np.pi)
    point = _points(rng, _BLOCK)
    start = np.where(through, _ENTRY_M, 0.0)
    end = np.where(through, _EXIT_M, np.maximum(muon_range_m(energy), _SHORTEST_M))
    particles = _Particles(np.arange(_BLOCK), point, -_unit(cosine, azimuth), energy, start, end)
    vertex = np.where(through[:, None], np.nan, point)
    truth = pl.DataFrame(
        {
            "azimuth": azimuth,
            "zenith": np.arccos(cosine),
            "class": np.where(is_track, "track", "cascade"),
            "energy_gev": energy,
            **{f"vertex_{axis}_m": pl.Series(vertex[:, i], nan_to_null=True) for i, axis in enumerate("xyz")},
        }
    )
    return particles, is_track, through, truth


def _draw_muons(rng: np.random.Generator, events: np.ndarray) -> _Particles:
    """Atmospheric muons from above: the cosine of their zenith angle is distributed by its square."""
    n = len(events)
    cosine, azimuth = np.cbrt(rng.random(n)), rng.random(n) * (2 * np.pi)
    energy = power_law(rng.random(n), *_MUON_GEV, _MUON_INDEX)
    ends = np.full(n, _ENTRY_M), np.full(n, _EXIT_M)
    return _Particles(events, _points(rng, n), -_unit(cosine, azimuth), energy, *ends)


def _points(rng: np.random.Generator, n: int) -> np.ndarray:
    """Uniform in the cylinder, (n, 3) m."""
    radius, angle = _RADIUS_M * np.sqrt(rng.random(n)), rng.random(n) * (2 * np.pi)
    z = rng.uniform(-_HALF_HEIGHT_M, _HALF_HEIGHT_M, n)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle), z])


def _unit(cosine: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    sine = np.sqrt(1 - cosine**2)
    return np.column_stack([sine * np.cos(azimuth), sine * np.sin(azimuth), cosine])


def _track_light(tracks: _Particles, array: _Array) -> _Light:
    """Direct light of bare muons, and of their showers as if spread along them."""
    growth = 1 + tracks.energy_gev * (0.5 * _LOSS_PER_M / _LOSS_GEV_PER_M)
    yield_ = growth * (_TRACK_PHOTONS_PER_M * _AREA_M2 / (2 * np.pi * SIN_CHERENKOV**2))  # mu = yield / path
    squared, along = _squared_distances(tracks.point, array), _products(tracks, array)
    squared -= along * along
    squared /= np.float32(SIN_CHERENKOV**2)
    row, module = _pairs(squared, yield_ / _NEAR_M, array)

    offset = array.position[module] - tracks.point.astype(np.float32)[row]
    reach = np.einsum("ij,ij->i", offset, tracks.direction.astype(np.float32)[row])
    away = np.sqrt(np.maximum(np.einsum("ij,ij->i", offset, offset) - reach**2, np.float32(_NEAREST_TRACK_M**2)))
    leaves, path, time = track_path(reach, away)
    mean = yield_.astype(np.float32)[row] / path * np.exp(-path / array.attenuation[module]) * array.efficiency[module]
    lit = (mean > _NEGLIGIBLE) & (leaves > tracks.start[row]) & (leaves < tracks.end[row])
    return _Light(tracks.event[row[lit]], module[lit], mean[lit], time[lit], path[lit])


def _cascade_light(cascades: _Particles, array: _Array) -> _Light:
    """Light of showers: towards the Cherenkov angle near by, scattered to all sides far away."""
    yield_ = cascades.energy_gev * (_CASCADE_PHOTONS_PER_GEV * _AREA_M2 / (4 * np.pi))  # mu = yield F / path²
    brightest = float(cascade_profile(np.array(COS_CHERENKOV)))
    squared = _squared_distances(cascades.point, array)
    row, module = _pairs(squared, yield_ * (brightest / _NEAR_M**2), array)

    offset = array.position[module] - cascades.point.astype(np.float32)[row]
    path = np.sqrt(np.einsum("ij,ij->i", offset, offset) + np.float32(_CASCADE_SIZE_M**2))
    cosine = np.einsum("ij,ij->i", offset, cascades.direction.astype(np.float32)[row]) / path
    straight = np.exp(-path / (2 * array.scattering[module]))
    mean = yield_.astype(np.float32)[row] / path**2 * (1 - straight + straight * cascade_profile(cosine))
    mean *= np.exp(-path / array.attenuation[module]) * array.efficiency[module]
    lit = mean > _NEGLIGIBLE
    return _Light(cascades.event[row[lit]], module[lit], mean[lit], cascade_time_ns(path[lit]), path[lit])


def _squared_distances(points: np.ndarray, array: _Array) -> np.ndarray:
    """(points, modules) float32, m²; within a square metre, so that it serves to choose modules alone."""
    terms = np.column_stack([-2 * points, np.ones(len(points)), (points**2).sum(1)])
    return terms.astype(np.float32) @ array.quadratic


def _products(particles: _Particles, array: _Array) -> np.ndarray:
    """Each module's place along the direction of each particle, (particles, modules) float32, m."""
    zeros = -(particles.point * particles.direction).sum(1)
    return np.column_stack([particles.direction, np.zeros(len(zeros)), zeros]).astype(np.float32) @ array.quadratic


def _pairs(squared: np.ndarray, mean_near: np.ndarray, array: _Array) -> tuple[np.ndarray, np.ndarray]:
    """Rows and modules between which light may matter: nearer than _NEAR_M, or than where light of `mean_near` has been
    attenuated to nothing.

    Args:
        squared: (n, modules) m².
        mean_near: (n,), most photons that a module of efficiency 1 could expect at _NEAR_M without attenuation.
    """
    brightest = max(float(array.efficiency.max(initial=0)), 1.0)
    lengths = np.log(np.maximum(mean_near * brightest / _NEGLIGIBLE, 1))
    limit = np.multiply.outer(lengths.astype(np.float32) ** 2, array.attenuation**2)
    near = np.flatnonzero(squared < np.maximum(limit, np.float32(_NEAR_M**2), out=limit))
    row = near // array.size
    return row, near - row * array.size


def _noise(
    rng: np.random.Generator, events: np.ndarray, middle: np.ndarray, array: _Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Event, module and time of pulses without light, in the windows of the named events."""
    expected = array.noise[-1] * _NOISE_PER_NS * (_BEFORE_NS + _AFTER_NS)
    event = np.repeat(events, rng.poisson(expected, len(events)))
    n = len(event)
    module = np.searchsorted(array.noise, rng.random(n) * array.noise[-1], side="right")
    return event, module, middle[event] + rng.uniform(-_BEFORE_NS, _AFTER_NS, n)


@dataclass(frozen=True)
class _Pulses:
    """Merged pulses of a block. Attributes, (P,) each: event, sensor, time in ns after the window's start, charge,
    whether all of it comes from an added muon; in the order of event, module and time."""

    event: np.ndarray
    sensor: np.ndarray
    time: np.ndarray
    charge: np.ndarray
    of_muon: np.ndarray

    @classmethod
    def merged(
        cls,
        rng: np.random.Generator,
        event: np.ndarray,
        module: np.ndarray,
        time: np.ndarray,
        of_muon: np.ndarray,
        modules: int,
    ) -> _Pulses:
        """Photons of a module that follow each other within 12 ns make one pulse."""
        key = _axis(event * modules + module, time)
        order = np.argsort(key)
        starts = np.flatnonzero(np.diff(key[order], prepend=-np.inf) > _MERGE_NS)
        if not len(starts):
            return cls(event, module, time, np.zeros(0), of_muon)
        first = order[starts]
        charge = np.add.reduceat(_charges(rng, len(order)), starts)
        return cls(event[first], module[first], time[first], charge, np.logical_and.reduceat(of_muon[order], starts))

    def triggered(self, truth: pl.DataFrame) -> SimulatedEvents:
        """The events that trigger, without the light of an added muon too, at whose trigger time is 10,000 ns."""
        coincident = hard_coincidence(self.event, self.sensor, self.time)
        in_time = np.argsort(_axis(self.event, self.time))
        event, time, coincident = self.event[in_time], self.time[in_time], coincident[in_time]
        trigger = trigger_times(event[coincident], time[coincident], len(truth))
        own = coincident & ~self.of_muon[in_time]
        if (own != coincident).any():
            trigger[np.isnan(trigger_times(event[own], time[own], len(truth)))] = np.nan
        triggers = ~np.isnan(trigger)
        kept = triggers[event]
        rows = in_time[kept]
        steps = np.maximum(np.round(self.charge[rows] / CHARGE_STEP), 1)
        return SimulatedEvents(
            offsets=np.concatenate([[0], np.cumsum(np.bincount(event[kept], minlength=len(truth))[triggers])]),
            sensor_id=self.sensor[rows].astype(np.int16),
            time_ns=np.rint(time[kept] - trigger[event[kept]] + TRIGGER_NS).astype(np.int64),
            charge=steps * CHARGE_STEP,
            auxiliary=~coincident[kept],
            truth=truth.filter(triggers),
        )


def _charges(rng: np.random.Generator, n: int) -> np.ndarray:
    """Charge of single photoelectrons: a normal peak at 1, and a seventh of small ones, (n,) float64."""
    charge = np.maximum(rng.normal(1, 0.3, n), 0.15)
    small = np.flatnonzero(rng.random(n) < 0.15)
    charge[small] = rng.exponential(0.3, len(small)) + 0.05
    return charge


def _axis(slot: np.ndarray, time: np.ndarray) -> np.ndarray:
    """One axis for the times of all slots, none near another slot's. In double precision it tells 1e-5 ns apart."""
    return slot * _SLOT_NS + time


def _medians(event: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Median time of each event of the block, (block,) float64; 0 without photons."""
    order = np.lexsort((time, event))
    count = np.bincount(event, minlength=_BLOCK)
    first = np.cumsum(count) - count
    ranked = np.append(time[order], 0.0)
    low, high = first + np.maximum(count - 1, 0) // 2, first + count // 2
    return np.where(count > 0, (ranked[low] + ranked[high]) / 2, 0)


def _joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    event, module, time = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return event, module, time


def _first(blocks: list[SimulatedEvents], count: int) -> SimulatedEvents:
    """The first events of all blocks as one."""
    pulses = np.concatenate([np.diff(block.offsets) for block in blocks])[:count]
    offsets = np.concatenate([[0], np.cumsum(pulses)]).astype(np.int64)

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(block, name) for block in blocks])[: offsets[-1]]

    truth = pl.concat([block.truth for block in blocks])[:count]
    names = ("sensor_id", "time_ns", "charge", "auxiliary")
    return SimulatedEvents(offsets, **{name: column(name) for name in names}, truth=truth)


def _numbers(settings: SimulatedSettings) -> range:
    return range(1, -(-settings.events // settings.events_per_file) + 1)


def _detector(settings: SimulatedSettings) -> Detector:
    ice = None if settings.ice_file is None else absolute(settings.ice_file)
    if settings.geometry_file is None:
        return built_in_detector(ice)
    path = absolute(settings.geometry_file)
    detector = read_detector(path, ice)
    has_next = detector.beside[:, 2] >= 0
    expected = np.arange(len(detector)) % MODULES_PER_STRING < MODULES_PER_STRING - 1
    wrong = np.flatnonzero(has_next != expected)
    if len(wrong):  # the rule of coincidence counts modules along a string
        raise DataError(
            f"module {wrong[0]} and the next one do not make strings of {MODULES_PER_STRING} modules",
            place=f"{path}:{wrong[0] + 2}",
            allowed=f"{MODULES_PER_STRING} modules on one string, the next {MODULES_PER_STRING} on another, …",
        )
    return detector


def _event_ids(seed: int, number: int, size: int) -> np.ndarray:
    """Ids of the events of a file, (size,) int64, in increasing order with gaps, and all above those of earlier
    files."""
    gaps = np.random.default_rng((seed, number, 1)).integers(1, _ID_STRIDE, size)
    return (number - 1) * size * _ID_STRIDE + np.cumsum(gaps)


def _pulse_table(events: SimulatedEvents, ids: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "sensor_id": events.sensor_id,
            "time": events.time_ns,
            "charge": events.charge,
            "auxiliary": events.auxiliary,
            "event_id": np.repeat(ids, np.diff(events.offsets)),
        }
    )


def _truth_table(events: SimulatedEvents, ids: np.ndarray, number: int) -> pl.DataFrame:
    """The truth with the columns of train_meta.parquet, which is made of these tables."""
    where = {
        "batch_id": np.full(len(events), number, np.int64),
        "event_id": ids,
        "first_pulse_index": events.offsets[:-1],
        "last_pulse_index": events.offsets[1:] - 1,
    }
    return pl.concat([pl.DataFrame(where), events.truth], how="horizontal")


def _common(seed: int, settings: SimulatedSettings, detector: Detector) -> dict[str, Any]:
    """What decides on the content of every file, this module's source too; not the total count, so that a larger data
    set keeps its files."""
    values = settings.model_dump(mode="json", exclude={"events", "geometry_file", "ice_file"})
    arrays = hashlib.sha256(detector.position_m.tobytes() + detector.ice.tobytes()).hexdigest()
    return {"code": module_digest(__name__), "detector": arrays, "seed": seed, **values}


def _signature(common: dict[str, Any], number: int, count: int) -> str:
    return json.dumps({**common, "number": number, "count": count}, sort_keys=True)


def _is_signed(path: Path, signature: str) -> bool:
    try:
        return read_metadata(path).get(_KEY) == signature
    except (pl.exceptions.PolarsError, OSError):
        return False
