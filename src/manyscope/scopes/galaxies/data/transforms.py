"""The ordered steps from a stored stamp to the image that a model sees."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from manyscope.errors import DataError, ManyscopeError, SettingsError
from manyscope.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

# Functions of torch that work on each pixel alone; others by import path, those of numpy too ("numpy:cbrt").
_ELEMENTWISE = (
    "abs", "arctan", "arcsinh", "clamp", "erf", "exp", "expm1", "log", "log10", "log1p", "log2", "nan_to_num",
    "relu", "sigmoid", "sign", "sqrt", "square", "tanh",
)  # fmt: skip

# A step takes and returns images (…, bands, height, width); further arguments are its settings.
TRANSFORMS = Registry(
    "transform",
    {
        "crop": "manyscope.scopes.galaxies.data.transforms:crop",
        "asinh": "manyscope.scopes.galaxies.data.transforms:asinh",
        **{name: f"torch:{name}" for name in _ELEMENTWISE},
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
            partial(_of_tensors(TRANSFORMS.find(step["name"])), **step.get("args", {})) for step in self.steps
        ]

    @property
    def digest(self) -> str:
        """SHA-256 of the steps, their arguments and, where it is Python, their source."""
        sources = []
        for function in self._functions:
            made = function.func if isinstance(function, partial) else function
            sources.append(inspect.getsource(made) if inspect.isfunction(made) else repr(getattr(made, "__name__", "")))
        return hashlib.sha256(json.dumps([self.steps, sources], sort_keys=True).encode()).hexdigest()

    def __call__(self, stamps: Tensor) -> Tensor:
        """(…, bands, height, width) stamps in rms of the sky -> the images that a model sees.

        Raises:
            SettingsError: a step does not take its arguments.
            DataError: a step cannot be applied to stamps of this size, or returns no images.
        """
        count = len(stamps)
        for step, function in zip(self.steps, self._functions, strict=True):
            try:
                stamps = function(stamps)
            except ManyscopeError:
                raise
            except TypeError as error:
                raise SettingsError(f"preprocess.transforms: step {step['name']!r}: {error}") from error
            if stamps.ndim < 3 or len(stamps) != count or not stamps.is_floating_point():
                raise DataError(
                    f"step {step['name']!r} returns shape {tuple(stamps.shape)} of {stamps.dtype}",
                    place="preprocess.transforms",
                    allowed="as many images as it was given, of floats",
                )
        return stamps


def _of_tensors(function: Any) -> Callable[..., Tensor]:
    """The function itself; one of numpy's, made to take and return tensors."""
    import numpy as np

    return partial(_apply_numpy, function) if isinstance(function, np.ufunc) else function


def _apply_numpy(function: Any, stamps: Tensor, **args: Any) -> Tensor:
    import torch

    return torch.from_numpy(function(stamps.numpy(), **args))


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
