"""Made-up experiments, as pages in files and as pages of a server in this process."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import uvicorn
from PIL import Image

from manyscope.errors import DataError
from manyscope.explorer.contents import Contents, plain_columns
from manyscope.explorer.page import Page
from manyscope.explorer.payload import webp
from manyscope.explorer.server import make_app
from manyscope.explorer.store import Store


def made_page(n: int, *, columns: dict[str, Any] | None = None, pictures: bool = True, **own: Any) -> Page:
    """A page of so many made-up objects, in which anything can be replaced."""
    rng = np.random.default_rng(0)
    k = min(3, n - 1)
    table = {"flux": rng.normal(size=n), "kind": [f"kind {i % 3}" for i in range(n)], **(columns or {})}
    contents = {
        "experiment": "made_up",
        "scope": "fake",
        "title": "Made up",
        "object_ids": [f"object-{i}" for i in range(n)],
        "coordinates": rng.normal(size=(n, 2)).astype(np.float32),
        "columns": plain_columns(pl.DataFrame(table)),
        **own,
    }
    colours = [(i * 37 % 256, i * 91 % 256, i * 151 % 256) for i in range(min(n, 100))]
    drawn = [(row, Image.new("RGB", (48, 48), colour)) for row, colour in enumerate(colours)]
    neighbours = (np.arange(n)[:, None] + 1 + np.arange(k)) % n
    distances = np.tile(np.arange(1, k + 1) / 10, (n, 1))
    return Page(Contents(**contents), neighbours, distances, drawn if pictures else ())


class MadeExperiment:
    """What a server opens; its results never change."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def version(self) -> str:
        return "the only one"

    def open(self) -> MadeView:
        return MadeView(self._page, self.version())


class MadeView:
    def __init__(self, page: Page, version: str) -> None:
        self._page, self._pictures = page, dict(page.pictures)
        self.version, self.store, self.notes = version, Store(page.contents), page.notes
        self.neighbours, self.pictures = page.neighbours.shape[1], bool(self._pictures)
        self.queries: Sequence[str] = ()

    def nearest_to(self, object_id: str, k: int) -> Iterator[tuple[str, float]]:
        ids = self._page.contents.object_ids
        row = ids.index(object_id)
        near = zip(self._page.neighbours[row], self._page.distances[row], strict=True)
        return ((ids[other], float(distance)) for other, distance in list(near)[:k])

    def nearest(self, query: Path | str, k: int) -> Iterable[tuple[str, float]]:
        raise DataError("nothing new can be sought")

    def picture(self, row: int) -> bytes | None:
        picture = self._pictures.get(row)
        return None if picture is None else webp(picture)

    def training(self) -> dict[str, Any]:
        return {"metrics": [], "headline": None, "curves": []}

    def figures(self) -> list[dict[str, str]]:
        return []

    def figure(self, name: str) -> None:
        return None

    def close(self) -> None:
        pass


@contextmanager
def serving(page: Page) -> Iterator[str]:
    """A server of that page alone; gives the address."""
    token = secrets.token_urlsafe(16)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = make_app({"made_up": MadeExperiment(page)}, token)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/?token={token}"
        server.should_exit = True
        thread.join()
