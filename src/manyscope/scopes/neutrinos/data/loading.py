"""Prepared events, cut into batches by index arithmetic: no Python runs for a single event."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from manyscope.data.prepared import PreparedSamples
from manyscope.errors import DataError, SettingsError
from manyscope.log import logger
from manyscope.scopes.neutrinos.data import forms
from manyscope.scopes.neutrinos.data.prepare import META, SENSORS, SHARDS
from manyscope.scopes.neutrinos.data.schedule import LengthSchedule, cut
from manyscope.scopes.neutrinos.data.shards import CHARGE, FIRST_NS, Shard, ranges
from manyscope.scopes.neutrinos.settings import InputSettings
from manyscope.tables.arrays import map_array
from manyscope.tables.whole import read_json

Batch = dict[str, Any]

_COUNTED_EVENTS = 1_000_000
_STEP = 8  # predicted events are padded to the next multiple of so many modules


class EventData(PreparedSamples):
    """The prepared folder as training, validation and prediction batches.

    A batch is a dict of tensors, with B events, D modules and P pulses of all of them one after another:

    - `module_counts` (B,) int64, `pulse_counts` (D,) int64: modules of each event, pulses of each module;
    - `sensors` (D, 7) float32: x, y, z (m), scattering and absorption length (m), efficiency, dense core;
    - `modules` (D, 6) float32: what `Shard.modules` says; `pulses_seen` (D,) float32: pulses before any cut;
    - `beside` (D, 4, 2) float32: of the modules two and one before and one and two after on the string, the charge, and
      the first time after the module's own in ns; zero where they saw no light; if the form asks for it;
    - `pulses` (P, 3) float32: normalised time, charge, auxiliary;
    - `origin` (B, 4), `line_fit` (B, 3), `direction` (B, 3) float32: as in `Shard`;
    - `counts` (B, 3) float32: pulses, modules and coincident modules of the event before any cut;
    - `length`, int: modules that an event is padded to;
    - whatever the form adds, see `forms`;
    - `sample_id`: a list of as many ids or, in a padded batch, of fewer.

    Args:
        form: `ragged`, `flat` or `packed`.

    Raises:
        DataError: a prepared file is missing, broken, or of another number of samples than samples.parquet.
        SettingsError: a module has more pulses than the form takes.
    """

    def __init__(self, prepared: Path, settings: InputSettings, form: forms.Form = forms.RAGGED) -> None:
        super().__init__(prepared)
        self.settings, self.form = settings, form
        sizes = read_json(prepared / META)["shards"]
        self.shards = [Shard.open(prepared / SHARDS / f"{i:05d}") for i in range(len(sizes))]
        self.sensors = np.array(map_array(prepared / SENSORS))
        self._starts = np.cumsum([0, *map(len, self.shards)])
        if form.kind == "packed" and settings.max_pulses > form.size:
            raise SettingsError(
                f"model.input.max_pulses: {settings.max_pulses} pulses of a module do not fit into a packed row of"
                f" {form.size}; allowed: {form.size} or fewer"
            )
        if self._starts[-1] != len(self.samples):
            raise DataError(
                f"{self._starts[-1]} events for {len(self.samples)} samples",
                place=prepared / SHARDS,
                remedy="run the stage 'preprocess' again",
            )

    # ------------------------------------------------------------------------------------------------- counts
    @cached_property
    def lengths(self) -> np.ndarray:
        """Modules of each event that a model sees, (events,) int64."""
        return np.concatenate([self._shown(shard, slice(None)) for shard in self.shards])

    def _shown(self, shard: Shard, events: np.ndarray | slice) -> np.ndarray:
        return np.clip(self._wanted(shard, events), 1, self.settings.max_doms).astype(np.int64)  # one, whatever it is

    def _wanted(self, shard: Shard, events: np.ndarray | slice) -> np.ndarray:
        """Modules before max_doms cuts."""
        if self.settings.isolated == "all":
            return np.diff(shard.module_offsets)[events]
        return shard.shown[events, 0 if self.settings.isolated == "none" else 1]

    def log_cuts(self) -> None:
        """Say what the settings keep from the network, over the first million events or so: nothing is left out in
        silence."""
        events = modules = shown = long = pulses = kept = 0
        most = min(self.settings.max_pulses, self.form.size if self.form.kind == "flat" else self.settings.max_pulses)
        for shard in self.shards:
            seen = self._shown(shard, slice(None))
            counts = np.diff(shard.pulse_offsets)
            of_seen = counts[ranges(shard.module_offsets[:-1], seen)]
            events, modules, shown = events + len(shard), modules + len(counts), shown + len(of_seen)
            long += int((self._wanted(shard, slice(None)) > seen).sum())
            pulses += int(counts.sum())
            kept += int(np.minimum(of_seen, most).sum())
            if events >= _COUNTED_EVENTS:
                break
        s = self.settings
        logger.info(
            "of %d events the network sees %d of %d modules (isolated: %s; max_doms %d cuts %d events) and %d of %d"
            " pulses (at most %d of a module)",
            events, shown, modules, s.isolated, s.max_doms, long, kept, pulses, most,
        )  # fmt: skip

    def train_schedule(self, batch_size: int, seed: int) -> LengthSchedule:
        rows = self.train_rows
        files = self.samples["group"].rle_id().to_numpy()[rows]
        s = self.settings
        shards = np.searchsorted(self._starts, rows, "right")
        return LengthSchedule(self.lengths[rows], files, shards, batch_size, s.token_budget, seed, s.window_events)

    def validation_schedule(self, batch_size: int) -> Iterator[np.ndarray]:
        """The validation events by length, so that little is padded."""
        rows = self.rows("validation")
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        cuts = cut(self.lengths[rows], batch_size, self.settings.token_budget)
        return (rows[first:last] for first, last in itertools.pairwise(cuts))

    def predict_batches(self, sample_ids: Sequence[str], batch_size: int) -> PredictBatches:
        """
        Raises:
            DataError: an id is unknown.
        """
        return PredictBatches(self, self.rows_of(sample_ids), batch_size)

    def predict_rows(self, rows: np.ndarray, batch_size: int) -> PredictBatches:
        """The samples at these positions."""
        return PredictBatches(self, rows, batch_size)

    # ------------------------------------------------------------------------------------------------ batches
    def batch(self, rows: np.ndarray, length: int | None = None, real: int | None = None) -> Batch:
        """The events at these positions, those of a shard together; `real` of them carry an id."""
        import torch

        of = np.searchsorted(self._starts, rows, "right") - 1
        order = np.argsort(of, kind="stable") if real is None else np.arange(len(rows))
        rows, of = rows[order], of[order]
        cuts = np.flatnonzero(np.diff(of, prepend=-1))
        parts = [
            self._part(self.shards[of[first]], rows[first:last] - self._starts[of[first]])
            for first, last in zip(cuts, [*cuts[1:], len(rows)], strict=True)
        ]
        arrays = {key: np.concatenate([p[key] for p in parts]) if len(parts) > 1 else parts[0][key] for key in parts[0]}
        arrays["sensors"] = self.sensors[arrays.pop("sensor")]
        longest = int(arrays["module_counts"].max()) if length is None else length
        arrays |= self.form.add(arrays, longest)
        tensors: Batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
        return {**tensors, "length": longest, "sample_id": self.ids(rows[:real])}

    def _part(self, shard: Shard, events: np.ndarray) -> dict[str, np.ndarray]:
        shown = self._shown(shard, events)
        starts = shard.module_offsets[events]
        ends = shard.module_offsets[events + 1]
        modules = ranges(starts, shown)
        first = shard.pulse_offsets[modules]
        seen = shard.pulse_offsets[modules + 1] - first
        counts = np.minimum(seen, self.settings.max_pulses)
        total = shard.pulse_offsets[ends] - shard.pulse_offsets[starts]
        beside = {"beside": _beside(shard, modules)} if self.form.beside else {}
        return beside | {
            "module_counts": shown,
            "sensor": shard.sensor[modules],
            "modules": shard.modules[modules],
            "pulses_seen": seen.astype(np.float32),
            "pulse_counts": counts,
            "pulses": shard.pulses[ranges(first, counts)],
            "origin": shard.origin[events],
            "line_fit": shard.line_fit[events],
            "direction": shard.direction[events],
            "counts": np.stack([total, ends - starts, shard.shown[events, 0]], axis=1).astype(np.float32),
        }


def _beside(shard: Shard, modules: np.ndarray) -> np.ndarray:
    """(D, 4, 2) float32 for these rows of the modules."""
    away = shard.beside[modules]
    values, width = shard.modules.reshape(-1), shard.modules.shape[1]
    others = (modules[:, None] + away) * width  # where their rows begin among all values: one index is faster than two
    found = np.empty((*away.shape, 2), np.float32)
    found[..., 0] = values[others + CHARGE]
    found[..., 1] = values[others + FIRST_NS] - values[modules * width + FIRST_NS][:, None]
    found[away == 0] = 0
    return found


class PredictBatches:
    """Batches whose padded shapes depend on the length of their events alone, not on what else is predicted: the last
    digit of a matrix product may depend on the number of rows, and a shard shall not change any digit.

    Events are padded to the next multiple of eight modules. All batches of a length have the same number of events;
    the last one repeats its first event beyond its ids.
    """

    def __init__(self, data: EventData, rows: np.ndarray, batch_size: int) -> None:
        self._data, s = data, data.settings
        padded = np.minimum(-(-data.lengths[rows] // _STEP) * _STEP, s.max_doms)
        self._plan: list[tuple[np.ndarray, int, int]] = []
        for length in np.unique(padded):
            some = rows[padded == length]
            size = min(batch_size, max(1, s.token_budget // int(length)))
            for first in range(0, len(some), size):
                self._plan.append((some[first : first + size], int(length), size))

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        for rows, length, size in self._plan:
            padded = np.concatenate([rows, np.full(size - len(rows), rows[0])])
            yield self._data.batch(padded, length, real=len(rows))
