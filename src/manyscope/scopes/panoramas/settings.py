"""The settings of a panoramas experiment."""

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
    TrainSettings,
)

NotNegative = Annotated[float, Field(ge=0)]
StageName = Literal["vision", "resampler", "finetune"]
STAGES: tuple[StageName, ...] = ("vision", "resampler", "finetune")
Part = Literal["vision", "resampler", "projector", "language", "adapters"]


class RoomsSettings(Section):
    """Rooms with objects around the camera, and questions whose answers are known, read by the source `rooms`."""

    train: PositiveInt = Field(2000, description="Rooms of the training split.")
    validation: PositiveInt = Field(100, description="Rooms of the validation split.")
    test: PositiveInt = Field(300, description="Rooms of the test split.")
    height_px: Annotated[int, Field(ge=32, le=2048, multiple_of=8)] = Field(
        128, description="Height of a panorama; it is twice as wide."
    )
    shapes: tuple[Literal["cube", "ball", "cone", "cylinder"], ...] = Field(
        ("cube", "ball", "cone"), min_length=2, description="Shapes of the objects."
    )
    objects_min: Annotated[int, Field(ge=1)] = Field(3, description="Fewest objects in a room.")
    objects_max: Annotated[int, Field(ge=1, le=16)] = Field(6, description="Most objects in a room.")
    slots: Literal[8, 16] = Field(
        8, description="Equal directions in which objects stand, each at most once; with 16 they may hide one another."
    )
    jitter_deg: Annotated[float, Field(ge=0, le=10)] = Field(6.0, description="Largest departure from a slot's middle.")
    distance_min: PositiveFloat = Field(1.9, description="Least distance of an object; the camera's height is 1.2.")
    distance_max: PositiveFloat = Field(2.5, description="Largest distance of an object.")
    radius_min: PositiveFloat = Field(0.58, description="Least radius of an object.")
    radius_max: PositiveFloat = Field(0.75, description="Largest radius of an object.")
    questions: tuple[
        Literal["colour", "shape", "count", "exists", "opposite", "left_of", "right_of", "nearer", "count_colour"], ...
    ] = Field(("colour", "shape", "count", "exists", "opposite"), min_length=1, description="Types of questions.")

    @model_validator(mode="after")
    def _in_order(self) -> RoomsSettings:
        for low, high in (
            ("objects_min", "objects_max"),
            ("distance_min", "distance_max"),
            ("radius_min", "radius_max"),
        ):
            if getattr(self, high) < getattr(self, low):
                raise ValueError(f"{high} {getattr(self, high)} is below {low} {getattr(self, low)}")
        if self.objects_max > self.slots:
            raise ValueError(f"objects_max {self.objects_max} is above slots {self.slots}")
        return self


class TableSettings(Section):
    """A table of questions and answers."""

    path: str = Field(
        description="CSV file with the columns url, query, annotation, or url, instruction, response; a url is an"
        " address, or a path that is relative to the file."
    )
    split: Literal["train", "validation", "test", "unlabelled"] | None = Field(
        None, description="Split of all its rows; null: by a hash of the picture."
    )


class CsvSettings(Section):
    """Tables of questions about pictures, read by the source `csv`."""

    files: tuple[TableSettings, ...] = Field((), description="All are read.")
    missing: Literal["fail", "skip"] = Field(
        "fail", description="skip: go on without pictures whose address is dead, up to missing_fraction."
    )
    missing_fraction: Fraction = Field(0.5, description="With more dead addresses than this share, fail all the same.")
    pause_s: NotNegative = Field(0.2, description="Pause between two requests to one host.")


class HubSettings(Section):
    """Pretrained models that the download stage fetches, where there is a network."""

    names: tuple[str, ...] = Field(
        (), description="Models of the hub, such as google/siglip-base-patch16-224, or OWNER/MODEL@REVISION."
    )
    folder: Path = Field(Path("data/weights/hub"), description="Cache of the hub.")


class PanoramasDownload(DownloadSettings):
    """Where pictures, questions and pretrained models come from."""

    source: str = Field("rooms", description="rooms, csv, or an import path of a source.")
    rooms: RoomsSettings = Field(RoomsSettings(), description="What the source 'rooms' draws.")
    csv: CsvSettings = Field(CsvSettings(), description="What the source 'csv' reads.")
    hub: HubSettings = Field(HubSettings(), description="Pretrained models.")


class ViewSettings(Section):
    """How a panorama is cut into views."""

    strategy: str = Field(
        "e2p",
        description="resize, sliding_window, e2p, cubemap, anyres, anyres_max, anyres_e2p, or an import path.",
    )
    size_px: Annotated[int, Field(ge=8, le=2048)] = Field(224, description="Width and height of a view.")
    fov_deg: Annotated[float, Field(gt=0, lt=180)] = Field(90.0, description="Field of view of a view.")
    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5, description="Share of a view's field that the next one sees, too: the step is fov_deg * (1 - overlap)."
    )
    pitch_deg: Annotated[float, Field(ge=-90, le=90)] = Field(0.0, description="Of the views of e2p; up is positive.")
    keep_rows: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of the rows around the middle that e2p and the last views of anyres keep."
    )
    pitch_min_deg: Annotated[float, Field(ge=-90, le=90)] = Field(-45.0, description="Lower edge of anyres_e2p.")
    pitch_max_deg: Annotated[float, Field(ge=-90, le=90)] = Field(45.0, description="Upper edge of anyres_e2p.")
    closed: bool = Field(True, description="The views of anyres_e2p meet at the seam; false: they begin and end there.")
    most_patches: PositiveInt = Field(12, description="Views of anyres and anyres_max beside the global one.")
    pixels: Literal["centres", "borders"] = Field(
        "centres",
        description="centres: pixels lie inside of the field of view; borders: the outermost lie on its border, as in"
        " py360convert.",
    )
    antialias: bool = Field(True, description="Average over a pixel's area, not only at its centre.")
    renderer: Literal["exact", "py360convert"] = Field(
        "exact", description="py360convert: its functions, without antialiasing; for views in perspective alone."
    )

    @model_validator(mode="after")
    def _fit(self) -> ViewSettings:
        if self.pitch_max_deg < self.pitch_min_deg:
            raise ValueError(f"pitch_max_deg {self.pitch_max_deg} is below pitch_min_deg {self.pitch_min_deg}")
        if self.renderer == "py360convert" and (self.antialias or self.pixels != "borders"):
            raise ValueError("renderer: py360convert has antialias: false and pixels: borders alone")
        return self


class PanoramasPreprocess(PreprocessSettings):
    """Checks of the tables, and views as arrays."""

    views: ViewSettings = Field(ViewSettings(), description="How a panorama is cut into views.")
    aspect_tolerance: Fraction = Field(0.02, description="Largest relative departure from twice as wide as high.")
    bad_rows: Literal["fail", "skip"] = Field(
        "fail", description="Rows with an empty answer, or with a picture that cannot be read or is not 2:1."
    )


class VisionSettings(Section):
    """The encoder of views."""

    type: Literal["siglip", "siglip2", "clip", "dinov2"] = Field("siglip", description="Architecture.")
    pretrained: str | None = Field(
        None, description="OWNER/MODEL or OWNER/MODEL@REVISION of the hub, or a folder; null: random numbers."
    )
    width: PositiveInt = Field(64, description="Width of a model of random numbers; so are the next four.")
    mlp_width: PositiveInt = Field(128, description="Of the hidden layer of a block.")
    layers: PositiveInt = Field(2, description="Blocks.")
    heads: PositiveInt = Field(4, description="Attention heads.")
    patch_px: PositiveInt = Field(8, description="Width and height of a token's patch.")


class ResamplerSettings(Section):
    """From the encoder's tokens to those that are projected."""

    name: str = Field(
        "mlp",
        description="mlp, qformer, perceiver, c_abstractor, spatial_pool, masked_drop, bimamba, or an import path.",
    )
    width: PositiveInt = Field(768, description="Width of its tokens.")
    args: dict[str, Any] = Field(default_factory=dict, description="Further arguments.")


class ProjectorSettings(Section):
    """From resampled tokens to those of the language model."""

    parts: PositiveInt | None = Field(
        None,
        description="A view becomes parts x parts tokens, each of all features of its part; null: each token stays.",
    )
    hidden: PositiveInt = Field(128, description="Neurons of the hidden layer, with parts.")
    gain: PositiveFloat = Field(
        0.1, description="Initial size of the tokens' numbers, with parts: that of the words' vectors."
    )
    position: Literal["direction", "none"] = Field(
        "direction", description="direction: a code of where in the panorama a token looks, without a seam."
    )
    harmonics: PositiveInt = Field(4, description="Waves around the horizon in that code.")
    order: Literal["sequence", "shared"] = Field(
        "sequence",
        description="sequence: tokens of views follow each other as words do, as pretrained models know it; shared: all"
        " stand at one place of the text, told apart by their code alone, so that the row of views has no seam.",
    )
    drop_overlap: bool = Field(
        False, description="Of tokens that see the same place keep those of the view whose middle is nearest."
    )

    @model_validator(mode="after")
    def _told_apart(self) -> ProjectorSettings:
        if self.order == "shared" and self.position == "none":
            raise ValueError("order: shared with position: none leaves nothing that tells views apart")
        return self


class LanguageSettings(Section):
    """The language model."""

    type: Literal["qwen3", "llama", "gemma3"] = Field("qwen3", description="Architecture of a model of random numbers.")
    pretrained: str | None = Field(
        None, description="OWNER/MODEL or OWNER/MODEL@REVISION of the hub, or a folder; null: random numbers."
    )
    width: PositiveInt = Field(64, description="Width of a model of random numbers; so are the next six.")
    mlp_width: PositiveInt = Field(128, description="Of the hidden layer of a block.")
    layers: PositiveInt = Field(4, description="Blocks.")
    heads: PositiveInt = Field(4, description="Attention heads.")
    kv_heads: PositiveInt = Field(4, description="Heads of keys and values.")
    head_width: PositiveInt = Field(16, description="Width of a head.")
    initial_range: PositiveFloat = Field(0.08, description="Standard deviation of the initial weights.")
    most_tokens: PositiveInt = Field(256, description="Of views, question and answer together.")
    long_text: Literal["refuse", "cut"] = Field(
        "refuse", description="Of a question that is too long: refuse it, or cut its beginning; answers are never cut."
    )
    chat_template: str | None = Field(
        None,
        description="plain, chatml, llama3, gemma, or a .jinja file, with generation marks; null: the model's own.",
    )
    system: str = Field("", description="The system's message; empty is none.")
    prompt: str = Field("{query}", description="What the user says, with the question in place of {query}.")


class LoraSettings(Section):
    """Low-rank adapters of the language model."""

    rank: Annotated[int, Field(ge=0)] = Field(32, description="Of the updates; 0: no adapters.")
    alpha: PositiveInt = Field(64, description="Scale; the updates are multiplied by alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="Of the adapters' input.")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Names of the layers that get adapters.",
    )


class OverlapSettings(Section):
    """Agreement of views about what several of them see."""

    loss: str = Field("vicreg", description="vicreg, infonce, densecl, none, or an import path.")
    correspondence: Literal["exact", "columns"] = Field(
        "exact",
        description="exact: by the rays of the tokens; columns: the last columns of a view with the first of the next.",
    )
    invariance: NotNegative = Field(25.0, description="Weight of VICReg's invariance.")
    variance: NotNegative = Field(25.0, description="Weight of VICReg's variance.")
    covariance: NotNegative = Field(1.0, description="Weight of VICReg's covariance.")
    temperature: PositiveFloat = Field(0.07, description="Of InfoNCE and DenseCL.")
    hidden: PositiveInt = Field(64, description="Neurons of the hidden layer of the head behind the tokens.")
    force: bool = Field(False, description="Also where views share no place, which the columns pair all the same.")


class PanoramasModel(ModelSettings):
    """Views -> vision encoder -> resampler -> projector -> language model."""

    name: str = Field("panorama", description="panorama, or an import path.")
    weights: Path = Field(Path("data/weights/hub"), description="Cache of the hub with the pretrained models.")
    vision: VisionSettings = Field(VisionSettings(), description="The encoder of views.")
    resampler: ResamplerSettings = Field(ResamplerSettings(), description="From its tokens to those projected.")
    projector: ProjectorSettings = Field(ProjectorSettings(), description="From these to the language model's.")
    language: LanguageSettings = Field(LanguageSettings(), description="The language model.")
    lora: LoraSettings = Field(LoraSettings(), description="Its adapters.")
    overlap: OverlapSettings = Field(OverlapSettings(), description="Agreement of views.")


class StageSettings(Section):
    """One stage of the training."""

    epochs: PositiveFloat | None = Field(None, description="Passes over the pictures; null: train.epochs.")
    batch_size: PositiveInt | None = Field(None, description="Pictures in a step; null: train.batch_size.")
    lr: PositiveFloat | None = Field(None, description="Peak learning rate; null: train.lr.")
    turns: PositiveInt = Field(16, description="At most so many questions of a picture in a step.")
    types: tuple[str, ...] = Field(
        (), description="Types of turns; empty: all of the table. Rooms have the types look, where and across besides."
    )
    trains: tuple[Part, ...] = Field((), description="What learns.")
    vision_blocks: Annotated[int, Field(ge=-1)] = Field(
        -1, description="If the vision encoder learns, so many of its last blocks; -1 is all of it."
    )
    overlap_weight: NotNegative = Field(0.0, description="Of the overlap's loss beside that of the answers.")


class VisionStage(StageSettings):
    """Views agree about what several of them see."""

    trains: tuple[Part, ...] = Field(("vision", "resampler"), description="What learns.")
    overlap_weight: NotNegative = Field(1.0, description="Of the overlap's loss, which is the only one.")


class ResamplerStage(StageSettings):
    """The language model learns to see."""

    one_view_epochs: NotNegative = Field(
        0.0,
        description="Before it, so many passes of turns of the type look in which each sees the view of its direction"
        " alone, and everything learns.",
    )
    one_view_batch_size: PositiveInt | None = Field(None, description="Pictures in a step of it; null: batch_size.")
    trains: tuple[Part, ...] = Field(("resampler", "projector"), description="What learns.")


class FinetuneStage(StageSettings):
    """The language model learns to answer."""

    trains: tuple[Part, ...] = Field(("projector", "adapters"), description="What learns.")
    mixed_turns: Annotated[int, Field(ge=0)] = Field(0, description="Of the turns, so many of the type look.")


class BlindStage(Section):
    """A language model of the same kind that never sees a picture: the baseline. Its adapters learn, or all of it where
    it has none or starts from random numbers."""

    epochs: PositiveFloat = Field(1.0, description="Passes over the pictures.")
    batch_size: PositiveInt | None = Field(None, description="Pictures in a step; null: that of finetune.")
    lr: PositiveFloat | None = Field(None, description="Peak learning rate; null: that of finetune.")


class PanoramasTrain(TrainSettings):
    """Training in stages; each continues where it was stopped, and begins with the best weights of the one before."""

    stages: tuple[StageName, ...] = Field(
        STAGES, min_length=1, description="Which of vision, resampler, finetune, in this order."
    )
    vision: VisionStage = Field(VisionStage(), description="The first stage.")
    resampler: ResamplerStage = Field(ResamplerStage(), description="The second stage.")
    finetune: FinetuneStage = Field(FinetuneStage(), description="The third stage.")
    blind: BlindStage = Field(BlindStage(), description="The baseline without pictures, after the third stage.")
    vision_rate: PositiveFloat = Field(1.0, description="Learning rate of the vision encoder, of the others'.")
    augment: bool = Field(
        True, description="Turn and mirror rooms, with the answers that then hold; tables have no such answers."
    )
    cache_features: bool = Field(
        True, description="Where vision and resampler do not learn, compute their tokens of each view once."
    )

    save_merged: bool = Field(
        False, description="Leave the language model with its adapters merged in, in train/export/language/."
    )

    @model_validator(mode="after")
    def _in_order(self) -> PanoramasTrain:
        if list(self.stages) != [name for name in STAGES if name in self.stages]:
            raise ValueError(f"stages {', '.join(self.stages)} are not in the order {', '.join(STAGES)}")
        return self


class PanoramasInfer(InferSettings):
    """Answers, by the most probable word each time."""

    batch_size: PositiveInt = Field(128, description="Questions answered at once.")
    most_words: PositiveInt = Field(128, description="Tokens of an answer.")


class PanoramasEvaluate(EvaluateSettings):
    """How answers are judged."""

    shown: Annotated[int, Field(ge=0)] = Field(8, description="Examples on the page of answers.")


class PanoramasSettings(ExperimentSettings):
    """One experiment with panoramas."""

    reads: ClassVar[dict[str, tuple[str, ...]]] = {
        **ExperimentSettings.reads,
        # The source named under `download` also knows how to read its files.
        "preprocess": ("download", "preprocess"),
        "infer": ("preprocess", "model", "infer"),  # a picture that is searched for is cut into views, too
    }

    download: PanoramasDownload = PanoramasDownload()
    preprocess: PanoramasPreprocess = PanoramasPreprocess()
    model: PanoramasModel = PanoramasModel()
    train: PanoramasTrain = PanoramasTrain()
    infer: PanoramasInfer = PanoramasInfer()
    evaluate: PanoramasEvaluate = PanoramasEvaluate()
