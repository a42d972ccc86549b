"""Images and labels as files: each bad input has an error of its own that names the file and the remedy."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from manyscope.errors import DataError
from manyscope.scopes.cells.data.reading import (
    has_array,
    read_image,
    read_labels,
    read_note,
    read_pixels,
    stem,
    write_tif,
)

Picture = tuple[np.ndarray, np.ndarray]


def saved(folder: Path, pixels: np.ndarray, name: str = "a.tif", **more: Any) -> Path:
    tifffile.imwrite(folder / name, pixels, **more)
    return folder / name


def store(path: Path, image: np.ndarray, labels: np.ndarray | None = None, axes: Any = None, version: int = 3) -> Path:
    """An OME-Zarr in the layout of NGFF 0.4 (Zarr 2) or 0.5 (Zarr 3)."""
    root = zarr.open_group(path, mode="w", zarr_format=2 if version == 2 else 3)
    root.create_array("0", data=image)
    if axes is not None:
        described = {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
        root.attrs.update(described if version == 2 else {"ome": described})
    if labels is not None:
        root.create_group("labels/cells").create_array("0", data=labels)
    return path


# ------------------------------------------------------------------------------------------------- what can be read
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4", "f4", "f8", "i8"])
def test_grey_images_of_any_real_type_are_read_as_they_are(tmp_path: Path, picture: Picture, dtype: str) -> None:
    image = (picture[0] // 100).astype(dtype)
    read = read_image(saved(tmp_path, image))
    assert read.dtype == image.dtype
    np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
def test_labels_of_any_integer_type_are_read(tmp_path: Path, picture: Picture, dtype: str) -> None:
    labels = picture[1].astype(dtype)
    read = read_labels(saved(tmp_path, labels), "", labels.shape)
    assert read.ids.dtype == np.uint32
    np.testing.assert_array_equal(read.ids, labels)
    assert (read.count, read.renumbered, read.divided) == (2, False, 0)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_png(tmp_path: Path, picture: Picture, dtype: str) -> None:
    image = (picture[0] // 50).astype(dtype)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)


def test_labels_may_be_numbers_in_a_palette(tmp_path: Path, picture: Picture) -> None:
    coloured = Image.fromarray(picture[1].astype(np.uint8), mode="P")
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    coloured.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", "", None).ids, picture[1])
    with pytest.raises(DataError, match="3 channels"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", [[{"name": "c", "type": "channel"}, {"name": "y"}, {"name": "x"}], ["c", "y", "x"]])
def test_ome_zarr_with_channels(tmp_path: Path, picture: Picture, version: int, axes: list[Any]) -> None:
    image, labels = picture
    path = store(tmp_path / "a.ome.zarr", np.stack([image + 1, image]), labels, axes, version)
    np.testing.assert_array_equal(read_image(path, "0", 1), image)
    np.testing.assert_array_equal(read_labels(path, "labels/cells/0", image.shape).ids, labels)
    assert has_array(path, "labels/cells/0")
    assert not has_array(path, "labels/cells")
    with pytest.raises(DataError, match=r"2 channels .*set download\.folder\.channel to the one to take, 0 to 1"):
        read_image(path)


def test_ome_zarr_of_the_first_versions_has_five_axes(tmp_path: Path, picture: Picture) -> None:
    path = store(tmp_path / "a.zarr", picture[0][None, None, None])
    np.testing.assert_array_equal(read_image(path), picture[0])
    assert read_pixels(path, "0")[1] == "TCZYX"


def test_axes_of_a_single_step_do_not_count(tmp_path: Path, picture: Picture) -> None:
    image = picture[0]
    np.testing.assert_array_equal(read_image(saved(tmp_path, image[None, None])), image)
    np.testing.assert_array_equal(read_labels(saved(tmp_path, picture[1][None]), "", image.shape).ids, picture[1])
    row = read_image(saved(tmp_path, image[:1]))
    np.testing.assert_array_equal(row, image[:1])


@pytest.mark.parametrize("axes", ["YXS", "CYX", "QYX"])
def test_a_named_channel_is_taken(tmp_path: Path, picture: Picture, axes: str) -> None:
    channels = [picture[0] + i for i in range(3)]
    pixels = np.stack(channels, axis=axes.index(axes.strip("YX")))
    path = saved(tmp_path, pixels, photometric="minisblack", metadata={"axes": axes})
    for i, channel in enumerate(channels):
        np.testing.assert_array_equal(read_image(path, channel=i), channel)
    with pytest.raises(DataError, match=r"no channel 3 .* 3 channels; allowed: download\.folder\.channel from 0 to 2"):
        read_image(path, channel=3)


def test_a_grey_image_needs_no_channel(tmp_path: Path, picture: Picture) -> None:
    np.testing.assert_array_equal(read_image(saved(tmp_path, picture[0]), channel=2), picture[0])


# ------------------------------------------------------------------------------------------------------ bad images
def test_rgb_is_an_error(tmp_path: Path, picture: Picture) -> None:
    rgb = np.stack([picture[0] // 256] * 3, -1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    for path in (saved(tmp_path, rgb, photometric="rgb"), tmp_path / "a.png"):
        with pytest.raises(DataError, match=r"a\.\w+: the image has 3 channels .*allowed: a grey image.*channel"):
            read_image(path)


@pytest.mark.parametrize("channel", [None, 0])
def test_a_stack_is_an_error(tmp_path: Path, picture: Picture, channel: int | None) -> None:
    planes = np.stack([picture[0]] * 5)
    path = saved(tmp_path, planes, metadata={"axes": "ZYX"}, photometric="minisblack")
    with pytest.raises(
        DataError, match=r"a\.tif: this is a stack with the axes ZYX and shape \(5, 40, 60\).*each plane"
    ):
        read_image(path, channel=channel)
    with pytest.raises(DataError, match=r"axes TCYX"):
        read_image(saved(tmp_path, planes[:4].reshape(2, 2, 40, 60), metadata={"axes": "TCYX"}), channel=channel)


def test_a_stack_that_does_not_say_so_is_one_unless_a_channel_is_named(tmp_path: Path, picture: Picture) -> None:
    path = saved(tmp_path, np.stack([picture[0]] * 5))
    with pytest.raises(DataError, match=r"a stack .*if the planes are channels, set download\.folder\.channel"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, channel=4), picture[0])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_corrupt_tif_is_an_error(tmp_path: Path, picture: Picture, compression: str | None, share: float) -> None:
    path = saved(tmp_path, picture[0], compression=compression)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"a\.tif: the image cannot be decoded \(.*\); it may be cut short"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.zarr"])
def test_what_is_no_image_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir() if name == "a.zarr" else path.write_bytes(b"no image at all")
    with pytest.raises(DataError, match="the image cannot be decoded"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.zarr"])
def test_a_missing_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"a\.\w+: the file is missing"):
        read_image(tmp_path / name)


def test_another_format_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jpg: the format is unknown; allowed: \.tif, \.tiff, \.png, \.zarr"):
        read_image(tmp_path / "a.jpg")


def test_a_missing_array_is_an_error_that_names_the_others(tmp_path: Path, picture: Picture) -> None:
    path = store(tmp_path / "a.zarr", *picture)
    with pytest.raises(DataError, match=r"no array '1'; allowed: 0, labels/cells/0; mend download\.folder\.image_key"):
        read_image(path, "1")


def test_several_images_in_a_file_are_an_error(tmp_path: Path, picture: Picture) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(picture[0])
        file.write(picture[0][:20])
    with pytest.raises(DataError, match="the file holds 2 images of different kinds; allowed: one image"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("pixel", "count"), [(np.nan, 4), (np.inf, 4), (-np.inf, 4)])
def test_pixels_that_are_not_finite_are_an_error(tmp_path: Path, picture: Picture, pixel: float, count: int) -> None:
    image = picture[0].astype(np.float32)
    image[0, :count] = pixel
    with pytest.raises(DataError, match=rf"a\.tif: {count} pixels are not finite.*replace them"):
        read_image(saved(tmp_path, image))


def test_a_bool_image_is_an_error(tmp_path: Path, picture: Picture) -> None:
    with pytest.raises(DataError, match=r"a\.tif: the image is a mask of true and false; allowed: grey values"):
        read_image(saved(tmp_path, picture[1] > 0))


def test_a_complex_image_is_an_error(tmp_path: Path, picture: Picture) -> None:
    with pytest.raises(DataError, match="the image is of type complex64"):
        read_image(saved(tmp_path, picture[0].astype(np.complex64)))


def test_an_empty_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tif: the image is empty: every pixel is 0; leave it out"):
        read_image(saved(tmp_path, np.zeros((8, 9), np.uint16)))


@pytest.mark.parametrize("padded", [False, True])
def test_a_constant_image_is_an_error(tmp_path: Path, padded: bool) -> None:
    image = np.full((8, 9), 7, np.uint16)
    image[:, : 3 * padded] = 0
    with pytest.raises(DataError, match=r"a\.tif: the image is constant: .* the value 7"):
        read_image(saved(tmp_path, image))


# ------------------------------------------------------------------------------------------------------ bad labels
def refusal(folder: Path, labels: np.ndarray, shape: tuple[int, int] | None = None, **more: Any) -> str:
    with pytest.raises(DataError) as error:
        read_labels(saved(folder, labels, **more), "", shape)
    assert str(error.value).startswith(f"{folder / 'a.tif'}: the labels ")
    assert "allowed: " in str(error.value)
    return str(error.value)


def test_labels_of_another_size_are_an_error(tmp_path: Path, picture: Picture) -> None:
    assert "have 60 x 40 px, their image has 61 x 40 px" in refusal(tmp_path, picture[1], (40, 61))


def test_labels_with_background_only_are_an_error(tmp_path: Path) -> None:
    line = refusal(tmp_path, np.zeros((8, 9), np.uint16))
    assert "hold nothing but background" in line
    assert "move it to the folder download.folder.unlabelled and delete these labels" in line


def test_float_labels_are_an_error(tmp_path: Path, picture: Picture) -> None:
    line = refusal(tmp_path, picture[1].astype(np.float32))
    assert "are of type float32" in line
    assert "save them as uint16 or uint32" in line


def test_negative_labels_are_an_error(tmp_path: Path, picture: Picture) -> None:
    assert "negative numbers, down to -2" in refusal(tmp_path, picture[1].astype(np.int32) * -1)


def test_bool_labels_are_an_error(tmp_path: Path, picture: Picture) -> None:
    line = refusal(tmp_path, picture[1] > 0)
    assert "a mask of true and false" in line
    assert "number the cells" in line


@pytest.mark.parametrize("axes", ["ZYX", "CYX"])
def test_labels_of_several_planes_are_an_error(tmp_path: Path, picture: Picture, axes: str) -> None:
    planes = np.stack([picture[1]] * 4)
    line = refusal(tmp_path, planes, metadata={"axes": axes}, photometric="minisblack")
    assert f"have the axes {axes} and shape (4, 40, 60)" in line


# -------------------------------------------------------------------------------------------------- unusual labels
def test_gaps_in_the_numbers_are_closed_in_their_order(tmp_path: Path, picture: Picture) -> None:
    labels = np.array([0, 70_000, 3], np.int64)[picture[1]]
    read = read_labels(saved(tmp_path, labels), "", labels.shape)
    np.testing.assert_array_equal(read.ids, np.array([0, 2, 1])[picture[1]])
    assert (read.count, read.renumbered) == (2, True)


def test_huge_numbers_take_no_memory_of_their_size(tmp_path: Path, picture: Picture) -> None:
    labels = np.array([0, 2**62, 5], np.int64)[picture[1]]
    assert read_labels(saved(tmp_path, labels), "", None).count == 2


def test_cells_of_several_parts_are_counted(tmp_path: Path) -> None:
    labels = np.zeros((20, 20), np.uint16)
    labels[2:5, 2:5] = labels[10:12, 2:5] = labels[15:18, 15:18] = 1
    labels[2:5, 10:12] = 2
    labels[5:8, 12:14] = 2  # touches at a corner
    labels[10:12, 10:12] = labels[14, 10] = 3
    assert read_labels(saved(tmp_path, labels), "", None).divided == 2


# --------------------------------------------------------------------------------------------------------- writing
@pytest.mark.parametrize("small", [False, True])
def test_the_same_pixels_give_the_same_bytes(tmp_path: Path, picture: Picture, small: bool) -> None:
    digests = set()
    for name in ("a.tif", "b.tif"):
        write_tif(tmp_path / name, picture[1], note="why", small=small)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
        np.testing.assert_array_equal(tifffile.imread(tmp_path / name), picture[1])
        assert read_note(tmp_path / name) == "why"
    assert len(digests) == 1


def test_a_note_of_a_broken_or_foreign_file_is_none(tmp_path: Path, picture: Picture) -> None:
    assert read_note(tmp_path / "missing.tif") is None
    assert read_note(saved(tmp_path, picture[0])) is None
    write_tif(tmp_path / "b.tif", picture[0], note="why")
    (tmp_path / "b.tif").write_bytes((tmp_path / "b.tif").read_bytes()[:-9])
    assert read_note(tmp_path / "b.tif") is None


def test_axes_are_kept(tmp_path: Path, picture: Picture) -> None:
    planes = np.stack([picture[0], picture[0] + 1])
    for axes in ("CYX", "ZYX", "QYX"):
        write_tif(tmp_path / "a.tif", planes, axes=axes)
        pixels, found = read_pixels(tmp_path / "a.tif", "")
        assert found == axes
        np.testing.assert_array_equal(pixels, planes)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a.tif", "a"), ("a.b.TIFF", "a.b"), ("a.ome.tif", "a"), ("a.ome.zarr", "a"), ("a 1.png", "a 1"),
        ("a.jpg", None), ("a", None), (".a.tif", None), (".tif", None),
    ],
)  # fmt: skip
def test_names(name: str, wanted: str | None) -> None:
    assert stem(Path("folder") / name) == wanted
