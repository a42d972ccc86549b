"""umap: the map, its reducer, its quality and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
from PIL import Image

from manyscope.errors import DataError, ManyscopeError
from manyscope.latent.reducers import Umap
from manyscope.latent.tsne import Tsne
from manyscope.settings.sections import UmapSettings
from manyscope.stages import umap as umap_stage
from manyscope.tables.parquet import write_table
from manyscope.tables.predictions import embeddings, read_predictions


class Sheared:
    """A reducer from elsewhere."""

    def __init__(self, settings: UmapSettings) -> None:
        self.settings = settings

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        return vectors[:, : self.settings.components] * 2

    transform = fit

    def save(self, path: Path) -> None:
        path.write_bytes(b"nothing to keep")

    @classmethod
    def load(cls, path: Path) -> Sheared:
        raise NotImplementedError


class Flat(Sheared):
    def fit(self, vectors: np.ndarray) -> np.ndarray:
        return vectors[:, :1]


def outputs(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("components", [2, 3])
@pytest.mark.parametrize("reducer", ["umap", "pca", "tsne"])
def test_two_runs_write_the_same_bytes(latent_tables, stage_settings, reducer: str, components: int) -> None:
    paths = latent_tables()
    section = {"reducer": reducer, "components": components, "seed": 4, "fit_objects": 90, "perplexity": 10}
    settings = stage_settings("umap", umap=section)
    umap_stage.run(settings, paths)
    first = outputs(paths.umap)
    umap_stage.run(settings, paths)
    assert outputs(paths.umap) == first
    assert set(first) == {"umap.parquet", "reducer.npz", "quality.json", "map.png"}

    table, predictions = pl.read_parquet(paths.map), read_predictions(paths.predictions)
    assert table.columns == ["object_id", "x", "y", "z"][: components + 1]
    assert table["object_id"].equals(predictions["object_id"])
    assert set(table.dtypes[1:]) == {pl.Float32}
    quality = json.loads(paths.map_quality.read_text())
    assert quality["objects"] == len(table)
    assert quality["trustworthiness"] > 0.85
    assert Image.open(paths.map_figure).size[0] > 500


def test_the_stored_reducer_puts_the_others_where_the_map_has_them(latent_tables, stage_settings) -> None:
    paths = latent_tables()
    section = {"fit_objects": 90, "standardize": True}
    umap_stage.run(stage_settings("umap", umap=section), paths)
    reducer = Umap.load(paths.reducer)
    vectors = embeddings(read_predictions(paths.predictions))
    fitted = np.isin(vectors / reducer.scale, reducer.vectors).all(1)
    assert fitted.sum() == 90
    coordinates = pl.read_parquet(paths.map).select("x", "y").to_numpy()
    np.testing.assert_array_equal(coordinates[fitted], reducer.coordinates)
    np.testing.assert_array_equal(coordinates[~fitted], reducer.transform(vectors[~fitted]))


class Watched(Sheared):
    """Notes what it is given."""

    given: ClassVar[list[tuple[str, int]]] = []

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        self.given.append(("fit", len(vectors)))
        return vectors[:, : self.settings.components] * 2

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        self.given.append(("transform", len(vectors)))
        return vectors[:, : self.settings.components] * 2


def test_the_fitted_objects_are_a_seeded_choice_and_the_rest_comes_at_once(latent_tables, stage_settings) -> None:
    paths = latent_tables()

    def fitted(seed: int) -> set[bytes]:
        section = {"fit_objects": 40, "seed": seed, "reducer": "tsne", "perplexity": 5}
        umap_stage.run(stage_settings("umap", umap=section), paths)
        return {vector.tobytes() for vector in Tsne.load(paths.reducer).vectors}

    assert len(fitted(0)) == 40
    assert fitted(0) == fitted(0) != fitted(1)
    Watched.given.clear()
    umap_stage.run(stage_settings("umap", umap={"reducer": f"{__name__}:Watched", "fit_objects": 40}), paths)
    objects = len(read_predictions(paths.predictions))
    assert Watched.given == [("fit", 40), ("transform", objects - 40)]


def test_pca_and_reducers_from_elsewhere(latent_tables, stage_settings) -> None:
    paths = latent_tables()
    umap_stage.run(stage_settings("umap", umap={"reducer": "pca"}), paths)
    principal = pl.read_parquet(paths.map)
    assert principal["x"].var() > principal["y"].var()
    umap_stage.run(stage_settings("umap", umap={"reducer": f"{__name__}:Sheared"}), paths)
    vectors = embeddings(read_predictions(paths.predictions))
    np.testing.assert_array_equal(pl.read_parquet(paths.map)["x"], vectors[:, 0] * 2)


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_few_objects(latent_tables, stage_settings, n: int) -> None:
    paths = latent_tables(n, one_each=True)
    umap_stage.run(stage_settings("umap"), paths)
    assert len(pl.read_parquet(paths.map)) == n
    assert (json.loads(paths.map_quality.read_text())["trustworthiness"] is None) == (n < 3)
    assert paths.map_figure.stat().st_size > 1000


def test_many_objects_are_drawn_as_counts(latent_tables, stage_settings, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = latent_tables()
    umap_stage.run(stage_settings("umap", umap={"reducer": "pca"}), paths)
    points = paths.map_figure.read_bytes()
    monkeypatch.setattr(umap_stage, "_MANY", 50)
    umap_stage.run(stage_settings("umap", umap={"reducer": "pca"}), paths)
    assert paths.map_figure.read_bytes() != points


def test_failures_leave_the_earlier_map_alone(latent_tables, stage_settings) -> None:
    paths = latent_tables()
    umap_stage.run(stage_settings("umap", umap={"reducer": "pca"}), paths)
    before = outputs(paths.umap)
    table = read_predictions(paths.predictions)
    broken = embeddings(table).copy()
    broken[5] = np.inf

    def fails(words: str, kind: type[ManyscopeError] = DataError, **section: str) -> None:
        with pytest.raises(kind, match=words):
            umap_stage.run(stage_settings("umap", umap={"reducer": "pca", **section}), paths)
        assert outputs(paths.umap) == before

    fails("coordinates of shape", reducer=f"{__name__}:Flat")
    fails("reducer 'tsnee' is unknown.*did you mean 'tsne'", ManyscopeError, reducer="tsnee")
    write_table(paths.predictions, table.with_columns(pl.Series("embedding", broken)))
    fails("row 5 is not finite")
    paths.predictions.write_bytes(b"PAR1 and nothing else")
    fails("not a readable Parquet file")
    paths.predictions.unlink()
    fails("the file is missing")
