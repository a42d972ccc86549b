"""The prepared data: views of every picture, and the questions about them."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manyscope.data.prepared import PreparedSamples
from manyscope.errors import DataError
from manyscope.scopes.panoramas.data.room import Room, read_rooms
from manyscope.scopes.panoramas.data.turns import Turn
from manyscope.scopes.panoramas.views.geometry import Views
from manyscope.tables.arrays import map_array
from manyscope.tables.parquet import read_table
from manyscope.tables.whole import read_json

VIEWS, GEOMETRY, PREVIEWS = "views.npy", "views.json", "previews.npy"
PICTURES, REFERENCES, WORDS, ROOMS, REPORT = (
    "pictures.parquet", "references.parquet", "words.json", "rooms.parquet", "report.json",
)  # fmt: skip
PREVIEW_PX = (64, 128)


class Panoramas(PreparedSamples):
    """What `prepare` wrote.

    A sample is a question about a picture. samples.parquet has, beside the columns of the contract (group is the name
    of the picture): picture (row of pictures.parquet, int), question, answer (the first reference), type, direction
    (one of DIRECTIONS, or empty), references (how many, int).

    Attributes:
        views: geometry of the views.
        pixels: (pictures, views, 3, size_px, size_px) uint8, mapped.
        previews: the panoramas small, (pictures, 64, 128, 3) uint8, mapped.
        pictures: picture (name), file (in raw/), source, split, width_px, height_px.

    Raises:
        DataError: a file is missing or broken.
    """

    def __init__(self, prepared: Path) -> None:
        super().__init__(prepared)
        self.views = Views.load(prepared / GEOMETRY)
        self.pictures = read_table(prepared / PICTURES, {"picture": pl.String, "file": pl.String, "split": pl.String})
        size = self.views.size_px
        self.pixels = map_array(prepared / VIEWS)
        self.previews = map_array(prepared / PREVIEWS)
        for array, shape, name in (
            (self.pixels, (len(self.pictures), len(self.views), 3, size, size), VIEWS),
            (self.previews, (len(self.pictures), *PREVIEW_PX, 3), PREVIEWS),
        ):
            if array.shape != shape or array.dtype != np.uint8:
                raise DataError(
                    f"has shape {array.shape} of {array.dtype}",
                    place=prepared / name,
                    allowed=f"{shape} of uint8",
                    remedy="run the stage preprocess again",
                )

    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        some = self.samples[rows.tolist()]
        return {"sample_id": some["sample_id"].to_list(), "question": some["question"].to_list()}

    @cached_property
    def words(self) -> list[str]:
        """Every word of the training split's turns, sorted: what a language model of random numbers learns."""
        return list(read_json(self.folder / WORDS))

    @cached_property
    def rooms(self) -> list[Room] | None:
        """The room of each picture, in their order; None if the pictures are no rooms."""
        path = self.folder / ROOMS
        return read_rooms(path, self.pictures["picture"].to_list()) if path.exists() else None

    def pictures_of(self, split: str) -> np.ndarray:
        """Rows of the pictures of a split, (n,) int64."""
        return np.flatnonzero((self.pictures["split"] == split).to_numpy())

    @cached_property
    def references(self) -> dict[str, list[str]]:
        """sample_id -> every right answer; those of unlabelled samples have none."""
        found = defaultdict(list)
        table = read_table(self.folder / REFERENCES, {"sample_id": pl.String, "answer": pl.String})
        for sample, answer in table.select("sample_id", "answer").iter_rows():
            found[sample].append(answer)
        return dict(found)

    @cached_property
    def turns(self) -> dict[int, list[Turn]]:
        """Row of a picture -> a turn for each reference of each of its questions, in the order of samples.parquet."""
        found: dict[int, list[Turn]] = defaultdict(list)
        columns = ("sample_id", "picture", "type", "question", "direction")
        for sample, picture, kind, question, direction in self.samples.select(columns).iter_rows():
            found[picture] += [Turn(kind, question, answer, direction) for answer in self.references.get(sample, ())]
        return dict(found)
