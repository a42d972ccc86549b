"""The array of modules: built in by rule, read from files, refused with the row that breaks a rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyscope.errors import DataError
from manyscope.scopes.neutrinos.data.detector import Detector, built_in_detector, read_detector, write_geometry

BUILT_IN = built_in_detector()


def test_the_built_in_array_stands_where_icecube_does() -> None:
    assert len(BUILT_IN) == 86 * 60
    # The first and the last module of the real array; the grid is fitted to within some metres.
    np.testing.assert_allclose(BUILT_IN.position_m[0], [-256.14, -521.08, 496.03], atol=10)
    np.testing.assert_allclose(BUILT_IN.position_m[-1], [-10.97, 6.72, -500.73], atol=1)
    strings = BUILT_IN.position_m.reshape(86, 60, 3)
    assert (np.diff(strings[..., 2], axis=1) < 0).all()  # numbered from the top
    assert np.ptp(strings[..., :2], axis=1).max() == 0
    np.testing.assert_allclose(np.diff(strings[:78, :, 2]), -17.02)
    apart = np.linalg.norm(strings[:78, None, 0, :2] - strings[:78, 0, :2], axis=-1)
    np.testing.assert_allclose(np.sort(apart, axis=1)[:, 1], 125, atol=1)


def test_the_dense_core_is_the_last_eight_strings_and_sees_more() -> None:
    assert BUILT_IN.dense.sum() == 480
    assert BUILT_IN.dense[-480:].all()
    assert set(BUILT_IN.efficiency[: 80 * 60]) == {1.0}
    assert set(BUILT_IN.efficiency[80 * 60 :]) == {1.35}
    part = Detector(BUILT_IN.position_m[:-1], BUILT_IN.ice)
    assert not part.dense.any()
    assert set(part.efficiency) == {1.0}


def test_ice_is_interpolated_in_depth_and_constant_beyond_the_table() -> None:
    depths = np.array([1000, 1398, (1398 + 1423) / 2, 2064, 2488, 3000])
    position = np.column_stack([np.zeros((6, 2)), 1948.07 - depths])
    detector = Detector(position, BUILT_IN.ice)
    np.testing.assert_allclose(detector.scattering_m, [13.2, 13.2, 14.3, 8.6, 56.7, 56.7])
    np.testing.assert_allclose(detector.absorption_m, [45, 45, 49.5, 31, 185, 185])
    dusty = BUILT_IN.position_m[BUILT_IN.scattering_m.argmin(), 2]
    assert -150 < dusty < -80  # the dust layer, about 2,050 m deep


def test_geometry_is_kept_to_the_centimetre(tmp_path: Path) -> None:
    write_geometry(tmp_path / "sensor_geometry.csv", BUILT_IN)
    again = read_detector(tmp_path / "sensor_geometry.csv")
    np.testing.assert_allclose(again.position_m, BUILT_IN.position_m, atol=0.00501)
    np.testing.assert_array_equal(again.ice, BUILT_IN.ice)
    table = pl.read_csv(tmp_path / "sensor_geometry.csv")
    assert table.columns == ["sensor_id", "x", "y", "z"]
    assert table["sensor_id"].to_list() == list(range(5160))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable table"),
        (b"sensor_id,x,y,z\n", "'sensor_id' is String; allowed: numbers"),
        (b"sensor_id,x,y\n0,1,2\n", "column 'z' is missing; allowed: sensor_id, x, y, z"),
        (b"sensor_id,x,y,z\n0,1,2,a\n", "column 'z' is String"),
        (b"sensor_id,x,y,z\n0,1,2,3\n2,1,2,3\n", r"geometry\.csv:3: sensor_id 2; allowed: 0, 1, 2"),
        (b"sensor_id,x,y,z\n1,1,2,3\n0,1,2,3\n", r"geometry\.csv:2: sensor_id 1"),
        (b"sensor_id,x,y,z\n0,1,2,3\n1,1,,3\n", r"geometry\.csv:3: a position is not finite"),
        (b"sensor_id,x,y,z\n0,1,2,inf\n", r"geometry\.csv:2: a position is not finite"),
    ],
)
def test_a_broken_geometry_is_refused_with_its_row(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "geometry.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_detector(path)


def test_a_missing_geometry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: not a readable table"):
        read_detector(tmp_path / "nowhere.csv")


def test_a_table_of_ice_is_read_in_any_order_of_depth(tmp_path: Path) -> None:
    table = pl.DataFrame({"absorption_len": [200, 100], "depth": [2400, 1500], "scattering_len": [50.0, 20.0]})
    table.write_parquet(tmp_path / "ice.parquet")
    detector = built_in_detector(tmp_path / "ice.parquet")
    np.testing.assert_array_equal(detector.ice, [[1500, 20, 100], [2400, 50, 200]])
    np.testing.assert_array_equal(detector.position_m, BUILT_IN.position_m)
    write_geometry(tmp_path / "geometry.csv", BUILT_IN)
    np.testing.assert_array_equal(read_detector(tmp_path / "geometry.csv", tmp_path / "ice.parquet").ice, detector.ice)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"depth": [1500.0], "scattering_len": [20.0]}, "not a table of the ice .*allowed: depth, scattering_len"),
        ({"depth": [1500.0], "scattering_len": [0.0], "absorption_len": [1.0]}, "is not positive"),
        ({"depth": [1500.0], "scattering_len": [None], "absorption_len": [1.0]}, "is not positive"),
        ({"depth": ["deep"], "scattering_len": [1.0], "absorption_len": [1.0]}, "not a table of the ice"),
        ({"depth": [], "scattering_len": [], "absorption_len": []}, "is not positive"),
    ],
)
def test_a_broken_table_of_ice_is_refused(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "ice.parquet")
    with pytest.raises(DataError, match=message):
        built_in_detector(tmp_path / "ice.parquet")


def test_a_file_of_ice_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ice.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a table of the ice"):
        built_in_detector(tmp_path / "ice.parquet")


def test_modules_beside_each_other_are_on_one_string() -> None:
    beside = built_in_detector().beside
    assert beside[0].tolist() == [-1, -1, 1, 2]
    assert beside[59].tolist() == [57, 58, -1, -1]
    assert beside[60].tolist() == [-1, -1, 61, 62]
    assert beside[100].tolist() == [98, 99, 101, 102]
    assert beside[-1].tolist() == [5157, 5158, -1, -1]
