"""The tables between the stages: what they accept, what they refuse, and that nothing is lost on the way."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.tables.manifest import ManifestEntry, describe, file_digest
from manyscope.tables.metrics import Metric, metrics_document, metrics_table, read_metrics
from manyscope.tables.parquet import read_metadata, read_rows, read_table, write_table
from manyscope.tables.predictions import Objects, embeddings, gather, samples_digest, shard_of, shard_table
from manyscope.tables.samples import check_samples
from manyscope.tables.whole import write_json

HERE = Path("table.parquet")


# ---------------------------------------------------------------------------------------------------- parquet
def test_table_round_trip_is_the_same_bytes(tmp_path: Path) -> None:
    table = pl.DataFrame({"a": ["x", "y"], "v": np.eye(2, 3, dtype=np.float32)})
    write_table(tmp_path / "1.parquet", table, {"k": "v"})
    write_table(tmp_path / "2.parquet", table, {"k": "v"})
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    assert read_table(tmp_path / "1.parquet", {"a": pl.String, "v": pl.Array}).equals(table)
    assert read_metadata(tmp_path / "1.parquet")["k"] == "v"


@pytest.mark.parametrize("keep", [0, 3, 100, -10])
def test_broken_parquet_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, pl.DataFrame({"a": list(range(1000))}))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"t\.parquet: not a readable Parquet file") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


def test_missing_file_column_and_wrong_type(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match=r"missing.*run the stage"):
        read_table(path)
    write_table(path, pl.DataFrame({"sample_ids": ["a"], "n": [1]}))
    with pytest.raises(DataError, match="'sample_id' is missing; did you mean 'sample_ids'"):
        read_table(path, {"sample_id": pl.String})
    with pytest.raises(DataError, match="'n' has type Int64; allowed: String"):
        read_table(path, {"n": pl.String})


# --------------------------------------------------------------------------------------------------- manifest
def test_rows_are_found_in_order_without_nested_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    table = pl.DataFrame({"id": list("abcd"), "size": [1, 2, 3, 4], "raw": [b""] * 4}).with_columns(box=pl.lit([1, 2]))
    write_table(path, table)
    assert read_rows(path, "id", ["d", "x", "b"]).to_dicts() == [{"id": "b", "size": 2}, {"id": "d", "size": 4}]
    assert read_rows(path, "id", []).columns == ["id", "size"]
    with pytest.raises(DataError, match="column 'size' has type Int64"):
        read_rows(path, "id", ["a"], {"size": pl.String})
    with pytest.raises(DataError, match="column 'sizes' is missing"):
        read_rows(path, "id", ["a"], {"sizes": pl.Int64})
    with pytest.raises(DataError, match="the file is missing"):
        read_rows(tmp_path / "none.parquet", "id", ["a"])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_rows(path, "id", ["a"])


def test_manifest_describes_the_files(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"12345")
    (tmp_path / "a").write_bytes(b"")
    table = describe(
        tmp_path, [ManifestEntry("b", "here"), ManifestEntry("a", "here"), ManifestEntry("c", "x", "failed")]
    )
    assert table["path"].to_list() == ["a", "b", "c"]
    assert table["bytes"].to_list() == [0, 5, 0]
    assert table["sha256"][1] == file_digest(tmp_path / "b") != table["sha256"][0]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "gave no file"),
        ([ManifestEntry("absent", "x")], "absent: the download reported"),
        ([ManifestEntry("a", "x"), ManifestEntry("a", "y")], "twice"),
    ],
)
def test_manifest_refuses(tmp_path: Path, entries: list[ManifestEntry], message: str) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(DataError, match=message):
        describe(tmp_path, entries)


# ---------------------------------------------------------------------------------------------------- samples
def samples(**columns: list[str]) -> pl.DataFrame:
    values = {"sample_id": ["a", "b", "c"], "group": ["g"] * 3, "split": ["train", "validation", "test"], **columns}
    return pl.DataFrame(values)


def test_samples_in_order_with_required_columns_first() -> None:
    table = samples().select("split", "group", "sample_id").with_columns(flux=pl.lit(1.0))
    assert check_samples(table, HERE).columns == ["sample_id", "group", "split", "flux"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (samples().drop("group"), "'group' must be String"),
        (samples().clear(), "the data set is empty"),
        (samples(sample_id=["a", "a", "b"]), "'a' occurs twice"),
        (samples(sample_id=["a", "", "b"]), "has no id"),
        (samples(split=["train", "validation", "tset"]), r"unknown split \['tset'\]; allowed: train"),
        (samples(split=["train", "train", "test"]), "'validation' has no samples"),
    ],
)
def test_samples_refuse(table: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_samples(table, HERE)


# ------------------------------------------------------------------------------------------------ predictions
ids = st.lists(st.text("abcdef0123456789-", min_size=1, max_size=8), min_size=1, max_size=40, unique=True)


def objects_of(wanted: list[str], counts: dict[str, int]) -> Objects:
    owners = [s for s in wanted for _ in range(counts[s])]
    names = [f"{s}/{i}" for s in wanted for i in range(counts[s])]
    vectors = np.array([[len(n), hash(n) % 97] for n in names], np.float32).reshape(-1, 2)
    return Objects(wanted, owners, names, vectors, {"area": np.arange(len(names), dtype=np.float32)})


@settings(deadline=None, max_examples=40)
@given(sample_ids=ids, shards=st.integers(1, 9), data=st.data())
def test_every_sample_is_accounted_for_whatever_the_shards(
    tmp_path_factory: pytest.TempPathFactory, sample_ids: list[str], shards: int, data: st.DataObject
) -> None:
    counts = {s: data.draw(st.integers(0, 3)) for s in sample_ids}
    counts[sample_ids[0]] = 1
    folder = tmp_path_factory.mktemp("shards")
    number = shard_of(sample_ids, shards)
    paths = []
    for shard in range(shards):
        wanted = [s for s, n in zip(sample_ids, number, strict=True) if n == shard]
        batches = [objects_of([s], counts) for s in reversed(wanted)]
        paths.append(folder / f"shard-{shard:02d}.parquet")
        write_table(paths[-1], *shard_table(batches, wanted, paths[-1]))
    table = gather(paths, sample_ids)
    whole = objects_of(sample_ids, counts)
    assert table["object_id"].to_list() == list(whole.object_id)
    assert np.array_equal(embeddings(table), whole.embedding)


@given(sample_ids=ids, shards=st.integers(1, 9), more=ids)
def test_added_samples_move_no_other(sample_ids: list[str], shards: int, more: list[str]) -> None:
    together = [*sample_ids, *(m for m in more if m not in sample_ids)]
    assert shard_of(together, shards)[: len(sample_ids)].tolist() == shard_of(sample_ids, shards).tolist()
    assert samples_digest(sample_ids) == samples_digest(reversed(sample_ids))


def one(name: str, vector: list[float], **columns: list[float]) -> Objects:
    return Objects.one_each([name], np.array([vector], np.float32), columns)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([one("a", [1.0])], "1 samples were predicted, 2 belong here"),
        ([one("a", [1.0]), one("b", [1.0]), one("b", [1.0])], "3 samples were predicted"),
        ([one("a", [1.0]), one("b", [float("nan")])], "object 'b' is not finite"),
        ([one("a", [1.0]), one("b", [1.0, 2.0])], "different sizes"),
        ([one("a", [1.0]), Objects(["b"], ["b"], ["a"], np.ones((1, 1)))], "'a' occurs twice"),
        ([one("a", [1.0]), Objects(["b"], ["b"], ["b"], np.ones(1))], r"shape \(1,\)"),
        ([one("a", [1.0]), Objects(["b"], ["c"], ["b"], np.ones((1, 1)))], "unknown sample 'c'"),
    ],
)
def test_shard_refuses(batches: list[Objects], message: str) -> None:
    with pytest.raises(DataError, match=message):
        shard_table(batches, ["a", "b"], HERE)


def test_gather_refuses_a_shard_of_other_samples(tmp_path: Path) -> None:
    path = tmp_path / "shard-00.parquet"
    write_table(path, *shard_table([one("a", [1.0])], ["a"], path))
    with pytest.raises(DataError, match="does not hold the samples"):
        gather([path], ["a", "b"])
    with pytest.raises(DataError, match="no sample has any object"):
        write_table(path, *shard_table([], [], path))
        gather([path], [])


# ---------------------------------------------------------------------------------------------------- metrics
def metric(**values: object) -> Metric:
    base: dict[str, object] = {"name": "r2", "group": "flux", "unit": "1", "n": 9, "higher_is_better": True}
    base |= {"value": 0.9, "low": 0.8, "high": 1.0}
    return Metric(**{**base, **values})  # type: ignore[arg-type]


def test_metrics_round_trip(tmp_path: Path) -> None:
    rows = [
        metric(),
        metric(baseline="pca", baseline_value=0.5, difference=0.4, difference_low=0.3, difference_high=0.5),
    ]
    write_json(tmp_path / "m.json", metrics_document("e", "s", "r2", rows))
    document, read = read_metrics(tmp_path / "m.json")
    assert read == rows
    assert document["headline"] == "r2"
    assert metrics_table(rows).to_dicts() == [asdict(row) for row in rows]
    with pytest.raises(DataError, match="headline metric 'psnr'"):
        metrics_document("e", "s", "psnr", rows)


@pytest.mark.parametrize(
    ("higher", "low", "high", "ahead"),
    [(True, 0.1, 0.2, True), (True, -0.1, 0.2, False), (False, -0.2, -0.1, True), (False, -0.2, 0.1, False)],
)
def test_ahead_means_an_interval_on_the_better_side(higher: bool, low: float, high: float, ahead: bool) -> None:
    assert metric(higher_is_better=higher, difference_low=low, difference_high=high).ahead is ahead
    assert metric().ahead is None


def test_metric_must_be_finite() -> None:
    with pytest.raises(DataError, match="not finite"):
        metric(value=float("nan"))


def test_unlabelled_samples_are_allowed_and_not_asked_for() -> None:
    split = ["train", "validation", "test", "unlabelled"]
    for kept in (split, split[:3]):
        frame = pl.DataFrame({"sample_id": kept, "group": kept, "split": kept})
        assert check_samples(frame, Path("samples.parquet"))["split"].to_list() == kept


def test_a_number_without_a_better_side_is_never_ahead() -> None:
    metric = Metric("share", "all", "", 9, None, 0.7, 0.6, 0.8, "nominal", 0.68, 0.02, 0.01, 0.03)
    assert metric.ahead is None
