"""Noise, photographs and tables of features as sources."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from manyscope.errors import DataError
from manyscope.log import logger
from manyscope.scopes.galaxies.data import arrays
from manyscope.scopes.galaxies.data.arrays import draw_noise, features
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.scope import Galaxies
from manyscope.scopes.galaxies.settings import Cifar10Settings, GalaxiesSettings, RandomSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.stages import download, preprocess
from manyscope.tables.manifest import read_manifest


def experiment(source: str, download: dict[str, Any], **values: Any) -> GalaxiesSettings:
    section = {"transforms": [], "validation_fraction": 0.2, "test_fraction": 0.3, **values}
    return GalaxiesSettings(scope="galaxies", download={"source": source, **download}, preprocess=section)


def prepare(settings: GalaxiesSettings, folder: Path) -> StampData:
    paths = ExperimentPaths(folder)
    download.run(settings, paths)
    preprocess.run(settings, paths)
    return StampData(paths.prepared)


# Noise


def test_noise_has_any_shape_labels_and_holes(tmp_path: Path) -> None:
    own = {"count": 60, "bands": 2, "size_px": 5, "classes": 3, "nan_fraction": 0.1, "inf_fraction": 0.1}
    settings = experiment("random", {"random": own}, nan_policy="zero")
    assert list(Galaxies().problems(settings)) == []
    data = prepare(settings, tmp_path)
    assert data.stamps.shape == (60, 2, 5, 5)
    assert data.shape == (2, 5, 5)
    assert np.isfinite(data.stamps).all()  # infinite pixels are missing ones too
    assert 0.1 < (data.stamps == 0).mean() < 0.3
    assert data.samples["missing_fraction"].mean() == pytest.approx((data.stamps == 0).mean(), abs=1e-6)
    assert data.classes == ["class_0", "class_1", "class_2"]
    with pytest.raises(DataError, match=r"have pixels that are not finite.*set preprocess.nan_policy"):
        prepare(experiment("random", {"random": own}), tmp_path)


def test_more_noise_changes_no_earlier_image_and_holes_change_no_other_pixel() -> None:
    few, labels = draw_noise(1, 0, 5, RandomSettings(size_px=4, classes=4))
    many, more = draw_noise(1, 0, 9, RandomSettings(size_px=4, classes=4, nan_fraction=0.5))
    whole = np.isfinite(many[:5])
    assert 0.3 < whole.mean() < 0.7
    np.testing.assert_array_equal(many[:5][whole], few[whole])
    assert more["sample_id"][:5].to_list() == labels["sample_id"].to_list()
    assert not np.array_equal(draw_noise(2, 0, 5, RandomSettings(size_px=4))[0], few)


@pytest.mark.parametrize(
    ("source", "download", "message"),
    [
        ("random", {"random": {"size_px": 8}}, "a crop of 32 px does not fit the stamps of source 'random', 8 px"),
        ("table", {}, r"features cannot be cropped; set preprocess.transforms: \[\]"),
    ],
)
def test_a_crop_that_cannot_be_made_is_said_before(source: str, download: dict[str, Any], message: str) -> None:
    settings = GalaxiesSettings(scope="galaxies", download={"source": source, **download})
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(Galaxies().problems(settings)))


# CIFAR-10

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def archive(path: Path, files: dict[str, bytes]) -> dict[str, dict[str, str]]:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return {"cifar10": {"archive": str(path), "checksum": f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"}}


def records(first: int, count: int) -> bytes:
    rows = []
    for number in range(first, first + count):
        red, green, blue = (np.full(1024, 10 * band + number % 10, np.uint8) for band in range(3))
        rows.append(bytes([number % 10]) + red.tobytes() + green.tobytes() + blue.tobytes())
    return b"".join(rows)


def meta() -> bytes:
    return ("\n".join(CLASSES) + "\n\n").encode()


def test_cifar_has_classes_and_keeps_the_official_split_as_a_column(tmp_path: Path) -> None:
    files = {"data_batch_1.bin": records(0, 30), "batches.meta.txt": meta(), "test_batch.bin": records(30, 20)}
    settings = experiment("cifar10", archive(tmp_path / "cifar.tar.gz", files))
    data = prepare(settings, tmp_path / "out")
    assert data.stamps.shape == (50, 3, 32, 32)
    assert data.bands == ["blue", "green", "red"]
    assert data.top_down
    assert data.classes == CLASSES
    numbers = data.labels
    expected = np.stack([(10 * band + numbers) / 127.5 - 1 for band in (2, 1, 0)], 1)
    np.testing.assert_allclose(data.stamps[:, :, 5, 7], expected, rtol=1e-6, atol=1e-6)
    assert data.samples["official_split"].value_counts().sort("official_split").rows() == [("test", 20), ("train", 30)]
    assert data.samples["sample_id"][0] == "cifar-data_batch_1-00000"


def test_the_wrong_archive_is_refused(tmp_path: Path) -> None:
    good = archive(tmp_path / "a.tar.gz", {"data_batch_1.bin": records(0, 3), "batches.meta.txt": meta()})
    wrong = {"cifar10": {**good["cifar10"], "checksum": "md5:" + 32 * "0"}}
    with pytest.raises(DataError, match=r"a\.tar\.gz: the checksum is not md5:0000"):
        prepare(experiment("cifar10", wrong), tmp_path / "out")
    short = archive(tmp_path / "b.tar.gz", {"data_batch_1.bin": records(0, 3)[:-1], "batches.meta.txt": meta()})
    with pytest.raises(DataError, match=r"data_batch_1.bin has 9218 bytes, no row of whole records"):
        prepare(experiment("cifar10", short), tmp_path / "out2")
    (tmp_path / "c.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:-50])
    cut = {"cifar10": {"archive": str(tmp_path / "c.tar.gz"), "checksum": None}}
    with pytest.raises(DataError, match="not a readable archive"):
        prepare(experiment("cifar10", cut), tmp_path / "out3")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("file:///etc/passwd", "archive 'file:///etc/passwd' is no address of http or https"),
        ("https://[::1/c.tar.gz", "is no address"),
        ("https://me:s3cret@host/c.tar.gz?key=s3cret", "archive 'https://…@host/c.tar.gz' holds a user name"),
    ],
)
def test_archives_are_files_or_addresses_of_http(address: str, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Cifar10Settings(archive=address)
    [message] = [error["msg"] for error in caught.value.errors()]
    assert text in message
    assert "s3cret" not in message


def test_the_token_of_an_archive_is_not_in_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def fetched(address: str, target: Path, *rest: Any) -> None:
        asked.append(address)
        target.write_bytes(b"archive")

    monkeypatch.setattr(arrays, "fetch", fetched)
    own = {"cifar10": {"archive": "https://host/c.tar.gz?key=t0ken", "checksum": None}}
    paths = ExperimentPaths(tmp_path)
    download.run(experiment("cifar10", own), paths)
    assert asked == ["https://host/c.tar.gz?key=t0ken"]
    assert read_manifest(paths.manifest)["source"].to_list() == ["https://host/c.tar.gz"]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("opened"),)


def test_nothing_is_ever_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version for Python holds pickles, which run what they like when they are opened."""
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    download = archive(tmp_path / "py.tar.gz", {"data_batch_1": bomb, "batches.meta": bomb, "test_batch": bomb})
    with pytest.raises(DataError, match=r"it holds no batch; allowed: cifar-10-binary\.tar\.gz"):
        prepare(experiment("cifar10", download), tmp_path / "out")
    assert not (tmp_path / "opened").exists()


# Tables of features


def table(path: Path, count: int = 40, width: int = 4, **columns: Any) -> pl.DataFrame:
    vectors = np.arange(count * width, dtype=np.float32).reshape(count, width)
    frame = pl.DataFrame(
        {
            "object_id": [f"o{i:03d}" for i in range(count)],
            "embedding": pl.Series(vectors, dtype=pl.Array(pl.Float32, width)),
            "class": [["a", "b"][i % 2] if i else None for i in range(count)],
            **columns,
        }
    )
    frame.write_parquet(path)
    return frame


def test_the_predictions_of_another_experiment_become_features(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    frame = table(tmp_path / "predictions.parquet")
    settings = experiment("table", {"catalog": {"file": str(tmp_path / "predictions.parquet")}})
    assert list(Galaxies().problems(settings)) == []
    data = prepare(settings, tmp_path / "out")
    assert data.stamps.shape == (40, 4, 1, 1)
    assert data.unit == "feature"
    assert data.bands == ["embedding_0", "embedding_1", "embedding_2", "embedding_3"]
    np.testing.assert_array_equal(data.stamps[:, :, 0, 0], frame["embedding"].to_numpy())
    assert data.samples["sample_id"].to_list() == frame["object_id"].to_list()
    assert data.samples.columns == ["sample_id", "group", "split", "class", "missing_fraction"]
    assert data.batch(np.array([0, 2, 1]))["labels"].tolist() == [-1, 0, 1]  # unknown, a, b
    assert "left out" not in caplog.text


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.ecsv"])
def test_columns_of_numbers_become_features(tmp_path: Path, name: str) -> None:
    frame = pl.DataFrame(
        {
            "object_id": [f"{i:03d}" for i in range(30)],
            "size": list(range(30)),
            "shape": [None, *[i / 7 for i in range(1, 30)]],
            "z": [i / 3 for i in range(30)],
        }
    )
    if name == "t.ecsv":
        from astropy.table import Table

        Table({name: frame[name].fill_null(np.nan).to_numpy() for name in frame.columns}).write(tmp_path / name)
    elif name == "t.csv":
        frame.write_csv(tmp_path / name)
    else:
        frame.write_parquet(tmp_path / name)
    download = {"catalog": {"file": str(tmp_path / name)}, "table": {"vectors": ["shape", "size"]}}
    data = prepare(experiment("table", download, nan_policy="zero"), tmp_path / "out")
    assert data.bands == ["shape", "size"]
    np.testing.assert_array_equal(data.stamps[:, 1, 0, 0], np.arange(30))
    np.testing.assert_allclose(data.stamps[1:, 0, 0, 0], np.arange(1, 30) / 7, rtol=1e-6)
    assert data.samples["missing_fraction"].to_list() == [0.5] + 29 * [0]
    assert "z" in data.samples.columns
    assert "size" not in data.samples.columns


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_lists_come_in_pieces_and_a_missing_one_is_missing(tmp_path: Path, rows: int) -> None:
    lists = [None, [1.0, 2.0], [3.0, None], [5.0, 6.0], [7.0, 8.0]]
    pl.DataFrame({"v": lists}).write_parquet(tmp_path / "t.parquet")
    found = np.concatenate(list(features(tmp_path / "t.parquet", ["v"], rows)))
    nan = np.nan
    np.testing.assert_array_equal(found, np.array([[nan, nan], [1, 2], [3, nan], [5, 6], [7, 8]], np.float32))


@pytest.mark.parametrize(
    ("change", "vectors", "message"),
    [
        ({"v": [[1.0], *[[1.0, 2.0]] * 39]}, "v", r"a list of column 'v' has 2 numbers, the first 1"),
        ({"v": ["x"] * 40}, "v", r"column 'v' has type String; allowed: one column of lists"),
        ({}, ("embedding", "class"), r"column 'embedding' has type Array"),
        ({"v": pl.Series([None] * 40, dtype=pl.List(pl.Float32))}, "v", "no list of column 'v' has any number"),
        ({}, "embeding", r"column 'embeding' is missing; did you mean 'embedding'"),
        ({"object_id": ["same"] * 40}, "embedding", "1 ids occur more than once, such as 'same'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(
    tmp_path: Path, change: dict[str, Any], vectors: Any, message: str
) -> None:
    table(tmp_path / "t.parquet", **change)
    download = {"catalog": {"file": str(tmp_path / "t.parquet")}, "table": {"vectors": vectors}}
    with pytest.raises(DataError, match=message):
        prepare(experiment("table", download), tmp_path / "out")
