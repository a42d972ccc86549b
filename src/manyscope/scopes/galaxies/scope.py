"""The scope `galaxies`: what the chain asks, handed to the rooms of this folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from manyscope.data.loading import ScopeData
from manyscope.registry import unknown_names
from manyscope.scopes.base import Evaluation, Scope
from manyscope.scopes.galaxies.settings import GalaxiesSettings

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from PIL.Image import Image
    from torch import nn

    from manyscope.scopes.galaxies.data.stamps import StampData
    from manyscope.tables.manifest import ManifestEntry
    from manyscope.tables.predictions import Objects


class Galaxies(Scope[GalaxiesSettings]):
    """Cutouts of galaxies, photographed or simulated."""

    name: ClassVar[str] = "galaxies"
    Settings = GalaxiesSettings

    def download(self, settings: GalaxiesSettings, raw: Path) -> Iterable[ManifestEntry]:
        from manyscope.scopes.galaxies.data.sources import find_source

        return find_source(settings.download.source).download(settings.download, raw)

    def preprocess(self, settings: GalaxiesSettings, raw: Path, manifest: pl.DataFrame, prepared: Path) -> pl.DataFrame:
        from manyscope.scopes.galaxies.data.prepare import prepare
        from manyscope.scopes.galaxies.data.sources import find_source

        source = find_source(settings.download.source)
        return prepare(source.cut(settings.preprocess, raw, manifest), settings.preprocess, raw, prepared)

    def problems(self, settings: GalaxiesSettings) -> Iterator[str]:
        from manyscope.scopes.galaxies.data.sources import SOURCES
        from manyscope.scopes.galaxies.data.transforms import TRANSFORMS
        from manyscope.scopes.galaxies.model import MODELS

        named = [
            ("download.source", SOURCES, settings.download.source),
            ("model.name", MODELS, settings.model.name),
            *(("preprocess.transforms", TRANSFORMS, step.name) for step in settings.preprocess.transforms),
        ]
        yield from unknown_names(named)
        missing = {"train", "validation", "test"} - set(settings.infer.splits)
        if missing:
            yield f"infer.splits: without {', '.join(sorted(missing))} the latent space cannot be judged; add it"
        drawn, wanted = settings.download.simulated.stamp_px, settings.preprocess.stamp_px
        if settings.download.source == "simulated" and drawn < wanted:
            yield (
                f"preprocess.stamp_px: {wanted} px are more than download.simulated.stamp_px draws, {drawn} px; "
                "lower the one or raise the other"
            )

    def data(self, settings: GalaxiesSettings, prepared: Path) -> StampData:
        from manyscope.scopes.galaxies.data.stamps import StampData

        return StampData(prepared)

    def model(self, settings: GalaxiesSettings, data: ScopeData) -> nn.Module:
        from manyscope.scopes.galaxies.model import build_model

        return build_model(settings.model, cast("StampData", data))

    def predict_batch(self, settings: GalaxiesSettings, model: nn.Module, batch: dict[str, Any]) -> Objects:
        from manyscope.scopes.galaxies.model import describe

        return describe(model, batch)

    def evaluate(
        self, settings: GalaxiesSettings, prepared: Path, files: Path, samples: pl.DataFrame, predictions: pl.DataFrame
    ) -> Evaluation:
        from manyscope.scopes.galaxies.evaluate import evaluate

        data = self.data(settings, prepared)
        return evaluate(settings.model, settings.evaluate, settings.gather, data, samples, predictions)

    def thumbnails(self, prepared: Path, files: Path, objects: pl.DataFrame) -> Iterator[Image | None]:
        from manyscope.scopes.galaxies.data.thumbnails import thumbnails

        yield from thumbnails(prepared, objects["object_id"].to_list())

    def embed_query(self, settings: GalaxiesSettings, prepared: Path, weights: Path, query: Path | str) -> np.ndarray:
        from manyscope.scopes.galaxies.model import embed_image

        return embed_image(settings.model, self.data(settings, prepared), weights, query)
