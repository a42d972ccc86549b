"""micro_sam's trainers, made to survive a kill: exact checkpoints at every step, one history, several processes.

The steps, losses, prompts and the choice of the best weights are those of micro_sam's and torch_em's trainers; here is
what they lack. Their own resume forgets the best value so far and starts its epoch anew, and their checkpoints pickle
the data set.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from micro_sam.training.joint_sam_trainer import JointSamLogger, JointSamTrainer
from torch_em.trainer import DefaultTrainer
from torch_em.trainer.tensorboard_logger import TensorboardLogger

from manyscope.errors import ManyscopeError
from manyscope.log import logger
from manyscope.nn.across import Share, sharing
from manyscope.scopes.cells.model.patches import Patches, batches
from manyscope.training import checkpoints
from manyscope.training.optimizers import rate_factor
from manyscope.training.run import check_finite
from manyscope.training.seeds import seed_step
from manyscope.training.together import any_process

if TYPE_CHECKING:
    from manyscope.scopes.cells.model.networks import CellSegmenter
    from manyscope.scopes.cells.settings import CellsTrain
    from manyscope.training.run import TrainingRun
    from manyscope.training.stopping import StopRequest

_LINE_EVERY_S = 10.0


class Plan:
    """What all of a training follows.

    Attributes:
        rounds: each ends with a check: validation, history, best weights, checkpoint.
        round_steps: optimiser steps of a round.
        rank, processes: of those that train together.
    """

    def __init__(
        self,
        settings: CellsTrain,
        run: TrainingRun,
        model: CellSegmenter,
        stop: StopRequest,
        *,
        steps_per_epoch: float,
        rank: int,
        processes: int,
    ) -> None:
        self.settings, self.run, self.model, self.stop = settings, run, model, stop
        self.steps_per_epoch = steps_per_epoch
        self.rounds = max(1, round(settings.epochs / settings.check_every_epochs))
        self.round_steps = max(1, round(settings.epochs * steps_per_epoch / self.rounds))
        self.rank, self.processes = rank, processes

    @property
    def steps(self) -> int:
        return self.rounds * self.round_steps


class Batches:
    """The batches of a round, as torch_em's trainers take them from a loader.

    Between two batches it does what belongs between two steps: the learning rate, the seed of the next step's random
    numbers, and a checkpoint where one is due.
    """

    def __init__(self, patches: Patches, plan: Plan) -> None:
        self._patches, self._plan = patches, plan
        self.trainer: Continued | None = None

    def __len__(self) -> int:
        return self._plan.round_steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        plan, trainer = self._plan, self.trainer
        assert trainer, "a trainer takes the batches"
        size, begun = plan.settings.batch_size, trainer.iteration
        here = range(begun, (begun // plan.round_steps + 1) * plan.round_steps)
        numbers = [range(step * size + plan.rank, (step + 1) * size, plan.processes) for step in here]
        for step, batch in zip(here, batches(self._patches, numbers, plan.settings.workers), strict=True):
            if step > begun:
                trainer.between_steps()
            trainer.set_rate(step)
            _seed(plan, step, "train")
            yield batch


class ValidationBatches:
    """The same patches at every check, with the same random prompts."""

    def __init__(self, patches: Patches, plan: Plan) -> None:
        self._patches, self._plan = patches, plan

    def __len__(self) -> int:
        return -(-self._plan.settings.validation_patches // self._size)

    @property
    def _size(self) -> int:
        return max(1, self._plan.settings.batch_size // self._plan.processes)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        count = self._plan.settings.validation_patches
        numbers = [range(first, min(first + self._size, count)) for first in range(0, count, self._size)]
        for number, batch in enumerate(batches(self._patches, numbers, workers=0)):
            _seed(self._plan, number, "validation")
            yield batch


class Continued(DefaultTrainer):
    """A trainer of torch_em that ends as planned whenever it is killed and started again.

    Args:
        plan: what it follows.
        others: arguments of the trainer.
    """

    def __init__(self, plan: Plan, **others: Any) -> None:
        super().__init__(train_loader=Batches(others.pop("train"), plan), val_loader=others.pop("validation"), **others)
        self.train_loader.trainer = self
        self.plan = plan
        self.is_data_parallel = False  # micro_sam's prompts ask; gradients are averaged here, not by a wrapper
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.best_metric = math.inf
        self.sums: dict[str, float] = defaultdict(float)
        self.validated: dict[str, float] = {}
        self._kept = self._spoke = self._began = time.monotonic()
        self._said = ""

    # -------------------------------------------------------------------------------------------------- steps
    def _backprop(self, loss: torch.Tensor) -> None:
        loss.backward()
        self._average()
        self._clip()
        self.optimizer.step()

    def _backprop_mixed(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()
        self._average()
        if self.plan.settings.gradient_clip_norm:
            self.scaler.unscale_(self.optimizer)
            self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _clip(self) -> None:
        if self.plan.settings.gradient_clip_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters(), self.plan.settings.gradient_clip_norm)

    def _average(self) -> None:
        """Average the gradients over the processes; a parameter without one on some of them counts as zero there."""
        if self.plan.processes == 1:
            return
        parameters = self._parameters()
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=self.device)
        torch.distributed.all_reduce(has)
        for parameter, count in zip(parameters, has.tolist(), strict=True):
            if not count:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= self.plan.processes

    def set_rate(self, step: int) -> None:
        """Give the optimiser the rate of this step; the schedule `plateau` keeps its own."""
        if self.lr_scheduler is None:
            factor = rate_factor(self.plan.settings, step, self.plan.steps)
            for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * factor

    def between_steps(self) -> None:
        """
        Raises:
            StoppedError: a signal came; the checkpoint is written.
        """
        due = time.monotonic() - self._kept > 60 * self.plan.settings.checkpoint_minutes
        if self._any(due or self.plan.stop.signal > 0):
            self._write("latest", self._epoch - 1, math.inf, self.train_time)  # the last finished round's number
            self._kept = time.monotonic()
            self._stop_if_asked()
        self._speak()

    def _any(self, answer: bool) -> bool:
        return any_process(answer, self.device)

    def _stop_if_asked(self) -> None:
        if self._any(self.plan.stop.signal > 0):
            raise self.plan.stop.error(self.iteration, self.plan.steps, self.plan.run.place)

    def _train_epoch_impl(self, progress: Any, forward_context: Any, backprop: Any) -> float:
        plan = self.plan
        with sharing(Share(plan.rank, plan.processes, plan.settings.batch_size)):  # for batch normalisation over all
            return super()._train_epoch_impl(progress, forward_context, backprop)

    def _validate_impl(self, forward_context: Any) -> float:
        metric = super()._validate_impl(forward_context)
        if self.plan.processes > 1:  # a last digit that differs would let processes disagree on when to stop
            shared = torch.tensor(metric, dtype=torch.float64, device=self.device)
            torch.distributed.broadcast(shared, 0)
            metric = float(shared)
        return metric

    # -------------------------------------------------------------------------------------------- checkpoints
    def _build_init(self) -> dict[str, Any]:
        return {}  # torch_em would pickle the data set here

    def _initialize(self, iterations: int | None, load_from_checkpoint: Any, epochs: int | None = None) -> float:
        super()._initialize(iterations, load_from_checkpoint, epochs)
        return self.best_metric  # torch_em begins with infinity also where it continues

    def save_checkpoint(
        self, name: str, current_metric: float, best_metric: float, train_time: float = 0.0, **others: Any
    ) -> None:
        """Write `<name>.pt` whole, of tensors and plain values; at the end of a round also the history."""
        self.best_metric = best_metric
        if name == "latest":
            self._report(current_metric)
        self._write(name, self._epoch, current_metric, train_time)
        if name == "latest":
            self._kept = time.monotonic()
            done = (self._epoch + 1) * self.plan.round_steps
            patience = self.plan.settings.patience_checks
            early = patience and self._epoch - self._best_epoch >= patience
            if done < self.plan.steps and not early:
                self._stop_if_asked()
        elif self.plan.rank == 0:
            self.plan.run.save_best(self.plan.model)

    def _more(self) -> dict[str, Any]:
        """What a checkpoint holds besides."""
        return {}

    def _write(self, name: str, epoch: int, metric: float, train_time: float) -> None:
        sums = self._shared_sums()
        if self.plan.rank:
            return
        content = {
            "iteration": self._iteration,
            "epoch": epoch,
            "best_epoch": self._best_epoch,
            "best_metric": float(self.best_metric),
            "current_metric": float(metric),
            "model_state": self.model.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "train_time": train_time,
            "timestamp": datetime.now().strftime("%d-%m-%Y (%H:%M:%S)"),
            "sums": sums,
            **self._more(),
        }
        if self.scaler is not None:
            content["scaler_state"] = self.scaler.state_dict()
        if self.lr_scheduler is not None:
            content["scheduler_state"] = self.lr_scheduler.state_dict()
        checkpoints.save(Path(self.checkpoint_folder) / f"{name}.pt", content)

    def load_checkpoint(self, checkpoint: Any = "best") -> dict[str, Any]:
        """Take over what `checkpoint`, a file or what one holds, says."""
        if not isinstance(checkpoint, dict):
            checkpoint = checkpoints.load(Path(checkpoint), self.device)
        found = super().load_checkpoint(checkpoint)
        self.sums = defaultdict(float, {} if self.plan.rank else found["sums"])  # they are of all processes
        return found

    # ------------------------------------------------------------------------------------------------ history
    def note(self, values: Mapping[str, float]) -> None:
        """Add a step's losses to the sums of its round.

        Raises:
            ManyscopeError: one is not finite, here or on another process, which would wait for this one for ever.
        """
        if self._any(not all(map(math.isfinite, values.values()))):
            check_finite(values, self.iteration, self.plan.run.place)
            raise ManyscopeError("the training diverged on another process", place=self.plan.run.place)
        for name, value in values.items():
            self.sums[name] += value
        self.sums["steps"] += 1

    def note_validation(self, values: Mapping[str, float]) -> None:
        """Keep the losses of a check for its report."""
        self.validated = dict(values)

    def _shared_sums(self) -> dict[str, float]:
        """The sums of this round's steps over all processes, each of which takes part."""
        if self.plan.processes == 1 or not self.sums:
            return dict(self.sums)
        names = sorted(self.sums)
        values = torch.tensor([self.sums[name] for name in names], dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))

    def _report(self, metric: float) -> None:
        sums = self._shared_sums()
        steps = sums.pop("steps")
        trained = {name: value / steps for name, value in sums.items()}
        self.sums.clear()
        values = {f"train/{k}": v for k, v in trained.items()} | {
            f"validation/{k}": v for k, v in self.validated.items()
        }
        values |= {"validation/metric": float(metric), "train/lr": self.optimizer.param_groups[0]["lr"]}
        self._said = f", loss {values['train/loss']:.4g}, validation {metric:.4g}"
        check_finite(values, self.iteration, self.plan.run.place)
        if self.plan.rank == 0:
            self.plan.run.log(self.iteration, self.iteration / self.plan.steps_per_epoch, values)

    def _speak(self) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if self.plan.rank or now - self._spoke < (1.0 if terminal else _LINE_EVERY_S):
            return
        self._spoke = now
        steps = self.plan.steps
        text = (
            f"train: step {self.iteration}/{steps}, {self.iteration / steps:.0%}, {now - self._began:.0f} s{self._said}"
        )
        if terminal:
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
        else:
            logger.info("%s", text)


class InstanceTrainer(Continued):
    """Encoder and decoder, as micro_sam's `train_instance_segmentation`."""


class FullTrainer(Continued, JointSamTrainer):
    """The promptable model, and encoder and decoder, in turns in each step, as micro_sam's `train_sam`."""

    def _more(self) -> dict[str, Any]:
        return {"decoder_state": self.plan.model.decoder.state_dict()}


class InstanceHistory(TensorboardLogger):
    """The training's own history, and torch_em's curves and pictures, which the first process draws."""

    def __init__(self, trainer: Any, save_root: str | None, **others: Any) -> None:
        if trainer.plan.rank == 0:
            super().__init__(trainer, save_root, **others)
        self.trainer = trainer

    def log_train(self, step: int, loss: Any, lr: float, *others: Any, **more: Any) -> None:
        self.trainer.note({"loss": float(loss)})
        if self.trainer.plan.rank == 0:
            super().log_train(step, loss, lr, *others, **more)

    def log_validation(self, step: int, metric: float, loss: float, *others: Any) -> None:
        self.trainer.note_validation({"loss": float(loss)})
        if self.trainer.plan.rank == 0:
            super().log_validation(step, metric, loss, *others)


class FullHistory(JointSamLogger):
    """The training's own history, and micro_sam's curves and pictures, which the first process draws."""

    def __init__(self, trainer: Any, save_root: str | None, **others: Any) -> None:
        if trainer.plan.rank == 0:
            super().__init__(trainer, save_root, **others)
        self.trainer = trainer

    def log_train(self, step: int, loss: Any, lr: float, x: Any, y: Any, samples: Any, *losses: Any) -> None:
        self.trainer.note(_named(loss, losses))
        if self.trainer.plan.rank == 0:
            super().log_train(step, loss, lr, x, y, samples, *losses)

    def log_validation(self, step: int, metric: float, loss: float, x: Any, y: Any, samples: Any, *losses: Any) -> None:
        self.trainer.note_validation(_named(loss, losses))
        if self.trainer.plan.rank == 0:
            super().log_validation(step, metric, loss, x, y, samples, *losses)


def _named(loss: Any, losses: tuple[Any, ...]) -> dict[str, float]:
    mask, iou, model_iou, instance = (float(value) for value in losses)
    return {
        "loss": float(loss) + instance,
        "mask_loss": mask,
        "iou_loss": iou,
        "model_iou": model_iou,
        "instance_loss": instance,
    }


def _seed(plan: Plan, step: int, phase: str) -> None:
    """Seed every generator that micro_sam draws prompts from."""
    process = plan.rank if phase == "train" else 0
    shared = seed_step(plan.settings.seed, step, process, phase)
    random.seed(shared + process)
