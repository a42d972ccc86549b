"""The source http: catalogs of addresses, checksums, resuming, FITS and NumPy."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import fault_server as faults
from fault_server import Server
from manyscope.data import fetching
from manyscope.data.fetching import Traffic
from manyscope.errors import DataError, SettingsError
from manyscope.scopes.galaxies.data.http import Http
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.data.transfers import REQUESTS, SCHEMA
from manyscope.scopes.galaxies.scope import Galaxies
from manyscope.scopes.galaxies.settings import GalaxiesSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.stages import download, preprocess
from manyscope.tables.manifest import read_manifest
from manyscope.tables.parquet import read_table


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Traffic, "sleep", lambda self, seconds: None)
    with faults.running() as server:
        yield server


def of(catalog: Path, **own: Any) -> GalaxiesSettings:
    values = {"source": "http", "catalog": {"file": str(catalog)}, "http": {"wait_s": 0, **own}}
    return GalaxiesSettings(
        scope="galaxies",
        download=values,
        preprocess={"stamp_px": 16, "transforms": [], "pruned_max": 0.5, "validation_fraction": 0.3},
    )


def write(folder: Path, **columns: list[Any]) -> Path:
    catalog = folder / "catalog.csv"
    pl.DataFrame(columns).write_csv(catalog)
    return catalog


def array(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def fits_image(number: int, band: str = "g") -> bytes:
    return faults.cutout({"ra": f"{number}", "dec": "0", "filter": band, "rerun": "", "sw": "", "sh": ""})


def test_chain(server: Server, tmp_path: Path) -> None:
    """Files of both kinds in two filters, from the catalog to the prepared stamps."""
    from astropy.io import fits

    rows: dict[str, list[Any]] = {"object_id": [], "url": [], "filter": [], "redshift": []}
    right = {}
    for i in range(12):
        for band in "rg":
            path = f"/data/{band} {i}.fits" if band == "g" else f"/data/{i}.npy?version=3"
            if band == "g":
                content = fits_image(i)
                right[f"{i:03d}", band] = fits.getdata(io.BytesIO(content), 1)
            else:
                right[f"{i:03d}", band] = np.random.default_rng(i).normal(size=(24, 24)).astype(np.float32)
                content = array(right[f"{i:03d}", band])
            server.files[path.replace(" ", "%20")] = content
            for name, value in zip(rows, (f"{i:03d}", server.address + path, band, i / 10), strict=True):
                rows[name].append(value)
    settings = of(write(tmp_path, **rows), normalise="none")
    assert list(Galaxies().problems(settings)) == []
    paths = ExperimentPaths(tmp_path / "experiment")
    download.run(settings.for_stage("download"), paths)
    manifest = read_manifest(paths.manifest)
    assert (manifest["state"] == "done").all()
    assert set(manifest["source"]) > {server.address + path.partition("?")[0] for path in server.files}

    preprocess.run(settings.for_stage("preprocess"), paths)
    data = StampData(paths.prepared)
    assert data.bands == ["g", "r"]
    assert len(data.samples) == 12
    for row, (object_id, redshift) in enumerate(data.samples.select("sample_id", "redshift").iter_rows()):
        assert redshift == pytest.approx(int(object_id) / 10)
        for plane, band in enumerate("gr"):
            np.testing.assert_array_equal(data.stamps[row, plane], right[object_id, band][4:20, 4:20])


def test_goes_on_where_an_earlier_run_ended(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a checksum, half of a file is not fetched again; without ranges it is, and right all the same."""
    content = fits_image(1)
    server.files["/a.fits"] = content
    catalog = write(
        tmp_path, object_id=["a"], url=[f"{server.address}/a.fits"], sha256=[hashlib.sha256(content).hexdigest()]
    )
    monkeypatch.setattr(fetching, "_TRIES", 1)
    half = len(content) * 2 // 3
    for number, (fault, sizes) in enumerate([(None, {half}), (faults.no_ranges, {half})]):
        settings, paths = of(catalog, threads=1, tries=1), ExperimentPaths(tmp_path / str(number))
        server.faults[:] = [faults.truncated]
        with pytest.raises(DataError, match="1 of 1 files"):
            download.run(settings, paths)
        assert {file.stat().st_size for file in paths.raw.rglob(".*.arriving")} == sizes
        server.faults[:] = [fault]
        server.log.ranges.clear()
        download.run(settings, paths)
        assert server.log.ranges == [f"bytes={half}-"]
        [file] = paths.raw.rglob("*.fits")
        assert file.read_bytes() == content


def test_wrong_checksum_is_final(server: Server, tmp_path: Path) -> None:
    server.files["/a.fits"], server.files["/b.fits"] = fits_image(1), fits_image(2)
    right = hashlib.sha256(server.files["/b.fits"]).hexdigest()
    addresses = [f"{server.address}/a.fits", f"{server.address}/b.fits"]
    catalog = write(tmp_path, object_id=["a", "b"], url=addresses, sha256=["0" * 64, f"SHA256:{right.upper()}"])
    paths = ExperimentPaths(tmp_path / "experiment")
    with pytest.raises(DataError, match=r"1 of 2 files .* object 'a', filter '': twice .* instead of sha256:0000"):
        download.run(of(catalog), paths)
    assert read_table(paths.raw / REQUESTS, SCHEMA)["state"].to_list() == ["failed", "done"]
    assert len(list(paths.raw.rglob("*.fits"))) == 1


def test_page_with_status_200_is_no_image(server: Server, tmp_path: Path) -> None:
    """Nobody knows the checksum; what comes is looked at."""
    server.files["/a.fits"] = b"<html>sorry</html>" * 1000
    server.files["/b.npy"] = array(np.zeros((24, 24)))[:-8]
    server.files["/c.npy"] = array(np.array(["text"]))
    ids = list("abc")
    addresses = [server.address + path for path in ("/a.fits", "/b.npy", "/c.npy")]
    paths = ExperimentPaths(tmp_path / "experiment")
    with pytest.raises(DataError, match="3 of 3 files"):
        download.run(of(write(tmp_path, object_id=ids, url=addresses), tries=2), paths)
    table = read_table(paths.raw / REQUESTS, SCHEMA)
    assert table["tries"].to_list() == [2, 2, 2]
    assert [path for path in paths.raw.rglob("*") if path.suffix in (".fits", ".npy")] == []


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"address": ["http://a/b"]}, "column 'url' is missing"),
        ({"url": ["file:///etc/passwd"]}, "url 'file:///etc/passwd' is no address of http or https"),
        ({"url": ["ftp://host/file"]}, "allowed: addresses of http"),
        ({"url": ["http:///x"]}, "allowed: addresses of http"),
        ({"url": ["http://[::1/x"]}, "url 'http://[::1/x' is no address; allowed"),
        ({"url": ["http://a..b/x"]}, "url 'http://a..b/x' is no address"),
        ({"url": ["http://a:port/x"]}, "url 'http://a:port/x' is no address"),
        ({"url": ["http://a/b"], "sha256": ["abc"]}, "sha256 'abc'; allowed: 64 hexadecimal digits"),
        ({"url": ["http://a/b", "http://a/c"], "object_id": ["x", "x"]}, "object 'x' has filter '' twice"),
        (
            {"url": ["http://a/b", "http://a/c"], "object_id": ["x", "x"], "filter": ["g", "g"]},
            "object 'x' has filter 'g' twice",
        ),
    ],
)
def test_catalogs_that_cannot_be_used(columns: dict[str, list[str]], text: str, tmp_path: Path) -> None:
    catalog = write(tmp_path, **{"object_id": ["x"], **columns})
    with pytest.raises(DataError) as caught:
        list(Http().download(of(catalog).download, tmp_path))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["http://me:s3cret@host/x.fits", "https://s3cret@host/x", "http://me:s3/cret@host/x?a=1", "ftp://me:s3cret@host"],
)
def test_passwords_in_addresses_are_refused_and_not_repeated(address: str, tmp_path: Path) -> None:
    settings = of(write(tmp_path, object_id=["x"], url=[address])).download
    with pytest.raises(DataError, match="object 'x': url") as caught:
        list(Http().download(settings, tmp_path / "raw"))
    [problem] = Http().problems(settings)
    for text in (str(caught.value), problem):
        assert "cret" not in text
        assert "me:" not in text


def test_tokens_of_presigned_addresses_stand_in_no_table(server: Server, tmp_path: Path) -> None:
    server.files["/a.fits?X-Token=t0ken"] = fits_image(1)
    address = f"{server.address}/a.fits"
    catalog = write(tmp_path, object_id=["a", "b"], url=[f"{address}?X-Token=t0ken", f"{address}?X-Token=wr0ng"])
    paths = ExperimentPaths(tmp_path / "experiment")
    download.run(of(catalog, missing_max=0.5, tries=1, threads=1), paths)
    images = read_manifest(paths.manifest).filter(pl.col("path").str.starts_with("images/"))
    assert set(images["source"]) == {address}
    assert sorted(images["state"]) == ["done", "failed"]
    for file in paths.raw.glob("*.*"):
        assert b"t0ken" not in file.read_bytes()
        assert b"wr0ng" not in file.read_bytes()


def test_empty_address(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.parquet"
    pl.DataFrame({"object_id": ["x", "y"], "url": ["http://a/b", None]}).write_parquet(catalog)
    with pytest.raises(DataError, match=r"column 'url' is empty for object 'y' \(row 2 of 2\)"):
        list(Http().download(of(catalog).download, tmp_path))


def test_problems_are_told_before_anything_is_fetched(tmp_path: Path) -> None:
    [problem] = Http().problems(of(tmp_path / "none.csv").download)
    assert "no such file" in problem
    with pytest.raises(SettingsError, match="no table is named"):
        list(Http().download(GalaxiesSettings(scope="galaxies", download={"source": "http"}).download, tmp_path))
