"""t-SNE: openTSNE's own numbers, the same each time, and new objects beside their like."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from manyscope.latent import tsne
from manyscope.latent.quality import map_quality
from manyscope.latent.reducers import Pca
from manyscope.latent.tsne import Tsne
from manyscope.settings.sections import UmapSettings


def blobs(n: int, dimensions: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(scale=5, size=(4, dimensions))
    return (centres[rng.integers(0, 4, n)] + rng.normal(size=(n, dimensions))).astype(np.float32)


def test_it_is_opentsne_on_exact_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same start, its own class makes the same map to the last bit, and from the vectors nearly the same
    affinities."""
    import openTSNE
    from openTSNE import affinity

    given: dict[str, Any] = {}
    make = openTSNE.TSNEEmbedding

    def watched(start: np.ndarray, affinities: affinity.Affinities, **options: object) -> openTSNE.TSNEEmbedding:
        given.update(start=start, matrix=affinities.P.copy())  # which is scaled and scaled back
        return make(start, affinities, **options)

    vectors = blobs(150)
    with monkeypatch.context() as patch:
        patch.setattr(openTSNE, "TSNEEmbedding", watched)
        coordinates = Tsne(UmapSettings(perplexity=12)).fit(vectors)
    theirs = openTSNE.TSNE(negative_gradient_method="bh", n_jobs=1, random_state=0)
    matrix = given["matrix"].copy()
    precomputed = affinity.PrecomputedAffinities(matrix, normalize=False)
    fitted = theirs.fit(affinities=precomputed, initialization=given["start"])
    np.testing.assert_array_equal(coordinates, np.asarray(fitted, np.float32))
    exact = affinity.PerplexityBasedNN(vectors, perplexity=12, method="exact", n_jobs=1)
    np.testing.assert_allclose(given["matrix"].toarray(), exact.P.toarray(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("components", "grid"), [(2, False), pytest.param(2, True, marks=pytest.mark.slow), (3, False)]
)
def test_it_keeps_neighbourhoods_and_puts_new_objects_beside_their_like(
    components: int, grid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tsne, "_INTERPOLATED", 10 if grid else 10_000)
    vectors = blobs(350)
    reducer = Tsne(UmapSettings(components=components, perplexity=15))  # type: ignore[arg-type]
    coordinates = reducer.fit(vectors[:250])
    assert coordinates.shape == (250, components)
    principal = Pca(UmapSettings(components=components)).fit(vectors[:250])  # type: ignore[arg-type]
    trust = [
        map_quality(vectors[:250], c, objects=250, neighbours=15, seed=0).trustworthiness or 0
        for c in (coordinates, principal)
    ]
    assert trust[0] > max(0.93, trust[1])
    new = reducer.transform(vectors[250:])
    everyone = map_quality(vectors, np.concatenate([coordinates, new]), objects=350, neighbours=15, seed=0)
    assert (everyone.trustworthiness or 0) > 0.9
    # Each new object by itself, those of the fit where they are, and their twins beside them.
    np.testing.assert_array_equal(reducer.transform(vectors[250:255]), new[:5])
    np.testing.assert_array_equal(reducer.transform(vectors[:20]), coordinates[:20])
    wide = np.ptp(coordinates, axis=0).max()
    assert np.abs(reducer.transform(vectors[:100] + 1e-3) - coordinates[:100]).max() < 0.02 * wide


def test_a_new_object_that_equals_a_fitted_one_lies_where_that_one_does_also_by_angle() -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 7)).astype(np.float32)
    reducer = Tsne(UmapSettings(metric="cosine", perplexity=8))
    coordinates = reducer.fit(vectors)
    np.testing.assert_array_equal(reducer.transform(vectors), coordinates)


def test_it_is_the_same_in_another_process() -> None:
    code = (
        "import numpy as np, hashlib; from manyscope.latent.tsne import Tsne;"
        "from manyscope.settings.sections import UmapSettings;"
        "v = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32);"
        "r = Tsne(UmapSettings(components=3, perplexity=8));"
        "print(hashlib.sha256(r.fit(v).tobytes() + r.transform(v[:9] + 1).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    reducer = Tsne(UmapSettings(components=3, perplexity=8))
    here = hashlib.sha256(reducer.fit(vectors).tobytes() + reducer.transform(vectors[:9] + 1).tobytes()).hexdigest()
    assert done.stdout.split()[-1] == here


def test_settings_matter() -> None:
    vectors = blobs(60)
    settings = [UmapSettings(perplexity=5), UmapSettings(perplexity=9), UmapSettings(perplexity=5, seed=1)]
    maps = [Tsne(each).fit(vectors).tobytes() for each in (*settings, settings[0])]
    assert len(set(maps)) == 3
    assert maps[3] == maps[0]


def test_many_objects_in_space_take_long(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tsne, "_SLOW", 40)
    with caplog.at_level(logging.WARNING):
        Tsne(UmapSettings(perplexity=5)).fit(blobs(50))
        assert "takes long" not in caplog.text
        Tsne(UmapSettings(perplexity=5, components=3)).fit(blobs(50))
    assert "t-SNE of 50 objects in three dimensions takes long: umap.fit_objects limits them" in caplog.text
