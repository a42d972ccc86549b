"""Pictures of stamps in any unit and with any number of bands, and files that become stamps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from astropy.io import fits
from PIL import Image

from manyscope.errors import DataError
from manyscope.scopes.galaxies.data.fits import less_sky
from manyscope.scopes.galaxies.data.prepare import prepare
from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.scopes.galaxies.data.stamps import FEATURE, GREY_LEVELS, SKY_RMS, StampData
from manyscope.scopes.galaxies.data.thumbnails import painter, rgb, thumbnails
from manyscope.scopes.galaxies.evaluate import figures
from manyscope.scopes.galaxies.query import embed_image, query_stamp
from manyscope.scopes.galaxies.settings import GalaxiesModel, GalaxiesPreprocess
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import check_samples

COUNT = 40


def made(folder: Path, stamps: np.ndarray, unit: str, top_down: bool = False, **settings: Any) -> StampData:
    folder.mkdir(exist_ok=True)
    ids = [f"s{i}" for i in range(len(stamps))]
    table = pl.DataFrame({"sample_id": ids, "group": ids})
    bands = [f"b{i}" for i in range(stamps.shape[1])]
    section = GalaxiesPreprocess(**{"transforms": (), "validation_fraction": 0.2, **settings})
    size = stamps.shape[-1]
    cutouts = Cutouts([stamps.astype(np.float32)], table, bands, unit=unit, top_down=top_down, size_px=size)
    write_table(folder / "samples.parquet", check_samples(prepare(cutouts, section, folder, folder), folder))
    return StampData(folder)


def noise(bands: int, size: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((COUNT, bands, size, size)).astype(np.float32)


@pytest.mark.parametrize("unit", [SKY_RMS, GREY_LEVELS, "as in the files"])
@pytest.mark.parametrize("bands", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 16])
def test_every_stamp_has_a_picture(tmp_path: Path, bands: int, size: int, unit: str) -> None:
    made(tmp_path, noise(bands, size), unit)
    first, nothing = thumbnails(tmp_path, ["s3", "unknown"])
    assert nothing is None
    assert first is not None
    assert (first.size, first.mode) == ((size, size), "RGB")
    if bands == 1:
        red, green, blue = (np.asarray(first)[..., i] for i in range(3))
        assert (red == green).all()
        assert (green == blue).all()


def test_features_have_no_picture(tmp_path: Path) -> None:
    made(tmp_path, noise(7, 1), FEATURE)
    assert list(thumbnails(tmp_path, ["s0", "s1"])) == [None, None]


def test_a_photograph_is_shown_as_it_was() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8))
    paint = painter(GREY_LEVELS, np.empty((0, 3, 8, 8)), top_down=True)
    assert paint is not None
    np.testing.assert_array_equal(paint((pixels / 127.5 - 1).astype(np.float32)), pixels[::-1].transpose(1, 2, 0))


def test_counts_of_a_detector_are_shown_as_if_in_rms_of_the_sky() -> None:
    stamps = noise(3, 16)
    stamps[:, :, 6:10, 6:10] += 40
    paint = painter("as in the files", stamps * 7.0 + 1000.0, top_down=True)
    assert paint is not None
    shown, expected = paint(stamps[0] * 7.0 + 1000.0), rgb(stamps[0])
    assert np.abs(shown.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("unit", [SKY_RMS, GREY_LEVELS, "as in the files"])
@pytest.mark.parametrize("top_down", [True, False])
def test_page_and_gallery_show_a_stamp_the_same_way_up(tmp_path: Path, unit: str, top_down: bool) -> None:
    stamps = np.zeros((COUNT, 3, 16, 16))
    stamps[:, :, :4, :8] = 0.9  # the first rows
    data = made(tmp_path, stamps, unit, top_down)
    (thumbnail,) = thumbnails(tmp_path, [data.samples["sample_id"][0]])
    picture = np.asarray(thumbnail)
    bright, dark = (slice(4), slice(-4, None)) if top_down else (slice(-4, None), slice(4))
    assert picture[bright, :8].min() > picture[dark].max()
    paint = painter(data.unit, data.stamps, data.top_down)
    assert paint is not None
    gallery = figures.gallery(data.stamps[:1], ["a"], paint)
    strips = figures.strips(data.stamps[None, :2], paint)
    for figure in (gallery, strips):
        shown = figure.axes[0].images[0]
        np.testing.assert_array_equal(shown.get_array(), picture)
        assert shown.origin == "upper"


# Files that become stamps


def sky(bands: int) -> np.ndarray:
    """An image of 30 x 34 px in rms of the sky, and brighter in the middle."""
    image = np.random.default_rng(2).standard_normal((bands, 30, 34))
    image[:, 12:18, 14:20] += 30 * np.arange(1, bands + 1)[:, None, None]
    return image


@pytest.mark.parametrize("bands", [1, 2, 5])
@pytest.mark.parametrize("kind", ["fits", "fits.gz", "npy"])
def test_a_cutout_becomes_a_stamp_in_the_unit_of_the_data(tmp_path: Path, bands: int, kind: str) -> None:
    data = made(tmp_path / "prepared", noise(bands, 16), SKY_RMS)
    pixels = (sky(bands) * 12 + 500).astype(np.float32)
    pixels = pixels[0] if bands == 1 else pixels
    path = tmp_path / f"query.{kind}"
    if kind == "npy":
        np.save(path, pixels)
    else:
        fits.PrimaryHDU(pixels).writeto(path)
    stamp = query_stamp(data, path)
    assert stamp.dtype == np.float32
    expected = sky(bands)[:, 7:23, 9:25]
    np.testing.assert_allclose(stamp, expected, rtol=0.1, atol=0.3)


def test_data_in_other_units_take_a_cutout_as_it_is(tmp_path: Path) -> None:
    data = made(tmp_path / "prepared", noise(2, 16), "as in the files")
    np.save(tmp_path / "query.npy", sky(2))
    np.testing.assert_allclose(query_stamp(data, tmp_path / "query.npy"), sky(2)[:, 7:23, 9:25], rtol=1e-6)


def test_a_photograph_among_photographs(tmp_path: Path) -> None:
    data = made(tmp_path / "prepared", noise(3, 16), GREY_LEVELS, top_down=True)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "query.png")
    stamp = query_stamp(data, tmp_path / "query.png")
    np.testing.assert_allclose(stamp, pixels.transpose(2, 0, 1)[::-1] / 127.5 - 1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("top_down", [True, False])
def test_a_saved_thumbnail_finds_its_stamp(tmp_path: Path, top_down: bool) -> None:
    data = made(tmp_path / "prepared", noise(3, 16).clip(-1, 1), GREY_LEVELS, top_down)
    (thumbnail,) = thumbnails(tmp_path / "prepared", [data.samples["sample_id"][4]])
    assert thumbnail is not None
    thumbnail.save(tmp_path / "query.png")
    np.testing.assert_allclose(query_stamp(data, tmp_path / "query.png"), data.stamps[4], atol=1 / 255)


def test_a_fits_file_among_photographs_is_turned_the_right_way_up(tmp_path: Path) -> None:
    data = made(tmp_path / "prepared", noise(2, 16), SKY_RMS, top_down=True)
    image = sky(2)[:, 7:23, 9:25]
    fits.PrimaryHDU(image).writeto(tmp_path / "query.fits")
    np.testing.assert_allclose(query_stamp(data, tmp_path / "query.fits"), less_sky(image)[:, ::-1], rtol=1e-5)


@pytest.mark.parametrize("unit", ["as in the files", "uniform from 0 to 1"])
def test_a_photograph_among_data_in_other_units_is_refused(tmp_path: Path, unit: str) -> None:
    data = made(tmp_path / "prepared", noise(3, 16), unit)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "query.png")
    with pytest.raises(DataError, match=rf"no values in the unit of the data, '{unit}'; allowed: a FITS file"):
        query_stamp(data, tmp_path / "query.png")


@pytest.mark.parametrize("pad_value", [0.0, -3.0, None])
def test_a_small_cutout_is_padded_as_the_data_were(tmp_path: Path, pad_value: float | None) -> None:
    small = sky(2)[:, 9:21, 11:23]  # 12 px
    data = made(tmp_path / "p", noise(2, 16), SKY_RMS, edge="pad", pad_value=pad_value, nan_policy="zero")
    np.save(tmp_path / "query.npy", small)
    stamp = query_stamp(data, tmp_path / "query.npy")
    np.testing.assert_allclose(stamp[:, 2:14, 2:14], less_sky(small), rtol=1e-6)
    outside = np.ones((16, 16), bool)
    outside[2:14, 2:14] = False
    assert (stamp[:, outside] == (pad_value or 0)).all()


@pytest.mark.parametrize("unit", [SKY_RMS, GREY_LEVELS])
def test_a_small_photograph_is_padded_in_the_unit_of_the_data(tmp_path: Path, unit: str) -> None:
    data = made(tmp_path / "p", noise(3, 16), unit, top_down=True, edge="pad")
    pixels = np.random.default_rng(0).integers(90, 110, (12, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "query.png")
    stamp = query_stamp(data, tmp_path / "query.png")
    bands = pixels.transpose(2, 0, 1)[::-1].astype(float)
    expected = less_sky(bands) if unit == SKY_RMS else bands / 127.5 - 1
    np.testing.assert_allclose(stamp[:, 2:14], expected[:, :, 2:18], rtol=1e-5, atol=1e-5)
    assert not stamp[:, :2].any()
    assert not stamp[:, 14:].any()


def test_features_are_asked_for_by_features(tmp_path: Path) -> None:
    data = made(tmp_path / "prepared", noise(4, 1), FEATURE)
    np.save(tmp_path / "query.npy", np.array([1.0, 2, 3, 4]))
    assert query_stamp(data, tmp_path / "query.npy")[:, 0, 0].tolist() == [1, 2, 3, 4]
    with pytest.raises(DataError, match=r"features are no image; allowed: a \.npy of 4 numbers"):
        query_stamp(data, tmp_path / "query.png")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((3, 20, 20)), "the image has 3 bands; allowed: 2 as the data"),
        (np.zeros((2, 20, 15)), "images of 15 x 20 px are smaller than a stamp of 16 px"),
        (np.full((2, 20, 20), np.nan), "not finite"),
        (np.zeros(5), r"the array has shape \(5,\)"),
        (np.zeros((2, 20, 20), complex), "type complex128"),
        (np.array([{}]), "not a readable array"),  # a pickle
    ],
)
def test_what_cannot_be_a_stamp_is_named(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    data = made(tmp_path / "prepared", noise(2, 16), SKY_RMS)
    np.save(tmp_path / "query.npy", pixels)
    with pytest.raises(DataError, match=message):
        query_stamp(data, tmp_path / "query.npy")


def test_missing_pixels_of_a_query_follow_the_policy_of_the_data(tmp_path: Path) -> None:
    data = made(tmp_path / "prepared", noise(2, 16), SKY_RMS, nan_policy="quantile", nan_quantile=0.5)
    pixels = sky(2)
    pixels[:, 15, 17] = np.inf
    np.save(tmp_path / "query.npy", pixels)
    assert np.isfinite(query_stamp(data, tmp_path / "query.npy")).all()


def test_a_cutout_is_embedded_as_the_data_were(tmp_path: Path) -> None:
    import torch

    from manyscope.scopes.galaxies.model import build_model
    from manyscope.training.checkpoints import save_weights

    images = sky(2)[None] + 0.1 * np.random.default_rng(5).standard_normal((COUNT, 2, 30, 34))
    data = made(tmp_path / "prepared", images[:, :, 7:23, 9:25], SKY_RMS)
    settings = GalaxiesModel(name="autoencoder", args={"latent": 4})
    torch.manual_seed(0)
    model = build_model(settings, data)
    save_weights(tmp_path / "model.ckpt", model, "galaxies", settings.model_dump(mode="json"))
    fits.PrimaryHDU(images[7] * 3 - 20).writeto(tmp_path / "query.fits")
    found = embed_image(settings, data, tmp_path / "model.ckpt", tmp_path / "query.fits")
    assert found.shape == (4,)
    assert np.isfinite(found).all()
