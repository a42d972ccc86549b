"""Optimisers by name, the learning rate of a step, and one optimiser that torch has in parts: Muon with AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from manyscope.errors import ManyscopeError
from manyscope.registry import Registry
from manyscope.settings.sections import TrainSettings

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw": "torch.optim:AdamW",
        "adam": "torch.optim:Adam",
        "sgd": "torch.optim:SGD",
        "rmsprop": "torch.optim:RMSprop",
        "muon": "manyscope.training.optimizers:MuonAdamW",
    },
)
_SMALLEST_SIDE = 16  # below, a matrix is an input or output of few numbers rather than a map between features


def build_optimizer(parameters: Iterable[Tensor], settings: TrainSettings) -> Optimizer:
    """The optimiser that the settings name, over those of the parameters that learn.

    Raises:
        ManyscopeError: the optimiser is unknown or refuses its arguments.
    """
    arguments = {"lr": settings.lr, "weight_decay": settings.weight_decay, **settings.optimizer_args}
    try:
        return OPTIMIZERS.find(settings.optimizer)([p for p in parameters if p.requires_grad], **arguments)
    except (TypeError, ValueError) as error:
        raise ManyscopeError(
            f"optimizer {settings.optimizer!r} refuses its arguments ({error})", place="train.optimizer_args"
        ) from error


def rate_factor(settings: TrainSettings, step: int, steps: int) -> float:
    """The share of the peak learning rate that step `step` of `steps` takes: a linear rise, then the schedule."""
    warmup = max(1, round(settings.warmup_fraction * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done}.get(settings.schedule, 1.0)


class MuonAdamW(Optimizer):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) takes the step of a matrix in all its
    directions alike; other parameters take AdamW's.

    The steps of matrices are scaled to the size of AdamW's (Liu et al., 2025, https://arxiv.org/abs/2502.16982), so
    that both have rates of the same order.

    Args:
        params: matrices with both sides of 16 or more go to Muon.
        lr: peak rate of AdamW.
        matrix_lr: peak rate of Muon, by default the same.
        weight_decay: decoupled, of both.
        momentum: of Muon.
        betas: of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        matrix_lr: float | None = None,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        params = list(params)
        matrices = [p for p in params if p.ndim == 2 and min(p.shape) >= _SMALLEST_SIDE]
        taken = set(map(id, matrices))
        others = [p for p in params if id(p) not in taken]
        self._parts: list[Optimizer] = []
        if matrices:
            rate = lr if matrix_lr is None else matrix_lr
            self._parts.append(
                torch.optim.Muon(
                    matrices, lr=rate, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
                )
            )
        if others:
            self._parts.append(
                torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]), fused=True)
            )
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Groups and state are held here, where schedules change them and checkpoints look for them.
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": self._parts}
