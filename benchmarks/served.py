"""Answers of the served page over HTTP, as a browser on the same machine gets them.

The objects are made up, everything else is real: the stage that builds the index, the command that serves, and a client
that asks one question after the other. Neighbours stand beside an exact search of the same vectors in NumPy, in the
process itself and without HTTP.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl

from benchmarks.measure import OURS, WORK, Row, environment
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.parquet import write_table

_DIMENSIONS, _CLUSTERS = 64, 50
_SIZES = {"100,000": 100_000, "1,000,000": 1_000_000}
_INDEXED = "100,000"
_QUERIES, _QUESTIONS, _K = 300, 15, 10
_FOLDER = WORK / "served"
_SEED = 0


def run() -> list[Row]:
    rows = []
    for size, n in _SIZES.items():
        paths = ExperimentPaths.of(_FOLDER, f"objects-{n}")
        vectors = _vectors(n) if size == _INDEXED else None
        if not paths.map.exists():
            _write(paths, n, vectors)
        with _server(paths.experiment) as client:
            start = time.perf_counter()
            about = client.get("about").json()
            rows.append(Row(f"open {size} objects", time.perf_counter() - start, None, None, "s"))
            version = {"version": about["version"]}
            if vectors is not None:
                rows += _neighbours(client, version, vectors)
            for what, ask in _questions(client, version).items():
                rows.append(Row(f"{what}, {size} objects, p50", _median_ms(ask), None, None, "ms"))
    return rows


def _neighbours(client: httpx.Client, version: dict[str, str], vectors: np.ndarray) -> list[Row]:
    chosen = np.random.default_rng(_SEED).choice(len(vectors), _QUERIES, replace=False).tolist()
    squares = (vectors**2).sum(1)

    def ours(row: int) -> list[int]:
        answer = client.get(f"neighbours/{row}", params={**version, "k": _K})
        return [one["row"] for one in answer.raise_for_status().json()]

    def exact(row: int) -> list[int]:
        distance = squares - 2 * (vectors @ vectors[row])
        distance[row] = np.inf
        near = np.argpartition(distance, _K)[:_K]
        return near[np.argsort(distance[near])].tolist()

    times: dict[str, list[float]] = {"ours": [], "exact": []}
    right = 0
    for turn, row in enumerate([*chosen[:10], *chosen]):  # the first ten fill caches
        found = {}
        for name, search in (("ours", ours), ("exact", exact)):
            start = time.perf_counter()
            found[name] = search(row)
            if turn >= 10:
                times[name].append(1e3 * (time.perf_counter() - start))
        right += len(set(found["ours"]) & set(found["exact"])) if turn >= 10 else 0
    print(f"recall@{_K} of the served neighbours: {right / (_K * _QUERIES):.4f}")
    peer = "exact search in NumPy, without HTTP"
    return [
        Row(
            f"neighbours, {len(vectors):,} vectors of {_DIMENSIONS}, p{share}",
            float(np.percentile(times["ours"], share)), float(np.percentile(times["exact"], share)), peer, "ms",
        )
        for share in (50, 99)
    ]  # fmt: skip


def _questions(client: httpx.Client, version: dict[str, str]) -> dict[str, Callable[[int], None]]:
    def ask(path: str, body: dict[str, Any]) -> None:
        client.post(path, params=version, json=body).raise_for_status()

    lasso = [[float(np.cos(t)), float(np.sin(t))] for t in np.linspace(0, 2 * np.pi, 200)]
    return {
        # Each question is another one, so that none is answered from what was kept.
        "points of a view": lambda i: ask("points", {"view": [[-1, 1 + i / 100], [-1, 1]], "colour": "value"}),
        "find by a number": lambda i: ask("find", {"filters": {"value": {"low": i / 100, "high": 1}}}),
        "find by a part of a text": lambda i: ask("find", {"filters": {"caption": {"part": f"{i}7"}}}),
        "objects in a lasso": lambda i: ask(
            "within", {"kind": "lasso", "points": [[x, y + i / 100] for x, y in lasso]}
        ),
        "histogram": lambda i: ask("histogram", {"name": ("value", "other")[i % 2]}),
        "sort by a text": lambda i: ask("sorted", {"name": "caption", "descending": bool(i % 2)}),
    }


def _median_ms(ask: Callable[[int], None]) -> float:
    times = []
    for turn in range(_QUESTIONS + 1):
        start = time.perf_counter()
        ask(turn)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


@contextmanager
def _server(experiment: str) -> Iterator[httpx.Client]:
    command = [OURS / "manyscope", "explore", experiment, "--results", _FOLDER]
    process = subprocess.Popen(command, cwd=_FOLDER, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address, token = process.stdout.readline().strip().split("/?token=")
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=f"{address}/api/experiments/{experiment}/", headers=headers, timeout=120) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def _vectors(n: int) -> np.ndarray:
    """Seeded vectors in overlapping clusters, (n, 64) float32."""
    rng = np.random.default_rng(_SEED)
    centres = rng.normal(scale=0.8, size=(_CLUSTERS, _DIMENSIONS))
    vectors = centres[rng.integers(0, _CLUSTERS, n)] + rng.normal(size=(n, _DIMENSIONS))
    return vectors.astype(np.float32)


def _write(paths: ExperimentPaths, n: int, vectors: np.ndarray | None) -> None:
    """Tables as the stages leave them; with vectors also the index. The map comes last and says that all is there."""
    from manyscope.stages.index import run as build_index

    rng = np.random.default_rng((_SEED, n))
    ids = [f"object-{i:07d}" for i in range(n)]
    splits = list(itertools.islice(itertools.cycle(["train", "validation", "test"]), n))
    values = {"value": rng.normal(size=n).astype(np.float32), "other": rng.normal(size=n)}
    captions = {"caption": [f"caption {i * 7919 % n} of what is seen" for i in range(n)]}
    write_table(paths.samples, pl.DataFrame({"sample_id": ids, "group": ids, "split": splits, **values, **captions}))
    embedding = np.zeros((n, 1), np.float32) if vectors is None else vectors
    write_table(paths.predictions, pl.DataFrame({"object_id": ids, "sample_id": ids, "embedding": embedding}))
    paths.train.mkdir(parents=True, exist_ok=True)
    Path(paths.settings).write_text("scope: galaxies\n")
    if vectors is not None:
        build_index(ExperimentSettings(scope="galaxies", model={"name": "any"}).for_stage("index"), paths)
    x, y = rng.normal(size=(2, n)).astype(np.float32)
    write_table(paths.map, pl.DataFrame({"object_id": ids, "x": x, "y": y}))
