"""Every vector store: the same answers, the same refusals, and one whole folder."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError, ManyscopeError, MissingDependencyError
from manyscope.latent import exact, lance
from manyscope.latent.index import VectorIndex, build, extend, open_index
from manyscope.latent.neighbours import nearest_neighbours
from manyscope.latent.search import neighbours
from manyscope.latent.stores import STORES
from manyscope.settings.sections import IndexSettings
from manyscope.tables.whole import write_json

NAMES = ["chroma", "exact", "lance"]
N, DIMENSIONS = 300, 6
stores = pytest.mark.parametrize("store", NAMES)


def wanted(store: str, **settings: object) -> IndexSettings:
    return IndexSettings.model_validate({"store": store, **settings})


def clustered(n: int = N, seed: int = 0) -> tuple[np.ndarray, list[str], pl.DataFrame]:
    """Vectors in five distant clusters, with columns of every kind of which some values are missing."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 5, n)
    centres = np.random.default_rng(99).normal(scale=9, size=(5, DIMENSIONS))
    vectors = (centres[kind] + rng.normal(size=(n, DIMENSIONS))).astype(np.float32)
    some = rng.random(n) < 0.1
    columns = pl.DataFrame(
        {
            "class": [None if hidden else f"kind {of}" for of, hidden in zip(kind, some, strict=True)],
            "flux (predicted)": rng.normal(size=n).astype(np.float32),
            "count": rng.integers(0, 40, n),
            "clean": rng.random(n) < 0.5,
            "it's": np.where(some, np.nan, rng.random(n)),
        }
    )
    return vectors, [f"o'{seed}/{row:05d}" for row in range(n)], columns


def make(folder: Path, store: str, n: int = N, **settings: object) -> tuple[np.ndarray, list[str], pl.DataFrame]:
    vectors, ids, columns = clustered(n)
    folder.mkdir()
    build(vectors, ids, folder, wanted(store, **settings), columns)
    return vectors, ids, columns


def state(folder: Path) -> dict[str, bytes]:
    """Of Chroma's database the tables: it notes each opening in a place of its own."""
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    found = {name: path.read_bytes() for name, path in files.items() if name != "chroma.sqlite3"}
    if "chroma.sqlite3" in files:
        with sqlite3.connect(files["chroma.sqlite3"]) as database:
            for table in ("collections", "segments", "embeddings", "embeddings_queue", "max_seq_id"):
                found[table] = repr(database.execute(f"select * from {table}").fetchall()).encode()
    return found


def best(vectors: np.ndarray, ids: list[str], query: np.ndarray, k: int, rows: np.ndarray, metric: Any = "l2") -> Any:
    distances, found = nearest_neighbours(vectors[rows], k, query[None], metric=metric)
    return [ids[rows[row]] for row in found[0]], distances[0]


@stores
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("n", [1, 5, 200])
def test_every_store_gives_the_same_neighbours_and_distances(tmp_path: Path, store: str, metric: str, n: int) -> None:
    """Squared Euclidean distance, 1 - cosine, 1 - inner product."""
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(rows, 4)).astype(np.float32) for rows in (n, 6))
    (tmp_path / "index").mkdir()
    build(vectors, [f"{row:04d}" for row in range(n)], tmp_path / "index", wanted(store, metric=metric))
    far, rows = nearest_neighbours(vectors, 7, queries, metric=metric)  # type: ignore[arg-type]
    with open_index(tmp_path / "index") as index:
        assert (index.count, index.dimension, index.metric) == (n, 4, metric)
        found, distances = index.search(queries, 7)
        everything, _ = index.search(queries[0], 1000)
    assert found == [[f"{row:04d}" for row in of] for of in rows]
    np.testing.assert_allclose(np.stack(distances), far, atol=1e-5)
    assert sorted(everything[0]) == [f"{row:04d}" for row in range(n)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, VectorIndex]]:
    """An index of the same objects in each store."""
    folder = tmp_path_factory.mktemp("stores")
    contexts = []
    for store in NAMES:
        make(folder / store, store)
        contexts.append(open_index(folder / store))
    yield {store: context.__enter__() for store, context in zip(NAMES, contexts, strict=True)}
    for context in contexts:
        context.__exit__(None, None, None)


TERMS = [
    "class = 'kind 1'", "class != 'kind 2'", "class in ('kind 0', 'kind 3')", "class = nothing", "clean = true",
    "'flux (predicted)' > 1.5", "'flux (predicted)' <= -0.2", "count < 3", "count = 7", "count >= 2.5",
    "\"it's\" < 0.1", "count > 1e30", "count != 2.5", "'flux (predicted)' < inf", "'flux (predicted)' > 1e300",
    "\"it's\" > -1e-5",
]  # fmt: skip
PASSES: dict[str, Callable[[pl.DataFrame], Any]] = {
    "class = 'kind 1'": lambda t: t["class"] == "kind 1",
    "class != 'kind 2'": lambda t: t["class"] != "kind 2",
    "class in ('kind 0', 'kind 3')": lambda t: t["class"].is_in(["kind 0", "kind 3"]),
    "class = nothing": lambda t: t["class"] == "nothing",
    "clean = true": lambda t: t["clean"],
    "'flux (predicted)' > 1.5": lambda t: t["flux (predicted)"] > 1.5,
    "'flux (predicted)' <= -0.2": lambda t: t["flux (predicted)"] <= np.float32(-0.2),
    "count < 3": lambda t: t["count"] < 3,
    "count = 7": lambda t: t["count"] == 7,
    "count >= 2.5": lambda t: t["count"] >= 2.5,
    "count > 1e30": lambda t: t["count"] < -1,
    "count != 2.5": lambda t: t["count"] >= 0,
    "'flux (predicted)' < inf": lambda t: t["count"] >= 0,
    "'flux (predicted)' > 1e300": lambda t: t["count"] < -1,
    '"it\'s" > -1e-5': lambda t: t["it's"].is_not_nan(),
    '"it\'s" < 0.1': lambda t: t["it's"].fill_nan(None) < 0.1,
}


@given(st.lists(st.sampled_from(TERMS), max_size=3, unique=True), st.integers(1, 60), st.integers(0, N - 1))
def test_a_filter_finds_exactly_as_many_as_pass(
    opened: dict[str, VectorIndex], terms: list[str], k: int, row: int
) -> None:
    """Also where all that pass lie in clusters far from the query. An object without a value passes nothing."""
    vectors, ids, columns = clustered()
    passing = np.ones(N, bool)
    for term in terms:
        passing &= PASSES[term](columns).fill_null(False).to_numpy()
    rows = np.flatnonzero(passing)
    names, distances = best(vectors, ids, vectors[row] + 0.01, min(k, len(rows)), rows)
    others = [name for name in best(vectors, ids, vectors[row], len(rows), rows)[0] if name != ids[row]][:k]
    for store, index in opened.items():
        found, far = index.search(vectors[row] + 0.01, k, terms)
        assert found[0] == names, store
        np.testing.assert_allclose(far[0], distances, rtol=1e-5, atol=1e-5)
        joined = [" and ".join(terms)] if terms else []
        assert [name for name, _ in neighbours(index, k, object_id=ids[row], where=joined)[0]] == others, store


@stores
def test_several_queries_at_once_are_those_one_by_one(opened: dict[str, VectorIndex], store: str) -> None:
    vectors, ids, _ = clustered()
    index = opened[store]
    together = neighbours(index, 4, object_id=ids[:9], where=["count > 5"])
    assert together == [neighbours(index, 4, object_id=name, where=["count > 5"])[0] for name in ids[:9]]
    np.testing.assert_allclose(index.vectors([ids[5], ids[2], ids[5]]), vectors[[5, 2, 5]], rtol=1e-6)


def test_a_graph_that_has_lost_objects_is_not_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, ids, columns = make(tmp_path / "index", "chroma")
    rows = np.flatnonzero(columns["count"] < 8)
    with open_index(tmp_path / "index") as index:
        collection = index._store._collection  # type: ignore[attr-defined]
        true = type(collection).query

        def lossy(self: object, **given: Any) -> dict[str, Any]:
            found: dict[str, Any] = true(self, **given)
            return {name: [found[name][0][:2], *found[name][1:]] for name in ("ids", "distances")}

        monkeypatch.setattr(type(collection), "query", lossy)
        found, far = index.search(vectors[:2], 9, ["count < 8"])
        everything, _ = index.search(vectors[0], N)
    for query in (0, 1):
        names, distances = best(vectors, ids, vectors[query], 9, rows)
        assert found[query] == names
        np.testing.assert_allclose(far[query], distances, atol=1e-4)
    assert sorted(everything[0]) == ids


def test_cells_that_hold_too_few_are_not_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "_FLAT", 50)
    monkeypatch.setattr(lance, "_PROBED", 1)
    monkeypatch.setattr(lance, "_FEW", 0)
    vectors, ids, columns = make(tmp_path / "index", "lance")
    with open_index(tmp_path / "index") as index:
        assert index.configuration == {"index_type": "IVF_FLAT", "distance_type": "l2"}
        query = vectors[(columns["class"] == "kind 0").fill_null(False).to_numpy()][0]
        found, _ = index.search(query, 12, ["class = 'kind 3'"])
        everything, _ = index.search(query, N)
    rows = np.flatnonzero((columns["class"] == "kind 3").fill_null(False))
    assert found[0] == best(vectors, ids, query, 12, rows)[0]
    assert sorted(everything[0]) == ids


def test_vectors_that_join_later_are_in_the_cells_and_nothing_is_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance, "_FLAT", 50)
    make(tmp_path / "index", "lance")
    for seed, n in ((1, 40), (2, 700)):  # a few more, and so many that the cells are made anew
        new, names, more = clustered(n, seed=seed)
        assert extend(tmp_path / "index", new, names, more, wanted("lance")) == n
        with open_index(tmp_path / "index") as index:
            table = index._store._table  # type: ignore[attr-defined]
            (cells,) = table.list_indices()
            assert table.index_stats(cells.name).num_indexed_rows == index.count
            assert index.search(new, 1, ["count >= 0"])[0] == [[name] for name in names]
        assert len(list((tmp_path / "index").rglob("*.manifest"))) == 1
        assert len(list((tmp_path / "index").rglob("auxiliary.idx"))) == cells.num_segments


def test_settings_reach_the_stores(tmp_path: Path) -> None:
    given = {"metric": "cosine", "max_neighbors": 7, "ef_construction": 66, "ef_search": 44}
    make(tmp_path / "chroma", "chroma", **given)
    with open_index(tmp_path / "chroma") as index:
        stored = {**index.configuration, "metric": index.configuration["space"]}
        assert {name: stored[name] for name in given} == given
    for store in ("exact", "lance"):
        make(tmp_path / store, store, **given)
        with open_index(tmp_path / store) as index:
            assert index.metric == "cosine"
            assert index.configuration.get("distance_type", "cosine") == "cosine"


@stores
def test_the_folder_tells_its_store_and_opening_it_changes_nothing(tmp_path: Path, store: str) -> None:
    """Reopening starts no new shard and no new version."""
    vectors, ids, _ = make(tmp_path / "index", store)
    with open_index(tmp_path / "index") as index:
        index.search(vectors[:3], 5, ["count > 3"])
    before = state(tmp_path / "index")
    assert json.loads(before["store.json"])["store"] == store
    for _ in range(3):
        with open_index(tmp_path / "index") as index:
            assert index.count == N
            assert index.search(vectors[:3], 5)[0][1][0] == ids[1]
    assert state(tmp_path / "index") == before


@stores
def test_columns_are_those_that_the_settings_name(tmp_path: Path, store: str) -> None:
    make(tmp_path / "index", store, columns=["count"])
    with open_index(tmp_path / "index") as index:
        assert index.columns == {"count": "integer"}
        with pytest.raises(DataError, match="column 'class' is unknown; allowed: count"):
            index.search(np.ones(DIMENSIONS), 3, ["class = a"])
        with pytest.raises(DataError, match="1 or more"):
            index.search(np.ones(DIMENSIONS), 0, ["count > 3"])


@stores
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_same_vector_again_is_skipped_and_another_is_refused(tmp_path: Path, store: str, metric: str) -> None:
    """Within one batch, across batches, and across runs."""
    vectors, ids, columns = clustered()
    twice = [*range(N), 3, 3, 250]
    folder = tmp_path / "index"
    folder.mkdir()
    table, settings = columns[twice], wanted(store, metric=metric)
    assert build(vectors[twice], [ids[row] for row in twice], folder, settings, table) == 3
    with open_index(folder) as index:
        assert index.count == N
    assert extend(folder, vectors[twice], [ids[row] for row in twice], table, settings) == 0
    new, names, more = clustered(20, seed=1)
    again = [*range(20), 0, 19]
    mixed = np.concatenate([vectors[:50], new[again]])
    mixed_ids = [*ids[:50], *(names[row] for row in again)]
    assert extend(folder, mixed, mixed_ids, pl.concat([columns[:50], more[again]]), settings) == 20
    before = state(folder)
    for row, words in ((0, "has another vector in the index"), (-1, "occurs twice, with two vectors")):
        off = mixed.copy()
        off[row] += 0.1
        with pytest.raises(DataError, match=words):
            extend(folder, off, mixed_ids, pl.concat([columns[:50], more[again]]), settings)
    assert state(folder) == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@stores
def test_an_extended_index_answers_like_one_built_anew(tmp_path: Path, store: str) -> None:
    old, ids, columns = make(tmp_path / "index", store)
    new, names, more = clustered(80, seed=1)
    columns = columns.with_columns(count=columns["count"] + 1)  # scores of old objects may change with new ones
    vectors, every, table = np.concatenate([old, new]), [*ids, *names], pl.concat([columns, more])
    write_json(tmp_path / "index/audit.json", {"count": N, "build_s": 1000.0})
    assert extend(tmp_path / "index", vectors, every, table, wanted(store)) == 80
    (tmp_path / "anew").mkdir()
    build(vectors, every, tmp_path / "anew", wanted(store), table)
    with open_index(tmp_path / "index") as index, open_index(tmp_path / "anew") as anew:
        assert (index.count, index.columns) == (N + 80, anew.columns)
        for where in ([], ["count < 5"], ["class = 'kind 2' and clean = false"]):
            assert index.search(vectors[::7], 9, where)[0] == anew.search(vectors[::7], 9, where)[0]
        np.testing.assert_array_equal(index.vectors(every), vectors)
    audit = json.loads((tmp_path / "index/audit.json").read_text())
    assert (audit["count"], audit["recall_at_10"]) == (N + 80, 1.0)
    assert audit["build_s"] > 1000


def test_a_grown_graph_is_searched_more_and_replayed_never(tmp_path: Path) -> None:
    make(tmp_path / "index", "chroma", ef_search=10)
    new, names, more = clustered(100, seed=1)
    extend(tmp_path / "index", new, names, more, wanted("chroma", ef_search=10))
    with open_index(tmp_path / "index") as index:
        assert index.configuration["ef_search"] == 20
        assert index.search(new, 1)[0] == [[name] for name in names]
    with sqlite3.connect(tmp_path / "index/chroma.sqlite3") as database:
        assert database.execute("select count(*) from collections").fetchone() == (1,)
        assert database.execute("select count(*) from embeddings").fetchone() == (N + 100,)
        # The log keeps the last row at most: the graph on disk has all the others.
        assert database.execute("select count(*) from embeddings_queue").fetchone()[0] <= 1


@stores
def test_what_does_not_fit_an_index_is_refused(tmp_path: Path, store: str) -> None:
    make(tmp_path / "index", store, columns=["count"])
    before = state(tmp_path / "index")
    new, names, more = clustered(4, seed=1)

    def refused(words: str, vectors: np.ndarray = new, columns: pl.DataFrame | None = more) -> None:
        with pytest.raises(DataError, match=words):
            extend(tmp_path / "index", vectors, names, columns, wanted(store))

    refused("vectors of 3 dimensions, the index has 6", new[:, :3])
    refused("column 'count' of the index is not given", columns=more.drop("count"))
    refused("column 'count' of the index is not given", columns=None)
    refused("column 'count' holds String, in the index integer", columns=more.with_columns(count=pl.lit("many")))
    refused("columns of 2 rows for 4 objects", columns=more[:2])
    refused("is not finite", np.full_like(new, np.inf))
    with pytest.raises(DataError, match="there is no index"):
        extend(tmp_path / "none", new, names, more, wanted(store))
    assert state(tmp_path / "index") == before


_KILLED = """
import os, shutil, sys
from pathlib import Path
import numpy as np, polars as pl
from manyscope.latent import index
from manyscope.settings.sections import IndexSettings
folder, when, store = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def dies(at, before=False):
    owner, name = at
    true, calls = getattr(owner, name), []
    def call(*given, **named):
        calls.append(1)
        if before:
            os._exit(9)
        result = true(*given, **named)
        os._exit(9)
    setattr(owner, name, call)
if when == "copied": dies((index.shutil, "copytree"))
if when == "added": dies((index, "audit"), before=True)
if when == "audited": dies((index, "_audit_again"))
if when in ("aside", "replaced"):
    true, renames = Path.rename, []
    def rename(self, target):
        true(self, target)
        if Path(target).name in (".index.old", "index"):
            renames.append(target)
            if len(renames) == (1 if when == "aside" else 2):
                os._exit(9)
    Path.rename = rename
data = np.load(folder.parent / "new.npy")
ids = [f"new {row}" for row in range(len(data))]
index.extend(folder, data, ids, None, IndexSettings(store=store, columns=()))
"""


@pytest.mark.parametrize(
    ("store", "when"),
    [*(("exact", when) for when in ("copied", "added", "audited", "aside", "replaced")),
     ("chroma", "added"), ("lance", "added")],
)  # fmt: skip
def test_a_process_that_is_killed_leaves_the_old_index_or_the_new_one(tmp_path: Path, store: str, when: str) -> None:
    vectors, ids, _ = make(tmp_path / "index", store, n=40, columns=())
    write_json(tmp_path / "index/audit.json", {"count": 40})
    new, _, _ = clustered(10, seed=1)
    np.save(tmp_path / "new.npy", new)
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "index"), when, store]
    assert subprocess.run(command, capture_output=True).returncode == 9
    with open_index(tmp_path / "index") as index:
        assert index.count == (50 if when == "replaced" else 40)
        np.testing.assert_array_equal(index.vectors(ids), vectors)
    names = [f"new {row}" for row in range(10)]
    added = extend(tmp_path / "index", new, names, None, wanted(store, columns=()))
    assert added == (0 if when == "replaced" else 10)
    with open_index(tmp_path / "index") as index:
        np.testing.assert_array_equal(index.vectors(names), new)


@stores
def test_no_process_is_started_and_no_network_is_asked(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object, **named: object) -> None:
        raise AssertionError(f"{given} {named}")

    for owner, name in ((os, "fork"), (os, "posix_spawn"), (subprocess.Popen, "__init__"), (socket.socket, "connect")):
        monkeypatch.setattr(owner, name, never)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    vectors, ids, _ = make(tmp_path / "index", store)
    with open_index(tmp_path / "index") as index:
        assert [row[0] for row in index.search(vectors, 3, ["count >= 0"])[0]] == ids


@stores
def test_a_missing_or_broken_index_is_named(tmp_path: Path, store: str) -> None:
    with pytest.raises(DataError, match=r"there is no index.*run the stage index"), open_index(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()
    make(tmp_path / "index", store)
    for file in (tmp_path / "index").rglob("*"):
        if file.is_file() and file.name != "store.json":
            file.write_bytes(b"no store " * 100)
    with pytest.raises(DataError, match="not a readable index"), open_index(tmp_path / "index"):
        pass
    for file in sorted((tmp_path / "index").rglob("*"), reverse=True):
        if file.name != "store.json":
            file.rmdir() if file.is_dir() else file.unlink()
    with pytest.raises(DataError, match="not a readable index"), open_index(tmp_path / "index"):
        pass
    (tmp_path / "index/store.json").write_text('{"store": "chroma"}')
    with pytest.raises(DataError, match=r"store\.json: not a readable index"), open_index(tmp_path / "index"):
        pass


def test_vectors_and_objects_of_different_numbers_are_noticed(tmp_path: Path) -> None:
    make(tmp_path / "index", "exact")
    table = pl.read_parquet(tmp_path / "index/objects.parquet")
    table[:-1].write_parquet(tmp_path / "index/objects.parquet")
    with pytest.raises(DataError, match="300 vectors, but 299 objects"), open_index(tmp_path / "index"):
        pass
    table.write_parquet(tmp_path / "index/objects.parquet")
    data = (tmp_path / "index/vectors.npy").read_bytes()
    (tmp_path / "index/vectors.npy").write_bytes(data[:-10])
    with pytest.raises(DataError, match="not a readable index"), open_index(tmp_path / "index"):
        pass


def test_exact_search_holds_a_block_and_not_the_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
    ids = [f"{row:05d}" for row in range(len(vectors))]
    (tmp_path / "index").mkdir()
    build(vectors, ids, tmp_path / "index", wanted("exact"))
    monkeypatch.setattr(exact, "_BLOCK", 2**15)  # 512 vectors: a fortieth of all
    mapped = []
    true = exact.ExactStore._block
    monkeypatch.setattr(exact.ExactStore, "_block", lambda *a: mapped.append(a[2] - a[1]) or true(*a))  # type: ignore[func-returns-value]
    with open_index(tmp_path / "index") as index:
        index.search(vectors[:1], 1)
        tracemalloc.start()
        found, _ = index.search(vectors[::4000], 1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert [row[0] for row in found] == ids[::4000]
    assert max(mapped) == 512
    assert peak < vectors.nbytes / 4


def test_the_file_of_vectors_is_an_ordinary_one(tmp_path: Path) -> None:
    vectors, ids, columns = make(tmp_path / "index", "exact")
    np.testing.assert_array_equal(np.load(tmp_path / "index/vectors.npy"), vectors)
    table = pl.read_parquet(tmp_path / "index/objects.parquet")
    assert table["object_id"].to_list() == ids
    assert table["count"].equals(columns["count"])


def test_a_store_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_store.py").write_text(
        "from manyscope.latent.exact import ExactStore\n\n\nclass Own(ExactStore):\n    pass\n\n\n"
        "class Less:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    vectors, ids, _ = make(tmp_path / "index", "own_store:Own")
    with open_index(tmp_path / "index") as index:
        assert type(index._store).__name__ == "Own"
        assert index.search(vectors[4], 1)[0] == [[ids[4]]]
    with pytest.raises(ManyscopeError, match="is not a vector store"):
        make(tmp_path / "less", "own_store:Less")
    with pytest.raises(ManyscopeError, match=r"vector store 'choma' is unknown; allowed: .*chroma.*did you mean"):
        make(tmp_path / "typo", "choma")
    assert STORES.names() == NAMES


def test_a_store_whose_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    monkeypatch.delitem(sys.modules, "manyscope.latent.lance")
    with pytest.raises(MissingDependencyError, match=r"needs the package lancedb; pip install 'manyscope\[lance\]'"):
        make(tmp_path / "index", "lance")


def test_columns_of_chroma_cost_no_metadata(tmp_path: Path) -> None:
    """Chroma keeps metadata as a row of its database for each value."""
    make(tmp_path / "index", "chroma")
    with sqlite3.connect(tmp_path / "index/chroma.sqlite3") as database:
        assert database.execute("select count(*) from embedding_metadata").fetchone() == (0,)


@stores
def test_many_threads_open_and_close_one_index_at_once(tmp_path: Path, store: str) -> None:
    """As a server does whose results change. What Chroma's clients share is started and stopped unguarded."""
    vectors, ids, _ = make(tmp_path / "index", store)

    def nearest_to_itself(row: int) -> list[str]:
        with open_index(tmp_path / "index") as index:
            return index.search(vectors[row], 1)[0][0]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(nearest_to_itself, list(range(40)) * 5)) == [[name] for name in ids[:40]] * 5
