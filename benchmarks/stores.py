"""The vector stores beside Chroma: building, searching and filtering 20,000 and 100,000 vectors of 128 dimensions.

Each side of a row is a process of its own that builds an index, or opens one and searches it; what a process takes that
only imports the library and opens the vectors is told apart.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

# The heavy libraries stay out of the first process: a child's peak memory begins at what its parent held.
from benchmarks.measure import OURS, WORK, Cost, Row, bytes_in, cost, environment

COUNTS = (20_000, 100_000)
DIMENSIONS = 128
STORES = ("chroma", "exact", "lance")
QUERIES = 300
_FOLDER = WORK / "stores"
_WHERE = "kind in ('a', 'b') and brightness > 0.5"  # passed by a tenth


def run() -> list[Row]:
    rows = []
    for count in COUNTS:
        found = {store: _measured(store, count) for store in STORES}
        print(_markdown(count, found), flush=True)
        for store in STORES[1:]:
            for name, unit in _UNITS.items():
                rows.append(
                    Row(f"{count:,}: {store}, {name}", found[store][name], found["chroma"][name], "Chroma", unit)
                )
    return rows


_UNITS = {
    "build": "CPU s", "build, peak": "MiB", "on disk": "MB", "search, peak": "MiB", "query": "ms, median",
    "filtered query": "ms, median", "missed of 10 nearest": "share",
}  # fmt: skip


def _measured(store: str, count: int) -> dict[str, float]:
    vectors, index = _FOLDER / f"vectors-{count}.npy", _FOLDER / f"{store}-{count}"
    shutil.rmtree(index, ignore_errors=True)
    if not vectors.exists():
        _step("vectors", vectors, count)
    built = _step("build", store, vectors, index)
    answers = _FOLDER / f"{store}-{count}.json"
    searched = _step("search", vectors, index, answers)
    return {
        "build": built.cpu_s,
        "build, peak": built.peak_mb,
        "on disk": bytes_in(index) / 1e6,
        "search, peak": searched.peak_mb,
        **json.loads(answers.read_text()),
    }


def _step(*words: str | Path | int) -> Cost:
    _FOLDER.mkdir(parents=True, exist_ok=True)
    command = [OURS / "python", "-m", "benchmarks.stores", *map(str, words)]
    return cost(command, environment(RAYON_NUM_THREADS="2"), _FOLDER / "log.txt")


def _markdown(count: int, found: dict[str, dict[str, float]]) -> str:
    header = f"| {count:,} x {DIMENSIONS} | " + " | ".join(f"{name} ({unit})" for name, unit in _UNITS.items()) + " |"
    lines = [f"| {store} | " + " | ".join(f"{row[name]:.4g}" for name in _UNITS) + " |" for store, row in found.items()]
    return "\n".join([header, "|---" * (len(_UNITS) + 1) + "|", *lines])


def _vectors(path: Path, count: int) -> None:
    """Clusters of a latent space, as those of docs/scaling.md."""
    import numpy as np

    rng = np.random.default_rng(0)
    centres = rng.normal(scale=1.5, size=(200, DIMENSIONS)).astype(np.float32)
    vectors = centres[rng.integers(0, 200, count)]
    np.save(path, vectors + rng.normal(size=vectors.shape).astype(np.float32))


def _columns(count: int) -> Any:
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(1)
    more = {f"number {i}": rng.normal(size=count) for i in range(6)}
    return pl.DataFrame({"kind": rng.choice(list("abcdefghij"), count), "brightness": rng.random(count), **more})


def _build(store: str, vectors: Path, index: Path) -> None:
    import numpy as np

    from manyscope.latent.index import build
    from manyscope.settings.sections import IndexSettings

    read = np.load(vectors, mmap_mode="r")
    index.mkdir()
    build(read, [f"object {row}" for row in range(len(read))], index, IndexSettings(store=store), _columns(len(read)))


def _search(vectors: Path, index: Path, answers: Path) -> None:
    """Disturbed vectors are sought, one by one. The truth is written once beside the vectors, by another process."""
    import numpy as np

    from manyscope.latent.index import open_index

    truth = np.load(vectors.with_name(f"truth-{vectors.name}"), allow_pickle=False)
    queries = np.load(vectors.with_name(f"queries-{vectors.name}"), allow_pickle=False)
    taken: dict[str, list[float]] = {"query": [], "filtered query": []}
    missed = []
    with open_index(index) as opened:
        for number, query in enumerate(queries):
            for name, where in (("query", []), ("filtered query", [_WHERE])):
                if where and number % 10:
                    continue
                start = time.perf_counter()
                found, distances = opened.search(query, 10, where)
                taken[name].append(1000 * (time.perf_counter() - start))
                assert len(found[0]) == 10
                if not where:
                    missed.append(float((distances[0] > truth[number] * (1 + 1e-5)).mean()))
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    answers.write_text(json.dumps({**medians, "missed of 10 nearest": float(np.mean(missed))}))


def _truth(path: Path) -> None:
    import numpy as np

    from manyscope.latent.neighbours import nearest_neighbours

    vectors, rng = np.load(path), np.random.default_rng(2)
    queries = vectors[rng.choice(len(vectors), QUERIES, replace=False)]
    queries = queries + rng.normal(scale=0.3, size=queries.shape).astype(np.float32)
    np.save(path.with_name(f"queries-{path.name}"), queries)
    np.save(path.with_name(f"truth-{path.name}"), nearest_neighbours(vectors, 10, queries)[0][:, -1:])


def _child(step: str, *words: str) -> None:
    if step == "vectors":
        _vectors(Path(words[0]), int(words[1]))
        _truth(Path(words[0]))
    elif step == "build":
        _build(words[0], Path(words[1]), Path(words[2]))
    elif step == "search":
        _search(Path(words[0]), Path(words[1]), Path(words[2]))


if __name__ == "__main__":
    _child(*sys.argv[1:])
