"""From an image to instances: tiles, the encoder's features, and micro_sam's three ways to segment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from segment_anything.utils.transforms import ResizeLongestSide

from manyscope.errors import ManyscopeError
from manyscope.scopes.cells.model.tiling import Tiling

if TYPE_CHECKING:
    from manyscope.scopes.cells.model.networks import CellSegmenter
    from manyscope.scopes.cells.settings import CellsInfer, CellsModel


class _Tiles(dict[str, torch.Tensor]):
    """The features of each tile by its number, with the attributes that micro_sam looks for."""

    attrs: dict[str, Any]


@dataclass(frozen=True)
class Embedded:
    """What the encoder makes of an image.

    Attributes:
        tiles: for micro_sam's segmenters.
        features: (256, ceil(height / stride_px), ceil(width / stride_px)) float32, the tiles without their halos side
            by side.
        stride_px: pixels between two of them.
    """

    tiles: dict[str, Any]
    features: np.ndarray
    stride_px: int


@dataclass(frozen=True)
class Segmentation:
    """
    Attributes:
        masks: (height, width) uint32, 0 is background.
        foreground: (height, width) float32, how likely a pixel is of a cell.
        embedded: what the encoder made of the image.
    """

    masks: np.ndarray
    foreground: np.ndarray
    embedded: Embedded


class Segmenter:
    """Segments images with a trained model, on the device that the model is on.

    Args:
        mode: ais, apg or amg.
        batch_size: tiles in one forward pass.
        mode_args: further arguments of micro_sam's `generate`.

    Raises:
        ManyscopeError: the tiles do not fit the model.
    """

    def __init__(
        self,
        model: CellSegmenter,
        settings: CellsModel,
        *,
        batch_size: int = 4,
        mode: str = "ais",
        tile_px: int | None = None,
        halo_px: int | None = None,
        mode_args: dict[str, Any] | None = None,
    ) -> None:
        from micro_sam import instance_segmentation as micro_sam
        from segment_anything import SamPredictor

        self.model, self.mode, self.batch_size, self.mode_args = model.eval(), mode, batch_size, mode_args or {}
        self.tiling = Tiling.of(settings, model.image_size, tile_px, halo_px)
        predictor = SamPredictor(model.sam)
        predictor.model_type = predictor.model_name = settings.name
        predictor.transform = self._scale = _Scale(model.image_size / self.tiling.window_px)
        self._decoder = micro_sam.TiledInstanceSegmentationWithDecoder(predictor, model.decoder)
        self._prompter: Any = None
        if mode == "apg":
            self._prompter = micro_sam.TiledAutomaticPromptGenerator(predictor, model.decoder)
        elif mode == "amg":
            self._prompter = micro_sam.TiledAutomaticMaskGenerator(predictor)

    @classmethod
    def of(cls, model: CellSegmenter, settings: CellsModel, infer: CellsInfer) -> Segmenter:
        """As the infer stage uses it."""
        return cls(
            model,
            settings,
            batch_size=infer.batch_size,
            mode=infer.mode,
            tile_px=infer.tile_px,
            halo_px=infer.halo_px,
            mode_args=infer.mode_args,
        )

    @torch.no_grad()
    def embed(self, image: np.ndarray) -> Embedded:
        """
        Args:
            image: (height, width) uint8, normalised as a whole; tiles are taken as they are.
        """
        from bioimage_cpp.utils import Blocking

        t = self.tiling
        height, width = image.shape
        blocking = Blocking([0, 0], [height, width], [t.tile_px, t.tile_px])
        blocks = [blocking.get_block_with_halo(i, [t.halo_px, t.halo_px]) for i in range(blocking.number_of_blocks)]
        padded = _padded(image, t)
        rows, columns = -(-height // t.stride_px), -(-width // t.stride_px)
        stitched: np.ndarray | None = None
        tiles = _Tiles()
        tiles.attrs = {
            "shape": [height, width], "tile_shape": [t.tile_px] * 2, "halo": [t.halo_px] * 2
        }  # fmt: skip
        device = next(self.model.parameters()).device
        for first in range(0, len(blocks), self.batch_size):
            some = blocks[first : first + self.batch_size]
            corners = [tuple(block.outer_block.begin) for block in some]
            windows = np.stack([padded[y : y + t.window_px, x : x + t.window_px] for y, x in corners])
            encoded, _ = self.model.unetr.encode(torch.from_numpy(windows[:, None]).to(device, torch.float32))
            encoded = encoded[0] if isinstance(encoded, tuple) else encoded
            if stitched is None:
                stitched = np.empty((encoded.shape[1], rows, columns), np.float32)
            for number, (block, features) in enumerate(zip(some, encoded, strict=True), first):
                outer = [e - b for b, e in zip(block.outer_block.begin, block.outer_block.end, strict=True)]
                tile = features[None].clone()
                scale = self.model.image_size / t.window_px
                tile.attrs = {
                    "original_size": tuple(outer), "input_size": tuple(round(side * scale) for side in outer)
                }  # fmt: skip
                tiles[str(number)] = tile
                inner, local = [], []
                for begin, end, corner in zip(
                    block.inner_block.begin, block.inner_block.end, block.outer_block.begin, strict=True
                ):
                    cells = slice(begin // t.stride_px, -(-end // t.stride_px))
                    start = (begin - corner) // t.stride_px
                    inner.append(cells)
                    local.append(slice(start, start + cells.stop - cells.start))
                stitched[:, inner[0], inner[1]] = features[:, local[0], local[1]].float().cpu().numpy()
        assert stitched is not None, "an image has at least one tile"
        return Embedded({"features": tiles, "input_size": None, "original_size": None}, stitched, t.stride_px)

    def fields(self, image: np.ndarray, embedded: Embedded) -> dict[str, np.ndarray]:
        """What the decoder says of each pixel: foreground, center_distances and boundary_distances, (height, width)
        float32 in 0..1."""
        self._decoder.initialize(image, image_embeddings=embedded.tiles, batch_size=self.batch_size)
        return self._decoder.get_state()

    def instances(
        self, fields: dict[str, np.ndarray], *, centre: float, border: float, foreground: float, **others: Any
    ) -> np.ndarray:
        """Instances by a watershed on the decoder's fields, (height, width) uint32."""
        self._decoder.set_state(fields)
        masks = self._decoder.generate(
            center_distance_threshold=centre,
            boundary_distance_threshold=border,
            foreground_threshold=foreground,
            **others,
        )
        return np.asarray(masks, np.uint32)

    def __call__(self, image: np.ndarray) -> Segmentation:
        """Segment an image, (height, width) uint8, with the thresholds that the model has chosen.

        Raises:
            ManyscopeError: micro_sam refuses infer.mode_args.
        """
        embedded = self.embed(image)
        fields = self.fields(image, embedded)
        centre, border, foreground, _ = self.model.chosen.tolist()
        try:
            if self.mode == "ais":
                masks = self.instances(fields, centre=centre, border=border, foreground=foreground, **self.mode_args)
            else:
                chosen: dict[str, Any] = {}
                if self.mode == "apg":
                    chosen = {
                        "center_distance_threshold": centre,
                        "boundary_distance_threshold": border,
                        "foreground_threshold": foreground,
                    }
                with _prompts_by(self._scale):
                    self._prompter.initialize(image, image_embeddings=embedded.tiles, batch_size=self.batch_size)
                    found = self._prompter.generate(**chosen, output_mode="instance_segmentation", **self.mode_args)
                masks = np.asarray(found, np.uint32)
        except (TypeError, ValueError) as error:
            if not self.mode_args:
                raise
            raise ManyscopeError(
                f"micro_sam refuses the arguments of mode {self.mode!r} ({error})", place="infer.mode_args"
            ) from error
        return Segmentation(masks, fields["foreground"], embedded)


class _Scale(ResizeLongestSide):
    """Brings the coordinates of prompts from a tile to the encoder's input, by the one scale that all windows have.

    As it is, the tile's longest side would become the input's, and tiles at the image's border are smaller.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        return coords * self.factor


@contextmanager
def _prompts_by(scale: _Scale) -> Iterator[None]:
    """Inside the block micro_sam places its prompts by this scale; it would take every input for one of 1024 pixels."""
    import micro_sam.inference as micro_sam

    before = micro_sam.ResizeLongestSide
    micro_sam.ResizeLongestSide = lambda target_length: scale
    try:
        yield
    finally:
        micro_sam.ResizeLongestSide = before


def _padded(image: np.ndarray, tiling: Tiling) -> np.ndarray:
    """The image with room for every window at its right and bottom: mirrored, or black where it is smaller than a
    window, as the patches of a training are then."""
    needed = []
    for side in image.shape:
        last = (side - 1) // tiling.tile_px * tiling.tile_px  # where the last block begins
        needed.append(max(0, max(0, last - tiling.halo_px) + tiling.window_px - side))
    if not any(needed):
        return image
    small = min(image.shape) < tiling.window_px
    mode: Any = "constant" if small else "reflect"
    return np.pad(image, [(0, needed[0]), (0, needed[1])], mode=mode)
