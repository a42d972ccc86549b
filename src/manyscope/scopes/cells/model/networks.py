"""Segment Anything with a decoder for instances: the architectures, and the module that holds both parts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from manyscope.errors import ManyscopeError
from manyscope.scopes.cells.model.names import ARCHITECTURES, MODELS, architecture
from manyscope.scopes.cells.model.tiling import VIT_PX
from manyscope.scopes.cells.settings import MICRO_SAM_FEATURES

if TYPE_CHECKING:
    from torch_em.model import UNETR

    from manyscope.scopes.cells.settings import CellsModel, PeftSettings

_PEFT = {
    "lora": "LoRASurgery",
    "fact": "FacTSurgery",
    "adaptformer": "AdaptFormer",
    "ssf": "SSFSurgery",
    "attention": "AttentionSurgery",
    "bias": "BiasSurgery",
    "layer_norm": "LayerNormSurgery",
    "classical": "ClassicalSurgery",
}
_RANKED = ("lora", "fact")
_FEATURES = 256


def tiny(image_size: int = 256, embed_dim: int = 192, depth: int = 4, heads: int = 6) -> Sam:
    """A Segment Anything model for a CPU, to be trained from random numbers: every part of the real one, with an
    encoder of 2.5 million parameters for images of 256 pixels, every second block of which attends to the whole image.

    Args:
        image_size: width and height in pixels to which an image is brought; a multiple of 16.
        embed_dim: width of the encoder; a multiple of `heads`.
    """
    if min(image_size, embed_dim, heads, depth) < 1 or image_size % VIT_PX or embed_dim % heads:
        raise ManyscopeError(
            f"image_size {image_size}, embed_dim {embed_dim}, heads {heads}",
            place="model.args",
            allowed=f"image_size a multiple of {VIT_PX}, embed_dim a multiple of heads, none below 1",
        )
    grid = image_size // VIT_PX
    encoder = ImageEncoderViT(
        img_size=image_size,
        patch_size=VIT_PX,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=4,
        out_chans=_FEATURES,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=tuple(range(1, depth, 2)),
    )
    prompts = PromptEncoder(
        embed_dim=_FEATURES,
        image_embedding_size=(grid, grid),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=_FEATURES, mlp_dim=2048, num_heads=8)
    masks = MaskDecoder(
        transformer_dim=_FEATURES,
        transformer=transformer,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=_FEATURES,
    )
    return Sam(encoder, prompts, masks)


def vit_b(**args: Any) -> Sam:
    """Segment Anything with ViT-B; `image_size` (1024) and `num_multimask_outputs` (3) as in micro_sam."""
    return _registered("vit_b", args)


def vit_l(**args: Any) -> Sam:
    """Segment Anything with ViT-L; see `vit_b`."""
    return _registered("vit_l", args)


def vit_h(**args: Any) -> Sam:
    """Segment Anything with ViT-H; see `vit_b`."""
    return _registered("vit_h", args)


def vit_t() -> Sam:
    """Segment Anything with the encoder of MobileSAM.

    Raises:
        ManyscopeError: mobile_sam is not installed.
    """
    from micro_sam.util import VIT_T_SUPPORT, sam_model_registry

    if not VIT_T_SUPPORT:
        raise ManyscopeError(
            "vit_t needs the package mobile_sam, which is not installed",
            place="model.name",
            remedy="install it from its repository, or choose vit_b",
        )
    return sam_model_registry["vit_t"]()


def _registered(name: str, args: dict[str, Any]) -> Sam:
    from micro_sam.models.build_sam import sam_model_registry

    return sam_model_registry[name](**args)


class CellSegmenter(nn.Module):
    """A Segment Anything model and a convolutional decoder on the features of its encoder, which says for each pixel
    how likely it is of a cell and how far, within its cell, it is from the centre and from the border (Archit et al.,
    Nature Methods 2025, https://doi.org/10.1038/s41592-024-02580-4).

    Attributes:
        sam: the promptable model.
        decoder: upsamples by transposed convolutions if `transposed`, else by resizing; its state has the names that
            micro_sam gives it.
        unetr: encoder and decoder as one network, with the weights of the two.
        chosen: thresholds of centre distance, border distance and foreground, and the smallest area of a cell in
            pixels, as chosen on the validation images.
    """

    chosen: torch.Tensor

    def __init__(self, sam: Sam, decoder_features: int, transposed: bool = False) -> None:
        from micro_sam.instance_segmentation import DecoderAdapter
        from torch_em.model import UNETR

        super().__init__()
        unetr = UNETR(
            backbone="sam",
            encoder=sam.image_encoder,
            out_channels=3,
            use_sam_stats=True,
            final_activation="Sigmoid",
            use_skip_connection=False,
            resize_input=True,
            use_conv_transpose=transposed,
            initial_features=decoder_features,
            perform_range_checks=False,  # a tile of nothing but padding is black, and no mistake
        )
        self.sam, self.decoder = sam, DecoderAdapter(unetr)
        self._unetr = (unetr,)  # in a tuple: as a part of its own it would double the encoder in the state
        self.register_buffer("chosen", torch.tensor([0.5, 0.5, 0.5, 25.0]))

    @property
    def unetr(self) -> UNETR:
        return self._unetr[0]

    @property
    def image_size(self) -> int:
        """Width and height in pixels to which the encoder's input is brought."""
        return self.sam.image_encoder.img_size


def build(settings: CellsModel, weights: Iterable[str] = ()) -> CellSegmenter:
    """The untrained model that the settings describe; pretrained weights are loaded by `load_pretrained`.

    Args:
        weights: names of the decoder's weights that will be loaded. micro_sam has published decoders that upsample by
            transposed convolutions and some that resize; which one it is shows in the names.

    Raises:
        ManyscopeError: the arguments do not fit, or a package of the model is missing.
    """
    name = architecture(settings.name)
    if name in ARCHITECTURES and settings.decoder_features != MICRO_SAM_FEATURES:
        raise ManyscopeError(
            f"{settings.decoder_features} features with model {settings.name!r}",
            place="model.decoder_features",
            allowed=f"{MICRO_SAM_FEATURES}, as micro_sam builds it when it loads the trained model",
        )
    builder = MODELS.find(name)
    try:
        sam = builder(**settings.args)
    except TypeError as error:
        raise ManyscopeError(f"model {settings.name!r} refuses its arguments ({error})", place="model.args") from error
    if not isinstance(sam, Sam):
        raise ManyscopeError(
            f"model {settings.name!r} gives a {type(sam).__name__}",
            place="model.name",
            allowed="a segment_anything Sam",
        )
    transposed = any(name.startswith("decoder.samplers.") and ".block." in name for name in weights)
    return CellSegmenter(sam, settings.decoder_features, transposed)


def add_peft(model: CellSegmenter, settings: PeftSettings) -> None:
    """Freeze the encoder and add micro_sam's parameter-efficient updates to it, in place.

    To be done after pretrained weights are loaded, whose names are those of the plain model.

    Raises:
        ManyscopeError: the method refuses its arguments, or the encoder has no transformer blocks.
    """
    from micro_sam.models.peft_sam import PEFT_Sam

    if "quantize" in settings.args:
        raise ManyscopeError(
            "quantised training is not offered", place="model.peft.args", remedy="leave out 'quantize'"
        )

    try:
        PEFT_Sam(model.sam, **peft_arguments(settings))
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ManyscopeError(
            f"{settings.method!r} cannot be added to this model ({error})", place="model.peft", remedy="see micro_sam"
        ) from error


def peft_arguments(settings: PeftSettings) -> dict[str, Any]:
    """What micro_sam's PEFT_Sam takes for these settings."""
    from micro_sam.models import peft_sam

    # The others have no rank, or take one and leave it unused.
    rank = {"rank": settings.rank} if settings.method in _RANKED else {}
    return {"peft_module": getattr(peft_sam, _PEFT[settings.method]), **rank, **settings.args}


def freeze(model: CellSegmenter, parts: tuple[str, ...]) -> None:
    """Let these parts of the promptable model stay as they are."""
    for name, parameter in model.sam.named_parameters():
        if name.split(".")[0] in parts:
            parameter.requires_grad_(False)
