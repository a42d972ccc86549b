"""The models by name, without importing any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manyscope.errors import ManyscopeError, did_you_mean
from manyscope.registry import Registry
from manyscope.scopes.cells.data.weights import NAMES

if TYPE_CHECKING:
    from manyscope.scopes.cells.settings import CellsModel

ARCHITECTURES = ("vit_t", "vit_b", "vit_l", "vit_h")  # of micro_sam
_NETWORKS = "manyscope.scopes.cells.model.networks"
MODELS = Registry("model", {name: f"{_NETWORKS}:{name}" for name in ("tiny", *ARCHITECTURES)})
_IMAGE_SIZES = {"tiny": 256} | dict.fromkeys(ARCHITECTURES, 1024)


def architecture(name: str) -> str:
    """What is built for a model of this name: for one of micro_sam's registry, such as vit_b_lm, what stands before its
    suffix.

    Raises:
        ManyscopeError: there is no such model.
    """
    if name in NAMES:
        return name[:5]
    if ":" not in name and name not in MODELS.names():
        known = [*MODELS.names(), *NAMES]
        raise ManyscopeError(
            f"there is no model {name!r}",
            place="model.name",
            allowed=f"{', '.join(dict.fromkeys(known))}, or an import path",
            remedy=did_you_mean(name, known),
        )
    return name


def image_size(settings: CellsModel) -> int | None:
    """Width and height in pixels of the encoder's input, as far as the settings say; None for a model of one's own."""
    given = settings.args.get("image_size", _IMAGE_SIZES.get(architecture(settings.name)))
    return given if isinstance(given, int) else None
