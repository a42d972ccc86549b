"""Tables of objects in any format."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table

from manyscope.errors import DataError, SettingsError
from manyscope.log import logger
from manyscope.scopes.galaxies.data.catalog import read_catalog
from manyscope.scopes.galaxies.settings import CatalogSettings

ID = 42416226411235689  # 17 digits: not a whole number in float64


def example() -> Table:
    return Table(
        {
            "object_id": np.array([ID, 7, 8], np.int64),
            "ra": np.array([150.25, 2.5, -1e-3], ">f8"),
            "band": ["HSC-G", "HSC-R", "é"],
            "z": MaskedColumn([0.5, 0.7, 0.9], mask=[0, 1, 0]),
            "n": MaskedColumn(np.array([1, 2, 3], ">i4"), mask=[0, 0, 1]),
        }
    )


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("c.fits", None),
        ("c.fits.gz", None),
        ("c.vot", "votable"),
        ("c.ecsv", None),
        ("c.csv", None),
        ("c.csv.gz", None),
        ("c.parquet", None),
        ("c.txt", "ascii.basic"),
    ],
)
def test_every_format_gives_the_same_table(tmp_path: Path, name: str, named: str | None) -> None:
    path = tmp_path / name
    table = example()
    if ".fits" in name:
        table["band"] = ["HSC-G", "HSC-R", "e"]  # FITS text is ASCII
    if name == "c.parquet":
        polars = {"object_id": [ID, 7, 8], "ra": [150.25, 2.5, -1e-3], "band": ["HSC-G", "HSC-R", "é"]}
        pl.DataFrame({**polars, "z": [0.5, None, 0.9], "n": [1, 2, None]}).write_parquet(path)
    else:
        table.write(path, format="ascii.csv" if ".csv" in name else named)
    found = read_catalog(CatalogSettings(file=str(path), format=named))
    assert found.columns == ["object_id", "group", "ra", "band", "z", "n"]
    assert found["object_id"].to_list() == found["group"].to_list() == [str(ID), "7", "8"]
    assert found["ra"].to_list() == [150.25, 2.5, -1e-3]
    assert found["band"].to_list() == list(table["band"])
    assert found["z"].to_list() == [0.5, None, 0.9]
    assert found["n"].to_list() == [1, 2, None]


@pytest.mark.parametrize("name", ["c.fits", "c.ecsv", "c.vot", "c.parquet"])
def test_wanted_units_are_converted_and_others_kept(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    table = Table(
        {
            "object_id": ["a", "b"],
            "ra": MaskedColumn(np.array([9000, 20], np.int16), mask=[0, 1], unit="arcmin"),
            "dec": Column(np.array([np.pi / 6, -np.pi / 2], np.float32), unit="rad"),
            "angle": Column([1.0, 2.0], unit="rad"),
            "size": Column([1.0, 2.0], unit="arcsec"),
        }
    )
    table.write(tmp_path / name, **({"format": "votable"} if name == "c.vot" else {}))
    settings = CatalogSettings(file=str(tmp_path / name), format="votable" if name == "c.vot" else None)
    found = read_catalog(settings, units={"ra": "deg", "dec": "deg", "size": "arcsec", "none": "deg"})
    assert found["ra"][0] == pytest.approx(150)
    assert found["ra"][1] is None or name == "c.parquet"  # astropy writes masks as columns of their own there
    assert found["dec"].to_list() == pytest.approx([30, -90], rel=1e-6)
    assert found["angle"].to_list() == found["size"].to_list() == [1.0, 2.0]
    with pytest.raises(DataError, match=r"column 'dec' has the unit 'rad'; allowed: .* 'm', or none"):
        read_catalog(settings, units={"dec": "m"})


@pytest.mark.parametrize(
    ("word", "factor"), [("", 1), (None, 1), ("Degrees", 1), ("RADIAN", 57.29577951308232), ("hours", None)]
)
def test_units_as_people_write_them(tmp_path: Path, word: str | None, factor: float | None) -> None:
    path = tmp_path / "c.fits"
    columns = [fits.Column("object_id", "K", array=[1]), fits.Column("ra", "D", unit=word, array=[2.0])]
    fits.BinTableHDU.from_columns(columns).writeto(path)
    settings = CatalogSettings(file=str(path))
    if factor is None:
        with pytest.raises(DataError, match="column 'ra' has the unit 'hours'"):
            read_catalog(settings, units={"ra": "deg"})
    else:
        assert read_catalog(settings, units={"ra": "deg"})["ra"].to_list() == pytest.approx([2 * factor])


def test_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "c.hdf5"
    Table({"object_id": ["a", "b"], "ra": [1.0, 2.0]}).write(path, path="objects", serialize_meta=True)
    found = read_catalog(CatalogSettings(file=str(path)))
    assert found["object_id"].to_list() == ["a", "b"]
    assert found["ra"].to_list() == [1.0, 2.0]


def csv(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.csv"
    path.write_text(text)
    return str(path)


def test_ids_keep_their_leading_zeros_and_rows_may_repeat(tmp_path: Path) -> None:
    file = csv(tmp_path, "# a comment\nname,ra\n007,1\n007,2\n10,3\n")
    assert read_catalog(CatalogSettings(file=file, id_column="name"))["object_id"].to_list() == ["007", "007", "10"]


def test_the_group_and_the_wanted_columns(tmp_path: Path) -> None:
    file = csv(tmp_path, "object_id,tract,ra,dec,split\na,9813,1,2,x\nb,9813,3,4,y\n")
    settings = CatalogSettings(file=file, group_column="tract", columns=("dec",))
    found = read_catalog(settings, ["ra"])
    assert found.columns == ["object_id", "group", "ra", "dec"]
    assert found["group"].to_list() == ["9813", "9813"]


def test_what_cannot_be_a_column_is_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.fits"
    Table({"object_id": [1], "wave": np.zeros((1, 4)), "phase": [1 + 2j], "split": ["train"]}).write(path)
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert read_catalog(CatalogSettings(file=str(path))).columns == ["object_id", "group"]
    assert "wave, phase" in caplog.text
    assert "split: the chain has columns of that name" in caplog.text


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("object_id,ra\n1,2\n", {"id_column": "objectid"}, r"c\.csv: column 'objectid' is missing.*mean 'object_id'"),
        ("object_id,ra\n1,2\n", {"columns": ["rra"]}, "column 'rra' is missing; did you mean 'ra'"),
        ("object_id,ra\n1,2\n", {"group_column": "tract"}, "column 'tract' is missing; it has object_id, ra"),
        ("object_id,ra\n1,2\n,3\n", {}, "1 rows have no 'object_id', the first is row 1"),
        ("object_id,ra\n", {}, "the table has no row"),
        ("object_id,ra\n1,2\n", {"format": "vottable"}, "format 'vottable' is unknown.*did you mean 'votable'"),
        ("object_id,ra\n1,2\n", {"format": "fits"}, "not a readable table"),
        ("object_id,ra\n1,2\n", {"format": "parquet"}, "not a readable table"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, text: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_catalog(CatalogSettings(**{"file": csv(tmp_path, text), **settings}))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_rounded_ids_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pl.DataFrame({"object_id": [float(ID)]}).write_parquet(path)
    with pytest.raises(DataError, match="floating-point numbers, which round long ids; allowed: integers or text"):
        read_catalog(CatalogSettings(file=str(path)))


def test_a_file_that_is_not_there_or_tells_no_format(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"download\.catalog\.file: no table is named"):
        read_catalog(CatalogSettings())
    with pytest.raises(DataError, match=r"no such file; mend download\.catalog\.file"):
        read_catalog(CatalogSettings(file=str(tmp_path / "none.csv")))
    (tmp_path / "table.dat").write_text("a b\n1 2\n")
    with pytest.raises(DataError, match=r"its format is not told by its name; set download\.catalog\.format"):
        read_catalog(CatalogSettings(file=str(tmp_path / "table.dat")))
