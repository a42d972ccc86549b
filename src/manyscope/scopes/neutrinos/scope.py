"""The scope `neutrinos`: what the chain asks, handed to the rooms of this folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from manyscope.data.loading import ScopeData
from manyscope.registry import unknown_names
from manyscope.scopes.base import Evaluation, Scope
from manyscope.scopes.neutrinos.settings import NeutrinosSettings

if TYPE_CHECKING:
    import polars as pl
    from PIL.Image import Image
    from torch import nn

    from manyscope.scopes.neutrinos.data.loading import EventData
    from manyscope.tables.manifest import ManifestEntry
    from manyscope.tables.predictions import Objects
    from manyscope.training.run import TrainingRun


class Neutrinos(Scope[NeutrinosSettings]):
    """Events of a neutrino telescope, simulated or recorded."""

    name: ClassVar[str] = "neutrinos"
    Settings = NeutrinosSettings

    def download(self, settings: NeutrinosSettings, raw: Path) -> Iterable[ManifestEntry]:
        from manyscope.scopes.neutrinos.data.files import link_extra
        from manyscope.scopes.neutrinos.data.sources import find_source

        yield from find_source(settings.download.source).download(settings.download, raw)
        if settings.download.source != "files":
            yield from link_extra(settings.download, raw)

    def preprocess(
        self, settings: NeutrinosSettings, raw: Path, manifest: pl.DataFrame, prepared: Path
    ) -> pl.DataFrame:
        from manyscope.scopes.neutrinos.data.files import extra_files
        from manyscope.scopes.neutrinos.data.prepare import prepare
        from manyscope.scopes.neutrinos.data.sources import find_source

        files = list(find_source(settings.download.source).files(settings.download, raw, manifest))
        if settings.download.source != "files":
            files += extra_files(settings.download, raw)
        return prepare(files, settings.preprocess, prepared)

    def problems(self, settings: NeutrinosSettings) -> Iterator[str]:
        from manyscope.scopes.neutrinos.data.files import file_problems
        from manyscope.scopes.neutrinos.data.kaggle import source_problems
        from manyscope.scopes.neutrinos.data.sources import SOURCES
        from manyscope.scopes.neutrinos.model import MODELS

        named = [("download.source", SOURCES, settings.download.source), ("model.name", MODELS, settings.model.name)]
        yield from unknown_names(named)
        if settings.download.source == "files" and not settings.download.files:
            yield "download.files: the source 'files' needs at least one entry"
        yield from file_problems(settings.download)
        yield from source_problems(settings.download)

    def data(self, settings: NeutrinosSettings, prepared: Path) -> EventData:
        from manyscope.scopes.neutrinos.data.loading import EventData
        from manyscope.scopes.neutrinos.model import input_form

        return EventData(prepared, settings.model.input, input_form(settings.model))

    def model(self, settings: NeutrinosSettings, data: ScopeData) -> nn.Module:
        from manyscope.scopes.neutrinos.model import build_model

        return build_model(settings.model)

    def fit(self, settings: NeutrinosSettings, prepared: Path, run: TrainingRun) -> None:
        from manyscope.scopes.neutrinos.model import calibrate

        self.data(settings, prepared).log_cuts()  # and let go, since tables of 100 million events are large
        super().fit(settings, prepared, run)
        calibrate(settings, self.data(settings, prepared), run)

    def predict_batch(self, settings: NeutrinosSettings, model: nn.Module, batch: dict[str, Any]) -> Objects:
        from manyscope.scopes.neutrinos.model import describe

        return describe(model, batch)

    def evaluate(
        self, settings: NeutrinosSettings, prepared: Path, files: Path, samples: pl.DataFrame, predictions: pl.DataFrame
    ) -> Evaluation:
        from manyscope.scopes.neutrinos.evaluate import evaluate

        return evaluate(settings.evaluate, self.data(settings, prepared), samples, predictions)

    def card(self) -> Sequence[str]:
        return ("class", "error_deg", "kappa", "energy_gev", "n_pulses", "n_modules", "coincident_muon", "outlier_knn")

    def thumbnails(self, prepared: Path, files: Path, objects: pl.DataFrame) -> Iterator[Image | None]:
        from manyscope.scopes.neutrinos.data.thumbnails import thumbnails

        yield from thumbnails(prepared, objects["object_id"].to_list())
