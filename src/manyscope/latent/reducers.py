"""Reducers: latent vectors to coordinates on a map, and back from disk as they were.

UMAP is umap-learn's graph and layout around three choices of ours, each because it costs far less and the map is as
good (`make bench` shows both beside a peer): neighbours are exact, or nearly so for many objects (`exact_objects`),
since NN-descent spends most of its time compiling itself; the layout starts from principal components instead of a
spectral embedding; and it makes 200 passes where umap-learn makes 500, but for small sets. Compiled code is kept on
disk.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
from pydantic import ValidationError

from manyscope.errors import DataError, MissingDependencyError
from manyscope.latent.cells import Cells
from manyscope.latent.neighbours import nearest_neighbours
from manyscope.log import logger
from manyscope.registry import Registry
from manyscope.settings.sections import UmapSettings
from manyscope.tables.whole import whole_file

REDUCERS = Registry(
    "reducer",
    {
        "pca": "manyscope.latent.reducers:Pca",
        "tsne": "manyscope.latent.tsne:Tsne",
        "umap": "manyscope.latent.reducers:Umap",
    },
)

Loaded = TypeVar("Loaded", bound="StoredReducer")

_FEWEST = 10  # objects of which UMAP's graph still says something
# Functions that umap-learn compiles anew in every process; keeping them changes nothing but the time.
_COMPILED = (
    ("umap_", "smooth_knn_dist"),
    ("umap_", "compute_membership_strengths"),
    ("layouts", "clip"),
    ("layouts", "_nb_optimize_layout_euclidean_single_epoch"),
)
_NOISE = 1e-4  # of a layout 10 wide: parts objects that principal components put in one place


class Reducer(Protocol):
    """What the umap stage asks of a reducer; it is constructed from the stage's settings."""

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        """Learn the map of (n, dimensions) vectors; their coordinates, (n, 2 or 3) float32."""

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """Put further vectors on the map; their coordinates, (n, 2 or 3) float32."""

    def save(self, path: Path) -> None:
        """Write the fitted state to one file, whole."""

    @classmethod
    def load(cls, path: Path) -> Reducer:
        """The fitted reducer: it transforms as it did before it was saved."""


def metric_of(settings: UmapSettings) -> Literal["l2", "cosine"]:
    """The distance of the latent space in the words of `manyscope.latent.neighbours`."""
    return "cosine" if settings.metric == "cosine" else "l2"


def scale_of(vectors: np.ndarray, settings: UmapSettings) -> np.ndarray:
    """What each dimension is divided by, (dimensions,) float32: 1 unless the settings say `standardize`."""
    scale = np.ones(vectors.shape[1], np.float32)
    if settings.standardize:
        varies = vectors.max(0) > vectors.min(0)
        scale[varies] = vectors[:, varies].std(0, dtype=np.float64)
    return scale


class StoredReducer:
    """Settings and arrays, kept as one .npz file that holds no pickled object."""

    arrays: ClassVar[tuple[str, ...]]  # attributes that are the fitted state

    def __init__(self, settings: UmapSettings) -> None:
        self.settings = settings
        self.scale = np.ones(0, np.float32)

    def save(self, path: Path) -> None:
        state = {name: getattr(self, name) for name in ("scale", *self.arrays)}
        parameters = {"reducer": type(self).__name__, "settings": self.settings.model_dump(mode="json")}
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, parameters=np.array(json.dumps(parameters)), **state)

    @classmethod
    def load(cls: type[Loaded], path: Path) -> Loaded:
        """
        Raises:
            DataError: missing or broken file, or the file of another reducer.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                parameters = json.loads(str(stored["parameters"]))
                if parameters["reducer"] != cls.__name__:
                    raise DataError(f"holds the reducer {parameters['reducer']}", place=path, allowed=cls.__name__)
                reducer = cls(UmapSettings.model_validate(parameters["settings"]))
                for name in ("scale", *cls.arrays):
                    setattr(reducer, name, stored[name])
        except FileNotFoundError as error:
            raise DataError("the file is missing", place=path, remedy="run the stage umap") from error
        except (OSError, EOFError, KeyError, TypeError, ValueError, ValidationError, zipfile.BadZipFile) as error:
            raise DataError(f"not a stored reducer ({error})", place=path, remedy="run the stage umap again") from error
        return reducer

    def _fit_scale(self, vectors: np.ndarray) -> np.ndarray:
        _check(vectors)
        self.scale = scale_of(vectors, self.settings)
        return np.ascontiguousarray(vectors / self.scale, np.float32)

    def _scaled(self, vectors: np.ndarray) -> np.ndarray:
        _check(vectors, len(self.scale))
        return np.ascontiguousarray(vectors / self.scale, np.float32)


class Pca(StoredReducer):
    """Principal components. An axis is turned so that its largest loading is positive."""

    arrays = ("mean", "axes")

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        """
        Raises:
            DataError: no vector, or values that are not finite.
        """
        self.mean, self.axes = _principal_axes(self._fit_scale(vectors), self.settings.components)
        return self.transform(vectors)

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """
        Raises:
            DataError: vectors of another size, or values that are not finite.
        """
        return ((self._scaled(vectors) - self.mean) @ self.axes).astype(np.float32)


class NeighbourReducer(StoredReducer):
    """What places objects by their nearest neighbours among the fitted ones, whose vectors it keeps.

    Fewer than ten objects are placed by principal components, with a warning, and a new object beside them where its
    nearest one lies.
    """

    arrays = ("vectors", "coordinates")

    def __init__(self, settings: UmapSettings) -> None:
        super().__init__(settings)
        self._cells: Cells | None = None

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        """
        Raises:
            DataError: no vector, or values that are not finite.
            MissingDependencyError: umap-learn cannot keep its compiled code.
        """
        self.vectors, self._cells = self._fit_scale(vectors), None
        start = _wide(self.vectors, self.settings.components)
        if len(vectors) < _FEWEST:
            kind = type(self).__name__
            logger.warning("%d objects are too few for %s: the map shows principal components", len(vectors), kind)
            self.coordinates = start
        else:
            self.coordinates = self._layout(start)
        return self.coordinates

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """
        Raises:
            DataError: vectors of another size, or values that are not finite.
            MissingDependencyError: umap-learn cannot keep its compiled code.
        """
        scaled = self._scaled(vectors)
        if not len(vectors):
            return np.empty((0, self.settings.components), np.float32)
        if len(self.vectors) < _FEWEST:
            return self.coordinates[self._neighbours(scaled, 1)[1][:, 0]]
        return self._place(scaled)

    def _layout(self, start: np.ndarray) -> np.ndarray:
        """Coordinates of the fitted vectors, (n, 2 or 3) float32, from those of their principal components."""
        raise NotImplementedError

    def _place(self, scaled: np.ndarray) -> np.ndarray:
        """Coordinates of new vectors, (m, 2 or 3) float32, while the fitted ones stay."""
        raise NotImplementedError

    def _neighbours(self, queries: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances, (m, k) float32, and rows of the k fitted vectors nearest to each query; None asks for those of
        the fitted vectors, each without itself."""
        metric = metric_of(self.settings)
        if len(self.vectors) <= self.settings.exact_objects:
            distances, rows = nearest_neighbours(self.vectors, k, queries, metric=metric)
        else:
            if self._cells is None:
                self._cells = Cells(self.vectors, metric, self.settings.seed)
            distances, rows = self._cells.neighbours(k, queries)
        if self.settings.metric == "euclidean":
            distances = np.sqrt(distances)
        return distances.astype(np.float32), rows.astype(np.int32)


class Umap(NeighbourReducer):
    """McInnes, Healy and Melville, UMAP (2018), through umap-learn's functions; see the head of this module.

    With fewer objects than `n_neighbors`, all of them are neighbours.
    """

    @property
    def _k(self) -> int:
        return min(self.settings.n_neighbors, len(self.vectors))

    def _layout(self, start: np.ndarray) -> np.ndarray:
        with _one_thread():
            return self._optimized(start)

    def _optimized(self, start: np.ndarray) -> np.ndarray:
        umap = _umap()
        n, k = len(self.vectors), self._k
        if k < self.settings.n_neighbors:
            logger.warning("%d objects: n_neighbors is lowered from %d", n, self.settings.n_neighbors)
        distances, rows = self._neighbours(None, k - 1)
        rows = np.column_stack([np.arange(n, dtype=np.int32), rows])  # UMAP counts an object as its own neighbour
        distances = np.column_stack([np.zeros(n, np.float32), distances])
        random = np.random.RandomState(self.settings.seed)
        graph, _, _ = umap.fuzzy_simplicial_set(
            self.vectors, k, random, self.settings.metric, knn_indices=rows, knn_dists=distances
        )
        a, b = umap.find_ab_params(1.0, self.settings.min_dist)
        noise = np.random.default_rng(self.settings.seed).normal(scale=_NOISE, size=start.shape)
        coordinates, _ = umap.simplicial_set_embedding(
            self.vectors, graph, self.settings.components, initial_alpha=1.0, a=a, b=b, gamma=1.0,
            negative_sample_rate=5, n_epochs=500 if n <= 2_500 else 200,
            init=(start + noise).astype(np.float32), random_state=random,
            metric=self.settings.metric, metric_kwds={}, densmap=False, densmap_kwds={}, output_dens=False,
        )  # fmt: skip
        return np.ascontiguousarray(coordinates, np.float32)

    def _place(self, scaled: np.ndarray) -> np.ndarray:
        with _one_thread():
            return self._placed(*self._neighbours(scaled, self._k))

    def _placed(self, distances: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """New objects start amid their neighbours and are then laid out among the fitted ones, which stay."""
        umap = _umap()
        from umap.layouts import optimize_layout_euclidean

        new, k = rows.shape
        widths, nearest = umap.smooth_knn_dist(distances, float(k), local_connectivity=0.0)
        head, tail, strength, _ = umap.compute_membership_strengths(rows, distances, widths, nearest, bipartite=True)
        weights = strength.reshape(new, k)
        same = weights == 1  # a vector of the fit has its place already
        weights = np.where(same.any(1, keepdims=True), same, weights)
        start = np.einsum("nk,nkc->nc", weights / weights.sum(1, keepdims=True), self.coordinates[rows])
        passes = 100 if new <= 10_000 else 30
        kept = strength >= strength.max() / passes
        a, b = umap.find_ab_params(1.0, self.settings.min_dist)
        random = np.random.RandomState(self.settings.seed)
        placed: np.ndarray = optimize_layout_euclidean(
            np.ascontiguousarray(start, np.float32), self.coordinates.copy(), head[kept], tail[kept], passes,
            len(self.vectors), umap.make_epochs_per_sample(strength[kept], passes), a, b,
            random.randint(-(2**31) + 1, 2**31 - 1, 3).astype(np.int64), 1.0, 0.25, 5.0,
        )  # fmt: skip
        return placed


@cache
def _umap() -> Any:
    """umap-learn's functions, with compiled code kept on disk also where umap-learn itself does not keep it."""
    try:
        import umap.layouts
        import umap.umap_

        for module, name in _COMPILED:
            if function := getattr(getattr(umap, module), name, None):
                function.enable_caching()
    except RuntimeError as error:
        raise MissingDependencyError(
            f"umap-learn finds no folder for its compiled code ({error})",
            remedy="set NUMBA_CACHE_DIR to a folder that can be written",
        ) from error
    return umap.umap_


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over several threads would depend on how many there are."""
    import numba

    # numba sets the number of OpenMP, which is torch's, too, also when it is asked for its own for the first time.
    torch = sys.modules.get("torch")
    theirs = torch.get_num_threads() if torch else 0
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        yield
    finally:
        numba.set_num_threads(threads)
        if torch:
            torch.set_num_threads(theirs)


def _check(vectors: np.ndarray, dimensions: int | None = None) -> None:
    if vectors.ndim != 2 or not vectors.shape[1] or (dimensions is None and not len(vectors)):
        raise DataError(f"vectors of shape {vectors.shape}", allowed="(objects, dimensions), neither of them 0")
    if dimensions is not None and vectors.shape[1] != dimensions:
        raise DataError(
            f"vectors of {vectors.shape[1]} dimensions", allowed=f"{dimensions}, with which the reducer was fitted"
        )
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise DataError(f"the latent vector in row {row} is not finite", remedy="run the stage infer again")


def _principal_axes(vectors: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean, (dimensions,), and the axes, (dimensions, components), of largest variance first; zero where the
    vectors have fewer dimensions than the map."""
    mean = vectors.mean(0, dtype=np.float64)
    centred = vectors - mean
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :components]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0)
    axes = axes * np.where(largest < 0, -1, 1)
    return mean, np.pad(axes, ((0, 0), (0, components - axes.shape[1])))


def _wide(vectors: np.ndarray, components: int) -> np.ndarray:
    """Principal components of which the widest spans -10 to 10 at most, (n, components) float32."""
    mean, axes = _principal_axes(vectors, components)
    coordinates = (vectors - mean) @ axes
    reach = np.abs(coordinates).max()
    return (coordinates * (10 / reach if reach > 0 else 1)).astype(np.float32)
