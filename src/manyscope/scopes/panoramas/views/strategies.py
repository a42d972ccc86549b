"""Which views a panorama is cut into.

A strategy is a callable ViewSettings -> tuple of View, found by name or import path.
"""

from __future__ import annotations

import math

from manyscope.errors import SettingsError
from manyscope.registry import Registry
from manyscope.scopes.panoramas.settings import ViewSettings
from manyscope.scopes.panoramas.views.geometry import View, Views

_PLACE = "preprocess.views"
_HERE = "manyscope.scopes.panoramas.views.strategies"
_NAMES = ("resize", "sliding_window", "e2p", "cubemap", "anyres", "anyres_max", "anyres_e2p")

_WHOLE = View("strip", 0.0, 0.0, 360.0, 180.0, is_global=True)
_ROUNDING = 1e-9  # of whole numbers of steps

STRATEGIES = Registry("strategy of views", {name: f"{_HERE}:{name}" for name in _NAMES})


def find_views(settings: ViewSettings) -> Views:
    """The views that the settings ask for.

    Raises:
        ManyscopeError: no strategy has this name.
        SettingsError: the strategy cannot do what the settings say, or what it gave are no views, or the renderer
            cannot draw them.
    """
    found = STRATEGIES.build(settings.strategy, settings, place=_PLACE)
    if not (isinstance(found, tuple) and found and all(isinstance(view, View) for view in found)):
        raise SettingsError(f"{_PLACE}.strategy: {settings.strategy!r} gave {found!r:.60}; allowed: a tuple of views")
    for view in found:
        most_deg = (360, 180) if view.kind == "strip" else (math.nextafter(180, 0),) * 2
        for field, value, most in zip(("width", "height"), (view.width_deg, view.height_deg), most_deg, strict=True):
            if not 0 < value <= most:
                raise SettingsError(
                    f"{_PLACE}.strategy: {settings.strategy!r} gave a {view.kind} of {field} {value} degrees;"
                    f" allowed: above 0, {'at most 360 x 180' if view.kind == 'strip' else 'below 180'}"
                )
    refuse_strips(found, settings)
    return Views(found, settings.size_px, settings.pixels)


def refuse_strips(views: tuple[View, ...], settings: ViewSettings) -> None:
    """
    Raises:
        SettingsError: py360convert is to draw views that are not in perspective.
    """
    strips = [number for number, view in enumerate(views) if view.kind == "strip"]
    if settings.renderer == "py360convert" and strips:
        raise SettingsError(
            f"{_PLACE}.renderer: py360convert draws views in perspective alone, and of strategy {settings.strategy!r}"
            f" {len(strips)} of {len(views)} are not, the first is view {strips[0]}; allowed with it: e2p, cubemap; or"
            " set renderer: exact"
        )


def resize(settings: ViewSettings) -> tuple[View, ...]:
    """The whole panorama as one square."""
    return (View("strip", 0.0, 0.0, 360.0, 180.0),)


def sliding_window(settings: ViewSettings) -> tuple[View, ...]:
    """Rectangles of the panorama all around, without a twelfth of the rows above and below."""
    return tuple(View("strip", yaw, 0.0, settings.fov_deg, 150.0) for yaw in _around(_step(settings)))


def e2p(settings: ViewSettings) -> tuple[View, ...]:
    """Views in perspective all around."""
    return tuple(_kept(settings, yaw, settings.pitch_deg) for yaw in _around(_step(settings)))


def cubemap(settings: ViewSettings) -> tuple[View, ...]:
    """The four faces of a cube around the horizon: front, right, back, left.

    Raises:
        SettingsError: the field of view is not that of a face.
    """
    if settings.fov_deg != 90:
        raise SettingsError(
            f"{_PLACE}.fov_deg: {settings.fov_deg:g} is no face of a cube; allowed with cubemap: 90;"
            " or set strategy: e2p"
        )
    return tuple(View("perspective", yaw, 0.0, 90.0, 90.0) for yaw in _around(90.0))


def anyres(settings: ViewSettings) -> tuple[View, ...]:
    """The whole panorama, up to six rectangles of its middle half, as many of full height, the rest in perspective."""
    columns = min(6, settings.most_patches // 2)
    strips = [View("strip", yaw, 0.0, 360 / columns, height) for height in (90.0, 180.0) for yaw in _evenly(columns)]
    return (_WHOLE, *strips, *_rest(settings, settings.most_patches - len(strips)))


def anyres_max(settings: ViewSettings) -> tuple[View, ...]:
    """The whole panorama, a grid of its rectangles, up to six by three, the rest in perspective."""
    columns = min(6, settings.most_patches // 2)
    rows = min(3, settings.most_patches // columns) if columns else 0
    strips = [
        View("strip", yaw, 90 - (row + 0.5) * 180 / rows, 360 / columns, 180 / rows)
        for row in range(rows)
        for yaw in _evenly(columns)
    ]
    return (_WHOLE, *strips, *_rest(settings, settings.most_patches - len(strips)))


def anyres_e2p(settings: ViewSettings) -> tuple[View, ...]:
    """The whole panorama, and views in perspective: rows of pitch upwards, each all around.

    Raises:
        SettingsError: the range of pitch is narrower than a view.
    """
    fov, step, low, high = settings.fov_deg, _step(settings), settings.pitch_min_deg, settings.pitch_max_deg
    if low == high:
        pitches = [low]
    elif high - low < fov - _ROUNDING:
        raise SettingsError(
            f"{_PLACE}: pitch_min_deg {low:g} to pitch_max_deg {high:g} is narrower than fov_deg {fov:g};"
            f" allowed: {fov:g} degrees or more, or both the same for a row of views at that pitch"
        )
    else:
        pitches = _between(low + fov / 2, high - fov / 2, step)
    yaws = _around(step) if settings.closed else _between(-180 + fov / 2, 180 - fov / 2, step)
    return (_WHOLE, *(View("perspective", yaw, pitch, fov, fov) for pitch in pitches for yaw in yaws))


def _step(settings: ViewSettings) -> float:
    return settings.fov_deg * (1 - settings.overlap)


def _around(step_deg: float) -> list[float]:
    """Yaws all around with steps that are equal and at most `step_deg`; the first is 0."""
    return _evenly(max(1, math.ceil(360 / step_deg - _ROUNDING)))


def _evenly(number: int) -> list[float]:
    """So many yaws all around, to the right from 0; above -180, at most 180."""
    yaws = [i * 360 / number for i in range(number)]
    return [yaw - 360 if yaw > 180 else yaw for yaw in yaws]


def _between(low: float, high: float, step: float) -> list[float]:
    """From low to high with steps that are equal and at most `step`."""
    steps = max(0, math.ceil((high - low) / step - _ROUNDING))
    return [low + (high - low) * i / steps for i in range(steps + 1)] if steps else [(low + high) / 2]


def _kept(settings: ViewSettings, yaw_deg: float, pitch_deg: float) -> View:
    """A view in perspective of which the rows around the middle are kept."""
    half = math.atan(settings.keep_rows * math.tan(math.radians(settings.fov_deg) / 2))
    height_deg = settings.fov_deg if settings.keep_rows == 1 else math.degrees(2 * half)
    return View("perspective", yaw_deg, pitch_deg, settings.fov_deg, height_deg)


def _rest(settings: ViewSettings, number: int) -> list[View]:
    return [_kept(settings, yaw, 0.0) for yaw in _evenly(number)]
