"""The scope `scenes`: what the chain asks, handed to the rooms of this folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from manyscope.data.loading import ScopeData
from manyscope.errors import ManyscopeError
from manyscope.registry import unknown_names
from manyscope.scopes.base import Evaluation, Scope
from manyscope.scopes.scenes.edits import ScenesEdits
from manyscope.scopes.scenes.settings import ScenesSettings
from manyscope.settings.sections import Section

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from PIL.Image import Image

    from manyscope.scopes.scenes.data.clip import Clip
    from manyscope.scopes.scenes.model.graph import AtlasGraph
    from manyscope.tables.manifest import ManifestEntry
    from manyscope.tables.predictions import Objects
    from manyscope.training.run import TrainingRun


class Scenes(Scope[ScenesSettings]):
    """A video as a graph of planes that move in space. A sample is a frame; each layer that a frame shows is an
    object."""

    name: ClassVar[str] = "scenes"
    Settings = ScenesSettings
    Edits: ClassVar[type[Section] | None] = ScenesEdits

    def download(self, settings: ScenesSettings, raw: Path) -> Iterable[ManifestEntry]:
        from manyscope.scopes.scenes.data.sources import find_source

        return find_source(settings.download.source).download(settings.download, raw)

    def preprocess(self, settings: ScenesSettings, raw: Path, manifest: pl.DataFrame, prepared: Path) -> pl.DataFrame:
        from manyscope.scopes.scenes.data.prepare import prepare
        from manyscope.scopes.scenes.data.sources import find_source

        clip = find_source(settings.download.source).clip(settings.download, raw, manifest)
        return prepare(clip, settings.preprocess, raw, prepared)

    def problems(self, settings: ScenesSettings) -> Iterator[str]:
        from manyscope.scopes.scenes.data.prepare import count_problems
        from manyscope.scopes.scenes.data.sources import SOURCES, find_source
        from manyscope.scopes.scenes.model.names import MODELS, PLANES, SAMPLERS

        named = [
            ("model.name", MODELS, settings.model.name),
            ("model.object_plane", PLANES, settings.model.object_plane),
            ("model.background_plane", PLANES, settings.model.background_plane),
            ("train.sampler", SAMPLERS, settings.train.sampler),
        ]
        yield from unknown_names(named)
        yield from count_problems(settings)
        try:
            SOURCES.path(settings.download.source)
        except ManyscopeError as error:
            yield f"download.source: {error}"
        else:
            yield from find_source(settings.download.source).problems(settings.download)
        if "test" not in settings.infer.splits or "train" not in settings.infer.splits:
            yield "infer.splits: without 'train' and 'test' the scene cannot be judged; add them"
        weights = settings.evaluate.lpips_weights
        if weights is not None and not weights.is_file():
            yield f"evaluate.lpips_weights: {weights} is missing; give a file of AlexNet's weights, or leave it out"

    def data(self, settings: ScenesSettings, prepared: Path) -> Clip:
        from manyscope.scopes.scenes.data.clip import Clip

        return Clip(prepared)

    def model(self, settings: ScenesSettings, data: ScopeData) -> AtlasGraph:
        from manyscope.scopes.scenes.model.bundle import build

        clip = cast("Clip", data)
        return build(settings.model, clip.placement, clip.size, clip.times, clip.objects)

    def fit(self, settings: ScenesSettings, prepared: Path, run: TrainingRun) -> None:
        from manyscope.scopes.scenes.model.fit import fit

        fit(settings, self.data(settings, prepared), run)

    def predict(
        self, settings: ScenesSettings, prepared: Path, weights: Path, sample_ids: Sequence[str], files: Path
    ) -> Iterator[Objects]:
        from manyscope.scopes.scenes.model.infer import predict
        from manyscope.training.checkpoints import load_weights

        clip = self.data(settings, prepared)
        graph = self.model(settings, clip)
        load_weights(weights, graph, settings.scope, settings.model.model_dump(mode="json"))
        yield from predict(graph, clip, sample_ids, files, settings.infer.batch_size)

    def evaluate(
        self, settings: ScenesSettings, prepared: Path, files: Path, samples: pl.DataFrame, predictions: pl.DataFrame
    ) -> Evaluation:
        from manyscope.scopes.scenes.evaluate import evaluate
        from manyscope.scopes.scenes.model.infer import untrained

        clip = self.data(settings, prepared)
        placed = untrained(self.model(settings, clip), clip)
        return evaluate(settings.evaluate, clip, files, samples, predictions, placed)

    def card(self) -> Sequence[str]:
        return ("layer", "frame", "time", "share", "depth", "split", "outlier_knn")

    def thumbnails(self, prepared: Path, files: Path, objects: pl.DataFrame) -> Iterator[Image | None]:
        from manyscope.scopes.scenes.data.thumbnails import thumbnails

        yield from thumbnails(files, objects)

    def queries(self) -> Sequence[str]:
        return ("image",)

    def embed_query(self, settings: ScenesSettings, prepared: Path, weights: Path, query: Path | str) -> np.ndarray:
        from manyscope.scopes.scenes.model.infer import embed_picture

        if isinstance(query, str):
            raise ManyscopeError("scope 'scenes' cannot search by text", remedy="use --id, --vector or --image")
        return embed_picture(query)

    def edit(self, settings: ScenesSettings, export: Path, edits: Section, output: Path) -> list[Path]:
        from manyscope.scopes.scenes.model.edit import edit

        return edit(settings, export, cast("ScenesEdits", edits), output)
