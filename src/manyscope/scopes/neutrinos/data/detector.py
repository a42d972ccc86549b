"""The array of optical modules and the ice around them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.tables.whole import whole_file

MODULES_PER_STRING = 60
BESIDE = (-2, -1, 1, 2)  # places on a string
_SAME_STRING_M = 10.0
STRINGS = 86
SURFACE_M = 1948.07  # depth of the detector's centre, z = 0, below the surface
ICE_COLUMNS = ("depth", "scattering_len", "absorption_len")  # m
_DENSE_FROM = 78  # strings 79 to 86 are the dense core

# Strings 1 to 78 stand on a hexagonal grid, p = origin + i a + j b; the values are a fit of the public positions of
# sensor_geometry.csv (rms 6.9 m). Rows j = 0 … 9 hold the columns i from the first to the last given here.
_ORIGIN, _A, _B = np.array([-255.2, -520.8]), np.array([123.32, 19.83]), np.array([-78.87, 96.98])
_COLUMNS = ((0, 5), (0, 6), (0, 7), (0, 8), (0, 9), (1, 10), (2, 10), (3, 10), (4, 10), (5, 8))
_CORE = (
    (31.3, -72.9), (72.4, -66.6), (41.6, 35.5), (106.9, 27.1), (113.2, -60.5), (57.2, -105.5), (-9.7, -79.5),
    (-11.0, 6.7),
)  # fmt: skip

# Depth (m), effective scattering length (m), absorption length (m): means over layers of 40 m of the South Pole ice
# model of Aartsen et al. (2013), https://arxiv.org/abs/1301.5361.
_ICE = np.array([
    (1398, 13.2, 45), (1423, 15.4, 54), (1463, 19.5, 71), (1503, 35.2, 120), (1544, 14.9, 53), (1584, 17.4, 61),
    (1624, 22.7, 79), (1663, 42.7, 150), (1704, 28.9, 104), (1744, 21.4, 74), (1784, 34.4, 116), (1823, 37.5, 131),
    (1863, 24.4, 82), (1904, 42.8, 152), (1944, 32.6, 118), (1983, 13.4, 47), (2023, 9.1, 32), (2064, 8.6, 31),
    (2103, 39.8, 139), (2143, 45.6, 152), (2183, 29.9, 98), (2223, 44.1, 140), (2263, 62.6, 193), (2303, 77.0, 241),
    (2343, 42.0, 139), (2383, 40.6, 142), (2423, 60.5, 198), (2463, 81.9, 253), (2488, 56.7, 185),
])  # fmt: skip


@dataclass(frozen=True)
class Detector:
    """Modules of an array, numbered by `sensor_id` from 0.

    Attributes:
        position_m: (sensors, 3) float64, x, y, z; z points up and is 0 at the centre of IceCube.
        ice: (layers, 3) float64: depth, scattering and absorption length in m, by increasing depth.
    """

    position_m: np.ndarray
    ice: np.ndarray

    def __len__(self) -> int:
        return len(self.position_m)

    @cached_property
    def scattering_m(self) -> np.ndarray:
        """Effective scattering length at each module, (sensors,) float64."""
        return np.interp(SURFACE_M - self.position_m[:, 2], self.ice[:, 0], self.ice[:, 1])

    @cached_property
    def absorption_m(self) -> np.ndarray:
        """Absorption length at each module, (sensors,) float64."""
        return np.interp(SURFACE_M - self.position_m[:, 2], self.ice[:, 0], self.ice[:, 2])

    @cached_property
    def beside(self) -> np.ndarray:
        """The modules two and one before and one and two after each on its string, (sensors, 4) int64; -1 is none.

        Modules of a string have consecutive numbers and stand below each other."""
        own = np.arange(len(self))[:, None]
        other = own + np.array(BESIDE)
        inside = (other >= 0) & (other < len(self))
        apart = self.position_m[np.where(inside, other, own), :2] - self.position_m[:, None, :2]
        return np.where(inside & (np.linalg.norm(apart, axis=2) < _SAME_STRING_M), other, -1)

    @cached_property
    def dense(self) -> np.ndarray:
        """Whether a module is of the dense core, (sensors,) bool; never in an array other than IceCube's 86 strings."""
        string = np.arange(len(self)) // MODULES_PER_STRING
        return (string >= _DENSE_FROM) & (len(self) == STRINGS * MODULES_PER_STRING)

    @cached_property
    def efficiency(self) -> np.ndarray:
        """Quantum efficiency beside that of a standard module, (sensors,) float64."""
        string = np.arange(len(self)) // MODULES_PER_STRING + 1
        return np.where(self.dense & (string >= 81), 1.35, 1.0)


def built_in_detector(ice: Path | None = None) -> Detector:
    """IceCube's 86 strings of 60 modules by rule, and optionally the ice from a Parquet table.

    Raises:
        DataError: the table of the ice is missing or broken, or breaks a rule.
    """
    grid = [_ORIGIN + i * _A + j * _B for j, (first, last) in enumerate(_COLUMNS) for i in range(first, last + 1)]
    step = np.arange(MODULES_PER_STRING)
    regular = 501.6 - 17.02 * step
    core = np.where(step < 10, 189.0 - 10 * step, -157.0 - 7 * (step - 10))
    depth = np.concatenate([np.tile(regular, len(grid)), np.tile(core, len(_CORE))])
    position = np.column_stack([np.repeat(np.array([*grid, *_CORE]), MODULES_PER_STRING, axis=0), depth])
    return Detector(position, _ICE if ice is None else _read_ice(ice))


def read_detector(geometry: Path, ice: Path | None = None) -> Detector:
    """Positions from sensor_geometry.csv (sensor_id, x, y, z in m), and optionally the ice from a Parquet table.

    Raises:
        DataError: a file is missing or broken, or breaks a rule; the message names the row.
    """
    position = _read_geometry(geometry)
    return Detector(position, _ICE if ice is None else _read_ice(ice))


def write_geometry(path: Path, detector: Detector) -> None:
    """Write sensor_geometry.csv in whole centimetres."""
    x, y, z = detector.position_m.round(2).T
    table = pl.DataFrame({"sensor_id": np.arange(len(detector), dtype=np.int64), "x": x, "y": y, "z": z})
    with whole_file(path) as partial:
        table.write_csv(partial)


def _read_geometry(path: Path) -> np.ndarray:
    try:
        table = pl.read_csv(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"not a readable table ({_first_line(error)})", place=path) from error
    columns = ("sensor_id", "x", "y", "z")
    for name in columns:
        if name not in table.columns:
            raise DataError(f"column {name!r} is missing", place=path, allowed=", ".join(columns))
        if not table.schema[name].is_numeric():
            raise DataError(f"column {name!r} is {table.schema[name]}", place=path, allowed="numbers")
    ids = table["sensor_id"].cast(pl.Float64).to_numpy()
    wrong = np.flatnonzero(ids != np.arange(len(ids)))
    if not len(ids) or len(wrong):
        found = f"sensor_id {ids[wrong[0]]:g}" if len(wrong) else "no row"
        row = int(wrong[0]) + 2 if len(wrong) else 2
        raise DataError(f"{found}", place=f"{path}:{row}", allowed="0, 1, 2, … in this order")
    position = table.select("x", "y", "z").cast(pl.Float64).to_numpy()
    wrong = np.flatnonzero(~np.isfinite(position).all(1))
    if len(wrong):
        raise DataError("a position is not finite", place=f"{path}:{wrong[0] + 2}", allowed="metres")
    return position


def _read_ice(path: Path) -> np.ndarray:
    try:
        table = pl.read_parquet(path, columns=list(ICE_COLUMNS)).cast(pl.Float64).sort("depth")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"not a table of the ice ({_first_line(error)})", place=path, allowed=", ".join(ICE_COLUMNS)
        ) from error
    ice = table.to_numpy()
    if not len(ice) or not (np.isfinite(ice).all() and (ice > 0).all()):
        raise DataError("a length or depth is not positive", place=path, allowed="metres, all above 0")
    return ice


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
