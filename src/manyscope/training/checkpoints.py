"""Weights on disk: written whole, read without executing anything, refused when they belong to another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from manyscope.errors import CheckpointError
from manyscope.tables.whole import whole_file

FORMAT = 1
_SHOWN = 12  # names of classes in a message


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
    """Write the weights of a module with the settings that built it, and with the names of its classes, if it has an
    attribute `classes`: they say what the numbers of its output mean."""
    content = {"format": FORMAT, "scope": scope, "model": model, "classes": _classes(module)}
    save(path, {**content, "state_dict": module.state_dict()})


def load_weights(path: Path, module: nn.Module, scope: str, model: dict[str, Any]) -> None:
    """Load weights that `save_weights` wrote into a module built from the same settings.

    Raises:
        CheckpointError: the checkpoint is broken, or of another scope, model, shape or list of classes.
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
    classes, stored = _classes(module), content.get("classes", [])
    if classes != stored:
        raise CheckpointError(
            f"the classes have changed: the weights know {_listed(stored)}",
            place=path,
            allowed=f"those of the data, {_listed(classes)}",
            remedy="run the stage train again, or restore the data it was trained on",
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


def _classes(module: nn.Module) -> list[str]:
    classes = getattr(module, "classes", ())
    return [str(name) for name in classes] if isinstance(classes, (list, tuple)) else []  # some keep their number there


def _listed(classes: list[str]) -> str:
    shown = ", ".join(map(repr, classes[:_SHOWN]))
    more = len(classes) - _SHOWN
    return (shown or "none") + (f" and {more} more" if more > 0 else "")
