"""From weights to objects: masks on disk, one row and one vector for each cell; and queries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from manyscope.errors import CheckpointError, DataError, ManyscopeError
from manyscope.scopes.cells.data.images import CellImages
from manyscope.scopes.cells.data.reading import write_tif
from manyscope.scopes.cells.masks import read_masks
from manyscope.scopes.cells.objects import measure, pool
from manyscope.scopes.cells.scope import Cells
from manyscope.scopes.cells.settings import CellsInfer, CellsSettings
from manyscope.tables.predictions import Objects

if TYPE_CHECKING:
    from manyscope.scopes.cells.model.networks import CellSegmenter

pytestmark = pytest.mark.xdist_group("cells")


def settings_with(seeing: Any, **infer: Any) -> CellsSettings:
    """Those of the briefly trained model as the infer stage has them."""
    values = seeing.settings.stage_values("train")
    return CellsSettings.model_validate({**values, "infer": infer}).for_stage("infer")  # type: ignore[return-value]


@pytest.fixture
def predicted(seeing: Any, small_images: Path, tmp_path: Path) -> Callable[..., list[Objects]]:
    def predict(*ids: str, **infer: Any) -> list[Objects]:
        return list(Cells().predict(settings_with(seeing, **infer), small_images, seeing.run.best, ids, tmp_path))

    return predict


def test_one_row_and_one_vector_for_each_cell(
    predicted: Callable[..., list[Objects]],
    seeing_model: CellSegmenter,
    seeing: Any,
    small_data: CellImages,
    tmp_path: Path,
) -> None:
    from manyscope.scopes.cells.model.segment import Segmenter

    ids = small_data.samples["sample_id"].to_list()[3:1:-1]
    found = predicted(*ids)
    assert [objects.samples for objects in found] == [[name] for name in ids]
    for objects, name in zip(found, ids, strict=True):
        image = small_data.image(small_data.samples["sample_id"].to_list().index(name))
        masks = read_masks(tmp_path / "masks", name)
        assert masks.shape == image.shape
        cells = int(masks.max())
        assert cells >= 3
        assert objects.object_id == [f"{name}/{label}" for label in range(1, cells + 1)]
        assert objects.sample_id == [name] * cells
        assert objects.embedding.shape == (cells, 768)
        assert objects.embedding.dtype == np.float32
        assert np.isfinite(objects.embedding).all()
        segmented = Segmenter(seeing_model, seeing.settings.model)(image)
        wanted = pool(segmented.embedded.features, masks, segmented.embedded.stride_px, ("mean", "std", "max"))
        np.testing.assert_allclose(objects.embedding, wanted, atol=1e-5)
        columns = measure(masks, image, segmented.foreground)
        assert objects.columns.keys() == columns.keys()
        for key in columns:
            np.testing.assert_allclose(objects.columns[key], columns[key], rtol=1e-5)


def test_the_settings_decide_what_is_kept(
    predicted: Callable[..., list[Objects]], small_data: CellImages, seeing_model: CellSegmenter
) -> None:
    name = small_data.samples["sample_id"][0]

    def areas(**infer: Any) -> np.ndarray:
        return predicted(name, **infer)[0].columns["area_px"]

    everything, chosen = areas(min_area_px=0), areas()
    assert (np.sort(chosen) == np.sort(everything[everything >= int(seeing_model.chosen[3])])).all()
    assert len(areas(min_area_px=int(np.median(everything)) + 1)) < len(everything)
    assert sorted(areas(min_area_px=0, largest=2)) == sorted(everything)[-2:]
    inner = predicted(name, border_margin_px=5)[0].columns
    assert (inner["top_px"] >= 5).all()
    assert predicted(name, pooling=("max",))[0].embedding.shape[1] == 256


def test_masks_may_be_ome_zarr(predicted: Callable[..., list[Objects]], small_data: CellImages, tmp_path: Path) -> None:
    name = small_data.samples["sample_id"][0]
    predicted(name)
    tif = read_masks(tmp_path / "masks", name)
    for file in (tmp_path / "masks").iterdir():
        file.unlink()
    predicted(name, masks="ome-zarr")
    assert [path.suffix for path in (tmp_path / "masks").iterdir()] == [".zarr"]
    np.testing.assert_array_equal(read_masks(tmp_path / "masks", name), tif)


def test_an_image_without_cells_has_masks_and_no_objects(
    predicted: Callable[..., list[Objects]], small_data: CellImages, tmp_path: Path
) -> None:
    name = small_data.samples["sample_id"][0]
    (objects,) = predicted(name, min_area_px=100_000)
    assert objects.samples == [name]
    assert objects.object_id == []
    assert objects.embedding.shape == (0, 768)
    assert not read_masks(tmp_path / "masks", name).any()


def test_a_query_is_the_cell_nearest_to_the_centre(
    seeing: Any, predicted: Callable[..., list[Objects]], small_data: CellImages, small_images: Path, tmp_path: Path
) -> None:
    """The prepared image as a query is its own sample, but for a normalisation that changes no grey value much."""
    name = small_data.samples["sample_id"][1]
    low, high = small_data.meta["low_percentile"], small_data.meta["high_percentile"]
    small_data.meta.update(low_percentile=0, high_percentile=100)
    assert (small_data.normalised(small_data.image_file(1)) == small_data.image(1)).all()
    small_data.meta.update(low_percentile=low, high_percentile=high)

    class Alike(Cells):
        def data(self, settings: Any, prepared: Path) -> CellImages:
            data = CellImages(prepared)
            data.meta.update(low_percentile=0, high_percentile=100)
            return data

    vector = Alike().embed_query(settings_with(seeing), small_images, seeing.run.best, small_data.image_file(1))
    (objects,) = predicted(name)
    masks = read_masks(tmp_path / "masks", name)
    y, x = np.nonzero(masks)
    nearest = masks[y, x][np.hypot(y - 79.5, x - 79.5).argmin()]
    np.testing.assert_allclose(vector, objects.embedding[nearest - 1], atol=1e-5)


def test_a_query_without_a_cell_is_a_clear_error(seeing: Any, small_images: Path, tmp_path: Path) -> None:
    write_tif(tmp_path / "empty.tif", np.arange(1, 6401).reshape(80, 80).astype(np.uint16))
    with pytest.raises(DataError, match="no cell is found in this image; give an image that shows a cell"):
        Cells().embed_query(
            settings_with(seeing, min_area_px=10_000), small_images, seeing.run.best, tmp_path / "empty.tif"
        )


def test_what_cannot_be_used_is_refused(
    seeing: Any, predicted: Callable[..., list[Objects]], small_images: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no_such"):
        predicted("no_such")
    with pytest.raises(ManyscopeError, match=r"infer.tile_px, infer.halo_px: tiles of 48 px"):
        predicted("cells-0000", tile_px=48, halo_px=32)
    values = seeing.settings.stage_values("train")
    other = CellsSettings.model_validate({**values, "model": {**values["model"], "decoder_features": 3}})
    with pytest.raises(CheckpointError, match="in the file and"):
        list(Cells().predict(other.for_stage("infer"), small_images, seeing.run.best, ["cells-0000"], tmp_path))  # type: ignore[arg-type]


def test_pixels_are_as_likely_as_the_decoder_says(
    seeing: Any, seeing_model: CellSegmenter, small_data: CellImages
) -> None:
    from manyscope.scopes.cells.model.infer import described
    from manyscope.scopes.cells.model.segment import Segmenter

    segmenter = Segmenter(seeing_model, seeing.settings.model)
    masks, vectors, foreground = described(segmenter, CellsInfer(), small_data.image(0))
    truth = small_data.labels(0)
    assert truth is not None
    assert foreground[truth > 0].mean() > foreground[truth == 0].mean() + 0.1
    assert len(vectors) == masks.max()
