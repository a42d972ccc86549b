"""The networks: shapes, invariance, repeatability, and a checkpoint that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from manyscope.errors import DataError, ManyscopeError, SettingsError
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.model import asymmetry, build_model, describe, new_model
from manyscope.scopes.galaxies.model.autoencoder import Autoencoder
from manyscope.scopes.galaxies.model.invariant import Invariant, nt_xent
from manyscope.scopes.galaxies.model.rings import Rings, Whitening
from manyscope.scopes.galaxies.model.views import Views, warp
from manyscope.scopes.galaxies.scope import Galaxies
from manyscope.scopes.galaxies.settings import GalaxiesModel, GalaxiesSettings
from manyscope.tables.predictions import shard_of
from manyscope.training.checkpoints import save_weights

SMALL = {"channels": 4, "latent": 16, "tied": 8}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def turn(angle: float, mirror: float = 1.0) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[[cos * mirror, -sin], [sin * mirror, cos]]])


def smooth(size: int = 48, seed: int = 0) -> Tensor:
    """An image without symmetry, of structures of several pixels, (1, 3, size, size)."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:size, :size] - size // 2
    image = np.zeros((3, size, size))
    for _ in range(6):
        x, y, sigma = *rng.uniform(-6, 6, 2), rng.uniform(2.5, 4)
        image += rng.uniform(0.2, 1, (3, 1, 1)) * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))
    return torch.from_numpy(image[None].astype(np.float32))


# --------------------------------------------------------------------------------------------------- autoencoder
def test_the_autoencoder_has_the_published_size() -> None:
    assert parameters(Autoencoder((3, 32, 32))) == 337_091


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 17, 30), (5, 8, 9)])
def test_the_autoencoder_takes_any_shape(shape: tuple[int, int, int]) -> None:
    model = Autoencoder(shape, channels=4, latent=6)
    images = torch.rand(2, *shape)
    assert model(images).shape == (2, 6)
    assert model.decode(model(images)).shape == images.shape


def test_the_autoencoders_loss_is_the_summed_error_of_an_image() -> None:
    model, images = Autoencoder((3, 16, 16), channels=4, latent=6), torch.rand(5, 3, 16, 16)
    error = (model.decode(model(images)) - images).square()
    losses = model.losses({"images": images})
    torch.testing.assert_close(losses["loss"], error.sum() / 5)
    torch.testing.assert_close(losses["mse"], error.mean())


# --------------------------------------------------------------------------------------------------------- rings
@pytest.mark.parametrize("angle", np.linspace(0.1, 2 * math.pi, 7))
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_rings_do_not_see_a_rotation(angle: float, mirror: float) -> None:
    image, rings = smooth(), Rings((3, 32, 32))
    still = torch.zeros(1, 2)
    straight = rings(warp(image, turn(0.0), still, (32, 32)))
    turned = rings(warp(image, turn(angle, mirror), still, (32, 32)))
    other = rings(warp(smooth(seed=1), turn(0.0), still, (32, 32)))
    assert (straight - turned).abs().max() < 0.015 * straight.abs().max()  # what bilinear resampling costs
    assert (straight - other).abs().max() > 0.3 * straight.abs().max()


def test_rings_measure_a_known_wave() -> None:
    yy, xx = torch.meshgrid(torch.arange(32.0) - 16, torch.arange(32.0) - 16, indexing="ij")
    image = (1 + 0.5 * torch.cos(2 * torch.atan2(yy, xx))).expand(1, 3, 32, 32)
    found = Rings((3, 32, 32))(image)[0]
    means, waves = found[:36].view(4, 9), found[36:].view(8, 4)
    outer = slice(4, None)  # the innermost rings are too small for the pixels
    torch.testing.assert_close(means[:, outer], torch.ones(4, 5), atol=0.01, rtol=0)
    # half of the amplitude is at +2 and half at -2; the weight doubles it
    torch.testing.assert_close(waves[outer, 1], torch.full((4,), 0.5), atol=0.03, rtol=0)
    assert waves[outer, [0]].abs().max() < 0.02
    assert waves[outer, [2]].abs().max() < 0.02


def test_whitening_gives_uncorrelated_numbers_of_unit_variance() -> None:
    torch.manual_seed(0)
    features = torch.randn(400, 10) @ torch.randn(10, 10) + 5
    whitening = Whitening(10, 6)
    whitening.fit(features)
    white = whitening(features)
    torch.testing.assert_close(white.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6), atol=1e-3, rtol=0)


def test_whitening_survives_fewer_samples_than_components() -> None:
    whitening = Whitening(10, 6)
    whitening.fit(torch.randn(3, 10))
    assert torch.isfinite(whitening(torch.randn(5, 10))).all()
    assert (whitening.projection[:, 3:] == 0).all()


# --------------------------------------------------------------------------------------------------------- views
def test_a_view_without_any_change_is_the_middle_of_the_stamp() -> None:
    stamps = torch.randn(3, 2, 48, 48)
    view = warp(stamps, torch.eye(2).expand(3, 2, 2), torch.zeros(3, 2), (32, 32))
    torch.testing.assert_close(view, stamps[..., 8:40, 8:40], atol=1e-4, rtol=0)


def test_a_quarter_turn_and_a_shift_move_pixels_where_they_should() -> None:
    stamps = torch.randn(1, 1, 49, 49)
    view = warp(stamps, turn(math.pi / 2), torch.zeros(1, 2), (49, 49))
    torch.testing.assert_close(view, torch.rot90(stamps, 1, (2, 3)), atol=1e-3, rtol=0)
    moved = warp(stamps, turn(0.0), torch.tensor([[3.0, -2.0]]), (49, 49))
    torch.testing.assert_close(moved[..., 0:47, 3:49], stamps[..., 2:49, 0:46], atol=1e-3, rtol=0)


def test_an_injected_neighbour_is_light_of_another_stamp_away_from_the_middle() -> None:
    torch.manual_seed(0)
    yy, xx = torch.meshgrid(torch.arange(48.0) - 24, torch.arange(48.0) - 24, indexing="ij")
    stamps = (100 * torch.exp(-(xx**2 + yy**2) / 4)).expand(16, 3, 48, 48)
    quiet = {"shift_px": 0.0, "noise_rms": 0.0, "sky_rms": 0.0}
    alone = Views(neighbour=0.0, **quiet)(stamps, (32, 32))
    torch.manual_seed(0)
    beside = Views(neighbour=1.0, **quiet)(stamps, (32, 32))
    torch.testing.assert_close(alone[..., 12:21, 12:21], beside[..., 12:21, 12:21])
    assert (beside.sum((1, 2, 3)) > alone.sum((1, 2, 3)) + 50).float().mean() > 0.7


def test_views_repeat_with_the_seed_and_differ_without() -> None:
    stamps = torch.randn(4, 3, 48, 48)
    views = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        views.append(Views()(stamps, (32, 32)))
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


# ----------------------------------------------------------------------------------------------------- invariant
def test_nt_xent_is_its_definition() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    z = torch.cat([first, second])
    z = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(10):
        others = [math.exp(float(z[i] @ z[j]) / 0.2) for j in range(10) if j != i]
        total -= math.log(math.exp(float(z[i] @ z[(i + 5) % 10]) / 0.2) / sum(others))
    assert float(nt_xent(first, second, 0.2)) == pytest.approx(total / 10, rel=1e-5)


def small(data: StampData, seed: int = 0) -> Invariant:
    torch.manual_seed(seed)
    model = new_model(GalaxiesModel(name="invariant", args=SMALL), data)
    assert isinstance(model, Invariant)
    return model


def test_the_invariant_model_has_the_expected_size() -> None:
    trunk = 3 * 16 * 9 + 16 * 32 * 9 + 32 * 32 * 9 + 32 * 64 * 9 + 64 * 64 * 9 + 2 * (16 + 32 + 32 + 64 + 64)
    around = 2 * 68 + 68 * 192 + 192 + 2 * 192 + 192 * 64 + 64
    latent = (12 * 16 + 64) * 64 + 64
    projector = 64 * 128 + 128 + 2 * 128 + 128 * 64 + 64
    assert parameters(Invariant((3, 32, 32))) == trunk + around + latent + projector


def test_a_few_steps_lower_the_loss(data: StampData) -> None:
    model = small(data)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule, values = data.train_schedule(64, 0), []
    for step in range(25):
        losses = model.losses(data.train_batch(schedule.batch(step)))
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        values.append(losses["loss"].item())
    assert np.mean(values[-5:]) < 0.75 * np.mean(values[:5])


def test_the_same_seed_gives_the_same_model_and_the_same_loss(data: StampData) -> None:
    batch = data.train_batch(range(20))
    found = []
    for _ in range(2):
        model = small(data, seed=4).eval()
        torch.manual_seed(9)
        found.append(model.losses(batch)["loss"])
    assert torch.equal(found[0], found[1])


def test_the_tied_numbers_are_learned_from_the_undisturbed_stamp(data: StampData) -> None:
    batch = data.batch(data.train_rows)
    model = small(data).eval()
    target = model.whitening(model.rings(batch["images"]))
    torch.testing.assert_close(target.mean(0), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(target.std(0), torch.ones(8), atol=1e-3, rtol=0)
    model.forward = lambda images: target.clamp(-4, 4).repeat(2, 2)  # type: ignore[method-assign]
    assert float(model.losses(batch)["tied"]) == pytest.approx(0, abs=1e-9)


def test_only_training_stamps_make_the_whitening(data: StampData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(Invariant, "adapt", lambda self, stamps, transforms: seen.append(stamps))
    new_model(GalaxiesModel(name="invariant", args=SMALL), data)
    np.testing.assert_array_equal(seen[0].numpy(), data.stamps[data.train_rows])


def test_of_many_or_large_stamps_some_make_the_whitening(data: StampData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(Invariant, "adapt", lambda self, stamps, transforms: seen.append(stamps))
    monkeypatch.setattr("manyscope.scopes.galaxies.model._ADAPT_NUMBERS", 7 * data.stamps[0].size + 1)
    new_model(GalaxiesModel(name="invariant", args=SMALL), data)
    monkeypatch.setattr("manyscope.scopes.galaxies.model._ADAPT_STAMPS", 3)
    new_model(GalaxiesModel(name="invariant", args=SMALL), data)
    assert [len(stamps) for stamps in seen] == [7, 3]
    rows = data.train_rows[[0, (len(data.train_rows) - 1) // 2, -1]]
    np.testing.assert_array_equal(seen[1].numpy(), data.stamps[rows])


def test_pieces_make_the_whitening_of_the_whole(data: StampData, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = small(data), Invariant(data.shape, **SMALL)
    monkeypatch.setattr("manyscope.scopes.galaxies.model.invariant._ADAPT_BATCH", 5)
    with torch.no_grad():
        pieces.adapt(torch.from_numpy(np.ascontiguousarray(data.stamps[data.train_rows])), data.transforms)
    assert torch.equal(whole.whitening.mean, pieces.whitening.mean)
    assert torch.equal(whole.whitening.projection, pieces.whitening.projection)


def test_adapting_is_for_training_and_draws_no_number(
    data: StampData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    built: Any = build_model(GalaxiesModel(name="invariant", args=SMALL), data)
    after = torch.rand(1)
    adapted, again = small(data), torch.rand(1)
    assert torch.equal(after, again)
    different = {k for k, v in adapted.state_dict().items() if not torch.equal(v, built.state_dict()[k])}
    assert different == {"whitening.mean", "whitening.projection"}
    assert torch.isfinite(built.losses(data.train_batch([0, 1]))["loss"])  # it has the transforms

    # Where weights are loaded, nothing is learnt that they bring along.
    def adapt(self: Invariant, stamps: Tensor, transforms: Any) -> None:
        raise AssertionError("adapted")

    monkeypatch.setattr(Invariant, "adapt", adapt)
    settings = GalaxiesSettings.model_validate(
        {"scope": "galaxies", "model": {"name": "invariant", "args": SMALL}, "infer": {"batch_size": 4}}
    )
    weights = tmp_path / "model.ckpt"
    save_weights(weights, adapted, "galaxies", settings.model.model_dump(mode="json"))
    ids = data.samples["sample_id"][:4].to_list()
    (objects,) = Galaxies().predict(settings, data.folder, weights, ids, tmp_path / "files")
    with torch.inference_mode():
        np.testing.assert_array_equal(objects.embedding, adapted.eval()(data.batch(np.arange(4))["images"]).numpy())
    assert Galaxies().exportable(settings, data, Galaxies().model(settings, data)).inputs == ("images",)
    with pytest.raises(AssertionError, match="adapted"):
        Galaxies().new_model(settings, data)


def test_weights_alone_carry_the_whitening(data: StampData) -> None:
    trained = small(data).eval()
    fresh = Invariant(data.shape, **SMALL).eval()
    fresh.load_state_dict(trained.state_dict())
    images = data.batch(np.arange(9))["images"]
    assert torch.equal(trained(images), fresh(images))
    assert torch.equal(trained.whitening(trained.rings(images)), fresh.whitening(fresh.rings(images)))


def test_one_sample_cannot_be_contrasted(data: StampData) -> None:
    model = small(data)
    with pytest.raises(DataError, match=r"raise train\.batch_size"):
        model.losses(data.train_batch([0]))
    assert torch.isfinite(model.eval().losses(data.train_batch([0]))["loss"])


@pytest.mark.parametrize("shape", [(1, 20, 20), (5, 33, 24)])
def test_the_invariant_model_takes_any_shape(shape: tuple[int, int, int]) -> None:
    assert Invariant(shape, **SMALL).eval()(torch.rand(2, *shape)).shape == (2, 16)


# ------------------------------------------------------------------------------------------------------- finding
@pytest.mark.parametrize("args", [{"latnet": 3}, {"tied": 100}, {"latent": 8, "tied": 9}, {"views": {"spin": 1}}])
def test_wrong_arguments_are_named(data: StampData, args: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"model\.args: model 'invariant' refuses them"):
        build_model(GalaxiesModel(name="invariant", args=args), data)


def test_an_unknown_model_names_the_known_ones(data: StampData) -> None:
    with pytest.raises(ManyscopeError, match=r"'autoencode' is unknown.*autoencoder, .*invariant"):
        build_model(GalaxiesModel(name="autoencode"), data)


class Own(nn.Module):
    """A model of somebody else, found by its import path."""

    def __init__(self, shape: tuple[int, int, int], size: int = 5) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(shape), size)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": self(batch["images"]).square().mean()}


class Flat(Own):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, 0]


@pytest.fixture
def own_models(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], GalaxiesModel]:
    """This file as an importable module."""
    import sys

    monkeypatch.setitem(sys.modules, "somebody", sys.modules[Own.__module__])
    return lambda name: GalaxiesModel(name=f"somebody:{name}")


def test_any_module_can_be_brought_along(data: StampData, own_models: Callable[[str], GalaxiesModel]) -> None:
    with torch.inference_mode():
        found = describe(build_model(own_models("Own"), data).eval(), data.batch(np.arange(6)))
    assert found.embedding.shape == (6, 5)
    assert set(found.columns) == {"outlier_asymmetry"}


def test_models_that_break_the_contract_are_refused(
    data: StampData, own_models: Callable[[str], GalaxiesModel]
) -> None:
    with pytest.raises(DataError, match=r"shape \(6,\) for 6 images; allowed: \(images, dimensions\)"):
        describe(build_model(own_models("Flat"), data), data.batch(np.arange(6)))


# ---------------------------------------------------------------------------------------------------- predicting
@pytest.mark.parametrize("name", ["invariant", "autoencoder"])
@hypothesis_settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shards=st.integers(1, 7))
def test_predictions_are_bit_equal_for_any_number_of_shards(data: StampData, name: str, shards: int) -> None:
    torch.manual_seed(0)
    args = SMALL if name == "invariant" else {"channels": 4, "latent": 16}
    model = build_model(GalaxiesModel(name=name, args=args), data).eval()
    ids = data.samples["sample_id"].to_list()

    def predicted(some: list[str]) -> dict[str, tuple[bytes, ...]]:
        rows = {}
        with torch.inference_mode():
            for batch in data.predict_batches(some, 64):
                objects = describe(model, batch)
                columns = [objects.embedding, *(objects.columns[c] for c in sorted(objects.columns))]
                rows |= {s: tuple(c[i].tobytes() for c in columns) for i, s in enumerate(objects.samples)}
        return rows

    whole, number = predicted(ids), shard_of(ids, shards)
    cut: dict[str, tuple[bytes, ...]] = {}
    for shard in range(shards):
        cut |= predicted([s for s, n in zip(ids, number, strict=True) if n == shard])
    assert cut == whole


def test_columns_of_a_model_that_reconstructs(data: StampData) -> None:
    model = Autoencoder(data.shape, channels=4, latent=6).eval()
    batch = data.batch(np.arange(8))
    batch["sample_id"] = batch["sample_id"][:5]
    with torch.inference_mode():
        found = describe(model, batch)
        error = (model.decode(model(batch["images"])) - batch["images"]).square().flatten(1).numpy()[:5]
    assert found.object_id == batch["sample_id"]
    assert len(found.embedding) == 5
    np.testing.assert_allclose(found.columns["reconstruction_error"], error.mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.columns["outlier_reconstruction"], np.sort(error, 1)[:, -20:].mean(1), rtol=1e-5)


@pytest.mark.parametrize("size", [16, 17])
def test_asymmetry_is_zero_for_what_half_a_turn_leaves_alone(size: int) -> None:
    yy, xx = torch.meshgrid(torch.arange(size) - size // 2, torch.arange(size) - size // 2, indexing="ij")
    bar = torch.exp(-((xx + 0.5 * yy) ** 2) / 4.0).expand(1, 3, size, size).clone()
    assert float(asymmetry(bar)) == pytest.approx(0, abs=1e-6)
    hit = bar.clone()
    hit[0, 1, size // 2 + 3, size // 2 - 2 : size // 2 + 2] += 1.0
    assert float(asymmetry(hit)) > 0.2
