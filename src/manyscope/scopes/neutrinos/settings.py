"""The settings of a neutrinos experiment."""

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
    """Events that the built-in simulator makes, read by the source `simulated`."""

    events: PositiveInt = Field(80_000, description="Number of triggered events.")
    events_per_file: Annotated[int, Field(ge=1, le=200_000)] = Field(
        1000, description="Events in one file; a file belongs to one split as a whole."
    )
    track_fraction: Fraction = Field(0.4, description="Share of tracks among the simulated events, before the trigger.")
    energy_min_gev: PositiveFloat = Field(1e2, description="Lowest energy.")
    energy_max_gev: PositiveFloat = Field(1e6, description="Highest energy.")
    spectral_index: Annotated[float, Field(ge=1)] = Field(1.6, description="Energies follow E^-index.")
    coincident_muon_fraction: Fraction = Field(
        0.0, description="Share of events with the track of an unrelated muon from above in them."
    )
    dead_dom_fraction: Fraction = Field(0.0, description="Share of the modules that never see light.")
    geometry_file: str | None = Field(None, description="sensor_geometry.csv to use instead of the built-in layout.")
    ice_file: str | None = Field(
        None, description="Parquet with depth, scattering_len, absorption_len (m) instead of the built-in table."
    )

    @model_validator(mode="after")
    def _in_order(self) -> SimulatedSettings:
        if self.energy_max_gev <= self.energy_min_gev:
            raise ValueError(f"energy_max_gev {self.energy_max_gev} is not above energy_min_gev {self.energy_min_gev}")
        return self


class KaggleSettings(Section):
    """The competition "IceCube - Neutrinos in Deep Ice", read by the source `kaggle`."""

    folder: str | None = Field(
        None,
        description="Folder that holds train_meta.parquet, sensor_geometry.csv, train/batch_N.parquet, test/…; its "
        "files are linked, not copied. Without it the files are fetched with the official client.",
    )
    batches: tuple[PositiveInt, ...] = Field(
        (), description="Numbers of the training files to use; empty is every file of the folder, or all 660."
    )
    test: bool = Field(True, description="Also take the files of test/, whose directions are to be predicted.")


class FileSettings(Section):
    """A pair of tables in the layout of GraphNeT: one row for each pulse, one row for each event."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] = Field(
        description="Name of the file in ids of samples."
    )
    layout: Literal["icecube", "prometheus"] = Field(
        description="icecube: string, dom_number, dom_time, charge, hlc; prometheus: sensor_pos_*, t, no charge."
    )
    pulses: str = Field(description="Parquet file with the pulses.")
    truth: str | None = Field(
        None, description="Parquet file with azimuth and zenith (where the particle came from) of each event."
    )


class NeutrinosDownload(DownloadSettings):
    """Where the pulses come from."""

    source: str = Field("simulated", description="simulated, kaggle, files, or an import path of a source.")
    simulated: SimulatedSettings = Field(SimulatedSettings(), description="What the source 'simulated' makes.")
    kaggle: KaggleSettings = Field(KaggleSettings(), description="What the source 'kaggle' reads.")
    files: tuple[FileSettings, ...] = Field(
        (),
        description="Tables in the layout of GraphNeT. With the source 'files' these are the data set; with any other "
        "source their events are unlabelled: predicted, and neither trained on nor judged.",
    )


class NeutrinosPreprocess(PreprocessSettings):
    """How files are dealt to splits, and what is told apart from noise."""

    validation_fraction: Fraction = Field(0.05, description="Share of the files that choose the best checkpoint.")
    test_fraction: Fraction = Field(0.125, description="Share of the files that only evaluate sees.")
    validation_batches: tuple[PositiveInt, ...] = Field(
        (), description="Numbers of the files for validation, instead of a share; needs test_batches too."
    )
    test_batches: tuple[PositiveInt, ...] = Field((), description="Numbers of the files for the test.")
    near_time_ns: PositiveFloat = Field(
        400.0, description="Unit of time in the distance of an isolated module from its event."
    )
    near_distance_m: PositiveFloat = Field(
        120.0, description="Unit of length in the distance of an isolated module from its event."
    )
    near_limit: PositiveFloat = Field(
        4.0, description="An isolated module below this distance, the sum of both parts, is near its event."
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> NeutrinosPreprocess:
        if bool(self.validation_batches) != bool(self.test_batches):
            raise ValueError("validation_batches and test_batches must both be given, or neither")
        twice = set(self.validation_batches) & set(self.test_batches)
        if twice:
            raise ValueError(f"batch {min(twice)} is in validation_batches and in test_batches")
        return self


class InputSettings(Section):
    """What of an event a model gets to see. Whatever is cut off is counted in the log."""

    max_doms: PositiveInt = Field(
        64, description="Most modules of an event: coincident ones by charge first, then isolated ones by nearness."
    )
    max_pulses: PositiveInt = Field(16, description="Most pulses of a module, the first in time.")
    isolated: Literal["near", "all", "none"] = Field(
        "near", description="Which modules without a coincident neighbour: near the event, all, or none."
    )
    token_budget: PositiveInt = Field(
        16_384, description="Most modules in one batch, padding included; batches of long events hold fewer events."
    )
    window_events: PositiveInt = Field(
        1_000_000, description="Batches mix the events of so many neighbouring files that these hold so many events."
    )


class NeutrinosModel(ModelSettings):
    """The network."""

    name: str = Field("transformer", description="transformer, or an import path such as 'my_package.models:MyNet'.")
    input: InputSettings = Field(InputSettings(), description="What of an event the network gets to see.")


class NeutrinosTrain(TrainSettings):
    """Training of the network."""

    epochs: PositiveFloat = Field(4.5, description="Passes over the training events; may be fractional.")
    lr: PositiveFloat = Field(1.5e-3, description="Peak learning rate.")
    optimizer: str = Field("muon", description="adamw, adam, sgd, rmsprop, muon, or import path of an optimiser.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(2e-2, description="Decoupled weight decay.")
    optimizer_args: dict[str, Any] = Field({"matrix_lr": 3e-3}, description="Further arguments of the optimiser.")
    gradient_clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="Largest gradient norm; 0 is no limit.")


class NeutrinosEvaluate(EvaluateSettings):
    """How directions are judged."""

    displays: Annotated[int, Field(ge=0)] = Field(6, description="Events shown with true and predicted direction.")


class NeutrinosSettings(ExperimentSettings):
    """One experiment with neutrinos."""

    # The source named under `download` also knows how to read its files.
    reads: ClassVar[dict[str, tuple[str, ...]]] = {
        **ExperimentSettings.reads,
        "preprocess": ("download", "preprocess"),
    }

    download: NeutrinosDownload = NeutrinosDownload()
    preprocess: NeutrinosPreprocess = NeutrinosPreprocess()
    model: NeutrinosModel = NeutrinosModel()
    train: NeutrinosTrain = NeutrinosTrain()
    evaluate: NeutrinosEvaluate = NeutrinosEvaluate()
