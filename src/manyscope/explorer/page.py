"""The explorer: one HTML file that holds the map, the pictures and the program, and asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.explorer.payload import packed, packed_columns, packed_pictures
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        title: heading of the page.
        object_ids: (n,) ids, unique.
        coordinates: (n, 2) or (n, 3), the map.
        columns: n rows; every plain column is shown, and those with few different values or numbers can colour.
        neighbours: (n, k) int, rows of each object's nearest others in latent space, nearest first; k may be 0.
        distances: (n, k), to those neighbours.
        pictures: row of an object and its picture; objects may be missing.
        notes: sentences shown under the heading.
    """

    title: str
    experiment: str
    scope: str
    object_ids: Sequence[str]
    coordinates: np.ndarray
    columns: pl.DataFrame
    neighbours: np.ndarray
    distances: np.ndarray
    pictures: Iterable[tuple[int, Image | None]] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        n = len(self.object_ids)
        lengths = {len(self.coordinates), len(self.columns), len(self.neighbours), len(self.distances)}
        if lengths != {n} or self.coordinates.shape[1] not in (2, 3):
            raise DataError(
                f"{n} objects, but coordinates {self.coordinates.shape}, columns {self.columns.shape}, "
                f"neighbours {self.neighbours.shape} and distances {self.distances.shape}",
                place=self.experiment,
            )


def render(page: Page) -> str:
    """The page as HTML. The same content gives the same text."""
    from plotly.offline import get_plotlyjs

    n = len(page.object_ids)
    content = {
        "experiment": page.experiment,
        "scope": page.scope,
        "notes": list(page.notes),
        "ids": list(page.object_ids),
        "coordinates": [packed(axis) for axis in np.asarray(page.coordinates, np.float32).T],
        "columns": packed_columns(page.columns),
        "neighbours": packed(np.asarray(page.neighbours, np.int32)),
        "distances": packed(np.asarray(page.distances, np.float32)),
        "pictures": packed_pictures(page.pictures, n),
    }
    # Inside a script element only "<" can end it or start a comment; in JSON it can be written as an escape.
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    plotly, program = (_script_text(text) for text in (get_plotlyjs(), _asset("page.js")))
    # Only these two scripts may run: markup that slipped through an escape would still be inert. Plotly's WebGL
    # traces compile their drawing loops at run time, hence 'unsafe-eval'.
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src 'unsafe-eval' {_source_hash(plotly)} {_source_hash(program)}; base-uri 'none'; form-action 'none'"
    )
    return Template(_asset("page.html")).substitute(
        policy=policy,
        title=escape(page.title or page.experiment),
        style=_asset("page.css"),
        plotly=plotly,
        data=data,
        program=program,
    )


def write_page(path: Path, page: Page) -> None:
    """Write the page, whole.

    Raises:
        DataError: the file cannot be written.
    """
    text = render(page)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def _asset(name: str) -> str:
    return (files("manyscope.explorer") / "assets" / name).read_text(encoding="utf-8")


def _script_text(text: str) -> str:
    """A program as the body of a script element; browsers read CRLF as LF, which would break the hash."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def _source_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
