"""How a large image is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyscope.errors import ManyscopeError

if TYPE_CHECKING:
    from manyscope.scopes.cells.settings import CellsModel

VIT_PX = 16  # of the encoder's input, for each vector of its features


@dataclass(frozen=True)
class Tiling:
    """How an image is cut: blocks of `tile_px` with `halo_px` around each, seen through windows of one size.

    Every window is brought to the size of the encoder's input, so that a cell has the same scale in each of them, and
    the one that it had in training.
    """

    tile_px: int
    halo_px: int
    grid: int  # the encoder's features of a window, in rows and columns

    @property
    def window_px(self) -> int:
        return self.tile_px + 2 * self.halo_px

    @property
    def stride_px(self) -> int:
        """Pixels of the image that share one vector of features."""
        return self.window_px // self.grid

    @classmethod
    def of(
        cls, settings: CellsModel, image_size: int, tile_px: int | None = None, halo_px: int | None = None
    ) -> Tiling:
        """
        Args:
            image_size: width and height in pixels of the encoder's input.
            tile_px, halo_px: other than those that follow from model.patch_px.

        Raises:
            ManyscopeError: features of neighbouring tiles would not lie on one grid.
        """
        halo = settings.patch_px // 8 if halo_px is None else halo_px
        tile = settings.patch_px - 2 * halo if tile_px is None else tile_px
        grid = image_size // VIT_PX
        if image_size % VIT_PX or tile <= 0 or (tile + 2 * halo) % grid or halo % ((tile + 2 * halo) // grid):
            own = tile_px is None and halo_px is None
            raise ManyscopeError(
                f"tiles of {tile} px with a halo of {halo} px do not fit the grid of features, {grid} x {grid}, of an"
                f" encoder for {image_size} px",
                place="model.patch_px, model.args" if own else "infer.tile_px, infer.halo_px",
                allowed=f"tile + 2 halo a multiple of {grid}, and the halo one of (tile + 2 halo) / {grid}",
                remedy="let image_size be a power of two" if own else "leave both out: they follow from model.patch_px",
            )
        return cls(tile, halo, grid)
