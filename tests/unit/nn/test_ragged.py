"""Segments without padding: reductions against loops, packing by its promises, three forms of attention that agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manyscope.errors import DataError
from manyscope.nn.ragged import (
    attend_buckets,
    attend_dense,
    attend_flex,
    first,
    from_padded,
    pack,
    segment_max,
    segment_mean,
    segment_sum,
    to_padded,
)

COUNTS = st.lists(st.integers(1, 12), min_size=1, max_size=30)
# mostly singletons, as in data, and at times one segment that dwarfs the others
MIXED = st.tuples(
    st.lists(st.sampled_from([1, 1, 1, 2, 3, 4, 5, 9]), min_size=1, max_size=30), st.sampled_from([0, 70])
)


def mixed(drawn: tuple[list[int], int]) -> list[int]:
    short, long = drawn
    middle = len(short) // 2
    return short[:middle] + [long] * bool(long) + short[middle:]


def draw(counts: list[int], *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(sum(counts), *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def heads(counts: list[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [draw(counts, 2, 8, seed=seed, dtype=dtype) for seed in range(3)]


@given(COUNTS)
def test_reductions_are_those_of_a_loop(counts: list[int]) -> None:
    values = draw(counts, 3)
    parts = values.split(counts)
    lengths = torch.tensor(counts)
    torch.testing.assert_close(segment_sum(values, lengths), torch.stack([x.sum(0) for x in parts]))
    torch.testing.assert_close(segment_mean(values, lengths), torch.stack([x.mean(0) for x in parts]))
    assert torch.equal(segment_max(values, lengths), torch.stack([x.amax(0) for x in parts]))
    assert torch.equal(first(values, lengths), torch.stack([x[0] for x in parts]))


@pytest.mark.parametrize("reduce", [segment_sum, segment_mean, segment_max, first])
def test_reductions_have_the_right_gradient(reduce: type[Tensor]) -> None:
    counts = [1, 3, 1, 6, 2]
    lengths = torch.tensor(counts)
    values = draw(counts, 2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reduce(x, lengths), values)


def test_equal_maxima_share_the_gradient() -> None:
    values = torch.tensor([[2.0], [5.0], [5.0], [-1.0]], requires_grad=True)
    segment_max(values, torch.tensor([3, 1])).sum().backward()
    assert values.grad is not None
    assert values.grad.flatten().tolist() == [0, 0.5, 0.5, 1]


def test_halves_are_added_up_in_single_precision() -> None:
    values = torch.ones(5000, 1, dtype=torch.bfloat16)  # bfloat16 cannot count past 256
    lengths = torch.tensor([5000])
    assert segment_sum(values, lengths).item() == pytest.approx(5000, rel=0.01)
    assert segment_mean(values, lengths).item() == 1
    assert segment_mean(values, lengths).dtype == torch.bfloat16


@given(COUNTS, st.integers(0, 5))
def test_padding_and_back(counts: list[int], spare: int) -> None:
    values, lengths = draw(counts, 2, 3), torch.tensor(counts)
    padded, mask = to_padded(values, lengths, max(counts) + spare)
    assert padded.shape == (len(counts), max(counts) + spare, 2, 3)
    assert mask.sum(1).tolist() == counts
    assert not padded[~mask].any()
    for block, part in zip(padded, values.split(counts), strict=True):
        assert torch.equal(block[: len(part)], part)
    assert torch.equal(from_padded(padded, mask), values)
    assert to_padded(values, lengths)[0].shape[1] == max(counts)


def test_padding_passes_the_gradient_and_never_cuts() -> None:
    counts = torch.tensor([2, 1])
    values = draw([2, 1], 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: to_padded(x, counts)[0] ** 2, values)
    assert torch.autograd.gradcheck(lambda x: from_padded(*to_padded(x, counts)), values)
    with pytest.raises(ValueError, match="a segment of 2 rows does not fit into 1"):
        to_padded(values, counts, 1)


@given(COUNTS, st.integers(12, 40))
def test_packing_keeps_its_promises(counts: list[int], row_length: int) -> None:
    packing = pack(np.array(counts), row_length)
    n, ids = sum(counts), np.repeat(np.arange(len(counts)), counts)
    place = packing.row * row_length + packing.slot
    assert packing.segment_of_slot.shape[1] == row_length
    assert ((packing.slot >= 0) & (packing.slot < row_length)).all()
    assert (np.diff(place) > 0).all()  # every value has a place of its own, in order
    assert np.array_equal(packing.segment_of_slot[packing.row, packing.slot], ids)
    assert (packing.segment_of_slot >= 0).sum() == n
    for segment in range(len(counts)):
        assert len(set(packing.row[ids == segment])) == 1
        assert (np.diff(packing.slot[ids == segment]) == 1).all()
    assert packing.fill == pytest.approx(n / packing.segment_of_slot.size)
    # next fit: what opens a row did not fit into the one before
    used = np.bincount(packing.row)
    for row in range(1, len(used)):
        assert used[row - 1] + counts[packing.segment_of_slot[row, 0]] > row_length


def test_packing_by_hand() -> None:
    packing = pack(np.array([2, 1, 3, 4]), 4)
    assert packing.segment_of_slot.tolist() == [[0, 0, 1, -1], [2, 2, 2, -1], [3, 3, 3, 3]]
    assert packing.row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert packing.slot.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 3]
    assert packing.fill == 10 / 12


def test_a_segment_longer_than_a_row_is_refused() -> None:
    with pytest.raises(DataError, match=r"segment 1: 9 values do not fit into a packed row of 8; .* rows longer"):
        pack(np.array([3, 9, 1]), 8)


def loop_attention(q: Tensor, k: Tensor, v: Tensor, counts: list[int]) -> Tensor:
    """softmax(q.k / sqrt(E)) v for each segment alone, written out."""
    parts = []
    for qs, ks, vs in zip(q.split(counts), k.split(counts), v.split(counts), strict=True):
        weights = (torch.einsum("qhe,khe->hqk", qs, ks) / q.shape[-1] ** 0.5).softmax(-1)
        parts.append(torch.einsum("hqk,khe->qhe", weights, vs))
    return torch.cat(parts)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=25, deadline=None)
@given(MIXED)
def test_forms_of_attention_agree(drawn: tuple[list[int], int]) -> None:
    counts = mixed(drawn)
    q, k, v = heads(counts)
    rows = pack(np.array(counts), 80).to_torch()
    expected = loop_attention(q, k, v, counts)
    for name, output in {
        "buckets": attend_buckets(q, k, v, torch.tensor(counts)),
        "dense": attend_dense(q, k, v, rows),
        "flex": attend_flex(q, k, v, rows),
    }.items():
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@settings(max_examples=25, deadline=None)
@given(MIXED)
def test_gradients_of_buckets_and_dense_agree(drawn: tuple[list[int], int]) -> None:
    counts = mixed(drawn)
    inputs = [x.requires_grad_() for x in heads(counts)]
    weight = draw(counts, 2, 8, seed=9)
    buckets = attend_buckets(*inputs, torch.tensor(counts))
    dense = attend_dense(*inputs, pack(np.array(counts), 80).to_torch())
    ours = torch.autograd.grad((weight * buckets).sum(), inputs, allow_unused=True)
    reference = torch.autograd.grad((weight * dense).sum(), inputs)
    for mine, theirs in zip(ours, reference, strict=True):
        # no bucket uses queries and keys where every segment has one row
        torch.testing.assert_close(torch.zeros_like(theirs) if mine is None else mine, theirs, rtol=1e-5, atol=2e-5)


def test_gradient_of_buckets_in_double_precision() -> None:
    counts = [1, 2, 4, 1, 3, 6]
    q, k, v = (draw(counts, 1, 2, seed=s, dtype=torch.float64).requires_grad_() for s in range(3))
    lengths = torch.tensor(counts)
    assert torch.autograd.gradcheck(lambda q, k, v: attend_buckets(q, k, v, lengths), (q, k, v))


def test_a_single_row_attends_to_itself() -> None:
    counts = [1, 1, 1]
    q, k, v = heads(counts)
    output = attend_buckets(q, k, v, torch.tensor(counts))
    assert torch.equal(output, v)
    assert output.data_ptr() != v.data_ptr()


def test_other_segments_have_no_influence() -> None:
    counts = [3, 1, 5]
    q, k, v = heads(counts)
    lengths = torch.tensor(counts)
    before = attend_buckets(q, k, v, lengths)
    k[4:], v[4:] = 100 * k[4:], 100 * v[4:]
    after = attend_buckets(q, k, v, lengths)
    assert torch.equal(before[:4], after[:4])
    assert not torch.allclose(before[4:], after[4:])


def test_masks_leave_no_slot_alone_and_skip_empty_blocks() -> None:
    counts = np.array([100, 60, 200, 30, 90])
    rows = pack(counts, 256).to_torch()
    assert rows.segment_of_slot.shape == (3, 256)
    assert rows.dense_mask.any(-1).all()
    assert rows.padded_rows == 64
    # the row added to make four is empty: only its diagonal blocks are computed
    assert rows.block_masks[0].to_dense()[3, 0].tolist() == [[1, 0], [0, 1]]


def test_attention_keeps_the_dtype_of_the_values_under_autocast() -> None:
    counts = [1, 3, 2]
    q, k, v = heads(counts)
    with torch.autocast("cpu", torch.bfloat16):
        output = attend_buckets(q, k, v, torch.tensor(counts))
    assert output.dtype == v.dtype
    torch.testing.assert_close(output, loop_attention(q, k, v, counts), rtol=0.02, atol=0.02)


def test_padded_form_of_the_same_attention() -> None:
    counts = [4, 1, 7]
    q, k, v = heads(counts)
    lengths = torch.tensor(counts)
    (qp, mask), (kp, _), (vp, _) = (to_padded(x, lengths) for x in (q, k, v))
    block = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (qp, kp, vp)), attn_mask=mask[:, None, None, :]
    ).transpose(1, 2)
    torch.testing.assert_close(from_padded(block, mask), attend_buckets(q, k, v, lengths), rtol=1e-5, atol=1e-5)
