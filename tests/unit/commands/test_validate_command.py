"""`manyscope validate`: settings, what only the scope knows, and the data that is already there."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from manyscope.cli import main
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.manifest import ManifestEntry, describe
from manyscope.tables.parquet import write_table


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentPaths:
    """A project with the experiments `one` and `two`, and sound data of `one`."""
    monkeypatch.chdir(tmp_path)
    experiments = tmp_path / "config/experiments"
    experiments.mkdir(parents=True)
    (tmp_path / "config/config.yaml").write_text("experiments: [one, two]\n")
    for name in ("one", "two"):
        (experiments / f"{name}.yaml").write_text("scope: galaxies\ndownload: {source: simulated}\n")
    paths = ExperimentPaths.of("results", "one")
    paths.raw.mkdir(parents=True)
    for name in ("a.bin", "b.bin"):
        (paths.raw / name).write_bytes(name.encode())
    entries = [ManifestEntry("a.bin", "here"), ManifestEntry("b.bin", "here"), ManifestEntry("c.bin", "here", "failed")]
    write_table(paths.manifest, describe(paths.raw, entries))
    write_samples(paths, ["train", "validation", "test"])
    return paths


def write_samples(paths: ExperimentPaths, splits: list[str]) -> None:
    ids = [f"s{number}" for number in range(len(splits))]
    write_table(paths.samples, pl.DataFrame({"sample_id": ids, "group": ids, "split": splits}))


def validate(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["validate", *arguments])


def errors(*arguments: str) -> list[str]:
    """The lines after `error: `; anything else on the screen fails the test."""
    done = validate(*arguments)
    assert done.exit_code == 2
    lines = done.output.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def test_all_experiments_are_checked(paths: ExperimentPaths) -> None:
    done = validate()
    assert (done.exit_code, done.output) == (0, "2 experiment(s) valid: one, two\n")


def test_named_experiments_are_checked(paths: ExperimentPaths) -> None:
    (paths.raw / "a.bin").unlink()
    assert validate("two").output == "1 experiment(s) valid: two\n"
    assert len(errors("one")) == 1


def test_experiment_without_any_data_is_valid(paths: ExperimentPaths) -> None:
    assert validate("two").exit_code == 0
    assert not Path("results/two").exists()


def test_experiments_that_others_start_from_are_checked_too(paths: ExperimentPaths) -> None:
    Path("config/experiments/two.yaml").write_text("scope: galaxies\ntrain: {start_from: one}\n")
    assert validate("two").output == "2 experiment(s) valid: two, one\n"
    (paths.raw / "a.bin").unlink()
    (line,) = errors("two")
    assert "results/one/raw/a.bin: the file is missing" in line
    (line,) = errors("two", "--set", "two.train.start_from=on")
    assert line.startswith("--set two.train.start_from: found 'on' (text), there is no such experiment")
    assert line.endswith("did you mean 'one'?")


def test_missing_and_changed_files(paths: ExperimentPaths) -> None:
    (paths.raw / "a.bin").unlink()
    (paths.raw / "b.bin").write_bytes(b"B.BIN")  # of the same size
    found = errors("one")
    assert len(found) == 2
    assert "raw/a.bin: the file is missing" in found[0]
    assert "raw/b.bin: the file changed since its download" in found[1]
    assert all("run the stage download again" in line for line in found)


def test_file_that_could_not_be_downloaded_is_no_problem(paths: ExperimentPaths) -> None:
    assert not (paths.raw / "c.bin").exists()
    assert validate("one").exit_code == 0


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "train", "test"], "split 'validation' has no samples"),
        (["train", "validation", "holdout"], "unknown split ['holdout']"),
        ([], "is empty"),
    ],
)
def test_samples_that_break_the_contract(paths: ExperimentPaths, splits: list[str], message: str) -> None:
    if splits:
        write_samples(paths, splits)
    else:
        write_table(
            paths.samples, pl.DataFrame(schema={"sample_id": pl.String, "group": pl.String, "split": pl.String})
        )
    found = errors("one")
    assert len(found) == 1
    assert message in found[0]
    assert "samples.parquet" in found[0]


def test_broken_tables(paths: ExperimentPaths) -> None:
    paths.manifest.write_bytes(b"no table")
    found = errors("one")
    assert len(found) == 1
    assert "manifest.parquet: not a readable Parquet file" in found[0]


def test_every_wrong_setting_is_reported_at_once(paths: ExperimentPaths) -> None:
    Path("config/experiments/two.yaml").write_text("scope: galaxies\ntrain:\n  lrr: 1\n  epochs: -1\n")
    found = errors("--set", "one.umap.components=4")
    assert len(found) == 3
    assert any("two.yaml:3: train.lrr: unknown key; did you mean 'lr'?" in line for line in found)
    assert any("two.yaml:4: train.epochs: found -1" in line for line in found)
    assert any("--set one.umap.components: found 4" in line for line in found)


def test_what_the_scope_knows_is_reported(
    paths: ExperimentPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worried_scope.py").write_text(
        "from manyscope.scopes.galaxies.scope import Galaxies\n\n\n"
        "class Worried(Galaxies):\n"
        "    def problems(self, settings):\n"
        "        if settings.title == 'odd':\n"
        "            yield 'download.folder: nothing is in it; put files there'\n"
        "            yield 'model.name: cannot be found; install it'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("config/experiments/two.yaml").write_text("scope: worried_scope:Worried\ntitle: odd\n")
    assert errors() == [
        "two: download.folder: nothing is in it; put files there",
        "two: model.name: cannot be found; install it",
    ]
    assert validate("--set", "two.title=even").exit_code == 0
