"""The test events with their true direction, the model's, and the line fit's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.scopes.neutrinos.data.shards import unit_vectors

if TYPE_CHECKING:
    from manyscope.scopes.neutrinos.data.loading import EventData
    from manyscope.scopes.neutrinos.data.shards import Shard

PREDICTED = ("azimuth", "zenith", "kappa", "kappa_raw")


@dataclass(frozen=True)
class Judged:
    """Attributes, of n test events in the order of the samples:

    row: (n,) int64, position in samples.parquet.
    true, model, line_fit: (n, 3) float64, unit vectors to where the particle came from.
    kappa, kappa_raw: (n,) float64, concentration of the model's prediction, calibrated and not.
    n_pulses: (n,) int64.
    kind: (n,) str, "track", "cascade" or "", or None where the data do not tell.
    energy_gev: (n,) float64, NaN where unknown, or None where the data do not tell.
    """

    row: np.ndarray
    true: np.ndarray
    model: np.ndarray
    line_fit: np.ndarray
    kappa: np.ndarray
    kappa_raw: np.ndarray
    n_pulses: np.ndarray
    kind: np.ndarray | None
    energy_gev: np.ndarray | None

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def error(self) -> np.ndarray:
        """Angle between true and predicted direction, (n,) float64, radians."""
        return angle(self.true, self.model)

    @cached_property
    def line_fit_error(self) -> np.ndarray:
        """Angle between true direction and line fit, (n,) float64, radians."""
        return angle(self.true, self.line_fit)

    def of_kind(self, kind: str) -> np.ndarray:
        """Which events are of this class, (n,) bool; none where the data do not tell."""
        return np.zeros(len(self), bool) if self.kind is None else self.kind == kind

    @property
    def kinds(self) -> list[str]:
        """The classes that there are, tracks first; no more than two."""
        return [kind for kind in ("track", "cascade") if self.of_kind(kind).any()]


def judged(data: EventData, samples: pl.DataFrame, predictions: pl.DataFrame) -> Judged:
    """Join the test samples with their predictions, which may be in any order and of further samples.

    Raises:
        DataError: a test sample has no prediction or several, or one that is not a number.
    """
    for name in ("sample_id", *PREDICTED):
        if name not in predictions.columns:
            raise DataError(f"the predictions have no column {name!r}", remedy="run the stage 'infer' again")
    test = samples.filter(split="test")
    mine = predictions.select("sample_id", *(pl.col(name).alias(f"predicted_{name}") for name in PREDICTED))
    found = test.join(mine.with_columns(predicted=True), on="sample_id", how="left", maintain_order="left")
    if found["predicted"].null_count():
        missing = found.filter(pl.col("predicted").is_null())["sample_id"]
        raise DataError(
            f"{len(missing)} of {len(test)} test samples have no prediction, for example {missing[0]!r}",
            remedy="let infer.splits hold 'test', and run the stage 'infer' again",
        )
    if len(found) > len(test):
        repeated = found["sample_id"].filter(found["sample_id"].is_duplicated())[0]
        raise DataError(f"sample {repeated!r} has more than one prediction", remedy="run the stage 'infer' again")
    numbers = {name: _numbers(found, f"predicted_{name}") for name in PREDICTED}
    row = data.rows_of(found["sample_id"].to_list())
    return Judged(
        row=row,
        true=unit_vectors(_numbers(found, "azimuth"), _numbers(found, "zenith")),
        model=unit_vectors(numbers["azimuth"], numbers["zenith"]),
        line_fit=line_fit_directions(data, row),
        kappa=numbers["kappa"],
        kappa_raw=numbers["kappa_raw"],
        n_pulses=found["n_pulses"].to_numpy().astype(np.int64),
        kind=found["class"].fill_null("").to_numpy() if "class" in found.columns else None,
        energy_gev=_energy(found),
    )


def angle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Great-circle angle between unit vectors (n, 3), (n,) in [0, pi]: 2 atan2(|u - v|, |u + v|), which loses no digits
    near 0 and pi, where the arc cosine does (Kahan, "How futile are mindless assessments of roundoff", 2006)."""
    return 2 * np.arctan2(np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1))


def zenith(direction: np.ndarray) -> np.ndarray:
    """(n, 3) -> (n,) in [0, pi]."""
    return np.arctan2(np.hypot(direction[:, 0], direction[:, 1]), direction[:, 2])


def line_fit_directions(data: EventData, row: np.ndarray) -> np.ndarray:
    """To where the line fit points back, (n, 3) float64 unit vectors; straight up where it is not defined.

    Args:
        row: (n,) int64, positions in samples.parquet.
    """
    velocity = np.empty((len(row), 3))
    shard_of, event = _located(data, row)
    for number in np.unique(shard_of):
        mine = shard_of == number
        velocity[mine] = data.shards[number].line_fit[event[mine]]
    speed = np.linalg.norm(velocity, axis=1, keepdims=True)
    up = np.broadcast_to([0.0, 0.0, 1.0], velocity.shape)
    return np.divide(-velocity, speed, out=up.copy(), where=speed > 0)


def shard_and_event(data: EventData, row: int) -> tuple[Shard, int]:
    """Where the event at this position of samples.parquet lies."""
    shard_of, event = _located(data, np.array([row]))
    return data.shards[shard_of[0]], int(event[0])


def _located(data: EventData, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *map(len, data.shards)])
    shard_of = np.searchsorted(starts, row, "right") - 1
    return shard_of, row - starts[shard_of]


def _numbers(table: pl.DataFrame, name: str) -> np.ndarray:
    values = table[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
    if not np.isfinite(values).all():
        sample = table["sample_id"][int(np.argmin(np.isfinite(values)))]
        raise DataError(f"{name.replace('_', ' ', 1)} of sample {sample!r} is not a number")
    return values


def _energy(table: pl.DataFrame) -> np.ndarray | None:
    if "energy_gev" not in table.columns or table["energy_gev"].null_count() == len(table):
        return None
    return table["energy_gev"].cast(pl.Float64).fill_null(np.nan).to_numpy()
