"""FITS cutouts with a catalog, or without."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from manyscope.errors import DataError, SettingsError
from manyscope.scopes.galaxies.data.fits import cut_files, in_band_order, less_sky, placed, read_planes
from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.query import query_stamp
from manyscope.scopes.galaxies.scope import Galaxies
from manyscope.scopes.galaxies.settings import FitsReading, FitsSettings, GalaxiesPreprocess, GalaxiesSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.stages import download, preprocess
from manyscope.tables.samples import read_samples

SIZE = 16
RAW = FitsReading(normalise="none")


def preprocessing(**values: Any) -> GalaxiesPreprocess:
    return GalaxiesPreprocess(**{"stamp_px": SIZE, "transforms": [], "pruned_max": 1.0, **values})


def image(value: float, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.full((height, width), value, np.float32)


def write(path: Path, *planes: np.ndarray, **header: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = planes[0] if len(planes) == 1 else np.stack(planes)
    hdu = fits.PrimaryHDU(pixels)
    hdu.header.update(header)
    hdu.writeto(path)
    return path


def cut(
    folder: Path, rows: list[tuple[Any, ...]], reading: FitsReading = RAW, **values: Any
) -> tuple[Cutouts, np.ndarray]:
    schema = ["object_id", "filter", "file", "mag"]
    table = pl.DataFrame(
        [(*row, None)[:4] for row in rows],
        dict.fromkeys(schema, pl.String),
        orient="row",
    ).with_columns(group=pl.col("object_id"))
    cutouts = cut_files(table, reading, preprocessing(**values), folder)
    return cutouts, np.concatenate([np.empty((0, len(cutouts.bands), SIZE, SIZE), np.float32), *cutouts.chunks])


def pruned(cutouts: Cutouts) -> dict[str, str]:
    assert cutouts.pruned is not None
    return dict(cutouts.pruned.select("object_id", "reason").iter_rows())


# The order of the channels


def test_the_order_of_the_channels_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    """A peer takes the order of the first object for all, and the order of rows for each."""
    rows = []
    for name, filters in (("a", "igr"), ("b", "rgi"), ("c", "gri")):
        for band in filters:
            file = write(tmp_path / f"{name}{band}.fits", image("gri".index(band) + 10 * "abc".index(name)))
            rows.append((name, f"HSC-{band.upper()}", file.name))
    cutouts, stamps = cut(tmp_path, rows)
    assert list(cutouts.bands) == ["HSC-G", "HSC-R", "HSC-I"]
    assert stamps[:, :, 0, 0].tolist() == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    cutouts, stamps = cut(tmp_path, rows, FitsReading(normalise="none", bands=("HSC-I", "HSC-G")))
    assert list(cutouts.bands) == ["HSC-I", "HSC-G"]
    assert stamps[:, :, 0, 0].tolist() == [[2, 0], [12, 10], [22, 20]]


@pytest.mark.parametrize(
    ("filters", "order"),
    [
        (["HSC-Y", "HSC-G", "HSC-R2", "HSC-I"], ["HSC-G", "HSC-R2", "HSC-I", "HSC-Y"]),
        (["z", "u", "y", "g"], ["u", "g", "z", "y"]),
        (["sdss_r", "sdss_g"], ["sdss_g", "sdss_r"]),
        (["HSC-R", "HSC-R2"], ["HSC-R", "HSC-R2"]),  # two names of one letter
        (["F814W", "F606W"], ["F606W", "F814W"]),
        (["deep", "blue"], ["blue", "deep"]),
    ],
)
def test_bands_are_sorted_from_blue_to_red_where_their_names_tell(filters: list[str], order: list[str]) -> None:
    assert in_band_order(filters) == order
    assert in_band_order(filters[::-1]) == order


# What cannot be used


def test_each_object_is_checked_and_what_is_left_out_has_a_reason(tmp_path: Path) -> None:
    rows = []

    def add(name: str, band: str, pixels: np.ndarray) -> None:
        rows.append((name, band, write(tmp_path / f"{name}-{band}-{len(rows)}.fits", pixels).name))

    for name in ("good", "good2"):
        for band in "rg":
            add(name, band, image("gr".index(band), SIZE + 3, SIZE + 4))
    add("half", "g", image(1))
    for _ in range(2):
        add("twice", "g", image(1))
    add("twice", "r", image(1))
    add("uneven", "g", image(1, SIZE, SIZE))
    add("uneven", "r", image(1, SIZE + 1, SIZE))
    add("small", "g", image(1, SIZE, SIZE - 1))
    add("small", "r", image(1, SIZE, SIZE - 1))
    add("broken", "g", image(1))
    (tmp_path / "broken.fits").write_bytes(b"SIMPLE  =  no")
    rows += [("broken", "r", "broken.fits"), ("gone", "g", "gone.fits"), ("gone", "r", None)]
    rows += [("nameless", None, "gone.fits"), ("cube", "g", write(tmp_path / "cube.fits", image(1), image(2)).name)]
    add("cube", "r", image(1))
    cutouts, stamps = cut(tmp_path, rows)
    assert cutouts.table["sample_id"].to_list() == ["good", "good2"]
    assert stamps[:, :, 3, 3].tolist() == [[0, 1], [0, 1]]
    assert pruned(cutouts) == {
        "half": "filter missing",
        "twice": "two files of one filter",
        "uneven": "sizes differ between filters",
        "small": "smaller than a stamp",
        "broken": "unreadable file",
        "gone": "file missing",
        "nameless": "row without a filter",
        "cube": "another number of bands",
    }
    with pytest.raises(DataError, match=r"8 of 10 objects cannot be used: 1 another number of bands, 1 file missing"):
        cut(tmp_path, rows, pruned_max=0.7)


def test_a_file_that_is_cut_short_is_not_used(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.fits", image(1, 64, 64))
    (tmp_path / "short.fits").write_bytes(whole.read_bytes()[:-4000])
    with pytest.raises(DataError, match=r"short\.fits: not a readable FITS image"):
        read_planes(tmp_path / "short.fits")
    cutouts, _ = cut(tmp_path, [("a", None, "whole.fits"), ("b", None, "short.fits")])
    assert pruned(cutouts) == {"b": "unreadable file"}


def test_few_objects_that_cannot_be_used_stop_nothing_but_too_many_do(tmp_path: Path) -> None:
    write(tmp_path / "a.fits", image(1))
    rows = [(f"o{i}", None, "a.fits") for i in range(19)] + [("bad", None, None)]
    cutouts, stamps = cut(tmp_path, rows, pruned_max=0.05)
    assert (len(stamps), pruned(cutouts)) == (19, {"bad": "file missing"})
    with pytest.raises(DataError, match=r"1 of 20 objects.*1 file missing.*'bad'.*raise preprocess\.pruned_max"):
        cut(tmp_path, rows, pruned_max=0.04)


# Edges


def test_an_image_smaller_than_the_stamp_is_padded_around_its_middle(tmp_path: Path) -> None:
    small = np.arange(10 * 13, dtype=np.float32).reshape(10, 13)
    write(tmp_path / "a.fits", small)
    cutouts, stamps = cut(tmp_path, [("a", None, "a.fits")], edge="pad", pad_value=-5.0)
    expected = np.full((SIZE, SIZE), -5.0, np.float32)
    expected[3:13, 2:15] = small  # pixel (5, 6) of the image becomes pixel (8, 8)
    np.testing.assert_array_equal(stamps[0, 0], expected)
    assert cutouts.table["coverage"][0] == pytest.approx(130 / 256)
    _, stamps = cut(tmp_path, [("a", None, "a.fits")], edge="pad", pad_value=None)
    assert np.isnan(stamps).sum() == 256 - 130


@given(height=st.integers(1, 40), width=st.integers(1, 40), size=st.integers(1, 40))
@hypothesis_settings(deadline=None)
def test_the_middle_pixel_stays_in_the_middle(height: int, width: int, size: int) -> None:
    planes = np.arange(height * width, dtype=np.float32).reshape(1, height, width) + 1
    stamp, coverage = placed(planes, size, 0.0)
    assert stamp.shape == (1, size, size)
    assert stamp[0, size // 2, size // 2] == planes[0, height // 2, width // 2]
    assert coverage == pytest.approx((stamp > 0).mean())
    rows, columns = np.nonzero(stamp[0])
    down, right = height // 2 - size // 2, width // 2 - size // 2
    np.testing.assert_array_equal(stamp[0][rows, columns], planes[0][rows + down, columns + right])


# Pixels


def test_pixels_become_units_of_the_skys_rms_band_by_band(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for band, level, rms in (("g", 1000.0, 3.0), ("r", -2.0, 0.01)):
        pixels = level + rms * rng.standard_normal((60, 60))
        pixels[25:35, 25:35] += 50 * rms
        write(tmp_path / f"{band}.fits", pixels.astype(np.float32))
    rows = [("a", "g", "g.fits"), ("a", "r", "r.fits")]
    cutouts, stamps = cut(tmp_path, rows, FitsReading())
    assert cutouts.unit == "rms of the sky"
    core = stamps[0, :, 4:12, 4:12].mean((1, 2))
    np.testing.assert_allclose(core, 50, rtol=0.1)


def test_a_border_without_spread_or_without_any_pixel_gives_finite_numbers() -> None:
    flat = np.full((1, 20, 20), 7.0)
    assert (less_sky(flat) == 0).all()
    spiked = flat.copy()
    spiked[0, 0, 0] = 8.0  # the median absolute deviation is still zero
    assert np.isfinite(less_sky(spiked)).all()
    blank = flat.copy()
    blank[0, :4] = np.nan
    assert (less_sky(blank)[0, 4:] == 0).all()
    assert np.isnan(less_sky(np.full((1, 5, 5), np.nan))).all()


@pytest.mark.parametrize("name", ["a.fits", "a.fits.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"])
def test_every_type_of_pixel_is_read_as_native_floats(tmp_path: Path, dtype: str, name: str) -> None:
    values = np.arange(SIZE**2).reshape(SIZE, SIZE).astype(dtype)
    fits.PrimaryHDU(values).writeto(tmp_path / name)  # unsigned integers by BZERO
    planes = read_planes(tmp_path / name)
    assert planes.dtype.isnative
    assert planes.dtype.kind == "f"
    np.testing.assert_array_equal(planes[0], values.astype(np.float64))


def test_scaled_integers_are_scaled_and_blanks_are_missing(tmp_path: Path) -> None:
    stored = np.arange(SIZE**2, dtype=np.int16).reshape(SIZE, SIZE)
    stored[2, 3] = -32768
    hdu = fits.PrimaryHDU(stored, do_not_scale_image_data=True)
    hdu.header.update({"BSCALE": 0.5, "BZERO": 100.0, "BLANK": -32768})
    hdu.writeto(tmp_path / "a.fits", output_verify="silentfix")
    with fits.open(tmp_path / "a.fits", do_not_scale_image_data=True) as file:
        assert file[0].data.dtype == np.dtype(">i2")
        assert "BLANK" in file[0].header
    planes = read_planes(tmp_path / "a.fits")
    expected = stored * 0.5 + 100
    expected[2, 3] = np.nan
    np.testing.assert_array_equal(planes[0], expected)


def test_compressed_images_and_extensions(tmp_path: Path) -> None:
    pixels = np.arange(SIZE**2, dtype=np.int32).reshape(SIZE, SIZE)
    packed = fits.CompImageHDU(pixels, name="SCI")
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=[1.0])], name="TAB")
    mask = fits.ImageHDU(pixels + 1, name="MASK")
    fits.HDUList([fits.PrimaryHDU(), table, packed, mask]).writeto(tmp_path / "a.fits.fz")
    np.testing.assert_array_equal(read_planes(tmp_path / "a.fits.fz")[0], pixels)  # the first that holds an image
    np.testing.assert_array_equal(read_planes(tmp_path / "a.fits.fz", "MASK")[0], pixels + 1)
    np.testing.assert_array_equal(read_planes(tmp_path / "a.fits.fz", 2)[0], pixels)
    both = read_planes(tmp_path / "a.fits.fz", ("MASK", "SCI"))
    np.testing.assert_array_equal(both, np.stack([pixels + 1, pixels]))
    for wanted in ("TAB", "NONE", 9, 0):
        with pytest.raises(DataError, match="not a readable FITS image"):
            read_planes(tmp_path / "a.fits.fz", wanted)


def test_what_is_called_npy_and_is_not(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3, 4), ">i2"))
    assert read_planes(tmp_path / "a.npy").shape == (2, 3, 4)
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, image=np.ones((3, 4)))
    np.save(tmp_path / "pickle.npy", np.array([{}]))
    (tmp_path / "none.npy").write_bytes(b"")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    (tmp_path / "header.npy").write_bytes((tmp_path / "a.npy").read_bytes().replace(b"'descr'", b"'de(cr'"))
    for name in ("archive", "pickle", "none", "cut", "header"):
        with pytest.raises(DataError, match=rf"{name}\.npy: not a readable array \("):
            read_planes(tmp_path / f"{name}.npy")


def test_one_filter_cannot_be_two_channels() -> None:
    with pytest.raises(ValidationError, match="'g' stands there more than once"):
        FitsReading(bands=("g", "r", "g"))


def test_images_with_three_axes_hold_bands(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [
        (name, None, write(tmp_path / f"{name}.fits", image(1), image(2), image(3)).name) for name in "abc"
    ]
    rows.append(("flat", None, write(tmp_path / "flat.fits", image(1)).name))
    cutouts, stamps = cut(tmp_path, rows)
    assert list(cutouts.bands) == ["band_0", "band_1", "band_2"]
    assert stamps[0, :, 0, 0].tolist() == [1, 2, 3]
    assert pruned(cutouts) == {"flat": "another number of bands"}
    cutouts, _ = cut(tmp_path, rows, FitsReading(bands=("g", "r", "i")))
    assert list(cutouts.bands) == ["g", "r", "i"]
    with pytest.raises(SettingsError, match="hdu names 2 extensions, bands 3"):
        cut(tmp_path, rows, FitsReading(bands=("g", "r", "i"), hdu=(1, 2)))


def test_a_value_beyond_float32_is_missing_and_not_a_crash(tmp_path: Path) -> None:
    pixels = np.zeros((SIZE, SIZE))
    pixels[3, 4] = 1e300
    write(tmp_path / "a.fits", pixels)
    _, stamps = cut(tmp_path, [("a", None, "a.fits")])
    assert np.isinf(stamps[0, 0, 3, 4])


# The source, through the stages


class Sky:
    """A folder of cutouts in two bands, and a catalog with shuffled rows."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, list[dict[str, object]]()

    def add(self, first: int, last: int) -> None:
        for number in range(first, last):
            rng = np.random.default_rng(number)
            for band in rng.permutation(["g", "r"]):
                pixels = rng.standard_normal((20, 22)).astype(np.float32) + 100
                pixels[10, 11] += 1000 * (1 + (band == "r")) + number
                name = f"{band}/{number:05d}_{band}.fits"
                write(self.folder / name, pixels)
                kind = ["disc", "elliptical"][number % 2]
                self.rows.append({"id": f"{number:05d}", "path": name, "f": band, "class": kind, "z": number / 100})
        order = np.random.default_rng(last).permutation(len(self.rows))
        pl.DataFrame([self.rows[i] for i in order]).write_csv(self.folder / "catalog.csv")


def experiment(sky: Sky, **values: Any) -> GalaxiesSettings:
    return GalaxiesSettings(
        scope="galaxies",
        download={
            "source": "fits",
            "catalog": {"file": str(sky.folder / "catalog.csv"), "id_column": "id"},
            "fits": {"folder": str(sky.folder), "file_column": "path", "filter_column": "f"},
        },
        preprocess={
            "stamp_px": SIZE,
            "transforms": [],
            "validation_fraction": 0.2,
            "test_fraction": 0.3,
            **values,
        },
    )


def test_a_folder_and_a_catalog_go_through_the_chain_and_grow_without_moving_an_old_object(tmp_path: Path) -> None:
    """A peer deals every object anew when the catalog grows."""
    sky, paths = Sky(tmp_path / "sky"), ExperimentPaths(tmp_path / "out")
    sky.add(0, 40)
    settings = experiment(sky)
    assert list(Galaxies().problems(settings)) == []
    download.run(settings, paths)
    preprocess.run(settings, paths)
    data = StampData(paths.prepared)
    before = data.samples
    assert data.bands == ["g", "r"]
    assert data.classes == ["disc", "elliptical"]
    assert {"z", "class", "coverage", "missing_fraction"} <= set(before.columns)
    assert not {"path", "f", "filter", "file"} & set(before.columns)
    green, red = data.stamps[:, :, 8, 8].T
    assert (red > 1.5 * green).all()  # the channels of every object, whatever the order of its rows
    batch = data.batch(np.array([3, 3, 0]))
    assert batch["labels"].tolist() == [int(before["sample_id"][i]) % 2 for i in (3, 3, 0)]
    assert (paths.prepared / "pruned.csv").read_text() == "object_id,reason,detail\n"
    old = {name: data.stamps[row].copy() for row, name in enumerate(before["sample_id"])}

    sky.add(40, 60)
    download.run(settings, paths)
    preprocess.run(settings, paths)
    data = StampData(paths.prepared)
    after = data.samples
    assert len(after) == 60
    joined = before.join(after, on="sample_id", suffix="_new")
    assert len(joined) == 40
    assert joined["split"].to_list() == joined["split_new"].to_list()
    for row, name in enumerate(after["sample_id"]):
        if name in old:
            np.testing.assert_array_equal(data.stamps[row], old[name])


def test_the_pruned_are_reported_beside_the_samples(tmp_path: Path) -> None:
    sky, paths = Sky(tmp_path / "sky"), ExperimentPaths(tmp_path / "out")
    sky.add(0, 40)
    (sky.folder / "g/00007_g.fits").unlink()
    (sky.folder / "r/00009_r.fits").write_bytes(b"nothing")
    settings = experiment(sky)
    download.run(settings, paths)
    preprocess.run(settings, paths)
    report = pl.read_csv(paths.prepared / "pruned.csv", schema_overrides={"object_id": pl.String})
    assert report.select("object_id", "reason").rows() == [("00007", "file missing"), ("00009", "unreadable file")]
    assert not set(report["object_id"]) & set(read_samples(paths.samples)["sample_id"])
    with pytest.raises(DataError, match=r"2 of 40 objects cannot be used: 1 file missing, 1 unreadable file"):
        preprocess.run(experiment(sky, pruned_max=0.03), paths)


def scanned(folder: Path, pattern: str = "hsc", **values: Any) -> GalaxiesSettings:
    section = {"folder": str(folder), "pattern": pattern, **values}
    return GalaxiesSettings(
        scope="galaxies",
        download={"source": "fits", "fits": section},
        preprocess={"stamp_px": SIZE, "transforms": []},
    )


def test_names_of_the_hsc_service_need_no_catalog(tmp_path: Path) -> None:
    for number in range(30):
        for band in "RG":
            name = f"{36411448540267400 + number}_cutout_350.12345_-0.54321_9813_HSC-{band}.fits"
            write(tmp_path / "sky" / name, image("GR".index(band)))
    (tmp_path / "sky/readme.txt").write_text("hello")
    paths = ExperimentPaths(tmp_path / "out")
    settings = scanned(tmp_path / "sky")
    download.run(settings, paths)
    preprocess.run(settings, paths)
    data = StampData(paths.prepared)
    assert data.bands == ["HSC-G", "HSC-R"]
    assert not data.top_down
    assert sorted(data.samples["sample_id"])[0] == "36411448540267400"
    assert data.classes == []
    assert "labels" not in data.batch(np.array([0]))


def test_links_that_lead_back_count_no_file_twice(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "sky/deep" / f"{number}.fits", image(number))
    (tmp_path / "sky/deep/up").symlink_to(tmp_path / "sky")
    (tmp_path / "sky/a").symlink_to(tmp_path / "sky/deep")
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere/2.fits", image(2))
    (tmp_path / "sky/other").symlink_to(tmp_path / "elsewhere")
    objects = objects_of(scanned(tmp_path / "sky", r"(?P<object_id>\d+)\.fits"), ExperimentPaths(tmp_path / "out"))
    assert objects.select("object_id", "file").rows() == [
        ("0", "images/a/0.fits"), ("1", "images/a/1.fits"), ("2", "images/other/2.fits")
    ]  # fmt: skip


def test_further_groups_of_a_pattern_become_columns(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / "sky" / f"t{number % 3}_{number}.fit", image(number))
    paths = ExperimentPaths(tmp_path / "out")
    settings = scanned(tmp_path / "sky", r"(?P<tile>t\d)_(?P<object_id>\d+)\.fit", normalise="none")
    download.run(settings, paths)
    preprocess.run(settings, paths)
    data = StampData(paths.prepared)
    assert data.stamps[:, 0, 0, 0].tolist() == [float(name) for name in data.samples["sample_id"]]
    assert data.samples["tile"].to_list() == [f"t{int(name) % 3}" for name in data.samples["sample_id"]]
    assert data.unit == "as in the files"


@pytest.mark.parametrize("normalise", ["sky", "none"])
def test_an_objects_own_file_as_a_query_is_its_stamp(tmp_path: Path, normalise: str) -> None:
    rng = np.random.default_rng(0)
    for number in range(30):
        write(tmp_path / "sky" / f"{number}.fits", *rng.normal(100, 7, (2, 25, 26)).astype(np.float32))
    paths = ExperimentPaths(tmp_path / "out")
    settings = scanned(tmp_path / "sky", r"(?P<object_id>\d+)\.fits", normalise=normalise)
    download.run(settings, paths)
    preprocess.run(settings, paths)
    data = StampData(paths.prepared)
    for row in (0, 11):
        file = tmp_path / "sky" / f"{data.samples['sample_id'][row]}.fits"
        np.testing.assert_array_equal(query_stamp(data, file), data.stamps[row])


def listed(sky: Path, rows: list[dict[str, object]], **section: Any) -> GalaxiesSettings:
    pl.DataFrame(rows).write_csv(sky / "catalog.csv")
    return GalaxiesSettings(
        scope="galaxies",
        download={
            "source": "fits",
            "catalog": {"file": str(sky / "catalog.csv")},
            "fits": {"folder": str(sky), **section},
        },
        preprocess={"stamp_px": SIZE, "transforms": [], "pruned_max": 1},
    )


def objects_of(settings: GalaxiesSettings, paths: ExperimentPaths) -> pl.DataFrame:
    download.run(settings, paths)
    return pl.read_parquet(paths.raw / "objects.parquet")


def test_a_file_name_with_another_id_is_not_used(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write(tmp_path / f"{number}.fits", image(number))
    rows = [{"object_id": i, "filename": f"{j}.fits"} for i, j in ((1, 1), (2, 3), (3, 3))]
    settings = listed(tmp_path, [*rows], pattern=r"(?P<object_id>\d+)\.fits")
    objects = objects_of(settings, ExperimentPaths(tmp_path / "out"))
    assert objects["problem"].to_list() == [None, "id differs from the file name", None]


def test_a_catalog_without_file_names_is_matched_by_the_pattern(tmp_path: Path) -> None:
    for number in (1, 2, 5):
        for band in "gr":
            write(tmp_path / f"{number}{band}.fits", image(number))
    settings = listed(
        tmp_path,
        [{"object_id": i, "ra": i / 2} for i in (1, 2, 3)],
        file_column=None,
        pattern=r"(?P<object_id>\d+)(?P<filter>[a-z])\.fits",
    )
    objects = objects_of(settings, ExperimentPaths(tmp_path / "out"))
    found = objects.select("object_id", "filter", "file", "ra").rows()
    assert found == [
        ("1", "g", "images/1g.fits", 0.5),
        ("1", "r", "images/1r.fits", 0.5),
        ("2", "g", "images/2g.fits", 1.0),
        ("2", "r", "images/2r.fits", 1.0),
        ("3", None, None, 1.5),
    ]


def test_no_file_outside_the_folder_is_read(tmp_path: Path) -> None:
    sky = tmp_path / "sky"
    write(sky / "1.fits", image(1))
    write(tmp_path / "secret.fits", image(1))
    rows = [{"object_id": i, "filename": name} for i, name in enumerate(("1.fits", "../secret.fits", "/etc/passwd"))]
    objects = objects_of(listed(sky, [*rows]), ExperimentPaths(tmp_path / "out"))
    assert objects["problem"].to_list() == [None, "file outside the folder", "file outside the folder"]
    assert objects["file"].to_list() == ["images/1.fits", None, None]


def test_what_is_wrong_with_the_settings_is_said_before_anything_is_read(tmp_path: Path) -> None:
    def problems(**download: Any) -> str:
        values = {"stamp_px": SIZE, "transforms": []}
        settings = GalaxiesSettings(scope="galaxies", download={"source": "fits", **download}, preprocess=values)
        return "\n".join(Galaxies().problems(settings))

    write(tmp_path / "1.fits", image(1))
    (tmp_path / "c.csv").write_text("object_id,filename,band\n1,1.fits,g\n1,2.fits,r\n")
    folder, catalog = {"folder": str(tmp_path)}, {"file": str(tmp_path / "c.csv")}
    assert "download.fits.folder: the source 'fits' needs the folder" in problems()
    assert "no such folder; mend download.fits.folder" in problems(fits={"folder": str(tmp_path / "none")})
    assert "must tell the objects; set a pattern" in problems(fits=folder)
    assert "none of 2 files has a name of the pattern" in problems(fits={**folder, "pattern": "hsc"})
    assert "1 ids occur more than once, such as '1'" in problems(fits=folder, catalog=catalog)
    assert "set download.fits.filter_column" in problems(fits=folder, catalog=catalog)
    assert problems(fits={**folder, "filter_column": "band"}, catalog=catalog) == ""
    assert "column 'bnad' is missing; did you mean 'band'" in problems(
        fits={**folder, "filter_column": "bnad"}, catalog=catalog
    )
    assert "without download.fits.file_column, the names" in problems(
        fits={**folder, "file_column": None}, catalog=catalog
    )
    nowhere = {"folder": str(tmp_path / "empty"), "filter_column": "band"}
    (tmp_path / "empty").mkdir()
    assert "none of the 2 files of column 'filename' is there" in problems(fits=nowhere, catalog=catalog)
    for pattern, message in (("(", "no regular expression"), (r"\d+", re.escape("no group (?P<object_id>"))):
        with pytest.raises(ValidationError, match=message):
            FitsSettings(pattern=pattern)


def test_only_little_memory_is_taken_and_files_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer keeps every sample that it has read."""
    opened = list[str]()
    real = fits.open

    def spy(path: Path, *args: Any, **more: Any) -> Any:
        opened.append(str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(fits, "open", spy)
    rows = []
    for number in range(260):
        write(tmp_path / f"{number}.fits", image(number))
        rows.append((str(number), "g", f"{number}.fits"))
    _, stamps = cut(tmp_path, rows)
    assert sorted(opened) == sorted(str(tmp_path / row[2]) for row in rows)
    assert stamps[:, 0, 0, 0].tolist() == list(range(260))
    assert not [file for file in tmp_path.iterdir() if file.suffix != ".fits"]  # what waits has no name
