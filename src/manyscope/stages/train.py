"""train: fit the model; interrupted at any moment, the next run continues from the last checkpoint."""

from __future__ import annotations

import io

from ruamel.yaml import YAML

from manyscope.log import logger
from manyscope.scopes.registry import find_scope
from manyscope.settings.loading import stage_code_digest
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.samples import data_digest, read_samples
from manyscope.tables.whole import whole_file, write_json
from manyscope.training.launch import is_first_process
from manyscope.training.provenance import git_state, versions
from manyscope.training.run import TrainingRun


def run(settings: ExperimentSettings, paths: ExperimentPaths) -> None:
    """Write model.ckpt (best weights), history.parquet, settings.yaml and run.json, and what a scope exports.

    Raises:
        DataError: samples.parquet is missing or broken.
        CheckpointError: the checkpoint to continue from, or the weights to start from, cannot be used.
    """
    read_samples(paths.samples)
    digest, code = data_digest(paths.samples), git_state()
    source = stage_code_digest(settings, "train")
    scope = find_scope(settings.scope)
    tags, pretrained = {"git_commit": str(code["commit"]), "data_digest": digest}, scope.pretrained(settings)
    training = TrainingRun(settings, paths, digest, source, tags, pretrained)
    ended_at = training.ended_at
    if ended_at is None:
        try:
            scope.fit(settings, paths.prepared, training)
        except BaseException:
            training.fail()
            raise
    if not is_first_process():
        return
    if ended_at is not None:
        training.begin(ended_at)
    values = settings.stage_values("train")
    text = io.StringIO()
    YAML().dump(values, text)
    with whole_file(paths.settings) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")
    tracker = training.finish()
    record = {
        "experiment": paths.experiment,
        **tracker,
        "git": code,
        "packages": versions(),
        "settings_digest": training.settings_digest,
        "data_digest": digest,
        "code_digest": source,
        "start_from": settings.train.start_from,
        "start_sha256": training.start_digest,
        "pretrained": dict(pretrained),
        "continued_from_step": training.continued_from,
    }
    write_json(paths.run, record)
    training.discard_resume()
    logger.info("weights in %s", paths.model)
