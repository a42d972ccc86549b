"""The scope `panoramas`: what the chain asks, handed to the rooms of this folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from manyscope.data.loading import ScopeData
from manyscope.errors import CheckpointError, ManyscopeError
from manyscope.registry import unknown_names
from manyscope.scopes.base import Evaluation, Scope
from manyscope.scopes.panoramas.settings import PanoramasSettings

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from PIL.Image import Image

    from manyscope.scopes.panoramas.data.panoramas import Panoramas as PreparedPanoramas
    from manyscope.scopes.panoramas.model.infer import Answers
    from manyscope.scopes.panoramas.model.network import PanoramaModel
    from manyscope.tables.manifest import ManifestEntry
    from manyscope.tables.predictions import Objects
    from manyscope.training.run import TrainingRun


class Panoramas(Scope[PanoramasSettings]):
    """360-degree pictures and questions about them. A sample is a question about a picture."""

    name: ClassVar[str] = "panoramas"
    Settings = PanoramasSettings

    def download(self, settings: PanoramasSettings, raw: Path) -> Iterable[ManifestEntry]:
        from manyscope.scopes.panoramas.data.hub import fetch
        from manyscope.scopes.panoramas.data.sources import find_source

        hub = settings.download.hub
        if hub.names:
            fetch(hub.names, hub.folder)
        return find_source(settings.download.source).download(settings.download, raw)

    def preprocess(
        self, settings: PanoramasSettings, raw: Path, manifest: pl.DataFrame, prepared: Path
    ) -> pl.DataFrame:
        from manyscope.scopes.panoramas.data.prepare import prepare
        from manyscope.scopes.panoramas.data.sources import find_source

        section, source = settings.download, find_source(settings.download.source)
        tables, rooms = source.tables(section, raw, manifest), source.rooms(section, raw)
        return prepare(tables, rooms, settings.preprocess, raw, prepared)

    def problems(self, settings: PanoramasSettings) -> Iterator[str]:
        from manyscope.scopes.panoramas.data.sources import FEWEST, SOURCES, find_source
        from manyscope.scopes.panoramas.model.names import MODELS, problems
        from manyscope.scopes.panoramas.model.overlap import LOSSES
        from manyscope.scopes.panoramas.model.resamplers import RESAMPLERS
        from manyscope.scopes.panoramas.views.strategies import STRATEGIES, find_views

        named = [
            ("model.name", MODELS, settings.model.name),
            ("model.resampler.name", RESAMPLERS, settings.model.resampler.name),
            ("preprocess.views.strategy", STRATEGIES, settings.preprocess.views.strategy),
        ]
        if settings.model.overlap.loss != "none":
            named.append(("model.overlap.loss", LOSSES, settings.model.overlap.loss))
        unknown = list(unknown_names(named))
        yield from unknown
        if not unknown:
            try:
                find_views(settings.preprocess.views)
            except ManyscopeError as error:
                yield str(error)
        yield from problems(settings)
        if "test" not in settings.infer.splits:
            yield "infer.splits: without 'test' the answers cannot be judged; add it"
        if settings.download.source == "rooms" and settings.download.rooms.test < FEWEST:
            yield (
                f"download.rooms.test: {settings.download.rooms.test} pictures give no interval; allowed: at least"
                f" {FEWEST}"
            )
        try:
            SOURCES.path(settings.download.source)
        except ManyscopeError as error:
            yield f"download.source: {error}"
        else:
            yield from find_source(settings.download.source).problems(settings.download, settings.preprocess)

    def pretrained(self, settings: PanoramasSettings) -> Mapping[str, str]:
        from manyscope.scopes.panoramas.data.hub import digests, require

        model = settings.model
        names = {name for name in (model.vision.pretrained, model.language.pretrained) if name}
        return {
            f"{name}/{file}": digest  # most models call their file the same
            for name in sorted(names)
            for file, digest in digests(require(name, model.weights)).items()
        }

    def data(self, settings: PanoramasSettings, prepared: Path) -> PreparedPanoramas:
        from manyscope.scopes.panoramas.data.panoramas import Panoramas as PreparedPanoramas

        return PreparedPanoramas(prepared)

    def model(self, settings: PanoramasSettings, data: ScopeData) -> PanoramaModel:
        from manyscope.scopes.panoramas.model.names import build_network

        return build_network(settings.model, data)

    def fit(self, settings: PanoramasSettings, prepared: Path, run: TrainingRun) -> None:
        from manyscope.scopes.panoramas.model.fit import fit

        if run.start is not None:
            self._check_pretrained(settings, run.start)
        fit(settings, self.data(settings, prepared), run)

    def predict(
        self, settings: PanoramasSettings, prepared: Path, weights: Path, sample_ids: Sequence[str], files: Path
    ) -> Iterator[Objects]:
        yield from self._answers(settings, prepared, weights).of(sample_ids)

    def evaluate(
        self, settings: PanoramasSettings, prepared: Path, files: Path, samples: pl.DataFrame, predictions: pl.DataFrame
    ) -> Evaluation:
        from manyscope.scopes.panoramas.evaluate import evaluate

        return evaluate(settings.evaluate, self.data(settings, prepared), samples, predictions)

    def card(self) -> Sequence[str]:
        return ("question", "answer (predicted)", "answer", "right", "blind_answer", "type", "direction", "group")

    def thumbnails(self, prepared: Path, files: Path, objects: pl.DataFrame) -> Iterator[Image | None]:
        from manyscope.scopes.panoramas.data.thumbnails import thumbnails

        yield from thumbnails(prepared, files, objects)

    def queries(self) -> Sequence[str]:
        return ("image", "text")

    def embed_query(self, settings: PanoramasSettings, prepared: Path, weights: Path, query: Path | str) -> np.ndarray:
        from manyscope.scopes.panoramas.model.infer import embed

        answers = self._answers(settings, prepared, weights)
        return embed(answers, query if isinstance(query, str) else self._views(settings, query)[1])

    def show(self, settings: PanoramasSettings, file: Path) -> Any:
        from manyscope.scopes.panoramas.views.layout import draw_layout
        from manyscope.scopes.panoramas.views.strategies import find_views

        panorama, rendered = self._views(settings, file)
        return draw_layout(panorama, find_views(settings.preprocess.views), rendered)

    def _views(self, settings: PanoramasSettings, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """A picture, and its views."""
        from manyscope.scopes.panoramas.data.pictures import read_panorama
        from manyscope.scopes.panoramas.views.render import Renderer
        from manyscope.scopes.panoramas.views.strategies import find_views

        section = settings.preprocess
        panorama = read_panorama(file, section.aspect_tolerance)
        return panorama, Renderer(find_views(section.views), section.views)(panorama)

    def _answers(self, settings: PanoramasSettings, prepared: Path, weights: Path) -> Answers:
        from manyscope.scopes.panoramas.model.infer import Answers
        from manyscope.training.checkpoints import load_weights

        self._check_pretrained(settings, weights)
        data = self.data(settings, prepared)
        network = self.model(settings, cast("ScopeData", data))
        load_weights(weights, network, settings.scope, settings.model.model_dump(mode="json"))
        return Answers(network, data, settings.infer.batch_size, settings.infer.most_words)

    def _check_pretrained(self, settings: PanoramasSettings, weights: Path) -> None:
        """
        Args:
            weights: of a training; they lack what stays as it was in a pretrained model.

        Raises:
            CheckpointError: the pretrained models are not those that the training started from, or are missing.
        """
        from manyscope.settings.paths import ExperimentPaths
        from manyscope.tables.whole import read_json

        own = self.pretrained(settings)
        if not own:
            return
        record = ExperimentPaths(weights.parent.parent).run
        trained = read_json(record)["pretrained"]
        different = sorted(file for file in {**own, **trained} if own.get(file) != trained.get(file))
        if different:
            raise CheckpointError(
                f"the model was not trained with {different[0]} as it is now",
                place=record,
                remedy="bring back the file with the SHA-256 that is named there, or run the stage train again",
            )
