"""The forms in which pulses reach a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from manyscope.nn.ragged import pack

Arrays = dict[str, np.ndarray]
_CHANNELS = 3  # of a pulse


@dataclass(frozen=True)
class Form:
    """What a batch holds besides its ragged arrays.

    Attributes:
        kind: `ragged`: nothing. `flat`: `flat`, `mask` and `token`, see the function `flat`. `packed`: `place` (P,)
            int64 and `segment_of_slot` (R, S) int64, see `nn.ragged.PackedRows`.
        size: K of `flat`, S of `packed`.
        beside: whether the batch has `beside`, the light of the next modules on the string; it takes as long to gather
            as all else together.
    """

    kind: Literal["ragged", "flat", "packed"]
    size: int = 0
    beside: bool = False

    def add(self, arrays: Arrays, length: int) -> Arrays:
        if self.kind == "flat":
            return flat(arrays, self.size, length)
        if self.kind == "packed":
            packing = pack(arrays["pulse_counts"], self.size)
            return {"place": packing.row * self.size + packing.slot, "segment_of_slot": packing.segment_of_slot}
        return {}


RAGGED = Form("ragged")


def flat(arrays: Arrays, pulses: int, length: int) -> Arrays:
    """One vector for each module: x, y, z in units of 500 m, log(1 + n) / 3 - 1 of its n pulses, then time, charge,
    auxiliary and a one that says "there is a pulse" for each of the first pulses; zero where there is none.

    Args:
        pulses: K, pulses of a module; later ones are left out.
        length: modules of an event, at least as many as the longest has.

    Returns:
        `flat` (B, length, 4 + 4 K) float32; `mask` (B, length) bool, true for a module; and `token` (D,) int64, where
        each module is in `flat` when its first two dimensions are one.
    """
    counts, of_module = arrays["module_counts"], arrays["pulse_counts"]
    batch = len(counts)
    mask = np.arange(length) < counts[:, None]
    place = np.flatnonzero(mask)  # of each module among batch * length
    out = np.zeros((batch * length, 1 + pulses, _CHANNELS + 1), np.float32)
    out[place, 0, :3] = arrays["sensors"][:, :3] / np.float32(500)
    out[place, 0, 3] = np.log1p(arrays["pulses_seen"]) / 3 - 1
    kept = np.minimum(of_module, pulses)
    starts = np.cumsum(of_module) - of_module
    ends = np.cumsum(kept)
    within = np.arange(int(ends[-1])) - np.repeat(ends - kept, kept)
    rows = np.ones((len(within), _CHANNELS + 1), np.float32)
    rows[:, :_CHANNELS] = arrays["pulses"][np.repeat(starts, kept) + within]
    out[np.repeat(place, kept), 1 + within] = rows
    return {"flat": out.reshape(batch, length, -1), "mask": mask, "token": place}
