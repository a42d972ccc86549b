"""The file of a placement: it comes back as it was saved, and a broken one is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from manyscope.errors import DataError
from manyscope.scopes.scenes.placement import PLACEMENT, Placement


def placement() -> Placement:
    rng = np.random.default_rng(0)
    return Placement(
        focal=1.2,
        camera_position=rng.normal(size=(4, 3)),
        camera_rotation=np.tile([1.0, 0, 0, 0], (4, 1)),
        background_position=rng.normal(size=3),
        background_rotation=np.array([1.0, 0, 0, 0]),
        background_size=np.array([2.0, 1.5]),
        background_picture=rng.random((9, 12, 3), np.float32),
        background_seen=rng.random((9, 12)) > 0.5,
        object_position=rng.normal(size=(2, 4, 3)),
        object_rotation=np.tile([1.0, 0, 0, 0], (2, 4, 1)),
        object_size=np.ones((2, 2)),
        object_reference=np.array([0, 3]),
        object_pictures=[rng.random((5, 4, 4), np.float32), rng.random((3, 7, 4), np.float32)],
    )


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    placed = placement()
    placed.save(tmp_path)
    found = Placement.load(tmp_path)
    for field in fields(Placement):
        pairs = (getattr(placed, field.name), getattr(found, field.name))
        if field.name == "object_pictures":
            assert all(np.array_equal(a, b) for a, b in zip(*pairs, strict=True))
        else:
            assert np.array_equal(*pairs)


def refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"placement\.npz: not a readable placement .*run the stage 'preprocess' again"):
        Placement.load(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_one_that_is_cut_off_is_named(tmp_path: Path, share: float) -> None:
    placement().save(tmp_path)
    whole = (tmp_path / PLACEMENT).read_bytes()
    (tmp_path / PLACEMENT).write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path)


def test_one_with_changed_contents_is_named(tmp_path: Path) -> None:
    placement().save(tmp_path)
    content = bytearray((tmp_path / PLACEMENT).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    (tmp_path / PLACEMENT).write_bytes(content)
    refused(tmp_path)


def test_another_file_in_its_place_is_named(tmp_path: Path) -> None:
    refused(tmp_path)
    with (tmp_path / PLACEMENT).open("wb") as file:
        np.save(file, np.ones(3))
    refused(tmp_path)
    np.savez(tmp_path / PLACEMENT, focal=1.0)
    refused(tmp_path)
