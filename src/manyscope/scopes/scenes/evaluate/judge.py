"""Scores of a clip's frames one by one, of the model and of each baseline on the same pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from manyscope.scopes.scenes.data.clip import HALF, Clip
from manyscope.scopes.scenes.evaluate.baselines import NEAREST_FRAME, Baseline, NearestFrame
from manyscope.scopes.scenes.evaluate.quality import Likeness, iou, mean_difference, psnr, ssim
from manyscope.scopes.scenes.evaluate.rendered import Rendered
from manyscope.scopes.scenes.evaluate.truth import SOLID, TrueScene, homography, transform
from manyscope.scopes.scenes.files import BACKGROUND

MODEL = "model"

Scores = Mapping[str, float]  # method -> value, NaN where the frame shows nothing of what is judged


class Judge:
    """
    Args:
        likeness: name -> a further comparison of whole frames.

    Attributes:
        found: (metric, group) -> method -> position of a frame -> value; no frames in which there was nothing to judge.
    """

    def __init__(
        self, clip: Clip, rendered: Rendered, baselines: Mapping[str, Baseline], likeness: Mapping[str, Likeness]
    ) -> None:
        self._clip, self._rendered, self._baselines = clip, rendered, baselines
        self._of_frames: Mapping[str, Likeness] = {"psnr": psnr, "ssim": ssim, **likeness}
        self._truth = TrueScene(clip.truth, clip.train_rows) if clip.truth else None
        # Masks and places of objects can be had of the baseline that is a frame of the clip, and of no other.
        nearest = baselines.get(NEAREST_FRAME)
        self._nearest = nearest if isinstance(nearest, NearestFrame) else None
        self.found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}

    def whole(self, position: int, group: str) -> None:
        """Judge the whole frame, as one of a group."""
        truth, pictures = self._clip.frames[position], self._frames(position)
        for name, likeness in self._of_frames.items():
            self._add(name, group, position, {who: likeness(picture, truth) for who, picture in pictures.items()})

    def objects(self, position: int) -> None:
        """Judge what the frame shows of each object, and the opacities."""
        truth, pictures = self._clip.frames[position], self._frames(position)
        overlaps = []
        for number, name in enumerate(self._clip.objects):
            own = self._clip.masks[position, number] >= HALF
            self._add("psnr", name, position, {who: psnr(picture, truth, own) for who, picture in pictures.items()})
            alphas = {MODEL: self._rendered.layer(position, name)[..., 3]}
            if self._nearest:
                alphas[NEAREST_FRAME] = self._nearest.mask(position, number)
            right, where = self._right(position, number)
            overlaps.append({who: iou(alpha, right, where) for who, alpha in alphas.items()})
            self._add("alpha_iou", name, position, overlaps[-1])
            if self._truth:
                self._add("alpha_mae", name, position, {who: mean_difference(a, right) for who, a in alphas.items()})
        self._add("alpha_iou", "all", position, _mean(overlaps))

    def layers(self, position: int) -> None:
        """Judge what is behind the objects, what they look like alone, where they are, and the edits, where the truth
        of all this is known."""
        if self._truth is None:
            return
        truth = self._truth
        hidden = truth.hidden(position)
        seen = truth.seen(position, None, hidden)
        pictures = {MODEL: self._rendered.layer(position, BACKGROUND)[..., :3]}
        pictures |= {name: baseline.background(position) for name, baseline in self._baselines.items()}
        for group, where in (("occluded_background", seen), ("never_seen", hidden & ~seen)):
            right = truth.background(position)
            self._add("psnr", group, position, {who: psnr(picture, right, where) for who, picture in pictures.items()})
        edits: dict[str, list[Scores]] = {"remove": [], "paint": []}
        for number, name in enumerate(self._clip.objects):
            colour, solid = self._rendered.layer(position, name)[..., :3], truth.alpha(position, number) >= SOLID
            self._add("psnr", f"{name}_colour", position, {MODEL: psnr(colour, truth.colour(position, number), solid)})
            self._add("pose_error", name, position, self._pose(truth, position, number))
            if self._rendered.has_edit("remove", name):
                edits["remove"].append(self._removed(truth, position, number))
            if self._rendered.has_edit("paint", name):
                edits["paint"].append(self._painted(truth, position, number))
        for edit, scores in edits.items():
            self._add("edit_psnr", edit, position, _mean(scores))

    def _add(self, metric: str, group: str, position: int, scores: Scores) -> None:
        if scores and np.isfinite(scores[MODEL]):
            methods = self.found.setdefault((metric, group), {})
            for method, value in scores.items():
                methods.setdefault(method, {})[position] = value

    def _frames(self, position: int) -> dict[str, np.ndarray]:
        own = {MODEL: self._rendered.frame(position)}
        return own | {name: baseline.frame(position) for name, baseline in self._baselines.items()}

    def _right(self, position: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The opacity that an object should have, (h, w) uint8, and where that is known, (h, w) bool: where there is
        no truth, a mask says nothing of what another object hides."""
        if self._truth:
            alpha = self._truth.alpha(position, number)
            return alpha, np.ones(alpha.shape, bool)
        masks = self._clip.masks[position]
        return masks[number], ~(np.delete(masks, number, 0) >= HALF).any(0)

    def _pose(self, truth: TrueScene, position: int, number: int) -> Scores:
        """Mean distance, in pixels, of the corners of the object's bounding box in its reference frame, taken to this
        frame, from where they truly are in it."""
        name, reference = self._clip.objects[number], int(self._clip.placement.object_reference[number])
        start, end = (self._rendered.corners(p, name) for p in (reference, position))
        box = _box(truth.alpha(reference, number) >= HALF)
        if start is None or end is None or box is None or not (truth.alpha(position, number) >= HALF).any():
            return {}
        right = transform(truth.moved(number, reference, position), box)
        errors = {MODEL: _distance(transform(homography(start, end), box), right)}
        if self._nearest:
            there = transform(truth.moved(number, reference, self._nearest.position(position)), box)
            errors[NEAREST_FRAME] = _distance(there, right)
        return errors

    def _removed(self, truth: TrueScene, position: int, number: int) -> Scores:
        right, where = truth.without(position, number)
        pictures = {MODEL: self._rendered.edited(position, "remove", self._clip.objects[number])}
        if where.any():  # else baselines would be rendered for nothing
            pictures |= {name: baseline.without(position, number) for name, baseline in self._baselines.items()}
        return {who: psnr(picture, right, where) for who, picture in pictures.items()}

    def _painted(self, truth: TrueScene, position: int, number: int) -> Scores:
        from manyscope.scopes.scenes.edits import checker

        reference = int(self._clip.placement.object_reference[number])
        right, where = truth.painted(position, number, checker(*self._clip.size), reference)
        return {MODEL: psnr(self._rendered.edited(position, "paint", self._clip.objects[number]), right, where)}


def _mean(scores: Sequence[Scores]) -> Scores:
    """Of those that have a value."""
    judged = [score for score in scores if np.isfinite(score[MODEL])]
    return {who: float(np.mean([score[who] for score in judged])) for who in judged[0]} if judged else {}


def _box(inside: np.ndarray) -> np.ndarray | None:
    """Corners of the bounding box, (4, 2) in pixels; None if there is nothing in it."""
    if not inside.any():
        return None
    (top, bottom), (left, right) = (np.flatnonzero(inside.any(axis))[[0, -1]] + (0, 1) for axis in (1, 0))
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def _distance(places: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(places - right, axis=1).mean())
