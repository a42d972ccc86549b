"""Eight views of a panorama beside py360convert, which interpolates with SciPy, or with OpenCV where that is installed.

1024 x 2048 px, views of 90 degrees all around the horizon, CPU milliseconds of one thread, in turns, the median. Each
side keeps where its pixels look, as it does between the pictures of a data set: py360convert for its last eight views.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from types import ModuleType
from unittest.mock import patch

import cv2
import numpy as np
import py360convert

from benchmarks.measure import Row, side_by_side
from manyscope.scopes.panoramas.settings import ViewSettings
from manyscope.scopes.panoramas.views.geometry import Views
from manyscope.scopes.panoramas.views.render import Renderer
from manyscope.scopes.panoramas.views.strategies import find_views

_HEIGHT, _SIZES, _TIMES = 1024, (224, 336), 15
_SCIPY, _OPENCV = "py360convert with SciPy", "py360convert with OpenCV"
_UNIT = "CPU ms"
_AGREE = 2  # of 255


def run() -> list[Row]:
    cv2.setNumThreads(1)
    panorama = _panorama()
    scipy = _without_opencv()
    rows = []
    for size in _SIZES:
        settings = ViewSettings(size_px=size, pixels="borders", antialias=False)
        views = find_views(settings)
        ours = Renderer(views, settings)
        averaged = Renderer(views, settings.model_copy(update={"antialias": True}))
        differ = int(np.abs(ours(panorama).astype(int) - _drawn(scipy, panorama, views)).max())
        if differ > _AGREE:
            raise RuntimeError(f"{_SCIPY}: views of {size} px differ by {differ} of 255")
        found = side_by_side(
            _TIMES,
            ours=_cpu_ms(lambda ours=ours: ours(panorama)),
            averaged=_cpu_ms(lambda averaged=averaged: averaged(panorama)),
            scipy=_cpu_ms(lambda views=views: _drawn(scipy, panorama, views)),
            opencv=_cpu_ms(lambda views=views: _drawn(py360convert, panorama, views)),
        )
        what = f"{len(views)} views of {size} px"
        rows += [
            Row(f"{what}, beside SciPy", found["ours"], found["scipy"], _SCIPY, _UNIT),
            Row(f"{what}, beside OpenCV", found["ours"], found["opencv"], _OPENCV, _UNIT),
            Row(f"{what}, antialiased", found["averaged"], None, None, _UNIT),
        ]
    return rows


def _panorama() -> np.ndarray:
    """Fine noise over coarse patches, (H, 2H, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 220, (_HEIGHT // 64, _HEIGHT // 32, 3)).repeat(64, 0).repeat(64, 1)
    return (coarse + rng.integers(-20, 21, (_HEIGHT, 2 * _HEIGHT, 3))).astype(np.uint8)


def _without_opencv() -> ModuleType:
    """py360convert as it is where OpenCV is not installed, with a cache of its own."""
    own = [name for name in sys.modules if name.split(".")[0] == "py360convert"]
    with patch.dict(sys.modules, {"cv2": None}):
        for name in own:
            del sys.modules[name]
        return importlib.import_module("py360convert")


def _drawn(peer: ModuleType, panorama: np.ndarray, views: Views) -> np.ndarray:
    size = views.size_px
    return np.stack([
        peer.e2p(panorama, (view.width_deg, view.height_deg), view.yaw_deg, view.pitch_deg, (size, size))
        for view in views.views
    ]).transpose(0, 3, 1, 2)  # fmt: skip


def _cpu_ms(work: Callable[[], object]) -> Callable[[], float]:
    def measured() -> float:
        start = time.process_time()
        work()
        return (time.process_time() - start) * 1000

    return measured
