"""The photograph: copied as it is, its sources measured, and cut so that no pixel is in two splits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from manyscope.errors import DataError
from manyscope.scopes.galaxies.data.hubble import Hubble, read_photograph, subtract_sky, windowed_ellipticity
from manyscope.scopes.galaxies.data.prepare import prepare
from manyscope.scopes.galaxies.data.thumbnails import painter
from manyscope.scopes.galaxies.settings import GalaxiesDownload, GalaxiesPreprocess

NAME = "hubble_deep_field.jpg"
SETTINGS = GalaxiesPreprocess(stamp_px=32, block_px=60)
MANIFEST = pl.DataFrame({"path": [NAME], "state": ["done"]})


def photograph(path: Path, sources: list[tuple[float, float, float, float, float]], size: int = 240) -> None:
    """A noisy colour image of elliptical Gaussians (x, y, sigma, axis ratio, red over blue)."""
    rng = np.random.default_rng(0)
    image = rng.normal(20, 2, (size, size, 3))
    yy, xx = np.mgrid[:size, :size]
    for x, y, sigma, ratio, red in sources:
        light = 120 * np.exp(-((xx - x) ** 2 + ((yy - y) / ratio) ** 2) / (2 * sigma**2))
        image += light[..., None] * np.array([red, 1.0, 1.0]) / max(red, 1)
    # lossless, whatever the name says: Pillow goes by the content
    Image.fromarray(image.clip(0, 253).astype(np.uint8)).save(path, format="PNG")


def test_download_copies_the_bundled_file_once(tmp_path: Path) -> None:
    import skimage.data

    bundled = Path(skimage.data.__file__).parent / NAME
    entries = list(Hubble().download(GalaxiesDownload(), tmp_path))
    copy = tmp_path / NAME
    assert [e.path for e in entries] == [NAME]
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(bundled.read_bytes()).digest()
    before = copy.stat().st_mtime_ns
    list(Hubble().download(GalaxiesDownload(), tmp_path))
    assert copy.stat().st_mtime_ns == before
    copy.write_bytes(b"cut short")
    list(Hubble().download(GalaxiesDownload(), tmp_path))
    assert copy.stat().st_size == bundled.stat().st_size


def test_a_source_is_shown_as_it_is_in_the_photograph(tmp_path: Path) -> None:
    photograph(tmp_path / NAME, [(60.0, 60.0, 3.0, 1.0, 1.0), (66.0, 50.0, 2.0, 1.0, 1.0)])  # one up and to the right
    cutouts = Hubble().cut(SETTINGS, tmp_path, MANIFEST)
    stamps = next(iter(cutouts.chunks))
    paint = painter(cutouts.unit, stamps, cutouts.top_down)
    assert paint is not None
    x, y = (round(place) for place in cutouts.table.select("x_px", "y_px").row(0))
    expected = read_photograph(tmp_path / NAME).mean(0)[y - 16 : y + 16, x - 16 : x + 16]
    shown = paint(stamps[0]).mean(2)
    likeness = [np.corrcoef(one.ravel(), expected.ravel())[0, 1] for one in (shown, shown[::-1])]
    assert likeness[0] > 0.7 > likeness[1] + 0.1


def test_measurements_of_known_sources(tmp_path: Path) -> None:
    sources = [(60.0, 60.0, 2.0, 1.0, 1.0), (150.0, 80.0, 4.0, 1.0, 1.0), (90.0, 160.0, 4.0, 0.4, 0.3)]
    photograph(tmp_path / NAME, sources)
    cutouts = Hubble().cut(SETTINGS, tmp_path, MANIFEST)
    table, (stamps,) = cutouts.table, list(cutouts.chunks)
    assert stamps.shape == (len(table), 3, 32, 32)
    assert stamps.dtype == np.float32
    found = [
        table.sort((pl.col("x_px") - x).abs() + (pl.col("y_px") - y).abs()).row(0, named=True) for x, y, *_ in sources
    ]
    for (x, y, *_), row in zip(sources, found, strict=True):
        assert row["x_px"] == pytest.approx(x, abs=0.3)
        assert row["y_px"] == pytest.approx(y, abs=0.3)
        assert row["sample_id"] == f"hdf-{round(row['x_px']):04d}-{round(row['y_px']):04d}"
        peak = stamps[table["sample_id"].to_list().index(row["sample_id"])].mean(0)
        assert np.abs(np.subtract(np.unravel_index(peak.argmax(), peak.shape), 16)).max() <= 1
    narrow, wide, flat = found
    assert wide["flux"] > 2 * narrow["flux"]
    # half of the light of a round Gaussian lies within 1.177 sigma
    assert narrow["half_light_radius"] == pytest.approx(1.177 * 2, rel=0.15)
    assert wide["half_light_radius"] == pytest.approx(1.177 * 4, rel=0.15)
    assert wide["ellipticity"] < 0.1 < 0.3 < flat["ellipticity"]
    assert abs(narrow["colour"] - wide["colour"]) < 0.1
    assert flat["colour"] < narrow["colour"] - 0.3


def test_small_sources_have_no_shape(tmp_path: Path) -> None:
    photograph(tmp_path / NAME, [(60.0, 60.0, 1.5, 1.0, 1.0), (150.0, 150.0, 5.0, 0.7, 1.0)])
    table = Hubble().cut(SETTINGS.model_copy(update={"min_shape_px": 150}), tmp_path, MANIFEST).table
    small = table.filter(pl.col("area_px") < 150)
    assert len(small)
    assert small["ellipticity"].is_null().all()
    assert table.filter(pl.col("area_px") >= 150)["ellipticity"].is_not_null().all()


def test_ellipticity_does_not_depend_on_the_angle() -> None:
    yy, xx = np.mgrid[:41, :41] - 20.0
    found = np.array([(20.0, 20.0)], dtype=[("x", float), ("y", float)])
    values = []
    for angle in np.linspace(0, np.pi, 7):
        u, v = xx * np.cos(angle) + yy * np.sin(angle), yy * np.cos(angle) - xx * np.sin(angle)
        image = np.exp(-(u**2 + (v / 0.5) ** 2) / 18)
        values += list(windowed_ellipticity(image, np.zeros((41, 41), int), found, np.array([3.0])))
    assert np.ptp(values) < 0.01
    assert 0.2 < values[0] < 0.5  # the round weight lowers the true 0.5


def test_sky_becomes_zero_with_unit_noise() -> None:
    rng = np.random.default_rng(0)
    gradient = np.linspace(10, 14, 256)[:, None]
    image = (gradient + rng.normal(0, 3, (2, 256, 256))).astype(np.float32)
    flat = subtract_sky(image, 64)
    assert flat.mean() == pytest.approx(0, abs=0.05)
    assert flat.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut short"])
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(DataError, match="cannot be decoded") as error:
        Hubble().cut(SETTINGS, tmp_path, MANIFEST)
    assert error.value.place == tmp_path / NAME


@pytest.mark.parametrize("pixels", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8)])
def test_an_image_of_the_wrong_kind_is_named(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"allowed: \(height, width, 3\), uint8"):
        read_photograph(tmp_path / "x.png")


def test_a_missing_image_asks_for_the_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run the stage 'download'"):
        read_photograph(tmp_path / "x.png")


def test_an_image_without_sources_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.full((128, 128, 3), 30, np.uint8)).save(tmp_path / NAME, format="PNG")
    with pytest.raises(DataError, match=r"no source was found.*detection_threshold"):
        Hubble().cut(SETTINGS, tmp_path, MANIFEST)


def test_sources_at_the_edge_only_are_an_error(tmp_path: Path) -> None:
    photograph(tmp_path / NAME, [(4.0, 60.0, 2.0, 1.0, 1.0)], size=128)
    with pytest.raises(DataError, match="stamp lies inside the image"):
        Hubble().cut(SETTINGS.model_copy(update={"detection_threshold": 8.0}), tmp_path, MANIFEST)


def test_the_deep_field_itself(tmp_path: Path) -> None:
    list(Hubble().download(GalaxiesDownload(), tmp_path))
    settings, prepared = GalaxiesPreprocess(), tmp_path / "prepared"
    prepared.mkdir()
    cutouts = Hubble().cut(settings, tmp_path, MANIFEST)
    assert 1600 < len(cutouts.table) < 2100
    samples = prepare(cutouts, settings, tmp_path, prepared)
    counts = dict(samples.group_by("split").len().iter_rows())
    assert counts["train"] > 700
    assert counts["test"] > 300
    assert counts["validation"] > 50
    stamps = np.load(prepared / "stamps.npy", mmap_mode="r")
    assert stamps.shape == (len(samples), 3, 48, 48)
    assert stamps.dtype == np.float32
    # pixel by pixel: what one split sees, no other does
    canvas = {split: np.zeros((1000, 1100), bool) for split in counts}
    for split, x, y in samples.select("split", pl.col("x_px", "y_px").round().cast(pl.Int64)).iter_rows():
        canvas[split][y - 24 : y + 24, x - 24 : x + 24] = True
    assert not (canvas["train"] & canvas["test"]).any()
    assert not (canvas["train"] & canvas["validation"]).any()
    assert not (canvas["validation"] & canvas["test"]).any()


def test_a_stamps_split_does_not_depend_on_what_else_is_detected(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sources = [(*rng.uniform(30, 210, 2), rng.uniform(1.5, 3), 1.0, 1.0) for _ in range(25)]
    photograph(tmp_path / NAME, sources)
    split: list[dict[str, str]] = []
    for threshold in (4.0, 1.5):
        settings = SETTINGS.model_copy(update={"detection_threshold": threshold, "stamp_px": 16, "transforms": ()})
        (tmp_path / str(threshold)).mkdir()
        samples = prepare(Hubble().cut(settings, tmp_path, MANIFEST), settings, tmp_path, tmp_path / str(threshold))
        split.append(dict(samples.select("group", "split").unique().iter_rows()))
    common = split[0].keys() & split[1].keys()
    assert len(common) > 3
    assert all(split[0][group] == split[1][group] for group in common)
