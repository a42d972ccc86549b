"""Preparation: stable splits without shared pixels, missing pixels by policy, transforms by name, one array."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manyscope.errors import DataError, ManyscopeError, SettingsError
from manyscope.scopes.galaxies.data.prepare import deal, fill_missing, prepare, shares_no_pixel
from manyscope.scopes.galaxies.data.sources import Cutouts, find_source, middle
from manyscope.scopes.galaxies.data.transforms import Transforms, asinh, crop
from manyscope.scopes.galaxies.settings import GalaxiesPreprocess, TransformSettings
from manyscope.scopes.galaxies.simulate import Simulated
from manyscope.tables.manifest import read_manifest

PLAIN = GalaxiesPreprocess(stamp_px=16, transforms=())


def cutouts(stamps: np.ndarray | Sequence[np.ndarray], count: int | None = None, **more: Any) -> Cutouts:
    chunks = [stamps] if isinstance(stamps, np.ndarray) else list(stamps)
    total = sum(map(len, chunks)) if count is None else count
    ids = [f"s{i}" for i in range(total)]
    table = pl.DataFrame({"sample_id": ids, "group": ids}, schema={"sample_id": pl.String, "group": pl.String})
    return Cutouts(chunks, table, ("blue", "green", "red"), **more)


def noise(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, size, size)).astype(np.float32)


# -------------------------------------------------------------------------------------------------------- splits
@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 150), st.integers(0, 150)), min_size=1, max_size=60),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_no_pixel_is_in_two_splits(places: list[tuple[int, int]], size: int, random: Any) -> None:
    centre = np.array(places)
    split = np.array([random.choice(["train", "validation", "test"]) for _ in places], dtype=object)
    keep = shares_no_pixel(centre, split, size)
    assert keep[split == "test"].all()
    apart = np.abs(centre[:, None] - centre[None]).max(2)
    crossing = split[:, None] != split[None]
    both = keep[:, None] & keep[None]
    assert (apart[crossing & both] >= size).all()
    # nothing is dropped without a reason: each dropped stamp touches a kept one of another split
    for i in np.flatnonzero(~keep):
        assert (apart[i][(split != split[i]) & keep] < size).any()


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.sets(st.text(min_size=1, max_size=6), min_size=1, max_size=40), st.integers(0, 10))
def test_an_added_group_moves_no_other(groups: set[str], seed: int) -> None:
    settings = GalaxiesPreprocess(split_seed=seed)
    known = sorted(groups)
    before = dict(zip(known, deal(known, None, settings), strict=True))
    after = dict(zip(["added", *known], deal(["added", *known], None, settings), strict=True))
    assert all(before[g] == after[g] for g in known)


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(8, 60), st.floats(0.05, 0.5))
def test_ranked_blocks_keep_to_the_fractions_whatever_is_found_in_them(seed: int, count: int, fraction: float) -> None:
    blocks = [f"b{i}" for i in range(count)]
    settings = GalaxiesPreprocess(split_seed=seed, test_fraction=fraction)
    split = dict(zip(blocks, deal(blocks, blocks, settings), strict=True))
    found = list(split.values())
    assert found.count("test") == round(fraction * count)
    assert found.count("validation") >= 1
    some = blocks[::3]
    assert list(deal(some, blocks, settings)) == [split[b] for b in some]


@pytest.mark.parametrize("every", [None, ["a", "b", "c"]])
def test_fractions_must_leave_something_to_train_on(every: list[str] | None) -> None:
    settings = GalaxiesPreprocess(test_fraction=0.7, validation_fraction=0.3)
    with pytest.raises(DataError, match="leave nothing for training"):
        deal(["a", "b", "c"], every, settings)


def test_stamps_that_touch_another_split_are_left_out(tmp_path: Path) -> None:
    stamps = noise(40)
    centre = np.random.default_rng(1).integers(0, 200, (40, 2))
    samples = prepare(cutouts([stamps[:15], stamps[15:]], centre_px=centre), PLAIN, tmp_path, tmp_path)
    rows = [int(name[1:]) for name in samples["sample_id"]]
    assert 0 < len(rows) < 40
    np.testing.assert_array_equal(np.load(tmp_path / "stamps.npy"), stamps[rows])
    assert json.loads((tmp_path / "stamps.json").read_text())["left_out_for_overlap"] == 40 - len(rows)


# ----------------------------------------------------------------------------------------------- missing pixels
def with_holes() -> np.ndarray:
    stamps = np.abs(noise(3)) + 1
    stamps[1, 2, :4] = np.nan
    stamps[1, 0, 0, 0] = np.inf
    stamps[2, 1] = np.nan
    return stamps


def test_missing_pixels_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 stamps .* 's2' \(33\.3% of it\).*nan_policy"):
        prepare(cutouts(with_holes()), PLAIN, tmp_path / "raw", tmp_path)
    assert not (tmp_path / "stamps.npy").exists()


@pytest.mark.parametrize("policy", ["zero", "quantile"])
def test_missing_pixels_are_replaced_and_counted(policy: str) -> None:
    stamps = with_holes()
    settings = PLAIN.model_copy(update={"nan_policy": policy, "nan_quantile": 0.25})
    filled, share = fill_missing(stamps.copy(), settings, ["a", "b", "c"], "raw")
    good = np.isfinite(stamps)
    np.testing.assert_array_equal(filled[good], stamps[good])
    assert share == pytest.approx([0, (4 * 16 + 1) / 768, 1 / 3])
    expected = np.quantile(stamps[1, 2, 4:], 0.25) if policy == "quantile" else 0
    np.testing.assert_allclose(filled[1, 2, :4], expected, rtol=1e-6)
    assert (filled[2, 1] == 0).all()  # a band without any pixel is sky


def test_the_table_tells_how_much_was_missing(tmp_path: Path) -> None:
    samples = prepare(
        cutouts(with_holes()), PLAIN.model_copy(update={"nan_policy": "zero"}), tmp_path / "raw", tmp_path
    )
    assert samples["missing_fraction"].to_list() == pytest.approx([0, 65 / 768, 1 / 3])
    assert np.isfinite(np.load(tmp_path / "stamps.npy")).all()


# ---------------------------------------------------------------------------------------------------- bad inputs
def test_an_empty_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        prepare(cutouts(noise(0)), PLAIN, tmp_path, tmp_path)


@pytest.mark.parametrize(
    "stamps", [noise(4, size=18), noise(4).astype(np.float64), noise(4)[:, :2]], ids=["size", "type", "bands"]
)
def test_stamps_of_another_kind_are_refused(tmp_path: Path, stamps: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"allowed: \(3, 16, 16\), float32"):
        prepare(cutouts(stamps), PLAIN, tmp_path, tmp_path)


def test_fewer_stamps_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="4 stamps were read for 7 rows"):
        prepare(cutouts(noise(4), count=7), PLAIN, tmp_path, tmp_path)


@pytest.mark.parametrize("pieces", [1, 2])
def test_more_stamps_than_rows_are_refused(tmp_path: Path, pieces: int) -> None:
    stamps = np.split(noise(8), pieces)
    with pytest.raises(DataError, match=r"at least 8 stamps were read for 7 rows of the table"):
        prepare(cutouts(stamps, count=7), PLAIN, tmp_path, tmp_path)


def test_simulated_images_smaller_than_a_stamp_are_refused(tmp_path: Path, raw: Path) -> None:
    source = Simulated().cut(GalaxiesPreprocess(stamp_px=48), raw, read_manifest(raw / "manifest.parquet"))
    with pytest.raises(DataError, match=r"32 x 32 px are smaller than a stamp of 48 px.*lower preprocess.stamp_px"):
        list(source.chunks)


def test_a_download_without_tables_is_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        Simulated().cut(PLAIN, tmp_path, pl.DataFrame({"path": ["a.npy"], "state": ["failed"]}))


def test_an_unknown_source_names_the_known_ones() -> None:
    with pytest.raises(ManyscopeError, match=r"'hubbel' is unknown.*hubble, .*simulated.*did you mean 'hubble'"):
        find_source("hubbel")
    with pytest.raises(ManyscopeError, match="is not a galaxy source; allowed: a class with download, cut"):
        find_source("math:sqrt")


# ---------------------------------------------------------------------------------------------------- transforms
def test_transforms_run_in_order_and_are_written_with_their_parameters(tmp_path: Path) -> None:
    steps = (
        TransformSettings(name="crop", args={"size_px": 8}),
        TransformSettings(name="asinh", args={"softening": 3.0, "scale": 4.0}),
        TransformSettings(name="torch:square"),
    )
    prepare(cutouts(noise(3)), PLAIN.model_copy(update={"transforms": steps}), tmp_path, tmp_path)
    meta = json.loads((tmp_path / "stamps.json").read_text())
    assert meta["transforms"] == [step.model_dump() for step in steps]
    assert meta["image_shape"] == [3, 8, 8]
    stamps = torch.from_numpy(noise(3))
    expected = ((stamps[..., 4:12, 4:12] / 3).asinh() / 4) ** 2
    torch.testing.assert_close(Transforms(meta["transforms"])(stamps), expected)


@pytest.mark.parametrize("name", ["tanh", "numpy:tanh", "torch:tanh"])
def test_functions_of_torch_and_numpy_work_on_each_pixel(name: str) -> None:
    stamps = torch.from_numpy(noise(2))
    found = Transforms([{"name": name}])(stamps)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.tanh(noise(2)), rtol=1e-6)


def test_a_step_that_makes_something_else_than_images_is_named() -> None:
    with pytest.raises(DataError, match=r"step 'torch:mean' returns shape \(\)"):
        Transforms([{"name": "torch:mean"}])(torch.zeros(2, 1, 4, 4))


def test_the_digest_of_transforms_changes_with_steps_order_and_arguments() -> None:
    steps: list[dict[str, Any]] = [{"name": "asinh", "args": {"scale": 1.0}}, {"name": "crop", "args": {"size_px": 4}}]
    other = [{"name": "asinh", "args": {"scale": 2.0}}, steps[1]]
    digests = [Transforms(some).digest for some in (steps, steps[::-1], other, steps[:1], [{"name": "numpy:tanh"}])]
    assert len(set(digests)) == len(digests)
    assert Transforms(steps).digest == digests[0]


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        ({"name": "asinnh"}, ManyscopeError, "did you mean 'asinh'"),
        ({"name": "asinh", "args": {"soft": 1}}, SettingsError, "step 'asinh'"),
        ({"name": "crop", "args": {"size_px": 40}}, DataError, "a crop of 40 px does not fit stamps of 16 x 16 px"),
        ({"name": "torch:no_such_function"}, ManyscopeError, "no_such_function"),
    ],
)
def test_a_wrong_transform_is_named_before_anything_is_written(
    tmp_path: Path, step: dict[str, Any], error: type[Exception], message: str
) -> None:
    settings = PLAIN.model_copy(update={"transforms": (TransformSettings(**step),)})
    with pytest.raises(error, match=message):
        prepare(cutouts(noise(2)), settings, tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


@given(st.floats(-1e4, 1e4))
def test_asinh_is_odd_and_linear_in_the_noise(value: float) -> None:
    at = lambda x: asinh(torch.tensor(x, dtype=torch.float64)).item()  # noqa: E731
    assert at(value) == pytest.approx(math.asinh(value / 2) / 5)
    assert at(-value) == pytest.approx(-at(value))
    assert abs(at(148.0)) < 1


@given(st.integers(1, 20), st.integers(1, 20))
def test_crops_keep_the_middle_pixel_in_the_middle(large: int, small: int) -> None:
    small, large = sorted((small, large))
    marked = torch.zeros(1, large, large)
    marked[0, large // 2, large // 2] = 1
    assert crop(marked, small)[0, small // 2, small // 2] == 1
    assert middle(marked.numpy(), small, "x")[0, small // 2, small // 2] == 1
