"""The settings of a galaxies experiment."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from manyscope.settings.sections import (
    DownloadSettings,
    EvaluateSettings,
    ExperimentSettings,
    Fraction,
    ModelSettings,
    PreprocessSettings,
    Section,
    TrainSettings,
)


class SimulatedSettings(Section):
    """Galaxies drawn from Sérsic profiles, read by the source `simulated`."""

    count: PositiveInt = Field(6400, description="Number of galaxies.")
    stamp_px: Annotated[int, Field(ge=24)] = Field(48, description="Width and height of a drawn image.")
    anomaly_fraction: Fraction = Field(0.15, description="Share of the galaxies that carry an injected anomaly.")
    snr_min: PositiveFloat = Field(
        30.0, description="Smallest signal-to-noise ratio; they are uniform in its logarithm."
    )
    snr_max: PositiveFloat = Field(150.0, description="Largest signal-to-noise ratio.")

    @model_validator(mode="after")
    def _in_order(self) -> SimulatedSettings:
        if self.snr_max < self.snr_min:
            raise ValueError(f"snr_max {self.snr_max} is below snr_min {self.snr_min}")
        return self


class GalaxiesDownload(DownloadSettings):
    """Where the pixels come from."""

    source: str = Field("hubble", description="hubble, simulated, or an import path of a source.")
    simulated: SimulatedSettings = Field(SimulatedSettings(), description="What the source 'simulated' draws.")


class TransformSettings(Section):
    """One step from a stored stamp to the image that a model sees."""

    name: str = Field(description="crop, asinh, tanh, …, or an import path of a function of tensors ('torch:sqrt').")
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the step.")


class GalaxiesPreprocess(PreprocessSettings):
    """How pixels become stamps, and stamps become images."""

    validation_fraction: Fraction = Field(0.05, description="Share of the groups that choose the best checkpoint.")
    test_fraction: Fraction = Field(0.25, description="Share of the groups that only evaluate sees.")
    stamp_px: Annotated[int, Field(ge=16, multiple_of=2)] = Field(
        48, description="Width and height of a stored stamp; 1.5 times the view leaves room for every rotation."
    )
    transforms: tuple[TransformSettings, ...] = Field(
        (
            TransformSettings(name="crop", args={"size_px": 32}),
            TransformSettings(name="asinh", args={"softening": 2.0, "scale": 5.0}),
        ),
        description="Steps from a stamp, in units of the sky's rms, to the image that a model sees, in this order.",
    )
    nan_policy: Literal["error", "zero", "quantile"] = Field(
        "error", description="What stands for a missing pixel: nothing, zero, or a low quantile of its own band."
    )
    nan_quantile: Fraction = Field(0.05, description="The quantile of the policy 'quantile'.")
    detection_threshold: PositiveFloat = Field(1.5, description="Faintest pixel of a source, in rms of the mean band.")
    min_area_px: PositiveInt = Field(9, description="Fewest pixels of a source.")
    min_shape_px: PositiveInt = Field(30, description="Fewest pixels of a source whose ellipticity is measured.")
    background_px: PositiveInt = Field(64, description="Mesh of the background estimate.")
    block_px: PositiveInt = Field(150, description="Side of the blocks of sky that are dealt to a split as a whole.")


class GalaxiesModel(ModelSettings):
    """The network."""

    name: str = Field("invariant", description="invariant, autoencoder, or an import path such as 'my_pkg:MyNet'.")


class GalaxiesTrain(TrainSettings):
    """Training of the network."""

    epochs: PositiveFloat = Field(60, description="Passes over the training samples; may be fractional.")
    check_every_epochs: PositiveFloat = Field(
        5, description="Passes between two checks; a check validates, writes history and leaves a checkpoint."
    )
    lr: PositiveFloat = Field(2e-3, description="Peak learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-2, description="Decoupled weight decay.")


class GalaxiesEvaluate(EvaluateSettings):
    """How the latent space is judged."""

    neighbours: PositiveInt = Field(10, description="Training neighbours that predict a property or a class.")
    untrained_seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of the untrained network's weights.")
    ring_components: PositiveInt = Field(16, description="Principal components of the baseline 'rings'.")
    objects: Annotated[int, Field(ge=100)] = Field(
        20_000, description="At most so many training and so many test objects are looked at, a seeded choice."
    )
    gallery: PositiveInt = Field(24, description="Objects in the gallery of strangers.")


class GalaxiesSettings(ExperimentSettings):
    """One experiment with galaxies."""

    # The source named under `download` also knows how to cut its files into stamps.
    reads: ClassVar[dict[str, tuple[str, ...]]] = {
        **ExperimentSettings.reads,
        "preprocess": ("download", "preprocess"),
        # The baselines get the same outlier scores as the model.
        "evaluate": ("model", "gather", "evaluate"),
    }

    download: GalaxiesDownload = GalaxiesDownload()
    preprocess: GalaxiesPreprocess = GalaxiesPreprocess()
    model: GalaxiesModel = GalaxiesModel()
    train: GalaxiesTrain = GalaxiesTrain()
    evaluate: GalaxiesEvaluate = GalaxiesEvaluate()
