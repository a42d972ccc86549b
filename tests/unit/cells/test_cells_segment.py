"""Tiles of one scale, features on one grid, and micro_sam's three ways to segment."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from manyscope.errors import ManyscopeError
from manyscope.scopes.cells.data.normalize import normalise
from manyscope.scopes.cells.settings import CellsModel, CellsSettings, SimulatedSettings
from manyscope.scopes.cells.simulate import simulate

if TYPE_CHECKING:
    from manyscope.scopes.cells.model.networks import CellSegmenter
    from manyscope.scopes.cells.model.segment import Segmenter

pytestmark = pytest.mark.xdist_group("cells")

Settings = Callable[..., CellsSettings]


@pytest.fixture(scope="session")
def untrained(small_settings: Settings) -> CellSegmenter:
    from manyscope.scopes.cells.model.networks import build

    torch.manual_seed(0)
    return build(small_settings().model)


@pytest.fixture(scope="session")
def picture_384() -> np.ndarray:
    return normalise(simulate(384, 5, SimulatedSettings())[0], 1, 99.5)


def of(model: CellSegmenter, **others: Any) -> Segmenter:
    from manyscope.scopes.cells.model.segment import Segmenter

    return Segmenter(model, CellsModel(patch_px=128), **others)


@contextmanager
def encoding(model: CellSegmenter, encode: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Another encoder in the place of the model's."""
    before = model.unetr.encode
    model.unetr.encode = lambda x: ((encode(x), None, x), x.shape[2:])
    try:
        yield
    finally:
        model.unetr.encode = before


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (height, width)).astype(np.uint8)


@pytest.fixture(autouse=True)
def _without_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """micro_sam collects garbage after each tile, which takes long in a process that has imported much."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


# --------------------------------------------------------------------------------------------------------- tiling
@given(image_size=st.integers(1, 64).map(lambda n: 16 * n), patch=st.integers(1, 16).map(lambda n: 128 * n))
def test_tiles_that_follow_from_the_patch_cover_it(image_size: int, patch: int) -> None:
    from manyscope.scopes.cells.model.tiling import Tiling

    try:
        tiling = Tiling.of(CellsModel(patch_px=patch), image_size)
    except ManyscopeError as error:
        assert patch % (image_size // 16) or (patch // 8) % (patch // (image_size // 16))
        assert str(error).startswith("model.patch_px, model.args: ")  # noqa: PT017
        return
    assert tiling.window_px == patch
    assert tiling.halo_px == patch // 8
    assert tiling.stride_px * tiling.grid == patch
    assert tiling.halo_px % tiling.stride_px == tiling.tile_px % tiling.stride_px == 0


@pytest.mark.parametrize("patch", [128, 256, 512, 1024, 2048])
@pytest.mark.parametrize("image_size", [128, 256, 512, 1024])
def test_usual_sizes_fit(patch: int, image_size: int) -> None:
    from manyscope.scopes.cells.model.tiling import Tiling

    if image_size // 16 <= patch:
        assert Tiling.of(CellsModel(patch_px=patch), image_size).window_px == patch


@pytest.mark.parametrize(("tile", "halo"), [(100, 16), (96, 20), (None, 64), (8, 0)])
def test_tiles_off_the_grid_are_refused(tile: int | None, halo: int) -> None:
    from manyscope.scopes.cells.model.tiling import Tiling

    with pytest.raises(
        ManyscopeError, match=r"infer.tile_px, infer.halo_px: tiles of .* grid of features, 16 x 16, .*; allowed"
    ):
        Tiling.of(CellsModel(patch_px=128), 256, tile, halo)


SIZES = st.tuples(st.integers(1, 420), st.integers(1, 420))
TILES = st.sampled_from([(96, 16), (128, 0), (32, 48), (192, 32), (32, 16)])


@settings(max_examples=40)
@given(size=SIZES, tile=TILES, batch=st.integers(1, 5))
def test_windows_are_alike_and_features_lie_where_their_pixels_do(
    untrained: CellSegmenter, size: tuple[int, int], tile: tuple[int, int], batch: int
) -> None:
    """With means over the fields of the grid in the encoder's place, the stitched features are those of the image."""
    image = noise(*size)
    segmenter = of(untrained, tile_px=tile[0], halo_px=tile[1], batch_size=batch)
    t, shapes = segmenter.tiling, []

    def means(windows: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(windows.shape[1:]))
        assert len(windows) <= batch
        return F.avg_pool2d(windows, t.stride_px).repeat(1, 2, 1, 1)

    with encoding(untrained, means):
        found = segmenter.embed(image)
    assert set(shapes) == {(1, t.window_px, t.window_px)}
    assert t.window_px == tile[0] + 2 * tile[1]
    s = found.stride_px
    rows, columns = -(-size[0] // s), -(-size[1] // s)
    assert found.features.shape == (2, rows, columns)
    whole = image[: size[0] // s * s, : size[1] // s * s]
    wanted = whole.reshape(size[0] // s, s, size[1] // s, s).astype(np.float32).mean((1, 3))
    np.testing.assert_allclose(found.features[0][: size[0] // s, : size[1] // s], wanted, rtol=1e-5)
    assert np.isfinite(found.features).all()
    # Each field comes from the block that its pixels are of, and each tile has the size of what lies in the image.
    assert found.tiles["features"].attrs["shape"] == list(size)
    numbers = np.arange(len(found.tiles["features"])).reshape(-(-size[0] // tile[0]), -(-size[1] // tile[0]))
    covered = np.zeros((rows, columns), int)
    for (i, j), number in np.ndenumerate(numbers):
        own = found.tiles["features"][str(number)]
        outer = [
            (max(0, n * tile[0] - tile[1]), min(m, (n + 1) * tile[0] + tile[1]))
            for n, m in ((i, size[0]), (j, size[1]))
        ]
        assert own.attrs["original_size"] == tuple(end - begin for begin, end in outer)
        assert own.attrs["input_size"] == tuple(round((end - begin) * 128 / t.window_px) for begin, end in outer)
        inner = [slice(n * tile[0] // s, min(k, (n + 1) * tile[0] // s)) for n, k in ((i, rows), (j, columns))]
        local = [slice(a.start - b[0] // s, a.stop - b[0] // s) for a, b in zip(inner, outer, strict=True)]
        np.testing.assert_array_equal(found.features[:, inner[0], inner[1]], own[0][:, local[0], local[1]].numpy())
        covered[inner[0], inner[1]] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("size", [(300, 211), (128, 500), (97, 384)])
def test_windows_are_the_images_pixels_as_they_are(untrained: CellSegmenter, size: tuple[int, int]) -> None:
    """A tile with little contrast stays so: micro_sam stretches each tile on its own."""
    image = noise(*size)
    image[:, size[1] // 2 :] = 120 + image[:, size[1] // 2 :] % 5
    seen: list[np.ndarray] = []
    segmenter = of(untrained)

    def keep(windows: torch.Tensor) -> torch.Tensor:
        assert windows.dtype == torch.float32
        seen.extend(windows[:, 0].numpy())
        return F.avg_pool2d(windows, segmenter.tiling.stride_px)

    with encoding(untrained, keep):
        segmenter.embed(image)
    small = min(size) < 128
    padded = np.pad(image, 128, mode="constant" if small else "reflect")[128:, 128:]
    corners = [(y, x) for y in range(0, size[0], 96) for x in range(0, size[1], 96)]
    assert len(seen) == len(corners)
    for window, (y, x) in zip(seen, corners, strict=True):
        y, x = max(0, y - 16), max(0, x - 16)
        np.testing.assert_array_equal(window, padded[y : y + 128, x : x + 128])
    assert np.ptp(seen[-1][:60, :60]) <= 4 or small


def test_stitched_features_are_those_of_the_windows(seeing_model: CellSegmenter, picture_384: np.ndarray) -> None:
    tiled, alone = of(seeing_model), of(seeing_model, tile_px=128, halo_px=0)
    image = picture_384[:, :300]
    features, s = tiled.embed(image).features, tiled.tiling.stride_px
    assert features.shape == (256, 24, 19)
    for y, x in ((0, 0), (96, 96), (192, 96)):
        top, left = max(0, y - 16), max(0, x - 16)
        window = alone.embed(image[top : top + 128, left : left + 128]).features
        wanted = window[:, (y - top) // s :, (x - left) // s :][:, : 96 // s, : 96 // s]
        np.testing.assert_allclose(features[:, y // s : (y + 96) // s, x // s : (x + 96) // s], wanted, atol=1e-5)


def test_the_decoders_fields_are_those_of_the_network(seeing_model: CellSegmenter, picture_384: np.ndarray) -> None:
    """The way through micro_sam's segmenter is the network's own, with the scale of training."""
    window = picture_384[100:228, 50:178]
    segmenter = of(seeing_model, tile_px=128, halo_px=0)
    fields = segmenter.fields(window, segmenter.embed(window))
    with torch.no_grad():
        wanted = seeing_model.unetr(torch.from_numpy(window[None, None].astype(np.float32)))[0].numpy()
    for name, values in zip(("foreground", "center_distances", "boundary_distances"), wanted, strict=True):
        assert fields[name].dtype == np.float32
        np.testing.assert_allclose(fields[name], values, atol=1e-5)


# ----------------------------------------------------------------------------------------------- whole and in tiles
def test_a_tiled_image_has_the_objects_of_its_windows(seeing_model: CellSegmenter) -> None:
    """Objects that lie within a block and 12 px from its seams, and the decoder's fields in all of the block. With high
    thresholds the briefly trained model gives separate objects; two that touch change each other across a seam."""
    image = normalise(simulate(688, 6, SimulatedSettings())[0], 1, 99.5)
    seeing_model.chosen.copy_(torch.tensor([0.7, 0.7, 0.5, 25]))
    tiled, alone = of(seeing_model), of(seeing_model, tile_px=128, halo_px=0)
    segmented = tiled(image)
    masks, found, same = segmented.masks, 0, 0
    for y in range(0, 672, 96):
        for x in range(0, 672, 96):
            top, left = max(0, y - 16), max(0, x - 16)
            whole = alone(image[top : top + 128, left : left + 128])
            window = whole.masks
            inner = segmented.foreground[y : y + 96, x : x + 96]
            np.testing.assert_allclose(inner, whole.foreground[y - top :, x - left :][:96, :96], atol=1e-4)
            block = np.zeros_like(masks, bool)
            block[y + 12 : y + 84, x + 12 : x + 84] = True
            for label in np.unique(masks[block])[1:]:
                one = masks == label
                if (one & ~block).any():
                    continue
                found += 1
                inside = one[top : top + 128, left : left + 128]
                others = np.unique(window[inside])
                same += any(
                    (inside & (window == other)).sum() > 0.99 * (inside | (window == other)).sum()
                    for other in others[others > 0]
                )
    assert found >= 20
    assert same >= 0.99 * found


@pytest.mark.parametrize("size", [(128, 128), (60, 90), (211, 140), (16, 400), (5, 5)])
def test_any_size_gives_masks_of_that_size(seeing_model: CellSegmenter, picture_384: np.ndarray, size: Any) -> None:
    image = np.tile(picture_384, (1, 2))[: size[0], : size[1]]
    found = of(seeing_model)(image)
    assert found.masks.shape == found.foreground.shape == size
    assert found.masks.dtype == np.uint32
    assert found.foreground.dtype == np.float32
    assert 0 <= found.foreground.min() <= found.foreground.max() <= 1


def test_thresholds_are_those_of_the_model(seeing_model: CellSegmenter, picture_384: np.ndarray) -> None:
    segmenter, image = of(seeing_model), picture_384[:128, :128]
    fields = segmenter.fields(image, segmenter.embed(image))
    for centre, border, foreground in ((0.5, 0.5, 0.3), (0.3, 0.5, 0.5), (0.5, 0.7, 0.3)):
        seeing_model.chosen.copy_(torch.tensor([centre, border, foreground, 25]))
        wanted = segmenter.instances(fields, centre=centre, border=border, foreground=foreground)
        np.testing.assert_array_equal(segmenter(image).masks, wanted)
    masks = [
        segmenter.instances(fields, centre=0.5, border=0.5, foreground=threshold) for threshold in (0.2, 0.5, 0.999)
    ]
    assert (masks[0] > 0).sum() > (masks[1] > 0).sum() > (masks[2] > 0).sum() == 0


# ---------------------------------------------------------------------------------------------------- three modes
@pytest.mark.parametrize(
    ("mode", "mode_args"),
    [
        ("ais", {"foreground_smoothing": 0.5}),
        ("apg", {"nms_threshold": 0.5, "min_size": 0}),
        ("amg", {"pred_iou_thresh": -10.0, "stability_score_thresh": 0.0, "with_background": False}),
    ],
)
def test_each_mode_segments(
    seeing_model: CellSegmenter, picture_384: np.ndarray, mode: str, mode_args: dict[str, Any]
) -> None:
    image = picture_384[:130, :110]
    segmenter = of(seeing_model, mode=mode, mode_args=mode_args)
    if mode == "amg":
        segmenter._prompter.point_grids = [segmenter._prompter.point_grids[0][::31]]  # 1024 in each tile take long
    masks = segmenter(image).masks
    assert masks.shape == (130, 110)
    assert masks.dtype == np.uint32
    assert masks.max() >= 1


@pytest.mark.parametrize("mode", ["ais", "apg", "amg"])
@pytest.mark.parametrize("mode_args", [{"no_such": 1}, {"output_mode": "nothing"}, {"min_size": "small"}])
def test_arguments_that_micro_sam_refuses_are_one_line(
    seeing_model: CellSegmenter, picture_384: np.ndarray, mode: str, mode_args: dict[str, Any]
) -> None:
    if mode == "amg" and "min_size" in mode_args:
        mode_args = {"pred_iou_thresh": "high"}
    segmenter = of(seeing_model, mode=mode, mode_args=mode_args)
    if mode == "amg":
        segmenter._prompter.point_grids = [segmenter._prompter.point_grids[0][:4]]
    with pytest.raises(ManyscopeError, match=rf"^infer.mode_args: micro_sam refuses .* of mode '{mode}'") as refused:
        segmenter(picture_384[:100, :100])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("mode", ["apg", "amg"])
@pytest.mark.parametrize(("tile", "halo"), [(96, 16), (192, 32)])
def test_prompts_lie_where_the_model_sees_them(
    seeing_model: CellSegmenter,
    picture_384: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    tile: int,
    halo: int,
) -> None:
    """Tiles at the border are smaller than a window and of the same scale; micro_sam alone would stretch them."""
    import micro_sam.instance_segmentation as micro_sam
    from segment_anything import SamPredictor

    segmenter = of(seeing_model, mode=mode, tile_px=tile, halo_px=halo)
    image, grid = picture_384[:300, :330], np.array([[0.25, 0.5], [0.9, 0.99]])
    derived: list[np.ndarray] = []
    derive = micro_sam._derive_point_prompts

    def deriving(*fields: Any, **thresholds: Any) -> Any:
        found = derive(*fields, **thresholds)
        derived.append(found["points"][:, 0])
        return found

    monkeypatch.setattr(micro_sam, "_derive_point_prompts", deriving)
    corners = [(max(0, x - halo), max(0, y - halo)) for y in range(0, 300, tile) for x in range(0, 330, tile)]
    placed: list[tuple[tuple[int, int], tuple[int, int], np.ndarray]] = []
    predict = SamPredictor.predict_torch

    def predicting(self: SamPredictor, point_coords: torch.Tensor, *others: Any, **more: Any) -> Any:
        number = next(i for i in range(len(corners)) if self.features is tiles[str(i)])
        pixels = point_coords[:, 0].numpy() * (tile + 2 * halo) / 128
        placed.append((corners[number], self.original_size, pixels))
        return predict(self, point_coords, *others, **more)

    monkeypatch.setattr(SamPredictor, "predict_torch", predicting)
    embedded = segmenter.embed(image)
    tiles = embedded.tiles["features"]
    monkeypatch.setattr(segmenter, "embed", lambda image: embedded)
    if mode == "amg":
        segmenter._prompter.point_grids = [grid]
    segmenter(image)
    if mode == "amg":
        assert [corner for corner, _, _ in placed] == corners
        for _, (height, width), pixels in placed:
            np.testing.assert_allclose(pixels, grid * [width, height], atol=1e-3)
    else:
        everywhere = np.concatenate([pixels + corner for corner, _, pixels in placed])
        (wanted,) = derived
        assert len(wanted) >= 8
        order, other = (np.lexsort(points.round(3).T) for points in (everywhere, wanted))
        np.testing.assert_allclose(everywhere[order], wanted[other], atol=1e-2)


# --------------------------------------------------------------------------------------------------------- memory
LARGE = """
import json, resource, sys
import numpy as np
from manyscope.scopes.cells.data.normalize import normalise
from manyscope.scopes.cells.model.infer import described
from manyscope.scopes.cells.model.networks import build
from manyscope.scopes.cells.model.segment import Segmenter
from manyscope.scopes.cells.objects import measure
from manyscope.scopes.cells.settings import CellsInfer, CellsModel, SimulatedSettings
from manyscope.scopes.cells.simulate import simulate
from manyscope.training.checkpoints import load_weights

values = json.loads(sys.argv[2])
model = build(CellsModel(**values))
load_weights(sys.argv[1], model, "cells", values)
part = normalise(simulate(512, 1, SimulatedSettings())[0], 1, 99.5)
image = np.block([[part, part[:, ::-1]], [part[::-1], part[::-1, ::-1]]])
image = np.block([[image, image], [image, image]])
infer = CellsInfer()
masks, vectors, foreground = described(Segmenter.of(model, CellsModel(**values), infer), infer, image)
columns = measure(masks, image, foreground)
assert len(vectors) == len(columns["label"]) == masks.max() and vectors.shape[1] == 768
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"shape": masks.shape, "cells": int(masks.max()), "peak": peak}))
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_large_image_takes_less_than_four_gibibytes(seeing: Any) -> None:
    model = json.dumps(seeing.settings.model.model_dump(mode="json"))
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(seeing.run.best), model],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["shape"] == [2048, 2048]
    assert found["cells"] > 1000
    assert found["peak"] < 4 * 2**30


def test_the_settings_of_infer_reach_the_segmenter(untrained: CellSegmenter, small_settings: Settings) -> None:
    from manyscope.scopes.cells.model.segment import Segmenter

    given_ = small_settings(
        train={"mode": "full"},
        infer={"mode": "apg", "tile_px": 64, "halo_px": 32, "batch_size": 7, "mode_args": {"min_size": 3}},
    )
    segmenter = Segmenter.of(untrained, given_.model, given_.infer)
    assert (segmenter.mode, segmenter.batch_size, segmenter.mode_args) == ("apg", 7, {"min_size": 3})
    assert (segmenter.tiling.tile_px, segmenter.tiling.halo_px) == (64, 32)
