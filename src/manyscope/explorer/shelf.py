"""What is served, and which of it is open."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from fastapi import HTTPException

from manyscope.errors import ManyscopeError, did_you_mean
from manyscope.explorer.page import render_served
from manyscope.explorer.store import Store

CHANGED = "the results of this experiment have changed: reload the page"


class ChangedError(Exception):
    """What was opened has been closed, since the results have changed."""


class View(Protocol):
    """One state of an experiment's results, open to be asked. All methods may be called from several threads.

    Attributes:
        version: of the results.
        notes: sentences shown under the heading.
        neighbours: how many neighbours are shown of an object; 0 without an index.
        queries: of "text" and "image", those by which can be sought.
        pictures: whether there are pictures of objects.
    """

    version: str
    store: Store
    notes: Sequence[str]
    neighbours: int
    queries: Sequence[str]
    pictures: bool

    def nearest_to(self, object_id: str, k: int) -> Iterable[tuple[str, float]]:
        """Ids of the nearest others, nearest first, with their distances."""

    def nearest(self, query: Path | str, k: int) -> Iterable[tuple[str, float]]:
        """Ids of the objects nearest to what an image file shows or a text says.

        Raises:
            ManyscopeError: the query cannot be embedded.
        """

    def picture(self, row: int) -> bytes | None:
        """The picture of an object as WebP; None if it has none."""

    def training(self) -> Mapping[str, Any]:
        """`metrics`, `headline` and `curves` of the answer to `training` in core.js; lists may be empty."""

    def figures(self) -> Sequence[Mapping[str, str]]:
        """`name` and `caption` of each figure."""

    def figure(self, name: str) -> bytes | None:
        """One of `figures` as PNG."""

    def close(self) -> None:
        """Let go of files: every later call of a method that needs them raises ChangedError."""


class Experiment(Protocol):
    """What the server can open."""

    def version(self) -> str:
        """A text that is another one when the results have changed.

        Raises:
            ManyscopeError: there are no whole results.
        """

    def open(self) -> View:
        """
        Raises:
            ManyscopeError: the results cannot be read.
        """


class Shelf:
    """The experiments, each opened when it is first asked for, and again when its results have changed."""

    def __init__(self, library: Mapping[str, Experiment]) -> None:
        self._library = library
        self._views: dict[str, View] = {}
        self._locks = {name: threading.Lock() for name in library}

    @property
    def names(self) -> list[str]:
        return list(self._library)

    @cached_property
    def page(self) -> tuple[str, str]:
        return render_served("Manyscope")

    def latest(self, name: str) -> View:
        """The present results."""
        experiment = self._experiment(name)
        with self._locks[name]:
            version, view = experiment.version(), self._views.get(name)
            if view is None or view.version != version:
                if view is not None:
                    del self._views[name]
                    view.close()
                view = self._views[name] = experiment.open()
            return view

    def at(self, name: str, version: str) -> View:
        """The results of which a page was told.

        Raises:
            HTTPException: they have changed since.
        """
        experiment, view = self._experiment(name), self._views.get(name)
        try:
            present = experiment.version()
        except ManyscopeError:
            present = None  # a stage is writing them
        if version != present:
            raise HTTPException(409, CHANGED)
        if view is None or view.version != version:
            view = self.latest(name)  # the server was started again since
        return view

    def close(self) -> None:
        for view in self._views.values():
            view.close()
        self._views.clear()

    def _experiment(self, name: str) -> Experiment:
        if name not in self._library:
            parts = ("this experiment is not served", did_you_mean(name, self.names))
            raise HTTPException(404, "; ".join(filter(None, parts)))
        return self._library[name]
