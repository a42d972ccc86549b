"""`manyscope explore`: serve the page of one or several experiments to a browser on this machine."""

from __future__ import annotations

import hashlib
import html
import ipaddress
import logging
import math
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
import webbrowser
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from manyscope.errors import DataError, ManyscopeError, MissingDependencyError, did_you_mean
from manyscope.explorer.contents import read_contents, state_of
from manyscope.explorer.contents import version as contents_version
from manyscope.explorer.payload import small_picture, webp
from manyscope.explorer.server import make_app
from manyscope.explorer.shelf import ChangedError
from manyscope.explorer.store import Store
from manyscope.log import logger
from manyscope.scopes.base import Scope
from manyscope.scopes.registry import find_scope
from manyscope.settings.loading import load_config, results_folder
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExploreSettings
from manyscope.settings.source import read_layer
from manyscope.tables.freshness import newer_source
from manyscope.tables.parquet import read_table
from manyscope.tables.whole import read_json

if TYPE_CHECKING:
    import polars as pl

    from manyscope.latent.index import VectorIndex
    from manyscope.settings.sections import ExperimentSettings

_DOOR = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>Manyscope</title>
<meta http-equiv="refresh" content="0; url={address}"><p><a href="{address}">Open the page</a></p></html>
"""
_SETTINGS_S = 2  # so long the settings are not looked at again
_MOST_OF_A_CURVE = 2_000
_MOST_PICTURES = 4_000  # kept in memory: about 20 MB
_MOST_AT_ONCE = 64  # pictures that are drawn for the requests of one moment
_CLOSING_S = 2


def serve(
    names: Sequence[str], port: int, host: str, points: int | None, open_browser: bool, results: Path | None,
    config_file: Path,
) -> None:  # fmt: skip
    """Serve until the user interrupts. One line on stdout: the address of the page, with its token.

    Args:
        names: of experiments; none are all that have a map.
        port: 0 takes a free one.
        points: objects that are drawn at once; None is as many as a store draws by itself.

    Raises:
        ManyscopeError: there is no such experiment, none has a map, or the address cannot be taken.
    """
    import uvicorn

    library = open_library(results or results_folder(config_file), names, config_file, points)
    token = secrets.token_urlsafe(32)
    with _listening(host, port) as listener:
        where, taken = listener.getsockname()[:2]
        bound = ipaddress.ip_address(where.partition("%")[0])
        here = "127.0.0.1" if _takes_ipv4(listener) else "::1"
        local = here if bound.is_unspecified else host
        address = f"http://{f'[{local}]' if ':' in local else local}:{taken}/?token={token}"
        if not bound.is_loopback:
            logger.warning("others on the network can reach this page: whoever has the token sees all results")
        app = make_app(library, token, _own_names() if bound.is_unspecified else [host])
        own = logging.getLogger("uvicorn")
        own.handlers, own.propagate = logger.handlers, False
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=_CLOSING_S,
        )  # fmt: skip
        click.echo(address)
        logger.info("serving %s; Ctrl-C ends it", ", ".join(library))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is below is tidied up then, too
        with ExitStack() as closing:
            if open_browser:
                door = closing.enter_context(_door(address))
                # In a thread of its own: a browser of the terminal takes as long as it is looked at.
                threading.Thread(target=webbrowser.open, args=[door.as_uri()], daemon=True).start()
            try:
                uvicorn.Server(config).run(sockets=[listener])
            except KeyboardInterrupt:  # raised again after everything was closed
                logger.info("stopped")


def open_library(
    results: Path, names: Sequence[str], config_file: Path, points: int | None = None
) -> dict[str, ResultsOnDisk]:
    """The experiments to serve; nothing of them is read yet but what tells their scope. `points` as for `serve`.

    Raises:
        DataError: there is no such experiment, or it has no map; or none has one.
    """
    known = sorted(path.parent.parent.name for path in results.glob("*/umap/umap.parquet"))
    for name in names:
        if name not in known:
            listed = f"with a map: {', '.join(known)}" if known else "no experiment there has one"
            raise DataError(
                f"experiment {name!r} has no map", place=results, allowed=listed,
                remedy=did_you_mean(name, known) or "run the stage umap",
            )  # fmt: skip
    if not known:
        raise DataError("no experiment has a map", place=results, remedy="run `manyscope run`, or see --results")
    library = {}
    for name in dict.fromkeys(names or known):
        found = ResultsOnDisk(ExperimentPaths.of(results, name), config_file, points)
        try:
            found.check()
        except ManyscopeError as error:
            if names:
                raise
            logger.warning("%s is left out: %s", name, error)
            continue
        library[name] = found
    if not library:
        raise DataError("no experiment has whole results", place=results, remedy="run `manyscope run`")
    return library


class ResultsOnDisk:
    """One experiment below the results folder; `points` as for `serve`."""

    def __init__(self, paths: ExperimentPaths, config_file: Path, points: int | None) -> None:
        self.paths, self._config_file, self._points = paths, config_file, points
        self._read, self._read_at, self._reading = _Configured(), -math.inf, threading.Lock()

    def version(self) -> str:
        """
        Raises:
            DataError: a table is missing.
        """
        return self._version(self._configured(_SETTINGS_S))

    def open(self) -> OpenResults:
        """
        Raises:
            DataError: a table is broken.
        """
        configured = self._configured(0)
        version = self._version(configured)  # before the tables are read: what changes meanwhile is another version
        if configured.problem:
            logger.warning("%s is shown without its settings: %s", self.paths.experiment, configured.problem)
        os.environ.update(configured.environment)
        settings, scope_name = configured.settings, self._scope_name(configured.settings)
        scope, title = self._scope(scope_name), settings.title if settings else ""
        contents = read_contents(self.paths, scope_name, title, scope.card() if scope else ())
        store = Store(contents) if self._points is None else Store(contents, self._points)
        return OpenResults(self.paths, scope, settings, version, store)

    def check(self) -> None:
        """Look for what every view needs, before anything is served.

        Raises:
            DataError: a table is missing, or neither settings nor results tell the scope.
        """
        configured = self._configured(0)
        self._version(configured)
        self._scope_name(configured.settings)

    def _scope_name(self, settings: ExperimentSettings | None) -> str:
        """
        Raises:
            DataError: neither settings nor results tell it.
        """
        if settings:
            return settings.scope
        if self.paths.settings.is_file():
            return str(read_layer(self.paths.settings).values.get("scope", ""))
        if self.paths.metrics.is_file():
            return str(read_json(self.paths.metrics)["scope"])
        raise DataError(
            "nothing tells the scope of these results", place=self.paths.root,
            remedy=f"put the file {self.paths.experiment}.yaml back into config/experiments",
        )  # fmt: skip

    def _version(self, configured: _Configured) -> str:
        paths = self.paths
        others = (
            paths.audit,
            paths.model,
            paths.settings,
            paths.history,
            paths.metrics,
            _captions_file(paths),
            paths.confirmed,
        )
        states = [contents_version(paths), configured.digest, *(_state(file) for file in others)]
        return hashlib.sha256("\n".join(states).encode()).hexdigest()[:16]

    def _configured(self, age_s: float) -> _Configured:
        """The settings as they were written at most so long ago: to read them takes longer than most answers."""
        with self._reading:
            if time.monotonic() - self._read_at > age_s:
                self._read, self._read_at = _configured(self.paths.experiment, self._config_file), time.monotonic()
            return self._read

    def _scope(self, name: str) -> Scope[Any] | None:
        try:
            return find_scope(name)
        except ManyscopeError as error:
            logger.warning("%s is shown without pictures: %s", self.paths.experiment, error)
            return None


@dataclass(frozen=True)
class _Configured:
    """What the files of the workflow say of an experiment.

    Attributes:
        settings: None if they cannot be read, for the reason `problem`.
        environment: what the site sets for the libraries that a scope uses.
        digest: of all settings that the page shows or that a query is embedded with.
    """

    settings: ExperimentSettings | None = None
    problem: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""


def _configured(experiment: str, config_file: Path) -> _Configured:
    try:
        config = load_config(config_file=config_file, experiments=[experiment])
    except ManyscopeError as error:
        return _Configured(problem=str(error).splitlines()[0])
    digest = "".join(config.stage_json(experiment, stage) for stage in ("explore", "infer"))
    return _Configured(config.experiments[experiment], "", config.site.environment(), digest)


def _state(file: Path) -> str:
    """Another text after each time that the file was written."""
    try:
        return state_of(file)
    except OSError:
        return "no file"


def _captions_file(paths: ExperimentPaths) -> Path:
    return paths.figures / "captions.json"


class OpenResults:
    """One state of an experiment's results; the answers of `manyscope.explorer.shelf.View`."""

    def __init__(
        self, paths: ExperimentPaths, scope: Scope[Any] | None, settings: ExperimentSettings | None, version: str,
        store: Store,
    ) -> None:  # fmt: skip
        self.version, self.store = version, store
        self._paths, self._scope, self._settings = paths, scope, settings
        self._closing, self._closed = ExitStack(), False
        self._index_lock, self._embedding = threading.Lock(), threading.Lock()
        self.notes: Sequence[str]
        self._index, self.notes = self._opened_index()
        self._pictures = _Pictures(paths, scope) if scope else None
        self.pictures = scope is not None and type(scope).thumbnails is not Scope.thumbnails
        wanted = settings.explore.neighbours if settings else ExploreSettings().neighbours
        self.neighbours = wanted if self._index else 0
        can_embed = scope is not None and settings is not None and self._index is not None and paths.model.is_file()
        self.queries: Sequence[str] = scope.queries() if scope and can_embed else ()
        self._model, self._outdated = _state(paths.model), _outdated(paths) if self.queries else None
        if self._outdated:
            self.notes = [*self.notes, f"no search by {' or '.join(self.queries)}: {self._outdated}"]

    def nearest_to(self, object_id: str, k: int) -> Iterable[tuple[str, float]]:
        return self._nearest(k, object_id=object_id)

    def nearest(self, query: Path | str, k: int) -> Iterable[tuple[str, float]]:
        assert self._scope is not None
        assert self._settings is not None
        if self._outdated:
            raise DataError(self._outdated)
        with self._embedding:  # one model in memory at a time
            settings = self._settings.for_stage("infer")
            vector = self._scope.embed_query(settings, self._paths.prepared, self._paths.model, query)
        if _state(self._paths.model) != self._model:  # perhaps before the weights were read
            raise ChangedError
        return self._nearest(k, vector=vector)

    def picture(self, row: int) -> bytes | None:
        return self._pictures.webp(row) if self._pictures else None

    def training(self) -> Mapping[str, Any]:
        from manyscope.tables.metrics import Metric, read_metrics

        document: dict[str, Any] = {"headline": None}
        metrics, curves = list[Metric](), []
        if self._paths.metrics.is_file():
            document, metrics = read_metrics(self._paths.metrics)
        if self._paths.history.is_file():
            history = read_table(self._paths.history)
            curves = _curves(history.filter(history["value"].is_finite()).select("name", "step", "value"))
        return {"metrics": metrics, "headline": document["headline"], "curves": curves}

    def figures(self) -> Sequence[Mapping[str, str]]:
        return [{"name": name, "caption": caption} for name, caption in self._captions().items()]

    def figure(self, name: str) -> bytes | None:
        return (self._paths.figures / f"{name}.png").read_bytes() if name in self._captions() else None

    def close(self) -> None:
        with self._index_lock:
            self._closed, self._index = True, None
            self._closing.close()

    def _captions(self) -> dict[str, str]:
        """The figures that are there, with their captions."""
        file = _captions_file(self._paths)
        listed = read_json(file) if file.is_file() else {}
        return {
            name: caption
            for name, caption in listed.items()
            if Path(name).name == name and (self._paths.figures / f"{name}.png").is_file()
        }

    def _opened_index(self) -> tuple[VectorIndex | None, list[str]]:
        if not self._paths.audit.is_file():
            return None, ["no neighbours: there is no index, run the stage index"]
        from manyscope.latent.index import open_index

        try:
            index = self._closing.enter_context(open_index(self._paths.index))
        except MissingDependencyError as error:
            return None, [f"no neighbours: {error}"]
        except ManyscopeError as error:
            logger.warning("no neighbours: %s", error)
            return None, ["no neighbours: the index cannot be read, run the stage index again"]
        return index, [f"neighbours and their distances ({index.metric}) are those of the index"]

    def _nearest(
        self, k: int, *, object_id: str | None = None, vector: np.ndarray | None = None
    ) -> list[tuple[str, float]]:
        from manyscope.latent.search import nearest

        with self._index_lock:  # the store of the index says nothing of threads
            if self._closed:
                raise ChangedError
            if self._index is None:
                raise DataError("this experiment has no readable index", remedy="run the stage index")
            return nearest(self._index, k, object_id=object_id, vector=vector)


def _outdated(paths: ExperimentPaths) -> str | None:
    """Why a query cannot be compared with the objects, if so: another model than theirs would embed it."""
    if newer_source(paths, "infer", ("train",)):
        return "the model is newer than the predictions, run the stages infer, gather and index"
    if newer_source(paths, "index", ("infer",)):
        return "the predictions are newer than the index, run the stage index"
    return None


def _curves(history: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows of each curve; of a long one so many, evenly spread, with the first and the last."""
    points: list[dict[str, Any]] = []
    for curve in history.partition_by("name", maintain_order=True):
        spread = np.linspace(0, len(curve) - 1, min(len(curve), _MOST_OF_A_CURVE)).round().astype(int)
        points += curve[spread].to_dicts()
    return points


class _Pictures:
    """Pictures of objects, drawn when they are asked for: all that are wanted at one moment together, since a scope
    opens its files once for them."""

    def __init__(self, paths: ExperimentPaths, scope: Scope[Any]) -> None:
        self._paths, self._scope = paths, scope
        self._kept: OrderedDict[int, bytes | None] = OrderedDict()
        self._wanted: set[int] = set()
        self._waiting, self._drawing = threading.Lock(), threading.Lock()

    def webp(self, row: int) -> bytes | None:
        """
        Raises:
            Exception: whatever a scope raises of an object whose picture it cannot draw.
        """
        with self._waiting:
            if row in self._kept:
                self._kept.move_to_end(row)
                return self._kept[row]
            self._wanted.add(row)
        with self._drawing:
            with self._waiting:
                if row in self._kept:  # drawn with those of another request
                    return self._kept[row]
                rows = [row, *sorted(self._wanted - {row})[: _MOST_AT_ONCE - 1]]
                self._wanted -= set(rows)
            try:
                drawn = self._drawn(rows)
            except Exception:
                if len(rows) == 1:
                    raise
                drawn = self._drawn([row])  # the others come again by themselves
            with self._waiting:
                self._kept.update(drawn)
                while len(self._kept) > _MOST_PICTURES:
                    self._kept.popitem(last=False)
            return drawn[row]

    def _drawn(self, rows: list[int]) -> dict[int, bytes | None]:
        found = self._scope.thumbnails(self._paths.prepared, self._paths.files, self._objects[rows])
        return {
            row: None if picture is None else webp(small_picture(picture))
            for row, picture in zip(rows, found, strict=True)
        }

    @cached_property
    def _objects(self) -> pl.DataFrame:
        return read_table(self._paths.predictions, without=("embedding",))


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ManyscopeError(
            f"cannot be served here ({error})", place=f"{host}:{port}", remedy="choose another --port, or --port 0"
        ) from error


def _takes_ipv4(listener: socket.socket) -> bool:
    if listener.family == socket.AF_INET:
        return True
    return not listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@contextmanager
def _door(address: str) -> Iterator[Path]:
    """A page that leads to the address and that only this user can read. A browser gets it in place of the address,
    since every user of the machine is shown what a process was started with."""
    with tempfile.NamedTemporaryFile("w", prefix="manyscope-", suffix=".html", encoding="utf-8") as page:  # mode 0600
        page.write(_DOOR.format(address=html.escape(address)))
        page.flush()
        yield Path(page.name)


def _own_names() -> list[str]:
    """By which others may ask for this machine; any number is right too."""
    return [socket.gethostname(), socket.getfqdn(), "*"]
