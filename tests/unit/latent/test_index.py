"""The vector index: what is stored, what is found, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from manyscope.errors import DataError
from manyscope.latent import chroma
from manyscope.latent.index import build, open_index
from manyscope.latent.neighbours import nearest_neighbours
from manyscope.settings.sections import IndexSettings


def make(folder: Path, n: int = 200, dimensions: int = 6, **settings: object) -> tuple[np.ndarray, list[str]]:
    vectors = np.random.default_rng(0).normal(size=(n, dimensions)).astype(np.float32)
    ids = [f"o{i:05d}" for i in range(n)]
    folder.mkdir()
    build(vectors, ids, folder, IndexSettings.model_validate(settings))
    return vectors, ids


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("n", [1, 2, 5, 200])
def test_it_finds_what_exact_search_finds(tmp_path: Path, metric: str, n: int) -> None:
    vectors, ids = make(tmp_path / "index", n, metric=metric)
    queries = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    exact, rows = nearest_neighbours(vectors, 7, queries, metric=metric)  # type: ignore[arg-type]
    with open_index(tmp_path / "index") as index:
        assert (index.count, index.dimension, index.metric) == (n, 6, metric)
        found, distances = index.search(queries, 7)
    assert found == [[ids[r] for r in row] for row in rows]
    np.testing.assert_allclose(np.array(distances), exact, atol=1e-5)


@pytest.mark.parametrize(("n", "stored"), [(399, 20), (400, 20), (441, 21), (900, 30)])
def test_a_search_looks_at_more_candidates_in_a_larger_index(tmp_path: Path, n: int, stored: int) -> None:
    make(tmp_path / "index", n, ef_search=20)
    with open_index(tmp_path / "index") as index:
        assert index.configuration["ef_search"] == stored


def test_every_setting_is_stored_and_the_public_client_reads_the_store(tmp_path: Path) -> None:
    import chromadb
    from chromadb.config import Settings

    vectors, ids = make(tmp_path / "index", metric="cosine", max_neighbors=9, ef_construction=77, ef_search=55)
    with open_index(tmp_path / "index") as index:
        stored = index.configuration
    wanted = {"space": "cosine", "max_neighbors": 9, "ef_construction": 77, "ef_search": 55}
    assert {name: stored[name] for name in wanted} == wanted
    with chromadb.PersistentClient(str(tmp_path / "index"), settings=Settings(anonymized_telemetry=False)) as client:
        collection = client.get_collection("objects", embedding_function=None)
        assert {name: collection.configuration["hnsw"][name] for name in wanted} == wanted
        everything = collection.get(include=["embeddings"])
        assert sorted(everything["ids"]) == ids
        answer = collection.query(query_embeddings=vectors[:1], n_results=1)
        assert answer["ids"] == [[ids[0]]]


def test_several_batches_and_parts_hold_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chroma, "_SMALL", 50)
    monkeypatch.setattr(chroma.ChromaStore, "largest_batch", 13)
    vectors, ids = make(tmp_path / "index", 103)
    with open_index(tmp_path / "index") as index:
        found, _ = index.search(vectors, 1)
        assert [row[0] for row in found] == ids
        for i in (0, 51, 102):
            np.testing.assert_array_equal(index.vector(ids[i]), vectors[i])


def test_batches_fit_and_fill_every_part() -> None:
    for n in (4_000, 4_003, 50_001):
        batches = chroma._batches(n, 4, 5_461)
        assert [i for b in batches for i in range(b.start, b.stop)] == list(range(n))
        assert max(b.stop - b.start for b in batches) <= 5_461


def test_more_neighbours_than_objects_gives_all_objects(tmp_path: Path) -> None:
    vectors, ids = make(tmp_path / "index", 12)
    with open_index(tmp_path / "index") as index:
        found, distances = index.search(vectors[0], 1000)
    assert sorted(found[0]) == ids
    assert found[0][0] == ids[0]
    assert (np.diff(distances[0]) >= 0).all()


def test_equally_near_objects_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    build(np.ones((30, 3)), [f"o{i:02d}" for i in range(30)], tmp_path / "index", IndexSettings())
    with open_index(tmp_path / "index") as index:
        found, _ = index.search(np.ones(3), 30)
    assert found[0] == [f"o{i:02d}" for i in range(30)]


def test_queries_that_cannot_be_answered(tmp_path: Path) -> None:
    make(tmp_path / "index", metric="cosine")
    with open_index(tmp_path / "index") as index:
        with pytest.raises(DataError, match="1 or more"):
            index.search(np.ones(6), 0)
        with pytest.raises(DataError, match="the query has 4 dimensions, the index 6"):
            index.search(np.ones(4), 1)
        with pytest.raises(DataError, match="not finite"):
            index.search(np.full(6, np.nan), 1)
        with pytest.raises(DataError, match="zero vector"):
            index.search(np.zeros(6), 1)
        with pytest.raises(DataError, match="did you mean 'o00017'"):
            index.vector("o0001 7")


@pytest.mark.parametrize(
    ("vectors", "ids", "metric", "words"),
    [
        (np.eye(3, 2), ["a", "b", "a"], "l2", "'a' occurs twice, with two vectors"),
        (np.ones((3, 2)), ["a", "b"], "l2", "for 2 objects"),
        (np.array([[1.0], [np.inf]]), ["a", "b"], "l2", "object 'b' is not finite"),
        (np.array([[1.0], [0.0]]), ["a", "b"], "cosine", "object 'b' is zero"),
        (np.ones((0, 2)), [], "l2", "for 0 objects"),
    ],
)
def test_vectors_that_cannot_be_indexed(
    tmp_path: Path, vectors: np.ndarray, ids: list[str], metric: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        build(vectors, ids, tmp_path, IndexSettings.model_validate({"metric": metric}))
    assert not list(tmp_path.iterdir())
