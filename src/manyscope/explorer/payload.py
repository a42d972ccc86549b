"""What a page that stands alone knows of the objects: one compressed JSON value, arrays in base64, packed pictures."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from manyscope.explorer.contents import Column

if TYPE_CHECKING:
    from manyscope.explorer.page import Page

PICTURE_PX = 128
"""Longest edge of a picture on a page."""
_SHEET_CELLS = 15  # along each edge: a sheet of at most 1920 pixels, which every browser decodes


def packed_contents(page: Page) -> dict[str, Any]:
    """The data of a page. The same content gives the same value.

    Returns:
        `packed`: base64 of the raw deflate stream (RFC 1951, the `deflate-raw` of browsers) of JSON in UTF-8 with
        `about`: see `Contents.about`, and: `notes`, `neighbours` (how many are known of each object), `search` (new
        vectors cannot be sought: `text` and `image` are false), `all` (true: every object is here), `experiments`
        (the one), `version` (16 hexadecimal digits, others when anything else here changes);
        `ids`: n texts;
        `coordinates`: an array for each axis, see `packed`;
        `columns`: in the order of `about.columns`, for a number `values`, NaN where missing, for a category `codes`,
        -1 where missing, both see `packed`, for text `texts`, null where missing;
        `neighbours`, `distances`: packed int32 and float32, those of an object side by side, nearest first;
        `pictures`: see `packed_pictures`.
    """
    contents = page.contents
    n = len(contents.object_ids)
    about = {
        **contents.about(),
        "notes": list(page.notes),
        "neighbours": page.neighbours.shape[1],
        "search": {"text": False, "image": False},
        "all": True,
        "experiments": [contents.experiment],
    }
    objects = {
        "ids": list(contents.object_ids),
        "coordinates": [packed(axis) for axis in contents.coordinates.T],
        "columns": [_values(column) for column in contents.columns],
        "neighbours": packed(page.neighbours.astype(np.int32)),
        "distances": packed(page.distances.astype(np.float32)),
        "pictures": packed_pictures(page.pictures, n),
    }
    rest = _json(objects)
    about["version"] = hashlib.sha256(_json(about) + rest).hexdigest()[:16]
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    parts = [deflate.compress(part) for part in (b'{"about":', _json(about), b",", memoryview(rest)[1:])]
    stream = b"".join([*parts, deflate.flush()])
    return {"packed": base64.b64encode(stream).decode("ascii")}


def packed(values: np.ndarray) -> dict[str, str]:
    """An array as its type's name and its little-endian bytes in base64."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return {"dtype": values.dtype.name, "data": base64.b64encode(little.tobytes()).decode("ascii")}


def packed_pictures(pictures: Iterable[tuple[int, Image.Image | None]], objects: int) -> dict[str, Any]:
    """Pictures, each with the row of its object, in square cells on WebP sheets; one sheet is held at a time.

    Returns:
        `cell`: edge of a cell in pixels, that of the largest picture of the first sheet: larger ones that follow are
        made to fit; `across`: cells along the edge of a sheet; `slots`: for each object the number of its cell,
        counted over all sheets, -1 without a picture; `sheets`: data addresses.
    """
    cell, slots, sheets, used = PICTURE_PX, np.full(objects, -1, np.int32), list[str](), 0
    drawn = _drawn(pictures)
    while batch := list(islice(drawn, _SHEET_CELLS**2)):
        if not sheets:
            cell = max(max(picture.size) for _, picture in batch)
        slots[[row for row, _ in batch]] = np.arange(used, used + len(batch))
        used += len(batch)
        sheets.append(_sheet([picture for _, picture in batch], cell))
    return {"cell": cell, "across": _SHEET_CELLS, "slots": packed(slots), "sheets": sheets}


def _drawn(pictures: Iterable[tuple[int, Image.Image | None]]) -> Iterator[tuple[int, Image.Image]]:
    for row, picture in pictures:
        if picture is not None:
            yield row, small_picture(picture)


def small_picture(picture: Image.Image) -> Image.Image:
    """A copy of at most `PICTURE_PX`, in RGB, or RGBA where it is transparent: palettes, 16-bit greys and the like can
    neither be pasted nor become WebP."""
    small = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    small.thumbnail((PICTURE_PX, PICTURE_PX))
    return small


def webp(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=85, method=4)
    return file.getvalue()


def _sheet(pictures: list[Image.Image], cell: int) -> str:
    rows, columns = math.ceil(len(pictures) / _SHEET_CELLS), min(len(pictures), _SHEET_CELLS)
    sheet = Image.new("RGBA", (columns * cell, rows * cell))
    for i, picture in enumerate(pictures):
        picture.thumbnail((cell, cell))
        y, x = divmod(i, _SHEET_CELLS)
        sheet.paste(picture, (x * cell + (cell - picture.width) // 2, y * cell + (cell - picture.height) // 2))
    return "data:image/webp;base64," + base64.b64encode(webp(sheet)).decode("ascii")


def _values(column: Column) -> dict[str, Any]:
    if isinstance(column.values, np.ndarray):
        return {"values" if column.kind == "number" else "codes": packed(column.values)}
    return {"texts": column.values}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
