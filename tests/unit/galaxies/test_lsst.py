"""The source lsst, against a stand-in for the Butler and its geometry."""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from astropy.io import fits
from astropy.table import Table
from pydantic import ValidationError

from manyscope.data.fetching import Traffic
from manyscope.errors import DataError, MissingDependencyError, SettingsError
from manyscope.scopes.galaxies.data.lsst import Box, Image, Images, Lsst, box_on_sky
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.data.transfers import REQUESTS, SCHEMA
from manyscope.scopes.galaxies.settings import GalaxiesSettings, LsstSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.stages import download, preprocess
from manyscope.tables.manifest import describe, read_manifest
from manyscope.tables.parquet import read_table, write_table

PIXEL_DEG = 0.2 / 3600
SIZE_PX = 400
RA, DEC = 50.0, 60.0  # far from the equator, where a degree of right ascension is half a degree


# ------------------------------------------------------------------------------------- what lsst.geom and the Butler do
@dataclass(frozen=True)
class Angle:
    deg: float

    def __rmul__(self, factor: float) -> Angle:
        return Angle(factor * self.deg)


@dataclass(frozen=True)
class SpherePoint:
    ra: float
    dec: float
    unit: Angle = Angle(1.0)

    def offset(self, bearing: Angle, amount: Angle) -> SpherePoint:
        """Along a great circle; bearing 0 is east, 90 is north."""
        ra, dec, b, a = (math.radians(v) for v in (self.ra, self.dec, bearing.deg, amount.deg))
        there = math.asin(math.sin(dec) * math.cos(a) + math.cos(dec) * math.sin(a) * math.sin(b))
        around = math.atan2(math.sin(a) * math.cos(b) * math.cos(dec), math.cos(a) - math.sin(dec) * math.sin(there))
        return SpherePoint(math.degrees(ra + around), math.degrees(there))


@dataclass(frozen=True)
class Point:
    x: float
    y: float

    def getX(self) -> float:  # noqa: N802
        return self.x

    def getY(self) -> float:  # noqa: N802
        return self.y


class Wcs:
    """Tangential, north up, right ascension to the left; the centre of the patch at `centre_px`."""

    def __init__(self, ra: float, dec: float, centre_px: float) -> None:
        self.ra, self.dec, self.centre_px = math.radians(ra), math.radians(dec), centre_px

    def skyToPixel(self, point: SpherePoint) -> Point:  # noqa: N802
        ra, dec = math.radians(point.ra) - self.ra, math.radians(point.dec)
        depth = math.sin(self.dec) * math.sin(dec) + math.cos(self.dec) * math.cos(dec) * math.cos(ra)
        x = math.cos(dec) * math.sin(ra) / depth
        y = (math.cos(self.dec) * math.sin(dec) - math.sin(self.dec) * math.cos(dec) * math.cos(ra)) / depth
        scale = math.degrees(1) / PIXEL_DEG
        return Point(self.centre_px - x * scale, self.centre_px + y * scale)


class BoxOfPixels:
    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end

    def getBeginX(self) -> int:  # noqa: N802
        return self.first

    getBeginY = getBeginX  # noqa: N815

    def getEndX(self) -> int:  # noqa: N802
        return self.end

    getEndY = getEndX  # noqa: N815


@dataclass
class Patch:
    """Its pixels count from 1000 on, as those of a tract do."""

    sequential_index: int
    ra: float

    def getWcs(self) -> Wcs:  # noqa: N802
        return Wcs(self.ra, DEC, 1000 + SIZE_PX / 2)

    def getOuterBBox(self) -> BoxOfPixels:  # noqa: N802
        return BoxOfPixels(1000, 1000 + SIZE_PX)


class SkyMap:
    """One tract with a patch at each whole degree."""

    def findTract(self, point: SpherePoint) -> SkyMap:  # noqa: N802
        return self

    def getId(self) -> int:  # noqa: N802
        return 7

    def findPatch(self, point: SpherePoint) -> Patch:  # noqa: N802
        if point.dec < 0:
            raise LookupError(f"Point {point.dec} is not inside the tract's boundaries")
        return Patch(round(point.ra - RA), float(round(point.ra)))


def pixels(patch: int, band: str) -> np.ndarray:
    """Each pixel says where it is."""
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX]
    return (1000 * y + x + 1e6 * patch + 3e5 * "ugrizy".index(band)).astype(np.float32)


@dataclass
class Repository:
    """
    Attributes:
        faults: (patch, band) -> errors that are raised before the image is given.
        reads: (patch, band) -> how often it was read.
    """

    faults: dict[tuple[int, str], list[Exception]] = field(default_factory=dict)
    reads: Counter[tuple[int, str]] = field(default_factory=Counter)
    threads: dict[int, set[int]] = field(default_factory=dict)
    opened: list[tuple[str, list[str]]] = field(default_factory=list)


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Stand-ins in the place of the packages."""
    known = Repository()

    class Butler:
        def __init__(self, repo: str, collections: list[str]) -> None:
            if repo == "/nowhere":
                raise FileNotFoundError("Unable to find configuration /nowhere/butler.yaml")
            known.opened.append((repo, collections))
            known.threads[id(self)] = set()
            self.known = known  # lives as long as the repository, so that no other has its id
            keep.append(self)

        def get(self, name: str, data_id: dict[str, Any], storageClass: str | None = None) -> Any:
            known.threads[id(self)].add(threading.get_ident())
            if name == "skyMap":
                if data_id != {"skymap": "lsst_cells_v1"}:
                    raise LookupError("Dataset skyMap could not be found")
                return SkyMap()
            assert (name, data_id["tract"], data_id["skymap"]) == ("deep_coadd", 7, "lsst_cells_v1")
            key = (data_id["patch"], data_id["band"])
            known.reads[key] += 1
            if known.faults.get(key):
                raise known.faults[key].pop(0)
            return Exposure(pixels(*key))

    class Exposure:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def getImage(self) -> Exposure:  # noqa: N802
            return self

        def getArray(self) -> np.ndarray:  # noqa: N802
            return self.array

        def getBBox(self) -> BoxOfPixels:  # noqa: N802
            return BoxOfPixels(1000, 1000 + SIZE_PX)

    keep: list[Any] = []
    names: dict[str, dict[str, Any]] = {
        "lsst": {}, "lsst.daf": {}, "lsst.daf.butler": {"Butler": Butler},
        "lsst.geom": {"SpherePoint": SpherePoint, "degrees": Angle(1.0)},
    }  # fmt: skip
    for name, content in names.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Traffic, "sleep", lambda self, seconds: None)
    return known


def of(folder: Path, ra: list[float], dec: list[float], **own: Any) -> GalaxiesSettings:
    catalog = folder / f"catalog-{len(ra)}.parquet"
    ids = [f"{i}" for i in range(len(ra))]
    pl.DataFrame({"objectId": ids, "coord_ra": ra, "coord_dec": dec}).write_parquet(catalog)
    lsst = {
        "repo": "/repo",
        "collections": ["a", "b"],
        "skymap": "lsst_cells_v1",
        "wait_s": 0,
        "normalise": "none",
        **own,
    }
    return GalaxiesSettings(
        scope="galaxies",
        download={"source": "lsst", "catalog": {"file": str(catalog), "id_column": "objectId"}, "lsst": lsst},
        preprocess={
            "stamp_px": 16, "transforms": [], "pruned_max": 0.5, "validation_fraction": 0.3, "nan_policy": "zero"
        },
    )  # fmt: skip


def run(settings: GalaxiesSettings, root: Path) -> Path:
    paths = ExperimentPaths(root)
    download.run(settings.for_stage("download"), paths)
    return paths.raw


def states(raw: Path) -> dict[tuple[str, str], str]:
    table = read_table(raw / REQUESTS, SCHEMA)
    return dict(zip(table.select("object_id", "filter").iter_rows(), table["state"], strict=True))


def image(raw: Path, object_id: str, band: str) -> np.ndarray:
    table = read_table(raw / REQUESTS, SCHEMA).filter(object_id=object_id, filter=band)
    return np.asarray(fits.getdata(raw / table["file"].item()))


# --------------------------------------------------------------------------------------------------------------- boxes
def test_width_is_width(repository: Repository) -> None:
    """Along right ascension, and in arcseconds on the sky, wherever it is; not the height."""
    wcs = Wcs(RA, DEC, 500.0)
    box = box_on_sky(wcs, RA, DEC, 100.2 * PIXEL_DEG, 20.2 * PIXEL_DEG)
    assert box == Box(500 - 100, 500 - 20, 500 + 100 + 1, 500 + 20 + 1)


@pytest.mark.parametrize(("half_px", "first", "last"), [(20.2, 480, 520), (20.6, 479, 521), (0.4, 500, 500)])
def test_boxes_grow_to_whole_pixels(half_px: float, first: int, last: int, repository: Repository) -> None:
    """Pixel 500 reaches from 499.5 to 500.5."""
    box = box_on_sky(Wcs(0.0, 0.0, 500.0), 0.0, 0.0, half_px * PIXEL_DEG, half_px * PIXEL_DEG)
    assert box == Box(first, first, last + 1, last + 1)


def test_cuts_reach_beyond_the_image() -> None:
    inner = Image(np.arange(12, dtype=np.float64).reshape(3, 4), Box(10, 20, 14, 23))
    nan = np.nan
    np.testing.assert_array_equal(inner.cut(Box(11, 21, 13, 23)), [[5, 6], [9, 10]])
    np.testing.assert_array_equal(inner.cut(Box(13, 19, 15, 21)), [[nan, nan], [3, nan]])
    assert np.isnan(inner.cut(Box(0, 0, 5, 5))).all()
    assert inner.cut(Box(0, 0, 5, 4)).shape == (4, 5)


# ----------------------------------------------------------------------------------------------------------- the chain
def test_chain(repository: Repository, tmp_path: Path) -> None:
    """12 objects in two patches and two bands, cut where they are."""
    ra = [RA + i % 2 + 0.001 * (i - 6) for i in range(12)]
    settings = of(tmp_path, ra, [DEC] * 12, bands=["r", "g"], semi_width_arcsec=3, semi_height_arcsec=2)
    raw = run(settings, tmp_path / "experiment")
    assert set(states(raw).values()) == {"done"}
    assert len(states(raw)) == 24
    for i in range(12):
        box = box_on_sky(Wcs(RA + i % 2, DEC, 1000 + SIZE_PX / 2), ra[i], DEC, 3 / 3600, 2 / 3600)
        assert box.shape in [(21, 31), (21, 32), (22, 31), (22, 32)]
        for band in "gr":
            right = pixels(i % 2, band)[box.y - 1000 : box.y_end - 1000, box.x - 1000 : box.x_end - 1000]
            np.testing.assert_array_equal(image(raw, f"{i}", band), right)
    assert repository.opened[0] == ("/repo", ["a", "b"])
    paths = ExperimentPaths(tmp_path / "experiment")
    preprocess.run(settings, paths)
    data = StampData(paths.prepared)
    assert data.bands == ["r", "g"]
    for row, object_id in enumerate(data.samples["sample_id"]):
        whole = image(raw, object_id, "r")
        top, left = whole.shape[0] // 2 - 8, whole.shape[1] // 2 - 8
        np.testing.assert_array_equal(data.stamps[row, 0], whole[top : top + 16, left : left + 16])


def test_each_image_is_read_once_by_a_butler_of_the_thread(repository: Repository, tmp_path: Path) -> None:
    ra = [RA + i % 3 + 0.0003 * (i - 15) for i in range(30)]
    raw = run(of(tmp_path, ra, [DEC] * 30, threads=3, bands=["g", "i"]), tmp_path / "experiment")
    assert set(states(raw).values()) == {"done"}
    assert set(repository.reads.values()) == {1}
    assert len(repository.reads) == 6
    assert all(len(threads) == 1 for threads in repository.threads.values())
    assert len(repository.opened) <= 1 + 3


def test_cache_is_bounded_and_forgets_the_least_used(repository: Repository) -> None:
    from lsst.daf.butler import Butler

    images = Images(lambda: Butler("/repo", ["a"]), LsstSettings(skymap="lsst_cells_v1", cached_images=2))
    for patch in (0, 1, 0, 2, 0, 1):
        assert images.get(7, patch, "g").pixels[0, 0] == 1e6 * patch + 3e5
    assert repository.reads == {(0, "g"): 1, (1, "g"): 2, (2, "g"): 1}


# -------------------------------------------------------------------------------------------------------------- faults
def test_a_band_that_fails_is_a_plane_of_missing_pixels(repository: Repository, tmp_path: Path) -> None:
    """And is tried again in the next run; an object without any band has failed."""
    ra = [RA + 0.001 * i for i in range(11)] + [RA + 1]
    dead: Any = {
        (0, "r"): [OSError("no such dataset on disk")] * 99,
        (1, "g"): [LookupError()] * 99,
        (1, "r"): [LookupError("none")] * 99,
    }
    repository.faults.update(dead)
    own = {"bands": ["g", "r"], "semi_width_arcsec": 3, "semi_height_arcsec": 3}
    with pytest.raises(DataError, match=r"13 of 24 files .* allowed: download.lsst.missing_max: 0 of the objects"):
        run(of(tmp_path, ra, [DEC] * 12, **own), tmp_path / "experiment")
    assert repository.reads[0, "r"] == 5
    assert repository.reads[1, "r"] == 1  # what is not there is not asked for again

    settings = of(tmp_path, ra, [DEC] * 12, missing_max=0.1, **own)
    raw = run(settings, tmp_path / "experiment")
    by_band = states(raw)
    assert {by_band[f"{i}", "g"] for i in range(11)} == {"done"}
    assert {by_band[f"{i}", "r"] for i in range(11)} == {by_band["11", "g"], by_band["11", "r"]} == {"failed"}
    manifest = read_manifest(raw / "manifest.parquet")
    assert manifest.filter(pl.col("path").str.starts_with("missing_"))["path"].to_list()[0] == "missing_31x31.fits"
    paths = ExperimentPaths(tmp_path / "experiment")
    preprocess.run(settings, paths)
    data = StampData(paths.prepared)
    assert len(data.samples) == 11
    assert data.samples["missing_fraction"].to_list() == [0.5] * 11
    assert (data.stamps[:, 1] == 0).all()
    assert (data.stamps[:, 0] > 0).all()

    repository.faults.clear()
    raw = run(of(tmp_path, ra, [DEC] * 12, **own), tmp_path / "experiment")
    assert set(states(raw).values()) == {"done"}


def test_what_passes_is_tried_again(repository: Repository, tmp_path: Path) -> None:
    repository.faults[0, "g"] = [OSError("busy")] * 2
    quiet = run(of(tmp_path, [RA], [DEC], bands=["g"]), tmp_path / "one")
    again = run(of(tmp_path, [RA], [DEC], bands=["g"]), tmp_path / "two")
    for name in ("manifest.parquet", REQUESTS):
        assert (quiet / name).read_bytes() == (again / name).read_bytes()


def test_cutouts_at_the_edge(repository: Repository, tmp_path: Path) -> None:
    """The patch ends 200 px, 40 arcsec, from its centre."""
    dec = [DEC, DEC + 36 / 3600]
    with pytest.raises(DataError, match=r"object '1', filter 'g': the cutout .* leaves tract 7, patch 0"):
        run(of(tmp_path, [RA, RA], dec, bands=["g"], semi_height_arcsec=8), tmp_path / "error")
    raw = run(of(tmp_path, [RA, RA], dec, bands=["g"], semi_height_arcsec=8, edge="pad"), tmp_path / "pad")
    cutout = image(raw, "1", "g")
    assert np.isnan(cutout).mean(1).tolist() == [0.0] * 60 + [1.0] * 21
    assert not np.isnan(image(raw, "0", "g")).any()


def test_new_bands_and_objects_leave_the_old_alone(repository: Repository, tmp_path: Path) -> None:
    run(of(tmp_path, [RA], [DEC], bands=["g"]), tmp_path / "experiment")
    repository.reads.clear()
    raw = run(of(tmp_path, [RA], [DEC], bands=["g", "r"]), tmp_path / "experiment")
    assert repository.reads == {(0, "r"): 1}
    repository.reads.clear()
    run(of(tmp_path, [RA, RA + 1], [DEC] * 2, bands=["g", "r"]), tmp_path / "experiment")
    assert repository.reads == {(1, "g"): 1, (1, "r"): 1}
    (raw / REQUESTS).unlink()
    repository.opened.clear()
    run(of(tmp_path, [RA, RA + 1], [DEC] * 2, bands=["g", "r"]), tmp_path / "experiment")
    assert repository.opened == []


def test_injected_butler(repository: Repository, tmp_path: Path) -> None:
    from lsst.daf.butler import Butler

    made = []

    def make() -> Any:
        made.append(Butler("elsewhere", ["c"]))
        return made[-1]

    settings = of(tmp_path, [RA], [DEC], bands=["g"])
    raw = tmp_path / "raw"
    write_table(raw / "manifest.parquet", describe(raw, Lsst(make).download(settings.download, raw)))
    assert made
    assert {repo for repo, _ in repository.opened} == {"elsewhere"}


# ------------------------------------------------------------------------------------------------ what cannot be used
def test_packages_that_are_not_there(tmp_path: Path) -> None:
    settings = of(tmp_path, [RA], [DEC])
    with pytest.raises(MissingDependencyError, match=r"needs lsst.daf.butler .*; run on the Rubin Science Platform"):
        list(Lsst().download(settings.download, tmp_path))
    assert any("lsst.daf.butler" in problem for problem in Lsst().problems(settings.download))


def test_settings_that_are_not_there(repository: Repository, tmp_path: Path) -> None:
    settings = of(tmp_path, [RA], [DEC], repo=None, collections=[], skymap=None)
    with pytest.raises(SettingsError, match=r"download\.lsst\.repo: the source 'lsst' needs it"):
        list(Lsst().download(settings.download, tmp_path))
    problems = list(Lsst().problems(settings.download))
    assert [problem.split(":")[0] for problem in problems] == [
        f"download.lsst.{n}" for n in ("repo", "collections", "skymap")
    ]
    assert list(Lsst().problems(of(tmp_path, [RA], [DEC]).download)) == []


def test_objects_outside_the_sky_map_fail_alone(repository: Repository, tmp_path: Path) -> None:
    own = {"bands": ["g"], "semi_width_arcsec": 3, "semi_height_arcsec": 3}
    with pytest.raises(
        DataError, match=r"1 of 3 files .* object '1', filter 'g': outside the sky map \(LookupError: P"
    ):
        run(of(tmp_path, [RA, RA, RA + 1], [DEC, -5.0, DEC], **own), tmp_path / "experiment")
    raw = run(of(tmp_path, [RA, RA, RA + 1], [DEC, -5.0, DEC], missing_max=0.5, **own), tmp_path / "experiment")
    assert states(raw) == {("0", "g"): "done", ("1", "g"): "failed", ("2", "g"): "done"}


@pytest.mark.parametrize(("ra", "dec"), [(RA, 90.5), (RA, -91.0), (400.0, DEC)])
def test_places_that_are_not_on_the_sky(ra: float, dec: float, repository: Repository, tmp_path: Path) -> None:
    settings = of(tmp_path, [RA, ra], [DEC, dec])
    text = rf"object '1': ra {ra:g}, dec {dec:g}; allowed: degrees"
    with pytest.raises(DataError, match=text):
        list(Lsst().download(settings.download, tmp_path))
    assert any("object '1': ra" in problem for problem in Lsst().problems(settings.download))


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (
            {"repo": "/nowhere"},
            r"download\.lsst\.repo: '/nowhere' .* a, b cannot be opened \(FileNotFoundError: Unable",
        ),
        (
            {"skymap": "none"},
            r"download\.lsst\.skymap: 'none' cannot be had from '/repo' \(LookupError: Dataset skyMap",
        ),
    ],
)
def test_what_the_butler_does_not_have(own: dict[str, Any], text: str, repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=text):
        list(Lsst().download(of(tmp_path, [RA], [DEC], **own).download, tmp_path / "raw"))


def test_radians_become_degrees(repository: Repository, tmp_path: Path) -> None:
    settings = of(tmp_path, [RA], [DEC], bands=["g"], semi_width_arcsec=3, semi_height_arcsec=3)
    right = run(settings, tmp_path / "degrees")
    table = Table({"objectId": ["0"], "coord_ra": [math.radians(RA)], "coord_dec": [math.radians(DEC)]})
    table["coord_ra"].unit = table["coord_dec"].unit = "rad"
    table.write(tmp_path / "catalog.ecsv")
    catalog = settings.download.catalog.model_copy(update={"file": str(tmp_path / "catalog.ecsv")})
    found = settings.model_copy(update={"download": settings.download.model_copy(update={"catalog": catalog})})
    np.testing.assert_array_equal(image(run(found, tmp_path / "radians"), "0", "g"), image(right, "0", "g"))


def test_bands_that_come_twice_and_an_extension_that_does_not_exist() -> None:
    with pytest.raises(ValidationError, match="'g' stands there more than once"):
        LsstSettings(bands=("g", "r", "g"))
    with pytest.raises(ValidationError, match="hdu"):
        LsstSettings(hdu=1)  # type: ignore[call-arg]


def test_objects_that_come_twice(repository: Repository, tmp_path: Path) -> None:
    settings = of(tmp_path, [RA], [DEC])
    catalog = Path(str(settings.download.catalog.file))
    pl.concat([pl.read_parquet(catalog)] * 2).write_parquet(catalog)
    with pytest.raises(DataError, match="object '0' comes twice"):
        list(Lsst().download(settings.download, tmp_path))
