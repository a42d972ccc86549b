"""The contract of a scope: everything that the chain asks of a kind of instrument.

A scope is one class. Its module imports nothing heavy at the top, since the workflow reads the settings of every
experiment before it runs anything; torch and its kin are imported inside the methods that need them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from manyscope.errors import ManyscopeError
from manyscope.settings.sections import ExperimentSettings, Section

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from PIL.Image import Image
    from torch import nn

    from manyscope.data.loading import ScopeData
    from manyscope.tables.manifest import ManifestEntry
    from manyscope.tables.metrics import Metric
    from manyscope.tables.predictions import Objects
    from manyscope.training.onnx import Exportable
    from manyscope.training.run import TrainingRun

S = TypeVar("S", bound=ExperimentSettings)


@dataclass(frozen=True)
class Evaluation:
    """What `Scope.evaluate` found.

    Attributes:
        headline: name of the metric that stands for the experiment in the summary.
        figures: file name without suffix -> matplotlib figure.
        captions: file name without suffix -> one sentence for the report.
        tables: file name -> a table to be written as CSV, such as the file that a competition wants.
        files: file name -> what writes that file at a given path, such as a video.
    """

    headline: str
    metrics: list[Metric]
    figures: dict[str, Any] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    files: dict[str, Callable[[Path], None]] = field(default_factory=dict)


class Scope(ABC, Generic[S]):
    """One kind of instrument.

    Class attributes:
        name: as in the settings and in the entry-point group `manyscope.scopes`.
        Settings: the strict model of its experiments.
        default_settings: a YAML file that is merged under the user's settings, or None.
        Edits: the strict model of what `edit` is asked for, or None for a scope with nothing to edit.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[ExperimentSettings]]
    default_settings: ClassVar[Path | None] = None
    Edits: ClassVar[type[Section] | None] = None

    @abstractmethod
    def download(self, settings: S, raw: Path) -> Iterable[ManifestEntry]:
        """Fetch, copy or simulate the raw data into the folder `raw`, which may hold what an earlier, interrupted
        download left; files that are already there and right are not fetched again."""

    @abstractmethod
    def preprocess(self, settings: S, raw: Path, manifest: pl.DataFrame, prepared: Path) -> pl.DataFrame:
        """Convert the raw data once into files under `prepared` (an empty folder) that make loading cheap.

        Returns:
            The samples: sample_id, group, split, then labels and metadata columns. Splits come from
            `manyscope.data.splits`, so that an added sample never moves another.
        """

    def problems(self, settings: S) -> Iterator[str]:
        """What `manyscope validate` should say before any hour is spent: each sentence names a place and a remedy.

        Settings have passed their models already; look here at what only the scope knows, such as names of models
        and files that the download will need.
        """
        yield from ()

    @abstractmethod
    def data(self, settings: S, prepared: Path) -> ScopeData:
        """Open the prepared samples."""

    @abstractmethod
    def model(self, settings: S, data: ScopeData) -> nn.Module:
        """Build the untrained model, its shapes inferred from the data.

        The module answers `losses(batch) -> dict` with a scalar tensor under "loss" (what is minimised) and any
        other scalar to be logged; in eval mode the same call validates. Before each step, training sets its attribute
        `progress`, if it has one, to the share of the steps that are done. See docs/bring-your-own.md.
        """

    def new_model(self, settings: S, data: ScopeData) -> nn.Module:
        """The model at the start of a training. A scope whose model learns something of the data before the first
        step, such as their mean, does it here, and not where weights are loaded."""
        return self.model(settings, data)

    def pretrained(self, settings: S) -> Mapping[str, str]:
        """Files of weights from elsewhere that a training starts from, each with its SHA-256: a training that began
        with others is never continued.

        Raises:
            CheckpointError: a file is missing or changed.
        """
        return {}

    def fit(self, settings: S, prepared: Path, run: TrainingRun) -> None:
        """Train, from the weights of `run.start` if it is not None, and leave the best weights through `run`. The
        default is Lightning with exact resume; a scope replaces it when another trainer is the field's own, and may
        then leave in `run.export` what other programs of the field read."""
        from manyscope.training.fit import fit
        from manyscope.training.seeds import seed_weights

        seed_weights(settings.train.seed)
        data = self.data(settings, prepared)
        network = self.new_model(settings, data)
        run.load_start(network)
        fit(data, network, settings.train, run)

    def predict_batch(self, settings: S, model: nn.Module, batch: Any) -> Objects:
        """Apply the model, in eval mode and without gradients, to one batch. A scope that replaces `predict` needs
        none."""
        raise ManyscopeError(f"scope {self.name!r} has neither predict_batch nor predict")

    def predict(
        self, settings: S, prepared: Path, weights: Path, sample_ids: Sequence[str], files: Path
    ) -> Iterator[Objects]:
        """Apply the trained weights to the named samples, each exactly once.

        A scope that has more to say of a sample than fits into a table, such as masks, writes it into the folder
        `files`, which need not exist yet. Several shards write there at the same time: each file belongs to one
        sample, is written whole, and takes the place of an older one. What else lies there may be of samples that are
        no longer predicted.
        """
        from manyscope.training.checkpoints import load_weights
        from manyscope.training.predict import on_device

        data = self.data(settings, prepared)
        model = self.model(settings, data)
        load_weights(weights, model, settings.scope, settings.model.model_dump(mode="json"))
        batches = data.predict_batches(sample_ids, settings.infer.batch_size)
        total = len(batches) if isinstance(batches, Sized) else -(-len(sample_ids) // settings.infer.batch_size)
        yield from on_device(model, batches, total, lambda batch: self.predict_batch(settings, model, batch))

    def exportable(self, settings: S, data: ScopeData, model: nn.Module) -> Exportable:
        """The model, with its trained weights, as a function of tensors, for `export` and for infer.engine `onnx`.

        Raises:
            ManyscopeError: a model of this scope cannot be exported.
        """
        raise ManyscopeError(
            f"a model of scope {self.name!r} cannot be exported to ONNX", remedy="leave infer.engine at torch"
        )

    @abstractmethod
    def evaluate(
        self, settings: S, prepared: Path, files: Path, samples: pl.DataFrame, predictions: pl.DataFrame
    ) -> Evaluation:
        """Judge the predictions, and what `predict` wrote into `files`, on the test split beside at least one honest
        baseline, with intervals."""

    def thumbnails(self, prepared: Path, files: Path, objects: pl.DataFrame) -> Iterator[Image | None]:
        """A small picture of each object for the page; None where there is none.

        Args:
            files: the folder in which `predict` wrote.
            objects: rows of the predictions, without the embedding, in the order in which pictures are wanted.
        """
        yield from (None for _ in range(len(objects)))

    def card(self) -> Sequence[str]:
        """Names of the columns that say the most of an object, for the page: in this order, those that there are."""
        return ()

    def queries(self) -> Sequence[str]:
        """What `embed_query` takes: of "image" and "text"."""
        return ()

    def embed_query(self, settings: S, prepared: Path, weights: Path, query: Path | str) -> np.ndarray:
        """The latent vector, (dimensions,) float32, of an image file or text given to `search`.

        Raises:
            ManyscopeError: this scope cannot search by such a query.
        """
        raise ManyscopeError(f"scope {self.name!r} cannot search by image or text", remedy="use --id or --vector")

    def edit(self, settings: S, export: Path, edits: Any, output: Path) -> list[Path]:
        """Show what was trained, changed.

        Args:
            export: what `fit` left in `run.export`.
            edits: of the class `Edits`.
            output: a folder to be written whole.

        Returns:
            what a user would open.
        """
        raise ManyscopeError(f"scope {self.name!r} has nothing to edit")

    def show(self, settings: S, file: Path) -> Any:
        """A matplotlib figure of what the scope makes of one raw file, before anything is trained."""
        raise ManyscopeError(f"scope {self.name!r} has nothing to show")
