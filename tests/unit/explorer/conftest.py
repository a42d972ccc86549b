"""A library that needs no files, and a client that the server knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from manyscope.errors import DataError
from manyscope.explorer.contents import Column, Contents
from manyscope.explorer.server import make_app
from manyscope.explorer.shelf import ChangedError
from manyscope.explorer.store import Store

TOKEN = "a-token-that-is-long-enough"
NASTY = "<script>alert('1')</script>\"&\u2028"
N = 40


class FakeView:
    """One state of made-up results: objects on a line in latent space."""

    def __init__(self, version: str) -> None:
        rng = np.random.default_rng(0)
        self.version, self.notes, self.neighbours, self.pictures = version, ["a note"], 5, True
        self.queries: tuple[str, ...] = ("image", "text")
        ids = [f"object {i}" for i in range(N - 1)] + [NASTY]
        flux = np.where(np.arange(N) == 3, np.nan, np.arange(N) / 4).astype(np.float32)
        flux[4] = np.inf
        columns = (
            Column("flux", "number", flux),
            Column("kind", "category", (np.arange(N) % 4 - 1).astype(np.int16), ("a", "b", NASTY)),
            Column("caption", "text", [None if i % 5 == 0 else f"caption {i} {NASTY}" for i in range(N)]),
            Column(NASTY, "number", np.arange(N, dtype=float)),
        )
        coordinates = rng.normal(size=(N, 2)).astype(np.float32)
        self.store = Store(Contents("one", "made up", NASTY, ids, coordinates, columns, ("flux",)))
        self.asked: list[Any] = []
        self.closed = False

    def nearest_to(self, object_id: str, k: int) -> Iterable[tuple[str, float]]:
        if self.closed:
            raise ChangedError
        row = self.store.contents.object_ids.index(object_id)
        others = sorted((i for i in range(N) if i != row), key=lambda i: (abs(i - row), i))
        return [(self.store.contents.object_ids[i], float((i - row) ** 2)) for i in others[:k]]

    def nearest(self, query: Path | str, k: int) -> Iterable[tuple[str, float]]:
        self.asked.append(query if isinstance(query, str) else (query, query.read_bytes()))
        if query == "refused":
            raise DataError("cannot be embedded", place=Path("/somewhere/secret/folder/weights.ckpt"))
        if query == "broken":
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return [("object 7", 0.5), ("of an older index", 0.6), ("object 8", 0.75)][:k]

    def picture(self, row: int) -> bytes | None:
        if row == 1:
            raise OSError("broken")
        return None if row == 2 else b"RIFF a picture"

    def training(self) -> dict[str, Any]:
        metric = {"name": "msa", "group": "", "unit": "", "n": 3, "higher_is_better": True, "value": 0.5, "low": 0.4}
        metric |= {"high": 0.6, "baseline": "otsu", "baseline_value": 0.1, "difference": 0.4}
        metric |= {"difference_low": 0.3, "difference_high": 0.5}
        curves = [{"name": "train/loss", "step": 1, "value": 0.25}]
        return {"metrics": [metric], "headline": "msa", "curves": curves}

    def figures(self) -> list[dict[str, str]]:
        return [{"name": "f", "caption": NASTY}]

    def figure(self, name: str) -> bytes | None:
        return b"a figure" if name == "f" else None

    def close(self) -> None:
        self.closed = True


class FakeExperiment:
    def __init__(self) -> None:
        self.present, self.views = "first", list[FakeView]()

    def version(self) -> str:
        if not self.present:
            raise DataError("the file is missing", place=Path("/somewhere/secret/one/infer/predictions.parquet"))
        return self.present

    def open(self) -> FakeView:
        self.views.append(FakeView(self.present))
        return self.views[-1]


@pytest.fixture
def experiment() -> FakeExperiment:
    return FakeExperiment()


@pytest.fixture
def strangers(experiment: FakeExperiment) -> Callable[..., TestClient]:
    """A function that makes a client without a token."""

    def client(**options: Any) -> TestClient:
        app = make_app({"one": experiment, "two": FakeExperiment()}, TOKEN)
        return TestClient(app, base_url="http://127.0.0.1:8000", follow_redirects=False, **options)

    return client


@pytest.fixture
def client(strangers: Callable[..., TestClient]) -> TestClient:
    return strangers(headers={"Authorization": f"Bearer {TOKEN}"})
