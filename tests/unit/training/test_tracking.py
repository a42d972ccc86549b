"""Trackers by name; one that fails is a warning, one whose package is missing is an error."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from manyscope.errors import ManyscopeError, MissingDependencyError
from manyscope.log import logger
from manyscope.training import tracking
from manyscope.training.tracking import TRACKERS, Forgiving


@pytest.fixture(autouse=True)
def local_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_mlflow_continues_its_run(tmp_path: Path) -> None:
    first = Forgiving("mlflow", tmp_path, "e", None, {"train.lr": 0.1}, {"git_commit": "abc"})
    first.log(1, {"train/loss": 2.0})
    first.close(succeeded=False)
    again = Forgiving("mlflow", tmp_path, "e", first.run_id, {"train.lr": 0.1}, {})
    again.log(2, {"train/loss": 1.0})
    again.close(succeeded=True)
    assert again.run_id == first.run_id
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select step, value from metrics order by step").fetchall() == [(1, 2.0), (2, 1.0)]
        assert database.execute("select key, value from params").fetchall() == [("train.lr", "0.1")]
        assert ("git_commit", "abc") in database.execute("select key, value from tags").fetchall()
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    other = Forgiving("mlflow", tmp_path, "e", "0" * 32, {}, {})
    assert other.run_id not in (None, first.run_id)


def test_tensorboard_writes_events(tmp_path: Path) -> None:
    tracker = Forgiving("tensorboard", tmp_path, "e", None, {"a": 1}, {})
    tracker.log(3, {"train/loss": 0.5})
    tracker.close(succeeded=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard/e"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(3, 0.5)]


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_missing_package_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"'{name}' is not installed; pip install 'manyscope\[{name}\]'"):
        Forgiving(name, tmp_path, "e", None, {}, {})


def test_wandb_is_told_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Run:
        id = "w1"

        def log(self, values: dict[str, float], step: int) -> None:
            calls.append(("log", (values, step)))

        def finish(self, exit_code: int) -> None:
            calls.append(("finish", exit_code))

    class Wandb:
        @staticmethod
        def init(**arguments: Any) -> Run:
            calls.append(("init", arguments["id"]))
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    tracker = Forgiving("wandb", tmp_path, "e", "w1", {}, {})
    tracker.log(1, {"a": 2.0})
    tracker.close(succeeded=True)
    assert calls == [("init", "w1"), ("log", ({"a": 2.0}, 1)), ("finish", 0)]


@pytest.mark.parametrize("fails_in", ["__init__", "log", "close"])
def test_a_failing_tracker_never_ends_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("server is down\nand more")

    said: list[str] = []
    monkeypatch.setattr(tracking.NoTracker, fails_in, fail)
    monkeypatch.setattr(logger, "warning", lambda text, *values: said.append(text % values))
    tracker = Forgiving("none", tmp_path, "e", None, {}, {})
    tracker.log(1, {"a": 1.0})
    tracker.log(2, {"a": 1.0})
    tracker.close(succeeded=True)
    assert len(said) == 1
    assert "server is down" in said[0]
    assert "history.parquet goes on" in said[0]


def test_unknown_tracker() -> None:
    with pytest.raises(ManyscopeError, match="did you mean 'mlflow'"):
        TRACKERS.find("mlfow")
