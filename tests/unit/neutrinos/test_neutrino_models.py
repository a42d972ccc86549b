"""The network: its forms agree, padding and neighbours change nothing, and what it promises of kappa holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import DataError, ManyscopeError, SettingsError
from manyscope.nn.directional import angular_distance, vmf_cone
from manyscope.scopes.neutrinos.data import forms
from manyscope.scopes.neutrinos.data.loading import EventData
from manyscope.scopes.neutrinos.model import build_model, describe, input_form
from manyscope.scopes.neutrinos.model.calibration import Calibration
from manyscope.scopes.neutrinos.model.transformer import Transformer, turned
from manyscope.scopes.neutrinos.settings import InputSettings, NeutrinosModel

SMALL: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "pulse_width": 16, "pulse_heads": 2}
VARIANTS: list[dict[str, Any]] = [
    {"t1": "pool"}, {"t1": "attention"}, {"t1": "flat", "flat_pulses": 4}, {"t1": "none"}, {"bias": "interval"},
    {"line_fit": True}, {"ice": False},
]  # fmt: skip


def small(**args: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(**{**SMALL, **args})
    if model.interval is not None:
        torch.nn.init.normal_(model.interval)  # zero at first, and then it would do nothing
    return model.eval()


def opened(prepared: Path, **args: Any) -> EventData:
    return EventData(prepared, InputSettings(), Transformer.input_form(**{**SMALL, **args}))


@pytest.mark.parametrize("args", VARIANTS, ids=str)
def test_an_event_is_the_same_alone_and_among_others(prepared_events: Path, args: dict[str, Any]) -> None:
    data, model = opened(prepared_events, **args), small(**args)
    rows = np.arange(20, 60)
    with torch.no_grad():
        together, latent = model(data.batch(rows, length=64))
        for i in (0, 7, 39):
            alone, own = model(data.batch(rows[[i]]))
            np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
            np.testing.assert_allclose(own[0], latent[i], atol=1e-5)


@pytest.mark.parametrize("args", VARIANTS, ids=str)
def test_every_parameter_is_trained_and_losses_fall(prepared_events: Path, args: dict[str, Any]) -> None:
    data, model = opened(prepared_events, **args), small(**args).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    batch = data.train_batch(np.arange(32))
    model.rotate = False
    values = []
    for step in range(25):
        losses = model.losses(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        if step == 0:
            untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
        optimizer.step()
        values.append(losses["loss"].item())
    # the interval's weights get a gradient only once there is attention to change
    assert untouched == []
    assert np.isfinite(values).all()
    assert values[-1] < values[0] - 0.3


def test_the_forms_of_attention_agree(prepared_events: Path) -> None:
    """Length buckets, and the dense mask over packed rows; FlexAttention is compared in the tests of `nn.ragged`."""
    model = small(t1="attention")
    rows = np.arange(50)
    ragged = EventData(prepared_events, InputSettings(), forms.Form("ragged", beside=True)).batch(rows)
    packed = EventData(prepared_events, InputSettings(), forms.Form("packed", 128, beside=True)).batch(rows)
    assert ragged["pulse_counts"].max() > 4
    with torch.no_grad():
        buckets, dense = model(ragged)[0], model(packed)[0]
    np.testing.assert_allclose(buckets, dense, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(
    "args", [{"t1": "attention"}, {"t1": "attention", "bias": "interval"}, {"t1": "flat"}], ids=str
)
def test_a_gpu_trains_and_predicts_as_the_cpu_does(prepared_events: Path, args: dict[str, Any]) -> None:
    from manyscope.training.predict import to_device

    torch.manual_seed(0)
    model = Transformer(**args).eval()
    ragged = EventData(
        prepared_events,
        InputSettings(),
        forms.Form("ragged", beside=True) if args["t1"] == "attention" else forms.Form("flat", 16, beside=True),
    )
    rows = np.arange(50)
    with torch.no_grad():
        expected = model(ragged.batch(rows))[0]
    on_gpu = EventData(prepared_events, InputSettings(), Transformer.input_form(**args))
    model.cuda()
    batch = to_device(on_gpu.batch(rows), "cuda")
    with torch.no_grad():
        np.testing.assert_allclose(model(batch)[0].cpu(), expected, atol=1e-3)
    model.train()
    with torch.autocast("cuda", torch.bfloat16):
        loss = model.losses(batch)["loss"]
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_too_many_pulses_for_a_packed_row_are_refused_at_once(prepared_events: Path) -> None:
    with pytest.raises(SettingsError, match=r"model\.input\.max_pulses: 600"):
        EventData(prepared_events, InputSettings(max_pulses=600), forms.Form("packed", 512))


def test_more_than_one_shape_of_batch_is_asked_for() -> None:
    assert Transformer.input_form(t1="flat", flat_pulses=7) == forms.Form("flat", 7, beside=True)
    assert Transformer.input_form(t1="pool") == forms.Form("ragged", beside=True)
    assert Transformer.input_form(t1="attention").kind == ("packed" if torch.cuda.is_available() else "ragged")


@given(seed=st.integers(0, 100))
def test_turning_an_event_keeps_its_shape(batch: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    other = turned(batch)
    event = torch.repeat_interleave(batch["module_counts"])
    for b in (batch, other):
        b["relative"] = b["sensors"][:, :3] - b["origin"][event, :3]
    np.testing.assert_allclose(other["relative"].norm(dim=1), batch["relative"].norm(dim=1), rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(other["relative"][:, 2], batch["relative"][:, 2], atol=1e-3)
    along, turned_along = (
        (b["relative"] * b["direction"][event]).sum(1) for b in (batch, other)
    )  # the truth turns with the modules
    np.testing.assert_allclose(turned_along, along, atol=0.02)
    velocity, turned_velocity = ((b["line_fit"] * b["direction"]).sum(1) for b in (batch, other))
    np.testing.assert_allclose(turned_velocity, velocity, atol=1e-5)
    np.testing.assert_array_equal(other["direction"][:, 2], batch["direction"][:, 2])
    assert (other["direction"] - batch["direction"]).norm(dim=1).max() > 0.5


@pytest.fixture(scope="module")
def batch(prepared_events: Path) -> dict[str, Any]:
    return EventData(prepared_events, InputSettings(), Transformer.input_form()).train_batch(np.arange(30))


def test_the_loss_changes_late_and_validation_always_has_the_late_one(batch: dict[str, Any]) -> None:
    model = small()
    assert set(model.losses(batch)) == {"loss", "angular", "vmf"}
    model.train()
    assert set(model.losses(batch)) == {"loss", "vmf"}
    model.progress = 0.7
    assert set(model.losses(batch)) == {"loss", "angular", "vmf"}


def test_augmentation_is_for_training_alone(batch: dict[str, Any]) -> None:
    model = small()
    assert model.losses(batch)["loss"] == model.losses(batch)["loss"]
    model.train()
    assert model.losses(batch)["loss"] != model.losses(batch)["loss"]


def test_half_precision_gives_finite_losses(batch: dict[str, Any]) -> None:
    model = small(bias="interval").train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(batch)
    losses["loss"].backward()
    assert losses["loss"].dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "args", [{"t1": "sum"}, {"width": 30, "heads": 4}, {"bias": "none of these"}, {"layerz": 2}], ids=str
)
def test_wrong_arguments_are_named(args: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"model\.args"):
        build_model(NeutrinosModel(args=args))


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ManyscopeError, match="did you mean 'transformer'"):
        input_form(NeutrinosModel(name="transfomer"))


def test_predictions_are_angles_of_the_vector(batch: dict[str, Any]) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            n = len(batch["module_counts"])
            vectors = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, -0.5], [0.0, 0.0, 0.0]])
            return vectors.repeat(n, 1)[:n], torch.ones(n, 4)

    truth = batch["direction"].clone()
    truth[:3] = torch.tensor([[0.0, -1.0, 0.0], [0.0, np.sqrt(0.5), -np.sqrt(0.5)], [np.nan] * 3])
    found = describe(Fixed(), {**batch, "direction": truth, "sample_id": batch["sample_id"][:3]})
    np.testing.assert_allclose(found.columns["azimuth"], [np.pi / 2, 0, 0], atol=1e-7)
    np.testing.assert_allclose(found.columns["zenith"], [np.pi / 2, np.pi, 0], atol=1e-7)
    np.testing.assert_allclose(found.columns["kappa"], [3, 0.5, 0], atol=1e-7)
    np.testing.assert_allclose(found.columns["error_deg"], [180, 45, np.nan], rtol=1e-5)
    assert found.columns["n_pulses"].tolist() == batch["counts"][:3, 0].tolist()
    assert len(found.embedding) == 3


def test_a_model_with_another_shape_is_refused(batch: dict[str, Any]) -> None:
    class Wrong(torch.nn.Module):
        def forward(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.ones(2, 3), torch.ones(2, 4)

    with pytest.raises(DataError, match=r"\(2, 3\)"):
        describe(Wrong(), batch)


# ------------------------------------------------------------------------------------------------- calibration
def drawn(kappa: np.ndarray, seed: int) -> np.ndarray:
    """Angles from the mean of von Mises-Fisher distributions."""
    share = np.random.default_rng(seed).uniform(0, 1, len(kappa))
    return vmf_cone(kappa, share)


@pytest.mark.parametrize("factor", [0.05, 1.0, 30.0])
def test_calibration_undoes_a_wrong_scale(factor: float) -> None:
    true = 10 ** np.random.default_rng(0).uniform(-0.5, 3, 20_000)
    calibration = Calibration()
    calibration.fit(true * factor, drawn(true, 1))
    fresh = 10 ** np.random.default_rng(2).uniform(-0.3, 2.9, 20_000)
    kappa = calibration(torch.from_numpy(fresh * factor)).numpy()
    inside = drawn(fresh, 3) < vmf_cone(kappa, 0.68)
    assert inside.mean() == pytest.approx(0.68, abs=0.01)
    for part in np.array_split(np.argsort(fresh), 5):
        assert inside[part].mean() == pytest.approx(0.68, abs=0.03)


def test_a_new_calibration_changes_nothing() -> None:
    kappa = torch.tensor([0.0, 1e-8, 1e-3, 1.0, 50.0, 1e5, 1e8])
    torch.testing.assert_close(Calibration()(kappa), kappa, rtol=1e-4, atol=1e-12)


def test_calibrated_kappa_rises_with_the_raw_one() -> None:
    rng = np.random.default_rng(0)
    raw = 10 ** rng.uniform(-2, 3, 3000)
    calibration = Calibration()
    calibration.fit(raw, rng.uniform(0, np.pi, 3000) / (1 + raw))
    kappa = calibration(torch.logspace(-4, 5, 500))
    assert torch.isfinite(kappa).all()
    assert (kappa.diff() >= 0).all()
    assert kappa[0] >= 0


def test_too_few_events_cannot_calibrate() -> None:
    with pytest.raises(DataError, match="5 validation events cannot calibrate"):
        Calibration().fit(np.ones(5), np.ones(5))


def test_the_error_of_a_trained_network_is_below_chance(prepared_events: Path) -> None:
    data, model = opened(prepared_events), small().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(80):
        model.progress = step / 80
        loss = model.losses(data.train_batch(data.train_schedule(48, 0).batch(step)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    errors = []
    with torch.no_grad():
        for b in map(data.validation_batch, data.validation_schedule(64)):
            vector = torch.nn.functional.normalize(model(b)[0], dim=1)
            errors.append(angular_distance(vector, b["direction"]))
    assert torch.cat(errors).mean() < 1.2  # pi / 2 by chance
