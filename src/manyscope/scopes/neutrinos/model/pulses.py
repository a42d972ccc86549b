"""T1, the first level: from the pulses of a module to one vector for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from manyscope.nn.ragged import (
    PackedRows,
    attend_buckets,
    attend_dense,
    attend_flex,
    first,
    segment_ids,
    segment_max,
    segment_mean,
)  # fmt: skip
from manyscope.scopes.neutrinos.data.shards import FIRST_NS, TRIGGER_NS, times_ns

Batch = dict[str, Any]


def pulse_features(batch: Batch, event_of_module: Tensor) -> Tensor:
    """(P, 4): time after the module's first pulse and after the event's origin, on scales that keep nanoseconds apart
    near zero; charge; isolation."""
    counts = batch["pulse_counts"]
    module = segment_ids(counts, len(batch["pulses"]))
    since_origin = times_ns(batch["pulses"]) - (batch["origin"][event_of_module, 3] - TRIGGER_NS)[module]
    since_first = since_origin - batch["modules"][module, FIRST_NS]
    return torch.stack(
        [signed_log(since_first, 10), signed_log(since_origin, 50), 5 * batch["pulses"][:, 1], batch["pulses"][:, 2]],
        dim=1,
    )


def signed_log(values: Tensor, scale: float) -> Tensor:
    """sign(x) log(1 + |x| / scale) / 3."""
    return values.sign() * torch.log1p(values.abs() / scale) / 3


class Pool(nn.Module):
    """A small network on each pulse; then mean and maximum over the pulses of a module."""

    def __init__(self, width: int, pulse_width: int, heads: int) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(4, pulse_width), nn.GELU(), nn.Linear(pulse_width, pulse_width))
        self.out = nn.Linear(2 * pulse_width, width)

    def forward(self, batch: Batch, event_of_module: Tensor) -> Tensor:
        """(D, width)."""
        counts = batch["pulse_counts"]
        x = self.each(pulse_features(batch, event_of_module))
        return self.out(torch.cat([segment_mean(x, counts), segment_max(x, counts)], dim=1))


class Attention(nn.Module):
    """A pre-norm transformer layer among the pulses of each module; then mean, maximum and first.

    Batches of the form `packed` take FlexAttention with a block mask, ragged ones the buckets of like length.
    """

    def __init__(self, width: int, pulse_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.input = nn.Linear(4, pulse_width)
        self.norm = nn.LayerNorm(pulse_width)
        self.qkv = nn.Linear(pulse_width, 3 * pulse_width)
        self.project = nn.Linear(pulse_width, pulse_width)
        self.forward_part = nn.Sequential(
            nn.LayerNorm(pulse_width), nn.Linear(pulse_width, 2 * pulse_width), nn.GELU(),
            nn.Linear(2 * pulse_width, pulse_width),
        )  # fmt: skip
        self.out = nn.Linear(3 * pulse_width, width)

    def forward(self, batch: Batch, event_of_module: Tensor) -> Tensor:
        """(D, width)."""
        counts = batch["pulse_counts"]
        x = self.input(pulse_features(batch, event_of_module))
        q, k, v = self.qkv(self.norm(x)).unflatten(1, (3, self.heads, -1)).unbind(1)
        if "segment_of_slot" in batch:
            packing = PackedRows(batch["place"], batch["segment_of_slot"])
            mixed = (attend_flex if x.is_cuda else attend_dense)(q, k, v, packing)
        else:
            mixed = attend_buckets(q, k, v, counts)
        x = x + self.project(mixed.flatten(1))
        x = x + self.forward_part(x)
        return self.out(torch.cat([segment_mean(x, counts), segment_max(x, counts), first(x, counts)], dim=1))


class Flat(nn.Module):
    """One linear map of the module's first K pulses, padded with zeros."""

    def __init__(self, width: int, pulses: int) -> None:
        super().__init__()
        self.out = nn.Linear(4 * pulses, width)

    def forward(self, batch: Batch, event_of_module: Tensor) -> Tensor:
        """(D, width)."""
        return self.out(batch["flat"].flatten(0, 1).index_select(0, batch["token"])[:, 4:])
