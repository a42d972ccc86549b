"""Masks on disk: what was written comes back, in either form, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manyscope.errors import DataError
from manyscope.scopes.cells.masks import read_masks, write_masks

Form = Literal["tif", "ome-zarr"]
FORMS: tuple[Form, ...] = ("tif", "ome-zarr")
MASKS = np.kron(np.arange(6, dtype=np.uint32).reshape(2, 3), np.ones((4, 5), np.uint32))
IMAGE = np.arange(MASKS.size, dtype=np.uint8).reshape(MASKS.shape)


@pytest.mark.parametrize("form", FORMS)
@given(
    masks=hnp.arrays(np.uint32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 70_000))
)
@settings(max_examples=20, deadline=None)
def test_what_was_written_is_read(form: Form, masks: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("masks")
    write_masks(folder, "a.b", masks, form)
    read = read_masks(folder, "a.b")
    assert read.dtype == np.uint32
    assert np.array_equal(read, masks)


@pytest.mark.parametrize(("largest", "kind"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_labels_take_two_bytes_while_they_fit(tmp_path: Path, largest: int, kind: type) -> None:
    masks = MASKS.copy()
    masks[0, 0] = largest
    write_masks(tmp_path, "a", masks, "tif")
    assert tifffile.imread(tmp_path / "a.tif").dtype == kind


def test_the_same_masks_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_masks(tmp_path, name, MASKS, "tif")
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


@pytest.mark.parametrize(("before", "after"), [FORMS, FORMS[::-1]])
def test_a_change_of_the_form_leaves_one_file(tmp_path: Path, before: Form, after: Form) -> None:
    write_masks(tmp_path, "a", MASKS, before)
    write_masks(tmp_path, "a", MASKS[::-1], after)
    assert len(list(tmp_path.iterdir())) == 1
    assert np.array_equal(read_masks(tmp_path, "a"), MASKS[::-1])


def test_a_store_is_what_ngff_0_4_asks_for(tmp_path: Path) -> None:
    import zarr

    write_masks(tmp_path, "a", MASKS, "ome-zarr", IMAGE)
    root = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert root.metadata.zarr_format == 2
    assert root["labels"].attrs["labels"] == ["cells"]
    image_label = root["labels/cells"].attrs["image-label"]
    assert image_label == {"version": "0.4", "source": {"image": "../../"}}
    for group, pixels in ((root, IMAGE), (root["labels/cells"], MASKS)):
        [scales] = group.attrs["multiscales"]
        assert scales["version"] == "0.4"
        assert [axis["name"] for axis in scales["axes"]] == ["y", "x"]
        [dataset] = scales["datasets"]
        assert dataset["coordinateTransformations"] == [{"type": "scale", "scale": [1.0, 1.0]}]
        assert np.array_equal(group[dataset["path"]][:], pixels)
    stored = json.loads((tmp_path / "a.zarr/labels/cells/0/.zarray").read_text())
    assert (stored["dimension_separator"], stored["zarr_format"]) == ("/", 2)
    assert np.issubdtype(np.dtype(stored["dtype"]), np.integer)


def test_a_store_without_an_image_names_none(tmp_path: Path) -> None:
    import zarr

    write_masks(tmp_path, "a", MASKS, "ome-zarr")
    root = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert set(root) == {"labels"}
    assert "multiscales" not in root.attrs
    assert "source" not in root["labels/cells"].attrs["image-label"]


@pytest.mark.parametrize("form", FORMS)
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr

    write_masks(tmp_path, "a", MASKS, form)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the power went")

    monkeypatch.setattr(tifffile, "imwrite", fails)
    monkeypatch.setattr(zarr, "create_group", fails)
    with pytest.raises(RuntimeError):
        write_masks(tmp_path, "a", MASKS[::-1], form)
    assert len(list(tmp_path.iterdir())) == 1
    assert np.array_equal(read_masks(tmp_path, "a"), MASKS)


def test_missing_masks_name_their_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tif: the masks of this sample are missing; run the stage infer again"):
        read_masks(tmp_path, "a")


def test_broken_masks_name_their_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0 no image")
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "c.tif").write_text("no image")
    tifffile.imwrite(tmp_path / "d.tif", np.ones((3, 4, 5), np.uint16))
    for name in "abcd":
        with pytest.raises(DataError, match="run the stage infer again"):
            read_masks(tmp_path, name)
