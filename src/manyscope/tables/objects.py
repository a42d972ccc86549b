"""What is known of the objects: the columns of the predictions and of the samples, under names of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

import polars as pl

from manyscope.tables.parquet import read_rows, read_schema
from manyscope.tables.predictions import SCHEMA as PREDICTIONS
from manyscope.tables.samples import SCHEMA as SAMPLES

RESERVED = ("", "object_id", "map_x", "map_y", "map_z", "query", "rank", "distance")
"""No name, and what a page or a search itself says of an object."""
_KEYS = ("object_id", "sample_id", "embedding")  # of the predictions, not columns to be shown
_LAST = ("split", "group", "sample_id")


def object_columns(predictions: pl.DataFrame, samples: pl.DataFrame, *, repeats: bool = True) -> pl.DataFrame:
    """One row for each object: what the samples' table says of it, its predictions, then split, group and sample_id.

    A column of the samples keeps its name unless it is reserved: then it is called "<name> (sample)". A prediction with
    a reserved name, or with that of a column of the samples, is called "<name> (predicted)". If another column of
    either table has that name, a number is added: "<name> (predicted 2)".

    Args:
        repeats: whether group and sample_id stay where each sample is one object, whose id they only repeat.
    """
    predicted, described = column_names(predictions.columns, samples.columns)
    own = predictions.select(list(predicted)).rename(predicted)
    joined = predictions.select("sample_id").join(
        samples.rename(described), on="sample_id", how="left", maintain_order="left"
    )
    joined = joined.with_columns(own.get_columns()).select(*described.values(), *own.columns, *_LAST)
    if repeats:
        return joined
    return joined.drop([name for name in _LAST[1:] if (joined[name] == predictions["object_id"]).all()])


def column_names(predictions: Iterable[str], samples: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The columns of each table, but for keys, split and group, with the names that `object_columns` gives them."""
    own = [name for name in predictions if name not in _KEYS]
    described = [name for name in samples if name not in _LAST]
    taken = {*RESERVED, *described, *_LAST, *own}
    predicted = _other_names(own, {*RESERVED, *described, *_LAST}, "predicted", taken)
    return predicted, _other_names(described, set(RESERVED), "sample", taken)


def read_objects(predictions: Path, samples: Path, object_ids: Sequence[str]) -> pl.DataFrame:
    """object_id, sample_id, then every column of `object_columns` that holds single values, of some objects in their
    order; null where an object is not among the predictions.

    Raises:
        DataError: a table is missing or broken.
    """
    predicted, described = column_names(read_schema(predictions), read_schema(samples))
    own = read_rows(predictions, "object_id", object_ids, PREDICTIONS)
    known = read_rows(samples, "sample_id", own["sample_id"].unique().to_list(), SAMPLES)
    wanted = pl.DataFrame({"object_id": list(object_ids)}, schema={"object_id": pl.String})
    joined = wanted.join(own.rename(predicted, strict=False), on="object_id", how="left", maintain_order="left")
    joined = joined.join(known.rename(described, strict=False), on="sample_id", how="left", maintain_order="left")
    names = [name for name in (*described.values(), *predicted.values(), "split", "group") if name in joined.columns]
    return joined.select("object_id", "sample_id", *names)


def _other_names(names: Sequence[str], avoided: set[str], source: str, taken: set[str]) -> dict[str, str]:
    """Each name with the one that it gets, which becomes taken if it is another."""
    renamed = {}
    for name in names:
        renamed[name] = name
        if name in avoided:
            forms = (f"{name} ({source}{f' {number}' if number > 1 else ''})".lstrip() for number in count(1))
            renamed[name] = next(form for form in forms if form not in taken)
            taken.add(renamed[name])
    return renamed
