"""The scope `cells`: what the chain asks, handed to the rooms of this folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from manyscope.data.loading import ScopeData
from manyscope.errors import ManyscopeError, MissingDependencyError
from manyscope.scopes.base import Evaluation, Scope
from manyscope.scopes.cells.settings import CellsSettings

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from PIL.Image import Image

    from manyscope.scopes.cells.data.images import CellImages
    from manyscope.scopes.cells.model.networks import CellSegmenter
    from manyscope.tables.manifest import ManifestEntry
    from manyscope.tables.predictions import Objects
    from manyscope.training.run import TrainingRun


# What the extra 'cells' installs.
_PACKAGES = (
    "bioimage_cpp", "imagecodecs", "micro_sam", "segment_anything", "tifffile", "torch_em", "torchvision", "trackastra",
    "xxhash", "zarr",
)  # fmt: skip


class Cells(Scope[CellsSettings]):
    """Microscope images; each cell that the model finds is an object.

    Raises:
        MissingDependencyError: packages are not installed. The settings can be read without them.
    """

    name: ClassVar[str] = "cells"
    Settings = CellsSettings

    def __init__(self) -> None:
        missing = [package for package in _PACKAGES if find_spec(package) is None]
        if missing:
            raise MissingDependencyError(
                f"the scope 'cells' needs packages that are not installed: {', '.join(missing)}",
                place="scope",
                remedy="install the extra 'cells': pip install 'manyscope[cells]'",
            )

    def download(self, settings: CellsSettings, raw: Path) -> Iterable[ManifestEntry]:
        from manyscope.scopes.cells.data.sources import find_source
        from manyscope.scopes.cells.data.weights import fetch

        section = settings.download
        if section.weights.names:
            fetch(section.weights.names, section.weights.folder)
        return find_source(section.source).download(section, raw)

    def preprocess(self, settings: CellsSettings, raw: Path, manifest: pl.DataFrame, prepared: Path) -> pl.DataFrame:
        from manyscope.scopes.cells.data.prepare import prepare
        from manyscope.scopes.cells.data.sources import find_source

        section = settings.download
        return prepare(find_source(section.source).pairs(section, raw, manifest), settings.preprocess, raw, prepared)

    def problems(self, settings: CellsSettings) -> Iterator[str]:
        from manyscope.scopes.cells.data.sources import SOURCES, find_source
        from manyscope.scopes.cells.data.weights import problems
        from manyscope.scopes.cells.model.names import image_size
        from manyscope.scopes.cells.model.tiling import Tiling

        try:
            SOURCES.path(settings.download.source)
        except ManyscopeError as error:
            yield f"download.source: {error}"
        else:
            yield from find_source(settings.download.source).problems(settings.download)
        yield from problems(settings.download.weights, settings.model.name, settings.model.weights)
        if "test" not in settings.infer.splits:
            yield "infer.splits: without 'test' the masks cannot be judged; add it"
        try:
            side = image_size(settings.model)
            if side:
                Tiling.of(settings.model, side)
                Tiling.of(settings.model, side, settings.infer.tile_px, settings.infer.halo_px)
        except ManyscopeError as error:
            yield str(error)

    def pretrained(self, settings: CellsSettings) -> Mapping[str, str]:
        from manyscope.scopes.cells.data.weights import require
        from manyscope.tables.manifest import file_digest

        if settings.model.weights is None or settings.train.start_from:
            return {}
        found = require(settings.model.weights, settings.model.name)
        return {str(file): file_digest(file) for file in (found.checkpoint, found.decoder) if file}

    def data(self, settings: CellsSettings, prepared: Path) -> CellImages:
        from manyscope.scopes.cells.data.images import CellImages

        return CellImages(prepared)

    def model(self, settings: CellsSettings, data: ScopeData, weights: Path | None = None) -> CellSegmenter:
        """
        Args:
            weights: that will be loaded; the form of the decoder follows from them.
        """
        from manyscope.scopes.cells.model.networks import add_peft, build
        from manyscope.scopes.cells.model.pretrained import decoder_weights

        model = build(settings.model, decoder_weights(settings.model, weights) if weights else ())
        if settings.model.peft:
            add_peft(model, settings.model.peft)
        return model

    def fit(self, settings: CellsSettings, prepared: Path, run: TrainingRun) -> None:
        from manyscope.scopes.cells.model.fit import fit

        fit(settings, self.data(settings, prepared), run)

    def predict(
        self, settings: CellsSettings, prepared: Path, weights: Path, sample_ids: Sequence[str], files: Path
    ) -> Iterator[Objects]:
        from manyscope.scopes.cells.model.infer import predict

        data = self.data(settings, prepared)
        yield from predict(settings, data, self._trained(settings, data, weights), sample_ids, files)

    def evaluate(
        self, settings: CellsSettings, prepared: Path, files: Path, samples: pl.DataFrame, predictions: pl.DataFrame
    ) -> Evaluation:
        from manyscope.scopes.cells.evaluate import evaluate

        return evaluate(settings.evaluate, self.data(settings, prepared), files, samples, predictions)

    def card(self) -> Sequence[str]:
        return (
            "confidence", "area_px", "eccentricity", "solidity", "mean_intensity", "touches_border", "outlier_knn",
            "sample_id", "split",
        )  # fmt: skip

    def thumbnails(self, prepared: Path, files: Path, objects: pl.DataFrame) -> Iterator[Image | None]:
        from manyscope.scopes.cells.data.thumbnails import thumbnails

        yield from thumbnails(prepared, files, objects)

    def queries(self) -> Sequence[str]:
        return ("image",)

    def embed_query(self, settings: CellsSettings, prepared: Path, weights: Path, query: Path | str) -> np.ndarray:
        from manyscope.scopes.cells.model.infer import embed_image

        data = self.data(settings, prepared)
        return embed_image(settings, data, self._trained(settings, data, weights), query)

    def _trained(self, settings: CellsSettings, data: CellImages, weights: Path) -> CellSegmenter:
        from manyscope.training.checkpoints import load_weights

        model = self.model(settings, data, weights)
        load_weights(weights, model, settings.scope, settings.model.model_dump(mode="json"))
        return model
