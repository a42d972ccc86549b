"""Prepared events: memory-mapped arrays in compressed sparse rows, event -> modules -> pulses.

A shard is a folder of .npy files. Modules of an event stand in the order of their worth (coincident ones by charge,
then isolated ones by nearness to the event), pulses of a module in the order of time, so that whatever a model does not
want to see is cut from the end of a run of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyscope.errors import DataError
from manyscope.tables.arrays import map_array
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from manyscope.scopes.neutrinos.data.detector import Detector
    from manyscope.scopes.neutrinos.data.sources import Events
    from manyscope.scopes.neutrinos.settings import NeutrinosPreprocess

# Columns of `Shard.modules`.
FIRST_NS, CHARGE, COINCIDENT, SPREAD_NS, DELAY_NS, PROMPT = range(6)
# Columns of the table of sensors.
X_M, Y_M, Z_M, SCATTERING_M, ABSORPTION_M, EFFICIENCY, DENSE = range(7)

_PROMPT_NS = 60.0
TRIGGER_NS = 1e4
_TIME_NS, _LOG_CHARGE = 3e4, 3.0
_FEWEST_FIT_PULSES = 3


@dataclass(frozen=True)
class Shard:
    """Attributes, with E events, M modules that saw light, P pulses:

    module_offsets: (E + 1,) int64; event i has the modules module_offsets[i] … module_offsets[i + 1] - 1.
    shown: (E, 2) int32; so many modules of an event, from its first, are coincident; and coincident or near.
    origin: (E, 4) float32; x, y, z (m) and t (ns) of the coincident modules, weighted by the root of their charge.
    line_fit: (E, 3) float32, m/ns; velocity of the light by least squares, zero where it is not defined.
    direction: (E, 3) float32; unit vector to where the particle came from, NaN where unknown.
    sensor: (M,) int32, row in the table of sensors.
    pulse_offsets: (M + 1,) int64.
    modules: (M, 6) float32; first time (of a coincident pulse, if any) after the origin's in ns, charge in
        photoelectrons, 1 if any pulse is coincident, spread of times and delay of the mean time after the first
        weighted by charge in ns, charge of the first 60 ns.
    beside: (M, 4) int32; by how many rows the modules two and one before and one and two after on the string are away,
        0 where they saw no light.
    pulses: (P, 3) float32, see `normalise`.
    """

    module_offsets: np.ndarray
    shown: np.ndarray
    origin: np.ndarray
    line_fit: np.ndarray
    direction: np.ndarray
    sensor: np.ndarray
    pulse_offsets: np.ndarray
    modules: np.ndarray
    beside: np.ndarray
    pulses: np.ndarray

    def __len__(self) -> int:
        return len(self.module_offsets) - 1

    @property
    def n_modules(self) -> np.ndarray:
        """Modules of each event, (E,) int64."""
        return np.diff(self.module_offsets)

    @property
    def n_pulses(self) -> np.ndarray:
        """Pulses of each event, (E,) int64."""
        return np.diff(self.pulse_offsets[self.module_offsets])

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for field in fields(self):
            with whole_file(folder / f"{field.name}.npy") as partial, partial.open("wb") as file:
                np.save(file, getattr(self, field.name))

    @classmethod
    def open(cls, folder: Path) -> Shard:
        """Memory-map a saved shard.

        Raises:
            DataError: a file is missing, broken, or does not fit to the others.
        """
        arrays = {field.name: map_array(folder / f"{field.name}.npy") for field in fields(cls)}
        shard = cls(**arrays)
        modules, pulses = len(shard.sensor), len(shard.pulses)
        ends = (int(shard.module_offsets[-1]), len(shard.pulse_offsets) - 1, len(shard.modules))
        if ends != (modules,) * 3 or int(shard.pulse_offsets[-1]) != pulses or len(shard.origin) != len(shard):
            raise DataError("the arrays do not fit together", place=folder, remedy="run the stage 'preprocess' again")
        return shard


def normalise(time_ns: np.ndarray, charge: np.ndarray, auxiliary: np.ndarray) -> np.ndarray:
    """The pulses as models see them, (P, 3) float32: (t - 10,000 ns) / 30,000 ns, log10(charge) / 3, and 1 for an
    isolated pulse. The one place in which pulses are scaled; the constants are those in use for these data
    (GraphNeT's detector class IceCubeKaggle, https://github.com/graphnet-team/graphnet)."""
    out = np.empty((len(time_ns), 3), np.float32)
    out[:, 0] = (time_ns - TRIGGER_NS) / _TIME_NS
    out[:, 1] = np.log10(np.maximum(charge, 1e-6)) / _LOG_CHARGE
    out[:, 2] = auxiliary
    return out


def times_ns(pulses: Any) -> Any:
    """The times (…,) of normalised pulses (…, 3), an array or a tensor, in ns after the trigger's 10,000."""
    return pulses[..., 0] * _TIME_NS


def unit_vectors(azimuth: np.ndarray, zenith: np.ndarray) -> np.ndarray:
    """(n, 3) float64: (cos az sin ze, sin az sin ze, cos ze)."""
    sine = np.sin(zenith)
    return np.stack([np.cos(azimuth) * sine, np.sin(azimuth) * sine, np.cos(zenith)], axis=-1)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The runs starts[i], starts[i] + 1, … of counts[i] numbers, one after another, (sum of counts,) int64."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total)


def sensor_table(detector: Detector) -> np.ndarray:
    """(sensors, 7) float32: x, y, z (m), scattering and absorption length there (m), efficiency, 1 in a dense core."""
    columns = (
        *detector.position_m.T,
        detector.scattering_m,
        detector.absorption_m,
        detector.efficiency,
        detector.dense,
    )
    return np.stack(columns, axis=1).astype(np.float32)


def build(events: Events, detector: Detector, first_sensor: int, settings: NeutrinosPreprocess) -> Shard:
    """Group the pulses of validated events by module and order the modules.

    Args:
        first_sensor: row of the detector's sensor 0 in the table of sensors.
    """
    n = len(events)
    of_pulse = np.repeat(np.arange(n), np.diff(events.offsets))
    order = np.argsort(of_pulse * len(detector) + events.sensor_id, kind="stable")  # keeps the order of time
    event, sensor = of_pulse[order], events.sensor_id[order]
    time, charge = events.time_ns[order], events.charge[order].astype(np.float64)
    coincident = ~events.auxiliary[order]

    new = np.flatnonzero(np.diff(event * len(detector) + sensor, prepend=-1))
    count = np.diff(new, append=len(event))
    of = np.repeat(np.arange(len(new)), count)
    event, sensor = event[new], sensor[new]
    total, hlc = np.add.reduceat(charge, new), np.logical_or.reduceat(coincident, new)
    first = np.where(hlc, np.minimum.reduceat(np.where(coincident, time, np.inf), new), time[new])
    mean = np.add.reduceat(charge * time, new) / total
    spread = np.sqrt(np.add.reduceat(charge * (time - mean[of]) ** 2, new) / total)
    since = time - first[of]
    prompt = np.add.reduceat(np.where((since >= 0) & (since < _PROMPT_NS), charge, 0), new)

    where = detector.position_m[sensor]
    weight = np.where(hlc | ~np.logical_or.reduceat(hlc, np.searchsorted(event, np.arange(n)))[event], total**0.5, 0)
    sums = _sums(np.column_stack([where, first, np.ones(len(first))]) * weight[:, None], event, n)
    origin = sums[:, :4] / sums[:, 4:]
    away = np.linalg.norm(where - origin[event, :3], axis=1) / settings.near_distance_m
    far = np.abs(first - origin[event, 3]) / settings.near_time_ns + away

    worth = np.lexsort((first, np.where(hlc, -total, far), ~hlc, event))
    module_offsets = np.searchsorted(event, np.arange(n + 1))
    pulse_rows = ranges(new[worth], count[worth])
    modules = np.column_stack([first - origin[event, 3], total, hlc, spread, mean - first, prompt])[worth]
    coincident_modules = np.bincount(event[hlc], minlength=n)
    shown = coincident_modules + np.bincount(event[~hlc & (far < settings.near_limit)], minlength=n)
    return Shard(
        module_offsets=module_offsets.astype(np.int64),
        shown=np.stack([coincident_modules, shown], axis=1).astype(np.int32),
        origin=origin.astype(np.float32),
        line_fit=line_fit(events, detector).astype(np.float32),
        direction=unit_vectors(events.azimuth, events.zenith).astype(np.float32),
        sensor=(sensor[worth] + first_sensor).astype(np.int32),
        pulse_offsets=np.concatenate([[0], np.cumsum(count[worth])]).astype(np.int64),
        modules=modules.astype(np.float32),
        beside=_beside(event, sensor, worth, detector),
        pulses=normalise(time, charge, ~coincident)[pulse_rows],
    )


def _beside(event: np.ndarray, sensor: np.ndarray, order: np.ndarray, detector: Detector) -> np.ndarray:
    """`Shard.beside` of modules sorted by event and sensor that will stand in another order."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    other = detector.beside[sensor]
    keys = event * len(detector) + sensor
    wanted = (event * len(detector))[:, None] + other
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    lit = (other >= 0) & (keys[found] == wanted)
    away: np.ndarray = np.where(lit, place[found] - place[:, None], 0)[order]
    return away.astype(np.int32)


def line_fit(events: Events, detector: Detector) -> np.ndarray:
    """Velocity of a plane of light through the coincident pulses, (events, 3) float64 in m/ns; through all pulses
    where fewer than three are coincident, and zero where even these are at one time.

    The least-squares line r(t) = r0 + v t, v = (<r t> - <r><t>) / (<t²> - <t>²): Stenger (1990), as used as the first
    guess of AMANDA, Ahrens et al. (2004), https://doi.org/10.1016/j.nima.2004.01.065, section 3.2.1.
    """
    n = len(events)
    event = np.repeat(np.arange(n), np.diff(events.offsets))
    few = np.bincount(event[~events.auxiliary], minlength=n) < _FEWEST_FIT_PULSES
    used = ~events.auxiliary | few[event]
    event, time, where = event[used], events.time_ns[used], detector.position_m[events.sensor_id[used]]
    count = np.bincount(event, minlength=n)
    time = time - (np.bincount(event, time, n) / count)[event]
    where = where - (_sums(where, event, n) / count[:, None])[event]
    variance = np.bincount(event, time**2, n)[:, None]
    return np.divide(_sums(where * time[:, None], event, n), variance, out=np.zeros((n, 3)), where=variance > 0)


def concatenate(shards: list[Shard]) -> Shard:
    """Several shards as one, in their order."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(shard, name) for shard in shards])

    def offsets(name: str) -> np.ndarray:
        lasts = np.cumsum([0, *(getattr(shard, name)[-1] for shard in shards)])
        parts = [getattr(shard, name)[:-1] + last for shard, last in zip(shards, lasts, strict=False)]
        return np.concatenate([*parts, lasts[-1:]]).astype(np.int64)

    names = [field.name for field in fields(Shard)]
    return Shard(**{name: offsets(name) if name.endswith("_offsets") else joined(name) for name in names})


def _sums(values: np.ndarray, index: np.ndarray, n: int) -> np.ndarray:
    """Sum of the rows of `values` for each index, (n, columns) float64."""
    return np.stack([np.bincount(index, column, n) for column in values.T], axis=1)
