"""The scope `galaxies`: what the chain asks, handed to the rooms of this folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    from manyscope.training.onnx import Exportable


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
        from manyscope.scopes.galaxies.data.sources import SOURCES, find_source
        from manyscope.scopes.galaxies.data.transforms import TRANSFORMS
        from manyscope.scopes.galaxies.model import CRITERIA, MODELS

        named = [
            ("download.source", SOURCES, settings.download.source),
            ("model.name", MODELS, settings.model.name),
            ("model.criterion", CRITERIA, settings.model.criterion or "mse"),
            *(("preprocess.transforms", TRANSFORMS, step.name) for step in settings.preprocess.transforms),
        ]
        yield from unknown_names(named)
        if not list(unknown_names(named[:1])):
            source = find_source(settings.download.source)
            if hasattr(source, "problems"):
                yield from source.problems(settings.download)
        missing = {"train", "validation", "test"} - set(settings.infer.splits)
        if missing:
            yield f"infer.splits: without {', '.join(sorted(missing))} the latent space cannot be judged; add it"
        yield from _too_large_crops(settings)
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

    def new_model(self, settings: GalaxiesSettings, data: ScopeData) -> nn.Module:
        from manyscope.scopes.galaxies.model import new_model

        return new_model(settings.model, cast("StampData", data))

    def predict_batch(self, settings: GalaxiesSettings, model: nn.Module, batch: dict[str, Any]) -> Objects:
        from manyscope.scopes.galaxies.model import describe

        return describe(model, batch)

    def exportable(self, settings: GalaxiesSettings, data: ScopeData, model: nn.Module) -> Exportable:
        from manyscope.scopes.galaxies.model.export import exportable

        return exportable(model, cast("StampData", data))

    def evaluate(
        self, settings: GalaxiesSettings, prepared: Path, files: Path, samples: pl.DataFrame, predictions: pl.DataFrame
    ) -> Evaluation:
        from manyscope.scopes.galaxies.evaluate import evaluate

        data = self.data(settings, prepared)
        return evaluate(settings.model, settings.evaluate, settings.gather, data, samples, predictions)

    def card(self) -> Sequence[str]:
        return (
            "class", "anomaly", "flux", "snr", "half_light_radius", "ellipticity", "axis_ratio", "colour",
            "outlier_knn", "outlier_reconstruction",
        )  # fmt: skip

    def thumbnails(self, prepared: Path, files: Path, objects: pl.DataFrame) -> Iterator[Image | None]:
        from manyscope.scopes.galaxies.data.thumbnails import thumbnails

        yield from thumbnails(prepared, objects["object_id"].to_list())

    def queries(self) -> Sequence[str]:
        return ("image",)

    def embed_query(self, settings: GalaxiesSettings, prepared: Path, weights: Path, query: Path | str) -> np.ndarray:
        from manyscope.scopes.galaxies.query import embed_image

        return embed_image(settings.model, self.data(settings, prepared), weights, query)


def _too_large_crops(settings: GalaxiesSettings) -> Iterator[str]:
    """A sentence for each crop that is larger than the stamps that the source gives."""
    source, section = settings.download.source, settings.preprocess
    own = {"table": 1, "cifar10": 32, "random": settings.download.random.size_px}
    size = own.get(source, section.stamp_px)
    for step in section.transforms:
        wanted = step.args.get("size_px")
        if step.name == "crop" and isinstance(wanted, int) and wanted > size:
            if source == "table":
                yield "preprocess.transforms: features cannot be cropped; set preprocess.transforms: []"
            else:
                yield (
                    f"preprocess.transforms: a crop of {wanted} px does not fit the stamps of source {source!r}, "
                    f"{size} px; lower the one, or raise the other"
                )
