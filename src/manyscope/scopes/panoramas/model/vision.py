"""Encoders of views: one transformer over the patches of each, from random numbers or pretrained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from manyscope.errors import CheckpointError, SettingsError
from manyscope.scopes.panoramas.data.hub import require
from manyscope.scopes.panoramas.model.pretrained import load_pretrained
from manyscope.scopes.panoramas.settings import VisionSettings
from manyscope.tables.whole import read_json


@dataclass(frozen=True)
class _Kind:
    """A type of encoder.

    Attributes:
        model, config: names in transformers.
        stored: what a checkpoint's model_type may be: with a text tower, and alone.
        prefix: tokens before those of the patches.
        mean, std: of the pixels, where a checkpoint says nothing.
        blocks: attribute that holds the blocks.
        norm: attribute of the norm behind them; None where the tokens pass none.
        idle: beginning of the names of parameters that have no part in the tokens.
        options: of a configuration made here.
        interpolates: whether the model is to be told that pictures have another size than those it was trained on.
    """

    model: str
    config: str
    stored: tuple[str, ...]
    prefix: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    blocks: str
    norm: str | None
    idle: str
    options: Callable[[VisionSettings], dict[str, Any]]
    interpolates: bool = True


def _plain(settings: VisionSettings) -> dict[str, Any]:
    return {"intermediate_size": settings.mlp_width}


# The checkpoints of SigLIP 2 with a fixed size are of SigLIP's architecture, and say so.
_SIGLIP = _Kind(
    "SiglipVisionModel", "SiglipVisionConfig", ("siglip", "siglip_vision_model"), 0,
    (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "encoder.layers", "post_layernorm", "head.",
    lambda settings: {**_plain(settings), "vision_use_head": False},
)  # fmt: skip
_KINDS = {
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "clip": _Kind(
        "CLIPVisionModel", "CLIPVisionConfig", ("clip", "clip_vision_model"), 1,
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "encoder.layers", None,
        "post_layernorm.", _plain,
    ),
    "dinov2": _Kind(
        "Dinov2Model", "Dinov2Config", ("dinov2",), 1,
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "encoder.layer", "layernorm", "embeddings.mask_token",
        lambda settings: {"mlp_ratio": settings.mlp_width // settings.width}, interpolates=False,
    ),
}  # fmt: skip
_NAFLEX = ("siglip2", "siglip2_vision_model")


class VisionEncoder(nn.Module):
    """A vision transformer as a function from views to grids of tokens.

    Args:
        model: of transformers; answers last_hidden_state.
        kind: its type.
        size_px: width and height of the views.
        mean, std: of the pixels, from 0 to 1, in each channel.

    Attributes:
        grid: tokens along an edge.
        width: of a token.
        blocks: of the transformer, in order.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, kind: _Kind, size_px: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        config: Any = model.config
        self.model, self._kind = model, kind
        self.grid, self.width = _grid(size_px, config.patch_size), int(config.hidden_size)
        self._options = {"interpolate_pos_encoding": True} if kind.interpolates and size_px != config.image_size else {}
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def blocks(self) -> nn.ModuleList:
        found = self.model.get_submodule(self._kind.blocks)
        assert isinstance(found, nn.ModuleList)
        return found

    def forward(self, pixels: Tensor) -> Tensor:
        """
        Args:
            pixels: (n, 3, size_px, size_px) uint8.

        Returns:
            (n, grid, grid, width), rows downwards; without the tokens that stand before those of the patches.
        """
        normal = (pixels / 255 - self.mean) / self.std
        tokens: Tensor = self.model(pixel_values=normal, **self._options).last_hidden_state
        return tokens[:, self._kind.prefix :].unflatten(1, (self.grid, self.grid))

    def learn(self, blocks: int, place: str) -> None:
        """Let the last blocks and the norm behind them learn, and nothing else; 0 is nothing at all, -1 is all that
        has a part in the tokens.

        Args:
            place: in the settings, where their number stands.

        Raises:
            SettingsError: there are not so many blocks.
        """
        refuse_blocks(blocks, len(self.blocks), place)
        self.requires_grad_(blocks < 0)
        # What stays without a gradient would stop a training on several processes.
        for name, parameter in self.model.named_parameters():
            if name.startswith(self._kind.idle):
                parameter.requires_grad_(False)
        if blocks > 0:
            self.blocks[-blocks:].requires_grad_(True)
            if self._kind.norm is not None:
                self.model.get_submodule(self._kind.norm).requires_grad_(True)


def build_vision(settings: VisionSettings, size_px: int, weights: Path) -> VisionEncoder:
    """
    Args:
        size_px: width and height of the views.
        weights: cache of the hub, where `settings.pretrained` names a model of the hub.

    Raises:
        SettingsError: the views do not consist of whole patches, or the widths do not fit one another.
        CheckpointError: the pretrained model is missing, incomplete, or of another type.
    """
    kind = _KINDS[settings.type]
    if settings.pretrained is None:
        return VisionEncoder(_random(settings, kind, size_px), kind, size_px, kind.mean, kind.std)
    folder = require(settings.pretrained, weights)
    return VisionEncoder(_pretrained(folder, settings.type, kind), kind, size_px, *_normalisation(folder, kind))


def grid_of(settings: VisionSettings, size_px: int) -> int:
    """Side of the grid of tokens of an encoder of random numbers, which need not be built for it.

    Raises:
        SettingsError: the views do not consist of whole patches, or the widths do not fit one another.
    """
    _refuse_widths(settings)
    return _grid(size_px, settings.patch_px)


def refuse_blocks(wanted: int, blocks: int, place: str) -> None:
    """
    Raises:
        SettingsError: there are not so many blocks.
    """
    if wanted > blocks:
        raise SettingsError(
            f"{place}: {wanted} of the vision encoder's {blocks} blocks; allowed: -1 (all of it) to {blocks}"
        )


def _grid(size_px: int, patch_px: int) -> int:
    if size_px % patch_px:
        below = size_px - size_px % patch_px
        raise SettingsError(
            f"preprocess.views.size_px: {size_px} is no multiple of {patch_px}, the width of the vision encoder's"
            f" patches; {f'the nearest below is {below}' if below else f'the least is {patch_px}'}"
        )
    return size_px // patch_px


def _refuse_widths(settings: VisionSettings) -> None:
    if settings.width % settings.heads:
        raise SettingsError(f"model.vision.width: {settings.width} is no multiple of its {settings.heads} heads")
    if settings.type == "dinov2" and settings.mlp_width % settings.width:
        raise SettingsError(
            f"model.vision.mlp_width: {settings.mlp_width} is no multiple of the width {settings.width}, as of dinov2"
        )


def _random(settings: VisionSettings, kind: _Kind, size_px: int) -> nn.Module:
    _refuse_widths(settings)
    config = getattr(transformers, kind.config)(
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        patch_size=settings.patch_px,
        # Of no whole number of patches is refused later, in one place.
        image_size=max(size_px, settings.patch_px),
        attn_implementation="sdpa",
        **kind.options(settings),
    )
    model: nn.Module = getattr(transformers, kind.model)(config)
    return model


def _pretrained(folder: Path, name: str, kind: _Kind) -> nn.Module:
    """The vision tower of a checkpoint."""
    config: Any = read_json(folder / "config.json")
    stored = config.get("model_type")
    if stored in _NAFLEX:
        raise CheckpointError(
            "takes pictures of any shape (NaFlex), not views of one size",
            place=folder,
            allowed="checkpoints with a fixed size, such as google/siglip2-base-patch16-224",
            remedy="set model.vision.pretrained to one",
        )
    if stored not in kind.stored:
        raise CheckpointError(
            f"holds a model of type {stored!r} where model.vision.type is {name}",
            place=folder,
            allowed=" or ".join(kind.stored),
            remedy="change model.vision.type or model.vision.pretrained",
        )
    make = getattr(transformers, kind.model)
    two_towers = len(kind.stored) > 1 and stored == kind.stored[0]
    values = config.get("vision_config", {}) if two_towers else config
    made = getattr(transformers, kind.config).from_dict(values)
    if kind is _SIGLIP:
        made.vision_use_head = False
    built: nn.Module = load_pretrained(make, folder, "vision encoder", config=made, attn_implementation="sdpa")
    return built


def _normalisation(folder: Path, kind: _Kind) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels from 0 to 1, as the checkpoint's processor has them."""
    for name, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (folder / name).is_file():
            values: Any = read_json(folder / name)
            values = values.get(part, {}) if part else values
            if values.get("do_normalize") is False:
                return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
            if "image_mean" in values and "image_std" in values:
                return tuple(values["image_mean"]), tuple(values["image_std"])
    return kind.mean, kind.std
