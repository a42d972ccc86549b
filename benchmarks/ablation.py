"""What each choice of the experiment `neutrinos` is worth: the same data and steps, one choice changed at a time."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.measure import RESULTS, THREADS, WORK, Row
from benchmarks.trained import run_stage
from manyscope.tables.metrics import Metric, read_metrics
from manyscope.tables.parquet import read_table
from manyscope.tables.whole import whole_file

_NAME = "neutrinos"
_DEFAULT = "default"
_ARGS, _TRAIN = "model.args", "train"
_STEPS = f"{_TRAIN}.epochs=4.5"  # of all, a little longer than the experiment, which has to end in four CPU minutes
# The default ends with 0.6 of the steps of the first loss; a variant has one loss all along.
VARIANTS: dict[str, tuple[str, ...]] = {
    _DEFAULT: (),
    "seed 1": (f"{_TRAIN}.seed=1",),
    "seed 2": (f"{_TRAIN}.seed=2",),
    "T1 attention": (f"{_ARGS}.t1=attention",),
    "T1 flat": (f"{_ARGS}.t1=flat",),
    "T1 pool, line fit as input": (f"{_ARGS}.line_fit=true",),
    "T1 attention, line fit as input": (f"{_ARGS}.t1=attention", f"{_ARGS}.line_fit=true"),
    "T1 flat, line fit as input": (f"{_ARGS}.t1=flat", f"{_ARGS}.line_fit=true"),
    "vMF loss alone": (f"{_ARGS}.late_loss.vmf=1.0",),
    "angular loss alone": (f"{_ARGS}.loss.angular=1.0", f"{_ARGS}.late_loss.angular=1.0"),
    "space-time interval as bias": (f"{_ARGS}.bias=interval",),
    "AdamW alone": (f"{_TRAIN}.optimizer=adamw", f"{_TRAIN}.optimizer_args={{}}"),
}


def run() -> list[Row]:
    folder = WORK / "ablation"
    for stage in ("download", "preprocess"):
        run_stage(folder / "shared", _NAME, stage)
    with ThreadPoolExecutor(THREADS) as pool:
        judged = dict(zip(VARIANTS, pool.map(lambda name: _judge(folder, name), VARIANTS), strict=True))
    with whole_file(RESULTS / "ablation.md") as partial:
        partial.write_text(_markdown(folder, judged), encoding="utf-8")
    own = {(m.name, m.group): m.value for m in judged[_DEFAULT]}
    wanted = [("mean_angular_error", group) for group in ("all", "track", "cascade")]
    return [
        Row(f"{name}: {metric.name} {metric.group}", metric.value, own[metric.name, metric.group], _DEFAULT, "rad")
        for name, metrics in judged.items()
        for metric in metrics
        if (metric.name, metric.group) in wanted
    ]


def _judge(folder: Path, name: str) -> list[Metric]:
    results = folder / name.replace(" ", "-").replace(",", "")
    shutil.rmtree(results, ignore_errors=True)
    (results / _NAME).mkdir(parents=True)
    (results / _NAME / "prepared").symlink_to(folder / "shared" / _NAME / "prepared")
    for stage in ("train", "infer", "gather", "evaluate"):
        run_stage(results, _NAME, stage, (_STEPS, *VARIANTS[name]) if stage == "train" else VARIANTS[name])
    return read_metrics(results / _NAME / "evaluate" / "metrics.json")[1]


def _markdown(folder: Path, judged: dict[str, list[Metric]]) -> str:
    """A table for docs/benchmarks.md: means in rad with their intervals."""
    lines = [
        "| choice | all | tracks | cascades | all, minus line fit | 68 % cone holds |",
        "|---|---|---|---|---|---|",
    ]
    for name, metrics in judged.items():
        by = {(m.name, m.group): m for m in metrics}
        errors = [by["mean_angular_error", group] for group in ("all", "track", "cascade")]
        cells = [f"{m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" for m in errors]
        cells.append(f"[{errors[0].difference_low:.3f}, {errors[0].difference_high:.3f}]")
        cells.append(f"{by['cone_68_share', 'all'].value:.1%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    fit = {m.group: m.baseline_value for m in judged[_DEFAULT] if m.name == "mean_angular_error"}
    lines.append(f"| line fit | {fit['all']:.3f} | {fit['track']:.3f} | {fit['cascade']:.3f} | – | – |")
    steps = read_table(folder / _DEFAULT / _NAME / "train" / "history.parquet")["step"].max()
    return "\n".join(lines) + f"\n\n{steps} steps each.\n"
