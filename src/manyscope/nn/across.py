"""What a network needs so that a training on several processes is the training of one, only faster.

The processes share each batch: process r of w has the samples r, r + w, r + 2w, … of it. A loss that is a mean over
samples needs nothing more. Random numbers, normalisation over a batch, and losses that compare the samples of a batch
do: here are random numbers that belong to a sample whatever process holds it, batch normalisation over all processes,
and the samples of all processes together. With one process each of them is what torch does by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn


@dataclass
class Share:
    """This process's part of one batch.

    Attributes:
        process: number of this process, from 0.
        processes: how many share the batch.
        samples: of all processes together.
        seed: of the random numbers of this batch, the same on every process; None is torch's global generator.
        generators: those in use, one for each device.
    """

    process: int
    processes: int
    samples: int
    seed: int | None = None
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict)

    @property
    def mine(self) -> slice:
        """This process's samples among those of all."""
        return slice(self.process, None, self.processes)

    def generator(self, device: torch.device) -> torch.Generator | None:
        """The same stream of random numbers on every process; as long as all draw the same from it, in one order."""
        if self.seed is None:
            return None
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]

    def rand(self, *shape: int, device: torch.device) -> Tensor:
        """Uniform numbers from 0 to 1 for every sample, (samples, *shape)."""
        return torch.rand(self.samples, *shape, device=device, generator=self.generator(device))

    def randn(self, *shape: int, device: torch.device) -> Tensor:
        """Normal numbers for every sample, (samples, *shape)."""
        return torch.randn(self.samples, *shape, device=device, generator=self.generator(device))


_present: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def sharing(share: Share) -> Iterator[None]:
    """Losses inside the block are of this share of a batch."""
    token = _present.set(share)
    try:
        yield
    finally:
        _present.reset(token)


def share_of(samples: int) -> Share:
    """The share that a batch of so many samples is; the whole batch outside of a training.

    Raises:
        RuntimeError: the batch is not the share that this process was given.
    """
    share = _present.get()
    if share is None:
        return Share(0, 1, samples)
    if share.processes == 1:
        return replace(share, samples=samples)
    own = len(range(share.samples)[share.mine])
    if samples != own:
        raise RuntimeError(f"{samples} samples where this process has {own} of {share.samples}")
    return share


def gather(own: Tensor) -> Tensor:
    """The rows of all processes, (all samples, …), from this one's, (own samples, …), in the order of the batch.

    Gradients flow back to the process that a row came from.
    """
    share = share_of(len(own))
    return own if share.processes == 1 else _Gather.apply(own, share)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, share: Share) -> Tensor:
        ctx.share = share
        most = -(-share.samples // share.processes)
        padded = own.new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(share.processes)]
        torch.distributed.all_gather(parts, padded)
        return torch.stack(parts, 1).flatten(0, 1)[: share.samples]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Every process's loss depends on a row: its gradient is the sum of what they all say.
        return _added(gradients[0])[ctx.share.mine], None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _added(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _added(gradients[0])


def _added(own: Tensor) -> Tensor:
    """The sum over all processes; a copy, because other nodes of the graph may hold the same tensor."""
    total = own.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total


def synchronised(network: nn.Module) -> nn.Module:
    """The network with batch normalisation over the samples of all processes; its state has the same names.

    torch's own `SyncBatchNorm` does the same on GPUs alone.
    """
    if isinstance(network, nn.modules.batchnorm._BatchNorm):
        return _BatchNormOfAll(network)
    for name, child in network.named_children():
        setattr(network, name, synchronised(child))
    return network


class _BatchNormOfAll(nn.modules.batchnorm._BatchNorm):
    def __init__(self, alone: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__(alone.num_features, alone.eps, alone.momentum, alone.affine, alone.track_running_stats)
        self.weight, self.bias = alone.weight, alone.bias
        self.running_mean, self.running_var = alone.running_mean, alone.running_var
        self.num_batches_tracked = alone.num_batches_tracked
        self.train(alone.training)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        pass  # the layer that this one stands for has seen to it

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        share = _present.get()
        if not self.training or share is None or share.processes == 1:
            return super().forward(input)
        over = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input if input.dtype == torch.float64 else input.float()
        count = x.new_tensor([x.numel() / x.shape[1]])
        total = _Sum.apply(torch.cat([x.sum(over), count]))
        count = total[-1].detach()
        mean = total[:-1] / count
        variance = _Sum.apply((x - mean.view(shape)).square().sum(over)) / count
        if self.running_mean is not None and self.running_var is not None:
            self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        normal = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        pace = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), pace)
        self.running_var.lerp_(variance.to(self.running_var.dtype), pace)
