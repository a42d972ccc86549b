"""Weights on disk: written whole, read without executing anything, refused when they belong to another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from manyscope.errors import CheckpointError
from manyscope.tables.whole import whole_file

FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values whole; the same content gives the same bytes."""
    # Given a path, torch would put the temporary name into the file.
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save(content, file)


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """
    Raises:
        CheckpointError: the file is missing, broken, or holds more than tensors and plain values.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError("the checkpoint is missing", place=path, remedy="run the stage train") from error
    except OSError:
        raise
    except Exception as error:  # torch raises whatever its reader of rubbish stumbles over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"not a readable checkpoint ({reason[:120]})", place=path, remedy="delete it and run the stage train again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"holds a {type(content).__name__}", place=path, allowed="a mapping with 'state_dict'")
    return content


def save_weights(path: Path, module: nn.Module, scope: str, model: dict[str, Any]) -> None:
    """Write the weights of a module with the settings that built it."""
    save(path, {"format": FORMAT, "scope": scope, "model": model, "state_dict": module.state_dict()})


def load_weights(path: Path, module: nn.Module, scope: str, model: dict[str, Any]) -> None:
    """Load weights that `save_weights` wrote into a module built from the same settings.

    Raises:
        CheckpointError: the checkpoint is broken, or of another scope, model or shape.
    """
    content = load(path)
    if content.get("format") != FORMAT or "state_dict" not in content:
        raise CheckpointError("not a file of model weights", place=path, remedy="run the stage train again")
    if content["scope"] != scope or content["model"]["name"] != model["name"]:
        raise CheckpointError(
            f"holds model {content['model']['name']!r} of scope {content['scope']!r}",
            place=path,
            allowed=f"model {model['name']!r} of scope {scope!r}",
            remedy="run the stage train again, or restore the settings it was trained with",
        )
    own, found = module.state_dict(), content["state_dict"]
    different = sorted(own.keys() ^ found.keys()) or [k for k in own if own[k].shape != found[k].shape]
    if different:
        name = different[0]
        shapes = [str(tuple(d[name].shape)) if name in d else "absent" for d in (found, own)]
        raise CheckpointError(
            f"tensor {name!r} is {shapes[0]} in the file and {shapes[1]} in the model"
            f" ({len(different)} tensors differ)",
            place=path,
            remedy="the model's arguments or the data's shape changed: run the stage train again",
        )
    module.load_state_dict(found)
