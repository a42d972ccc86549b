"""What Python knows of an experiment from its tables: what its page has to show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from PIL import Image

from manyscope.scopes.registry import find_scope
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.predictions import read_predictions
from manyscope.tables.samples import read_samples
from workspace import Workspace

PREDICTED = " (predicted)"


@dataclass(frozen=True)
class Truth:
    """One experiment of a workspace, called like its scope. A row is a place in predictions.parquet."""

    workspace: Workspace
    name: str

    @property
    def paths(self) -> ExperimentPaths:
        return ExperimentPaths.of(self.workspace.results, self.name)

    @cached_property
    def predictions(self) -> pl.DataFrame:
        return read_predictions(self.paths.predictions).drop("embedding")

    @cached_property
    def samples(self) -> pl.DataFrame:
        """The sample of each object, in the order of the objects."""
        samples = read_samples(self.paths.samples)
        return self.predictions.select("sample_id").join(samples, on="sample_id", how="left", maintain_order="left")

    @cached_property
    def ids(self) -> list[str]:
        return self.predictions["object_id"].to_list()

    @cached_property
    def places(self) -> np.ndarray:
        """The map, (objects, 2 or 3), at the precision that pages have."""
        table = pl.read_parquet(self.paths.map)
        table = self.predictions.select("object_id").join(table, on="object_id", how="left", maintain_order="left")
        return table.select(pl.exclude("object_id")).to_numpy().astype(np.float32).astype(np.float64)

    @cached_property
    def columns(self) -> set[str]:
        """Names of all that a page shows of an object besides its id and its place on the map."""
        of_sample, of_object = plain_names(self.samples), plain_names(self.predictions) - {"object_id", "sample_id"}
        repeats = {name for name in ("group", "sample_id") if self.samples[name].to_list() == self.ids}
        both = of_sample & of_object
        return (of_sample - repeats) | (of_object - both) | {name + PREDICTED for name in both}

    def values(self, column: str) -> pl.Series:
        """A column of a page, from the table that it comes from."""
        if column == "object_id":
            return self.predictions[column]
        if column.endswith(PREDICTED):
            return self.predictions[column.removesuffix(PREDICTED)]
        return self.samples[column] if column in self.samples.columns else self.predictions[column]

    @cached_property
    def pictures(self) -> list[Image.Image | None]:
        """What the scope draws of each object, RGBA."""
        drawn = find_scope(self.name).thumbnails(self.paths.prepared, self.paths.files, self.predictions)
        return [None if picture is None else picture.convert("RGBA") for picture in drawn]

    def search(self, *query: str) -> list[tuple[str, float]]:
        """Ids and distances that `manyscope search` answers."""
        done = self.workspace.here("search", "--experiment", self.name, *query, "--json")
        assert done.exit_code == 0, done.output
        return [(answer["object_id"], answer["distance"]) for answer in json.loads(done.stdout)]


def plain_names(table: pl.DataFrame) -> set[str]:
    return {name for name, kind in table.schema.items() if not kind.is_nested()}


def inside(points: np.ndarray, outline: Sequence[Sequence[float]]) -> np.ndarray:
    """Which of the points (n, 2) are in a closed outline, which may cross itself, by the even-odd rule."""
    x, y = points.T
    odd = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in zip(outline, [*outline[1:], outline[0]], strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


def within(points: np.ndarray, corners: Sequence[Sequence[float]]) -> np.ndarray:
    """Which of the points (n, 2) are in a box, its edges included."""
    low, high = np.min(corners, 0), np.max(corners, 0)
    return ((points >= low) & (points <= high)).all(1)


def from_outline(points: np.ndarray, outline: Sequence[Sequence[float]]) -> np.ndarray:
    """Distance of each point (n, 2) to the nearest place of a closed outline, (n,)."""
    nearest = np.full(len(points), np.inf)
    for one, other in zip(outline, [*outline[1:], outline[0]], strict=True):
        start, along = np.array(one), np.array(other) - np.array(one)
        share = np.clip((points - start) @ along / max(along @ along, 1e-12), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(points - start - share[:, None] * along, axis=1))
    return nearest


def star(centre: Sequence[float], radius: float, corners: int = 5) -> list[tuple[float, float]]:
    """A star drawn in one line, which crosses itself: by the even-odd rule its middle is outside."""
    angles = np.arange(corners) * 2 * (corners // 2) * np.pi / corners - np.pi / 2
    return [(centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a)) for a in angles]


def projected(places: np.ndarray, camera: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Where a camera (16 numbers, column-major) shows places (n, 3): (n, 2) in clip space, and which are before it."""
    clip = np.column_stack([places, np.ones(len(places))]) @ np.reshape(camera, (4, 4))
    with np.errstate(divide="ignore", invalid="ignore"):
        return clip[:, :2] / clip[:, 3:], clip[:, 3] > 0


def unlike(shown: np.ndarray, picture: Image.Image) -> float:
    """How far a picture on a page is from the one that a scope drew: the mean difference, of 255, of squares of 4 x 4
    pixels, since the page's files keep the noise of single ones only roughly. The picture is in the middle of its cell,
    and transparent parts are grey."""
    edge = shown.shape[0]
    small = picture.copy()
    small.thumbnail((edge, edge))
    cell = Image.new("RGBA", (edge, edge))
    cell.paste(small, ((edge - small.width) // 2, (edge - small.height) // 2))
    one, other = (_squares(np.asarray(value, np.float64)) for value in (shown, cell))
    return float(np.abs(one - other).mean())


def _squares(rgba: np.ndarray, edge: int = 4) -> np.ndarray:
    opacity = rgba[..., 3:] / 255
    seen = rgba[..., :3] * opacity + 128 * (1 - opacity)
    number = len(seen) // edge
    return seen[: number * edge, : number * edge].reshape(number, edge, number, edge, 3).mean((1, 3))
