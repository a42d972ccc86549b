"""`manyscope lookup` and `manyscope outliers`: what the predictions say of one object, and which are the strangest."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from manyscope.latent.ranking import ranking
from manyscope.settings.loading import results_folder
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.annotations import annotated
from manyscope.tables.lookup import look_up
from manyscope.tables.objects import object_columns
from manyscope.tables.parquet import read_table
from manyscope.tables.predictions import SCHEMA
from manyscope.tables.whole import plain_json, whole_file


def lookup(experiment: str, object_ids: tuple[str, ...], results: Path | None, config_file: Path) -> str:
    """What is known of each object, with its latent vector: one line of JSON each.

    Raises:
        DataError: there are no predictions, or no such object.
    """
    paths = ExperimentPaths.of(results or results_folder(config_file), experiment)
    found = [described(paths, name).to_dicts()[0] for name in object_ids]
    return "\n".join(plain_json(values) for values in found)


def described(paths: ExperimentPaths, object_id: str) -> pl.DataFrame:
    """One row: all that the predictions, with the latent vector, the samples and annotations say of an object. Its time
    does not grow with the predictions.

    Raises:
        DataError: there are no predictions, or no such object.
    """
    prediction = look_up(paths.predictions, "object_id", object_id)
    sample = look_up(paths.samples, "sample_id", prediction["sample_id"][0])
    known = annotated(object_columns(prediction, sample), prediction, paths.annotations)
    return prediction.select("object_id").hstack(known).hstack(prediction.select("embedding"))


def outliers(experiment: str, n: int, csv: Path | None, results: Path | None, config_file: Path) -> str:
    """The n strangest objects as text; all of them go into the file `csv`, if one is given.

    Raises:
        DataError: there are no predictions, or they have no outlier score.
    """
    paths = ExperimentPaths.of(results or results_folder(config_file), experiment)
    table = ranked(paths)
    if csv is not None:
        with whole_file(csv) as partial:
            table.write_csv(partial)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
                   tbl_formatting="NOTHING", float_precision=4, tbl_width_chars=160, fmt_str_lengths=80):  # fmt: skip
        return str(table.head(n))


def ranked(paths: ExperimentPaths) -> pl.DataFrame:
    """All objects, the strangest first; see `manyscope.latent.ranking.ranking`.

    Raises:
        DataError: there are no predictions, or they have no outlier score.
    """
    return ranking(read_table(paths.predictions, SCHEMA, without=("embedding",)))
