"""`manyscope search`: the nearest objects to an object, a vector, an image or a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyscope.errors import DataError, ManyscopeError
from manyscope.settings.loading import results_folder
from manyscope.settings.paths import ExperimentPaths

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


def search(
    experiment: str, object_id: tuple[str, ...], vector: Path | None, image: Path | None, text: str | None, k: int,
    where: tuple[str, ...], as_json: bool, results: Path | None, config_file: Path,
) -> str:  # fmt: skip
    """The answer, ready to be printed.

    Args:
        object_id: one object, or several.
        where: filters, of which an object must pass all.

    Raises:
        ManyscopeError: not exactly one query was given, or the scope cannot search by it.
        DataError: the experiment has no index or an outdated one, the id is unknown, or the vector does not fit.
    """
    from manyscope.latent.search import search as find
    from manyscope.tables.whole import plain_json, put_back

    queries = {"--id": object_id, "--vector": vector, "--image": image, "--text": text}
    given = [name for name, value in queries.items() if value not in (None, ())]
    if len(given) != 1:
        found = f"{len(given)} queries were given ({', '.join(given)})" if given else "no query was given"
        raise ManyscopeError(found, allowed=f"exactly one of {', '.join(queries)}")
    paths = ExperimentPaths.of(results or results_folder(config_file), experiment)
    put_back(paths.index)
    if not paths.audit.exists():
        raise DataError("this experiment has no index", place=paths.index, remedy="run the stage index first")
    if image or text:
        _refuse_older(paths, "infer", "train", "the predictions are older than the model that would embed the query")
    if object_id:
        table = find(paths, k, object_id=object_id[0] if len(object_id) == 1 else object_id, where=where)
    else:
        wanted = _read_vector(vector) if vector else _embed(paths, experiment, image or text, config_file)
        table = find(paths, k, vector=wanted, where=where)
    # Last, since a table that cannot be read has more to say.
    _refuse_older(paths, "index", "infer", "the index is older than the predictions")
    return plain_json(table.to_dicts(), indent=1) if as_json else _as_text(table)


def _refuse_older(paths: ExperimentPaths, made: str, source: str, problem: str) -> None:
    from manyscope.tables.freshness import COPIED, newer_source, result_files

    if newer_source(paths, made, (source,)):
        place = result_files(paths)[made]
        raise DataError(problem, place=place, remedy=f"manyscope run {paths.experiment}; {COPIED}")


def _read_vector(path: Path) -> np.ndarray:
    import numpy as np

    try:
        vector = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"not a readable vector ({error})", place=path, allowed="a .npy file of numbers") from error
    if not isinstance(vector, np.ndarray):
        raise DataError("an archive of several arrays", place=path, allowed="a .npy file of numbers")
    if vector.ndim not in (1, 2) or vector.dtype.kind not in "fiu":
        raise DataError(
            f"has shape {vector.shape} and type {vector.dtype}",
            place=path,
            allowed="a vector of numbers, or a table of which each row is one",
        )
    return vector.astype(np.float32)


def _embed(paths: ExperimentPaths, experiment: str, query: Any, config_file: Path) -> np.ndarray:
    from manyscope.scopes.registry import find_scope
    from manyscope.settings import load_config

    settings = load_config(config_file=config_file, experiments=[experiment]).experiments[experiment]
    scope = find_scope(settings.scope)
    return scope.embed_query(settings.for_stage("infer"), paths.prepared, paths.model, query)


def _as_text(table: pl.DataFrame) -> str:
    import polars as pl

    with pl.Config(tbl_rows=-1, tbl_cols=12, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
                   tbl_formatting="NOTHING", float_precision=4, tbl_width_chars=160):  # fmt: skip
        return str(table)
