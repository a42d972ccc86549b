"""The training of the scope: micro_sam's trainers, then the export, proven, and the thresholds."""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed

from manyscope.errors import CheckpointError, ManyscopeError
from manyscope.log import logger
from manyscope.nn.across import synchronised
from manyscope.scopes.cells.model import networks
from manyscope.scopes.cells.model.export import export, proven
from manyscope.scopes.cells.model.patches import Patches, patches_per_epoch
from manyscope.scopes.cells.model.pretrained import decoder_weights, load_pretrained
from manyscope.scopes.cells.model.thresholds import choose_thresholds
from manyscope.scopes.cells.model.tiling import Tiling
from manyscope.scopes.cells.model.trainer import (
    FullHistory,
    FullTrainer,
    InstanceHistory,
    InstanceTrainer,
    Plan,
    ValidationBatches,
)
from manyscope.training import checkpoints
from manyscope.training.environment import environment
from manyscope.training.launch import check_world_size, placement
from manyscope.training.memory import keep_freed_memory
from manyscope.training.optimizers import build_optimizer
from manyscope.training.seeds import repeatable, seed_weights
from manyscope.training.stopping import stop_request
from manyscope.training.together import check_same_step

if TYPE_CHECKING:
    from manyscope.scopes.cells.data.images import CellImages
    from manyscope.scopes.cells.settings import CellsSettings
    from manyscope.training.run import TrainingRun

_IMAGES_EVERY = 200  # steps between two pictures in the logs


def fit(settings: CellsSettings, data: CellImages, run: TrainingRun) -> None:
    """Train, leave the best weights with their thresholds in `run.best`, and micro_sam's files in `run.export`.

    Raises:
        StoppedError: SIGTERM or SIGUSR1 came; the checkpoint to continue from is written.
        CheckpointError: weights to start or continue from are of another model, or the export cannot be used.
        DataError: no training or validation image has labels, or no patch has enough cells.
        ManyscopeError: the model cannot be built, the loss is not finite, or processes are missing.
    """
    keep_freed_memory()
    if torch.cuda.is_available():  # a CPU repeats these networks' digits by itself, and in less time
        repeatable()
    rank, processes = _join()
    seed_weights(settings.train.seed)
    model = networks.build(settings.model, decoder_weights(settings.model, run.start))
    Tiling.of(settings.model, model.image_size)  # what the thresholds are chosen with shall not fail after the training
    if not run.start:
        load_pretrained(model, settings.model)
    _start(settings, model, run)
    networks.freeze(model, settings.train.freeze)
    _train(settings, data, model, run, rank, processes)
    if processes > 1:  # only after success: after an error the others may never come to it
        torch.distributed.destroy_process_group()
    if rank:
        return
    checkpoints.load_weights(run.best, model, settings.scope, settings.model.model_dump(mode="json"))
    choose_thresholds(model, settings, data)
    run.save_best(model)
    name = run.experiment
    exported = run.export / f"{name}.pt"
    export(model, exported)
    masks = proven(exported, settings.model, data.image(int(data.rows("validation")[0])))
    logger.info("micro_sam loads the exported model and finds %d cells in one image", masks.max())
    for folder in ("checkpoints", "logs"):
        if (run.folder / folder).exists():
            shutil.copytree(run.folder / folder, run.export / folder, dirs_exist_ok=True)


def _start(settings: CellsSettings, model: networks.CellSegmenter, run: TrainingRun) -> None:
    """Add the parameter-efficient updates, before or after the weights to start from: these may be of a plain model."""
    peft = settings.model.peft
    plain = peft and run.start and not checkpoints.load(run.start).get("model", {}).get("peft")
    if plain:
        run.load_start(model)
    if peft:
        networks.add_peft(model, peft)
    if not plain:
        run.load_start(model)


def _join() -> tuple[int, int]:
    """Join the processes that train together. Returns this one's number, and how many there are."""
    where = placement()
    processes = where.world_size if where.launched else 1
    if not where.launched and where.world_size > 1:
        logger.info("one of %d GPUs is used; start with srun to train on all", where.world_size)
    check_world_size(processes)
    if processes == 1:
        return 0, 1
    cluster = environment(where)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = cluster.main_address, str(cluster.main_port)
    if where.accelerator == "gpu":
        torch.cuda.set_device(cluster.local_rank())
    backend = "nccl" if where.accelerator == "gpu" else "gloo"
    torch.distributed.init_process_group(backend, rank=cluster.global_rank(), world_size=processes)
    return cluster.global_rank(), processes


def _train(
    settings: CellsSettings,
    data: CellImages,
    model: networks.CellSegmenter,
    run: TrainingRun,
    rank: int,
    processes: int,
) -> None:
    train = settings.train
    if train.batch_size % processes:
        raise ManyscopeError(
            f"a batch of {train.batch_size} patches for {processes} processes",
            place="train.batch_size",
            allowed=f"a multiple of {processes}",
        )
    files = data.training_files()
    labelled = [(data.image_file(row), data.label_file(row)) for row in data.labelled("validation")]
    patches = Patches(files, train, settings.model.patch_px, "train")
    validation = Patches(labelled, train, settings.model.patch_px, "validation")
    for some in (patches, validation):  # which fails where there are no patches with enough cells
        some[0]
    steps_per_epoch = patches_per_epoch(train, len(files)) / train.batch_size
    last = run.folder / "checkpoints" / run.experiment / "latest.pt"
    begun = checkpoints.load(last) if last.exists() else None
    # Without the best weights, which are written first, a checkpoint is what a kill left of a finished training.
    if begun and math.isfinite(begun["best_metric"]) and not run.best.exists():
        begun = None
    with stop_request() as stop:
        plan = Plan(train, run, model, stop, steps_per_epoch=steps_per_epoch, rank=rank, processes=processes)
        check_same_step(begun["iteration"] if begun else 0, _device(), run.folder)
        if rank == 0:
            run.begin(begun["iteration"] if begun else None)
            logger.info(
                "%d training images, %d steps in %d rounds, %s parameters of which %s learn, %d process(es) on %s",
                len(files), plan.steps, plan.rounds, f"{sum(p.numel() for p in model.parameters()):,}",
                f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}", processes, _device(),
            )  # fmt: skip
        done = begun["epoch"] + 1 if begun else 0
        early = begun and train.patience_checks and done - 1 - begun["best_epoch"] >= train.patience_checks
        if done >= plan.rounds or early:
            logger.info("this training had ended already")
            return
        trainer = _trainer(plan, model, patches, validation, run)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                trainer.fit(epochs=plan.rounds - done, load_from_checkpoint=begun, progress=_Silent())
            except (RuntimeError, KeyError) as error:
                if begun and "state_dict" in str(error):
                    raise CheckpointError(
                        f"of another model ({error})", place=last, remedy="delete train/resume/"
                    ) from error
                raise


def _trainer(
    plan: Plan, model: networks.CellSegmenter, patches: Patches, validation: Patches, run: TrainingRun
) -> InstanceTrainer | FullTrainer:
    import torch_em
    from micro_sam.training.trainable_sam import TrainableSAM
    from micro_sam.training.util import ConvertToSamInputs

    train, device = plan.settings, _device()
    model.to(device)
    if plan.processes > 1:
        synchronised(model.unetr)
    optimizer = build_optimizer(model.parameters(), train)
    scheduler = None
    if train.schedule == "plateau":
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=train.plateau_factor, patience=train.plateau_checks
        )
    distances = torch_em.loss.DiceBasedDistanceLoss(mask_distances_in_bg=True)
    common: dict[str, Any] = {
        "name": run.experiment,
        "save_root": str(run.folder),
        "train": patches,
        "validation": ValidationBatches(validation, plan),
        "optimizer": optimizer,
        "lr_scheduler": scheduler,
        "device": device,
        "mixed_precision": train.precision != "32-true",
        "mixed_precision_dtype": {"16-mixed": "float16", "bf16-mixed": "bfloat16"}.get(train.precision),
        "early_stopping": train.patience_checks - 1 if train.patience_checks else None,  # it stops after one more
        "log_image_interval": _IMAGES_EVERY,
        "compile_model": False,
    }
    if train.mode == "instance":
        return InstanceTrainer(
            plan, model=model.unetr, loss=distances, metric=distances, logger=InstanceHistory, **common
        )
    trainable = TrainableSAM(model.sam)
    return FullTrainer(
        plan,
        model=trainable,
        unetr=model.unetr,
        instance_loss=distances,
        instance_metric=distances,
        convert_inputs=ConvertToSamInputs(transform=trainable.transform, box_distortion_factor=0.025),
        n_objects_per_batch=train.objects_per_image,
        n_sub_iteration=train.prompt_steps,
        mask_prob=train.mask_probability,
        logger=FullHistory,
        **common,
    )


def _device() -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


class _Silent:
    """Progress as torch_em's trainers report it; ours is that of every other training."""

    total = 0

    def update(self, steps: int) -> None:
        pass

    def set_description(self, text: str, **others: Any) -> None:
        pass
