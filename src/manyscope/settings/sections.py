"""The strict models of an experiment's settings: the sections that every scope shares, and their defaults."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, create_model

from manyscope.errors import SettingsError, did_you_mean

Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]

SCHEDULES = ("cosine", "constant", "linear")


def _known_schedule(name: str) -> str:
    if name not in SCHEDULES and ":" not in name:
        hint = did_you_mean(name, list(SCHEDULES))
        raise ValueError(
            f"schedule {name!r} is unknown; known: {', '.join(SCHEDULES)}, or an import path such as "
            f"'torch.optim.lr_scheduler:StepLR'{f'; {hint}' if hint else ''}"
        )
    return name


STAGES = ("download", "preprocess", "train", "infer", "gather", "umap", "index", "evaluate", "explore")


class Section(BaseModel):
    """A frozen part of the settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class DownloadSettings(Section):
    """What the download stage of every scope reads."""

    seed: Seed = Field(0, description="Seed of simulated data.")


class PreprocessSettings(Section):
    """How samples are dealt to train, validation and test."""

    split_seed: Seed = Field(0, description="Seed of the split; a sample's split never depends on the other samples.")
    validation_fraction: Fraction = Field(0.1, description="Share of the groups that choose the best checkpoint.")
    test_fraction: Fraction = Field(0.2, description="Share of the groups that only evaluate sees.")


class ModelSettings(Section):
    """Which model, by registered name or import path, and its keyword arguments."""

    name: str = Field(description="Registered name, or an import path such as 'my_package.models:MyNet'.")
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the model.")


class TrainSettings(Section):
    """The default training: Lightning with exact resume."""

    seed: Seed = Field(0, description="Seed of weights, data order, augmentation and dropout.")
    epochs: PositiveFloat = Field(10, description="Passes over the training samples; may be fractional.")
    batch_size: PositiveInt = Field(128, description="Samples in one optimiser step, over all processes.")
    check_every_epochs: PositiveFloat = Field(
        1, description="Passes between two checks; a check validates, writes history and leaves a checkpoint."
    )
    lr: PositiveFloat = Field(1e-3, description="Peak learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="Decoupled weight decay.")
    optimizer: str = Field("adamw", description="adamw, adam, sgd, rmsprop, muon, or import path of an optimiser.")
    optimizer_args: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the optimiser.")
    schedule: Annotated[str, AfterValidator(_known_schedule)] = Field(
        "cosine",
        description="Learning rate after the warm-up: cosine, constant, linear, or import path of a scheduler of torch"
        " that counts steps.",
        json_schema_extra={"pattern": f"^({'|'.join(SCHEDULES)})$|:"},
    )
    schedule_args: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of a schedule by path; the text 'steps' stands for the number of steps after the"
        " warm-up.",
    )
    warmup_fraction: Fraction = Field(0.03, description="Share of the steps in which the rate rises from zero.")
    gradient_clip_norm: Annotated[float, Field(ge=0)] = Field(0.0, description="Largest gradient norm; 0 is no limit.")
    patience_checks: Annotated[int, Field(ge=0)] = Field(
        0, description="Stop after so many checks without a better validation loss; 0 is never."
    )
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "64-true"] = Field(
        "32-true", description="Number format of the arithmetic."
    )
    workers: Annotated[int, Field(ge=0)] = Field(0, description="Loader processes for each training process.")
    checkpoint_minutes: PositiveFloat = Field(
        15, description="Minutes after which a checkpoint is written also between two checks."
    )
    tracker: Literal["mlflow", "tensorboard", "wandb", "none"] = Field(
        "mlflow", description="Where curves are tracked, beside train/history.parquet."
    )
    start_from: str | None = Field(
        None,
        description="Experiment of the same scope whose trained weights this one starts from; null: random or"
        " pretrained ones.",
    )


class InferSettings(Section):
    """How the trained model is applied."""

    batch_size: PositiveInt = Field(256, description="Samples in one forward pass.")
    engine: Literal["torch", "onnx"] = Field(
        "torch", description="What applies the model: torch, or onnxruntime, which first exports and checks it."
    )
    splits: tuple[Literal["train", "validation", "test", "unlabelled"], ...] = Field(
        ("train", "validation", "test", "unlabelled"),
        min_length=1,
        description="Samples that are embedded, and with that mapped, indexed and shown.",
    )


class GatherSettings(Section):
    """Outlier scores, computed once all shards are together. Each is larger for stranger objects."""

    outlier_scores: tuple[Literal["knn", "lof"], ...] = Field(
        ("knn", "lof"), description="Latent outlier scores: mean k-NN distance, local outlier factor."
    )
    outlier_neighbours: PositiveInt = Field(10, description="Neighbours of the k-NN distance.")
    lof_neighbours: PositiveInt = Field(30, description="Neighbours of the local outlier factor.")
    exact_objects: PositiveInt = Field(
        50_000, description="With more training objects neighbours are nearly exact: sought in the nearest cells."
    )
    reference_objects: PositiveInt = Field(
        1_000_000, description="At most so many training objects (a seeded choice) judge the others."
    )
    seed: Seed = Field(0, description="Seed of that choice, and of the cells.")

    @property
    def neighbours(self) -> dict[str, int]:
        """Each of the scores, with the neighbours that it looks at."""
        known = {"knn": self.outlier_neighbours, "lof": self.lof_neighbours}
        return {name: known[name] for name in self.outlier_scores}


class UmapSettings(Section):
    """The map."""

    reducer: str = Field("umap", description="umap, pca, tsne, or an import path.")
    seed: Seed = Field(0, description="Seed of the reducer.")
    components: Literal[2, 3] = Field(2, description="Dimensions of the map.")
    n_neighbors: Annotated[int, Field(ge=2)] = Field(15, description="UMAP's balance of local against global shape.")
    min_dist: Fraction = Field(0.1, description="UMAP's smallest distance between mapped points.")
    perplexity: Annotated[float, Field(ge=2)] = Field(
        30.0, description="Neighbours that count in t-SNE; a third of all objects where that is less."
    )
    metric: Literal["euclidean", "cosine"] = Field("euclidean", description="Distance between latent vectors.")
    standardize: bool = Field(False, description="Bring every latent dimension to unit variance first.")
    fit_objects: PositiveInt = Field(
        200_000, description="At most so many objects fit the reducer (a seeded choice); the rest is transformed."
    )
    exact_objects: PositiveInt = Field(
        50_000, description="With more fitted objects UMAP's neighbours are nearly exact: sought in the nearest cells."
    )
    quality_objects: PositiveInt = Field(2_000, description="Objects on which the map's quality is measured.")
    quality_neighbours: PositiveInt = Field(15, description="Neighbours of trustworthiness and overlap.")


class IndexSettings(Section):
    """The vector index."""

    store: str = Field(
        "chroma",
        description="chroma (a graph, in memory while it is searched), exact (every vector, from disk), lance (cells on"
        " disk), or an import path.",
    )
    columns: tuple[str, ...] | None = Field(
        None, description="Columns by which a search can be filtered; null: all that hold plain values."
    )
    metric: Literal["l2", "cosine", "ip"] = Field("l2", description="Distance: squared L2, cosine, inner product.")
    max_neighbors: PositiveInt = Field(16, description="M of the HNSW graph.")
    ef_construction: PositiveInt = Field(200, description="Candidates while building.")
    ef_search: PositiveInt = Field(
        200, description="Candidates while searching; the square root of the number of objects where that is more."
    )
    audit_queries: PositiveInt = Field(500, description="Queries of the audit against exact search.")
    seed: Seed = Field(0, description="Seed of the choice of audit queries.")


class EvaluateSettings(Section):
    """How the model is judged."""

    seed: Seed = Field(0, description="Seed of the bootstrap.")
    bootstrap_draws: Annotated[int, Field(ge=100)] = Field(1000, description="Resamples of an interval.")


class ExploreSettings(Section):
    """The web page."""

    objects: PositiveInt = Field(
        200_000, description="At most so many objects are on the page that stands alone; the served page has all."
    )
    thumbnails: Annotated[int, Field(ge=0)] = Field(5_000, description="At most so many objects carry a picture.")
    neighbours: Annotated[int, Field(ge=0)] = Field(10, description="Latent neighbours shown for an object.")
    exact_objects: PositiveInt = Field(
        50_000,
        description="With more objects on the page their neighbours are nearly exact: sought in the nearest cells.",
    )


class ExperimentSettings(Section):
    """One experiment. A scope derives its own class from this one and narrows the sections to its own."""

    # Which sections each stage reads: its rule reruns when one of them changes, and no other section can be
    # reached from inside the stage (see `for_stage`). A scope may widen an entry.
    reads: ClassVar[dict[str, tuple[str, ...]]] = {
        "download": ("download",),
        "preprocess": ("preprocess",),
        "train": ("model", "train"),
        "infer": ("model", "infer"),
        "gather": ("infer", "gather"),
        "umap": ("umap",),
        "index": ("index",),
        "evaluate": ("model", "evaluate"),
        "explore": ("title", "index", "explore"),  # the distance to neighbours is that of the index
    }

    scope: str = Field(description="The kind of instrument: a built-in scope or one of a plug-in package.")
    title: str = Field("", description="Shown on the page and in the report.")
    download: DownloadSettings = DownloadSettings()
    preprocess: PreprocessSettings = PreprocessSettings()
    model: ModelSettings
    train: TrainSettings = TrainSettings()
    infer: InferSettings = InferSettings()
    gather: GatherSettings = GatherSettings()
    umap: UmapSettings = UmapSettings()
    index: IndexSettings = IndexSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    explore: ExploreSettings = ExploreSettings()

    def stage_values(self, stage: str) -> dict[str, Any]:
        """What one stage reads, as plain JSON values: the scope's name and the stage's sections."""
        return {"scope": self.scope, **self.model_dump(mode="json", include=set(self.reads[stage]))}

    def for_stage(self, stage: str) -> ExperimentSettings:
        """The same settings without the sections that the stage must not read: touching one raises."""
        return self.from_stage_values(stage, self.stage_values(stage))

    @classmethod
    def from_stage_values(cls, stage: str, values: dict[str, Any]) -> ExperimentSettings:
        """The inverse of `stage_values`, validated again: it may come from a shell."""
        kept = {"scope", *cls.reads[stage]}
        read = {name: (cls.model_fields[name].annotation, cls.model_fields[name]) for name in kept}
        part = create_model(f"{cls.__name__}For{stage.title()}", __base__=Section, **read)  # type: ignore[call-overload]
        validated = part.model_validate(values)
        settings = cls.model_construct(_fields_set=kept, **{name: getattr(validated, name) for name in kept})
        for name in cls.model_fields.keys() - kept:
            settings.__dict__.pop(name, None)
        settings.__dict__["_stage"] = stage
        return settings

    def __getattr__(self, name: str) -> Any:
        if name in type(self).model_fields:
            stage = self.__dict__.get("_stage", "?")
            raise SettingsError(f"stage {stage!r} reads section {name!r}, which its settings do not declare")
        return super().__getattr__(name)  # type: ignore[misc]
