"""`manyscope extend`: what the data source has got since the training joins the results."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from manyscope.commands.run import LOCK, record_as_made
from manyscope.errors import DataError
from manyscope.settings import load_config
from manyscope.settings.sections import STAGES
from manyscope.tables.whole import explaining_full_disk, sole_worker


def extend(experiment: str, overrides: tuple[str, ...], results: Path | None, config_file: Path) -> None:
    """Extend the results of one experiment while nothing else works on them.

    Raises:
        DataError: there is nothing to extend, or an old object has changed.
        BusyError: a stage of the experiment, or a workflow here, is running.
    """
    named = tuple(f"{experiment}.{text}" for text in overrides)
    config = load_config(config_file=config_file, experiments=[experiment], overrides=named)
    config = replace(config, results=results or config.results)
    os.environ.update(config.site.environment())
    paths = config.paths(experiment)
    if not paths.model.exists():
        raise DataError("nothing was trained yet", place=paths.model, remedy=f"manyscope run {experiment}")

    def record() -> None:
        record_as_made(config, config_file, named, ("download", "preprocess"), (paths.samples,))

    from manyscope.commands.extension import run

    locks = [paths.lock(name) for name in ("extend", *STAGES) if name != "infer"]
    locks += [paths.lock("infer", shard) for shard in range(config.shards)]
    with explaining_full_disk(paths.root), ExitStack() as held:
        if LOCK.parent.is_dir():
            held.enter_context(sole_worker(LOCK))
        for lock in locks:
            held.enter_context(sole_worker(lock))
        run(config.experiments[experiment], paths, config.shards, record)
