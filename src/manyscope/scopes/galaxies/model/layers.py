"""What several networks share: last activations, the error of a reconstruction, and fitting one image to another."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from manyscope.nn.across import gather


class Arcsinh(nn.Module):
    """asinh: linear around zero, logarithmic far from it, without bounds."""

    def forward(self, x: Tensor) -> Tensor:
        return x.asinh()


LAST: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "arcsinh": Arcsinh,
    "identity": nn.Identity,
}


def last_activation(name: str) -> nn.Module:
    """What the last layer's numbers go through to become an image.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in LAST:
        raise ValueError(f"final must be one of {', '.join(LAST)}, found {name!r}")
    return LAST[name]()


def middle_of(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle (..., height, width) of images that are as large or larger."""
    top, left = ((have - want) // 2 for have, want in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def check_error(kind: str) -> None:
    """
    Raises:
        ValueError: there is no such error of a reconstruction.
    """
    if kind not in ("mean", "sum"):
        raise ValueError(f"loss must be mean or sum, found {kind!r}")


def reconstruction_losses(found: Tensor, images: Tensor, kind: str) -> dict[str, Tensor]:
    """The squared error of a reconstruction.

    Args:
        kind: "mean" over everything, or "sum" over the bands, then the mean over pixels and batch.
    """
    error = (found - images).square()
    mean = error.mean()
    return {"loss": mean if kind == "mean" else error.sum(1).mean(), "mse": mean.detach()}


def label_losses(logits: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Means over the samples whose label is known, of all processes together.

    A training weighs what a process finds by its samples, and a batch by its size: the losses are scaled so that this
    gives means over known labels, and `weight` says which share of the batch they stand for.

    Args:
        logits: (n, classes).
        labels: (n,) int64; below 0 is unknown.
        criterion: of (known, classes) and (known,) to their mean.
    """
    known = labels >= 0
    everyone = gather(known.float())
    mine, count = known.sum(), everyone.sum()
    scale = mine * len(everyone) / (len(labels) * count.clamp(min=1))
    if mine:
        loss = criterion(logits[known], labels[known])
        right = (logits[known].argmax(1) == labels[known]).float().mean()
    else:  # the mean over nothing would be nan; this keeps every parameter in the graph of every process
        loss, right = logits.sum() * 0.0, logits.new_zeros(())
    return {"loss": loss * scale, "accuracy": right * scale, "weight": count / len(everyone)}


def check_size(shape: tuple[int, int, int], least_px: int) -> None:
    """
    Raises:
        ValueError: the images are smaller than `least_px` along an axis.
    """
    if min(shape[1:]) < least_px:
        raise ValueError(f"it needs images of {least_px} px or more, found {shape[2]} x {shape[1]} px")
