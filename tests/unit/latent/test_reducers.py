"""Reducers: quality, determinism, and being the same after a trip to disk."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from manyscope.errors import DataError, ManyscopeError
from manyscope.latent import reducers
from manyscope.latent.cells import Cells
from manyscope.latent.quality import map_quality
from manyscope.latent.reducers import REDUCERS, Pca, Umap, metric_of
from manyscope.settings.sections import UmapSettings


def blobs(n: int, dimensions: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(scale=5, size=(4, dimensions))[rng.integers(0, 4, n)] + rng.normal(size=(n, dimensions))).astype(
        np.float32
    )


@pytest.mark.parametrize("components", [2, 3])
def test_pca_is_that_of_scikit_learn_up_to_signs(components: int) -> None:
    vectors = blobs(200)
    reducer = Pca(UmapSettings(components=components))  # type: ignore[arg-type]
    coordinates = reducer.fit(vectors)
    theirs = PCA(components).fit_transform(vectors)
    np.testing.assert_allclose(np.abs(coordinates), np.abs(theirs), atol=1e-3)
    largest = np.abs(reducer.axes).argmax(0)
    assert (reducer.axes[largest, range(components)] > 0).all()


@pytest.mark.parametrize("name", ["umap", "pca", "tsne"])
@pytest.mark.parametrize(("metric", "standardize"), [("euclidean", False), ("cosine", True)])
def test_a_reducer_transforms_alike_before_and_after_a_trip_to_disk(
    name: str, metric: str, standardize: bool, tmp_path: Path
) -> None:
    kind = REDUCERS.find(name)
    settings = UmapSettings(reducer=name, metric=metric, standardize=standardize, seed=3)  # type: ignore[arg-type]
    reducer = kind(settings)
    reducer.fit(blobs(150))
    reducer.save(tmp_path / "reducer.npz")
    again = kind.load(tmp_path / "reducer.npz")
    assert again.settings == settings
    new = np.concatenate([blobs(40, seed=0)[:20] + 0.1, blobs(150)[:5]])
    np.testing.assert_array_equal(again.transform(new), reducer.transform(new))
    again.save(tmp_path / "copy.npz")
    assert (tmp_path / "copy.npz").read_bytes() == (tmp_path / "reducer.npz").read_bytes()


def test_umap_keeps_neighbourhoods_and_puts_new_objects_among_their_like() -> None:
    vectors = blobs(600)
    reducer = Umap(UmapSettings())
    coordinates = reducer.fit(vectors[:400])
    quality = map_quality(vectors[:400], coordinates, objects=400, neighbours=15, seed=0)
    principal = map_quality(vectors[:400], Pca(UmapSettings()).fit(vectors[:400]), objects=400, neighbours=15, seed=0)
    assert quality.trustworthiness is not None
    assert principal.trustworthiness is not None
    assert quality.trustworthiness > max(0.93, principal.trustworthiness)
    everyone = np.concatenate([coordinates, reducer.transform(vectors[400:])])
    together = map_quality(vectors, everyone, objects=600, neighbours=15, seed=0)
    assert together.trustworthiness is not None
    assert together.trustworthiness > 0.92


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_many_objects_get_a_map_as_good_from_neighbours_in_near_cells(
    metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cells, "neighbours", partialmethod(Cells.neighbours, probed=4))  # so few would hold them all
    vectors = blobs(1_500)
    exact = Umap(UmapSettings(metric=metric, exact_objects=1_000))  # type: ignore[arg-type]
    nearly = Umap(UmapSettings(metric=metric, exact_objects=999))  # type: ignore[arg-type]
    wide = Umap(UmapSettings(metric=metric))  # type: ignore[arg-type]
    maps = {name: reducer.fit(vectors[:1_000]) for name, reducer in (("at", exact), ("over", nearly), ("far", wide))}
    np.testing.assert_array_equal(maps["at"], maps["far"])
    assert (maps["over"] != maps["at"]).any()
    trust = {}
    for name, reducer in (("at", exact), ("over", nearly)):
        everyone = np.concatenate([maps[name], reducer.transform(vectors[1_000:])])
        near = metric_of(reducer.settings)
        quality = map_quality(vectors, everyone, objects=1_500, neighbours=15, seed=0, metric=near)
        trust[name] = quality.trustworthiness or 0.0
    assert trust["over"] > trust["at"] - 0.01
    nearly.save(tmp_path / "reducer.npz")
    again = Umap.load(tmp_path / "reducer.npz")
    np.testing.assert_array_equal(again.transform(vectors[1_000:]), nearly.transform(vectors[1_000:]))
    refit = nearly.fit(vectors[500:])  # the cells are those of the last fit
    np.testing.assert_array_equal(refit, Umap(nearly.settings).fit(vectors[500:]))


def test_umap_is_umap_learn_on_exact_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same neighbours, start and passes, its class makes the same map to the last bit."""
    umap = reducers._umap()
    given: dict[str, Any] = {}

    def watched(*args: Any, **values: Any) -> Any:
        given.update(start=values["init"], **graph)
        return embed(*args, **values)

    def watched_graph(*args: Any, **values: Any) -> Any:
        graph.update(rows=values["knn_indices"], distances=values["knn_dists"])
        return make_graph(*args, **values)

    graph: dict[str, Any] = {}
    embed, make_graph = umap.simplicial_set_embedding, umap.fuzzy_simplicial_set
    with monkeypatch.context() as patch:
        patch.setattr(umap, "simplicial_set_embedding", watched)
        patch.setattr(umap, "fuzzy_simplicial_set", watched_graph)
        coordinates = Umap(UmapSettings(seed=5, n_neighbors=10, min_dist=0.3)).fit(blobs(120))
    theirs = umap.UMAP(
        random_state=5, n_neighbors=10, min_dist=0.3, n_epochs=500, init=given["start"], n_jobs=1,
        precomputed_knn=(given["rows"], given["distances"], None), force_approximation_algorithm=True,
    )  # fmt: skip
    np.testing.assert_array_equal(coordinates, theirs.fit_transform(blobs(120)))


def test_umap_is_the_same_in_another_process() -> None:
    """And torch keeps its number of threads, which numba has from the same OpenMP: a second one that spins makes small
    networks many times slower."""
    code = (
        "import numpy as np, hashlib, torch; from manyscope.latent.reducers import Umap;"
        "from manyscope.settings.sections import UmapSettings;"
        "v = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32);"
        "r = Umap(UmapSettings(components=3));"
        "print(hashlib.sha256(r.fit(v).tobytes() + r.transform(v[:9] + 1).tobytes()).hexdigest());"
        "print(torch.get_num_threads())"
    )
    threads = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=threads)
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    reducer = Umap(UmapSettings(components=3))
    here = hashlib.sha256(reducer.fit(vectors).tobytes() + reducer.transform(vectors[:9] + 1).tobytes()).hexdigest()
    assert done.stdout.split()[-2:] == [here, "1"]


@pytest.mark.parametrize("name", ["umap", "pca", "tsne"])
@pytest.mark.parametrize("n", [1, 2, 3, 9, 10, 14])
@pytest.mark.parametrize("components", [2, 3])
def test_few_objects(name: str, n: int, components: int, caplog: pytest.LogCaptureFixture) -> None:
    reducer = REDUCERS.find(name)(UmapSettings(components=components, n_neighbors=15))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        coordinates = reducer.fit(blobs(n, dimensions=2))
    assert coordinates.shape == (n, components)
    assert np.isfinite(coordinates).all()
    new = reducer.transform(blobs(4, dimensions=2, seed=1))
    assert new.shape == (4, components)
    assert np.isfinite(new).all()
    assert reducer.transform(np.empty((0, 2), np.float32)).shape == (0, components)
    if name != "pca":
        lowered = "n_neighbors is lowered" if name == "umap" else "perplexity is lowered"
        assert ("principal components" if n < 10 else lowered) in caplog.text


@pytest.mark.parametrize("name", ["umap", "pca", "tsne"])
@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_duplicates_and_constant_vectors(name: str, distinct: int) -> None:
    vectors = np.repeat(blobs(distinct), 60 // distinct, axis=0)
    reducer = REDUCERS.find(name)(UmapSettings(standardize=True))
    coordinates = reducer.fit(vectors)
    assert np.isfinite(coordinates).all()
    assert np.isfinite(reducer.transform(vectors[:7])).all()


@pytest.mark.parametrize("name", ["umap", "pca", "tsne"])
def test_what_cannot_be_mapped_is_refused(name: str, tmp_path: Path) -> None:
    reducer = REDUCERS.find(name)(UmapSettings())
    vectors = blobs(12)
    with pytest.raises(DataError, match="neither of them 0"):
        reducer.fit(vectors[:0])
    vectors[3, 1] = np.nan
    with pytest.raises(DataError, match="row 3 is not finite"):
        reducer.fit(vectors)
    reducer.fit(blobs(12))
    for some in (3, 0):
        with pytest.raises(DataError, match="vectors of 4 dimensions; allowed: 10, with which the reducer was fitted"):
            reducer.transform(blobs(3, dimensions=4)[:some])


def test_a_stored_reducer_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "reducer.npz"
    with pytest.raises(DataError, match="run the stage umap"):
        Pca.load(file)
    reducer = Pca(UmapSettings(reducer="pca"))
    reducer.fit(blobs(20))
    reducer.save(file)
    with pytest.raises(DataError, match="holds the reducer Pca"):
        Umap.load(file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match="not a stored reducer"):
        Pca.load(file)
    np.savez(file.open("wb"), parameters=np.array({"reducer": "Pca"}, dtype=object))
    with pytest.raises(DataError, match="not a stored reducer"):
        Pca.load(file)


def test_an_unknown_reducer_is_an_error_with_a_hint() -> None:
    with pytest.raises(ManyscopeError, match="did you mean 'umap'"):
        REDUCERS.find("unap")
