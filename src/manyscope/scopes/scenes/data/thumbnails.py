"""Small pictures of layers, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from manyscope.scopes.scenes.files import layer_file

if TYPE_CHECKING:
    import polars as pl

_MARGIN = 0.05
_PX = 192  # no edge of a picture is longer


def thumbnails(files: Path, objects: pl.DataFrame) -> Iterator[Image.Image | None]:
    """Each layer, cut to what can be seen of it, transparent where it is; None where its file is not there."""
    for sample_id, layer in objects.select("sample_id", "layer").iter_rows():
        path = layer_file(files, layer, sample_id)
        if not path.is_file():
            yield None
            continue
        with Image.open(path) as image:
            picture = image.convert("RGBA")
        box = picture.getchannel("A").point(lambda a: 255 * (a >= 26)).getbbox()
        if box is None:
            yield None
            continue
        margin = int(np.ceil(_MARGIN * max(box[2] - box[0], box[3] - box[1])))
        left, top = max(0, box[0] - margin), max(0, box[1] - margin)
        right, bottom = min(picture.width, box[2] + margin), min(picture.height, box[3] + margin)
        picture = picture.crop((left, top, right, bottom))
        picture.thumbnail((_PX, _PX))
        yield picture
