"""One training as the chain sees it: what a scope's `fit` may continue from and what it leaves."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from manyscope.errors import CheckpointError, DataError, ManyscopeError
from manyscope.log import logger
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.manifest import file_digest
from manyscope.tables.parquet import write_table
from manyscope.tables.whole import read_json, whole_folder, write_json
from manyscope.training import checkpoints
from manyscope.training.provenance import settings_digest
from manyscope.training.tracking import Forgiving

if TYPE_CHECKING:
    from torch import nn

    from manyscope.settings.paths import ExperimentPaths

_JOB = "SLURM_JOB_ID"
_EXPORT = "export"
# How the training is followed and fed; its steps are the same whatever these are.
_WITHOUT_RESULT = ("tracker", "workers", "checkpoint_minutes")
HISTORY = {"step": pl.Int64, "epoch": pl.Float64, "name": pl.String, "value": pl.Float64}


class TrainingRun:
    """A training that can be killed at any moment.

    Everything lies in a folder under `train/resume/` whose name is a digest of settings, data, code and the weights to
    start from: a run with others never continues from it, and a run that returns to these does.

    Args:
        data_digest: of the prepared data.
        code_digest: of the source that the training runs.
        tags: what a tracker shall say of the run besides.
        pretrained: files of weights from elsewhere that it starts from, each with its SHA-256.

    Attributes:
        folder: where `fit` keeps whatever it needs to continue. Removed after success, but for `ended_at`.
        start: trained weights of another experiment to start from, or None; those of a checkpoint come before them.
        start_digest: SHA-256 of that file.
        continued_from: step from which this process continues, or None for a new training.

    Raises:
        CheckpointError: the weights to start from are missing.
    """

    def __init__(
        self,
        settings: ExperimentSettings,
        paths: ExperimentPaths,
        data_digest: str,
        code_digest: str,
        tags: Mapping[str, str],
        pretrained: Mapping[str, str] | None = None,
    ) -> None:
        self.values = settings.stage_values("train")
        self.scope, self.model = settings.scope, self.values["model"]
        self._paths, self._tracker_name, self._tags = paths, settings.train.tracker, tags
        decisive = {k: v for k, v in self.values["train"].items() if k not in _WITHOUT_RESULT}
        self.settings_digest = settings_digest({**self.values, "train": decisive})
        self.start, self.start_digest = _start(settings.train.start_from, paths)
        everything = {
            "settings": self.settings_digest,
            "data": data_digest,
            "code": code_digest,
            "start": self.start_digest,
            "pretrained": sorted((pretrained or {}).values()),
        }
        self.folder = paths.resume / settings_digest(everything)[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.continued_from: int | None = None
        self._rows: list[tuple[int, float, str, float]] = []
        self._tracker: Forgiving | None = None
        self._at_check: list[Callable[[nn.Module, int], None]] = []

    @property
    def place(self) -> Path:
        """The experiment's folder of this stage, for messages."""
        return self._paths.train

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return self._paths.experiment

    @property
    def export(self) -> Path:
        """A folder, made when it is first asked for, in which `fit` may leave what its field's own tools read; it
        becomes train/export/. Until then it is there for a `fit` that continues, too."""
        folder = self.folder / _EXPORT
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def best(self) -> Path:
        """The best weights so far."""
        return self.folder / "best.ckpt"

    @property
    def _history(self) -> Path:
        return self.folder / "history.jsonl"

    @property
    def _run_id(self) -> Path:
        return self.folder / "tracker-run-id"

    @property
    def ended_at(self) -> int | None:
        """The last step, if this very job of a cluster has ended the training already.

        A job that is preempted, or loses its node, after the training and before the workflow has taken note of it
        starts once more under its number, without the outputs.
        """
        mark = read_json(self._ended) if self._ended.exists() else {}
        mine = mark and mark["job"] == os.environ.get(_JOB) and self.best.exists()
        return int(mark["step"]) if mine else None

    @property
    def _ended(self) -> Path:
        return self.folder / "ended.json"

    def part(self, name: str, first_step: int, first_epoch: float) -> RunPart:
        """A training within this one, which has gone so far when it begins; its curves are called `name`/…"""
        return RunPart(self, name, first_step, first_epoch)

    def begin(self, step: int | None = None) -> None:
        """Open history and tracker; `step` is the step of the checkpoint that training continues from."""
        if self._tracker:  # another part of the same training
            return
        self.continued_from = step
        if step is None:
            logger.info("training starts")
        else:
            logger.info("training continues from its checkpoint at step %d", step)
            lines = self._history.read_text().splitlines() if self._history.exists() else []
            self._rows = [tuple(row) for row in map(_parsed, lines) if row and row[0] <= step]
        # Rows of steps that will be repeated, and a last line cut by a kill, must not stay.
        self._history.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        run_id = self._run_id.read_text() if self._run_id.exists() else None
        flat = {f"{s}.{k}": v for s in ("model", "train") for k, v in self.values[s].items()}
        tags = {**self._tags, "settings_digest": self.settings_digest}
        results = self._paths.root.parent
        self._tracker = Forgiving(self._tracker_name, results, self._paths.experiment, run_id, flat, tags)
        if self._tracker.run_id:
            self._run_id.write_text(self._tracker.run_id)

    def log(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Add values to history and tracker.

        Raises:
            ManyscopeError: a value is not finite: the training diverged and cannot recover.
        """
        assert self._tracker, "begin() comes first"
        check_finite(values, step, self.place)
        rows = [(step, epoch, name, float(value)) for name, value in values.items()]
        self._rows += rows
        with self._history.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self._tracker.log(step, values)

    def load_start(self, module: nn.Module) -> None:
        """Load the weights to start from, if there are any.

        Raises:
            CheckpointError: they are broken, or of another model or shape.
        """
        if self.start is None:
            return
        try:
            checkpoints.load_weights(self.start, module, self.scope, self.model)
        except CheckpointError as error:
            remedy = "give both experiments the same model and shape of data, or run that experiment's train again"
            raise CheckpointError(error.found, place=error.place, allowed=error.allowed, remedy=remedy) from error
        logger.info("weights of %s to start from", self.start)

    def save_best(self, module: nn.Module) -> None:
        """Keep these weights as the best so far."""
        checkpoints.save_weights(self.best, module, self.scope, self.model)

    def at_check(self, call: Callable[[nn.Module, int], None]) -> None:
        """Let `call` have the network, as it is, and the step at each check; of several processes in the first one.
        What it does must draw no random number and leave the network as it was."""
        self._at_check.append(call)

    def checked(self, module: nn.Module, step: int) -> None:
        """Call what waits for a check."""
        for call in self._at_check:
            call(module, step)

    @property
    def history(self) -> pl.DataFrame:
        """Long form: step, epoch, name ("train/loss", "validation/loss", …), value."""
        return pl.DataFrame(self._rows, schema=HISTORY, orient="row")

    def finish(self) -> dict[str, Any]:
        """Write model.ckpt, history.parquet and export/, and return what run.json shall say about the tracker.

        Raises:
            DataError: the scope's `fit` left no weights.
        """
        if not self.best.exists():
            raise DataError("the training left no weights", place=self.best)
        write_table(self._paths.history, self.history)
        with checkpoints.whole_file(self._paths.model) as partial:
            shutil.copyfile(self.best, partial)
        if self.ended_at is None:  # otherwise it was written when the training ended
            self._publish_export()
        tracker, self._tracker = self._tracker, None
        assert tracker, "begin() comes first"
        tracker.close(succeeded=True)
        return {"tracker": self._tracker_name, "tracker_run_id": tracker.run_id}

    def _publish_export(self) -> None:
        """Put what `fit` left in the place of what an earlier training left, which would be of other weights."""
        left = self.folder / _EXPORT
        if not left.is_dir() or not any(left.iterdir()):
            shutil.rmtree(self._paths.export, ignore_errors=True)
            return
        # Not moved: killed before the end is noted, the training ends once more, and would find its files gone.
        with whole_folder(self._paths.export) as partial:
            shutil.copytree(left, partial, copy_function=_link, dirs_exist_ok=True)

    def fail(self) -> None:
        """Tell the tracker, if it still follows, that the training ended without success."""
        if self._tracker:
            self._tracker.close(succeeded=False)

    def discard_resume(self) -> None:
        """Forget the checkpoints of this and of other, unfinished trainings of the experiment.

        In a job of a cluster what `ended_at` needs stays until another training ends: the best weights and the history.
        """
        gone = self._paths.resume.with_name(".resume.old")
        shutil.rmtree(gone, ignore_errors=True)
        if os.environ.get(_JOB):
            last = max((row[0] for row in self._rows), default=0)
            write_json(self._ended, {"job": os.environ[_JOB], "step": last})
            kept = {self.folder, self.best, self._history, self._run_id, self._ended}
            gone.mkdir()
            for path in (*self._paths.resume.iterdir(), *self.folder.iterdir()):
                if path not in kept:
                    path.rename(gone / path.name)
        elif self._paths.resume.exists():
            self._paths.resume.rename(gone)  # at once, so that a kill leaves all of it or nothing
        shutil.rmtree(gone, ignore_errors=True)


class RunPart:
    """One of several trainings that make up a run, each with its own checkpoints.

    Attributes:
        folder: where `fit` keeps whatever it needs to continue.
    """

    def __init__(self, whole: TrainingRun, name: str, first_step: int, first_epoch: float) -> None:
        self._whole, self._name, self._first_step, self._first_epoch = whole, name, first_step, first_epoch
        self.folder = whole.folder / name
        self.folder.mkdir(exist_ok=True)

    @property
    def place(self) -> Path:
        """As of the whole run."""
        return self._whole.place

    @property
    def best(self) -> Path:
        """The best weights of this part so far."""
        return self.folder / "best.ckpt"

    def begin(self, step: int | None = None) -> None:
        """See `TrainingRun.begin`; the step is this part's own."""
        done = self._first_step + (step or 0)
        self._whole.begin(done or None)

    def log(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """See `TrainingRun.log`."""
        named = {f"{self._name}/{key}": value for key, value in values.items()}
        self._whole.log(self._first_step + step, self._first_epoch + epoch, named)

    def save_best(self, module: nn.Module) -> None:
        """Keep these weights as the best of this part so far."""
        checkpoints.save_weights(self.best, module, self._whole.scope, self._whole.model)

    def checked(self, module: nn.Module, step: int) -> None:
        """See `TrainingRun.checked`."""
        self._whole.checked(module, self._first_step + step)


def _start(experiment: str | None, paths: ExperimentPaths) -> tuple[Path | None, str | None]:
    """The trained weights of the experiment, and their SHA-256."""
    if experiment is None:
        return None, None
    weights = paths.beside(experiment).model
    if not weights.is_file():
        raise CheckpointError(
            "the weights to start from (train.start_from) are missing",
            place=weights,
            remedy=f"run the stage train of experiment {experiment!r} first",
        )
    return weights, file_digest(weights)


def _link(source: str, target: str) -> None:
    """As good as a copy where nothing is written into either file, and there at once."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def check_finite(values: Mapping[str, float], step: int, place: Path) -> None:
    """
    Raises:
        ManyscopeError: a value is not finite: the training diverged and cannot recover.
    """
    bad = {key: value for key, value in values.items() if not math.isfinite(value)}
    if bad:
        raise ManyscopeError(
            f"{bad} at step {step}: the training diverged",
            place=place,
            remedy="lower train.lr or set train.gradient_clip_norm, and look for odd samples",
        )


def _parsed(line: str) -> list[Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
