"""What networks compute over all processes of a training, beside what one process computes of the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn

from forked import SAMPLES, on_processes
from manyscope.nn.across import Share, gather, share_of, sharing, synchronised

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def interleaved(parts: list[torch.Tensor]) -> torch.Tensor:
    whole = torch.empty(SAMPLES, *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def batch(width: int = 4) -> torch.Tensor:
    return torch.randn(SAMPLES, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("processes", [2, 3])
def test_gathered_rows_are_the_batch_and_gradients_find_their_way_back(processes: int, tmp_path: Path) -> None:
    def coupled(rows: torch.Tensor) -> torch.Tensor:
        return (rows @ rows.T).softmax(1).square().sum()

    def work(share: Share) -> dict[str, Any]:
        own = batch()[share.mine].requires_grad_()
        rows = gather(own)
        coupled(rows).backward()
        return {"rows": rows.detach(), "gradient": own.grad}

    whole = batch().requires_grad_()
    coupled(whole).backward()
    answers = on_processes(processes, tmp_path, work)
    assert all(torch.equal(answer["rows"], batch()) for answer in answers)
    # Each process's loss is that of the whole batch, and what trains is their mean.
    gradient = interleaved([answer["gradient"] for answer in answers]) / processes
    torch.testing.assert_close(gradient, whole.grad)


def test_gradients_that_two_gathered_tensors_share_are_counted_once(tmp_path: Path) -> None:
    weights = batch().flip(0)

    def loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return ((first + second) * weights).sum()

    def work(share: Share) -> dict[str, Any]:
        pair = [batch()[share.mine].requires_grad_() for _ in range(2)]
        loss(gather(pair[0]), gather(pair[1])).backward()
        return {"gradients": [part.grad for part in pair]}

    answers = on_processes(2, tmp_path, work)
    for i in range(2):
        torch.testing.assert_close(interleaved([answer["gradients"][i] for answer in answers]) / 2, weights)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_normalisation_is_that_of_the_whole_batch(processes: int, momentum: float | None, tmp_path: Path) -> None:
    def network() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv1d(4, 3, 1), nn.BatchNorm1d(3, momentum=momentum), nn.Tanh())

    def images() -> torch.Tensor:
        return torch.randn(SAMPLES, 4, 5, generator=torch.Generator().manual_seed(2))

    def work(share: Share) -> dict[str, Any]:
        made = synchronised(network())
        out = [made(images()[share.mine]) for _ in range(2)][-1]
        (out.square().sum() * processes).backward()
        for parameter in made.parameters():
            torch.distributed.all_reduce(parameter.grad)
        made.eval()
        return {
            "out": out.detach(),
            "state": dict(made.state_dict()),
            "gradients": [p.grad / processes for p in made.parameters()],
            "judged": made(images()[share.mine]).detach(),
        }

    alone = network()
    out = [alone(images()) for _ in range(2)][-1]
    out.square().sum().backward()
    answers = on_processes(processes, tmp_path, work)
    torch.testing.assert_close(interleaved([a["out"] for a in answers]), out.detach())
    alone.eval()
    torch.testing.assert_close(interleaved([a["judged"] for a in answers]), alone(images()).detach())
    for answer in answers:
        assert answer["state"].keys() == alone.state_dict().keys()
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(answer["state"][name], value)
        for found, parameter in zip(answer["gradients"], alone.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("processes", [2, 3])
def test_a_sample_has_its_random_numbers_whatever_process_holds_it(processes: int) -> None:
    def draw(share: Share) -> torch.Tensor:
        device = torch.device("cpu")
        first, second = share.rand(2, device=device)[share.mine], share.randn(3, device=device)[share.mine]
        return torch.cat([first, second], 1)

    parts = [draw(Share(rank, processes, SAMPLES, seed=9)) for rank in range(processes)]
    assert torch.equal(interleaved(parts), draw(Share(0, 1, SAMPLES, seed=9)))
    assert not torch.equal(interleaved(parts), draw(Share(0, 1, SAMPLES, seed=10)))


def test_outside_of_a_training_a_batch_is_whole_and_random_numbers_are_torchs() -> None:
    rows = torch.randn(3, 2)
    assert gather(rows) is rows
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(share_of(3).rand(device=torch.device("cpu")), expected)


def test_one_process_may_pass_part_of_its_batch_and_the_stream_goes_on() -> None:
    with sharing(Share(0, 1, SAMPLES, seed=6)):
        first = share_of(3).rand(device=torch.device("cpu"))
        second = share_of(2).rand(device=torch.device("cpu"))
    torch.manual_seed(6)
    assert torch.equal(torch.cat([first, second]), torch.rand(5))


def test_another_number_of_samples_than_the_share_is_an_error() -> None:
    with sharing(Share(1, 2, SAMPLES)), pytest.raises(RuntimeError, match="4 samples where this process has 3 of 7"):
        share_of(4)
