"""The settings of a galaxies experiment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from manyscope.scopes.galaxies.addresses import is_loopback, what_is_wrong_with, without_query
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


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(map(repr, twice))} stands there more than once")
    return names


Names = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_each_once)]


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


class CatalogSettings(Section):
    """A table of objects in a file that the user has: FITS, VOTable, ECSV, CSV, Parquet, …"""

    file: str | None = Field(None, description="Path of the table.")
    format: str | None = Field(None, description="Its format in astropy's words, or 'parquet'; null: told by its name.")
    id_column: str = Field("object_id", description="Column with the name of an object; values may repeat per filter.")
    group_column: str | None = Field(
        None, description="Column of what a split never divides, such as a tract; null: every object for itself."
    )
    columns: tuple[str, ...] | None = Field(
        None, description="Columns that are kept beside each object; null: all that hold plain values."
    )


class Channels(Section):
    """How images in several filters become a stamp."""

    bands: Names | None = Field(
        None,
        description="Filters in the order of the channels, others are not read; null: all, from the bluest to the "
        "reddest where the names tell (u, g, r, i, z, y, …), else by name.",
    )
    normalise: Literal["sky", "none"] = Field(
        "sky", description="sky: each band less the median of its border, in units of the border's rms; none: as it is."
    )


class FitsReading(Channels):
    """How FITS files become the bands of a stamp."""

    hdu: int | str | tuple[int | str, ...] | None = Field(
        None,
        description="Extension with the image, by number or name; several: one for each band; null: the first image.",
    )


class FitsSettings(FitsReading):
    """A folder of FITS cutouts of your own, read by the source `fits`; with or without `download.catalog`."""

    folder: Path | None = Field(None, description="Folder of the files; files in folders below count too.")
    file_column: str | None = Field(
        "filename",
        description="Column of the catalog with each row's file, relative to the folder; null: files are found by "
        "`pattern`.",
    )
    filter_column: str | None = Field(
        None, description="Column of the catalog with the filter of each row; null: one file holds all bands."
    )
    pattern: str | None = Field(
        None,
        description="Regular expression of whole file names with groups object_id and, if there are several files an "
        "object, filter, such as '(?P<object_id>\\d+)_(?P<filter>[a-z])\\.fits'; 'hsc': names of the HSC cutout "
        "service. It finds files where no column names them; where one does, ids that differ are left out.",
    )

    @model_validator(mode="after")
    def _groups(self) -> FitsSettings:
        if self.pattern is not None and self.pattern != "hsc":
            try:
                groups = re.compile(self.pattern).groupindex
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression ({error})") from error
            if "object_id" not in groups:
                raise ValueError(f"pattern {self.pattern!r} has no group (?P<object_id>…)")
        return self


class NetworkSettings(Section):
    """Many files at a time from a service."""

    threads: Annotated[int, Field(ge=1, le=10)] = Field(4, description="Connections at a time.")
    tries: PositiveInt = Field(5, description="Tries without anything new after which a file counts as failed.")
    wait_s: Annotated[float, Field(ge=0)] = Field(
        5.0,
        description="Seconds before the second try, twice as many before each further one; more where the service asks "
        "for it.",
    )
    missing_max: Fraction = Field(
        0.0, description="Largest share of what was asked for that may be missing in the end; above it is an error."
    )
    leftover: Literal["error", "keep"] = Field(
        "error", description="What becomes of files in raw/ that catalog and settings no longer ask for."
    )


class HttpSettings(NetworkSettings, FitsReading):
    """Files at the addresses of the catalog's column `url`; columns `sha256` and `filter` are read where they exist."""


class HscSettings(NetworkSettings, FitsReading):
    """The cutout service of the Hyper Suprime-Cam survey. The catalog has ra, dec (degrees) and may have tract; its
    columns semi_width_arcsec, semi_height_arcsec, filter, type and rerun go before these settings where not empty."""

    tries: PositiveInt = Field(3, description="Tries without anything new after which rectangles count as failed.")
    wait_s: Annotated[float, Field(ge=0)] = Field(
        30.0,
        description="Seconds before the second try, twice as many before each further one; more where the service asks "
        "for it.",
    )
    hdu: int | str | tuple[int | str, ...] | None = Field(
        1, description="Extension with the image, by number or name; several: one for each band."
    )
    api: str = Field(
        "https://hsc-release.mtk.nao.ac.jp/das_cutout/pdr3",
        description="Address of the service, without /cgi-bin/…; https, since the password is sent there.",
    )
    credentials: str | None = Field(
        None,
        description="TOML file with username and password; null: MANYSCOPE_HSC_USERNAME and MANYSCOPE_HSC_PASSWORD in "
        "the environment.",
    )
    semi_width_arcsec: PositiveFloat = Field(22.0, description="From the centre to the left and right edges.")
    semi_height_arcsec: PositiveFloat = Field(22.0, description="From the centre to the upper and lower edges.")
    filters: Names = Field(("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y"), description="A rectangle is fetched in each.")
    type: Literal["coadd", "coadd/bg"] = Field("coadd", description="Coadd without or with its background.")
    rerun: str = Field("pdr3_wide", description="Reduction of the data.")
    mask: bool = Field(False, description="Fetch the mask layer too.")
    variance: bool = Field(False, description="Fetch the variance layer too.")
    rectangles: Annotated[int, Field(ge=1, le=990)] = Field(990, description="At most so many in a request.")
    timeout_s: PositiveFloat = Field(3600.0, description="How long the service may be silent.")

    # Of the whole section, since what is wrong with one field is shown with its value, which may hold a password.
    @model_validator(mode="after")
    def _keeps_the_password(self) -> HscSettings:
        wrong = what_is_wrong_with(self.api)
        if not wrong and ("?" in self.api or "#" in self.api):
            wrong = f"{without_query(self.api)!r} goes on with a query or a fragment, which no service has"
        elif not wrong and not (self.api.startswith("https:") or is_loopback(self.api)):
            wrong = f"{self.api!r} would get the password unencrypted; only https encrypts it"
        if wrong:
            raise ValueError(f"api {wrong}")
        return self


class LsstSettings(NetworkSettings, Channels):
    """Coadds of the Rubin Observatory, from a Butler. The bands that are read are those of `bands`."""

    repo: str | None = Field(None, description="The Butler's repository, a path or an address.")
    collections: tuple[str, ...] = Field((), description="Collections that are searched, in this order.")
    skymap: str | None = Field(None, description="Name of the sky map of the coadds.")
    dataset_type: str = Field("deep_coadd", description="What is cut.")
    bands: Names = Field(("u", "g", "r", "i", "z", "y"), description="Channels, in this order.")
    ra_column: str = Field("coord_ra", description="Column of the catalog with right ascensions in degrees.")
    dec_column: str = Field("coord_dec", description="Column of the catalog with declinations in degrees.")
    semi_width_arcsec: PositiveFloat = Field(17.0, description="From the centre to the eastern and western edges.")
    semi_height_arcsec: PositiveFloat = Field(17.0, description="From the centre to the northern and southern edges.")
    edge: Literal["error", "pad"] = Field(
        "error", description="What becomes of a cutout that leaves its patch: it fails, or has missing pixels there."
    )
    cached_images: PositiveInt = Field(
        16, description="At most so many images of a patch in a band are held in memory, some 70 MB each."
    )


class RandomSettings(Section):
    """Images of uniform noise, read by the source `random`; their seed is `download.seed`."""

    count: PositiveInt = Field(100, description="Number of images.")
    bands: PositiveInt = Field(3, description="Bands of an image.")
    size_px: PositiveInt = Field(48, description="Width and height of an image; preprocess.stamp_px does not count.")
    classes: Annotated[int, Field(ge=0)] = Field(0, description="Number of random classes; 0: no labels.")
    nan_fraction: Fraction = Field(0.0, description="Share of the pixels that are not a number.")
    inf_fraction: Fraction = Field(0.0, description="Share of the pixels that are infinite.")


class Cifar10Settings(Section):
    """The CIFAR-10 photographs, read by the source `cifar10` in their binary version, which holds plain bytes."""

    archive: str = Field(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        description="Address of cifar-10-binary.tar.gz, or path of a copy.",
    )
    checksum: str | None = Field(
        "md5:c32a1d4ab5d03f1284b67883e8d87530",
        pattern=r"^\w+:[0-9a-f]+$",
        description="Algorithm and digest of the archive; null: nobody knows it.",
    )

    @model_validator(mode="after")
    def _is_somewhere(self) -> Cifar10Settings:
        wrong = what_is_wrong_with(self.archive) if "://" in self.archive else None
        if wrong:
            raise ValueError(f"archive {wrong}")
        return self


class TableSettings(Section):
    """Features or embeddings in the table `download.catalog`, read by the source `table`: no images."""

    vectors: str | tuple[str, ...] = Field(
        "embedding",
        description="Column with a list of numbers in each row, all of one length, or names of columns of numbers.",
    )


class GalaxiesDownload(DownloadSettings):
    """Where the pixels come from."""

    source: str = Field(
        "hubble",
        description="hubble, simulated, fits, hsc, lsst, http, cifar10, random, table, or an import path of a source.",
    )
    simulated: SimulatedSettings = Field(SimulatedSettings(), description="What the source 'simulated' draws.")
    catalog: CatalogSettings = Field(
        CatalogSettings(), description="The objects of the sources fits, hsc, lsst, http and table."
    )
    fits: FitsSettings = Field(FitsSettings(), description="Where the source 'fits' finds its files.")
    random: RandomSettings = Field(RandomSettings(), description="What the source 'random' draws.")
    cifar10: Cifar10Settings = Field(Cifar10Settings(), description="Where the source 'cifar10' finds its archive.")
    table: TableSettings = Field(TableSettings(), description="What the source 'table' reads of the catalog.")
    http: HttpSettings = Field(HttpSettings(), description="How the source 'http' fetches.")
    hsc: HscSettings = Field(HscSettings(), description="What the source 'hsc' asks for.")
    lsst: LsstSettings = Field(LsstSettings(), description="What the source 'lsst' cuts.")


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
    label: str = Field("class", description="Column, if there is one, with the classes that a supervised model learns.")
    edge: Literal["error", "pad"] = Field(
        "error", description="What becomes of an image smaller than a stamp: left out and reported, or padded."
    )
    pad_value: float | None = Field(
        0.0,
        allow_inf_nan=False,
        description="Value of padded pixels, in units of the stamp; null: they are missing, see nan_policy.",
    )
    pruned_max: Fraction = Field(
        0.05, description="Largest share of the objects that may be left out; above it is an error."
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

    name: str = Field(
        "invariant",
        description="invariant, simclr, vicreg, autoencoder, autoencoder_v2, dcae, dcae_skip, hsc_autoencoder,"
        " hsc_dcae, cnn, features, identity, or an import path such as 'my_pkg:MyNet'.",
    )
    criterion: str | None = Field(
        None,
        description="Loss of a module without `losses`: mse, l1, huber, cross_entropy, or an import path such as"
        " 'torch.nn:SmoothL1Loss'; null: mse for images, cross_entropy for labels.",
    )
    criterion_args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the criterion.")
    target: Literal["images", "labels"] | None = Field(
        None, description="What such a module's output is compared to; null: told by the output's shape."
    )


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
    properties: dict[str, Literal["linear", "log"]] = Field(
        {"flux": "log", "half_light_radius": "log", "ellipticity": "linear", "colour": "linear"},
        description="Columns that neighbours predict, those that there are, and their scale. Without any of them, and"
        " without classes, brightness, size and colour are measured on the stamps.",
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
