"""What views, the code of direction and the loss of the overlap are worth on crowded rooms: three trainings of each
choice, with the same rooms, questions and steps."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.measure import RESULTS, THREADS, WORK, Row
from benchmarks.trained import run_stage
from manyscope.tables.whole import whole_file

_NAME = "panoramas_hard"
_DEFAULT = "exact overlap loss"
_SEEDS = (0, 1, 2)
_DRAWS = 1000
# A training is told what it needs to be judged by its test questions, and no more.
_COMMON = ("train.blind.epochs=0.1", "train.tracker=none", "infer.splits=[test]", "gather.outlier_scores=[]")
_NO_LOSS = "train.stages=[resampler, finetune]"
# The faces of the cube have about as many pixels (36,864) and tokens (36) as the default's views (32,768 and 32).
_VIEWS: dict[str, tuple[str, ...]] = {
    "default": (),
    "cubemap": ("preprocess.views.strategy=cubemap", "preprocess.views.size_px=96", "preprocess.views.fov_deg=90"),
}
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    _DEFAULT: ("default", ()),
    "overlap loss by columns": ("default", ("model.overlap.correspondence=columns",)),
    "no overlap loss": ("default", (_NO_LOSS,)),
    "no code of direction": ("default", ("model.projector={position: none, order: sequence}",)),
    "four faces of a cube, no overlap loss": ("cubemap", (_NO_LOSS, "model.projector.parts=3")),
}
TYPES = ("all", "colour", "shape", "count", "exists", "opposite", "left_of", "right_of", "nearer", "seam")


def run() -> list[Row]:
    folder = WORK / "panoramas"
    run_stage(folder / "raw", _NAME, "download")
    for views, changes in _VIEWS.items():
        if views != "default":
            (folder / views / _NAME).mkdir(parents=True, exist_ok=True)
            _link(folder / "raw" / _NAME / "raw", folder / views / _NAME / "raw")
        run_stage(folder / ("raw" if views == "default" else views), _NAME, "preprocess", changes)
    wanted = [(variant, seed) for seed in _SEEDS for variant in VARIANTS]
    with ThreadPoolExecutor(THREADS) as pool:
        answers = dict(zip(wanted, pool.map(lambda one: _answers(folder, *one), wanted), strict=True))
    with whole_file(RESULTS / "panoramas.md") as partial:
        partial.write_text(_markdown(answers), encoding="utf-8")
    wrong = {variant: 1 - np.mean([_share(answers[variant, seed], "all") for seed in _SEEDS]) for variant in VARIANTS}
    return [Row(f"{name}: wrong answers", wrong[name], wrong[_DEFAULT], _DEFAULT, "share") for name in VARIANTS]


def _answers(folder: Path, variant: str, seed: int) -> pl.DataFrame:
    """evaluate/answers.csv of a training."""
    views, changes = VARIANTS[variant]
    results = folder / f"{variant.replace(' ', '-').replace(',', '')}-{seed}"
    table = results / _NAME / "evaluate" / "answers.csv"
    if not table.exists():  # an interrupted benchmark goes on with the trainings that it lacks
        shutil.rmtree(results, ignore_errors=True)
        (results / _NAME).mkdir(parents=True)
        _link(folder / ("raw" if views == "default" else views) / _NAME / "prepared", results / _NAME / "prepared")
        for stage in ("train", "infer", "gather", "evaluate"):
            run_stage(results, _NAME, stage, (*_COMMON, *_VIEWS[views], *changes, f"train.seed={seed}"))
    return pl.read_csv(table)


def _link(file: Path, link: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(file)


def _of(answers: pl.DataFrame, kind: str) -> pl.DataFrame:
    if kind == "seam":
        return answers.filter(pl.col("direction") == "back")
    return answers if kind == "all" else answers.filter(pl.col("type") == kind)


def _share(answers: pl.DataFrame, kind: str) -> float:
    return float(_of(answers, kind)["right"].mean())  # type: ignore[arg-type]


def _markdown(answers: dict[tuple[str, int], pl.DataFrame]) -> str:
    """Exact match of each choice, the mean of the seeds, and its difference to the default: an interval over rooms and
    seeds, paired by question, and the difference of each seed."""
    lines = [
        f"| choice | {' | '.join(TYPES)} | all, minus default | for each seed |",
        "|---" * (len(TYPES) + 3) + "|",
    ]
    for variant in VARIANTS:
        means = [np.mean([_share(answers[variant, seed], kind) for seed in _SEEDS]) for kind in TYPES]
        cells = [f"{mean:.3f}" for mean in means]
        if variant == _DEFAULT:
            cells += ["–", "–"]
        else:
            apart = [_right(answers[variant, seed]) - _right(answers[_DEFAULT, seed]) for seed in _SEEDS]
            low, high = _interval(answers[_DEFAULT, 0], apart)
            cells.append(f"{np.mean(apart):+.3f} [{low:+.3f}, {high:+.3f}]")
            cells.append(", ".join(f"{one.mean():+.3f}" for one in apart))
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _right(answers: pl.DataFrame) -> np.ndarray:
    return answers.sort("sample_id")["right"].cast(pl.Float64).to_numpy()


def _interval(table: pl.DataFrame, apart: list[np.ndarray]) -> tuple[float, float]:
    """95 % of the means of resampled seeds and, in each, resampled rooms."""
    room = table.sort("sample_id")["sample_id"].str.replace("-[0-9a-f]{8}$", "").to_numpy()
    names, member = np.unique(room, return_inverse=True)
    sums = np.stack([np.bincount(member, one, len(names)) for one in apart])
    sizes = np.bincount(member, minlength=len(names))
    rng, drawn = np.random.default_rng(0), []
    for _ in range(_DRAWS):
        seeds, rooms = rng.integers(0, len(apart), len(apart)), rng.integers(0, len(names), len(names))
        drawn.append(sums[seeds][:, rooms].sum() / (len(apart) * sizes[rooms].sum()))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
