"""Small pictures of questions: the panorama that each is about, and the views in which a model sees it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyscope.scopes.panoramas.data.panoramas import PREVIEW_PX, Panoramas
from manyscope.scopes.panoramas.data.turns import DIRECTIONS

if TYPE_CHECKING:
    import polars as pl
    from PIL import Image

    from manyscope.scopes.panoramas.views.geometry import View

_GAP_PX = 1
_MARK, _GROUND = (255, 176, 0), (14, 16, 22)
_KEPT = 64  # pictures in memory at once; the questions about one mostly follow each other


def thumbnails(prepared: Path, files: Path, objects: pl.DataFrame) -> Iterator[Image.Image | None]:
    """The preview of each question's picture, its seam at both sides, above the views in which it is cut, in their
    order; 128 pixels wide and about as high, RGB.

    Where the question is about a direction, a tick on the preview and a frame about the nearest view say which.

    Args:
        files: what infer wrote, of which nothing is needed.
        objects: rows of the predictions.

    Raises:
        DataError: a file is missing or broken, or a sample is unknown.
    """
    data = Panoramas(prepared)
    ahead = [number for number, view in enumerate(data.views.views) if _is_ahead(view)]
    yaws = [data.views.views[number].yaw_deg for number in ahead]

    @lru_cache(_KEPT)
    def sheet(picture: int) -> Image.Image:
        return _sheet(data.previews[picture], data.pixels[picture][ahead])

    asked = data.samples[data.rows_of(objects["sample_id"].to_list()).tolist()]
    for picture, direction in asked.select("picture", "direction").iter_rows():
        yield _marked(sheet(picture), direction, yaws)


def _is_ahead(view: View) -> bool:
    """Whether a view looks in one direction; the others show what the preview does."""
    return not view.is_global and view.width_deg < 360


def _cells(views: int) -> tuple[int, int]:
    """Columns of the views and the edge of one in pixels: about as high as the preview."""
    across = max(1, math.ceil(math.sqrt(2 * views)))
    return across, PREVIEW_PX[1] // across


def _corner(number: int, across: int, edge: int) -> tuple[int, int]:
    row, column = divmod(number, across)
    return column * edge, PREVIEW_PX[0] + row * edge + _GAP_PX


def _sheet(preview: np.ndarray, views: np.ndarray) -> Image.Image:
    """
    Args:
        preview: (64, 128, 3) uint8.
        views: (views, 3, size, size) uint8.
    """
    from PIL import Image

    across, edge = _cells(len(views))
    height = PREVIEW_PX[0] + math.ceil(len(views) / across) * edge
    picture = Image.new("RGB", (PREVIEW_PX[1], height), _GROUND)
    picture.paste(Image.fromarray(preview), (0, 0))
    side = edge - _GAP_PX
    for number, view in enumerate(views):
        small = Image.fromarray(view.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BOX)
        picture.paste(small, _corner(number, across, edge))
    return picture


def _marked(sheet: Image.Image, direction: str | None, yaws: list[float]) -> Image.Image:
    """
    Args:
        direction: one of DIRECTIONS; any other text marks nothing.
        yaws: of the views on the sheet, in degrees.
    """
    from PIL import ImageDraw

    if direction not in DIRECTIONS:
        return sheet
    yaw = 360 / len(DIRECTIONS) * DIRECTIONS.index(direction)
    picture = sheet.copy()
    draw = ImageDraw.Draw(picture)
    for turn in (-360, 0):  # what lies at the seam has a half tick at each side
        x = (0.5 + (yaw + turn) / 360) * PREVIEW_PX[1]
        draw.polygon([(x - 4, 0), (x + 4, 0), (x, 6)], fill=_MARK)
    if yaws:
        apart = [abs((own - yaw + 180) % 360 - 180) for own in yaws]
        across, edge = _cells(len(yaws))
        left, top = _corner(apart.index(min(apart)), across, edge)
        side = edge - _GAP_PX - 1
        draw.rectangle((left, top, left + side, top + side), outline=_MARK)
    return picture
