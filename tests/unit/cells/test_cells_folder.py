"""Your own images: paired by name, everything wrong said at once, the files only read."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
import zarr
from PIL import Image

from manyscope.errors import DataError
from manyscope.log import logger
from manyscope.scopes.cells.data.folder import Folder, examine
from manyscope.scopes.cells.data.prepare import prepare
from manyscope.scopes.cells.data.reading import read_image, read_labels
from manyscope.scopes.cells.data.sources import Pair
from manyscope.scopes.cells.settings import CellsDownload, CellsPreprocess, FolderSettings
from manyscope.tables.manifest import describe

Picture = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger="manyscope")
    return caplog


class Own:
    """The folders images/ and labels/ of a user."""

    def __init__(self, root: Path) -> None:
        self.images, self.labels = root / "own/images", root / "own/labels"
        for folder in (self.images, self.labels):
            folder.mkdir(parents=True)
        self.raw = root / "raw"

    def add(self, name: str, image: np.ndarray | None, labels: np.ndarray | None = None, suffix: str = ".tif") -> None:
        for folder, pixels in ((self.images, image), (self.labels, labels)):
            if pixels is not None:
                tifffile.imwrite(folder / f"{name}{suffix}", pixels)

    def settings(self, labelled: bool = True, **more: object) -> CellsDownload:
        values = {"images": self.images, "labels": self.labels if labelled else None, **more}
        return CellsDownload(source="folder", folder=FolderSettings.model_validate(values))

    def download(self, settings: CellsDownload) -> tuple[pl.DataFrame, list[Pair]]:
        manifest = describe(self.raw, Folder().download(settings, self.raw))
        return manifest, Folder().pairs(settings, self.raw, manifest)

    def digest(self) -> list[str]:
        files = sorted(f for f in self.images.parent.rglob("*") if f.is_file())
        return [f"{f} {hashlib.sha256(f.read_bytes()).hexdigest()} {f.stat().st_mtime_ns}" for f in files]


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(tmp_path)


def problems(settings: CellsDownload) -> list[str]:
    """Without the one that says that there are too few images, as there are in most of these tests."""
    return [line for line in Folder().problems(settings) if "have labels; allowed: at least 3" not in line]


def test_pairs_are_made_by_name_not_by_order(own: Own, picture: Picture) -> None:
    """The predecessor paired by sorted order: here z comes last of the images and first of the labels."""
    image, labels = picture
    for number, name in enumerate(("b", "a", "z")):
        own.add(name, image + number)
    for name, offset, suffix in (("z", 2, ".TIF"), ("b", 0, ".tiff"), ("a", 1, ".png")):
        moved = np.roll(labels, offset, 1)
        if suffix == ".png":
            Image.fromarray(moved).save(own.labels / f"{name}{suffix}")
        else:
            own.add(name, None, moved, suffix)
    before = own.digest()
    manifest, pairs = own.download(own.settings())
    assert [pair.sample_id for pair in pairs] == ["a", "b", "z"]
    for pair in pairs:
        shift = {"b": 0, "a": 1, "z": 2}[pair.sample_id]
        assert pair.labels is not None
        np.testing.assert_array_equal(read_image(pair.image), image + shift)
        np.testing.assert_array_equal(read_labels(pair.labels, "", None).ids, np.roll(labels, shift, 1))
    assert own.digest() == before
    assert sorted(manifest["path"]) == [
        "images/a.tif", "images/b.tif", "images/z.tif", "labels/a.png", "labels/b.tiff", "labels/z.tif"
    ]  # fmt: skip
    assert all((own.raw / path).is_symlink() for path in manifest["path"])
    assert manifest["sha256"][0] == hashlib.sha256((own.images / "a.tif").read_bytes()).hexdigest()


def test_everything_unpaired_is_said_at_once(own: Own, picture: Picture) -> None:
    for number in range(12):
        own.add(f"i{number}", picture[0], picture[1] if number in (3, 4) else None)
    own.add("x1", None, picture[1])
    own.add("x2", None, picture[1])
    expected = (
        r"own/labels: unpaired: 10 images without labels \(i0, i1, i2, i5, i6, …\) and 2 labels without an image "
        r"\(x1, x2\); allowed: a label image with the name of its image.*; add or rename"
    )
    with pytest.raises(DataError, match=expected):
        own.download(own.settings())
    assert len(problems(own.settings())) == 1
    assert not own.raw.exists()


def test_without_a_folder_of_labels_images_are_only_predicted(own: Own, picture: Picture) -> None:
    own.add("a", picture[0])
    pairs = own.download(own.settings(labelled=False))[1]
    assert [pair.labels for pair in pairs] == [None]


@pytest.mark.parametrize(("count", "labelled"), [(3, False), (2, True)])
def test_too_few_labelled_images_are_said_before_the_download(
    own: Own, picture: Picture, count: int, labelled: bool
) -> None:
    """Without `labels`, plain images have none, and a training needs some."""
    for number in range(count):
        own.add(f"i{number}", *picture)
    found = list(Folder().problems(own.settings(labelled=labelled)))
    assert len(found) == 1
    assert f"{count if labelled else 0} of {count} images" in found[0]
    assert "download.folder.labels" in found[0]
    own.add("i2", *picture)
    assert not list(Folder().problems(own.settings()))


# ------------------------------------------------------------------------------------------------ only segmented
def further(own: Own, name: str, image: np.ndarray, suffix: str = ".tif") -> Path:
    folder = own.images.parent / "more"
    folder.mkdir(exist_ok=True)
    tifffile.imwrite(folder / f"{name}{suffix}", image)
    return folder


def test_further_images_have_no_labels_and_are_only_predicted(own: Own, picture: Picture, tmp_path: Path) -> None:
    image, labels = picture
    for name in ("b", "c", "d"):
        own.add(name, image, labels)
    folder = further(own, "a10", image + 1)
    further(own, "a9", image[:20], ".tiff")
    zarr_store(folder / "e.zarr", image, labels)
    before = own.digest()
    settings = own.settings(unlabelled=folder)
    assert not problems(settings)
    manifest, pairs = own.download(settings)
    assert [(pair.sample_id, pair.labels is not None) for pair in pairs] == [
        ("a9", False), ("a10", False), ("b", True), ("c", True), ("d", True), ("e", False)
    ]  # fmt: skip
    assert (own.raw / "images/a9.tiff").readlink() == folder / "a9.tiff"
    assert "labels/e.tif" not in manifest["path"].to_list()
    samples = prepare(pairs, CellsPreprocess(), own.raw, tmp_path / "p")
    assert samples.filter(pl.col("split") == "unlabelled")["sample_id"].to_list() == ["a9", "a10", "e"]
    assert samples.filter(pl.col("cells").is_null())["split"].unique().to_list() == ["unlabelled"]
    assert own.digest() == before


def test_an_image_that_moves_to_the_unlabelled_ones_loses_its_labels(own: Own, picture: Picture) -> None:
    own.add("a", *picture)
    own.add("b", *picture)
    own.download(own.settings())
    for folder in (own.images, own.labels):
        (folder / "a.tif").unlink()
    pairs = own.download(own.settings(unlabelled=further(own, "a", picture[0])))[1]
    assert [(pair.sample_id, pair.labels is None) for pair in pairs] == [("a", True), ("b", False)]


def test_names_of_labelled_and_unlabelled_images_must_differ(own: Own, picture: Picture) -> None:
    for name in ("a", "b", "c"):
        own.add(name, *picture)
    for name in ("a", "c", "d"):
        folder = further(own, name, picture[0], ".ome.tif")
    found = problems(own.settings(unlabelled=folder))
    assert len(found) == 1
    assert "own/more: 2 names are those of labelled images too (a, c); allowed: names that" in found[0]
    with pytest.raises(DataError, match="2 names are those of labelled images"):
        own.download(own.settings(unlabelled=folder))
    assert not own.raw.exists()


def test_bad_unlabelled_images_break_the_same_rules(own: Own, picture: Picture) -> None:
    own.add("good", *picture)
    folder = further(own, "rgb", np.stack([picture[0] // 256] * 3, -1).astype(np.uint8))
    further(own, "-x", picture[0])
    found = problems(own.settings(unlabelled=folder))
    assert len(found) == 2
    assert any("more/rgb.tif: the image has 3 channels" in line for line in found)
    assert any("the name '-x' cannot be a sample_id" in line for line in found)


@pytest.mark.parametrize(
    ("folder", "says"),
    [("more", "no such folder; mend download.folder.unlabelled"), ("images", "images and unlabelled are the same")],
)
def test_a_wrong_folder_of_unlabelled_images(own: Own, picture: Picture, folder: str, says: str) -> None:
    own.add("a", *picture)
    found = problems(own.settings(unlabelled=own.images.parent / folder))
    assert len(found) == 1
    assert says in found[0]


def test_every_bad_file_is_named_before_anything_is_written(own: Own, picture: Picture, log: object) -> None:
    image, labels = picture
    for name in ("good", "fine", "well"):
        own.add(name, image, labels)
    own.add("rgb", np.stack([image // 256] * 3, -1).astype(np.uint8), labels)
    own.add("size", image, labels[:-1])
    own.add("float", image, labels.astype(np.float32))
    own.add("blank", image, np.zeros_like(labels))
    own.add("corrupt", image, labels)
    (own.images / "corrupt.tif").write_bytes((own.images / "corrupt.tif").read_bytes()[:200])
    found = problems(own.settings())
    words = {
        "images/rgb.tif": "3 channels", "labels/size.tif": "60 x 39 px", "labels/float.tif": "float32",
        "labels/blank.tif": "background", "images/corrupt.tif": "cannot be decoded",
    }  # fmt: skip
    assert len(found) == len(words)
    for file, word in words.items():
        assert [line for line in found if f"{file}: " in line and word in line], (file, found)
    with pytest.raises(DataError, match=r"\(and 4 more errors, see the log\)"):
        own.download(own.settings())
    assert isinstance(log, pytest.LogCaptureFixture)
    assert all(word in log.text for word in words.values())
    assert not own.raw.exists()


def test_a_channel_makes_colour_images_readable(own: Own, picture: Picture) -> None:
    image, labels = picture
    own.add("a", np.stack([image, image + 1, image + 2], -1), labels)
    settings = own.settings(channel=1)
    pair = own.download(settings)[1][0]
    assert pair.channel == 1
    np.testing.assert_array_equal(read_image(pair.image, pair.image_key, pair.channel), image + 1)


@pytest.mark.parametrize("name", ["-a", "a:b", "a\nb", "ä?", "a,b"])
def test_names_that_cannot_be_ids_are_errors(own: Own, picture: Picture, name: str) -> None:
    own.add(name, *picture)
    assert any(f"the name {name!r} cannot be a sample_id" in line for line in problems(own.settings()))


@pytest.mark.parametrize("name", ["a", "Bild ä (2)", "a.b-c_d+1", "7"])
def test_other_names_are_ids(own: Own, picture: Picture, name: str) -> None:
    own.add(name, *picture)
    assert own.download(own.settings())[1][0].sample_id == name


def test_two_images_of_one_name_are_an_error(own: Own, picture: Picture) -> None:
    own.add("a", *picture)
    own.add("a", picture[0], suffix=".ome.tif")
    assert any("a.ome.tif and a.tif have the same name" in line for line in problems(own.settings()))


@pytest.mark.parametrize("key", ["images", "labels"])
def test_missing_and_empty_folders_are_errors(own: Own, picture: Picture, key: str) -> None:
    own.add("a", *picture)
    folder = getattr(own, key)
    (folder / "a.tif").unlink()
    assert any(f"own/{key}: the folder holds no image" in line for line in problems(own.settings()))
    folder.rmdir()
    assert any(f"own/{key}: no such folder; mend download.folder.{key}" in line for line in problems(own.settings()))


def test_one_folder_for_both_is_an_error(own: Own, picture: Picture) -> None:
    own.add("a", *picture)
    assert any("the same folder" in line for line in problems(own.settings(labels=own.images)))


def test_no_folder_at_all_is_an_error() -> None:
    assert problems(CellsDownload(source="folder")) == [
        "download.folder: download.folder.images: empty; name the folder of your images"
    ]


def test_other_files_are_ignored_aloud(own: Own, picture: Picture, log: pytest.LogCaptureFixture) -> None:
    own.add("a", *picture)
    (own.images / "notes.txt").write_text("x")
    (own.images / ".DS_Store").write_text("x")
    (own.images / "more").mkdir()
    assert not problems(own.settings())
    assert "2 files are no images" in log.text


def zarr_store(path: Path, image: np.ndarray, labels: np.ndarray | None) -> None:
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.create_array("0", data=image[None])
    root.attrs["multiscales"] = [{"axes": [{"name": "c"}, {"name": "y"}, {"name": "x"}]}]
    if labels is not None:
        root.create_group("labels/cells").create_array("0", data=labels)


def test_ome_zarr_with_and_without_labels(own: Own, picture: Picture) -> None:
    zarr_store(own.images / "a.ome.zarr", picture[0], picture[1])
    zarr_store(own.images / "b.zarr", picture[0], None)
    before = own.digest()
    manifest, pairs = own.download(own.settings(labelled=False))
    assert manifest["path"].to_list() == ["images/a.tif", "images/b.tif", "labels/a.tif"]
    assert manifest["source"][2].endswith("a.ome.zarr: labels/cells/0")
    assert [(pair.sample_id, pair.labels is None) for pair in pairs] == [("a", False), ("b", True)]
    raw = tifffile.imread(pairs[0].image)
    assert raw.dtype == picture[0].dtype
    np.testing.assert_array_equal(read_image(pairs[0].image), picture[0])
    assert own.digest() == before


def test_an_ome_zarr_may_be_named_itself(own: Own, picture: Picture) -> None:
    zarr_store(own.images / "a.zarr", *picture)
    settings = own.settings(labelled=False, images=own.images / "a.zarr")
    assert [pair.sample_id for pair in own.download(settings)[1]] == ["a"]


def test_a_second_download_mends_links_and_takes_new_files(own: Own, picture: Picture) -> None:
    own.add("a", *picture)
    own.download(own.settings())
    own.add("b", *picture)
    link = own.raw / "images/a.tif"
    link.unlink()
    link.symlink_to(own.images / "b.tif")
    manifest, pairs = own.download(own.settings())
    assert len(manifest) == 4
    assert link.readlink() == own.images / "a.tif"
    own.images.joinpath("a.tif").unlink()
    own.labels.joinpath("a.tif").unlink()
    assert [pair.sample_id for pair in own.download(own.settings())[1]] == ["b"]
    assert len(pairs) == 2


def test_a_file_of_another_source_is_not_overwritten(own: Own, picture: Picture) -> None:
    own.add("a", *picture)
    (own.raw / "images").mkdir(parents=True)
    (own.raw / "images/a.tif").write_bytes(b"drawn")
    with pytest.raises(DataError, match=r"a file is in the way of a link; .*delete"):
        own.download(own.settings())
    assert (own.raw / "images/a.tif").read_bytes() == b"drawn"


def test_relative_folders_are_those_of_the_working_folder(
    own: Own, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.add("a", *picture)
    monkeypatch.chdir(own.images.parent)
    settings = own.settings(images=Path("images"), labels=Path("labels"))
    own.download(settings)
    assert (own.raw / "images/a.tif").readlink() == own.images / "a.tif"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(own: Own, picture: Picture) -> None:
    own.add("a", *picture)
    (own.images / "a.tif").chmod(0)
    assert any("images/a.tif: the image cannot be decoded" in line for line in problems(own.settings()))


def test_the_same_images_give_the_same_prepared_bytes(own: Own, picture: Picture, tmp_path: Path) -> None:
    for name in "abcd":
        own.add(name, *picture)
    settings = own.settings()
    _, pairs = own.download(settings)
    digests = []
    for run in ("p1", "p2"):
        prepare(pairs, CellsPreprocess(), own.raw, tmp_path / run)
        files = sorted((tmp_path / run).rglob("*.*"))
        digests.append([hashlib.sha256(f.read_bytes()).hexdigest() for f in files])
    assert len(digests[0]) > 8
    assert digests[0] == digests[1]
    assert not examine(settings.folder)[1]
