"""Manyscope: one chain from raw instrument data to a model, a map, a searchable index and an honest score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manyscope.api import Experiment

__all__ = ["Experiment", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Experiment":  # not before it is asked for: every command of the shell imports this module
        from manyscope.api import Experiment

        return Experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
