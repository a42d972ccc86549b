"""The trained model in the form that micro_sam's functions, its command line and its annotation tools read."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from manyscope.errors import CheckpointError
from manyscope.scopes.cells.model.names import ARCHITECTURES, MODELS, architecture
from manyscope.scopes.cells.model.networks import CellSegmenter
from manyscope.training import checkpoints

if TYPE_CHECKING:
    from manyscope.scopes.cells.settings import CellsModel


def export(model: CellSegmenter, path: Path) -> None:
    """Write `{model_state, decoder_state}`: what micro_sam's exporters make of a training, whichever its mode was."""
    checkpoints.save(path, {"model_state": model.sam.state_dict(), "decoder_state": model.decoder.state_dict()})


def proven(path: Path, settings: CellsModel, image: np.ndarray) -> np.ndarray:
    """Load an exported model through micro_sam and segment one image with it.

    Args:
        image: (height, width) uint8.

    Returns:
        Instances, (height, width) uint32.

    Raises:
        CheckpointError: micro_sam cannot load it.
    """
    from micro_sam.automatic_segmentation import automatic_instance_segmentation, get_predictor_and_segmenter
    from micro_sam.util import get_sam_model

    side = min(settings.patch_px, *image.shape)
    try:
        with known_to_micro_sam(settings) as name, contextlib.redirect_stdout(io.StringIO()):
            predictor, state = get_sam_model(
                name, device="cpu", checkpoint_path=str(path), return_state=True, **_peft(settings), **_size(settings)
            )
            predictor, segmenter = get_predictor_and_segmenter(
                name, device="cpu", segmentation_mode="ais", predictor=predictor, state=state
            )
            masks = automatic_instance_segmentation(predictor, segmenter, image[:side, :side], ndim=2, verbose=False)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"micro_sam cannot use the exported model ({error})", place=path) from error
    return np.asarray(masks, np.uint32)


@contextmanager
def known_to_micro_sam(settings: CellsModel) -> Iterator[str]:
    """Inside the block micro_sam builds the settings' model under the name that is yielded.

    micro_sam has a fixed list of architectures. The small one and a model of one's own take the place of vit_b in it.
    """
    name = architecture(settings.name)
    if name in ARCHITECTURES:
        yield name
        return
    import micro_sam.instance_segmentation as segmentation
    import micro_sam.models.build_sam as custom
    import micro_sam.util as util

    def build(checkpoint: Any = None, **_: Any) -> torch.nn.Module:
        return MODELS.find(settings.name)(**settings.args)

    def unetr(**arguments: Any) -> torch.nn.Module:
        return decoder(**arguments, initial_features=settings.decoder_features)

    decoder, check = segmentation.UNETR, custom._validate_model_type
    registries = (util.sam_model_registry, custom.sam_model_registry)
    before = [registry["vit_b"] for registry in registries]
    for registry in registries:
        registry["vit_b"] = build
    custom._validate_model_type = lambda state: "vit_b"
    segmentation.UNETR = unetr
    try:
        yield "vit_b"
    finally:
        for registry, builder in zip(registries, before, strict=True):
            registry["vit_b"] = builder
        custom._validate_model_type, segmentation.UNETR = check, decoder


def _size(settings: CellsModel) -> dict[str, Any]:
    return dict(settings.args) if architecture(settings.name) in ARCHITECTURES else {}


def _peft(settings: CellsModel) -> dict[str, Any]:
    if settings.peft is None:
        return {}
    from manyscope.scopes.cells.model.networks import peft_arguments

    return {"peft_kwargs": peft_arguments(settings.peft)}
