"""Patches for training: drawn from their numbers alone, with enough cells, of the right images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manyscope.errors import DataError
from manyscope.scopes.cells.data.images import CellImages
from manyscope.scopes.cells.data.reading import write_tif
from manyscope.scopes.cells.settings import CellsSettings, CellsTrain

pytestmark = pytest.mark.xdist_group("cells")

Settings = Callable[..., CellsSettings]


def patches(files: Sequence[tuple[Path, Path]], train: CellsTrain, phase: str = "train", patch_px: int = 128) -> Any:
    from manyscope.scopes.cells.model.patches import Patches

    return Patches(files, train, patch_px, phase)


@pytest.fixture
def files(small_data: CellImages) -> list[tuple[Path, Path]]:
    return small_data.training_files()


def write(folder: Path, image: np.ndarray, labels: np.ndarray) -> list[tuple[Path, Path]]:
    write_tif(folder / "image.tif", image)
    write_tif(folder / "labels.tif", labels)
    return [(folder / "image.tif", folder / "labels.tif")]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("mode", "channels"), [("instance", 3), ("full", 4)])
def test_what_a_patch_holds(files: list[tuple[Path, Path]], small_settings: Settings, mode: str, channels: int) -> None:
    image, targets = patches(files, small_settings(train={"mode": mode}).train)[0]
    assert image.shape == (1, 128, 128)
    assert image.dtype == torch.float32
    assert image.min() >= 0
    assert image.max() > 1  # in grey values
    assert targets.shape == (channels, 128, 128)
    foreground, centre, border = targets[-3:]
    assert set(foreground.unique().tolist()) == {0.0, 1.0}
    for distance in (centre, border):
        assert 0 <= distance.min() < distance.max() <= 1
    if mode == "full":
        assert torch.equal(targets[0] > 0, foreground > 0)
        assert len(targets[0].unique()) > 2
    assert image[0][foreground > 0].mean() < image[0][foreground == 0].mean()  # dark cells


def test_a_patch_depends_on_seed_phase_and_number_alone(
    files: list[tuple[Path, Path]], small_settings: Settings
) -> None:
    train = small_settings().train
    forward, backward = patches(files, train), patches(files, train)
    first = [forward[number] for number in range(6)]
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    second = [backward[number] for number in reversed(range(6))][::-1]
    assert all(map(same, first, second))
    assert len({float(image.sum()) for image, _ in first}) == 6
    assert not same(first[3], patches(files, train, "validation")[3])
    assert not same(first[3], patches(files, train.model_copy(update={"seed": 1}))[3])


def test_the_number_of_workers_changes_nothing(files: list[tuple[Path, Path]], small_settings: Settings) -> None:
    from manyscope.scopes.cells.model.patches import batches

    drawn = patches(files, small_settings().train)
    numbers = [range(3), range(7, 9), range(3, 5)]
    alone, together = (list(batches(drawn, numbers, workers)) for workers in (0, 2))
    assert [len(image) for image, _ in alone] == [3, 2, 2]
    assert all(map(same, alone, together))
    assert torch.equal(alone[1][0][1], drawn[8][0])


def test_large_data_is_read_from_its_files_with_the_same_patches(
    files: list[tuple[Path, Path]], small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manyscope.scopes.cells.model import patches as module

    train = small_settings().train
    kept = patches(files, train)
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    read = patches(files, train)
    assert all(same(kept[number], read[number]) for number in range(4))


@pytest.mark.parametrize("minimum", [1, 3])
def test_the_fewest_cells_are_honoured(tmp_path: Path, small_settings: Settings, minimum: int) -> None:
    """Seven cells in one corner of an image; background is no cell."""
    labels = np.zeros((400, 400), np.uint16)
    for number in range(7):
        labels[20 + 30 * (number // 3) :, 20 + 30 * (number % 3) :][:12, :12] = number + 1
    image = np.where(labels > 0, 50, 200).astype(np.uint8)
    train = small_settings(train={"mode": "full", "min_instances": minimum, "min_instance_px": 60}).train
    drawn = patches(write(tmp_path, image, labels), train)
    for number in range(25):
        ids, area = drawn[number][1][0].unique(return_counts=True)
        # Those that the border cuts below 60 px are neither counted nor a target.
        assert sum(int(a) >= 60 for i, a in zip(ids, area, strict=True) if i) >= minimum


def test_small_cells_are_no_target(tmp_path: Path, small_settings: Settings) -> None:
    labels = np.zeros((128, 128), np.uint16)
    labels[10:30, 10:30], labels[60:64, 60:64] = 1, 2
    train = small_settings(train={"min_instances": 1, "min_instance_px": 25}).train
    foreground = patches(write(tmp_path, np.full((128, 128), 99, np.uint8), labels), train)[0][1][0]
    assert foreground.sum() == 400


def test_patches_that_cannot_be_found_are_a_clear_error(
    files: list[tuple[Path, Path]], small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manyscope.scopes.cells.model import patches as module

    monkeypatch.setattr(module, "_ATTEMPTS", 20)
    train = small_settings(train={"min_instances": 500}).train
    with pytest.raises(DataError, match=r"in 20 places of the train images no patch has 500 cells of 25 px; lower"):
        patches(files, train)[0]


def test_an_image_smaller_than_a_patch_gets_black_around_it(tmp_path: Path, small_settings: Settings) -> None:
    labels = np.zeros((70, 90), np.uint16)
    labels[10:30, 10:30], labels[40:60, 40:60] = 1, 2
    drawn = patches(write(tmp_path, np.full((70, 90), 77, np.uint8), labels), small_settings().train)
    image, targets = drawn[0]
    assert image.shape == (1, 128, 128)
    assert (image == 77).sum() == 70 * 90
    assert (image == 0).sum() == 128 * 128 - 70 * 90
    assert targets[0].sum() == 800


def test_no_file_is_a_clear_error(small_settings: Settings) -> None:
    with pytest.raises(DataError, match="no image of the split 'validation' has labels"):
        patches([], small_settings().train, "validation")


def test_an_epoch_has_a_hundred_patches_or_one_of_each_image() -> None:
    from manyscope.scopes.cells.model.patches import patches_per_epoch

    assert patches_per_epoch(CellsTrain(), 30) == 100
    assert patches_per_epoch(CellsTrain(), 300) == 300
    assert patches_per_epoch(CellsTrain(patches_per_epoch=7), 300) == 7


def test_training_reads_training_images_and_validation_others(
    small_data: CellImages, small_settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, train: Any
) -> None:
    from manyscope.scopes.cells.model import fit as module

    seen: dict[str, list[tuple[Path, Path]]] = {}
    given = module.Patches

    def noting(files: Any, settings: Any, patch_px: int, phase: str) -> Any:
        seen[phase] = list(files)
        return given(files, settings, patch_px, phase)

    monkeypatch.setattr(module, "Patches", noting)
    train(small_settings(train={"epochs": 1, "patches_per_epoch": 2}), tmp_path)
    split = dict(zip(small_data.samples["sample_id"], small_data.samples["split"], strict=True))
    for phase, pairs in seen.items():
        for image, labels in pairs:
            assert image.name == labels.name
            assert split[image.stem.split("_")[0]] == phase
    assert {phase: len(pairs) for phase, pairs in seen.items()} == {
        phase: (small_data.samples["split"] == phase).sum() for phase in ("train", "validation")
    }
