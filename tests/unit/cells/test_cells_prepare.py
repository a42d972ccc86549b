"""Preparation: splits by source image before augmentation, one polarity, labels without specks."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tifffile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manyscope.errors import DataError, ManyscopeError
from manyscope.log import logger
from manyscope.scopes.cells.data.augment import augment
from manyscope.scopes.cells.data.images import CellImages
from manyscope.scopes.cells.data.normalize import cells_are_bright, invert, normalise
from manyscope.scopes.cells.data.prepare import deal, prepare, without_small
from manyscope.scopes.cells.data.sources import Pair, find_source, natural_key, pairs_by_name
from manyscope.scopes.cells.settings import CellsPreprocess
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import check_samples

Picture = tuple[np.ndarray, np.ndarray]


def names_only(count: int, labelled: int | None = None, ordered: bool = True) -> list[Pair]:
    known = count if labelled is None else labelled
    return [
        Pair(f"s{i:03d}", Path("i.tif"), Path("l.tif") if i < known else None, f"s{i:03d}", i if ordered else None)
        for i in range(count)
    ]


def write(folder: Path, name: str, image: np.ndarray, labels: np.ndarray | None, order: int | None = None) -> Pair:
    folder.mkdir(exist_ok=True)
    tifffile.imwrite(folder / f"{name}-i.tif", image)
    if labels is not None:
        tifffile.imwrite(folder / f"{name}-l.tif", labels)
    return Pair(name, folder / f"{name}-i.tif", None if labels is None else folder / f"{name}-l.tif", name, order)


def several(folder: Path, picture: Picture, count: int = 5) -> list[Pair]:
    image, labels = picture
    return [write(folder, f"s{i}", np.roll(image, i), np.roll(labels, i), i) for i in range(count)]


def run(pairs: list[Pair], folder: Path, **changed: Any) -> CellImages:
    samples = prepare(pairs, CellsPreprocess(**changed), folder, folder)
    write_table(folder / "samples.parquet", check_samples(samples, folder))
    return CellImages(folder)


# ---------------------------------------------------------------------------------------------------------- splits
@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.integers(3, 80), st.integers(0, 5), st.integers(0, 100), st.floats(0, 0.5), st.floats(0, 0.49),
    st.sampled_from(["hash", "time"]),
)  # fmt: skip
def test_every_split_has_images_and_the_counts_are_exact(
    count: int, others: int, seed: int, test: float, validation: float, by: str
) -> None:
    settings = CellsPreprocess(split_seed=seed, test_fraction=test, validation_fraction=validation, split_by=by)
    pairs = names_only(count + others, count)
    split = deal(pairs, settings)
    assert set(split) == {pair.group for pair in pairs[:count]}
    found = Counter(split.values())
    assert min(found["train"], found["validation"], found["test"]) >= 1
    if 1 <= round(test * count) <= count - 2:
        assert found["test"] == round(test * count)
    if 1 <= round(validation * count) <= count - 1 - found["test"]:
        assert found["validation"] == round(validation * count)
    assert deal(pairs[::-1], settings) == split


def test_by_time_the_last_are_test_and_those_before_validation() -> None:
    settings = CellsPreprocess(split_by="time", test_fraction=0.2, validation_fraction=0.2)
    split = deal(names_only(20), settings)
    assert [split[f"s{i:03d}"] for i in range(20)] == ["train"] * 12 + ["validation"] * 4 + ["test"] * 4


def test_a_group_is_never_divided() -> None:
    pairs = [Pair(f"s{i}", Path("i"), Path("l"), f"g{i // 3}", i) for i in range(30)]
    for by in ("hash", "time"):
        assert set(deal(pairs, CellsPreprocess(split_by=by))) == {f"g{i}" for i in range(10)}


def test_seeds_deal_differently() -> None:
    pairs = names_only(30)
    assert deal(pairs, CellsPreprocess(split_seed=1)) != deal(pairs, CellsPreprocess(split_seed=2))


@pytest.mark.parametrize(("count", "labelled"), [(0, 0), (2, 2), (9, 2), (4, 0)])
def test_too_few_labelled_images_are_an_error(count: int, labelled: int) -> None:
    with pytest.raises(DataError, match=rf"{labelled} of {count} images .* have labels; allowed: at least 3"):
        deal(names_only(count, labelled), CellsPreprocess())


def test_fractions_must_leave_something_to_train_on() -> None:
    with pytest.raises(DataError, match="leave nothing for training; allowed: a sum below 1"):
        deal(names_only(9), CellsPreprocess(test_fraction=0.6, validation_fraction=0.4))


def test_a_split_by_time_needs_times() -> None:
    with pytest.raises(DataError, match=r"'s000' has no place in time; set it to 'hash'"):
        deal(names_only(9, ordered=False), CellsPreprocess(split_by="time"))


# ---------------------------------------------------------------------------------------------------- augmentation
def test_only_training_images_are_augmented_and_no_copy_is_in_another_split(prepared: Path, data: CellImages) -> None:
    """The predecessor drew the validation split after augmentation: copies of one image were on both sides."""
    training = set(data.ids(data.rows("train")))
    sources = Counter(re.fullmatch(r"(.+)_(orig|aug\d{3})\.tif", i.name)[1] for i, _ in data.training_files())  # type: ignore[index]
    assert sources == dict.fromkeys(training, 4)
    assert training
    assert not training & {*data.ids(data.rows("validation")), *data.ids(data.rows("test"))}
    assert not [f for f in (prepared / "augmented").rglob("*.tif") if f.name.partition("_")[0] not in training]


def test_training_files_are_the_image_and_its_copies(data: CellImages) -> None:
    files = {image.name: (tifffile.imread(image), tifffile.imread(labels)) for image, labels in data.training_files()}
    settings = CellsPreprocess().augment
    for row in data.rows("train"):
        name, image, labels = data.ids(np.array([row]))[0], data.image(row), data.labels(row)
        assert labels is not None
        expected = {f"{name}_aug{copy:03d}.tif": augment(image, labels, name, copy, settings) for copy in range(3)}
        for file, pair in {f"{name}_orig.tif": (image, labels), **expected}.items():
            np.testing.assert_array_equal(files[file][0], pair[0])
            np.testing.assert_array_equal(files[file][1], pair[1])
            assert files[file][1].dtype == np.uint16


def test_an_added_image_changes_no_other_copy(tmp_path: Path, picture: Picture) -> None:
    """Every copy is drawn from the seed, the id and its number; the predecessor had no seed at all."""
    pairs = several(tmp_path / "raw", picture, 9)
    digests = []
    for count in (6, 9):
        folder = tmp_path / str(count)
        run(pairs[:count], folder)
        files = (folder / "augmented").rglob("*.tif")
        digests.append({str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files})
    common = digests[0].keys() & digests[1].keys()
    assert len(common) >= 16
    assert all(digests[0][name] == digests[1][name] for name in common)


@pytest.mark.parametrize(("copies", "original", "suffixes"), [(0, True, ["orig"]), (2, False, ["aug000", "aug001"])])
def test_the_number_of_copies(
    tmp_path: Path, picture: Picture, copies: int, original: bool, suffixes: list[str]
) -> None:
    data = run(several(tmp_path / "raw", picture), tmp_path / "p", augment={"copies": copies, "original": original})
    names = [image.stem for image, _ in data.training_files()]
    assert names == [f"{name}_{suffix}" for name in sorted(data.ids(data.rows("train"))) for suffix in suffixes]


# -------------------------------------------------------------------------------------------------------- polarity
def of_kinds(folder: Path, picture: Picture, kinds: str, query: np.ndarray) -> tuple[list[Pair], dict[str, str]]:
    """Images in the order of time, the last of which are the test; `b` has bright cells and `d` dark ones. Then one
    without labels. Also the settings with which the last two are the test and the one before is the validation."""
    image, labels = picture
    grey = {"d": image, "b": 20_000 - image}
    pairs = [write(folder, f"s{i}", grey[kind] + i, labels, i) for i, kind in enumerate(kinds)]
    return [*pairs, write(folder, "query", query, None, 99)], {"split_by": "time"}


@pytest.mark.parametrize(
    ("kinds", "inverted", "others"),
    [
        # Two tests, before them the validation, and five to train on.
        ("bbbddbdb", [True, True, True, False, False, True], True),
        ("bbdddbdb", [True, True, False, False, False, True], False),
        ("bbbbbdbb", [True, True, True, True, True, False], True),
        ("dddddddd", [False] * 6, False),
    ],
)
def test_test_images_and_unlabelled_ones_follow_the_training_images(
    tmp_path: Path, picture: Picture, kinds: str, inverted: list[bool], others: bool
) -> None:
    """Training and validation images are judged by their own labels; those of the test choose nothing."""
    bright = 20_000 - picture[0]
    pairs, settings = of_kinds(tmp_path, picture, kinds, bright)
    data = run(pairs, tmp_path / "p", **settings)
    assert data.samples["split"].to_list() == ["train"] * 5 + ["validation"] + ["test"] * 2 + ["unlabelled"]
    assert data.samples["inverted"].to_list() == [*inverted, others, others, others]
    assert data.meta["invert_others"] is others
    for row in range(6):
        assert not cells_are_bright(data.image(row), picture[1])
    grey = normalise(bright, 1, 99.5)
    np.testing.assert_array_equal(data.image(8), invert(grey) if others else grey)
    np.testing.assert_array_equal(data.normalised(pairs[8].image), data.image(8))


def test_labels_of_the_test_change_no_image(tmp_path: Path, picture: Picture) -> None:
    """The same images with other test labels: every prepared image has the same bytes."""
    image, labels = picture
    digests = []
    for name, test_labels in (("a", labels), ("b", (labels == 0).astype(np.uint16))):
        pairs = [write(tmp_path / name, f"s{i}", image + i, labels if i < 6 else test_labels, i) for i in range(8)]
        data = run(pairs, tmp_path / f"p{name}", split_by="time")
        assert data.rows("test").tolist() == [6, 7]
        digests.append([hashlib.sha256(data.image_file(row).read_bytes()).hexdigest() for row in range(8)])
    assert digests[0] == digests[1]


def test_training_images_of_both_kinds_are_warned_of(
    tmp_path: Path, picture: Picture, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    pairs, settings = of_kinds(tmp_path, picture, "bbdddbdb", picture[0])
    with caplog.at_level(logging.WARNING):
        run(pairs, tmp_path / "p", **settings)
    assert "cells are bright in 2 of 5 training images and dark in the others" in caplog.text
    assert "all left as they are" in caplog.text


def test_as_is_inverts_nothing(tmp_path: Path, picture: Picture) -> None:
    pairs = [write(tmp_path, f"s{i}", 20_000 - picture[0] + i, picture[1]) for i in range(3)]
    data = run(pairs, tmp_path / "p", polarity="as_is")
    assert not data.samples["inverted"].any()
    assert cells_are_bright(data.image(0), picture[1])


def test_padding_stays_black_and_a_background_of_zero_is_warned_of(
    tmp_path: Path, picture: Picture, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    image, labels = picture
    bright = np.where(labels > 0, 20_000 - image, 0).astype(np.uint16)
    bright[5, 5] = 10  # the background that is not 0
    pairs = [write(tmp_path, f"s{i}", bright, labels) for i in range(3)]
    with caplog.at_level(logging.WARNING):
        data = run(pairs, tmp_path / "p")
    assert "2 inverted images have a background of 0" in caplog.text
    assert (data.image(0) == 0).sum() == (bright == 0).sum()


# ---------------------------------------------------------------------------------------------------------- labels
@given(st.integers(0, 30), st.lists(st.integers(0, 12), min_size=1, max_size=200))
def test_small_cells_become_background(smallest: int, numbers: list[int]) -> None:
    labels = np.unique(np.array([0, *numbers]), return_inverse=True)[1].astype(np.uint32).reshape(1, -1)
    left, count = without_small(labels, smallest)
    area = Counter(labels.ravel().tolist())
    kept = [i for i in sorted(area) if i and area[i] >= smallest]
    assert count == len(kept)
    assert left.dtype == labels.dtype
    for number, label in enumerate(kept, 1):
        np.testing.assert_array_equal(left == number, labels == label)
    assert (left == 0).sum() == labels.size - sum(area[i] for i in kept)


def test_what_was_changed_is_in_the_log_and_the_table(
    tmp_path: Path, picture: Picture, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    image, labels = picture
    odd = np.array([0, 9, 4], np.int32)[labels]
    odd[30:33, 50:58] = 9  # a second part, 24 px
    odd[2, 2:6] = 77
    pairs = [*several(tmp_path / "raw", picture, 4), write(tmp_path / "raw", "odd", image, odd)]
    with caplog.at_level(logging.INFO, "manyscope"):
        data = run(pairs, tmp_path / "p")
    assert "1 label images were renumbered 1…K (odd)" in caplog.text
    assert "1 cells in 1 label images consist of several unconnected parts (odd)" in caplog.text
    assert "1 cells smaller than 25 px in 1 images became background (odd)" in caplog.text
    assert data.samples["cells"].to_list() == [2] * 5
    found = data.labels(4)
    assert found is not None
    np.testing.assert_array_equal(found, np.select([odd == 4, odd == 9], [1, 2], 0))


def test_labels_that_are_all_too_small_are_an_error(tmp_path: Path, picture: Picture) -> None:
    with pytest.raises(
        DataError, match=r"s\d-l\.tif: none of 2 cells has 1000 px or more; lower preprocess\.min_object"
    ):
        run(several(tmp_path / "raw", picture), tmp_path / "p", min_object_px=1000)


def test_many_cells_need_wider_numbers(tmp_path: Path) -> None:
    labels = np.arange(1, 300 * 300 + 1, dtype=np.uint32).reshape(300, 300)
    labels[0, 0] = 0
    image = np.random.default_rng(0).integers(1, 999, labels.shape).astype(np.uint16)
    pairs = [write(tmp_path / "raw", f"s{i}", image, labels) for i in range(3)]
    data = run(pairs, tmp_path / "p", min_object_px=1, augment={"copies": 0})
    assert tifffile.imread(data.label_file(0)).dtype == np.uint32
    np.testing.assert_array_equal(data.labels(0), np.arange(300 * 300).reshape(300, 300))


def test_a_bad_file_of_any_source_stops_the_preparation(tmp_path: Path, picture: Picture) -> None:
    pairs = [*several(tmp_path / "raw", picture), write(tmp_path / "raw", "bad", *picture)]
    tifffile.imwrite(pairs[-1].labels, picture[1][:20])
    with pytest.raises(DataError, match=r"bad-l\.tif: the labels have 60 x 20 px, their image has 60 x 40 px"):
        run(pairs, tmp_path / "p")


def test_ids_that_repeat_are_an_error(tmp_path: Path, picture: Picture) -> None:
    pairs = several(tmp_path / "raw", picture)
    with pytest.raises(DataError, match=r"1 ids occur twice, for example 's0'"):
        run([*pairs, pairs[0]], tmp_path / "p")


# ----------------------------------------------------------------------------------------------- the prepared folder
def test_the_table_tells_sizes_counts_and_grey_values(data: CellImages, raw: Path) -> None:
    assert data.samples["sample_id"].to_list() == [f"cells-{i:04d}" for i in range(8)]
    assert Counter(data.samples["split"]) == {"train": 5, "validation": 1, "test": 2}
    for row, sample in enumerate(data.samples.iter_rows(named=True)):
        image = tifffile.imread(raw / "images" / f"{sample['sample_id']}.tif")
        assert (sample["low"], sample["high"]) == pytest.approx(tuple(np.percentile(image, (1, 99.5))))
        labels = data.labels(row)
        assert labels is not None
        assert labels.dtype == np.uint32
        assert sample["cells"] == labels.max() > 0
        assert (sample["height_px"], sample["width_px"], sample["group"]) == (96, 96, sample["sample_id"])


def test_images_json_says_how_queries_are_treated(prepared: Path, data: CellImages) -> None:
    meta = json.loads((prepared / "images.json").read_text())
    assert meta == data.meta
    assert (meta["low_percentile"], meta["high_percentile"], meta["polarity"]) == (1.0, 99.5, "dark")
    assert meta["augment"]["copies"] == 3


def test_unlabelled_images_are_prepared_last_and_kept_in_place(tmp_path: Path, picture: Picture) -> None:
    image = picture[0]
    pairs = [write(tmp_path, "a", image, None), *several(tmp_path, picture, 3), write(tmp_path, "z", image[:20], None)]
    data = run(pairs, tmp_path / "p")
    assert data.samples["sample_id"].to_list() == ["a", "s0", "s1", "s2", "z"]
    assert data.samples["cells"].to_list() == [None, 2, 2, 2, None]
    assert data.ids(data.rows("unlabelled")) == ["a", "z"]
    assert data.labels(0) is None
    assert len(data.labelled("unlabelled")) == 0
    assert data.labelled("test").tolist() == data.rows("test").tolist()
    batch = data.batch(np.array([0, 4]))
    assert batch["sample_id"] == ["a", "z"]
    assert [part.shape for part in batch["images"]] == [(40, 60), (20, 60)]
    assert not (tmp_path / "p/labels/a.tif").exists()
    assert not list((tmp_path / "p/augmented").rglob("a_*"))


@pytest.mark.parametrize("broken", ["missing", "cut", "size", "type"])
def test_a_broken_prepared_file_is_named(tmp_path: Path, picture: Picture, broken: str) -> None:
    data = run(several(tmp_path / "raw", picture), tmp_path / "p")
    file = data.image_file(0)
    if broken == "missing":
        file.unlink()
    elif broken == "cut":
        file.write_bytes(file.read_bytes()[:300])
    else:
        tifffile.imwrite(file, np.zeros((40, 60) if broken == "type" else (9, 9), "u2" if broken == "type" else "u1"))
    with pytest.raises(DataError, match=r"images/s0\.tif: the (file|image) .*run the stage 'preprocess' again"):
        data.image(0)


def test_incomplete_training_files_are_an_error(tmp_path: Path, picture: Picture) -> None:
    data = run(several(tmp_path / "raw", picture), tmp_path / "p")
    data.training_files()[0][1].unlink()
    with pytest.raises(DataError, match=r"augmented: the training images are missing or incomplete"):
        data.training_files()


# --------------------------------------------------------------------------------------------------------- sources
def listed(*paths: str, state: str = "done") -> pl.DataFrame:
    return pl.DataFrame(
        {"path": list(paths), "state": [state] * len(paths)}, schema={"path": pl.String, "state": pl.String}
    )


def test_pairs_come_in_the_order_of_the_numbers_in_their_names(tmp_path: Path) -> None:
    pairs = pairs_by_name(tmp_path, listed("images/f10.tif", "images/f9.tif", "labels/f10.png", "images/f9b.tif"))
    assert [(p.sample_id, p.order, p.labels is not None) for p in pairs] == [
        ("f9", 0, False), ("f9b", 1, False), ("f10", 2, True)
    ]  # fmt: skip


@given(st.lists(st.text(max_size=6), max_size=8))
def test_names_of_any_kind_can_be_sorted(names: list[str]) -> None:
    assert sorted(sorted(names, key=natural_key)) == sorted(names)


def test_labels_without_an_image_and_empty_downloads_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels/b\.tif: these labels have no image"):
        pairs_by_name(tmp_path, listed("images/a.tif", "labels/b.tif"))
    with pytest.raises(DataError, match="the data set is empty; run the stage 'download'"):
        pairs_by_name(tmp_path, listed("images/a.tif", state="failed"))


def test_an_unknown_source_names_the_known_ones() -> None:
    with pytest.raises(
        ManyscopeError, match=r"'folders' is unknown.*bacteria, folder, simulated.*did you mean 'folder'"
    ):
        find_source("folders")
    with pytest.raises(ManyscopeError, match="a class with download, pairs, problems"):
        find_source("math:sqrt")
