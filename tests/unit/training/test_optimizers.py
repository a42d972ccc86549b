"""The joined optimiser takes the steps of its two parts, and continues from a checkpoint as if nothing had happened."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from manyscope.training.optimizers import MuonAdamW


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
        torch.optim.Muon([matrix], lr=2e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98), fused=True),
    ]
    train(theirs, parts, range(5))
    for own, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=0)


def test_groups_have_rates_of_their_own() -> None:
    ours, theirs = network(), network()
    groups = [{"params": list(ours[:3].parameters()), "lr": 1e-3}, {"params": list(ours[3:].parameters())}]
    train(ours, [MuonAdamW(groups, lr=1e-2, matrix_lr=2e-2, weight_decay=0.1)], range(5))
    matrix = theirs[2].weight
    others = [p for p in theirs[:3].parameters() if p is not matrix]
    parts = [
        torch.optim.Muon([matrix], lr=2e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
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
