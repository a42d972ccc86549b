"""The networks, found by name, and what they say of a batch.

A model is a torch module `Model(**args)`:

- `forward(batch)` maps a batch of `EventData` to a vector for each event, (n, 3) float32, which points to where the
  particle came from and is the longer the surer the model is, and to latent vectors (n, dimensions);
- `losses(batch)` maps a batch to a dict of scalars with "loss";
- `input_form`, optional, is a class method that takes the same arguments as the model and returns the `Form` of the
  batches that it wants; without it batches are ragged;
- `calibration`, optional, is a `Calibration` through which the length of the vector becomes kappa.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manyscope.errors import DataError, SettingsError
from manyscope.log import logger
from manyscope.registry import Registry
from manyscope.scopes.neutrinos.data.forms import RAGGED, Form
from manyscope.tables.predictions import Objects

if TYPE_CHECKING:
    from torch import nn

    from manyscope.scopes.neutrinos.data.loading import EventData
    from manyscope.scopes.neutrinos.settings import NeutrinosSettings
    from manyscope.settings.sections import ModelSettings
    from manyscope.training.run import TrainingRun

MODELS = Registry(
    "model",
    {"transformer": "manyscope.scopes.neutrinos.model.transformer:Transformer"},
    group="manyscope.neutrino_models",
)


def input_form(settings: ModelSettings) -> Form:
    """The form of the batches that the model wants.

    Raises:
        ManyscopeError: the model is unknown.
        SettingsError: it does not take its arguments.
    """
    wanted = getattr(MODELS.find(settings.name), "input_form", None)
    try:
        return RAGGED if wanted is None else wanted(**settings.args)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"model.args: model {settings.name!r} refuses them: {error}") from error


def build_model(settings: ModelSettings) -> nn.Module:
    """A new model with weights from torch's global generator.

    Raises:
        ManyscopeError: the model is unknown.
        SettingsError: it does not take its arguments.
    """
    model: nn.Module = MODELS.build(settings.name, place="model.args", **settings.args)
    return model


def calibrate(settings: NeutrinosSettings, data: EventData, run: TrainingRun) -> None:
    """Fit the calibration of the best weights, if they have one, on the validation events, and keep it with them."""
    import numpy as np
    import torch

    from manyscope.nn.directional import angular_distance
    from manyscope.scopes.neutrinos.model.calibration import FEWEST
    from manyscope.training.checkpoints import load_weights
    from manyscope.training.launch import is_first_process
    from manyscope.training.predict import on_device

    model = build_model(settings.model)
    calibration = getattr(model, "calibration", None)
    if calibration is None or not is_first_process():
        return
    rows = data.rows("validation")
    if len(rows) < FEWEST:
        logger.warning("kappa stays as it is: %d validation events are too few to calibrate it", len(rows))
        return
    load_weights(run.best, model, run.scope, run.model)
    batches = data.predict_rows(rows, settings.train.batch_size)

    def judge(batch: dict[str, Any]) -> np.ndarray:
        real = len(batch["sample_id"])
        vector = model(batch)[0][:real].double()
        kappa = vector.norm(dim=1)
        unit = vector / kappa[:, None].clamp(min=1e-12)
        angle = angular_distance(unit, batch["direction"][:real].double())
        found: np.ndarray = torch.stack([kappa, angle], dim=1).cpu().numpy()
        return found

    found = np.concatenate(list(on_device(model, batches, len(batches), judge)))
    calibration.fit(found[:, 0], found[:, 1])
    run.save_best(model)


def describe(model: Any, batch: dict[str, Any]) -> Objects:
    """One object for each event of a batch, which may be padded beyond its ids.

    Columns: azimuth in [0, 2 pi) and zenith in [0, pi], to where the particle came from; kappa, the concentration of
    a von Mises-Fisher distribution about it, and kappa_raw, before calibration; n_pulses and n_modules of the event;
    error_deg, the angle to the true direction, NaN where that is unknown.

    Raises:
        DataError: the model returns other shapes.
    """
    from manyscope.nn.directional import angles, angular_distance

    ids = batch["sample_id"]
    vector, latent = model(batch)
    n = len(batch["module_counts"])
    if vector.shape != (n, 3) or latent.ndim != 2 or len(latent) != n:
        raise DataError(
            f"the model returns shapes {tuple(vector.shape)} and {tuple(latent.shape)} for {n} events",
            allowed="(events, 3) and (events, dimensions)",
        )
    vector = vector[: len(ids)].float()
    raw = vector.norm(dim=1)
    calibration = getattr(model, "calibration", None)
    azimuth, zenith = angles(vector.double())
    unit = vector.double() / raw.double()[:, None].clamp(min=1e-12)
    error = angular_distance(unit, batch["direction"][: len(ids)].double())
    columns = {
        "azimuth": azimuth,
        "zenith": zenith,
        "kappa": raw if calibration is None else calibration(raw),
        "kappa_raw": raw,
        "n_pulses": batch["counts"][: len(ids), 0].int(),
        "n_modules": batch["counts"][: len(ids), 1].int(),
        "error_deg": error.rad2deg().float(),
    }
    arrays = {name: value.cpu().numpy() for name, value in columns.items()}
    return Objects.one_each(ids, latent[: len(ids)].float().cpu().numpy(), arrays)
