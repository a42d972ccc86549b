"""Manyscope in a notebook: `from manyscope import Experiment`.

Each stage has a method that brings it up to date, through the same Snakemake chain as `manyscope run`, and returns what
it made. The other methods read what is there. Nothing is kept between two calls: what a call returns is what the files
hold at that moment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manyscope.errors import DataError, ManyscopeError
from manyscope.settings import load_config
from manyscope.settings.loading import CONFIG_FILE
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.annotations import annotated
from manyscope.tables.freshness import COPIED, newer_source, result_files
from manyscope.tables.lookup import look_up
from manyscope.tables.manifest import read_manifest
from manyscope.tables.metrics import read_metrics
from manyscope.tables.objects import object_columns
from manyscope.tables.parquet import read_table
from manyscope.tables.predictions import SCHEMA as PREDICTIONS
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.tables.samples import read_samples
from manyscope.tables.whole import read_json

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from manyscope.scopes.base import Scope
    from manyscope.settings import Config
    from manyscope.settings.sections import ExperimentSettings

_TAIL = 30  # lines of a failed run that its error carries


class Experiment:
    """One experiment of a project: run its stages, read what they made.

    Args:
        name: of a file in config/experiments.
        config: the workflow file; None looks for config/config.yaml beside a Snakefile, in the current folder and in
            those above it.
        results: folder of all experiments' results, in the place of that file's.
        overrides: settings over those of the files, such as `{"train.seed": 1}`.

    Raises:
        ManyscopeError: there is no project here.
        SettingsError: the settings have problems; holds all of them.
    """

    def __init__(
        self, name: str, *, config: str | Path | None = None, results: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self._folder, self._config_file = _project(config)
        self._results = None if results is None else Path(results).resolve()
        self._overrides = tuple(f"{name}.{key}={json.dumps(value)}" for key, value in (overrides or {}).items())
        _ = self.settings  # the user shall hear of problems here

    @property
    def settings(self) -> ExperimentSettings:
        """As the files say now, under the overrides."""
        return self._config().experiments[self.name]

    @property
    def paths(self) -> ExperimentPaths:
        """Where each file lies."""
        return ExperimentPaths.of(self._results or self._folder / self._config().results, self.name)

    # ------------------------------------------------------------------------------------------------------ stages
    def run(self, until: str | None = None, cores: int | None = None) -> None:
        """Bring the whole chain up to date, or the stage `until` with what it needs. What is up to date is left alone.

        Raises:
            ManyscopeError: a stage failed; the error's notes are the end of what the run said.
        """
        command = [sys.executable, "-m", "manyscope.cli", "run", self.name, "--no-report"]
        command += ["--config", str(self._config_file.relative_to(self._folder))]
        for override in self._overrides:
            command += ["--set", override]
        if self._results:
            # As the workflow file would name it: another spelling of a path is another setting.
            inside = self._results.is_relative_to(self._folder)
            command += ["--results", str(self._results.relative_to(self._folder) if inside else self._results)]
        command += ["--until", until] if until else []
        command += ["--cores", str(cores)] if cores else []
        code, said = _streamed(command, self._folder)
        if code:
            reasons = [line.partition("error: ")[2] for line in said if "error: " in line]
            error = ManyscopeError(
                f"the run ended with {code}: {(reasons or said or ['it said nothing'])[-1].strip()}",
                place=self.name,
                remedy=f"its log is in {self.paths.log('*').parent}",
            )
            error.add_note("".join(said))
            raise error

    def download(self) -> pl.DataFrame:
        """The manifest: a row for each file of raw data."""
        self.run("download")
        return read_manifest(self.paths.manifest)

    def preprocess(self) -> pl.DataFrame:
        """The samples, see `samples`."""
        self.run("preprocess")
        return self.samples()

    def train(self) -> pl.DataFrame:
        """The curves of the training, see `history`."""
        self.run("train")
        return self.history()

    def infer(self) -> pl.DataFrame:
        """The predictions, see `predictions`."""
        self.run("gather")
        return self.predictions()

    def map(self) -> pl.DataFrame:
        """The map: object_id, x, y and, of a map in space, z."""
        self.run("umap")
        return read_table(self._made(self.paths.map, "map"))

    def index(self) -> dict[str, Any]:
        """The audit of the index: count, dimension, recall_at_10, times of queries."""
        self.run("index")
        audit: dict[str, Any] = read_json(self._made(self.paths.audit, "index"))
        return audit

    def evaluate(self) -> pl.DataFrame:
        """The metrics, see `metrics`."""
        self.run("evaluate")
        return self.metrics()

    def explore(self) -> Path:
        """The page of the map, one HTML file."""
        self.run("explore")
        return self._made(self.paths.page, "explore")

    # ----------------------------------------------------------------------------------------------------- results
    def samples(self) -> pl.DataFrame:
        """A row for each sample: sample_id, group, split, then labels and what else is known.

        Raises:
            DataError: preprocess has not run.
        """
        return read_samples(self._made(self.paths.samples, "preprocess"))

    def history(self) -> pl.DataFrame:
        """The curves of the training: step, epoch, name ("train/loss", …) and value.

        Raises:
            DataError: train has not run.
        """
        return read_table(self._made(self.paths.history, "train"))

    def predictions(self) -> pl.DataFrame:
        """A row for each object: object_id, sample_id, embedding (an Array column), what the model predicts, and the
        outlier scores.

        Raises:
            DataError: infer has not run since the last training.
        """
        return read_predictions(self._made(self.paths.predictions, "infer"))

    def embeddings(self) -> tuple[list[str], np.ndarray]:
        """The ids of all objects, and their latent vectors, (objects, dimensions) float32, in the same order.

        Raises:
            DataError: infer has not run since the last training.
        """
        predictions = self.predictions()
        return predictions["object_id"].to_list(), embeddings(predictions)

    def objects(self) -> pl.DataFrame:
        """All that is known of each object, as the page shows it: object_id, the columns of its sample, its
        predictions and those of the annotations. A name that two of them have says where it is from.

        Raises:
            DataError: infer has not run since the last training.
        """
        predictions = read_table(self._made(self.paths.predictions, "infer"), PREDICTIONS, without=("embedding",))
        known = annotated(object_columns(predictions, self.samples()), predictions, self.paths.annotations)
        return predictions.select("object_id").hstack(known)

    def lookup(self, object_id: str) -> pl.DataFrame:
        """All that is known of one object, with its latent vector, in one row. The time does not grow with the number
        of objects.

        Raises:
            DataError: infer has not run since the last training, or the id is unknown.
        """
        from manyscope.commands.objects import described

        self._made(self.paths.predictions, "infer")
        return described(self.paths, object_id)

    def neighbours(
        self, object_id: str | None = None, *, vector: Sequence[float] | np.ndarray | None = None,
        image: str | Path | None = None, text: str | None = None, k: int = 10, where: str | Sequence[str] = (),
    ) -> pl.DataFrame:  # fmt: skip
        """The k objects nearest to another, to a latent vector, or to an image file or a text that the scope can embed:
        rank, object_id, distance, then what is known of each.

        Args:
            where: filters such as "class = spiral and snr > 20", of which an object must pass all; see
                `manyscope.latent.filters`.

        Raises:
            ManyscopeError: not exactly one query, or one that the scope cannot embed.
            DataError: index has not run since the last inference, the id is unknown, or the vector or a filter does
                not fit.
        """
        from manyscope.latent.search import search

        given = [query for query in (object_id, vector, image, text) if query is not None]
        if len(given) != 1:
            raise ManyscopeError(
                f"{len(given)} queries were given", allowed="exactly one of object_id, vector=, image= and text="
            )
        self._made(self.paths.audit, "index")
        filters = [where] if isinstance(where, str) else list(where)
        if object_id is not None:
            return search(self.paths, k, object_id=object_id, where=filters)
        if vector is None:
            query, settings = text if text is not None else Path(str(image)), self.settings.for_stage("infer")
            vector = self._scope().embed_query(settings, self.paths.prepared, self.paths.model, query)
        return search(self.paths, k, vector=np.asarray(vector, np.float32), where=filters)

    def outliers(self, n: int | None = None) -> pl.DataFrame:
        """The n strangest objects, or all: rank, object_id, percentile, strangeness (the mean rank of the outlier
        scores, 1 being the strangest), then each score.

        Raises:
            DataError: infer has not run since the last training, or nothing scores the objects.
        """
        from manyscope.commands.objects import ranked

        self._made(self.paths.predictions, "infer")
        ranking = ranked(self.paths)
        return ranking if n is None else ranking.head(n)

    def metrics(self) -> pl.DataFrame:
        """A row for each metric, group and baseline, with intervals.

        Raises:
            DataError: evaluate has not run since the last inference.
        """
        return read_table(self._made(self.paths.metrics_table, "evaluate"))

    def thumbnails(self, object_ids: Sequence[str]) -> list[Image | None]:
        """Small pictures of some objects, in their order; None where there is none.

        Raises:
            DataError: infer has not run since the last training, or an id is unknown.
        """
        predictions = self._made(self.paths.predictions, "infer")
        if not object_ids:
            return []
        rows = pl.concat([look_up(predictions, "object_id", name) for name in object_ids]).drop("embedding")
        return list(self._scope().thumbnails(self.paths.prepared, self.paths.files, rows))

    def model(self) -> nn.Module:
        """The trained network on the CPU, in eval mode.

        Raises:
            DataError: train has not run.
            CheckpointError: the weights are of another model than the settings name.
        """
        from manyscope.training.checkpoints import load_weights

        weights = self._made(self.paths.model, "train")
        scope, settings = self._scope(), self.settings.for_stage("infer")
        model = scope.model(settings, scope.data(settings, self.paths.prepared))
        load_weights(weights, model, settings.scope, settings.model.model_dump(mode="json"))
        return model.eval()

    def annotate(
        self, table: pl.DataFrame | str | Path, name: str | None = None, *, id_column: str | None = None,
        by: str = "object_id", columns: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """Join columns to the objects, for colours, filters and searches; of the stages index and explore are due
        after that.

        Args:
            table: a frame, or a file: CSV, Parquet, FITS, VOTable, ….
            name: of the annotation, which takes the place of an older one; a file gives its own.
            id_column: that with the ids; that of the name `by` unless given.
            by: what they are ids of, "object_id" or "sample_id".
            columns: those to be joined, or all.

        Returns:
            a line that says how many ids are unknown.

        Raises:
            DataError: infer has not run, or the table does not fit.
        """
        from manyscope.commands.annotate import add
        from manyscope.data.tables import read_any_table

        self._made(self.paths.predictions, "infer")
        id_column = id_column or by
        if isinstance(table, pl.DataFrame):
            if name is None:
                raise ManyscopeError("a frame has no name", remedy="give name=")
            return add(self.paths, table, name, id_column, by, columns)
        file = Path(table)
        read = read_any_table(file, None, id_column, "the file's name")
        return add(self.paths, read, name or file.name.partition(".")[0], id_column, by, columns, file)

    # ------------------------------------------------------------------------------------------------------- inside
    def __repr__(self) -> str:
        return f"Experiment({self.name!r}, results={str(self.paths.root.parent)!r})"

    def _repr_html_(self) -> str:
        made = {method: path.is_file() for method, path in result_files(self.paths).items()}
        stages = ", ".join(f"{stage} {'✓' if done else '–'}" for stage, done in made.items())
        lines = [f"<b>{escape(self.settings.title or self.name)}</b> ({escape(self.settings.scope)})", escape(stages)]
        if self.paths.metrics.is_file():
            document, metrics = read_metrics(self.paths.metrics)
            first = next(metric for metric in metrics if metric.name == document["headline"])
            lines.append(escape(f"{first.label} {first.value:.3g} [{first.low:.3g}, {first.high:.3g}]"))
        return "<br>".join(lines)

    def _config(self) -> Config:
        file = self._config_file.relative_to(self._folder)
        config = load_config(
            directory=self._folder, config_file=file, experiments=[self.name], overrides=self._overrides
        )
        os.environ.update(config.site.environment())
        return config

    def _scope(self) -> Scope[Any]:
        from manyscope.scopes.registry import find_scope

        return find_scope(self.settings.scope)

    def _made(self, path: Path, method: str) -> Path:
        """The path of a file that is there and not older than what it is made of.

        Raises:
            DataError: the stage has to run, perhaps again.
        """
        if not path.is_file():
            raise DataError(f"{method} has not run", place=path, remedy=f"call .{method}() first")
        source = newer_source(self.paths, method)
        if source is not None:
            raise DataError(f"older than {source.name}", place=path, remedy=f"call .{method}() again; {COPIED}")
        return path


def _project(config: str | Path | None) -> tuple[Path, Path]:
    """The folder of the project, which holds its Snakefile, and the workflow file in it.

    Raises:
        ManyscopeError: there is none.
    """
    if config is not None:
        file = Path(config).resolve()
        folder = next((folder for folder in file.parents if (folder / "Snakefile").exists()), None)
        if not file.is_file() or folder is None:
            raise ManyscopeError("no workflow file of a project with a Snakefile", place=file)
        return folder, file
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "Snakefile").exists() and (folder / CONFIG_FILE).is_file():
            return folder, folder / CONFIG_FILE
    raise ManyscopeError(
        f"neither this folder nor one above it has a Snakefile and {CONFIG_FILE}", place=here, remedy="give config="
    )


def _streamed(command: Sequence[str], folder: Path) -> tuple[int, list[str]]:
    """Run a command, printing what it says as it says it; its exit code, and the last lines."""
    tail: deque[str] = deque(maxlen=_TAIL)
    # In a session of its own: an interrupt reaches the run once, from here, however it reached this process.
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            tail.append(line)
        return process.wait(), list(tail)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise
