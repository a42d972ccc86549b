"""What `train.optimizer` and `train.schedule` may name, and what is wrong with what they do name."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from manyscope.errors import ManyscopeError, SettingsError
from manyscope.registry import Registry, load_object, unknown_names
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
_STEPS = "steps"
_TRIED_STEPS = 100


def training_problems(settings: TrainSettings) -> Iterator[str]:
    """A sentence for each of the two that is unknown or refuses its arguments. Torch is imported only for an import
    path or arguments."""
    unknown = list(unknown_names([("train.optimizer", OPTIMIZERS, settings.optimizer)]))
    yield from unknown
    if not unknown and (":" in settings.optimizer or settings.optimizer_args):
        from torch import nn

        from manyscope.training.optimizers import build_optimizer

        try:
            build_optimizer(nn.Linear(16, 16).parameters(), settings)
        except ManyscopeError as error:
            yield str(error)
    if ":" in settings.schedule:
        try:
            schedule_factors(settings, _TRIED_STEPS)
        except ManyscopeError as error:
            yield str(error)
    elif settings.schedule_args:
        yield f"train.schedule_args: the schedule {settings.schedule!r} takes none; remove them"


def schedule_factors(settings: TrainSettings, steps: int) -> tuple[float, ...]:
    """The shares of the peak learning rate that a schedule by import path gives to steps 0, 1, ..., `steps` - 1.

    The scheduler is run once, ahead of the training, on an optimiser that optimises nothing: the rate of a step is then
    a function of the step alone, whatever was interrupted before. The text "steps" as an argument stands for the
    number of steps.

    Raises:
        ManyscopeError: it is no scheduler that counts steps alone.
        SettingsError: it refuses its arguments, or gives a rate that is no rate.
    """
    return _replayed(settings.schedule, json.dumps(settings.schedule_args, sort_keys=True), settings.lr, max(1, steps))


@lru_cache(maxsize=8)
def _replayed(path: str, arguments: str, lr: float, steps: int) -> tuple[float, ...]:
    import torch

    scheduler_class = load_object(path)
    step = getattr(scheduler_class, "step", None)
    if not isinstance(scheduler_class, type) or not callable(step):
        raise ManyscopeError(
            f"{path!r} is no scheduler",
            place="train.schedule",
            allowed="a class such as 'torch.optim.lr_scheduler:StepLR'",
        )
    asked = [p.name for p in list(inspect.signature(step).parameters.values())[1:] if p.default is p.empty]
    if asked:
        raise ManyscopeError(
            f"{path!r} wants to know {', '.join(asked)} at each step; a resumed training could not repeat that",
            place="train.schedule",
            allowed="cosine, constant, linear, or a scheduler that counts steps alone",
        )
    args: dict[str, Any] = {k: steps if v == _STEPS else v for k, v in json.loads(arguments).items()}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
    try:
        scheduler = scheduler_class(optimizer, **args)
        factors = []
        for _ in range(steps):
            factors.append(optimizer.param_groups[0]["lr"] / lr)
            optimizer.step()
            scheduler.step()
    except Exception as error:  # a user's code, which may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(f"train.schedule_args: {path!r} refuses them: {reason}") from error
    if optimizer.param_groups[0]["momentum"] != 0.9:
        raise SettingsError(
            f"train.schedule_args: {path!r} changes the momentum, too, which is not its own here; "
            "set cycle_momentum to false"
        )
    bad = next((i for i, factor in enumerate(factors) if not 0 <= factor < math.inf), None)
    if bad is not None:
        raise SettingsError(f"train.schedule_args: {path!r} gives step {bad} the learning rate {factors[bad] * lr:g}")
    return tuple(factors)
