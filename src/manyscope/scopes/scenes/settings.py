"""The settings of a scenes experiment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from manyscope.settings.sections import (
    DownloadSettings,
    EvaluateSettings,
    ExperimentSettings,
    Fraction,
    InferSettings,
    ModelSettings,
    Section,
    TrainSettings,
)

NotNegative = Annotated[float, Field(ge=0)]


class SyntheticSettings(Section):
    """Photographs that move before a moving photograph, with every layer known, read by the source `synthetic`."""

    height_px: Annotated[int, Field(ge=32, le=2048)] = Field(240, description="Height of a frame.")
    width_px: Annotated[int, Field(ge=32, le=2048)] = Field(427, description="Width of a frame.")
    frames: Annotated[int, Field(ge=1)] = Field(20, description="Length of the clip.")
    sprites: Annotated[int, Field(ge=0, le=2)] = Field(2, description="Moving objects; the second passes behind.")
    camera: Literal["pan", "zoom", "handheld"] = Field(
        "pan", description="pan: sideways with a slow drift; zoom: also nearer; handheld: also turning about its axis."
    )
    bend_px: NotNegative = Field(0.0, description="Amplitude of a wave that bends the sprites in their plane.")
    brightness: Fraction = Field(0.0, description="Amplitude of a slow change of the sprites' brightness.")
    mask_error_px: Annotated[int, Field(ge=0)] = Field(
        0, description="Masks are grown or shrunk by so much, at random for each frame."
    )
    mask_drop_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the frames without masks."
    )


class FolderSettings(Section):
    """A clip of your own, read by the source `folder`."""

    frames: Path | None = Field(None, description="Folder of images (.jpg, .jpeg, .png), or a video file.")
    masks: Path | None = Field(
        None,
        description="Folder of mask images, one for each frame with the objects' numbers as values, or one folder for"
        " each object; null: beside the frames as DAVIS has them, else the scene has a background alone.",
    )
    depth: Path | None = Field(
        None, description="Folder of relative depth, .tif or .tiff of floats, larger is farther."
    )
    camera: Path | None = Field(None, description="A .json file with the camera's path: see docs/scenes.md.")
    boxes: Path | None = Field(
        None, description="Folder of .json files with three-dimensional boxes, one for each object."
    )
    frame_pattern: str = Field(
        r"(?P<index>[0-9]+)\.(png|jpg|jpeg)", description="Regular expression for the end of a frame's file name."
    )
    mask_pattern: str = Field(
        r"(?P<index>[0-9]+)(_ov_(?P<overlap>[0-9]+))?\.png",
        description="Regular expression for the end of a mask's file name; `overlap` numbers several masks of a frame.",
    )
    depth_pattern: str = Field(
        r"(?P<index>[0-9]+)\.(tif|tiff)", description="Regular expression for the end of a depth file's name."
    )
    boxes_pattern: str = Field(
        r"(?P<index>[0-9]+)\.json", description="Regular expression for the end of a box file's name."
    )
    first: Annotated[int, Field(ge=0)] | None = Field(None, description="Number of the first frame that is read.")
    last: Annotated[int, Field(ge=0)] | None = Field(None, description="Number of the last frame that is read.")
    every: PositiveInt = Field(1, description="Read each so manieth frame.")
    ignore_objects: tuple[PositiveInt, ...] = Field((), description="Objects that are taken for background.")

    @field_validator("frame_pattern", "mask_pattern", "depth_pattern", "boxes_pattern")
    @classmethod
    def _names_an_index(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression ({error})") from error
        if "index" not in groups:
            raise ValueError(f"{pattern!r} has no group 'index', as in (?P<index>[0-9]+)")
        return pattern

    @model_validator(mode="after")
    def _in_order(self) -> FolderSettings:
        if self.first is not None and self.last is not None and self.last < self.first:
            raise ValueError(f"last {self.last} is below first {self.first}")
        return self


class ScenesDownload(DownloadSettings):
    """Where the clip comes from."""

    source: str = Field("synthetic", description="synthetic, folder, or an import path of a source.")
    synthetic: SyntheticSettings = Field(SyntheticSettings(), description="What the source 'synthetic' draws.")
    folder: FolderSettings = Field(FolderSettings(), description="What the source 'folder' reads.")


class PlacementSettings(Section):
    """How camera, background and objects are placed before the training, from the training frames alone."""

    focal: PositiveFloat = Field(1.2, description="Focal length in widths of a frame, where no camera file gives it.")
    background_distance: PositiveFloat = Field(1.5, description="Least distance of the background from the camera.")
    object_margin: NotNegative = Field(0.4, description="A plane is so much larger than its object's largest extent.")
    background_margin: NotNegative = Field(0.1, description="The background is so much larger than what frames show.")
    control_points_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Control points of the paths, as a share of the number of frames."
    )
    initial_px: Annotated[int, Field(ge=16)] = Field(1080, description="Longest edge of an initial picture of a plane.")
    align_px: Annotated[int, Field(ge=32)] = Field(320, description="Longest edge of the frames that are aligned.")


class ScenesPreprocess(Section):
    """Frames and masks as arrays. Frames are dealt to the splits by their place in the clip, not by a hash."""

    resolution_factor: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Frames are shrunk to this size.")
    longest_px: Annotated[int, Field(ge=32)] = Field(2040, description="Frames with a longer edge are shrunk to it.")
    held_out_every: Annotated[int, Field(ge=2)] = Field(
        2,
        description="Each so manieth frame is held out, but for the first and last: of those the second of every four"
        " chooses the best weights, and the others judge.",
    )
    most_objects: PositiveInt = Field(32, description="More objects in the masks are taken for an error.")
    placement: PlacementSettings = Field(PlacementSettings(), description="What the training starts from.")


class FieldSettings(Section):
    """A hash grid with a network of one width behind it."""

    levels: Annotated[int, Field(ge=1, le=32)] = Field(8, description="Levels of the grid.")
    features: Literal[1, 2, 4, 8] = Field(2, description="Features of an entry.")
    log2_table: Annotated[int, Field(ge=4, le=24)] = Field(16, description="Logarithm of the most entries of a level.")
    base: Annotated[int, Field(ge=2)] = Field(16, description="Vertices along each axis of the coarsest level.")
    scale: Annotated[float, Field(gt=1)] = Field(1.62, description="Ratio of the resolutions of two levels.")
    interpolation: Literal["linear", "smoothstep"] = Field("linear", description="Between the vertices.")
    width: PositiveInt = Field(32, description="Neurons of a hidden layer.")
    layers: PositiveInt = Field(2, description="Hidden layers.")


class ScenesModel(ModelSettings):
    """The graph."""

    name: str = Field("atlas_graph", description="atlas_graph, or an import path.")
    preset: Literal["cpu", "tiny", "small", "medium", "large"] = Field(
        "cpu", description="Size of the fields; the last four are those of Neural Atlas Graphs."
    )
    colour: FieldSettings | None = Field(None, description="Field of colour; null: as the preset has it.")
    alpha: FieldSettings | None = Field(None, description="Field of opacity; null: as the preset has it.")
    flow: FieldSettings | None = Field(None, description="Field of displacement; null: as the preset has it.")
    view: FieldSettings | None = Field(None, description="Field of what changes; null: as the preset has it.")
    object_plane: str = Field("planar", description="planar, or an import path of a class derived from it.")
    background_plane: str = Field("planar", description="planar, or an import path of a class derived from it.")
    view_by: Literal["volume", "time", "angle", "none"] = Field(
        "volume",
        description="The changing part of colour and opacity: volume, a grid over place and time; time, a spline over"
        " time at each place; angle, by the angle of view as in Neural Atlas Graphs; none.",
    )
    colour_weight: PositiveFloat = Field(0.1, description="Of the field of colour beside the initial picture.")
    alpha_weight: PositiveFloat = Field(0.5, description="Of the field of opacity, in logits.")
    flow_weight: PositiveFloat = Field(0.1, description="Of the field of displacement, in sizes of the plane.")
    view_weight: PositiveFloat = Field(0.1, description="Of the field of what changes.")
    pose_weight: PositiveFloat = Field(
        0.035, description="Of the learned offsets of paths, in depths at which they are seen and in radians."
    )
    control_points_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="Control points of displacement and of change over time, as a share of the number of frames."
    )
    camera_translation: bool = Field(True, description="Learn offsets of the camera's position.")
    camera_rotation: bool = Field(True, description="Learn offsets of the camera's direction.")
    object_translation: bool = Field(True, description="Learn offsets of the objects' positions.")
    object_rotation: bool = Field(True, description="Learn offsets of the objects' directions.")
    coarse_to_fine: Fraction = Field(
        0.3,
        description="Share of the steps after which displacement and change see all levels of their grids; 0: at once.",
    )
    poses_until: Fraction = Field(0.03, description="Share of the steps in which paths alone are learned.")
    colour_until: Fraction = Field(0.1, description="Share of the steps in which colour and opacity join the paths.")
    mask_weight: NotNegative = Field(0.05, description="Of the difference between opacities and masks.")
    hidden_penalty: NotNegative = Field(1.0, description="Of the change of a layer where nearer ones hide it.")
    flow_penalty: NotNegative = Field(0.0, description="Of the mean displacement, in sizes of the plane.")
    alpha_penalty: NotNegative = Field(0.0, description="Of half-opacity, mean of 4 a (1 - a).")

    @model_validator(mode="after")
    def _in_order(self) -> ScenesModel:
        if self.colour_until < self.poses_until:
            raise ValueError(f"colour_until {self.colour_until} is below poses_until {self.poses_until}")
        return self


class ScenesTrain(TrainSettings):
    """Training on rays through the training frames."""

    epochs: PositiveFloat = Field(8, description="Passes over as many rays as the training frames have pixels.")
    batch_size: PositiveInt = Field(32_768, description="Rays in one step, over all processes.")
    lr: PositiveFloat = Field(1e-2, description="Peak learning rate.")
    weight_decay: NotNegative = Field(0.0, description="Decoupled weight decay.")
    optimizer: str = Field("adam", description="adamw, adam, sgd, rmsprop, muon, or import path of an optimiser.")
    optimizer_args: dict[str, object] = Field(
        {"betas": [0.9, 0.99], "eps": 1e-15},
        description="Further arguments of the optimiser; these are for adam and adamw.",
    )
    sampler: str = Field(
        "pixels",
        description="pixels: centres of pixels; uv_grid: random places, the same in several frames; or an import path.",
    )
    timestamps: PositiveInt = Field(20, description="Frames that share the places of the sampler 'uv_grid'.")
    pictures: bool = Field(True, description="Leave a picture of the scene at each check, in train/export/pictures/.")


class ScenesInfer(InferSettings):
    """Rendering of frames and layers."""

    batch_size: PositiveInt = Field(65_536, description="Rays rendered at once.")


class ScenesEvaluate(EvaluateSettings):
    """How renderings are judged."""

    baselines: tuple[Literal["temporal_median", "nearest_frame", "placed"], ...] = Field(
        ("temporal_median", "nearest_frame", "placed"),
        min_length=1,
        description="Simple methods beside the model; placed is the scene as the training found it.",
    )
    lpips_weights: Path | None = Field(
        None, description="File of torchvision's AlexNet weights, for LPIPS; null: MS-SSIM instead."
    )
    shown: Annotated[int, Field(ge=0)] = Field(4, description="Frames in the figures.")
    video_fps: PositiveFloat = Field(10.0, description="Frames in a second of the written video.")


class ScenesSettings(ExperimentSettings):
    """One experiment with a scene."""

    reads: ClassVar[dict[str, tuple[str, ...]]] = {
        **ExperimentSettings.reads,
        # The source named under `download` also knows how to read its files.
        "preprocess": ("download", "preprocess"),
    }

    download: ScenesDownload = ScenesDownload()
    preprocess: ScenesPreprocess = ScenesPreprocess()  # type: ignore[assignment]
    model: ScenesModel = ScenesModel()
    train: ScenesTrain = ScenesTrain()
    infer: ScenesInfer = ScenesInfer()
    evaluate: ScenesEvaluate = ScenesEvaluate()

    @model_validator(mode="after")
    def _fit_together(self) -> ScenesSettings:
        if self.download.source == "folder" and self.download.folder.frames is None:
            raise ValueError("download.folder.frames: the source 'folder' needs a folder of frames or a video")
        return self
