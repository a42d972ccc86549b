"""The ordered steps from a stored stamp to the image that a model sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from manyscope.errors import DataError, ManyscopeError, SettingsError
from manyscope.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

# A step takes and returns images (…, bands, height, width); further arguments are its settings.
TRANSFORMS = Registry(
    "transform",
    {
        "crop": "manyscope.scopes.galaxies.data.transforms:crop",
        "asinh": "manyscope.scopes.galaxies.data.transforms:asinh",
        **{name: f"torch:{name}" for name in ("tanh", "sigmoid", "arcsinh", "arctan", "clamp", "nan_to_num")},
    },
    group="manyscope.galaxy_transforms",
)


class Transforms:
    """Steps by name, applied in order.

    Args:
        steps: `{"name": …, "args": {…}}` each, as in the settings and in the prepared metadata.

    Raises:
        ManyscopeError: a step is unknown.
    """

    def __init__(self, steps: Iterable[Mapping[str, Any]]) -> None:
        self.steps = [dict(step) for step in steps]
        self._functions: list[Callable[[Tensor], Tensor]] = [
            partial(TRANSFORMS.find(step["name"]), **step.get("args", {})) for step in self.steps
        ]

    def __call__(self, stamps: Tensor) -> Tensor:
        """(…, bands, height, width) stamps in rms of the sky -> the images that a model sees.

        Raises:
            SettingsError: a step does not take its arguments.
            DataError: a step cannot be applied to stamps of this size.
        """
        for step, function in zip(self.steps, self._functions, strict=True):
            try:
                stamps = function(stamps)
            except ManyscopeError:
                raise
            except TypeError as error:
                raise SettingsError(f"preprocess.transforms: step {step['name']!r}: {error}") from error
        return stamps


def crop(stamps: Tensor, size_px: int) -> Tensor:
    """The middle (…, size_px, size_px): pixel (height // 2, width // 2) becomes the middle one.

    Raises:
        DataError: the stamps are smaller.
    """
    height, width = stamps.shape[-2:]
    if not 0 < size_px <= min(height, width):
        raise DataError(
            f"a crop of {size_px} px does not fit stamps of {width} x {height} px", place="preprocess.transforms"
        )
    top, left = height // 2 - size_px // 2, width // 2 - size_px // 2
    return stamps[..., top : top + size_px, left : left + size_px]


def asinh(stamps: Tensor, softening: float = 2.0, scale: float = 5.0) -> Tensor:
    """asinh(x / softening) / scale: linear in the noise, logarithmic in bright cores.

    With the defaults, values lie in (-1, 1) up to 148 rms.
    """
    return (stamps / softening).asinh() / scale
