"""The networks, found by name, and what they say of a batch.

A model is a torch module `Model(shape, **args)` for images of that shape, (bands, height, width); with a parameter
`classes` it is also given their names:

- `forward(images)` maps (n, *shape) float32 to latent vectors (n, dimensions), or any (n, ...), which are flattened;
- `losses(batch)` maps a batch of `StampData` to a dict of scalars with "loss"; a module without it gets a criterion
  from the settings, see `plain`;
- `decode(latent)`, optional, maps latent vectors back to images;
- `reconstruct(images)`, optional, gives latent vectors and images where a latent vector is not enough to draw from;
- `classify(images)`, optional, gives latent vectors and logits (n, classes); its attribute `classes` has their names;
- `scale`, optional, is the unit of each pixel in which errors of the reconstruction are compared to each other;
- `transforms`, optional, is None after the constructor and then the function that makes images of stamps;
- `adapt(stamps, transforms)`, optional, is called once, before a training, with training stamps and with that function;
  what it learns must lie in buffers, so that a checkpoint holds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from manyscope.errors import DataError, SettingsError
from manyscope.log import logger
from manyscope.registry import Registry
from manyscope.tables.predictions import Objects

if TYPE_CHECKING:
    from torch import Tensor, nn

    from manyscope.scopes.galaxies.data.stamps import StampData
    from manyscope.scopes.galaxies.settings import GalaxiesModel

MODELS = Registry(
    "model",
    {
        "autoencoder": "manyscope.scopes.galaxies.model.autoencoder:Autoencoder",
        "autoencoder_v2": "manyscope.scopes.galaxies.model.autoencoder:AutoencoderV2",
        "cnn": "manyscope.scopes.galaxies.model.supervised:Cnn",
        "dcae": "manyscope.scopes.galaxies.model.dcae:Dcae",
        "dcae_skip": "manyscope.scopes.galaxies.model.dcae:DcaeSkip",
        "features": "manyscope.scopes.galaxies.model.features:Features",
        "hsc_autoencoder": "manyscope.scopes.galaxies.model.hsc:HscAutoencoder",
        "hsc_dcae": "manyscope.scopes.galaxies.model.hsc:HscDcae",
        "identity": "manyscope.scopes.galaxies.model.features:Identity",
        "invariant": "manyscope.scopes.galaxies.model.invariant:Invariant",
        "simclr": "manyscope.scopes.galaxies.model.contrastive:SimClr",
        "vicreg": "manyscope.scopes.galaxies.model.contrastive:VicReg",
    },
    group="manyscope.galaxy_models",
)
# What a plain module learns by: functions of its output and the target, to a mean.
CRITERIA = Registry(
    "criterion",
    {
        "mse": "torch.nn:MSELoss",
        "l1": "torch.nn:L1Loss",
        "huber": "torch.nn:HuberLoss",
        "cross_entropy": "torch.nn:CrossEntropyLoss",
    },
)
_ADAPT_STAMPS = 8192
_ADAPT_NUMBERS = 2**28  # in all of them: 1 GiB
_PEAK_PIXELS = 20
_ASYMMETRIC_SHARE = 0.02


def build_model(settings: GalaxiesModel, data: StampData) -> nn.Module:
    """A model with weights from torch's global generator, to be trained or to be given the weights of another.

    Raises:
        ManyscopeError: the model is unknown.
        SettingsError: it does not take its arguments, has no losses and its output is neither images nor classes, or
            tells classes without their names.
    """
    import torch

    from manyscope.scopes.galaxies.model.plain import given_to, with_losses

    given, named = given_to(MODELS.find(settings.name), settings.args, data.shape, data.classes)
    model: Any = MODELS.build(settings.name, *given, place="model.args", **named, **settings.args)
    if not isinstance(model, torch.nn.Module):
        raise SettingsError(f"model.name: {settings.name!r} gives {model!r}; allowed: a torch.nn.Module")
    if not callable(getattr(model, "losses", None)):
        model = with_losses(model, settings, data.shape, data.classes)
    elif settings.criterion or settings.criterion_args or settings.target:
        logger.warning(
            "model %r has losses of its own: model.criterion, its arguments and target do nothing", settings.name
        )
    if hasattr(model, "classify"):
        _check_classes(settings.name, getattr(model, "classes", None))
    if getattr(model, "transforms", data.transforms) is None:
        model.transforms = data.transforms
    return model


def new_model(settings: GalaxiesModel, data: StampData) -> nn.Module:
    """What `build_model` gives, adapted to the training stamps. Weights that are loaded bring that along."""
    import torch

    model: Any = build_model(settings, data)
    if hasattr(model, "adapt"):
        rows = data.train_rows
        most = max(1, min(_ADAPT_STAMPS, _ADAPT_NUMBERS // math.prod(data.stamps.shape[1:])))
        if len(rows) > most:  # evenly over the training set: enough for means and covariances
            rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
        with torch.no_grad():
            model.adapt(torch.from_numpy(np.ascontiguousarray(data.stamps[rows])), data.transforms)
    return model


def _check_classes(name: str, classes: Any) -> None:
    if not (isinstance(classes, (list, tuple)) and classes and all(isinstance(one, str) for one in classes)):
        raise SettingsError(
            f"model.name: {name!r} has classify(images), and its attribute 'classes' is {classes!r}; allowed: the "
            "names of its logits; take a parameter 'classes' and keep it (docs/bring-your-own.md)"
        )


def describe(model: Any, batch: dict[str, Any]) -> Objects:
    """One object for each sample of a batch, which may be padded beyond its ids: what `told` makes of `outputs`."""
    return told(batch, outputs(model, batch["images"]), getattr(model, "classes", ()))


def outputs(model: Any, images: Tensor) -> dict[str, Tensor]:
    """What the network itself computes of images: "latent", (n, dimensions), and where it can

    - "reconstruction", (n, *shape), and "residual", its error in units of the model's `scale`, if it has one;
    - "logits", (n, classes).

    Raises:
        DataError: the model returns no vector for each image, or no reconstruction of the images' shape.
    """
    found: dict[str, Tensor] = {}
    if hasattr(model, "classify"):
        latent, found["logits"] = model.classify(images)
    elif hasattr(model, "reconstruct"):
        latent, found["reconstruction"] = model.reconstruct(images)
    else:
        latent = model(images)
        if hasattr(model, "decode"):
            found["reconstruction"] = model.decode(latent)
    shape = f"shape {tuple(latent.shape)}" if hasattr(latent, "shape") else f"a {type(latent).__name__}"
    if not hasattr(latent, "shape") or latent.ndim < 2 or latent.shape[0] != images.shape[0]:
        raise DataError(
            f"the model returns {shape} for {images.shape[0]} images",
            place="model.name",
            allowed="(images, dimensions)",
        )
    if "reconstruction" in found:
        drawn = found["reconstruction"]
        if drawn.shape[0] != images.shape[0] or drawn.shape[1:].numel() != images.shape[1:].numel():
            raise DataError(
                f"the model draws shape {tuple(drawn.shape)} for images {tuple(images.shape)}", place="model.name"
            )
        found["reconstruction"] = drawn.reshape(images.shape)
        if hasattr(model, "scale"):
            found["residual"] = (found["reconstruction"] - images) / model.scale
    return {"latent": latent.flatten(1), **found}


def told(batch: dict[str, Any], found: dict[str, Tensor], classes: Sequence[str] = ()) -> Objects:
    """The objects of a batch, from what `outputs` computed.

    Column of every image: `outlier_asymmetry`. Columns of one that decodes: `reconstruction_error`, the mean
    squared error in units of the transformed image, and `outlier_reconstruction`, the mean of the twenty largest
    squared errors, since an anomaly is small. Columns of one that classifies: `predicted_class` and
    `predicted_probability`.

    Args:
        classes: names of the logits.

    Raises:
        DataError: there are more or fewer logits than names.
    """
    images, ids = batch["images"], batch["sample_id"]
    columns: dict[str, Any] = {}
    if images.shape[-2:].numel() > 1:  # features have no sides
        columns["outlier_asymmetry"] = asymmetry(images)[: len(ids)].cpu().numpy()
    if "reconstruction" in found:
        error = (found["reconstruction"] - images)[: len(ids)]
        squared = found.get("residual", error)[: len(ids)].square().flatten(1)
        columns |= {
            "reconstruction_error": error.square().flatten(1).mean(1).cpu().numpy(),
            "outlier_reconstruction": squared.topk(min(_PEAK_PIXELS, squared.shape[1])).values.mean(1).cpu().numpy(),
        }
    if "logits" in found:
        if tuple(found["logits"].shape) != (len(images), len(classes)):
            raise DataError(
                f"the model's classify gives logits of shape {tuple(found['logits'].shape)} for {len(images)} images",
                place="model.name",
                allowed=f"({len(images)}, {len(classes)}): one for each of its classes",
            )
        probability, best = found["logits"][: len(ids)].float().softmax(1).max(1)
        columns |= {
            "predicted_class": [classes[i] for i in best.tolist()],
            "predicted_probability": probability.cpu().numpy(),
        }
    return Objects.one_each(ids, found["latent"][: len(ids)].float().cpu().numpy(), columns)


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
