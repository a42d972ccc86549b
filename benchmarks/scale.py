"""The chain after inference at growing numbers of objects: `python -m benchmarks.scale [--sizes N ...]`.

Embeddings are made up, everything after them is real: the shards that `infer` would have written, then the stages as
commands of their own, so that time and memory are those of one stage. What was measured is kept under
build/benchmarks/scale; a run that was cut short goes on with what is missing, and deleting a stage's file there
measures it again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import OURS, RESULTS, WORK, Command, Row, bytes_in, compile_packages, cost, environment
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.whole import read_json, write_json

# The heavy libraries stay out of this process: a child's peak memory begins at what its parent held.
if TYPE_CHECKING:
    import numpy as np

_SIZES = (10_000, 100_000, 1_000_000)
_DIMENSIONS = 128
_CLUSTERS, _WIDTH = 100, 64  # of the mixture, and how many directions each of its clusters fills
_SPREAD, _NOISE = 0.8, 0.1  # of the centres and in every direction, where a cluster's own directions have 1
_SHARD = 125_000  # objects of a shard
_STAGES = ("shards", "gather", "umap", "index", "search")
_FOLDER = WORK / "scale"
_SEED = 0


@dataclass(frozen=True)
class Measured:
    """One stage at one size.

    Attributes:
        output_mb: what it wrote, in units of 2**20 bytes; 0 for search.
        quality: what the stage says of its own result.
    """

    objects: int
    stage: str
    cpu_s: float
    wall_s: float
    peak_mb: float
    output_mb: float
    quality: dict[str, Any]


def vectors(n: int) -> np.ndarray:
    """Seeded embeddings, (n, 128) float32: overlapping Gaussian clusters.

    The centres lie in 64 of the 128 directions, and each cluster fills 64 directions of its own; there is noise in all
    of them. The nearest neighbours of an object are therefore neither obvious nor a matter of chance. The clusters are
    the same for every n.
    """
    import numpy as np

    mixture, draw = np.random.default_rng(_SEED), np.random.default_rng((_SEED, n))
    axes = mixture.normal(size=(_WIDTH, _DIMENSIONS)) / math.sqrt(_DIMENSIONS)
    centres = _SPREAD * mixture.normal(size=(_CLUSTERS, _WIDTH)) @ axes
    member = draw.integers(0, _CLUSTERS, n)
    made = np.empty((n, _DIMENSIONS), np.float32)
    for cluster in range(_CLUSTERS):
        rows = np.flatnonzero(member == cluster)
        directions = mixture.normal(size=(_WIDTH, _DIMENSIONS)) / math.sqrt(_DIMENSIONS)
        noise = _NOISE * draw.normal(size=(len(rows), _DIMENSIONS))
        made[rows] = centres[cluster] + draw.normal(size=(len(rows), _WIDTH)) @ directions + noise
    return made


def write_shards(n: int) -> None:
    """samples.parquet and the shards of n objects, one for each sample, as preprocess and infer write them."""
    import numpy as np
    import polars as pl

    from manyscope.tables.parquet import write_table
    from manyscope.tables.predictions import Objects, shard_of, shard_table
    from manyscope.tables.samples import check_samples

    paths, embedding = _paths(n), vectors(n)
    ids = np.array([f"object-{row:08d}" for row in range(n)], dtype=object)
    split = np.array(["train"] * 7 + ["validation"] + ["test"] * 2)[np.arange(n) % 10]
    samples = pl.DataFrame({"sample_id": ids.tolist(), "group": ids.tolist(), "split": split.tolist()})
    write_table(paths.samples, check_samples(samples, paths.samples))
    number = shard_of(ids, _shards(n))
    for shard in range(_shards(n)):
        rows = np.flatnonzero(number == shard)
        wanted = ids[rows].tolist()
        batch = Objects.one_each(wanted, embedding[rows], {})
        write_table(paths.shard(shard), *shard_table([batch], wanted, paths.shard(shard)))


def measure(sizes: Sequence[int]) -> list[Measured]:
    """Every stage at every size, small sizes first; what was measured before is read."""
    compile_packages(OURS / "python")
    found = []
    for n in sorted(sizes):
        for stage in _STAGES:
            kept = _FOLDER / "measured" / f"{n}-{stage}.json"
            if not kept.exists():
                write_json(kept, asdict(_measure(n, stage)))
            found.append(Measured(**read_json(kept)))
            print(_line(found[-1]), flush=True)
    return found


def _measure(n: int, stage: str) -> Measured:
    paths = _paths(n)
    stage_of: list[str | Path] = [OURS / "manyscope", stage, "--experiment", paths.experiment]
    stage_of += ["--results", paths.root.parent]
    settings = ["--settings", json.dumps({"scope": "galaxies"})]  # all sections at their defaults
    commands: dict[str, Command] = {
        "shards": [OURS / "python", "-m", "benchmarks.scale", "--write", str(n)],
        "gather": [*stage_of, *settings, "--shards", str(_shards(n))],
        "umap": [*stage_of, *settings],
        "index": [*stage_of, *settings],
        "search": [*stage_of, "--id", "object-00000000"],
    }
    one_thread = dict.fromkeys([f"{name}_NUM_THREADS" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA")], "1")
    taken = cost(commands[stage], environment(**one_thread), _FOLDER / "logs" / f"{n}-{stage}.log")
    written: dict[str, int] = {"gather": 0, "search": 0}
    if stage == "shards":
        written["shards"] = sum(paths.shard(shard).stat().st_size for shard in range(_shards(n)))
    elif stage == "gather":
        written["gather"] = paths.predictions.stat().st_size
    elif stage in ("umap", "index"):
        written[stage] = bytes_in(paths.root / stage)
    quality = {"umap": paths.map_quality, "index": paths.audit}
    return Measured(
        n, stage, round(taken.cpu_s, 2), round(taken.wall_s, 2), round(taken.peak_mb), round(written[stage] / 2**20, 1),
        read_json(quality[stage]) if stage in quality else {},
    )  # fmt: skip


def growth(found: Sequence[Measured], stage: str, what: str) -> float | None:
    """Exponent of n between the two largest sizes."""
    last = [(m.objects, getattr(m, what)) for m in found if m.stage == stage][-2:]
    if len(last) < 2 or not (last[0][1] and last[1][1]):
        return None
    (n, before), (more, after) = last
    return math.log(after / before) / math.log(more / n)


def run(sizes: Sequence[int] = _SIZES) -> list[Row]:
    """Also writes results/benchmarks/scale.md, the tables of the page on scaling."""
    found = measure(sizes)
    lines = [
        "| objects | stage | CPU s | wall s | CPU µs / object | peak MiB | written MiB | quality |",
        "|---:|---|---:|---:|---:|---:|---:|---|",
        *(
            f"| {m.objects:,} | {m.stage} | {m.cpu_s:,.1f} | {m.wall_s:,.1f} | {1e6 * m.cpu_s / m.objects:,.0f} |"
            f" {m.peak_mb:,.0f} | {m.output_mb:,.1f} | {_quality(m)} |"
            for m in found
        ),
        "",
        "| stage | CPU grows with n to the | peak memory with n to the |",
        "|---|---:|---:|",
    ]
    for stage in _STAGES:
        exponents = [growth(found, stage, what) for what in ("cpu_s", "peak_mb")]
        lines.append(f"| {stage} | {' | '.join('-' if e is None else f'{e:.2f}' for e in exponents)} |")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "scale.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = []
    for m in found:
        name = f"{m.stage}, {m.objects:,} objects"
        rows += [Row(name, m.cpu_s, None, None, "CPU s"), Row(name, m.peak_mb, None, None, "MiB at the peak")]
        if m.stage == "index":
            rows.append(Row(f"{name}: 1 - recall@10", 1 - m.quality["recall_at_10"], None, None, "1"))
        if m.stage == "umap":
            rows.append(Row(f"{name}: 1 - trustworthiness", 1 - m.quality["trustworthiness"], None, None, "1"))
    return rows


def _line(m: Measured) -> str:
    return (
        f"{m.objects:>11,} {m.stage:<7} {m.cpu_s:>9,.1f} CPU s {m.wall_s:>9,.1f} s {m.peak_mb:>7,.0f} MiB"
        f" {m.output_mb:>8,.1f} MiB written  {_quality(m)}"
    )


def _quality(m: Measured) -> str:
    if m.stage == "umap":
        return f"trustworthiness {m.quality['trustworthiness']:.3f}"
    if m.stage == "index":
        low, high = m.quality["recall_at_10_interval"]
        recall, p50 = m.quality["recall_at_10"], m.quality["query_p50_ms"]
        return f"recall@10 {recall:.4f} [{low:.4f}, {high:.4f}], query {p50:.2f} ms"
    return ""


def _paths(n: int) -> ExperimentPaths:
    return ExperimentPaths.of(_FOLDER / "results", f"objects_{n}")


def _shards(n: int) -> int:
    return max(1, -(-n // _SHARD))


def main(arguments: Sequence[str]) -> int:
    from benchmarks.measure import table, write_rows

    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=_SIZES, metavar="N", help="numbers of objects")
    parser.add_argument("--write", type=int, metavar="N", help="only write the made-up shards of so many objects")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        write_shards(chosen.write)
        return 0
    rows = run(chosen.sizes)
    write_rows("scale", rows)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
