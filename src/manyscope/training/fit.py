"""The default training: Lightning, with a resume that is exact at every check.

Training is a row of equal rounds. Each ends with a check: validation, history, best weights, checkpoint. Every
random number of a step comes from (seed, step, process), and the order of the data from (seed, step), so a run that
continues from a checkpoint takes the same steps as one that was never interrupted.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from manyscope.data.loading import Schedule, ScopeData
from manyscope.errors import CheckpointError, ManyscopeError
from manyscope.log import logger
from manyscope.registry import Registry
from manyscope.settings.sections import TrainSettings
from manyscope.tables.whole import whole_file
from manyscope.training import checkpoints
from manyscope.training.launch import check_world_size, placement
from manyscope.training.memory import keep_freed_memory
from manyscope.training.run import TrainingRun, check_finite

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
_LINE_EVERY_S = 10.0
_PHASES = ("weights", "train", "validation")


def fit(data: ScopeData, network: nn.Module, train: TrainSettings, run: TrainingRun) -> None:
    """Train a network; leaves the weights with the lowest validation loss in `run.best`.

    Raises:
        CheckpointError: the checkpoint to continue from is of another model.
        ManyscopeError: the network has no losses, the loss is not finite, or processes are missing.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning.utilities._pytree")  # its own use of a renamed class
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's matrix products are not repeatable
    torch.use_deterministic_algorithms(True, warn_only=True)
    keep_freed_memory()
    module = Training(network, data, train, run)
    where = placement()
    last = run.folder / "last.ckpt"
    trainer = lightning.Trainer(
        accelerator=where.accelerator,
        devices=where.processes_per_node,
        num_nodes=where.nodes,
        strategy="ddp" if where.world_size > 1 else "auto",
        precision=train.precision,
        max_epochs=module.rounds,
        gradient_clip_val=train.gradient_clip_norm or None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(run.folder),
    )
    check_world_size(where.world_size, trainer.world_size)
    if train.batch_size < where.world_size:
        raise ManyscopeError(
            f"a batch of {train.batch_size} samples for {where.world_size} processes",
            place="train.batch_size",
            allowed=f"{where.world_size} or more",
        )
    # Without the best weights, which are written first, a checkpoint is what a kill left of a finished training.
    begun = checkpoints.load(last) if last.exists() and run.best.exists() else None
    if trainer.is_global_zero:
        run.begin(begun["round"] * module.steps_per_round if begun else None)
        logger.info(
            "%d training samples, %d steps in %d rounds, %s parameters, %d process(es) on %s",
            data.train_size, module.steps, module.rounds,
            f"{sum(p.numel() for p in module.network.parameters()):,}", where.world_size, where.accelerator,
        )  # fmt: skip
    if begun and train.patience_checks and begun["checks_since_best"] >= train.patience_checks:
        logger.info("this training had stopped early already")
        return
    try:
        trainer.fit(module, ckpt_path=str(last) if begun else None, weights_only=True)
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from error
    except (RuntimeError, KeyError) as error:
        if begun and "state_dict" in str(error):
            raise CheckpointError(f"of another model ({error})", place=last, remedy="delete train/resume/") from error
        raise


def seed_weights(seed: int) -> None:
    """Seed what initialises a network, before it is built."""
    seed_step(seed, 0, 0, "weights")


def seed_step(seed: int, step: int, process: int, phase: str = "train") -> None:
    """Seed torch's and numpy's global generators for one step of one process in one phase of the training."""
    state = np.random.SeedSequence((seed, step, process, _PHASES.index(phase))).generate_state(2)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002 - models may use numpy's global generator


class Training(lightning.LightningModule):
    """Lightning's view of a network that knows its own losses.

    Args:
        network: answers `losses(batch)` with a scalar under "loss"; other scalars are recorded as they are.
    """

    def __init__(self, network: nn.Module, data: ScopeData, settings: TrainSettings, run: TrainingRun) -> None:
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
        self.rounds = max(1, round(settings.epochs / settings.check_every_epochs))
        self.steps_per_round = max(1, round(settings.epochs * self._schedule.steps_per_epoch / self.rounds))
        self.steps = self.rounds * self.steps_per_round
        self._train, self._validation = _Means(), _Means()
        self._best, self._checks_since_best, self._rounds_done = math.inf, 0, 0
        self._spoke = self._began = time.monotonic()
        self._said = ""

    # ------------------------------------------------------------------------------------------------ batches
    def train_dataloader(self) -> DataLoader[Any]:
        batches = _StepBatches(self._data, self._schedule, self.global_rank, self.trainer.world_size)
        workers = self._settings.workers
        return DataLoader(
            batches,
            batch_size=None,
            sampler=_RoundSampler(self.steps_per_round, self._rounds_done),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        batches = _ValidationBatches(self._data, self._settings.batch_size, self.global_rank, self.trainer.world_size)
        return DataLoader(batches, batch_size=None)

    # -------------------------------------------------------------------------------------------------- steps
    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        seed_step(self._settings.seed, self.global_step, self.global_rank)
        if hasattr(self.network, "progress"):
            self.network.progress = self.global_step / self.steps  # type: ignore[assignment]
        losses = self.network.losses(batch)  # type: ignore[operator]
        self._train.add(losses, 1)
        self._speak()
        return losses["loss"]

    def validation_step(self, weighted: tuple[Any, int], index: int) -> None:
        batch, weight = weighted
        seed_step(self._settings.seed, index, self.global_rank, "validation")
        self._validation.add(self.network.losses(batch), weight)  # type: ignore[operator]

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
        patience = self._settings.patience_checks
        if patience and self._checks_since_best >= patience:
            logger.info("no better validation loss in %d checks: training stops early", patience)
            self.trainer.should_stop = True
        # The best weights are on disk before the checkpoint that counts on them.
        last = self._run.folder / "last.ckpt"
        if self.trainer.is_global_zero:
            with whole_file(last) as partial:
                self.trainer.save_checkpoint(partial)
        else:
            self.trainer.save_checkpoint(last)  # takes part and writes nothing

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["round"] = self.current_epoch + 1
        checkpoint["best"], checkpoint["checks_since_best"] = self._best, self._checks_since_best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._best, self._checks_since_best = checkpoint["best"], checkpoint["checks_since_best"]
        self._rounds_done = checkpoint["round"]

    def on_train_end(self) -> None:
        if sys.stderr.isatty() and self.trainer.is_global_zero:
            print(file=sys.stderr)

    # -------------------------------------------------------------------------------------------- optimisation
    def configure_optimizers(self) -> Any:
        s = self._settings
        arguments = {"lr": s.lr, "weight_decay": s.weight_decay, **s.optimizer_args}
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        try:
            optimizer = OPTIMIZERS.find(s.optimizer)(parameters, **arguments)
        except TypeError as error:
            raise ManyscopeError(
                f"optimizer {s.optimizer!r} refuses its arguments ({error})", place="train.optimizer_args"
            ) from error
        warmup = max(1, round(s.warmup_fraction * self.steps))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min(1.0, (step - warmup) / max(1, self.steps - warmup))
            return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[s.schedule]

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


class _Means:
    """Weighted means of named scalars, over all processes."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._weight = 0.0

    def add(self, values: Mapping[str, torch.Tensor], weight: float) -> None:
        for name, value in values.items():
            part = value.detach().double() * weight
            self._sums[name] = self._sums[name] + part if name in self._sums else part
        self._weight += weight

    def take(self, module: lightning.LightningModule) -> dict[str, float]:
        """The means; afterwards it is empty again."""
        names = sorted(self._sums)
        total = torch.stack([*(self._sums[n] for n in names), torch.tensor(self._weight).double().to(module.device)])
        if module.trainer.world_size > 1:
            total = cast(torch.Tensor, module.all_gather(total)).sum(0)
        self._sums, self._weight = {}, 0.0
        return {n: float(v / total[-1]) for n, v in zip(names, total, strict=False)} if total[-1] else {}


class _StepBatches(Dataset[Any]):
    """Batch of global step i at position i; each process takes its share of the samples."""

    def __init__(self, data: ScopeData, schedule: Schedule, rank: int, world: int) -> None:
        self._data, self._schedule, self._rank, self._world = data, schedule, rank, world

    def __getitem__(self, step: int) -> Any:
        rows = self._schedule.batch(step)
        if len(rows) < self._world:
            raise ManyscopeError(
                f"step {step} has {len(rows)} samples for {self._world} processes",
                place="train.batch_size",
                remedy="raise it, or train on fewer processes",
            )
        return self._data.train_batch(rows[self._rank :: self._world])


class _RoundSampler(Sampler[int]):
    """The steps of the present round.

    Lightning calls `set_epoch` with the number of rounds done, but fetches the first batch of a continued training
    before it does so.
    """

    def __init__(self, steps: int, rounds_done: int) -> None:
        self._steps, self._round = steps, rounds_done

    def set_epoch(self, epoch: int) -> None:
        self._round = epoch

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[int]:
        first = self._round * self._steps
        return iter(range(first, first + self._steps))


class _ValidationBatches(IterableDataset[Any]):
    """Every batch of the validation split with its number of samples, dealt to the processes in turn.

    Each process gets equally many, since each step is one of all processes together: where the last ones would get
    none, they repeat a batch with no weight.
    """

    def __init__(self, data: ScopeData, batch_size: int, rank: int, world: int) -> None:
        self._data, self._batch_size, self._rank, self._world = data, batch_size, rank, world

    def __iter__(self) -> Iterator[Any]:
        # As many samples at once as in a step: the batch size is that of all processes together.
        batches = iter(self._data.validation_batches(-(-self._batch_size // self._world)))
        while dealt := list(itertools.islice(batches, self._world)):
            mine = dealt[self._rank] if self._rank < len(dealt) else dealt[0]
            yield mine, _size(mine) if self._rank < len(dealt) else 0


def _size(batch: Any) -> int:
    """Number of samples in a batch: the length of its ids."""
    return len(batch["sample_id"])
