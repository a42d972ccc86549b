"""`manyscope extend` around its work: which locks it holds, and what Snakemake is told. The work itself is faked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from manyscope.cli import main
from manyscope.commands import extend as command
from manyscope.commands import extension
from manyscope.errors import BusyError
from manyscope.settings.paths import ExperimentPaths
from manyscope.stages import gather, infer
from manyscope.tables.whole import sole_worker

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "config/test", tmp_path / "config/experiments")
    (tmp_path / "config/config.yaml").write_text("experiments: [galaxies]\nshards: 2\nresults: made\n")


def trained(results: str) -> ExperimentPaths:
    paths = ExperimentPaths.of(results, "galaxies")
    paths.train.mkdir(parents=True)
    paths.model.touch()
    return paths


def held(root: Path, *names: str) -> list[str]:
    """Those of the locks that somebody holds."""
    busy = []
    for name in names:
        try:
            with sole_worker(root / ".locks" / name):
                pass
        except BusyError:
            busy.append(name)
    return busy


def test_extend_and_the_stages_hold_the_same_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    paths, seen = trained("made"), list[list[str]]()
    names = ("train", "infer-0", "infer-1", "infer-2", "gather")

    def look(*_: Any, **__: Any) -> None:
        seen.append(held(paths.root, *names))

    for module in (extension, infer, gather):
        monkeypatch.setattr(module, "run", look)
    for words in ("extend", "infer --shard 1 --shards 2", "infer --shard 1 --shards 3", "gather --shards 2"):
        done = CliRunner().invoke(main, [*words.split(), "--experiment", "galaxies", "--results", "made"])
        assert done.exit_code == 0, done.output
    assert seen == [["train", "infer-0", "infer-1", "gather"], ["infer-1"], ["infer-1"], ["gather"]]


@pytest.mark.parametrize("results", [None, "elsewhere"])
def test_what_was_made_is_recorded_wherever_the_results_are(
    results: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, recorded = trained(results or "made"), list[tuple[Any, ...]]()

    def run(settings: Any, given: ExperimentPaths, shards: int, record: Callable[[], None]) -> None:
        record()

    monkeypatch.setattr(extension, "run", run)
    monkeypatch.setattr(command, "record_as_made", lambda *words: recorded.append(words))
    command.extend("galaxies", (), Path(results) if results else None, Path("config/config.yaml"))
    ((config, *_, targets),) = recorded
    assert (config.results, targets) == (Path(results or "made"), (paths.samples,))
