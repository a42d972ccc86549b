"""Patches for training: micro_sam's own data set, made repeatable."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from manyscope.errors import DataError
from manyscope.training.stopping import ignore_in_loader

if TYPE_CHECKING:
    from manyscope.scopes.cells.settings import CellsTrain

_ATTEMPTS = 2_000  # of finding a patch with enough cells, before the training is given up
_FEWEST = 100  # patches of an epoch, as micro_sam has them
_IN_MEMORY = 2**28  # pixels; larger data sets are read from their files patch by patch
_PHASES = ("train", "validation")


class Patches(Dataset):
    """Patches at random places of random images, each drawn from (seed, phase, number) alone.

    A sample is a pair of tensors: the image, (1, patch_px, patch_px) float32 in 0..255, and the targets: in mode
    `full` the instances, then foreground, distance to the centre and distance to the border, each (patch_px, patch_px).

    Args:
        files: pairs of an image (uint8) and its labels.

    Raises:
        DataError: there is no file.
    """

    def __init__(self, files: Sequence[tuple[Path, Path]], settings: CellsTrain, patch_px: int, phase: str) -> None:
        import tifffile
        import torch_em
        from micro_sam.training import default_sam_dataset

        if not files:
            raise DataError(f"no image of the split {phase!r} has labels", remedy="label some, or change the split")
        images: list[Any] = [str(image) for image, _ in files]
        labels: list[Any] = [str(label) for _, label in files]
        if sum(_pixels(image) for image, _ in files) <= _IN_MEMORY:
            images = [tifffile.imread(path) for path in images]
            labels = [tifffile.imread(path).astype(np.int32) for path in labels]
        sampler = None
        if settings.min_instances:
            sampler = torch_em.data.MinInstanceSampler(
                settings.min_instances,
                min_size=settings.min_instance_px,
                exclude_ids=[0],  # the background
            )
        self._patches = default_sam_dataset(
            raw_paths=images,
            raw_key=None,
            label_paths=labels,
            label_key=None,
            patch_shape=(patch_px, patch_px),
            with_segmentation_decoder=True,
            with_channels=False,
            is_seg_dataset=False,
            train_instance_segmentation_only=settings.mode == "instance",
            sampler=sampler,
            n_samples=1,
            is_train=phase == "train",
            min_size=settings.min_instance_px,
            max_sampling_attempts=_ATTEMPTS,
        )
        self._seed, self._phase, self._settings = settings.seed, phase, settings

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Raises:
            DataError: no patch with enough cells is found.
        """
        sequence = np.random.SeedSequence((self._seed, _PHASES.index(self._phase), number))
        first, second, third = (int(word) for word in sequence.generate_state(3))
        torch.manual_seed(first)
        np.random.seed(second)  # noqa: NPY002 - the generator that the data set draws from
        random.seed(third)
        try:
            image, targets = self._patches[0]
        except RuntimeError as error:
            if "Could not sample" not in str(error):
                raise
            settings = self._settings
            raise DataError(
                f"in {_ATTEMPTS} places of the {self._phase} images no patch has {settings.min_instances} cells"
                f" of {settings.min_instance_px} px",
                place="train.min_instances",
                remedy="lower train.min_instances or train.min_instance_px, or raise model.patch_px",
            ) from error
        return image, targets


def patches_per_epoch(settings: CellsTrain, images: int) -> int:
    """Patches that count as one pass over so many training images."""
    return settings.patches_per_epoch or max(images, _FEWEST)


def batches(
    patches: Patches, numbers: Sequence[Sequence[int]], workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of the patches with these numbers, in this order.

    Raises:
        DataError: no patch with enough cells is found.
    """
    loader: DataLoader[Any] = DataLoader(
        _Answers(patches),
        batch_sampler=[list(some) for some in numbers],
        collate_fn=_together,
        num_workers=workers,
        worker_init_fn=ignore_in_loader,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


class _Answers(Dataset):
    """Patches, or the error in the place of one: raised in another process, it would arrive as a traceback."""

    def __init__(self, patches: Patches) -> None:
        self._patches = patches

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor] | DataError:
        try:
            return self._patches[number]
        except DataError as error:
            return error


def _together(samples: list[Any]) -> Any:
    wrong = [sample for sample in samples if isinstance(sample, DataError)]
    return wrong[0] if wrong else default_collate(samples)


def _pixels(path: Path) -> int:
    import tifffile

    with tifffile.TiffFile(path) as file:
        return int(np.prod(file.series[0].shape))
