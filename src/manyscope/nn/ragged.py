"""Segments of unequal length without padding: reductions, and attention that stays inside each segment.

"Ragged" values are the rows of all segments one after another, `values` (N, ...), with `counts` (D,) int64, the number
of rows of each segment, each at least 1, in sum N. The counts are trusted, since checking them on a GPU would wait for
it. Functions are differentiable, and give the same bits again on a CPU; on CUDA sums are atomic and may differ in the
last bit.

Attention inside segments has three forms with one result. `attend_buckets` is the fastest on a CPU, `attend_flex` is
meant for CUDA, and `attend_dense` is the plain one that the others are tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from manyscope.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.nn.attention.flex_attention import BlockMask

_FLEX_BLOCK = 128
_FLEX_ROWS = 64
_FLEX_HEAD = 16  # least dimensions of a head in the CUDA kernel


def segment_ids(counts: Tensor, n: int) -> Tensor:
    """The segment (n,) int64 of each row; n is the sum of the counts, asked for so that a GPU is not waited for."""
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=n)


def segment_sum(values: Tensor, counts: Tensor) -> Tensor:
    """Sums (D, ...) over the rows of each segment of values (N, ...); halves are added up in float32."""
    # index_add: forward and backward take 94 µs, of torch.segment_reduce 251 µs (5000 rows of 32, 3000 segments)
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    sums = wide.new_zeros(len(counts), *values.shape[1:])
    return sums.index_add(0, segment_ids(counts, len(values)), wide).to(values.dtype)


def segment_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Means (D, ...) over the rows of each segment of floating-point values (N, ...)."""
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return (segment_sum(wide, counts) / _beside(counts, values)).to(values.dtype)


def segment_max(values: Tensor, counts: Tensor) -> Tensor:
    """Maxima (D, ...) over the rows of each segment of values (N, ...); equal maxima share the gradient evenly."""
    return _SegmentMax.apply(values, counts)


def first(values: Tensor, counts: Tensor) -> Tensor:
    """The first row (D, ...) of each segment of values (N, ...)."""
    return values.index_select(0, counts.cumsum(0) - counts)


class _SegmentMax(torch.autograd.Function):
    """`scatter_reduce` forward, since it is fast, with a backward three times as fast as its own."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, counts: Tensor) -> Tensor:
        ids = segment_ids(counts, len(values))
        out = values.new_empty(len(counts), *values.shape[1:])
        out.scatter_reduce_(0, _beside(ids, values).expand_as(values), values, "amax", include_self=False)
        ctx.save_for_backward(values, ids, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, ids, out = ctx.saved_tensors
        hit = (values == out.index_select(0, ids)).to(grad.dtype)
        hits = torch.zeros_like(grad).index_add_(0, ids, hit)
        return hit * (grad / hits).index_select(0, ids), None


def _beside(per_row: Tensor, values: Tensor) -> Tensor:
    """A vector as a column that broadcasts along the rows of values."""
    return per_row.view(-1, *(1,) * (values.ndim - 1))


def to_padded(values: Tensor, counts: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Ragged values (N, ...) as one block.

    Args:
        values: (N, ...).
        counts: (B,) rows of each segment.
        length: L, by default the largest count.

    Returns:
        Padded values (B, L, ...), zero where there is none, and the mask (B, L) bool, true where there is one.

    Raises:
        ValueError: a segment is longer than `length`; looked for on a CPU only, since a GPU would be waited for.
    """
    if length is None or not counts.is_cuda:
        longest = int(counts.max())
        length = longest if length is None else length
        if longest > length:
            raise ValueError(f"a segment of {longest} rows does not fit into {length}")
    ids = segment_ids(counts, len(values))
    rows = torch.arange(len(values), device=counts.device)
    place = rows - (counts.cumsum(0) - counts).index_select(0, ids) + ids * length
    padded = values.new_zeros(len(counts) * length, *values.shape[1:]).index_copy(0, place, values)
    mask = torch.arange(length, device=counts.device) < counts[:, None]
    return padded.unflatten(0, (len(counts), length)), mask


def from_padded(padded: Tensor, mask: Tensor) -> Tensor:
    """The ragged values (N, ...) of a block (B, L, ...), those where the mask (B, L) is true, in order."""
    return padded.flatten(0, 1).index_select(0, mask.flatten().nonzero().flatten())


@dataclass(eq=False)
class Packing:
    """Where each ragged value lies in rows of equal length; made by `pack`.

    Attributes:
        row: (N,) int64, the packed row of each value.
        slot: (N,) int64, its place in that row.
        segment_of_slot: (R, S) int64, the segment of each slot, -1 where the slot is empty.
        fill: share of the slots that hold a value.
    """

    row: np.ndarray
    slot: np.ndarray
    segment_of_slot: np.ndarray
    fill: float

    def to_torch(self, device: torch.device | str = "cpu") -> PackedRows:
        """The same as tensors, as the attention functions take it."""
        place = torch.from_numpy(self.row * self.segment_of_slot.shape[1] + self.slot)
        return PackedRows(place.to(device), torch.from_numpy(self.segment_of_slot).to(device))


@dataclass(eq=False)
class PackedRows:
    """A `Packing` on a device; its masks are made when first asked for and then serve every layer.

    Attributes:
        place: (N,) int64, row * S + slot of each value.
        segment_of_slot: (R, S) int64, -1 where the slot is empty.
    """

    place: Tensor
    segment_of_slot: Tensor

    def to(self, device: torch.device | str) -> PackedRows:
        return PackedRows(self.place.to(device), self.segment_of_slot.to(device))

    def fold(self, values: Tensor, rows: int | None = None) -> Tensor:
        """Values (N, H, E) in their slots, (rows, H, S, E) with zeros elsewhere; R rows unless more are asked for."""
        r, s = self.segment_of_slot.shape
        rows = r if rows is None else rows
        flat = values.new_zeros(rows * s, *values.shape[1:]).index_copy(0, self.place, values)
        return flat.unflatten(0, (rows, s)).transpose(1, 2)

    def unfold(self, packed: Tensor) -> Tensor:
        """The values (N, H, E) out of (rows, H, S, E)."""
        return packed.transpose(1, 2).flatten(0, 1).index_select(0, self.place)

    @property
    def padded_rows(self) -> int:
        """R rounded up to whole blocks of rows: a compiled kernel is made for each shape, so there is one."""
        return -(-len(self.segment_of_slot) // _FLEX_ROWS) * _FLEX_ROWS

    @cached_property
    def dense_mask(self) -> Tensor:
        """(R, 1, S, S) bool: the query slot may see the key slot."""
        owner = _owners(self.segment_of_slot)
        return (owner[:, :, None] == owner[:, None, :])[:, None]

    @cached_property
    def block_masks(self) -> tuple[BlockMask, ...]:
        """The same for FlexAttention, one for each block of rows."""
        from torch.nn.attention.flex_attention import create_block_mask

        r, s = self.segment_of_slot.shape
        owners = _owners(F.pad(self.segment_of_slot, (0, 0, 0, self.padded_rows - r), value=-1))

        def mask(owner: Tensor) -> BlockMask:
            def same_segment(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
                return owner[b, q] == owner[b, kv]

            return create_block_mask(
                same_segment,
                B=_FLEX_ROWS,
                H=None,
                Q_LEN=s,
                KV_LEN=s,
                device=str(owner.device),
                BLOCK_SIZE=_FLEX_BLOCK,
            )

        return tuple(mask(owner) for owner in owners.split(_FLEX_ROWS))


def _owners(segment_of_slot: Tensor) -> Tensor:
    """Segments (R, S) with a negative id of its own for each empty slot.

    An empty slot then sees itself alone: no softmax is over nothing, and whole blocks of empty slots are left out.
    """
    slots = torch.arange(segment_of_slot.shape[1], device=segment_of_slot.device)
    return torch.where(segment_of_slot < 0, -1 - slots, segment_of_slot)


def pack(counts: np.ndarray, row_length: int) -> Packing:
    """Segments in order into rows of equal length, none split: one that does not fit opens the next row (next fit).

    Args:
        counts: (D,) rows of each segment, each at least 1.
        row_length: S, slots of a packed row.

    Raises:
        DataError: a segment is longer than a row.
    """
    counts = np.asarray(counts, np.int64)
    if len(counts) and int(counts.max()) > row_length:
        longest = int(counts.argmax())
        raise DataError(
            f"{counts[longest]} values do not fit into a packed row of {row_length}",
            place=f"segment {longest}",
            remedy="keep fewer pulses of a module, or make the rows longer",
        )
    ends = np.cumsum(counts)
    opening = [0] if len(counts) else []  # the segment that opens each row
    while opening:
        last = opening[-1]
        following = int(np.searchsorted(ends, ends[last] - counts[last] + row_length, side="right"))
        if following == len(counts):
            break
        opening.append(following)
    openers = np.array(opening, np.int64)
    row_of_segment = np.repeat(np.arange(len(openers)), np.diff(openers, append=len(counts)))
    row = np.repeat(row_of_segment, counts)
    slot = np.arange(len(row)) - (ends - counts)[openers][row]
    segment_of_slot = np.full((len(openers), row_length), -1, np.int64)
    segment_of_slot[row, slot] = np.repeat(np.arange(len(counts)), counts)
    return Packing(row, slot, segment_of_slot, len(row) / max(segment_of_slot.size, 1))


def attend_buckets(q: Tensor, k: Tensor, v: Tensor, counts: Tensor) -> Tensor:
    """Scaled dot-product attention inside each segment, segments of like length at a time.

    A segment of one row attends to itself alone, so its output is its value. The others are gathered by length, those
    up to 2, 4, 8, … rows together, so that less than half of a gathered block is padding.

    Args:
        q: queries (N, H, E) of H heads.
        k: keys (N, H, E).
        v: values (N, H, E).
        counts: (D,) rows of each segment.

    Returns:
        (N, H, E), in the dtype of the values.
    """
    starts = counts.cumsum(0) - counts
    buckets: list[tuple[Tensor, Tensor]] = []  # rows (n, L), and which of them are real (n, L)
    shorter, longest = 1, int(counts.max())
    while shorter < longest:
        chosen = ((counts > shorter) & (counts <= 2 * shorter)).nonzero().flatten()
        shorter *= 2
        if len(chosen):
            n = counts.index_select(0, chosen)[:, None]
            # As long as the bucket allows, with a mask even if all is full: the last digits of a segment's result then
            # do not depend on what other segments there are.
            within = torch.arange(shorter, device=counts.device)
            buckets.append((starts.index_select(0, chosen)[:, None] + torch.minimum(within, n - 1), within < n))
    if not buckets:
        return v.clone()
    # One gather and one scatter for all buckets: the backward of each fills a tensor as large as q.
    rows = torch.cat([r.flatten() for r, _ in buckets])
    sizes = [r.numel() for r, _ in buckets]
    parts = (x.index_select(0, rows).split(sizes) for x in (q, k, v))
    outputs = []
    for (_, real), *qkv in zip(buckets, *parts, strict=True):
        qs, ks, vs = (x.unflatten(0, real.shape).transpose(1, 2) for x in qkv)
        block = F.scaled_dot_product_attention(qs, ks, vs, attn_mask=real[:, None, None, :])
        outputs.append(block.transpose(1, 2).flatten(0, 1))
    kept = torch.cat([real.flatten() for _, real in buckets]).nonzero().flatten()
    return v.index_copy(0, rows.index_select(0, kept), torch.cat(outputs).index_select(0, kept).to(v.dtype))


def attend_dense(q: Tensor, k: Tensor, v: Tensor, packing: PackedRows) -> Tensor:
    """Scaled dot-product attention inside each segment over packed rows, with the full (R, 1, S, S) mask.

    Args:
        q: queries (N, H, E) of H heads.
        k: keys (N, H, E).
        v: values (N, H, E).
        packing: of the same segments.

    Returns:
        (N, H, E). Memory and time grow with R * S * S.
    """
    qs, ks, vs = (packing.fold(x) for x in (q, k, v))
    return packing.unfold(F.scaled_dot_product_attention(qs, ks, vs, attn_mask=packing.dense_mask))


def attend_flex(q: Tensor, k: Tensor, v: Tensor, packing: PackedRows) -> Tensor:
    """Scaled dot-product attention inside each segment by FlexAttention (Dong et al., arXiv:2412.05496).

    Blocks of 128 by 128 slots without a common segment are left out. Rows go through in blocks of 64, so that the
    kernel, which is compiled at the first call on CUDA, has one shape whatever the batch. On a CPU it runs uncompiled,
    and forward only: torch 2.14 has no backward for it there, and refuses inputs that need a gradient.

    Args:
        q: queries (N, H, E) of H heads, all three of one dtype.
        k: keys (N, H, E).
        v: values (N, H, E).
        packing: of the same segments.

    Returns:
        (N, H, E).
    """
    attend = _flex_attention(compiled=q.is_cuda)
    width = q.shape[-1]
    # Further dimensions of zeros change no score.
    wide = (F.pad(x, (0, max(0, _FLEX_HEAD - width))) for x in (q, k, v))
    blocks = zip(*(packing.fold(x, packing.padded_rows).split(_FLEX_ROWS) for x in wide), strict=True)
    mixed = [
        attend(*qkv, block_mask=mask, scale=width**-0.5) for qkv, mask in zip(blocks, packing.block_masks, strict=True)
    ]
    return packing.unfold(torch.cat(mixed))[..., :width]


@cache
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    attend: Callable[..., Any] = flex_attention
    return torch.compile(attend, dynamic=False) if compiled else attend
