"""A plain torch module as a model: what it is given, what it learns from, and which of its numbers are the latent
vector."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from manyscope.errors import SettingsError
from manyscope.scopes.galaxies.model import CRITERIA
from manyscope.scopes.galaxies.model.layers import label_losses

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.settings import GalaxiesModel


def given_to(
    make: Callable[..., Any], args: dict[str, Any], shape: tuple[int, ...], classes: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is built with besides its arguments, by position and by name.

    A parameter `shape` or, whatever its name, a first one without a default gets the shape of an image; a parameter
    `classes` the names of the classes. Arguments from the settings come before both.
    """
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except (TypeError, ValueError):  # some callables in C have none
        return (shape,), {}
    named = {"classes": list(classes)} if any(p.name == "classes" and p.name not in args for p in parameters) else {}
    first = parameters[0] if parameters else None
    if any(p.name == "shape" for p in parameters):
        return (), named if "shape" in args else {"shape": shape, **named}
    by_position = first is not None and first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
    wanted = first is not None and by_position and first.default is first.empty and first.name not in {**args, **named}
    return ((shape,) if wanted else ()), named


def with_losses(
    module: nn.Module, settings: GalaxiesModel, shape: tuple[int, ...], classes: Sequence[str]
) -> nn.Module:
    """A module without `losses`, with the criterion of the settings around it.

    Whether it reconstructs images or names classes is told by its output for two blank images, or by `model.target`.

    Raises:
        SettingsError: its output is neither, or the criterion is unknown, refuses its arguments or the output.
    """
    images = torch.zeros(2, *shape)
    was_training = module.training
    try:
        with torch.no_grad():
            output = module.eval()(images)
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(
            f"model.name: {settings.name!r} cannot be applied to images {tuple(images.shape)}: {reason}"
        ) from error
    finally:
        module.train(was_training)
    target = _target(output, images, settings, classes)
    name = settings.criterion or {"images": "mse", "labels": "cross_entropy"}[target]
    criterion = CRITERIA.build(name, place="model.criterion_args", **settings.criterion_args)
    wrapped = Reconstructing(module, criterion) if target == "images" else Classifying(module, criterion, classes)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("error", message="Using a target size")  # how torch announces a sum over nonsense
            loss = wrapped.of(output, {"images": images, "labels": torch.zeros(2, dtype=torch.int64)})["loss"]
    except (TypeError, ValueError, RuntimeError, IndexError, UserWarning) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(
            f"model.criterion: {name!r} cannot compare the model's output to {target}: {reason}"
        ) from error
    if loss.ndim:
        raise SettingsError(
            f"model.criterion: {name!r} gives shape {tuple(loss.shape)}; it must give one number: remove 'reduction' "
            "from model.criterion_args"
        )
    return wrapped


def _target(output: Any, images: Tensor, settings: GalaxiesModel, classes: Sequence[str]) -> str:
    """What the output is to be compared to: "images" or "labels"."""
    found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    n, pixels = len(images), math.prod(images.shape[1:])
    fits = isinstance(output, Tensor) and output.ndim > 0 and len(output) == n
    as_images = fits and output.numel() == n * pixels
    as_labels = fits and output.ndim == 2 and 2 <= len(classes) <= output.shape[1]
    if settings.target == "images" and as_images:
        return "images"
    if settings.target == "labels" and as_labels:
        return "labels"
    if settings.target is None and as_images:
        return "images"
    if settings.target is None and as_labels and output.shape[1] == len(classes):
        return "labels"
    allowed = {
        "images": f"{tuple(images.shape)}, to reconstruct images",
        "labels": f"({n}, {len(classes)} or more), to name {len(classes)} classes"
        if len(classes) > 1
        else f"no labels: the data has {len(classes)} classes, see preprocess.label",
    }
    wanted = allowed[settings.target] if settings.target else f"{allowed['images']}; {allowed['labels']}"
    raise SettingsError(
        f"model.name: {settings.name!r} has no method losses(batch), and for images {tuple(images.shape)} its output "
        f"is {found}; allowed: {wanted}; change the model, or give it losses (docs/bring-your-own.md)"
    )


class _Plain(nn.Module):
    """A module with a criterion. The latent vector is what its method `embed` or `encode` gives, else its output."""

    def __init__(self, module: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.module, self.criterion = module, criterion
        self._embed = next((name for name in ("embed", "encode") if callable(getattr(module, name, None))), None)

    def forward(self, images: Tensor) -> Tensor:
        """(n, *shape) -> (n, dimensions)."""
        latent = getattr(self.module, self._embed)(images) if self._embed else self.module(images)
        return latent.flatten(1)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The latent vectors and the output."""
        output = self.module(images)
        return (self(images) if self._embed else output.flatten(1)), output

    def of(self, output: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The losses of an output."""
        raise NotImplementedError

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The criterion's mean over the batch."""
        return self.of(self.module(batch["images"]), batch)


class Reconstructing(_Plain):
    """A module whose output is compared to its input."""

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The latent vectors (n, dimensions) and the reconstructions (n, *shape)."""
        latent, output = self.both(images)
        return latent, output.reshape(images.shape)

    def of(self, output: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        images = batch["images"]
        return {"loss": self.criterion(output.reshape(images.shape), images)}


class Classifying(_Plain):
    """A module whose output is compared to labels.

    Args:
        classes: names of the first numbers of its output.
    """

    def __init__(self, module: nn.Module, criterion: nn.Module, classes: Sequence[str]) -> None:
        super().__init__(module, criterion)
        self.classes = list(classes)

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The latent vectors (n, dimensions) and the logits (n, classes)."""
        latent, output = self.both(images)
        return latent, output[:, : len(self.classes)]

    def of(self, output: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        return label_losses(output, batch["labels"], self.criterion)
