"""What the page knows of the objects, as one JSON value: arrays in base64, pictures packed into sheets."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

PICTURE_PX = 96
"""Longest edge of an embedded picture."""
MOST_LEVELS = 200
"""A text column with more different values than this is shown, but not offered as a colour."""
_FEW_INTEGERS = 12
_SHEET_CELLS = 20  # along each edge: a sheet of at most 1920 pixels, which every browser decodes


def packed(values: np.ndarray) -> dict[str, str]:
    """An array as its type's name and its little-endian bytes in base64."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return {"dtype": values.dtype.name, "data": base64.b64encode(little.tobytes()).decode("ascii")}


def packed_columns(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Every column that holds one plain value for each object; lists, arrays and structs are left out.

    Each is `{"name", "kind"}` with, by kind,
    `number`: `values`, NaN where missing; `category`: `levels` and `codes`, -1 where missing;
    `text`: `values`, null where missing.
    """
    return [_column(series) for series in table if not (series.dtype.is_nested() or series.dtype in _OPAQUE)]


def packed_pictures(pictures: Iterable[tuple[int, Image.Image | None]], objects: int) -> dict[str, Any]:
    """Pictures, each with the row of its object, in square cells on WebP sheets.

    Returns:
        `cell`: edge of a cell in pixels; `across`: cells along the edge of a sheet; `slots`: for each object the
        number of its cell, counted over all sheets, -1 without a picture; `sheets`: data addresses.
    """
    small, slots = list[Image.Image](), np.full(objects, -1, np.int32)
    for row, picture in pictures:
        if picture is not None:
            slots[row] = len(small)
            # Palettes, 16-bit greys and the like cannot be pasted; a picture with transparency keeps it.
            mode = "RGBA" if picture.has_transparency_data else "RGB"
            small.append(picture.convert(mode))
            small[-1].thumbnail((PICTURE_PX, PICTURE_PX))
    cell = max((max(picture.size) for picture in small), default=PICTURE_PX)
    per_sheet = _SHEET_CELLS**2
    sheets = [_sheet(small[i : i + per_sheet], cell) for i in range(0, len(small), per_sheet)]
    return {"cell": cell, "across": _SHEET_CELLS, "slots": packed(slots), "sheets": sheets}


def _sheet(pictures: list[Image.Image], cell: int) -> str:
    rows, columns = math.ceil(len(pictures) / _SHEET_CELLS), min(len(pictures), _SHEET_CELLS)
    sheet = Image.new("RGBA", (columns * cell, rows * cell))
    for i, picture in enumerate(pictures):
        y, x = divmod(i, _SHEET_CELLS)
        sheet.paste(picture, (x * cell + (cell - picture.width) // 2, y * cell + (cell - picture.height) // 2))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=85, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


_OPAQUE = (pl.Binary, pl.Object)


def _column(series: pl.Series) -> dict[str, Any]:
    if (series.dtype.is_integer() and series.n_unique() > _FEW_INTEGERS) or series.dtype.is_float():
        return {"name": series.name, "kind": "number", "values": packed(_numbers(series))}
    if series.dtype.is_decimal():
        return _column(series.cast(pl.Float64))
    words = series.cast(pl.String)
    # Sorted before the cast, so that the levels of integers are in the order of the numbers.
    levels = series.drop_nulls().unique().sort().cast(pl.String).to_list()
    if len(levels) > MOST_LEVELS:
        return {"name": series.name, "kind": "text", "values": words.to_list()}
    code = {level: i for i, level in enumerate(levels)}
    codes = np.array([-1 if word is None else code[word] for word in words], np.int16)
    return {"name": series.name, "kind": "category", "levels": levels, "codes": packed(codes)}


def _numbers(series: pl.Series) -> np.ndarray:
    """(n,) float32 where it keeps a millionth of the column's range, else float64."""
    wide = series.cast(pl.Float64).fill_null(math.nan).to_numpy()
    finite = wide[np.isfinite(wide)]
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
        lost = np.abs(finite - finite.astype(np.float32)).max(initial=0.0)
    return narrow if not len(finite) or lost <= 1e-6 * np.ptp(finite) else wide
