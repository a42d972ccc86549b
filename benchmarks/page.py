"""The page that stands alone beside plotly's own HTML file of the same points.

Each side builds its file in a process of its own, in turns; what is counted is the building, from arrays in memory to
the file on disk, without imports.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from benchmarks.measure import ROOT, WORK, Row, environment

if TYPE_CHECKING:
    from PIL.Image import Image

    from manyscope.explorer.contents import Contents

_SIZES = (20_000, 200_000)
_PICTURES, _PICTURE_PX = 5_000, 96
_NEIGHBOURS, _DIMENSIONS = 10, 64
_TIMES = 3
_PEERS = {
    "points": "plotly write_html, points and one colour",
    "columns": "plotly write_html, all columns in customdata",
}


def run() -> list[Row]:
    rows = []
    for n in _SIZES:
        turns = [{side: _measured(side, n) for side in ("ours", "bare", *_PEERS)} for _ in range(_TIMES)]
        found = {
            side: {what: statistics.median(turn[side][what] for turn in turns) for what in turns[0][side]}
            for side in turns[0]
        }
        for what, words, unit in (
            ("bytes", "size", "bytes"),
            ("cpu_s", "building", "CPU s"),
            ("peak_mb", "memory", "MB"),
        ):
            for side, peer in (("ours", "points"), ("ours", "columns"), ("bare", "columns")):
                name = f"{words}, {n:,} objects" + (", no pictures and neighbours" if side == "bare" else "")
                rows.append(Row(name, found[side][what], found[peer][what], _PEERS[peer], unit))
        near = _measured("neighbours", n)["cpu_s"]
        rows.append(Row(f"{_NEIGHBOURS} neighbours of {n:,} objects", near, None, None, "CPU s"))
    return rows


def _measured(side: str, n: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.page", side, str(n)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def _contents(n: int) -> Contents:
    """Clusters on a map, and twelve columns: eight numbers, three categories, a caption."""
    from manyscope.explorer.contents import Contents, plain_columns

    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 20, n)
    middle = rng.normal(scale=8, size=(20, 2))
    numbers = {f"number_{i}": rng.lognormal(size=n) for i in range(8)}
    categories = {f"category_{i}": (cluster * 7 + i * 3) % 11 for i in range(2)}
    words = {"split": np.array(["train", "validation", "test"])[rng.integers(0, 3, n)], "caption": _captions(rng, n)}
    table = pl.DataFrame({**numbers, **categories, **words})
    return Contents(
        experiment="benchmark",
        scope="none",
        title="Benchmark",
        object_ids=[f"object-{row:07d}" for row in range(n)],
        coordinates=(middle[cluster] + rng.normal(size=(n, 2))).astype(np.float32),
        columns=plain_columns(table),
    )


def _captions(rng: np.random.Generator, n: int) -> list[str]:
    words = np.array(
        ["a", "small", "large", "red", "blue", "round", "flat", "bright", "galaxy", "cell", "room", "event"]
    )
    return [" ".join(some) for some in words[rng.integers(0, len(words), (n, 6))]]


def _pictures(n: int) -> Iterator[tuple[int, Image]]:
    from PIL import Image

    rng = np.random.default_rng(1)
    y, x = np.mgrid[:_PICTURE_PX, :_PICTURE_PX] / _PICTURE_PX - 0.5
    for row in np.linspace(0, n - 1, _PICTURES).astype(int).tolist():
        a, b = rng.uniform(4, 30, 2)
        light = np.exp(-((a * x) ** 2) - (b * y) ** 2)[..., None] * rng.uniform(80, 255, 3)
        noise = rng.normal(8, 4, (_PICTURE_PX, _PICTURE_PX, 1))
        yield row, Image.fromarray((light + noise).clip(0, 255).astype(np.uint8))


def _ours(n: int, file: Path, k: int, pictures: Iterable[tuple[int, Image]]) -> None:
    from manyscope.explorer.page import Page, write_page

    rng = np.random.default_rng(2)
    near = rng.integers(0, n, (n, k))
    far = np.sort(rng.lognormal(size=(n, k)), axis=1)
    page = Page(_contents(n), near, far, pictures)
    _timed(lambda: write_page(file, page), file)


def _peer(n: int, file: Path, with_columns: bool) -> None:
    from plotly import graph_objects

    contents = _contents(n)
    x, y = contents.coordinates.T
    colour = contents.columns[0].values
    columns = [
        np.array(column.levels)[np.asarray(column.values)] if column.kind == "category" else column.values
        for column in contents.columns
    ]

    def build() -> None:
        points = {"x": x, "y": y, "mode": "markers", "marker": {"color": colour}}
        more = {"customdata": np.array([contents.object_ids, *columns], object).T} if with_columns else {}
        graph_objects.Figure(graph_objects.Scattergl(**points, **more)).write_html(file, include_plotlyjs=True)

    _timed(build, file)


def _near(n: int) -> None:
    from manyscope.latent.cells import Cells

    vectors = np.random.default_rng(3).normal(size=(n, _DIMENSIONS)).astype(np.float32)
    start = time.process_time()
    Cells(vectors, "l2", 0).neighbours(_NEIGHBOURS)
    print(json.dumps({"cpu_s": time.process_time() - start}))


def _timed(build: Callable[[], None], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    build()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(json.dumps({"cpu_s": seconds, "bytes": file.stat().st_size, "peak_mb": peak}))


def main(side: str, n: int) -> None:
    file = WORK / "page" / f"{side}-{n}.html"
    if side == "neighbours":
        _near(n)
    elif side in ("ours", "bare"):
        _ours(n, file, *((_NEIGHBOURS, _pictures(n)) if side == "ours" else (0, ())))
    else:
        _peer(n, file, with_columns=side == "columns")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
