"""Pretrained weights, taken from explicit files alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyscope.errors import CheckpointError
from manyscope.log import logger
from manyscope.training import checkpoints

if TYPE_CHECKING:
    from torch import nn

    from manyscope.scopes.cells.data.weights import Weights
    from manyscope.scopes.cells.model.networks import CellSegmenter
    from manyscope.scopes.cells.settings import CellsModel

_DECODER = "decoder."  # how names of the decoder's weights begin in this project's files


def decoder_weights(settings: CellsModel, trained: Path | None = None) -> list[str]:
    """Names of the decoder's weights that a model starts with; empty where it starts without any.

    Args:
        trained: weights of this project, which come before those that `model.weights` names.

    Raises:
        CheckpointError: a file is missing, changed or no file of weights.
    """
    if trained:
        names = checkpoints.load(trained).get("state_dict", {})
        return [name.removeprefix(_DECODER) for name in names if name.startswith(_DECODER)]
    return list(_read(settings)[1] or ()) if settings.weights else []


def load_pretrained(model: CellSegmenter, settings: CellsModel) -> None:
    """Load the weights that `model.weights` names into the model, in place; does nothing where it names none.

    A file may hold the promptable model alone, or both parts as micro_sam exports them.

    Raises:
        CheckpointError: a file is missing, changed, no file of weights, or of another model.
    """
    if settings.weights is None:
        return
    state, decoder, found = _read(settings)
    _load(model.sam, state, found.checkpoint, "a Segment Anything model")
    if decoder is not None:
        _load(model.decoder, decoder, found.decoder or found.checkpoint, "its decoder")
    logger.info("weights from %s%s", found.checkpoint, "" if decoder is not None else ", without a decoder")


def _read(settings: CellsModel) -> tuple[dict[str, Any], dict[str, Any] | None, Weights]:
    """The weights of the promptable model, those of the decoder if there are any, and the files."""
    from manyscope.scopes.cells.data.weights import require

    assert settings.weights, "the caller looks"
    found = require(settings.weights, settings.name)
    try:
        content = checkpoints.load(found.checkpoint)
    except CheckpointError as error:
        raise CheckpointError(
            "holds more than weights, as the checkpoints of micro_sam's trainers do, or is broken",
            place=found.checkpoint,
            remedy="export the model with micro_sam first, and use what that writes",
        ) from error
    state = content.get("model_state", content)
    if "encoder.pos_embed" in state:
        raise CheckpointError(
            "holds a training of mode 'instance' that was not exported",
            place=found.checkpoint,
            remedy="use the exported model, which lies beside the folder 'checkpoints'",
        )
    decoder = checkpoints.load(found.decoder) if found.decoder else content.get("decoder_state")
    return {name.removeprefix("sam."): value for name, value in state.items()}, decoder, found


def _load(module: nn.Module, state: dict[str, Any], place: Path, what: str) -> None:
    own = module.state_dict()
    different = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    if different:
        name = different[0]
        shapes = [str(tuple(d[name].shape)) if name in d else "absent" for d in (state, own)]
        raise CheckpointError(
            f"tensor {name!r} is {shapes[0]} in the file and {shapes[1]} in the model ({len(different)} differ)",
            place=place,
            allowed=f"{what} as model.name and model.args describe it",
            remedy="choose the model.name, model.args and model.decoder_features that the file was made with",
        )
    module.load_state_dict(state)
