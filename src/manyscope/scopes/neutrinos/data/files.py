"""Pairs of tables in the layout of GraphNeT: one row for each pulse, one row of truth for each event.

Layout `icecube`: official IceCube events. Modules are named by string (1 to 86) and dom_number (1 to 60) and stand
where the file says, `hlc` is the opposite of `auxiliary`, and the angles of the truth say where the particle came from.

Layout `prometheus`: photons in any detector that the simulator Prometheus was given; no charge, no noise, no trigger.
- The detector is made of the modules that saw light in the file, numbered by (x, y, z). Its coordinates are Prometheus'
  own, whose origin is no detector's centre, so positions are taken relative to the mean position of these modules.
- A module that saw no light in the whole file is not known; the one "beside" another may be further along the string.
- IceCube's table of the ice by depth does not apply there; every module gets the table's mean lengths.
- The zero of time is the interaction, so each event is shifted to have its first pulse at 10,000 ns, near where a
  trigger would put it. Every photon is a pulse of charge 1 with `auxiliary` False.
- The angles of its truth are those of the injected particle in Prometheus' own frame, and not known to follow IceCube's
  convention. These events are therefore only predicted; a truth table is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.data.linking import absolute, link
from manyscope.errors import SettingsError
from manyscope.scopes.neutrinos.data.detector import MODULES_PER_STRING, STRINGS, Detector, built_in_detector
from manyscope.scopes.neutrinos.data.reading import (
    ANGLE_COLUMNS,
    check_angles,
    check_charge,
    read_column,
    read_schema,
    read_truth,
    refuse,
    refuse_value,
    typed,
    unknown,
)
from manyscope.scopes.neutrinos.data.sources import EventFile, Events
from manyscope.tables.manifest import ManifestEntry

if TYPE_CHECKING:
    from manyscope.scopes.neutrinos.settings import NeutrinosDownload

_NUMBER, _ID = "a type of numbers", "an integer type"
_ICECUBE = {
    "event_no": _ID,
    "string": _NUMBER,
    "dom_number": _NUMBER,
    "dom_x": _NUMBER,
    "dom_y": _NUMBER,
    "dom_z": _NUMBER,
    "dom_time": _NUMBER,
    "charge": "a float type",
    "hlc": "an integer type or Boolean",
}
_POSITION = ("sensor_pos_x", "sensor_pos_y", "sensor_pos_z")
_PROMETHEUS = {"event_no": _ID, **dict.fromkeys(_POSITION, _NUMBER), "t": _NUMBER}

# The layout by rule is up to 30.4 m off the real one; neighbouring strings are 125 m apart, in the core 40 m and more.
_TOLERANCE_M = 35.0
_FIRST_NS = 10_000.0


class Files:
    """The tables of `download.files` as the data set itself; those with truth are labelled."""

    def download(self, settings: NeutrinosDownload, raw: Path) -> Iterator[ManifestEntry]:
        """
        Raises:
            SettingsError: no file is named, or one of them cannot be used.
            DataError: something is in the way of a link.
        """
        if not settings.files:
            raise SettingsError("download.files: empty; the source 'files' needs at least one pair of tables")
        yield from link_extra(settings, raw)

    def files(self, settings: NeutrinosDownload, raw: Path, manifest: pl.DataFrame) -> list[EventFile]:
        """
        Raises:
            DataError: a file is missing or broken, or has no positions of modules.
        """
        return _event_files(settings, raw, as_extra=False)


def link_extra(settings: NeutrinosDownload, raw: Path) -> Iterator[ManifestEntry]:
    """Link the tables of `download.files` into raw/files/NAME/; for use beside another source.

    Raises:
        SettingsError: a file cannot be used.
        DataError: something is in the way of a link.
    """
    problems = list(file_problems(settings))
    if problems:
        raise SettingsError(*problems)
    for entry in settings.files:
        yield link(raw, f"files/{entry.name}/pulses.parquet", absolute(entry.pulses))
        if entry.truth is not None:
            yield link(raw, f"files/{entry.name}/truth.parquet", absolute(entry.truth))


def extra_files(settings: NeutrinosDownload, raw: Path) -> list[EventFile]:
    """The tables of `download.files` as events that are predicted, and neither trained on nor judged.

    Raises:
        DataError: a file is missing or broken, or has no positions of modules.
    """
    return _event_files(settings, raw, as_extra=True)


def file_problems(settings: NeutrinosDownload) -> Iterator[str]:
    """What is wrong with `download.files` as far as settings and names of files tell, one sentence each."""
    for name, times in Counter(entry.name for entry in settings.files).items():
        if times > 1:
            yield f"download.files: the name {name!r} is used {times} times; give each pair a name of its own"
    for i, entry in enumerate(settings.files):
        for key, path in (("pulses", entry.pulses), ("truth", entry.truth)):
            if path is not None and not absolute(path).is_file():
                yield f"download.files[{i}].{key}: no file {path}; mend the path"
        if entry.layout == "prometheus" and entry.truth is not None:
            yield (
                f"download.files[{i}].truth: the angles of Prometheus are those of the injected particle in a frame of "
                "its own, so that nothing can be trained on or judged by them; leave out truth, to only predict"
            )


def _event_files(settings: NeutrinosDownload, raw: Path, as_extra: bool) -> list[EventFile]:
    files = []
    for entry in settings.files:
        folder = raw / "files" / entry.name
        pulses, truth = folder / "pulses.parquet", None if entry.truth is None else folder / "truth.parquet"
        if entry.layout == "icecube":
            detector, read = _icecube_detector(pulses), partial(_read_icecube, entry.name, pulses, truth)
        else:
            detector, read = _prometheus_detector(pulses), partial(_read_prometheus, entry.name, pulses)
        labelled = truth is not None and not as_extra
        files.append(EventFile(f"file-{entry.name}", None, labelled, detector, read))
    return files


def _icecube_detector(path: Path) -> Detector:
    """IceCube by rule, but for the modules of the file, which stand where it says."""
    sensor_id, position = _icecube_modules(path)
    by_rule = built_in_detector()
    placed = by_rule.position_m.copy()
    placed[sensor_id] = position
    return Detector(placed, by_rule.ice)


def _icecube_modules(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Module, (pulses,) int64, and its position in m, (pulses, 3) float64, of each pulse."""
    read_schema(path, _ICECUBE)
    string = _whole_numbers(path, "string", STRINGS)
    sensor_id = MODULES_PER_STRING * (string - 1) + _whole_numbers(path, "dom_number", MODULES_PER_STRING) - 1
    position = np.column_stack([_finite(path, axis) for axis in ("dom_x", "dom_y", "dom_z")])
    distance = np.linalg.norm(position - built_in_detector().position_m[sensor_id], axis=1)
    refuse(
        distance > _TOLERANCE_M,
        path,
        lambda i: (
            f"dom_x, dom_y, dom_z are {distance[i]:.0f} m from module {sensor_id[i] % MODULES_PER_STRING + 1} of "
            f"string {string[i]}"
        ),
        f"positions in IceCube's coordinates, within {_TOLERANCE_M:.0f} m",
    )
    return sensor_id, position


def _read_icecube(name: str, path: Path, truth_path: Path | None) -> Events:
    sensor_id, _ = _icecube_modules(path)
    hlc = read_column(path, "hlc")
    refuse_value((hlc != 0) & (hlc != 1), path, "hlc", hlc, "0 or 1")
    charge = check_charge(read_column(path, "charge"), path)
    times = np.rint(_finite(path, "dom_time"))
    return _events(name, path, truth_path, sensor_id, times, charge, hlc == 0)


def _read_prometheus(name: str, path: Path) -> Events:
    read_schema(path, _PROMETHEUS)
    sensor_id = np.unique(_positions(path), axis=0, return_inverse=True)[1].reshape(-1)
    event, times = read_column(path, "event_no"), _finite(path, "t")
    index = np.unique(event, return_inverse=True)[1]
    first = np.full(index.max() + 1, np.inf)
    np.minimum.at(first, index, times)
    times = times - first[index] + _FIRST_NS
    nothing = np.zeros(len(times), bool)
    return _events(name, path, None, sensor_id, times, np.ones(len(times), np.float32), nothing)


def _prometheus_detector(path: Path) -> Detector:
    read_schema(path, dict.fromkeys(_POSITION, _NUMBER))
    position = np.unique(_positions(path), axis=0)
    ice = built_in_detector().ice.mean(0, keepdims=True)  # one layer: the same lengths at any depth
    return Detector(position - position.mean(0), ice)


def _positions(path: Path) -> np.ndarray:
    return np.column_stack([_finite(path, name) for name in _POSITION])


def _events(
    name: str,
    path: Path,
    truth_path: Path | None,
    sensor_id: np.ndarray,
    times: np.ndarray,
    charge: np.ndarray,
    auxiliary: np.ndarray,
) -> Events:
    """Pulses in the order of the file, sorted by event and time."""
    event = read_column(path, "event_no").astype(np.int64, copy=False)
    order = np.lexsort((times, event))
    ids, first = np.unique(event[order], return_index=True)
    azimuth, zenith, truth = unknown(len(ids)), unknown(len(ids)), pl.DataFrame()
    if truth_path is not None:
        azimuth, zenith, truth = _read_truth(truth_path, ids)
    return Events(
        [f"{name}-{number}" for number in ids],
        np.append(first, len(event)),
        sensor_id[order].astype(np.int32),
        times[order],
        charge[order],
        auxiliary[order],
        azimuth,
        zenith,
        truth,
    )


def _read_truth(path: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, pl.DataFrame]:
    """Azimuth, zenith, and what is there of energy_gev, pid and class.

    A class is told for neutrinos only: a muon, which a muon neutrino makes in a charged current, leaves a track.
    """
    read_schema(path, ANGLE_COLUMNS)
    # read whole, so that messages name rows of the file, although events without pulses are left out below
    azimuth, zenith = (read_column(path, angle).astype(np.float64, copy=False) for angle in ANGLE_COLUMNS)
    check_angles(azimuth, zenith, path)
    table = typed(
        read_truth(path, "event_no", ids).rename({"energy": "energy_gev"}, strict=False),
        {**dict.fromkeys((*ANGLE_COLUMNS, "energy_gev", "interaction_type"), pl.Float64), "pid": pl.Int64},
        path,
    )
    if {"pid", "interaction_type"} <= set(table.columns):
        flavour = pl.col("pid").abs()
        track = (flavour == 14) & (pl.col("interaction_type") == 1)
        table = table.with_columns(
            pl.when(flavour.is_in([12, 14, 16]))
            .then(pl.when(track).then(pl.lit("track")).otherwise(pl.lit("cascade")))
            .alias("class")
        )
    known = [column for column in ("class", "energy_gev", "pid") if column in table.columns]
    return table["azimuth"].to_numpy(), table["zenith"].to_numpy(), table.select(known)


def _finite(path: Path, name: str) -> np.ndarray:
    values = read_column(path, name).astype(np.float64, copy=False)
    refuse_value(~np.isfinite(values), path, name, values, "finite numbers")
    return values


def _whole_numbers(path: Path, name: str, largest: int) -> np.ndarray:
    values = _finite(path, name)
    wrong = (values < 1) | (values > largest) | (values != np.rint(values))
    refuse_value(wrong, path, name, values, f"whole numbers from 1 to {largest}")
    return values.astype(np.int64)
