"""An optimiser that torch has in parts: Muon for the matrices of a network, AdamW for all else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

_SMALLEST_SIDE = 16  # below, a matrix is an input or output of few numbers rather than a map between features


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
