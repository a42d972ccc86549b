"""Models of transformers from a folder: whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from manyscope.errors import CheckpointError

_REMEDY = "fetch the model again with `manyscope download`"


def load_pretrained(make: Any, folder: Path, what: str, **options: Any) -> Any:
    """
    Args:
        make: class of transformers.
        what: the model is, for messages.
        options: of its `from_pretrained`.

    Raises:
        CheckpointError: the files cannot be read, or lack some of the weights, which transformers would draw at random.
    """
    with _quiet():
        try:
            model, report = make.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"the {what} cannot be loaded ({first_line(error)})", place=folder, remedy=_REMEDY
            ) from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"lacks {len(missing)} of the {what}'s weights, such as {missing[0]}", place=folder, remedy=_REMEDY
        )
    return model


def first_line(error: Exception) -> str:
    """Of what an error of another library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports no weights of another tower, and shows no bars."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
