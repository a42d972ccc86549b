"""Edits of a trained scene: what a user may ask for, strictly checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from manyscope.settings.sections import Section

if TYPE_CHECKING:
    import numpy as np

_CELLS = 16  # of the checker along the longer edge of a frame


class Remove(Section):
    """Show the scene without an object."""

    do: Literal["remove"]
    object: str = Field(description="Name of the object, or of a copy.")


class _Moved(Section):
    object: str = Field(description="Name of the object, or of a copy.")
    right_px: float = Field(0.0, description="To the right, in pixels of a frame at the object's distance.")
    down_px: float = Field(0.0, description="Downwards, likewise.")
    nearer: PositiveFloat = Field(1.0, description="Factor by which it comes nearer, and grows; below 1 farther.")
    turn_degrees: float = Field(0.0, description="Turned in its plane, clockwise.")


class Shift(_Moved):
    """Move an object, through the whole clip."""

    do: Literal["shift"]


class Duplicate(_Moved):
    """Show an object once more, somewhere else."""

    do: Literal["duplicate"]
    name: str = Field("", description="Of the copy; the object's name with '-copy' by default.")


class Retime(Section):
    """Let an object do what it does at another time."""

    do: Literal["retime"]
    object: str = Field(description="Name of the object, or of a copy.")
    reverse: bool = Field(False, description="Backwards.")
    later_frames: float = Field(0.0, description="So many frames later; before and after it stands still.")


class Paint(Section):
    """Paint a picture on an object or the background, so that it moves along."""

    do: Literal["paint"]
    object: str = Field(description="Name of the object, of a copy, or 'background'.")
    image: Path = Field(description="A picture with or without opacity.")
    on: Literal["frame", "atlas"] = Field(
        "frame", description="frame: the picture lies over a whole frame; atlas: over the object's own plane."
    )
    frame: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Number of the frame that it lies over; null: the one that the object's picture is from."
    )

    @model_validator(mode="after")
    def _on_a_frame(self) -> Paint:
        if self.on == "atlas" and self.frame is not None:
            raise ValueError(f"frame {self.frame} is given for a picture on the atlas: use on: frame")
        return self


Edit = Remove | Shift | Duplicate | Retime | Paint


class ScenesEdits(Section):
    """Edits, done one after the other."""

    edits: tuple[Annotated[Edit, Field(discriminator="do")], ...] = Field(
        description="Each with `do`: remove, shift, duplicate, retime or paint."
    )

    @field_validator("edits")
    @classmethod
    def _some(cls, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        # Not as the shortest length: it would be reported beside each edit that is not understood.
        if not edits:
            raise ValueError("there is no edit; give at least one")
        return edits


def checker(height: int, width: int) -> np.ndarray:
    """A checkerboard over a whole frame, (height, width, 4) uint8, opaque, with which painting is judged."""
    import numpy as np

    cell = max(2, max(height, width) // _CELLS)
    y, x = np.mgrid[:height, :width] // cell
    colours = np.array([[230, 60, 40, 255], [40, 90, 230, 255]], np.uint8)
    return colours[(x + y) % 2]
