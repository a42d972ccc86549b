"""Means of what a network reports, over the batches and the processes of a training."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as lightning
import torch
import torch.distributed


class Means:
    """Weighted means of named scalars, over all processes."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._weight: float | torch.Tensor = 0.0

    def add(self, values: Mapping[str, torch.Tensor], samples: int) -> None:
        """Add means over samples; a value "weight" says for which share of them they stand, such as those of known
        class."""
        weight = samples * values.get("weight", torch.ones(())).detach().double()
        values = {name: value for name, value in values.items() if name != "weight"}
        for name, value in values.items():
            part = value.detach().double() * weight
            self._sums[name] = self._sums[name] + part if name in self._sums else part
        self._weight += weight

    def take(self, module: lightning.LightningModule) -> dict[str, float]:
        """The means; afterwards it is empty again."""
        sums = self.state(module)
        self._sums, self._weight = {}, 0.0
        weight = sums.pop("", 0.0)
        return {name: value / weight for name, value in sums.items()} if weight else {}

    def state(self, module: lightning.LightningModule) -> dict[str, float]:
        """The weighted sums over all processes by name, and the sum of the weights under an empty name."""
        names = sorted(self._sums)
        total = torch.stack(
            [*(self._sums[n] for n in names), torch.as_tensor(self._weight, dtype=torch.float64, device=module.device)]
        )
        if module.trainer.world_size > 1:
            torch.distributed.all_reduce(total)
        return dict(zip([*names, ""], total.tolist(), strict=True))

    def load(self, sums: Mapping[str, float]) -> None:
        """Continue from sums that `state` gave."""
        self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in sums.items() if name}
        self._weight = sums[""]
