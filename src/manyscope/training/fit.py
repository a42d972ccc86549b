"""The default training: Lightning, with a resume that is exact at every step.

Training is a row of equal rounds. Each ends with a check: validation, history, best weights, checkpoint. A signal, or
much time since the last checkpoint, leaves one in the middle of a round. Every random number of a step comes from
(seed, step), and so does the order of the data: a run that continues from a checkpoint takes the same steps as one that
was never interrupted, and a run on several processes those of a run on one, but for rounding and for what a network
draws from torch's global generator, such as dropout, which is seeded for each process.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from manyscope.data.loading import TrainingData
from manyscope.errors import CheckpointError, ManyscopeError
from manyscope.log import logger
from manyscope.nn.across import Share, sharing, synchronised
from manyscope.settings.sections import TrainSettings
from manyscope.tables.whole import whole_file
from manyscope.training import checkpoints
from manyscope.training.batches import RoundSampler, StepBatches, ValidationBatches
from manyscope.training.environment import environment
from manyscope.training.launch import check_world_size, is_first_process, placement
from manyscope.training.means import Means
from manyscope.training.memory import keep_freed_memory
from manyscope.training.optimizers import build_optimizer, rate_factor
from manyscope.training.run import RunPart, TrainingRun, check_finite
from manyscope.training.seeds import repeatable, seed_step
from manyscope.training.stopping import StopRequest, ignore_in_loader, stop_request
from manyscope.training.together import any_process, check_same_step

_LINE_EVERY_S = 10.0


def fit(data: TrainingData, network: nn.Module, train: TrainSettings, run: TrainingRun | RunPart) -> None:
    """Train a network; leaves the weights with the lowest validation loss in `run.best`.

    One without parameters that learn is done at once.

    Raises:
        StoppedError: SIGTERM or SIGUSR1 came; the checkpoint to continue from is written.
        CheckpointError: the checkpoint to continue from is of another model.
        ManyscopeError: the network has no losses, the loss is not finite, or processes are missing.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        if is_first_process():
            _without_learning(data, network, train, run)
        return
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning.utilities._pytree")  # its own use of a renamed class
    repeatable()
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # and used where it is wanted
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    keep_freed_memory()
    where = placement()
    last = run.folder / "last.ckpt"
    trainer = lightning.Trainer(
        accelerator=where.accelerator,
        devices=where.processes_per_node,
        num_nodes=where.nodes,
        strategy="ddp" if where.world_size > 1 else "auto",
        plugins=[environment(where)],
        precision=train.precision,
        max_epochs=rounds(train),
        gradient_clip_val=train.gradient_clip_norm or None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(run.folder),
    )
    check_world_size(trainer.world_size)
    if train.batch_size < where.world_size:
        raise ManyscopeError(
            f"a batch of {train.batch_size} samples for {where.world_size} processes",
            place="train.batch_size",
            allowed=f"{where.world_size} or more",
        )
    begun = checkpoints.load(last) if last.exists() else None
    # Without the best weights, which are written first, a checkpoint is what a kill left of a finished training.
    if begun and math.isfinite(begun["best"]) and not run.best.exists():
        begun = None
    module = Training(synchronised(network) if where.world_size > 1 else network, data, train, run)
    if trainer.is_global_zero:
        run.begin(begun["global_step"] if begun else None)
        logger.info(
            "%d training samples, %d steps in %d rounds, %s parameters, %d process(es) on %s",
            data.train_size, module.steps, module.rounds,
            f"{sum(p.numel() for p in module.network.parameters()):,}", where.world_size, where.accelerator,
        )  # fmt: skip
    if begun and train.patience_checks and begun["checks_since_best"] >= train.patience_checks:
        logger.info("this training had stopped early already")
        return
    try:
        with stop_request() as module.stop:
            trainer.fit(module, ckpt_path=str(last) if begun else None, weights_only=True)
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from error
    except (RuntimeError, KeyError) as error:
        if begun and "state_dict" in str(error):
            raise CheckpointError(f"of another model ({error})", place=last, remedy="delete train/resume/") from error
        raise


def _without_learning(data: TrainingData, network: nn.Module, train: TrainSettings, run: TrainingRun | RunPart) -> None:
    """What a training leaves, with the loss of one batch as its only value."""
    run.begin()
    logger.info("the model has no parameters that learn: there is nothing to train")
    batch = data.train_batch(data.train_schedule(train.batch_size, train.seed).batch(0))
    with torch.no_grad():
        loss = network.eval().losses(batch)["loss"]  # type: ignore[operator]
    run.log(0, 0.0, {"train/loss": float(loss)})
    run.save_best(network)
    run.checked(network, 0)


def rounds(train: TrainSettings) -> int:
    """How many rounds a training has, each with a check at its end."""
    return max(1, round(train.epochs / train.check_every_epochs))


class Training(lightning.LightningModule):
    """Lightning's view of a network that knows its own losses.

    Args:
        network: answers `losses(batch)` with a scalar under "loss"; other scalars are recorded as they are.
    """

    def __init__(
        self, network: nn.Module, data: TrainingData, settings: TrainSettings, run: TrainingRun | RunPart
    ) -> None:
        super().__init__()
        if not callable(getattr(network, "losses", None)):
            raise ManyscopeError(
                f"model {type(network).__name__} has no method losses(batch)",
                place="model.name",
                remedy="see 'bring your own model' in the documentation",
            )
        self.network = network
        self._data, self._settings, self._run = data, settings, run
        self._schedule = data.train_schedule(settings.batch_size, settings.seed)
        self.rounds = rounds(settings)
        self.steps_per_round = max(1, round(settings.epochs * self._schedule.steps_per_epoch / self.rounds))
        self.steps = self.rounds * self.steps_per_round
        self._train, self._validation = Means(), Means()
        self._best, self._checks_since_best, self._steps_done = math.inf, 0, 0
        self._spoke = self._kept = self._began = time.monotonic()
        self._said = ""
        self.stop = StopRequest()

    # ------------------------------------------------------------------------------------------------ batches
    def train_dataloader(self) -> DataLoader[Any]:
        batches = StepBatches(self._data, self._schedule, self.global_rank, self.trainer.world_size)
        workers = self._settings.workers
        return DataLoader(
            batches,
            batch_size=None,
            sampler=RoundSampler(self.steps_per_round, self._steps_done),
            num_workers=workers,
            worker_init_fn=ignore_in_loader,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        batches = ValidationBatches(self._data, self._settings.batch_size, self.global_rank, self.trainer.world_size)
        return DataLoader(batches, batch_size=None)

    # -------------------------------------------------------------------------------------------------- steps
    def on_train_start(self) -> None:
        self.stop.listen()  # Lightning has a handler of its own by now, one that talks to other processes
        check_same_step(self.global_step, self.device, self._run.folder)

    def training_step(self, shared: tuple[Any, int, int], index: int) -> torch.Tensor:
        batch, own, samples = shared
        if hasattr(self.network, "progress"):
            self.network.progress = self.global_step / self.steps  # type: ignore[assignment]
        losses = self._losses(batch, self.global_step, self.global_rank, samples, "train")
        self._train.add(losses, own)
        self._speak()
        # Gradients are averaged over the processes: those with more samples count for more.
        return losses["loss"] * (own * self.trainer.world_size / samples)

    def validation_step(self, shared: tuple[Any, int, int], index: int) -> None:
        batch, own, samples = shared
        process = self.global_rank if own else 0  # without a sample of its own it repeats the first one's
        self._validation.add(self._losses(batch, index, process, samples, "validation"), own)

    def _losses(self, batch: Any, step: int, process: int, samples: int, phase: str) -> dict[str, torch.Tensor]:
        seed = seed_step(self._settings.seed, step, self.global_rank, phase)
        with sharing(Share(process, self.trainer.world_size, samples, seed)):
            return self.network.losses(batch)  # type: ignore[operator]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Without a gradient an optimiser leaves a parameter and its memory of it alone; with one of zero it does not.
        for parameter in getattr(self.network, "idle", tuple)():
            parameter.grad = None

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        if index + 1 == self.steps_per_round:
            return  # the check at its end comes now
        due = time.monotonic() - self._kept > 60 * self._settings.checkpoint_minutes
        if self._any(due or self.stop.signal > 0):
            self._keep()
            self._stop_if_asked()

    def _any(self, answer: bool) -> bool:
        return any_process(answer, self.device)

    def _stop_if_asked(self) -> None:
        if self._any(self.stop.signal > 0):
            raise self.stop.error(self.global_step, self.steps, self._run.place)

    def on_train_epoch_end(self) -> None:
        step = self.global_step
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        trained, validated = self._train.take(self), self._validation.take(self)
        values = {f"train/{k}": v for k, v in trained.items()} | {f"validation/{k}": v for k, v in validated.items()}
        self._said = "".join(f", {k} {v:.4g}" for k, v in values.items() if k.endswith("/loss"))
        check_finite(
            values, step, self._run.place
        )  # on every process: one that stopped alone would leave the others waiting
        judged = validated.get("loss", trained["loss"])
        better = judged < self._best
        self._best, self._checks_since_best = (judged, 0) if better else (self._best, self._checks_since_best + 1)
        if self.trainer.is_global_zero:
            self._run.log(step, step / self._schedule.steps_per_epoch, {**values, "train/lr": rate})
            if better:
                self._run.save_best(self.network)
            self._run.checked(self.network, step)
        patience = self._settings.patience_checks
        if patience and self._checks_since_best >= patience:
            logger.info("no better validation loss in %d checks: training stops early", patience)
            self.trainer.should_stop = True
        self._keep()  # the best weights, on which it counts, are on disk
        if self.current_epoch + 1 < self.rounds and not self.trainer.should_stop:
            self._stop_if_asked()

    # -------------------------------------------------------------------------------------------- checkpoints
    def _keep(self) -> None:
        """Write the checkpoint; every process takes part."""
        last = self._run.folder / "last.ckpt"
        if self.trainer.is_global_zero:
            with whole_file(last) as partial:
                self.trainer.save_checkpoint(partial)
        else:
            self.trainer.save_checkpoint(last)  # takes part and writes nothing
        self._any(False)  # nobody goes on before the file is in its place
        self._kept = time.monotonic()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["best"], checkpoint["checks_since_best"] = self._best, self._checks_since_best
        checkpoint["sums"] = self._train.state(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._best, self._checks_since_best = checkpoint["best"], checkpoint["checks_since_best"]
        self._steps_done = checkpoint["global_step"]
        if self.trainer.is_global_zero:
            self._train.load(checkpoint["sums"])

    def on_train_end(self) -> None:
        if sys.stderr.isatty() and self.trainer.is_global_zero:
            print(file=sys.stderr)

    # -------------------------------------------------------------------------------------------- optimisation
    def configure_optimizers(self) -> Any:
        s = self._settings
        groups = getattr(self.network, "parameter_groups", None)
        optimizer = build_optimizer(groups(s.lr) if groups else self.network.parameters(), s)

        def factor(step: int) -> float:
            return rate_factor(s, step, self.steps)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _speak(self) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if not self.trainer.is_global_zero or now - self._spoke < (1.0 if terminal else _LINE_EVERY_S):
            return
        self._spoke = now
        done = self.global_step + 1
        text = f"train: step {done}/{self.steps}, {done / self.steps:.0%}, {now - self._began:.0f} s{self._said}"
        if terminal:
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
        else:
            logger.info("%s", text)
