"""One object is found without reading the others: a peer's look-up read all ids, each time."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.tables import lookup, predictions
from manyscope.tables.lookup import look_up
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import write_predictions


def table(n: int) -> pl.DataFrame:
    ids = [f"o{i * 7919 % n:05d}" for i in range(n)]
    vectors = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    return pl.DataFrame({"object_id": ids, "sample_id": ids, "embedding": vectors})


def test_only_the_group_of_rows_that_holds_the_object_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "_GROUP_ROWS", 50)
    path, whole = tmp_path / "predictions.parquet", table(500)
    write_predictions(path, whole)
    look_up(path, "object_id", "o00000")
    time = path.stat().st_mtime_ns
    # All other groups become nonsense: whoever reads them fails. The state of the file stays the same.
    chunks, kept = pq.ParquetFile(path).metadata, 3
    assert chunks.num_row_groups == 10
    data = bytearray(path.read_bytes())
    for group in set(range(10)) - {kept}:
        for column in range(chunks.num_columns):
            about = chunks.row_group(group).column(column)
            start = min(about.data_page_offset, about.dictionary_page_offset or about.data_page_offset)
            data[start : start + about.total_compressed_size] = b"\xff" * about.total_compressed_size
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(time, time))
    for row in (150, 199):
        wanted = whole[row]
        assert look_up(path, "object_id", wanted["object_id"][0]).equals(wanted)
    with pytest.raises(DataError, match="not a readable Parquet file"):
        look_up(path, "object_id", whole["object_id"][0])


def test_predictions_are_written_in_small_groups(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.parquet", table(20_000))
    assert pq.ParquetFile(tmp_path / "predictions.parquet").metadata.num_row_groups == 3


def test_a_table_that_was_written_again_is_looked_through_again(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    write_table(path, table(10))
    assert look_up(path, "object_id", "o00003")["embedding"].to_numpy()[0, 0] == 4 * table(10)["object_id"].index_of(
        "o00003"
    )
    write_table(path, table(10).reverse())
    again = table(10).reverse()
    assert look_up(path, "object_id", "o00003").equals(again.filter(object_id="o00003"))


@given(st.lists(st.text(max_size=4), min_size=1, max_size=30, unique=True))
def test_every_id_finds_its_own_row(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    path = tmp_path_factory.mktemp("lookup") / "table.parquet"
    write_table(
        path, pl.DataFrame({"object_id": ids, "row": range(len(ids))}, schema_overrides={"object_id": pl.String})
    )
    assert [look_up(path, "object_id", name)["row"].to_list() for name in ids] == [[row] for row in range(len(ids))]


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_hash", lambda name: 7 if " " not in name else 1)
    path = tmp_path / "table.parquet"
    write_table(path, table(20))
    for name in table(20)["object_id"]:
        assert look_up(path, "object_id", name)["object_id"].to_list() == [name]


def test_an_unknown_id_is_an_error_that_knows_a_similar_one(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    write_table(path, table(20))
    with pytest.raises(DataError, match="object_id 'o0007' is unknown; did you mean 'o000"):
        look_up(path, "object_id", "o0007")
    with pytest.raises(DataError, match="the file is missing"):
        look_up(tmp_path / "none.parquet", "object_id", "o00001")


def test_a_folder_for_readers_only_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.parquet"
    write_table(path, table(20))

    def refuse(*_: object, **__: object) -> None:
        raise DataError("cannot be written")

    monkeypatch.setattr(lookup, "whole_file", refuse)
    assert look_up(path, "object_id", "o00005")["object_id"].to_list() == ["o00005"]


def test_a_file_that_another_process_takes_away_while_it_is_made_stops_no_look_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "predictions.parquet"
    write_table(path, table(10))

    def taken(*given: object, **options: object) -> None:
        raise FileNotFoundError("taken away")

    monkeypatch.setattr(lookup, "whole_file", taken)
    assert look_up(path, "object_id", "o00003")["sample_id"].to_list() == ["o00003"]
