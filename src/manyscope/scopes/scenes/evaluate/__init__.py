"""How near the rendered frames and layers come to those of the clip, beside simple ways to the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.evaluation.bootstrap import Score, compare
from manyscope.log import logger, progress
from manyscope.scopes.base import Evaluation
from manyscope.scopes.scenes.evaluate import baselines, figures
from manyscope.scopes.scenes.evaluate.baselines import Placed
from manyscope.scopes.scenes.evaluate.judge import MODEL, Judge
from manyscope.scopes.scenes.evaluate.quality import LEAST_LPIPS_PX, Likeness, lpips, ms_ssim
from manyscope.scopes.scenes.evaluate.rendered import AGAIN, Rendered
from manyscope.scopes.scenes.files import BACKGROUND
from manyscope.tables.metrics import Metric

if TYPE_CHECKING:
    from manyscope.scopes.scenes.data.clip import Clip
    from manyscope.scopes.scenes.settings import ScenesEvaluate

HEADLINE = "psnr"
FEWEST = 5  # held-out frames, below which a reader is warned of the intervals

TEST, TRAIN, VALIDATION = "test", "train", "validation"
GROUPS = {TRAIN: "trained", TEST: "held_out", VALIDATION: "validation"}
# Unit, and whether more is better.
METRICS = {
    "psnr": ("dB", True),
    "ssim": ("", True),
    "ms_ssim": ("", True),
    "lpips": ("", False),
    "alpha_iou": ("", True),
    "alpha_mae": ("", False),
    "pose_error": ("px", False),
    "edit_psnr": ("dB", True),
}


def evaluate(
    settings: ScenesEvaluate, clip: Clip, files: Path, samples: pl.DataFrame, predictions: pl.DataFrame, placed: Placed
) -> Evaluation:
    """Judge the renderings of a clip. Every metric is a mean over frames, from 8-bit pictures of the clip's size; its
    interval is that of other frames of this clip, not of other clips.

    Whole frames are judged in the groups trained and held_out, all else on the held-out frames of the split test;
    those of the split validation chose the weights, and are judged in no metric:

    - psnr, ssim, and ms_ssim or lpips of whole frames; psnr also of the pixels under each object's mask (its name),
      and with a truth of the background where objects hide it and a training frame shows it (occluded_background) or
      none does (never_seen), and of each object alone where it is solid (its name with _colour);
    - alpha_iou of each object in the frames where it is, and the mean of those objects (all): beside the true opacity,
      or else beside the mask where no other object's is;
    - with a truth: alpha_mae, over all pixels; pose_error of the corners of an object's bounding box in its reference
      frame; edit_psnr of the frame without each object where it was (remove) and of painted ones (paint), means of the
      objects.

    Args:
        files: folder of the stage infer.
        samples: the samples of `clip`.
        predictions: see `Rendered`.
        placed: (position, without=None) -> (frame, background), (h, w, 3) uint8 each, of the scene as the training
            found it; the frame without an object if one is named.

    Raises:
        DataError: no held-out frame was rendered, pictures are missing, broken or of another size, or the frames are
            too small for LPIPS.
        CheckpointError: the weights for LPIPS cannot be used.
    """
    likeness = _likeness(settings, clip.size)
    rendered = Rendered(files, clip, predictions)
    positions = {split: _rendered(samples, split, rendered, files) for split in GROUPS}
    if len(positions[TEST]) < FEWEST:
        logger.warning("the intervals are from %d held-out frames only: they say little", len(positions[TEST]))
    judge = Judge(clip, rendered, baselines.by_name(settings.baselines, clip, placed), likeness)
    split_of = {position: split for split in GROUPS for position in positions[split]}
    for position in progress(sorted(split_of), "judge the frames", len(split_of)):
        judge.whole(position, GROUPS[split_of[position]])
        if split_of[position] == TEST:
            judge.objects(position)
            judge.layers(position)

    drawn, captions = figures.draw(settings.shown, clip, rendered, positions[TEST], _curves(judge))
    tables = {"per_frame.csv": _per_frame(judge, samples)}
    videos = _videos(rendered, (BACKGROUND, *clip.objects), sorted(split_of), settings.video_fps)
    return Evaluation(HEADLINE, list(_metrics(settings, judge)), drawn, captions, tables, videos)


def _likeness(settings: ScenesEvaluate, size: tuple[int, int]) -> dict[str, Likeness]:
    if settings.lpips_weights is None:
        return {"ms_ssim": ms_ssim}
    if min(size) < LEAST_LPIPS_PX:
        raise DataError(
            f"frames of {size[0]} x {size[1]} pixels are too small for LPIPS",
            place="evaluate.lpips_weights",
            allowed=f"null, or frames whose shorter edge has {LEAST_LPIPS_PX} pixels or more",
            remedy="set it to null, for MS-SSIM instead",
        )
    return {"lpips": lpips(settings.lpips_weights)}


def _rendered(samples: pl.DataFrame, split: str, rendered: Rendered, files: Path) -> list[int]:
    """Positions of the split's frames; none if infer left the split out."""
    positions = np.flatnonzero((samples["split"] == split).to_numpy()).tolist()
    missing = [position for position in positions if position not in rendered]
    if split == TEST and len(missing) == len(positions):
        raise DataError(
            "no held-out frame was rendered", place=files, remedy=f"add 'test' to infer.splits, then {AGAIN}"
        )
    if missing and len(missing) < len(positions):
        raise DataError(f"sample {samples['sample_id'][missing[0]]!r} was not rendered", place=files, remedy=AGAIN)
    return [] if missing else positions


def _metrics(settings: ScenesEvaluate, judge: Judge) -> Iterator[Metric]:
    for name, (unit, higher_is_better) in METRICS.items():
        for (metric, group), methods in judge.found.items():
            if metric != name or group == GROUPS[VALIDATION]:
                continue
            own, *others = (np.array(list(values.values())) for values in methods.values())
            names = [method for method in methods if method != MODEL]
            yield from compare(
                name,
                group,
                unit=unit,
                higher_is_better=higher_is_better,
                n=len(own),
                model=_mean(own),
                baselines={method: _mean(values) for method, values in zip(names, others, strict=True)},
                draws=settings.bootstrap_draws,
                seed=settings.seed,
            )


def _mean(values: np.ndarray) -> Score:
    return lambda rows: float(values[rows].mean())


def _curves(judge: Judge) -> dict[str, dict[int, float]]:
    """method -> position -> PSNR, of all frames that were rendered."""
    curves: dict[str, dict[int, float]] = {}
    for group in GROUPS.values():
        for method, values in judge.found.get((HEADLINE, group), {}).items():
            curves.setdefault(method, {}).update(values)
    return curves


def _per_frame(judge: Judge, samples: pl.DataFrame) -> pl.DataFrame:
    """Scores of whole frames: a row for each frame and method, a column for each metric."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for (metric, group), methods in judge.found.items():
        if group in GROUPS.values():
            for method, values in methods.items():
                for position, value in values.items():
                    rows.setdefault((position, method), {})[metric] = value
    about = samples.select("sample_id", "split").rows(named=True)
    return pl.DataFrame(
        [{**about[position], "method": method, **row} for (position, method), row in sorted(rows.items())]
    )


def _videos(
    rendered: Rendered, layers: Sequence[str], positions: Sequence[int], fps: float
) -> dict[str, Callable[[Path], None]]:
    """The rendered frames one after the other, as a video and as a moving picture, and each layer alone as a video."""
    from manyscope.scopes.scenes.data.video import write_mp4, write_webp

    def write_layer(layer: str, path: Path) -> None:
        pictures = (figures.on_checkerboard(rendered.layer(position, layer)) for position in positions)
        write_mp4(path, pictures, fps)

    return {
        "scene.mp4": lambda path: write_mp4(path, map(rendered.frame, positions), fps),
        "scene.webp": lambda path: write_webp(path, map(rendered.frame, positions), fps),
        **{f"{layer}.mp4": partial(write_layer, layer) for layer in layers},
    }
