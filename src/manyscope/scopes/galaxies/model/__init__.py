"""The networks, found by name, and what they say of a batch.

A model is a torch module `Model(shape, **args)` for images of that shape, (bands, height, width):

- `forward(images)` maps (n, *shape) float32 to latent vectors (n, dimensions);
- `losses(batch)` maps a batch of `StampData` to a dict of scalars with "loss";
- `decode(latent)`, optional, maps latent vectors back to images;
- `adapt(stamps, transforms)`, optional, is called once on a new model with training stamps and with the function that
  makes images of stamps; what it learns must lie in buffers, so that a checkpoint holds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyscope.errors import DataError
from manyscope.registry import Registry
from manyscope.tables.predictions import Objects

if TYPE_CHECKING:
    from torch import Tensor, nn

    from manyscope.scopes.galaxies.data.stamps import StampData
    from manyscope.settings.sections import ModelSettings

MODELS = Registry(
    "model",
    {
        "autoencoder": "manyscope.scopes.galaxies.model.autoencoder:Autoencoder",
        "invariant": "manyscope.scopes.galaxies.model.invariant:Invariant",
    },
    group="manyscope.galaxy_models",
)
_ADAPT_STAMPS = 8192
_PEAK_PIXELS = 20
_ASYMMETRIC_SHARE = 0.02
_SKY_BORDER_PX = 4


def build_model(settings: ModelSettings, data: StampData) -> nn.Module:
    """A new model with weights from torch's global generator, adapted to the training stamps.

    Raises:
        ManyscopeError: the model is unknown.
        SettingsError: it does not take its arguments.
    """
    import torch

    model: Any = MODELS.build(settings.name, data.shape, place="model.args", **settings.args)
    if hasattr(model, "adapt"):
        rows = data.train_rows
        if len(rows) > _ADAPT_STAMPS:  # evenly over the training set: enough for means and covariances
            rows = rows[np.linspace(0, len(rows) - 1, _ADAPT_STAMPS).astype(np.int64)]
        with torch.no_grad():
            model.adapt(data.batch(rows)["stamps"], data.transforms)
    return model


def describe(model: Any, batch: dict[str, Any]) -> Objects:
    """One object for each sample of a batch, which may be padded beyond its ids.

    Columns of every model: `outlier_asymmetry`. Columns of one that decodes: `reconstruction_error`, the mean
    squared error in units of the transformed image, and `outlier_reconstruction`, the mean of the twenty largest
    squared errors, since an anomaly is small.

    Raises:
        DataError: the model returns another shape than (n, dimensions).
    """
    images, ids = batch["images"], batch["sample_id"]
    latent = model(images)
    if latent.ndim != 2 or len(latent) != len(images):
        raise DataError(
            f"the model returns shape {tuple(latent.shape)} for {len(images)} images", allowed="(images, dimensions)"
        )
    columns = {"outlier_asymmetry": asymmetry(images)[: len(ids)].cpu().numpy()}
    if hasattr(model, "decode"):
        squared = (model.decode(latent) - images).square().flatten(1)[: len(ids)]
        columns |= {
            "reconstruction_error": squared.mean(1).cpu().numpy(),
            "outlier_reconstruction": squared.topk(min(_PEAK_PIXELS, squared.shape[1])).values.mean(1).cpu().numpy(),
        }
    return Objects.one_each(ids, latent[: len(ids)].float().cpu().numpy(), columns)


def asymmetry(images: Tensor) -> Tensor:
    """How much images change under half a turn, (n,): the mean of the largest two per cent of the differences.

    Galaxies are close to point symmetric; trails, arcs and cosmic rays are not. After the asymmetry of Conselice
    (2003), https://doi.org/10.1086/375001, with the largest differences in place of all, since an anomaly is small.

    Args:
        images: (n, bands, height, width) with the object on pixel (height // 2, width // 2).
    """
    turned = images[..., 1 - images.shape[-2] % 2 :, 1 - images.shape[-1] % 2 :]
    difference = (turned - turned.flip(-1, -2)).abs().flatten(1)
    return difference.topk(max(1, round(_ASYMMETRIC_SHARE * difference.shape[1]))).values.mean(1)


def embed_image(settings: ModelSettings, data: StampData, weights: Path, query: Path | str) -> np.ndarray:
    """The latent vector, (dimensions,) float32, of the middle of an 8-bit colour image file.

    The sky's level and noise are estimated from the border of the stamp.

    Raises:
        DataError: the file is missing, not a colour image, or smaller than a stamp.
        CheckpointError: the weights are of another model.
    """
    import torch

    from manyscope.scopes.galaxies.data.hubble import read_photograph
    from manyscope.scopes.galaxies.data.sources import middle
    from manyscope.training.checkpoints import load_weights

    path = Path(query)
    stamp = middle(read_photograph(path), data.stamps.shape[-1], path)
    if len(stamp) != len(data.bands):
        raise DataError(f"the image has {len(stamp)} bands", place=path, allowed=f"{len(data.bands)} as the data")
    inner = np.zeros(stamp.shape[1:], bool)
    inner[_SKY_BORDER_PX:-_SKY_BORDER_PX, _SKY_BORDER_PX:-_SKY_BORDER_PX] = True
    border = stamp[:, ~inner]
    level = np.median(border, axis=1)
    noise = 1.4826 * np.median(np.abs(border - level[:, None]), axis=1)
    stamp = (stamp - level[:, None, None]) / np.where(noise > 0, noise, 1.0)[:, None, None]

    model = build_model(settings, data)
    load_weights(weights, model, "galaxies", settings.model_dump(mode="json"))
    with torch.inference_mode():
        images = data.transforms(torch.from_numpy(stamp.astype(np.float32))[None])
        latent: np.ndarray = model.eval()(images)[0].float().numpy()
    return latent
