"""Following a training from outside: MLflow on SQLite by default, TensorBoard or Weights & Biases by name.

The curves are in train/history.parquet whatever happens here, so a tracker that fails is a warning, never the end
of a training.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from manyscope.errors import MissingDependencyError
from manyscope.log import logger
from manyscope.registry import Registry

TRACKERS = Registry(
    "tracker",
    {
        "mlflow": "manyscope.training.tracking:MlflowTracker",
        "tensorboard": "manyscope.training.tracking:TensorBoardTracker",
        "wandb": "manyscope.training.tracking:WandbTracker",
        "none": "manyscope.training.tracking:NoTracker",
    },
)


class Tracker(Protocol):
    """One run of one experiment."""

    def __init__(
        self, results: Path, experiment: str, run_id: str | None, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        """Open a run, or continue the run `run_id`.

        Args:
            results: folder under which a local tracker keeps its files.
            params: settings, flat. tags: commit and digests.
        """

    @property
    def run_id(self) -> str | None:
        """What continues this run later."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at an optimiser step."""

    def close(self, succeeded: bool) -> None:
        """End the run."""


class NoTracker:
    """Tracks nothing."""

    run_id: str | None = None

    def __init__(
        self, results: Path, experiment: str, run_id: str | None, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        pass

    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def close(self, succeeded: bool) -> None:
        pass


class MlflowTracker:
    """MLflow: the server in MLFLOW_TRACKING_URI, else the file `mlflow.db` under the results."""

    def __init__(
        self, results: Path, experiment: str, run_id: str | None, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Param, RunTag
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it creates
        results.mkdir(parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(results / 'mlflow.db').resolve()}"
        # Two trainings that create the same new database at once would both migrate it.
        with (results / ".mlflow.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._client = MlflowClient(uri)
            known = self._client.get_experiment_by_name(experiment)
            parent = known.experiment_id if known else self._client.create_experiment(experiment)
        run = None
        if run_id:
            try:
                run = self._client.get_run(run_id)
                self._client.set_terminated(run_id, "RUNNING")
            except MlflowException:
                logger.warning("mlflow: run %s is unknown to %s; a new one is opened", run_id, uri)
        if run is None:
            run = self._client.create_run(parent, tags={**tags, "mlflow.runName": experiment})
            self._client.log_batch(
                run.info.run_id,
                params=[Param(key, str(value)[:6000]) for key, value in params.items()],
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
        self.run_id: str | None = run.info.run_id
        self._run: str = run.info.run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(key, value, now, step) for key, value in values.items()])

    def close(self, succeeded: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if succeeded else "FAILED")


class TensorBoardTracker:
    """TensorBoard event files under `tensorboard/<experiment>`."""

    def __init__(
        self, results: Path, experiment: str, run_id: str | None, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self.run_id: str | None = experiment
        self._writer = SummaryWriter(str(results / "tensorboard" / experiment))
        if not run_id:
            self._writer.add_text("settings", "\n".join(f"    {k}: {v}" for k, v in {**params, **tags}.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self, succeeded: bool) -> None:
        self._writer.close()


class WandbTracker:
    """Weights & Biases; WANDB_MODE=offline keeps it on this machine."""

    def __init__(
        self, results: Path, experiment: str, run_id: str | None, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        self._run = wandb.init(
            project="manyscope", name=experiment, id=run_id, resume="allow", dir=str(results), config={**params, **tags}
        )
        self.run_id: str | None = self._run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


class Forgiving:
    """Passes everything to a tracker, and turns its first failure into one warning.

    A tracker whose package is missing still raises: that is a mistake in the settings, not bad luck.
    """

    def __init__(self, name: str, *args: Any) -> None:
        self._name, self._inner, self.run_id = name, None, None
        try:
            self._inner = TRACKERS.find(name)(*args)
            self.run_id = self._inner.run_id
        except MissingDependencyError:
            raise
        except Exception as error:  # whatever a tracking server or its client throws
            self._warn(error)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._inner:
            try:
                self._inner.log(step, values)
            except Exception as error:
                self._warn(error)

    def close(self, succeeded: bool) -> None:
        if self._inner:
            try:
                self._inner.close(succeeded)
            except Exception as error:
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        logger.warning("%s: %s; tracking stops, train/history.parquet goes on", self._name, str(error).splitlines()[:1])
        self._inner = None


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"package {package!r} is not installed",
        place="train.tracker",
        remedy=f"pip install 'manyscope[{package}]', or choose another tracker: {', '.join(TRACKERS.names())}",
    )
