"""Optimisers by name, the learning rate of a step, and one optimiser that torch has in parts: Muon with AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from manyscope.errors import ManyscopeError
from manyscope.settings.sections import TrainSettings
from manyscope.training.choices import OPTIMIZERS, schedule_factors

_SMALLEST_SIDE = 16  # below, a matrix is an input or output of few numbers rather than a map between features


def build_optimizer(parameters: Iterable[Tensor | dict[str, Any]], settings: TrainSettings) -> Optimizer:
    """The optimiser that the settings name, over those of the parameters that learn.

    Args:
        parameters: or groups of them, as torch takes them, with rates of their own.

    Raises:
        ManyscopeError: the optimiser is unknown or refuses its arguments.
    """
    arguments = {"lr": settings.lr, "weight_decay": settings.weight_decay, **settings.optimizer_args}
    try:
        learning = [p for p in parameters if isinstance(p, dict) or p.requires_grad]
        return OPTIMIZERS.find(settings.optimizer)(learning, **arguments)
    except (TypeError, ValueError) as error:
        raise ManyscopeError(
            f"optimizer {settings.optimizer!r} refuses its arguments ({error})", place="train.optimizer_args"
        ) from error


def rate_factor(settings: TrainSettings, step: int, steps: int) -> float:
    """The share of the peak learning rate that step `step` of `steps` takes: a linear rise, then the schedule.

    Raises:
        ManyscopeError: a schedule by import path cannot be used, see `schedule_factors`.
    """
    warmup = max(1, round(settings.warmup_fraction * steps))
    if step < warmup:
        return (step + 1) / warmup
    if ":" in settings.schedule:
        factors = schedule_factors(settings, steps - warmup)
        return factors[min(step - warmup, len(factors) - 1)]
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done}.get(settings.schedule, 1.0)


class Muon(torch.optim.Muon):
    """torch's, but for matrices in the processor's memory: there the update is made orthogonal in their own precision.

    torch does it in bfloat16, for which many processors have no arithmetic: on such a one that alone took more than
    half of each step of a small network. Steps are scaled to the size of AdamW's, see `MuonAdamW`.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._take(parameter, parameter.grad, group)
        return loss

    def _take(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(mean, group["momentum"])  # Nesterov's
        update = orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        # The scale at which its root mean square is that of AdamW's steps.
        parameter.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """A matrix with the singular vectors of `matrix`, (rows, columns), and singular values between about 0.7 and 1.2,
    by an iteration of Newton and Schulz with a polynomial of fifth degree (Jordan et al., 2024)."""
    a, b, c = coefficients
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


class MuonAdamW(Optimizer):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) takes the step of a matrix in all its
    directions alike; other parameters take AdamW's.

    The steps of matrices are scaled to the size of AdamW's (Liu et al., 2025, https://arxiv.org/abs/2502.16982), so
    that both have rates of the same order.

    Args:
        params: matrices with both sides of 16 or more go to Muon; groups of them may have an `lr` of their own, by
            which that of their matrices changes, too.
        lr: peak rate of AdamW.
        matrix_lr: peak rate of Muon, by default the same.
        weight_decay: decoupled, of both.
        momentum: of Muon.
        betas: of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Tensor | dict[str, Any]],
        lr: float = 1e-3,
        matrix_lr: float | None = None,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        self._parts: list[Optimizer] = []
        plain: list[Tensor] = []
        groups: list[dict[str, Any]] = []
        for given in params:
            if isinstance(given, dict):
                groups.append({"lr": lr, **given})
            else:
                plain.append(given)
        for group in [{"params": plain, "lr": lr}] * bool(plain) + groups:
            matrices = [p for p in group["params"] if p.ndim == 2 and min(p.shape) >= _SMALLEST_SIDE]
            taken = set(map(id, matrices))
            others = [p for p in group["params"] if id(p) not in taken]
            if matrices:
                rate = group["lr"] * (1 if matrix_lr is None else matrix_lr / lr)
                self._parts.append(Muon(matrices, lr=rate, weight_decay=weight_decay, momentum=momentum))
            if others:
                adamw = torch.optim.AdamW(
                    others, lr=group["lr"], weight_decay=weight_decay, betas=(betas[0], betas[1]), fused=True
                )
                self._parts.append(adamw)
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
