"""`manyscope annotate`, `lookup` and `outliers` on a made-up experiment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from astropy.table import Table
from click.testing import CliRunner, Result

from manyscope.cli import main
from manyscope.explorer.contents import read_contents, version
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.annotations import read_annotation
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import read_predictions

Run = Callable[..., Result]


@pytest.fixture
def paths(latent_tables: Callable[..., ExperimentPaths]) -> ExperimentPaths:
    return latent_tables(40, columns=("outlier_knn",))


@pytest.fixture
def run(paths: ExperimentPaths) -> Run:
    def invoke(verb: str, *arguments: str) -> Result:
        return CliRunner().invoke(
            main, [verb, *arguments, "--experiment", "made_up", "--results", str(paths.root.parent)]
        )

    return invoke


def written(tmp_path: Path, ids: list[str], suffix: str) -> Path:
    file, values = tmp_path / f"survey{suffix}", np.arange(len(ids)) / 4
    if suffix in (".fits", ".vot", ".ecsv"):
        table = Table({"object_id": ids, "z": values, "area": values})
        table.write(file, format={".vot": "votable", ".ecsv": "ascii.ecsv"}.get(suffix, "fits"))
    else:
        frame = pl.DataFrame({"object_id": ids, "z": values, "area": values})
        frame.write_parquet(file) if suffix == ".parquet" else frame.write_csv(file)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".fits", ".vot", ".ecsv"])
def test_a_table_of_any_format_is_joined_whole(tmp_path: Path, paths: ExperimentPaths, run: Run, suffix: str) -> None:
    ids = read_predictions(paths.predictions)["object_id"].to_list()
    said = run("annotate", str(written(tmp_path, [*ids[:7], "later"], suffix)))
    assert said.exit_code == 0, said.output
    assert f"added survey: z, area; 7 of 8 ids are known, 1 unknown; {len(ids) - 7} of the experiment's" in said.output
    kept = read_annotation(paths.annotations / "survey.parquet")
    assert kept.to_dict(as_series=False) == {
        "object_id": [*ids[:7], "later"], "z": (np.arange(8) / 4).tolist(), "area": (np.arange(8) / 4).tolist(),
    }  # fmt: skip


def test_the_page_has_the_columns_and_knows_of_the_change(tmp_path: Path, paths: ExperimentPaths, run: Run) -> None:
    ids = read_predictions(paths.predictions)["object_id"]
    write_table(paths.map, pl.DataFrame({"object_id": ids, "x": np.arange(len(ids)), "y": 0.0}))
    before, file = version(paths), written(tmp_path, ids.to_list(), ".csv")
    run("annotate", str(file), "--columns", "z", "--columns", "z")
    after = version(paths)
    assert before != after
    shown = {column.name: column for column in read_contents(paths, "made_up").columns}
    np.testing.assert_array_equal(shown["z"].values, np.arange(len(ids)) / 4)
    assert "area (survey)" not in shown
    assert "replaced survey" in run("annotate", str(file)).output
    shown = {column.name: column for column in read_contents(paths, "made_up").columns}
    assert {"area", "area (predicted)", "area (survey)", "z"} <= shown.keys()
    assert version(paths) not in (before, after)
    assert run("annotate", "--list").output.startswith("survey: z, area (")
    assert run("annotate", "--remove", "survey").exit_code == 0
    assert version(paths) == before
    assert run("annotate", "--list").output == "no annotations\n"


def test_columns_of_samples_reach_all_their_objects(tmp_path: Path, paths: ExperimentPaths, run: Run) -> None:
    file = tmp_path / "nights.csv"
    pl.DataFrame({"sample": ["s0000"], "seeing": [0.5]}).write_csv(file)
    assert run("annotate", str(file), "--by", "sample_id", "--id-column", "sample").exit_code == 0
    for name in ("s0000/0", "s0000/1"):
        assert json.loads(run("lookup", name).output)["seeing"] == 0.5
    assert json.loads(run("lookup", "s0001/0").output)["seeing"] is None


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        ({"object_id": ["s0000/0", "s0000/0"], "z": [1, 2]}, (), "1 ids in 'object_id' occur more than once"),
        ({"object_id": ["s0000/0", None], "z": [1, 2]}, (), "1 rows have no 'object_id'"),
        ({"objectid": ["s0000/0"], "z": [1]}, (), "column 'object_id' is missing; did you mean 'objectid'?"),
        ({"object_id": ["s0000/0"], "z": [1]}, ("--columns", "y"), "column 'y' is missing"),
        ({"object_id": ["elsewhere"], "z": [1]}, (), "none of the 1 ids in 'object_id' is of this experiment"),
        ({"object_id": ["s0000/0"]}, (), "no column to be joined"),
        ({"object_id": ["s0000/0"], "z": [1]}, ("--name", "a b"), "'a b' cannot name an annotation"),
        ({"object_id": [1.5], "z": [1]}, (), "floating-point numbers"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, paths: ExperimentPaths, run: Run, table: dict[str, list[object]], arguments: tuple[str, ...],
    message: str,
) -> None:  # fmt: skip
    pl.DataFrame(table).write_parquet(tmp_path / "table.parquet")
    said = run("annotate", str(tmp_path / "table.parquet"), *arguments)
    assert said.exit_code == 3
    assert message in said.stderr
    assert len(said.stderr.splitlines()) == 1
    assert not paths.annotations.exists()


@pytest.mark.parametrize("arguments", [(), ("--list", "--remove", "x")])
def test_it_does_one_thing_at_a_time(run: Run, arguments: tuple[str, ...]) -> None:
    assert "exactly one of FILE, --remove NAME, --list" in run("annotate", *arguments).stderr


def test_removing_what_is_not_there_is_an_error(run: Run) -> None:
    said = run("annotate", "--remove", "x")
    assert (said.exit_code, "there is no annotation 'x'; allowed: none is there" in said.stderr) == (3, True)


def test_the_strangest_objects_are_printed_and_all_are_written(
    tmp_path: Path, paths: ExperimentPaths, run: Run
) -> None:
    predictions = read_predictions(paths.predictions)
    scores = np.random.default_rng(0).permutation(len(predictions)).astype(np.float32)
    write_table(paths.predictions, predictions.with_columns(outlier_knn=scores))
    said = run("outliers", "-n", "4", "--csv", str(tmp_path / "all.csv"))
    assert said.exit_code == 0
    strangest = predictions["object_id"][int(scores.argmax())]
    assert said.stdout.splitlines()[1].split()[:2] == ["1", strangest]
    assert len(said.stdout.splitlines()) == 5
    ranked = pl.read_csv(tmp_path / "all.csv")
    assert len(ranked) == len(predictions)
    assert ranked["object_id"].to_list() == predictions["object_id"].gather(np.argsort(-scores)).to_list()


def test_all_that_is_known_of_an_object_is_printed(paths: ExperimentPaths, run: Run) -> None:
    said = run("lookup", "s0003/1", "s0001/0")
    assert said.exit_code == 0
    first, second = map(json.loads, said.output.splitlines())
    own = read_predictions(paths.predictions).filter(object_id="s0003/1")
    assert first["embedding"] == own["embedding"].to_list()[0]
    assert (first["label"], first["area"], first["area (predicted)"]) == ("kind 3", 1.5, own["area"][0])
    assert second["object_id"] == "s0001/0"
    assert run("lookup", "s0003/9").exit_code == 3
