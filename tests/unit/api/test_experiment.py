"""The face for notebooks, without Snakemake: what is run, what is read, and what is refused."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import manyscope
from manyscope import Experiment, api
from manyscope.errors import DataError, ManyscopeError, SettingsError
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.freshness import confirm
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import read_predictions

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "Snakefile").write_text("")
    shutil.copytree(REPOSITORY / "config/test", tmp_path / "config/experiments")
    (tmp_path / "config/config.yaml").write_text("experiments: [galaxies]\n")
    return tmp_path


@pytest.fixture
def galaxies(project: Path) -> Experiment:
    return Experiment("galaxies", config=project / "config/config.yaml")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The commands that are run; each finds nothing to do and ends well."""
    run: list[Sequence[str]] = []

    def streamed(command: Sequence[str], folder: Path) -> tuple[int, list[str]]:
        run.append(command[3:])
        until = command[command.index("--until") + 1] if "--until" in command else None
        confirm(ExperimentPaths.of(folder / "results", "galaxies"), until)
        return 0, []

    monkeypatch.setattr(api, "_streamed", streamed)
    return run


@pytest.fixture
def filled(galaxies: Experiment, latent_tables: Callable[..., ExperimentPaths]) -> Experiment:
    """With the tables of a made-up latent space."""
    made = latent_tables(30, name="galaxies", columns=("outlier_knn",))
    assert made.root == galaxies.paths.root
    return galaxies


def test_the_name_is_there_and_no_other() -> None:
    assert manyscope.Experiment is api.Experiment
    with pytest.raises(AttributeError, match="no attribute 'Experimint'"):
        manyscope.Experimint  # noqa: B018


@pytest.mark.parametrize(
    ("read", "method"),
    [
        (Experiment.samples, "preprocess"),
        (Experiment.history, "train"),
        (Experiment.model, "train"),
        (Experiment.predictions, "infer"),
        (Experiment.embeddings, "infer"),
        (Experiment.objects, "infer"),
        (Experiment.outliers, "infer"),
        (lambda e: e.lookup("x"), "infer"),
        (lambda e: e.thumbnails(["x"]), "infer"),
        (lambda e: e.annotate(pl.DataFrame({"object_id": ["x"], "z": [1]}), "z"), "infer"),
        (lambda e: e.neighbours("x"), "index"),
        (Experiment.metrics, "evaluate"),
    ],
)
def test_what_is_not_there_names_the_method_that_makes_it(
    galaxies: Experiment, read: Callable[[Experiment], Any], method: str
) -> None:
    with pytest.raises(DataError, match=rf"{method} has not run; call \.{method}\(\) first"):
        read(galaxies)


@pytest.mark.parametrize(
    ("method", "until"),
    [
        ("download", "download"), ("preprocess", "preprocess"), ("train", "train"), ("infer", "gather"),
        ("map", "umap"), ("index", "index"), ("evaluate", "evaluate"), ("explore", "explore"),
    ],
)  # fmt: skip
def test_each_method_runs_the_chain_as_far_as_its_stage(
    galaxies: Experiment, commands: list[Sequence[str]], method: str, until: str
) -> None:
    with pytest.raises(DataError):  # nothing was made, since nothing was really run
        getattr(galaxies, method)()
    (command,) = commands
    assert list(command) == [
        "run", "galaxies", "--no-report", "--config", "config/config.yaml", "--until", until,
    ]  # fmt: skip


def test_settings_results_and_cores_are_handed_on(project: Path, commands: list[Sequence[str]]) -> None:
    overrides = {"train.seed": 1, "model.args": {"channels": 5, "latent": 8}, "title": "it's, a = b"}
    one = Experiment("galaxies", config=project / "config/config.yaml", results=project / "made", overrides=overrides)
    assert (one.settings.train.seed, one.settings.title) == (1, "it's, a = b")
    assert (one.settings.model.args["channels"], one.settings.model.args["latent"]) == (5, 8)
    assert one.paths.root == project / "made/galaxies"
    one.run(cores=3)
    words = list(commands[0])
    assert words[words.index("--results") + 1] == "made"  # as the file would name it, or all would run again
    assert words[-2:] == ["--cores", "3"]
    from manyscope.settings import load_config

    given = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert load_config(directory=project, overrides=given).experiments["galaxies"] == one.settings


def test_wrong_settings_are_said_at_once(project: Path) -> None:
    with pytest.raises(SettingsError, match="train"):
        Experiment("galaxies", config=project / "config/config.yaml", overrides={"train.sed": 1})
    with pytest.raises(SettingsError, match="no such experiment"):
        Experiment("galaxy", config=project / "config/config.yaml")
    with pytest.raises(ManyscopeError, match="no workflow file"):
        Experiment("galaxies", config=project / "config/other.yaml")


def test_results_that_are_older_than_what_they_are_made_of_are_refused_until_the_chain_says_otherwise(
    filled: Experiment, commands: list[Sequence[str]]
) -> None:
    ids = filled.predictions()["object_id"].to_list()
    filled.paths.model.parent.mkdir()
    filled.paths.model.write_bytes(b"of another training")
    later = time.time() + 10
    os.utime(filled.paths.model, (later, later))
    for read in (filled.predictions, filled.outliers, filled.objects, lambda: filled.lookup(ids[0])):
        with pytest.raises(DataError, match=r"older than model.ckpt; call .infer\(\) again"):
            read()
    filled.run("train")
    with pytest.raises(DataError, match="older than"):
        filled.predictions()
    filled.run("gather")  # finds nothing to do: the training made the same weights
    assert filled.predictions()["object_id"].to_list() == ids
    os.utime(filled.paths.model, (later + 1, later + 1))
    with pytest.raises(DataError, match="older than"):
        filled.predictions()


def test_results_of_other_samples_are_refused(filled: Experiment, commands: list[Sequence[str]]) -> None:
    for made in (filled.paths.model, filled.paths.audit, filled.paths.metrics, filled.paths.metrics_table):
        made.parent.mkdir(exist_ok=True)
        made.write_bytes(b"of earlier samples")
    later = time.time() + 10
    os.utime(filled.paths.model, (0, 0))  # before the predictions, as the chain writes them
    os.utime(filled.paths.samples, (later, later))
    reads = {"infer": [filled.predictions, filled.objects], "train": [filled.model, filled.history]}
    reads |= {"index": [lambda: filled.neighbours("x")], "evaluate": [filled.metrics]}
    write_table(filled.paths.history, pl.DataFrame({"step": [1]}))
    for method, readers in reads.items():
        for read in readers:
            with pytest.raises(DataError, match=rf"older than samples.parquet; call \.{method}\(\) again"):
                read()
    filled.run("train")
    assert filled.history()["step"].to_list() == [1]
    with pytest.raises(DataError, match=r"older than samples\.parquet"):
        filled.predictions()
    filled.run("gather")
    assert len(filled.predictions()) > 30


def test_tables_come_as_they_are(filled: Experiment) -> None:
    predictions = read_predictions(filled.paths.predictions)
    assert filled.predictions().equals(predictions)
    assert isinstance(filled.predictions().schema["embedding"], pl.Array)
    ids, vectors = filled.embeddings()
    assert (ids, vectors.dtype) == (predictions["object_id"].to_list(), np.float32)
    known = filled.objects()
    assert known["object_id"].to_list() == ids
    assert known["area (predicted)"].to_list() == predictions["area"].to_list()
    assert filled.outliers(3)["rank"].to_list() == [1, 2, 3]
    assert len(filled.outliers()) == len(ids)
    assert filled.lookup(ids[4])["area (predicted)"].to_list() == [4.0]
    assert filled.thumbnails([]) == []
    with pytest.raises(DataError, match="'nope' is unknown"):
        filled.thumbnails([ids[0], "nope"])


def test_a_frame_is_joined(filled: Experiment) -> None:
    ids = filled.embeddings()[0]
    frame = pl.DataFrame({"object_id": ids[:5], "redshift": [0.1] * 5})
    with pytest.raises(ManyscopeError, match="a frame has no name; give name="):
        filled.annotate(frame)
    assert "5 of 5 ids are known" in filled.annotate(frame, "survey")
    assert filled.objects()["redshift"].to_list() == [0.1] * 5 + [None] * (len(ids) - 5)
    frame.rename({"object_id": "id"}).write_csv(filled.paths.root / "other.csv")
    filled.annotate(filled.paths.root / "other.csv", id_column="id")
    assert {"redshift (survey)", "redshift (other)"} <= set(filled.objects().columns)


def test_one_query_at_a_time(filled: Experiment) -> None:
    for queries in ({}, {"object_id": "a", "vector": [1.0]}):
        with pytest.raises(ManyscopeError, match="exactly one of object_id, vector=, image= and text="):
            filled.neighbours(**queries)  # type: ignore[arg-type]


def test_it_says_what_there_is(filled: Experiment) -> None:
    text = filled._repr_html_()
    assert "Tiny simulated galaxies" in text
    assert "infer ✓" in text
    assert "train –" in text
    assert repr(filled).startswith("Experiment('galaxies', results=")


# --------------------------------------------------------------------------------------------------- running a command
def test_what_a_run_says_is_shown_and_its_end_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print(*range(100), sep='\\n', flush=True); print('bad', file=sys.stderr); sys.exit(3)"
    ended, tail = api._streamed([sys.executable, "-c", code], tmp_path)
    assert ended == 3
    said = capsys.readouterr().out.splitlines()
    assert said == [*map(str, range(100)), "bad"]
    assert [line.strip() for line in tail] == said[-30:]


def test_the_error_of_a_failed_run_has_its_reason_and_its_end(
    galaxies: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["galaxies train: error: model.args: channels is -1\n", "Exiting.\n"]
    monkeypatch.setattr(api, "_streamed", lambda *_: (1, lines))
    with pytest.raises(ManyscopeError, match=r"ended with 1: model\.args: channels is -1; its log is in") as caught:
        galaxies.run("train")
    assert caught.value.__notes__ == ["".join(lines)]


def test_an_interrupt_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, time\ntry:\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    open('tidied', 'w').close()"
    )
    seen: list[int] = []

    def interrupted(line: str, **_: object) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupted)
    with pytest.raises(KeyboardInterrupt):
        api._streamed([sys.executable, "-c", code], tmp_path)
    assert (tmp_path / "tidied").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


def test_the_metrics_are_those_of_the_present_predictions(filled: Experiment) -> None:
    filled.paths.evaluate.mkdir()
    write_table(filled.paths.metrics_table, pl.DataFrame({"name": ["a"]}))
    filled.paths.metrics.write_text("{}")
    assert filled.metrics()["name"].to_list() == ["a"]
    os.utime(filled.paths.metrics, (0, 0))
    with pytest.raises(DataError, match=r"older than predictions.parquet; call .evaluate\(\) again"):
        filled.metrics()
