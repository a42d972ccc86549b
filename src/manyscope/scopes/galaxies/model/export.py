"""A network of this scope as a plain function of tensors, for ONNX."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyscope.scopes.galaxies.model import outputs, told
from manyscope.training.onnx import Exportable

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.data.stamps import StampData


class _Outputs(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(outputs(self.model, images).values())


def exportable(model: nn.Module, data: StampData) -> Exportable:
    """From `images`, (n, *image_shape) after the prepared transforms, all that `outputs` gives of them. The transforms
    are named in `about`: they are not part of the file."""
    with torch.inference_mode():
        names = tuple(outputs(model.eval(), data.batch(data.train_rows[:1])["images"]))
    classes = list(getattr(model, "classes", ()))
    about = {
        "image_shape": list(data.shape),
        "bands": data.bands,
        "unit": data.unit,
        "transforms": data.transforms.steps,
        "classes": classes,
    }
    return Exportable(_Outputs(model), ("images",), names, partial(told, classes=classes), about)
