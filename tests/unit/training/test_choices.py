"""Optimisers and schedules by name or path: the rate is a function of the step, and nonsense is found beforehand."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from manyscope.errors import ManyscopeError, SettingsError
from manyscope.settings.sections import TrainSettings
from manyscope.training.choices import schedule_factors, training_problems
from manyscope.training.optimizers import rate_factor

SCHEDULERS = "torch.optim.lr_scheduler"


def by_path(name: str, **args: Any) -> TrainSettings:
    return TrainSettings(schedule=f"{SCHEDULERS}:{name}", schedule_args=args, lr=0.02, warmup_fraction=0.1)


def test_the_rate_is_the_schedulers_after_the_warm_up() -> None:
    settings, steps, warmup = by_path("StepLR", step_size=7, gamma=0.5), 50, 5
    found = [rate_factor(settings, step, steps) for step in range(steps)]
    assert found[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    assert found[warmup:] == pytest.approx([0.5 ** (step // 7) for step in range(steps - warmup)])
    assert rate_factor(settings, steps, steps) == found[-1]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("ExponentialLR", {"gamma": 0.99}),
        ("CosineAnnealingWarmRestarts", {"T_0": 9}),
        ("CosineAnnealingLR", {"T_max": "steps", "eta_min": 0.001}),
        ("OneCycleLR", {"max_lr": 0.03, "total_steps": "steps", "cycle_momentum": False}),
        ("PolynomialLR", {"total_iters": "steps", "power": 2}),
    ],
)
def test_torchs_schedulers_are_followed(name: str, args: dict[str, Any]) -> None:
    settings, steps = by_path(name, **args), 40
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.lr, momentum=0.9)
    values = {key: steps if value == "steps" else value for key, value in args.items()}
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **values)
    for factor in schedule_factors(settings, steps):
        assert factor * settings.lr == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=20))
def test_the_rate_of_a_step_does_not_depend_on_what_was_asked_before(asked: list[int]) -> None:
    settings = by_path("CosineAnnealingWarmRestarts", T_0=9)
    straight = [rate_factor(settings, step, 60) for step in range(61)]
    assert [rate_factor(settings, step, 60) for step in asked] == [straight[step] for step in asked]


def test_named_schedules_are_as_they_were() -> None:
    cosine, linear, constant = (
        TrainSettings(schedule=s, warmup_fraction=0.1) for s in ("cosine", "linear", "constant")
    )
    assert rate_factor(cosine, 0, 100) == 0.1
    assert rate_factor(cosine, 55, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rate_factor(linear, 55, 100) == pytest.approx(0.5)
    assert rate_factor(constant, 55, 100) == 1


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("ReduceLROnPlateau", {}, "wants to know metrics at each step; a resumed training could not repeat that"),
        ("StepLR", {}, "refuses them: .*step_size"),
        ("StepLR", {"step_sise": 3}, "refuses them"),
        ("StepLR", {"step_size": 0}, "refuses them: .*modulo by zero"),
        ("StepLr", {"step_size": 3}, "has no 'StepLr'; did you mean 'StepLR'"),
        ("math", {}, "is no scheduler|has no 'math'"),
        (
            "OneCycleLR",
            {"max_lr": 0.1, "total_steps": "steps"},
            "changes the momentum, too.*set cycle_momentum to false",
        ),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 9, "cycle_momentum": False}, "refuses them: Tried to step"),
        ("ExponentialLR", {"gamma": -1.5}, "gives step 1 the learning rate -0.03"),
    ],
)
def test_schedulers_that_cannot_be_used_are_named(name: str, args: dict[str, Any], message: str) -> None:
    settings = by_path(name, **args)
    with pytest.raises(ManyscopeError, match=message):
        rate_factor(settings, 80, 100)
    (problem,) = training_problems(settings)
    assert "train.schedule" in problem or SCHEDULERS in problem
    assert "\n" not in problem


def test_unknown_short_names_are_found_beforehand() -> None:
    with pytest.raises(
        ValidationError, match=r"schedule 'plateau' is unknown; known: cosine, constant, linear, or an imp"
    ):
        TrainSettings(schedule="plateau")
    (problem,) = training_problems(TrainSettings(optimizer="adanw"))
    assert problem.startswith("train.optimizer: optimizer 'adanw' is unknown")
    assert "did you mean 'adamw'" in problem


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ({"optimizer": "torch.optim:Adan"}, "did you mean 'Adam'"),
        ({"optimizer": "sgd", "optimizer_args": {"momentun": 0.9}}, "train.optimizer_args: .*refuses its arguments"),
        ({"optimizer": "nowhere_at_all:Adam"}, "cannot be imported"),
        ({"schedule": "linear", "schedule_args": {"gamma": 1}}, "schedule 'linear' takes none"),
    ],
)
def test_other_nonsense_is_found_beforehand(train: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        raise SettingsError(*training_problems(TrainSettings(**train)))


def test_what_is_right_is_no_problem() -> None:
    good: list[dict[str, Any]] = [
        {},
        {"optimizer": "sgd", "optimizer_args": {"momentum": 0.9}},
        {"optimizer": "torch.optim:NAdam"},
        {"optimizer": "muon"},
        {"schedule": f"{SCHEDULERS}:ExponentialLR", "schedule_args": {"gamma": 0.999}},
    ]
    assert [list(training_problems(TrainSettings(**train))) for train in good] == [[]] * len(good)


def test_the_usual_choices_are_checked_without_torch() -> None:
    code = (
        "import sys; from manyscope.settings.sections import TrainSettings;"
        "from manyscope.training.choices import training_problems;"
        "assert not list(training_problems(TrainSettings(optimizer='muon'))); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
