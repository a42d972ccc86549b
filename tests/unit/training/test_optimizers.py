"""The joined optimiser takes the steps of its two parts, and continues from a checkpoint as if nothing had happened."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import nn

from manyscope.training.optimizers import Muon, MuonAdamW, orthogonalised


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 32), nn.GELU(), nn.Linear(32, 16), nn.LayerNorm(16), nn.Linear(16, 2))


def train(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        x = torch.randn(64, 3, generator=torch.Generator().manual_seed(step))
        for optimizer in optimizers:
            optimizer.zero_grad()
        (model(x) - x[:, :2].square()).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_it_takes_the_steps_of_its_parts() -> None:
    ours, theirs = network(), network()
    train(ours, [MuonAdamW(ours.parameters(), lr=1e-2, matrix_lr=2e-2, weight_decay=0.1)], range(5))
    matrix = theirs[2].weight
    others = [p for p in theirs.parameters() if p is not matrix]
    parts = [
        Muon([matrix], lr=2e-2, weight_decay=0.1),
        torch.optim.AdamW(others, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98), fused=True),
    ]
    train(theirs, parts, range(5))
    for own, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(32, 16), (16, 32), (24, 24)])
def test_muon_takes_the_steps_of_torch_but_for_its_rounding(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(4, *shape)
    ends = []
    for kind in (Muon, partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")):
        weight = nn.Parameter(start.clone())
        optimizer = kind([weight], lr=1e-2, weight_decay=0.1, momentum=0.9)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach() - start)
    off = (ends[0] - ends[1]).norm() / ends[1].norm()
    assert off < 0.02  # bfloat16 has 8 bits


@pytest.mark.parametrize("shape", [(40, 16), (16, 40)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ found @ right.T
    values = inner.diagonal()
    torch.testing.assert_close(inner, torch.diag(values), rtol=0, atol=1e-4)
    assert values.min() > 0.65
    assert values.max() < 1.25


def test_groups_have_rates_of_their_own() -> None:
    ours, theirs = network(), network()
    groups = [{"params": list(ours[:3].parameters()), "lr": 1e-3}, {"params": list(ours[3:].parameters())}]
    train(ours, [MuonAdamW(groups, lr=1e-2, matrix_lr=2e-2, weight_decay=0.1)], range(5))
    matrix = theirs[2].weight
    others = [p for p in theirs[:3].parameters() if p is not matrix]
    parts = [
        Muon([matrix], lr=2e-3, weight_decay=0.1),
        torch.optim.AdamW(others, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), fused=True),
        torch.optim.AdamW(theirs[3:].parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98), fused=True),
    ]
    train(theirs, parts, range(5))
    for own, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, expected)


def test_it_continues_from_its_state() -> None:
    whole = network()
    train(whole, [MuonAdamW(whole.parameters(), lr=1e-2)], range(8))
    first = network()
    optimizer = MuonAdamW(first.parameters(), lr=1e-2)
    train(first, [optimizer], range(4))
    state = copy.deepcopy(optimizer.state_dict())
    second = copy.deepcopy(first)
    again = MuonAdamW(second.parameters(), lr=5.0)
    again.load_state_dict(state)
    train(second, [again], range(4, 8))
    for own, expected in zip(second.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=0)


def test_schedules_reach_both_parts() -> None:
    model = network()
    optimizer = MuonAdamW(model.parameters(), lr=1e-2, matrix_lr=3e-2)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-2, 1e-2]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(model)
    train(model, [optimizer], range(2))
    assert scheduler.get_last_lr() == [0.0, 0.0]
    for own, expected in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=0)


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Linear(32, 32, bias=False)], ids=["no matrix", "matrices alone"])
def test_either_part_may_be_empty(model: nn.Module) -> None:
    before = copy.deepcopy(model)
    optimizer = MuonAdamW(model.parameters(), lr=1e-2)
    model(torch.ones(4, model.in_features)).square().mean().backward()  # type: ignore[arg-type]
    optimizer.step()
    assert len(optimizer.param_groups) == 1
    assert any((a != b).any() for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_a_closure_is_called_with_gradients() -> None:
    model = network()

    def closure() -> float:
        loss = model(torch.ones(2, 3)).sum()
        loss.backward()
        return loss.item()

    assert isinstance(MuonAdamW(model.parameters()).step(closure), float)
