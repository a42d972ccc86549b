"""The source hsc: what is asked, in what order and with whose password; what of the answers is taken."""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import fault_server as faults
from fault_server import Server
from manyscope.data.fetching import Traffic
from manyscope.errors import DataError, SettingsError
from manyscope.scopes.galaxies.data import hsc
from manyscope.scopes.galaxies.data.hsc import FIELDS, Hsc, Rectangle, batches, credentials, form
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.data.transfers import REQUESTS, SCHEMA
from manyscope.scopes.galaxies.scope import Galaxies
from manyscope.scopes.galaxies.settings import GalaxiesSettings, HscSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.stages import download, preprocess
from manyscope.tables.parquet import read_table


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(hsc.USERNAME, faults.USERNAME)
    monkeypatch.setenv(hsc.PASSWORD, faults.PASSWORD)
    monkeypatch.setattr(Traffic, "sleep", lambda self, seconds: None)


@pytest.fixture
def server() -> Iterator[Server]:
    with faults.running() as server:
        yield server


def of(catalog: Path, **own: Any) -> GalaxiesSettings:
    values = {
        "source": "hsc",
        "catalog": {"file": str(catalog)},
        "hsc": {"wait_s": 0, "filters": ["HSC-G", "HSC-I"], **own},
    }
    return GalaxiesSettings(
        scope="galaxies",
        download=values,
        preprocess={"stamp_px": 16, "transforms": [], "pruned_max": 0.5, "validation_fraction": 0.3},
    )


def write(folder: Path, **columns: list[Any]) -> Path:
    catalog = folder / "catalog.fits"
    from astropy.table import Table

    Table(columns).write(catalog, overwrite=True)
    return catalog


def asked(server: Server) -> list[dict[str, str]]:
    return [dict(zip(FIELDS, line.split(), strict=True)) for line in server.log.lines]


def test_chain(server: Server, tmp_path: Path) -> None:
    from astropy.io import fits

    count = 14
    ids = [43158322000000000 + i for i in range(count)]
    catalog = write(
        tmp_path, object_id=ids, ra=[float(i) for i in range(count)], dec=[-1.5] * count, tract=[9813] * count,
        z=[i / 10 for i in range(count)],
    )  # fmt: skip
    settings = of(catalog, api=server.address, normalise="none", filters=["HSC-I", "HSC-G"])
    assert list(Galaxies().problems(settings)) == []
    paths = ExperimentPaths(tmp_path / "experiment")
    download.run(settings.for_stage("download"), paths)
    table = read_table(paths.raw / REQUESTS, SCHEMA)
    assert table["object_id"].to_list() == [f"{i}" for i in ids for _ in range(2)]
    assert table["filter"].to_list() == ["HSC-G", "HSC-I"] * count
    for row in table.iter_rows(named=True):
        name = rf"{row['object_id']}_coadd_\d+\.00000_-1\.50000_9813_{row['filter']}"
        assert re.fullmatch(rf"images/(?:[0-9a-f]{{2}}/){{2}}{name}_[0-9a-f]{{10}}\.fits", row["file"])

    preprocess.run(settings.for_stage("preprocess"), paths)
    data = StampData(paths.prepared)
    assert data.bands == ["HSC-G", "HSC-I"]
    files = dict(zip(table.select("object_id", "filter").iter_rows(), table["file"], strict=True))
    for row, object_id in enumerate(data.samples["sample_id"]):
        for plane, band in enumerate(data.bands):
            right = fits.getdata(paths.raw / files[object_id, band], 1)[4:20, 4:20]
            np.testing.assert_array_equal(data.stamps[row, plane], right)
    assert data.samples["z"].to_list() == pytest.approx([(int(i) - ids[0]) / 10 for i in data.samples["sample_id"]])


def test_defaults_are_complete() -> None:
    """Nothing that is read lacks a default, and they are those of the service's own tool."""
    own = HscSettings()
    assert (own.threads, own.rectangles, own.timeout_s, own.tries, own.wait_s) == (4, 990, 3600, 3, 30)
    assert (own.semi_width_arcsec, own.semi_height_arcsec, own.type, own.rerun, own.hdu) == (
        22,
        22,
        "coadd",
        "pdr3_wide",
        1,
    )
    assert own.filters == ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y")
    assert (own.mask, own.variance) == (False, False)


def test_form() -> None:
    rectangle = Rectangle(
        "pdr3_wide", "coadd/bg", "HSC-R", "9813", 150.1, -2.25, 22 / 3600, 11 / 3600, True, False, True
    )
    text = form([rectangle] * 2).decode()
    boundary = text.split("\r\n")[0]
    assert text.startswith(f'{boundary}\r\nContent-Disposition: form-data; name="list"; filename="list.txt"\r\n\r\n#? ')
    assert text.endswith(f"\r\n{boundary}--\r\n")
    first, *lines = text.split("\r\n\r\n")[1].split("\r\n")[0].split("\n")
    assert first == "#? rerun type filter tract ra dec sw sh image mask variance"
    assert lines == ["pdr3_wide coadd/bg HSC-R 9813 150.1deg -2.25deg 0.006111111111111111deg 0.0030555555555555557deg true false true"] * 2  # fmt: skip  # noqa: E501


def test_width_is_width(server: Server, tmp_path: Path) -> None:
    catalog = write(tmp_path, object_id=["a"], ra=[1.0], dec=[2.0])
    own = of(catalog, api=server.address, semi_width_arcsec=36, semi_height_arcsec=18, filters=["HSC-G"])
    download.run(own, ExperimentPaths(tmp_path / "experiment"))
    [row] = asked(server)
    assert (row["sw"], row["sh"], row["tract"]) == ("0.01deg", "0.005deg", "any")


def test_columns_of_the_catalog_go_first(server: Server, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.parquet"
    pl.DataFrame(
        {
            "object_id": ["a", "b", "c", "c"],
            "ra": [1.0, 2.0, 3.0, 3.0],
            "dec": [0.0, 0.0, 0.0, 0.0],
            "tract": [5, None, 7, 7],
            "semi_width_arcsec": [36.0, None, None, None],
            "semi_height_arcsec": [None, 18.0, None, None],
            "filter": [None, "HSC-Z, HSC-Y", "HSC-G", "HSC-R"],
            "type": [None, "coadd/bg", None, None],
            "rerun": ["pdr3_dud", None, None, None],
        }
    ).write_parquet(catalog)
    paths = ExperimentPaths(tmp_path / "experiment")
    download.run(of(catalog, api=server.address, threads=1), paths)
    told = {
        (row["ra"], row["filter"]): (row["sw"], row["sh"], row["type"], row["rerun"], row["tract"])
        for row in asked(server)
    }
    plain = "0.006111111111111111deg"
    assert told == {
        ("1.0deg", "HSC-G"): ("0.01deg", plain, "coadd", "pdr3_dud", "5"),
        ("1.0deg", "HSC-I"): ("0.01deg", plain, "coadd", "pdr3_dud", "5"),
        ("2.0deg", "HSC-Z"): (plain, "0.005deg", "coadd/bg", "pdr3_wide", "any"),
        ("2.0deg", "HSC-Y"): (plain, "0.005deg", "coadd/bg", "pdr3_wide", "any"),
        ("3.0deg", "HSC-G"): (plain, plain, "coadd", "pdr3_wide", "7"),
        ("3.0deg", "HSC-R"): (plain, plain, "coadd", "pdr3_wide", "7"),
    }


def test_rectangles_are_sorted(server: Server, tmp_path: Path) -> None:
    """By tract, then ra, then dec: numbers, not texts."""
    rng = np.random.default_rng(0)
    tract, ra, dec = (
        rng.permutation([9, 10, 100] * 4),
        rng.uniform(0, 360, 12).round(3),
        rng.uniform(-9, 9, 12).round(3),
    )
    catalog = write(tmp_path, object_id=[f"{i}" for i in range(12)], ra=ra, dec=dec, tract=tract)
    download.run(of(catalog, api=server.address, threads=1, rectangles=7), ExperimentPaths(tmp_path / "experiment"))
    assert server.log.batches == [7, 7, 7, 3]
    keys = [(int(row["tract"]), float(row["ra"][:-3]), float(row["dec"][:-3])) for row in asked(server)]
    assert keys == sorted(keys)


@given(st.integers(1, 5000), st.integers(1, 10), st.integers(1, 990))
def test_batches_hold_all(count: int, threads: int, most: int) -> None:
    items: list[Any] = list(range(count))
    pieces = batches(items, threads, most)
    assert [item for piece in pieces for item in piece] == items
    assert max(map(len, pieces)) <= most
    assert len(pieces) >= min(count, threads) / 2


# ------------------------------------------------------------------------------------------------------- credentials
def write_secret(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    return str(path)


def test_credentials_from_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert credentials(HscSettings()) == (faults.USERNAME, faults.PASSWORD)
    file = write_secret(tmp_path / "secret.toml", 'username = "me"\npassword = "a:b"\n')
    with pytest.raises(SettingsError, match="there are credentials in the environment too"):
        credentials(HscSettings(credentials=file))
    monkeypatch.delenv(hsc.USERNAME)
    with pytest.raises(SettingsError, match="there are credentials in the environment too"):
        credentials(HscSettings(credentials=file))
    with pytest.raises(SettingsError, match=f"no credentials; set {hsc.USERNAME} and {hsc.PASSWORD}"):
        credentials(HscSettings())
    monkeypatch.delenv(hsc.PASSWORD)
    assert credentials(HscSettings(credentials=file)) == ("me", "a:b")


@pytest.mark.parametrize(
    "text", ["password = s3cret", 'password = "s3cret"', 'username = 5\npassword = "s3cret"', None]
)
def test_files_without_credentials(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hsc.USERNAME)
    monkeypatch.delenv(hsc.PASSWORD)
    file = tmp_path / "secret.toml"
    if text is not None:
        write_secret(file, text)
    with pytest.raises(DataError) as caught:
        credentials(HscSettings(credentials=str(file)))
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    [problem] = (p for p in Hsc().problems(of(tmp_path / "none", credentials=str(file)).download) if "secret.toml" in p)
    assert "s3cret" not in problem


def test_credentials_are_told_to_nobody(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither to the log, nor to a file, nor to another server to which the service points."""
    catalog = write(tmp_path, object_id=["a", "b"], ra=[1.0, 2.0], dec=[2.0, 2.0])
    settings = of(catalog, api=server.address, threads=1)
    errors = []
    with caplog.at_level(logging.DEBUG), faults.running() as other:
        for fault in (faults.status(401), faults.status(403), faults.redirect(307, f"{other.address}/cgi-bin/cutout")):
            server.faults[:] = [faults.status(503), fault]
            with pytest.raises(DataError) as caught:
                download.run(settings, ExperimentPaths(tmp_path / "experiment"))
            errors.append(str(caught.value))
        assert other.log.authorizations == []
    assert "refuses the credentials (HTTP 401" in errors[0]
    assert "refuses the credentials (HTTP 403" in errors[1]
    assert "has moved to http://127.0.0.1" in errors[2]
    assert len(server.log.authorizations) == 6  # a refused password is not tried again: that may lock the account
    download.run(settings, ExperimentPaths(tmp_path / "experiment"))
    secret = server.log.authorizations[-1]
    assert secret is not None
    for word in (faults.USERNAME, faults.PASSWORD, secret.split()[1]):
        assert word not in caplog.text
        assert not any(word in error for error in errors)
        for file in (tmp_path / "experiment").rglob("*.*"):
            assert word.encode() not in file.read_bytes()


# ------------------------------------------------------------------------------------------------ what cannot be used
@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"ra": [float("nan")]}, "column 'ra' is empty for object 'x'"),
        ({"ra": [360.0]}, "ra 360, dec 0; allowed: degrees"),
        ({"dec": [-91.0]}, "ra 1, dec -91; allowed: degrees"),
        ({"ra": ["10h"]}, "ra '10h'; allowed: a number"),
        ({"semi_width_arcsec": [0.0]}, "a cutout of 0 x 22 arcsec"),
        ({"type": ["warp"]}, "type 'warp'; allowed: coadd, coadd/bg"),
        ({"filter": ["HSC-G\nHSC;I"]}, "filter 'HSC;I'; allowed: letters"),
        ({"rerun": ["pdr3 wide"]}, "rerun 'pdr3 wide'; allowed"),
        ({"tract": ["north"]}, "tract 'north'; allowed: a whole number, any, or nothing"),
        ({"tract": [9813.5]}, "tract 9813.5; allowed: a whole number"),
        ({"tract": [float("inf")]}, "tract inf; allowed: a whole number"),
    ],
)
def test_catalogs_that_cannot_be_used(columns: dict[str, list[Any]], text: str, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.parquet"
    pl.DataFrame({"object_id": ["x"], "ra": [1.0], "dec": [0.0]} | columns, strict=False).write_parquet(catalog)
    with pytest.raises(DataError) as caught:
        list(Hsc().download(of(catalog).download, tmp_path))
    assert text in str(caught.value)
    assert any(text in problem for problem in Hsc().problems(of(catalog).download))


def test_tracts_that_nobody_knows(server: Server, tmp_path: Path) -> None:
    catalog = write(tmp_path, object_id=["a", "b"], ra=[1.0, 2.0], dec=[0.0, 0.0], tract=[float("nan"), 9813.0])
    download.run(of(catalog, api=server.address, filters=["HSC-G"]), ExperimentPaths(tmp_path / "one"))
    named = write(tmp_path, object_id=["c", "d"], ra=[3.0, 4.0], dec=[0.0, 0.0], tract=["any", "9813"])
    download.run(of(named, api=server.address, filters=["HSC-G"]), ExperimentPaths(tmp_path / "two"))
    assert sorted((row["ra"], row["tract"]) for row in asked(server)) == [
        ("1.0deg", "any"), ("2.0deg", "9813"), ("3.0deg", "any"), ("4.0deg", "9813")
    ]  # fmt: skip


def test_units_of_the_catalog_count(server: Server, tmp_path: Path) -> None:
    """Radians are no degrees, and arcminutes no arcseconds."""
    from astropy.table import Table

    table = Table({"object_id": ["a"], "ra": [np.radians(150.0)], "dec": [-120.0], "semi_width_arcsec": [0.6]})
    table["ra"].unit, table["dec"].unit, table["semi_width_arcsec"].unit = "rad", "arcmin", "arcmin"
    table.write(tmp_path / "catalog.fits")
    settings = of(tmp_path / "catalog.fits", api=server.address, filters=["HSC-G"])
    download.run(settings, ExperimentPaths(tmp_path / "experiment"))
    [row] = asked(server)
    assert float(row["ra"].removesuffix("deg")) == pytest.approx(150)
    assert float(row["dec"].removesuffix("deg")) == pytest.approx(-2)
    assert float(row["sw"].removesuffix("deg")) == pytest.approx(0.01)
    table["dec"].unit = "mag"
    table.write(tmp_path / "catalog.fits", overwrite=True)
    with pytest.raises(DataError, match=r"column 'dec' has the unit 'mag'; allowed: .* converted to 'deg', or none"):
        list(Hsc().download(settings.download, tmp_path))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, None),
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "its header has no usable place on the sky (TypeError)"),
        ({"CTYPE2": "RA---TAN"}, "its header has no usable place on the sky (InconsistentAxisTypesError)"),
        (dict.fromkeys(("CTYPE1", "CTYPE2", "CRVAL2", "CRPIX1", "CRPIX2", "CDELT1", "CDELT2")), "no usable place"),
        ({"CRVAL1": 9.0}, "a cutout of another place"),
    ],
)
def test_headers_of_any_kind_say_no_and_do_not_raise(change: dict[str, Any], wrong: str | None, tmp_path: Path) -> None:
    from astropy.io import fits

    path = tmp_path / "a.fits"
    path.write_bytes(faults.cutout({"ra": "1", "dec": "2", "filter": "g", "rerun": "", "sw": "", "sh": ""}))
    with fits.open(path, mode="update") as file:
        for key, value in change.items():
            file[1].header.pop(key)
            if value is not None:
                file[1].header[key] = value
    rectangle = Rectangle("", "coadd", "g", "any", 1.0, 2.0, 0.01, 0.01, True, False, False)
    found = hsc.is_not(path, HscSettings(), rectangle)
    assert found == wrong if wrong is None else wrong in str(found)


@pytest.mark.parametrize(
    ("own", "text"),
    [
        ({"api": "http://hsc.example.org/das"}, "'http://hsc.example.org/das' would get the password unencrypted"),
        ({"api": "hsc.example.org/das"}, "api 'hsc.example.org/das' is no address of http or https"),
        ({"api": "https://[::1/das"}, "is no address"),
        ({"api": "https://me:s3cret@host/das"}, "api 'https://…@host/das' holds a user name or a password"),
        ({"api": "https://host/das?key=s3cret"}, "api 'https://host/das' goes on with a query"),
        ({"filters": ["HSC-G", "HSC-R", "HSC-G"]}, "'HSC-G' stands there more than once"),
    ],
)
def test_settings_that_cannot_be_used(own: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HscSettings(**own)
    messages = [error["msg"] for error in caught.value.errors()]
    assert text in messages[0]
    assert "s3cret" not in messages[0]


def test_only_this_computer_may_go_without_encryption() -> None:
    for api in ("http://127.0.0.1:8000", "http://[::1]/das", "http://localhost/das", "https://hsc.example.org"):
        assert HscSettings(api=api).api == api


def test_objects_that_come_twice(tmp_path: Path) -> None:
    catalog = write(tmp_path, object_id=["x", "x"], ra=[1.0, 2.0], dec=[0.0, 0.0])
    with pytest.raises(DataError, match=r"object 'x'.* comes twice without a filter"):
        list(Hsc().download(of(catalog).download, tmp_path))


def test_rectangles_off_the_survey(server: Server, tmp_path: Path) -> None:
    """The service leaves them out of its answers: others are kept, those have failed and their objects are left out."""

    def without(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [(name, content) for name, content in members if b"CRVAL1  =                  3.0" not in content]

    count = 12
    catalog = write(
        tmp_path, object_id=[f"{i}" for i in range(count)], ra=[float(i) for i in range(count)], dec=[0.0] * count
    )
    server.faults[:] = [faults.tar_with(without)] * 99
    paths = ExperimentPaths(tmp_path / "experiment")
    with pytest.raises(DataError, match=r"2 of 24 files .* object '3', filter 'HSC-G': the answer lacks it"):
        download.run(of(catalog, api=server.address), paths)
    settings = of(catalog, api=server.address, missing_max=0.1)
    download.run(settings, paths)
    preprocess.run(settings, paths)
    assert sorted(StampData(paths.prepared).samples["sample_id"], key=int) == [f"{i}" for i in range(count) if i != 3]
    pruned = pl.read_csv(paths.prepared / "pruned.csv")
    assert pruned["object_id"].to_list() == [3]
