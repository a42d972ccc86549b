"""The command line: exit codes, one line for each error, a traceback only when asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from manyscope.cli import STAGE_HELP, main
from manyscope.errors import DataError
from manyscope.settings import STAGES, load_config

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(REPOSITORY)
    return CliRunner()


def test_help_names_every_stage(runner: CliRunner) -> None:
    assert tuple(STAGE_HELP) == STAGES
    text = runner.invoke(main, ["--help"]).output
    assert all(stage in text for stage in STAGES)


def test_unknown_command_has_a_hint(runner: CliRunner) -> None:
    result = runner.invoke(main, ["tran"])
    assert result.exit_code == 2
    assert "did you mean 'train'" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--experiment", "galaxis"], 2, "did you mean 'galaxies'"),
        (["train", "--experiment", "galaxies", "--set", "train.lrr=1"], 2, "did you mean 'lr'"),
        (["train", "--experiment", "galaxies", "--set", "train.lr=fast"], 2, "--set galaxies.train.lr"),
        (["train", "--experiment", "galaxies", "--config", "absent.yaml"], 2, "absent.yaml"),
        (["train", "--experiment", "galaxies", "--set", "train.start_from=galaxis"], 2, "did you mean 'galaxies'"),
        (["train", "--experiment", "galaxies", "--settings", "absent.json"], 1, "absent.json: cannot be read"),
        (["train", "--experiment", "galaxies", "--settings", "{"], 1, "not the settings of a stage"),
        (["train", "--experiment", "galaxies", "--settings", '{"scope": "galaxies", "trian": {}}'], 2, "trian"),
        (["search", "--experiment", "galaxies"], 1, "no query was given; allowed: exactly one of --id"),
        (["search", "--experiment", "galaxies", "--id", "a", "--text", "b"], 1, "2 queries were given"),
        (["search", "--experiment", "absent", "--id", "a"], 3, "no index"),
    ],
)
def test_one_clear_line(runner: CliRunner, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    result = runner.invoke(main, [*arguments, "--results", str(tmp_path)])
    assert result.exit_code == code, result.output
    lines = result.output.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_settings_come_as_data(runner: CliRunner, tmp_path: Path) -> None:
    """A stage takes JSON from a shell or a file, and reads no configuration then."""
    config = load_config(experiments=["galaxies"])
    text = config.stage_json("galaxies", "preprocess")
    (tmp_path / "s.json").write_text(text)
    for given in (text, str(tmp_path / "s.json")):
        arguments = [
            "preprocess",
            "--experiment",
            "any",
            "--settings",
            given,
            "--results",
            str(tmp_path),
            "--config",
            "absent",
        ]
        result = runner.invoke(main, arguments)
        assert result.exit_code == DataError.exit_code
        assert "manifest.parquet: the file is missing" in result.output
    assert json.loads(text).keys() == {"scope", *config.experiments["galaxies"].reads["preprocess"]}
    assert "train" not in json.loads(text)


def test_traceback_only_with_debug(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manyscope.commands.search.search", lambda **_: 1 / 0)
    arguments = ["search", "--experiment", "galaxies", "--id", "a"]
    plain, debug = runner.invoke(main, arguments), runner.invoke(main, ["--debug", *arguments])
    assert plain.exit_code == debug.exit_code == 70
    assert "Traceback" not in plain.output
    assert "ZeroDivisionError: division by zero; run again with --debug" in plain.output
    assert "Traceback" in debug.output


def test_validate_lists_all_problems_at_once(runner: CliRunner) -> None:
    result = runner.invoke(
        main, ["validate", "galaxies", "--set", "galaxies.train.lr=-1", "--set", "galaxies.umap.sed=1"]
    )
    assert result.exit_code == 2
    lines = result.output.strip().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: --set galaxies.") for line in lines)
    assert runner.invoke(main, ["validate"]).exit_code == 0
