"""Small pictures of events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.scopes.neutrinos.data.prepare import META, SENSORS, SHARDS
from manyscope.scopes.neutrinos.data.shards import CHARGE, FIRST_NS, X_M, Y_M, Z_M, Shard
from manyscope.tables.samples import read_samples
from manyscope.tables.whole import read_json

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 96
_DRAWN = 2 * SIZE  # drawn larger and scaled down, so that edges are smooth
_MARGIN = 0.06  # of the picture, around the detector
_BACKGROUND, _OUTLINE, _ISOLATED = (14, 16, 22), (60, 67, 82), (115, 117, 124)
# Stops of matplotlib's viridis, without its darkest third, which would vanish on a dark ground.
_EARLY_TO_LATE = np.array([
    (65, 68, 135), (49, 104, 142), (38, 130, 142), (31, 158, 137), (53, 183, 121), (110, 206, 88), (181, 222, 43),
    (253, 231, 37),
])  # fmt: skip


def thumbnails(prepared: Path, object_ids: Sequence[str]) -> Iterator[Image | None]:
    """A side view of each event, 96 x 96 RGB; None for an id that is unknown.

    The view is turned about the vertical so that the event is seen at its longest, its light going from left to right.
    Modules that saw light are discs, coloured from early (blue) to late (yellow), larger with the logarithm of their
    charge; isolated ones far from the event are small and grey. The frame is the detector, always on the same scale.
    """
    meta = read_json(prepared / META)
    sizes: list[int] = meta["shards"]
    starts = np.cumsum([0, *sizes])
    shards = [Shard.open(prepared / SHARDS / f"{i:05d}") for i in range(len(sizes))]
    arrays = _Arrays(np.load(prepared / SENSORS, allow_pickle=False), meta["sensors"])
    wanted = pl.DataFrame({"sample_id": list(object_ids)}, schema={"sample_id": pl.String})
    known = read_samples(prepared / "samples.parquet").select("sample_id").with_row_index("row")
    for row in wanted.join(known, on="sample_id", how="left", maintain_order="left")["row"]:
        if row is None:
            yield None
            continue
        number = int(np.searchsorted(starts, row, "right")) - 1
        yield picture(shards[number], int(row - starts[number]), arrays)


class _Arrays:
    """Where modules are, and how large the detectors are that they belong to."""

    def __init__(self, sensors: np.ndarray, sizes: Sequence[int]) -> None:
        self.position = sensors[:, [X_M, Y_M, Z_M]].astype(np.float64)
        self._ends = np.cumsum(sizes)
        parts = np.split(self.position, self._ends[:-1])
        self._middle = [(part.min(0) + part.max(0)) / 2 for part in parts]
        # Seen from any side, the outline depends on the strings alone: a few points instead of all modules.
        self._strings = [np.unique(p[:, :2] - m[:2], axis=0) for p, m in zip(parts, self._middle, strict=True)]
        self._height = [float(np.ptp(part[:, 2])) for part in parts]

    def frame(self, sensor: int, axis: np.ndarray) -> tuple[np.ndarray, float, tuple[float, float], float]:
        """Of the detector of a module: its middle (m), the extent that fits into the picture from any side (m), and its
        own from this side: from where to where along the axis, and half its height."""
        number = int(np.searchsorted(self._ends, sensor, "right"))
        strings, height = self._strings[number], self._height[number]
        along = strings @ axis
        widest = 2 * float(np.linalg.norm(strings, axis=1).max())
        span = max(widest, height, 1.0)
        return self._middle[number], span, (float(along.min()), float(along.max())), height / 2


def picture(shard: Shard, event: int, arrays: _Arrays) -> Image:
    """See `thumbnails`."""
    from PIL import Image as PillowImage
    from PIL import ImageDraw

    modules = slice(shard.module_offsets[event], shard.module_offsets[event + 1])
    light, sensor = shard.modules[modules], shard.sensor[modules]
    shown = max(1, int(shard.shown[event, 1]))
    where, time = arrays.position[sensor], light[:, FIRST_NS].astype(np.float64)
    axis = longest_axis(where[:shown, :2], light[:shown, CHARGE], time[:shown])
    middle, span, (left, right), half_height = arrays.frame(int(sensor[0]), axis)
    scale = _DRAWN * (1 - 2 * _MARGIN) / span
    x = _DRAWN / 2 + scale * ((where[:, :2] - middle[:2]) @ axis)
    y = _DRAWN / 2 - scale * (where[:, 2] - middle[2])
    radius = 2.6 + 2.8 * np.log10(1 + light[:, CHARGE])
    radius[shown:] = 1.4
    boxes = np.stack([x - radius, y - radius, x + radius, y + radius], axis=1).tolist()
    colours = [*map(tuple, _coloured(time[:shown])), *[_ISOLATED] * (len(light) - shown)]

    image = PillowImage.new("RGB", (_DRAWN, _DRAWN), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    half, tall = _DRAWN / 2, scale * half_height
    edges = np.array([half + scale * left, half - tall, half + scale * right, half + tall])
    # On whole pixels of the smaller picture, so that all sides look alike; the right and lower ends count as inside.
    draw.rectangle(tuple(2 * (edges / 2).round().astype(int) + [0, 0, 1, 1]), outline=_OUTLINE, width=2)
    # Isolated modules at the bottom, then coincident ones by falling charge: small discs are not buried.
    for number in (*range(shown, len(light)), *range(shown)):
        draw.ellipse(boxes[number], fill=colours[number])
    return image.resize((SIZE, SIZE), PillowImage.Resampling.BOX)


def longest_axis(where: np.ndarray, weight: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The horizontal unit vector (2,) along which light is spread the most, pointing from early to late.

    Args:
        where: (modules, 2) m, horizontal positions.
        weight: (modules,) above 0.
        time: (modules,) ns.
    """
    share = weight / weight.sum()
    apart = where - share @ where
    xx, yy, xy = share @ apart[:, 0] ** 2, share @ apart[:, 1] ** 2, share @ (apart[:, 0] * apart[:, 1])
    angle = np.arctan2(2 * xy, xx - yy) / 2  # direction of the first principal axis of a 2 x 2 matrix
    axis = np.array([np.cos(angle), np.sin(angle)])
    return axis if (share * (apart @ axis)) @ (time - share @ time) >= 0 else -axis


def _coloured(time: np.ndarray) -> np.ndarray:
    """(modules,) ns -> (modules, 3) int64 in 0 … 255; a few early or late strays do not take all the colours."""
    first, last = np.quantile(time, [0.05, 0.95])
    place = ((time - first) / max(last - first, 1.0)).clip(0, 1) * (len(_EARLY_TO_LATE) - 1)
    stops = np.arange(len(_EARLY_TO_LATE))
    return np.stack([np.interp(place, stops, channel) for channel in _EARLY_TO_LATE.T], axis=1).round().astype(int)
