"""The explorer: one HTML file that holds the map, the pictures and the program, and asks no network for anything.

The served page is the same file without the objects: it asks the server that it came from.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from manyscope.errors import DataError
from manyscope.explorer.contents import Contents
from manyscope.explorer.payload import packed_contents
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image

PARTS = ("core", "static", "served", "map", "filters", "table", "details", "training", "main")
"""The parts of the program, in the order in which they are joined: see assets/core.js."""


@dataclass(frozen=True)
class Page:
    """What a page that stands alone shows.

    Attributes:
        neighbours: (n, k) int, rows of each object's nearest others in latent space, nearest first; k may be 0.
        distances: (n, k), to those neighbours.
        pictures: row of an object and its picture; objects may be missing.
        notes: sentences shown under the heading.
    """

    contents: Contents
    neighbours: np.ndarray
    distances: np.ndarray
    pictures: Iterable[tuple[int, Image | None]] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        n = len(self.contents.object_ids)
        if self.neighbours.shape != self.distances.shape or len(self.neighbours) != n:
            raise DataError(
                f"{n} objects, but neighbours {self.neighbours.shape} and distances {self.distances.shape}",
                place=self.contents.experiment,
            )


def render(page: Page) -> str:
    """The page as HTML. The same content gives the same text."""
    return document(page.contents.title, packed_contents(page))


def render_served(title: str) -> tuple[str, str]:
    """The page without objects, which asks the server that it came from, and the content security policy that its
    header should carry."""
    return document(title, {"served": True}, connect="'self'"), _policy(*_programs(), connect="'self'")


def write_page(path: Path, page: Page) -> None:
    """Write the page, whole.

    Raises:
        DataError: the file cannot be written.
    """
    text = render(page)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def document(title: str, data: dict[str, Any], connect: str = "'none'") -> str:
    """The HTML around some data.

    Args:
        data: JSON that the program finds in the element `data`.
        connect: what the program may ask, as in a content security policy.
    """
    # Inside a script element only "<" can end it or start a comment; in JSON it can be written as an escape.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    plotly, program = _programs()
    return Template(_asset("page.html")).substitute(
        policy=_policy(plotly, program, connect),
        title=escape(title),
        style=_asset("page.css"),
        plotly=plotly,
        data=text,
        program=program,
    )


def _programs() -> tuple[str, str]:
    from plotly.offline import get_plotlyjs

    parts = "\n".join(_asset(f"{name}.js") for name in PARTS)
    return _script_text(get_plotlyjs()), _script_text(f'"use strict";\n(() => {{\n{parts}\n}})();\n')


def _policy(plotly: str, program: str, connect: str) -> str:
    # Only these two scripts may run: markup that slipped through an escape would still be inert. Plotly's WebGL
    # traces compile their drawing loops at run time, hence 'unsafe-eval'.
    images = "data: blob:" if connect == "'none'" else f"data: blob: {connect}"
    return (
        f"default-src 'none'; connect-src {connect}; img-src {images}; style-src 'unsafe-inline'; "
        f"script-src 'unsafe-eval' {_source_hash(plotly)} {_source_hash(program)}; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (files("manyscope.explorer") / "assets" / name).read_text(encoding="utf-8")


def _script_text(text: str) -> str:
    """A program as the body of a script element; browsers read CRLF as LF, which would break the hash."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")


def _source_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
