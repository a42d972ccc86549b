"""A panorama turned or mirrored: which of its views is which, so that none is rendered or encoded twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manyscope.scopes.panoramas.views.geometry import View, Views

_STEP_DEG = 45.0
_CLOSE_DEG = 1e-6


@dataclass(frozen=True)
class Source:
    """How a view of the changed panorama comes from one of the original.

    Attributes:
        view: of the original.
        mirrored: left to right.
        shift_px: then rolled to the right by so many pixels.
    """

    view: int
    mirrored: bool
    shift_px: int

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """
        Args:
            pixels: of the original, (views, 3, size, size).
        """
        one = pixels[self.view]
        one = one[..., ::-1] if self.mirrored else one
        return np.roll(one, self.shift_px, -1) if self.shift_px else one


@dataclass(frozen=True)
class Variant:
    """A change of a panorama, as `Room.changed` has it.

    Attributes:
        sources: for each view of the changed panorama, its position in `Variants.sources`.
    """

    turn_deg: float
    mirror: bool
    sources: tuple[int, ...]


class Variants:
    """Every change by multiples of 45 degrees, mirrored or not, whose views are views of the original; the first one is
    no change."""

    def __init__(self, views: Views, change: bool) -> None:
        self.sources: list[Source] = []
        self.all: list[Variant] = []
        steps = round(360 / _STEP_DEG) if change else 1
        for mirror in (False, True) if change else (False,):
            for turn in (_STEP_DEG * step for step in range(steps)):
                found = [_source(views, view, turn, mirror) for view in views.views]
                if all(found):
                    self.all.append(Variant(turn, mirror, tuple(self._number(s) for s in found if s)))

    def _number(self, source: Source) -> int:
        if source not in self.sources:
            self.sources.append(source)
        return self.sources.index(source)


def _source(views: Views, view: View, turn: float, mirror: bool) -> Source | None:
    if view.kind == "strip" and view.width_deg == 360:
        shift = turn / 360 * views.size_px
        if abs(shift - round(shift)) > _CLOSE_DEG or view.yaw_deg != 0:
            return None
        return Source(views.views.index(view), mirror, round(shift) % views.size_px)
    wanted = (turn - view.yaw_deg) if mirror else (view.yaw_deg - turn)
    for number, other in enumerate(views.views):
        apart = abs((other.yaw_deg - wanted + 180) % 360 - 180)
        like = (other.kind, other.pitch_deg, other.width_deg, other.height_deg, other.is_global)
        if apart < _CLOSE_DEG and like == (view.kind, view.pitch_deg, view.width_deg, view.height_deg, view.is_global):
            return Source(number, mirror, 0)
    return None
