"""Every network beside the default one: sizes, shapes, what its latent vector must carry, and what it learns."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forked import SAMPLES, on_processes
from manyscope.errors import SettingsError
from manyscope.nn.across import Share, sharing, synchronised
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.model import MODELS, build_model, describe, new_model, outputs
from manyscope.scopes.galaxies.model.autoencoder import Autoencoder, AutoencoderV2
from manyscope.scopes.galaxies.model.contrastive import VIEWS, SimClr, VicReg, vicreg_terms
from manyscope.scopes.galaxies.model.dcae import Dcae, DcaeSkip
from manyscope.scopes.galaxies.model.features import Features, Identity
from manyscope.scopes.galaxies.model.hsc import HscAutoencoder, HscDcae
from manyscope.scopes.galaxies.model.layers import label_losses
from manyscope.scopes.galaxies.model.resnet import ResNet18
from manyscope.scopes.galaxies.model.supervised import Cnn
from manyscope.scopes.galaxies.model.views import Views, blurred
from manyscope.scopes.galaxies.scope import Galaxies
from manyscope.scopes.galaxies.settings import GalaxiesModel, GalaxiesSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.training import checkpoints
from manyscope.training.run import TrainingRun

cloudpickle.register_pickle_by_value(sys.modules[__name__])

REPOSITORY = Path(__file__).resolve().parents[3]
SHAPES = [(1, 32, 32), (3, 32, 32), (5, 40, 36), (2, 33, 47)]
CLASSES = ["disk", "elliptical", "spiral"]
QUIET = {"shift_px": 0.0, "noise_rms": 0.0, "sky_rms": 0.0, "neighbour": 0.0}
SMALL: dict[str, dict[str, Any]] = {
    "autoencoder": {"channels": 4, "latent": 6},
    "autoencoder_v2": {"channels": 4, "latent": 6},
    "cnn": {},
    "dcae": {"channels": 4, "latent": 6},
    "dcae_skip": {"channels": 4, "latent": 6},
    "features": {"latent": 6, "hidden": [16]},
    "hsc_autoencoder": {"channels": 4},
    "hsc_dcae": {"channels": 4},
    "identity": {},
    "invariant": {"channels": 4, "latent": 16, "tied": 8},
    "simclr": {"width": 4, "head": 8},
    "vicreg": {"width": 4, "expander": 8},
}
LEARNING = sorted(set(SMALL) - {"identity"})


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def made(name: str, shape: tuple[int, int, int], **args: Any) -> Any:
    """A small model of random weights, adapted to noise."""
    torch.manual_seed(0)
    model = MODELS.find(name)(shape, **({"classes": CLASSES} if name == "cnn" else {}), **(args or SMALL[name]))
    if hasattr(model, "adapt"):
        model.adapt(torch.randn(32, *shape), lambda stamps: stamps)
    if hasattr(model, "transforms"):
        model.transforms = lambda stamps: stamps
    return model


def batch_of(shape: tuple[int, int, int], n: int = 6) -> dict[str, Any]:
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(n) % len(CLASSES)
    return {"images": images, "stamps": images, "labels": labels, "sample_id": [f"g{i}" for i in range(n)]}


def test_every_model_is_tested_here() -> None:
    assert set(SMALL) == set(MODELS.names())


# ------------------------------------------------------------------------------------------------- all of them
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(SMALL))
def test_it_takes_any_shape_and_repeats_itself(name: str, shape: tuple[int, int, int]) -> None:
    model, batch = made(name, shape).eval(), batch_of(shape)
    with torch.inference_mode():
        found, again = describe(model, batch), describe(model, batch)
        if name == "autoencoder_v2":  # once is enough: the same shapes with weights that are not small
            assert made(name, shape, channels=32)(batch["images"]).shape == (6, 64)
    assert found.embedding.ndim == 2
    assert found.embedding.dtype == np.float32
    assert np.isfinite(found.embedding).all()
    assert len(found.embedding) == 6
    np.testing.assert_array_equal(found.embedding, again.embedding)
    reconstructs = {"autoencoder", "autoencoder_v2", "dcae", "dcae_skip", "hsc_autoencoder", "hsc_dcae", "features"}
    assert ("reconstruction_error" in found.columns) == (name in reconstructs)
    assert ("predicted_class" in found.columns) == (name == "cnn")
    assert torch.isfinite(model.losses(batch)["loss"])


@pytest.mark.parametrize("name", ["hsc_autoencoder", "hsc_dcae", "dcae", "dcae_skip", "simclr", "vicreg", "features"])
def test_it_can_be_built_with_its_defaults(name: str) -> None:
    assert parameters(MODELS.find(name)((3, 32, 32))) > 0
    required = [p for p in inspect.signature(MODELS.find(name)).parameters.values() if p.default is p.empty]
    assert [p.name for p in required] == ["shape"]


@pytest.mark.parametrize("name", LEARNING)
def test_losses_fall_in_a_few_steps(data: StampData, name: str) -> None:
    torch.manual_seed(0)
    model: Any = new_model(GalaxiesModel(name=name, args=SMALL[name]), data)
    batch = data.train_batch(range(48))
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    values = []
    for step in range(25):
        torch.manual_seed(step % 5)  # few different views, so that little noise is left in the comparison
        losses = model.losses(batch)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        values.append(losses["loss"].item())
    assert all(p.grad is not None for p in model.parameters())
    assert np.mean(values[-5:]) < 0.97 * np.mean(values[:5])


class KilledError(Exception):
    """Ends a training as abruptly as one process can end itself."""


@pytest.mark.parametrize("name", ["cnn", "vicreg"])
def test_a_killed_training_continues_as_if_nothing_had_happened(
    name: str, tiny: GalaxiesSettings, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = {
        "schedule": "torch.optim.lr_scheduler:OneCycleLR",
        "schedule_args": {"max_lr": 0.02, "total_steps": "steps", "cycle_momentum": False},
    }
    train = {"epochs": 3, "check_every_epochs": 1, "batch_size": 64, "tracker": "none", **schedule}
    values = {**tiny.model_dump(), "model": {"name": name, "args": SMALL[name]}, "train": train}
    settings = GalaxiesSettings(**values)

    def fit(experiment: str) -> TrainingRun:
        paths = ExperimentPaths.of(tmp_path, experiment)
        run = TrainingRun(settings, paths, "data", "code", {})
        Galaxies().fit(settings, prepared, run)
        return run

    whole = fit("whole")
    network, calls = type(made(name, (3, 16, 16))), 0
    losses = network.losses

    def dies(self: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        nonlocal calls
        calls += self.training
        if calls == 5:
            raise KilledError
        return losses(self, batch)

    monkeypatch.setattr(network, "losses", dies)
    with pytest.raises(KilledError):
        fit("killed")
    monkeypatch.setattr(network, "losses", losses)
    again = fit("killed")
    assert again.continued_from is not None
    assert again.continued_from > 0
    assert whole.history.equals(again.history)
    one, two = (checkpoints.load(run.best)["state_dict"] for run in (whole, again))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_model_without_parameters_is_trained_at_once(
    tiny: GalaxiesSettings, prepared: Path, tmp_path: Path, data: StampData
) -> None:
    train = {"epochs": 1e6, "tracker": "none"}
    settings = GalaxiesSettings(**{**tiny.model_dump(), "model": {"name": "identity"}, "train": train})
    paths = ExperimentPaths.of(tmp_path, "made")
    run = TrainingRun(settings, paths, "data", "code", {})
    Galaxies().fit(settings, prepared, run)
    assert run.history["name"].to_list() == ["train/loss"]
    run.finish()
    ids = data.samples["sample_id"].to_list()[:5]
    (found,) = Galaxies().predict(settings, prepared, paths.model, ids, tmp_path / "files")
    np.testing.assert_array_equal(found.embedding, data.images(data.rows_of(ids)).reshape(5, -1))


@pytest.mark.parametrize("name", ["cnn", "simclr", "vicreg"])
@pytest.mark.parametrize("processes", [2, 3])
def test_a_batch_on_several_processes_is_that_of_one(name: str, processes: int, tmp_path: Path) -> None:
    def gradients(model: Any, loss: Tensor) -> list[Tensor]:
        loss.backward()
        return [p.grad for p in model.parameters()]

    def batch() -> dict[str, Any]:
        whole = batch_of((2, 16, 16), SAMPLES)
        whole["labels"] = torch.tensor([0, -1, 1, 2, -1, 0, -1])  # unevenly known
        return whole

    def work(share: Share) -> dict[str, Any]:
        model = synchronised(made(name, (2, 16, 16))) if share.processes > 1 else made(name, (2, 16, 16))
        own = {key: value[share.mine] for key, value in batch().items()}
        losses = model.train().losses(own)
        part = len(own["images"]) / share.samples  # as training weighs it
        found = gradients(model, losses["loss"] * part)
        for gradient in found if share.processes > 1 else ():
            torch.distributed.all_reduce(gradient)
        return {"loss": losses["loss"].detach() * part, "gradients": found}

    answers = on_processes(processes, tmp_path, work)
    alone = Share(0, 1, SAMPLES, seed=5)
    with sharing(alone):
        expected = work(alone)
    torch.testing.assert_close(sum(answer["loss"] for answer in answers), expected["loss"], rtol=1e-4, atol=1e-5)
    for answer in answers:
        for one, other in zip(answer["gradients"], expected["gradients"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_table_of_models_says_what_they_are() -> None:
    text = (REPOSITORY / "docs/galaxies-models.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| (\w+|the input) \| ([\d,]+)", text, re.MULTILINE)
    assert {name for name, _, _ in rows} == set(MODELS.names())
    for name, latent, learning in rows:
        model = MODELS.find(name)((3, 32, 32), **({"classes": [str(i) for i in range(10)]} if name == "cnn" else {}))
        assert parameters(model) == int(learning.replace(",", ""))
        if name != "identity":
            assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, int(latent))
    defaults = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", text.partition("## Views")[2], re.MULTILINE))
    assert {name: float(value) for name, value in defaults.items()} | {"neighbour": 0.0} == VIEWS


# ------------------------------------------------------------------------------------------------ autoencoders
def test_parameter_counts_are_those_of_the_published_models() -> None:
    shape = (3, 32, 32)
    assert parameters(AutoencoderV2(shape)) == 337_091
    assert parameters(Dcae(shape)) == parameters(DcaeSkip(shape)) == 4_975_491
    assert parameters(Cnn(shape, [str(i) for i in range(10)])) == 62_006
    assert parameters(ResNet18((3, 64, 64))) == 11_176_512  # with its stem of 7 px, without its last layer


def test_the_second_autoencoder_is_the_first_but_for_its_end() -> None:
    shape = (3, 16, 16)
    torch.manual_seed(1)
    first = Autoencoder(shape, 4, 6)
    torch.manual_seed(1)
    second = AutoencoderV2(shape, 4, 6)
    images = batch_of(shape)["images"]
    assert torch.equal(first.decode(first(images)), second.decode(second(images)))
    third = AutoencoderV2(shape, 4, 6, final="identity")
    third.load_state_dict(second.state_dict())
    torch.testing.assert_close(third.decode(third(images)).tanh(), second.decode(second(images)))


@pytest.mark.parametrize(
    ("final", "low", "high"), [("tanh", -1, 1), ("sigmoid", 0, 1), ("arcsinh", -20, 20), ("identity", -1e9, 1e9)]
)
def test_the_last_activation_bounds_what_is_drawn(final: str, low: float, high: float) -> None:
    model = AutoencoderV2((1, 16, 16), 4, 6, final=final)
    with torch.no_grad():
        drawn = model.decode(1e6 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    assert low <= float(drawn.min())
    assert float(drawn.max()) <= high
    bounded = {"tanh": 1.5, "sigmoid": 1.5, "arcsinh": 20}.get(final, float("inf"))
    assert (float(drawn.abs().max()) > 20) == (bounded == float("inf"))


def test_losses_of_a_reconstruction_do_not_grow_with_the_image() -> None:
    batch = batch_of((4, 16, 16))
    images = batch["images"]
    mean, total = AutoencoderV2((4, 16, 16), 4, 6), AutoencoderV2((4, 16, 16), 4, 6, loss="sum")
    total.load_state_dict(mean.state_dict())
    error = (mean.decode(mean(images)) - images).square()
    torch.testing.assert_close(mean.losses(batch)["loss"], error.mean())
    torch.testing.assert_close(total.losses(batch)["loss"], error.sum(1).mean())
    torch.testing.assert_close(total.losses(batch)["mse"], error.mean())


@pytest.mark.parametrize("args", [{"final": "relu"}, {"loss": "median"}])
@pytest.mark.parametrize("name", ["autoencoder_v2", "dcae", "hsc_dcae", "hsc_autoencoder"])
def test_unknown_choices_are_refused(data: StampData, name: str, args: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"model\.args: .* refuses them: (final|loss) must be"):
        build_model(GalaxiesModel(name=name, args=args), data)


def test_only_the_skips_carry_an_image_past_the_bottleneck() -> None:
    """What is drawn from one and the same latent vector, of two images that have nothing in common."""
    shape = (3, 32, 32)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    drawn = {}
    for model in (made("dcae", shape).eval(), made("dcae_skip", shape).eval()):
        nn.init.zeros_(model.squeeze[1].weight)  # the latent vector knows nothing of the image any more
        latent = model(images)
        assert torch.equal(latent[0], latent[1])
        drawn[type(model)] = outputs(model, images)["reconstruction"]
    torch.testing.assert_close(drawn[Dcae][0], drawn[Dcae][1])
    assert (drawn[DcaeSkip][0] - drawn[DcaeSkip][1]).abs().max() > 1e-3
    assert not hasattr(DcaeSkip, "decode")  # it cannot draw from a latent vector


def test_the_reconstruction_depends_on_the_latent_vector() -> None:
    model = made("dcae", (3, 32, 32)).eval()
    one, other = model.decode(torch.zeros(1, 6)), model.decode(torch.ones(1, 6))
    assert (one - other).abs().max() > 1e-5


@pytest.mark.parametrize("name", ["dcae", "dcae_skip", "hsc_dcae"])
def test_a_training_step_runs_the_encoder_once(name: str) -> None:
    model, calls = made(name, (3, 32, 32)), []
    model.down[0].register_forward_hook(lambda *_: calls.append(1))
    model.losses(batch_of((3, 32, 32)))
    assert len(calls) == 1
    if name != "dcae":
        outputs(model, batch_of((3, 32, 32))["images"])
        assert len(calls) == 2


@pytest.mark.parametrize(("name", "size"), [("hsc_dcae", 150), ("hsc_autoencoder", 258)])
def test_the_hsc_models_take_the_size_they_were_made_for(name: str, size: int) -> None:
    images = torch.rand(1, 3, size, size)
    latent, drawn = made(name, (3, size, size)).reconstruct(images)
    assert drawn.shape == images.shape
    assert latent.shape == (1, SMALL[name]["channels"] * {"hsc_dcae": 8, "hsc_autoencoder": 4}[name])


def test_the_full_hsc_models_describe_an_image_by_256_numbers() -> None:
    images = torch.rand(1, 3, 32, 32)
    assert HscDcae((3, 32, 32))(images).shape == HscAutoencoder((3, 32, 32))(images).shape == (1, 256)


@pytest.mark.parametrize(("name", "size"), [("dcae", 7), ("hsc_dcae", 7), ("hsc_autoencoder", 7), ("cnn", 15)])
def test_images_that_are_too_small_are_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"needs images of .* px or more, found {size} x {size} px"):
        made(name, (3, size, size))


# -------------------------------------------------------------------------------------------------- supervised
def test_samples_of_unknown_class_teach_nothing() -> None:
    torch.manual_seed(0)
    model, batch = made("cnn", (3, 32, 32)), batch_of((3, 32, 32))
    batch["labels"] = torch.tensor([0, -1, 2, -1, 1, -1])
    known = batch["labels"] >= 0
    losses = model.losses(batch)
    logits = model.classify(batch["images"])[1]
    torch.testing.assert_close(losses["loss"], F.cross_entropy(logits[known], batch["labels"][known]))
    right = (logits.argmax(1) == batch["labels"])[known].float().mean()
    torch.testing.assert_close(losses["accuracy"], right)
    assert float(losses["weight"]) == pytest.approx(0.5)
    batch["labels"] = torch.full((6,), -1)
    losses = model.losses(batch)
    losses["loss"].backward()
    assert losses["loss"].item() == losses["weight"].item() == 0
    assert all((p.grad == 0).all() for p in model.parameters())


def test_means_over_batches_count_each_known_label_once() -> None:
    """The last batch is small and has few labels: it must not count as much as a whole one."""
    from manyscope.training.means import Means

    class Alone:
        device = "cpu"
        trainer = type("Trainer", (), {"world_size": 1})()

    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(23, 3, generator=generator), torch.randint(-1, 3, (23,), generator=generator)
    means = Means()
    for first in range(0, 23, 10):
        part = slice(first, first + 10)
        means.add(label_losses(logits[part], labels[part], F.cross_entropy), len(labels[part]))
    found, known = means.take(Alone()), labels >= 0  # type: ignore[arg-type]
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits[known], labels[known])), rel=1e-6)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == labels)[known].float().mean()))
    assert set(found) == {"loss", "accuracy"}


def test_the_predicted_class_stands_beside_the_true_one(data: StampData) -> None:
    torch.manual_seed(0)
    model = build_model(GalaxiesModel(name="cnn"), data).eval()
    batch = data.batch(np.arange(6))
    batch["sample_id"] = batch["sample_id"][:4]
    with torch.inference_mode():
        found = describe(model, batch)
        probability = outputs(model, batch["images"])["logits"].softmax(1)[:4]
    assert found.embedding.shape == (4, 84)
    assert found.columns["predicted_class"] == [data.classes[i] for i in probability.argmax(1)]
    np.testing.assert_allclose(found.columns["predicted_probability"], probability.max(1).values)
    assert not set(found.columns) & set(data.samples.columns)  # no prediction takes the place of the truth
    table = pl.DataFrame(dict(found.columns))
    assert table.schema["predicted_class"] == pl.String


def test_classes_come_from_the_data(data: StampData) -> None:
    model = build_model(GalaxiesModel(name="cnn"), data)
    assert model.classes == data.classes == sorted(set(data.samples["class"]))
    data.classes = []
    with pytest.raises(SettingsError, match=r"the data has 0; preprocess\.label names the column"):
        build_model(GalaxiesModel(name="cnn"), data)


# --------------------------------------------------------------------------------------------- self-supervised
@pytest.mark.parametrize("bands", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("name", ["simclr", "vicreg"])
def test_any_number_of_bands_and_the_backbone_is_the_embedding(name: str, bands: int) -> None:
    model = made(name, (bands, 24, 24)).eval()
    images = torch.rand(3, bands, 24, 24)
    latent = outputs(model, images)["latent"]
    assert latent.shape == (3, 8 * SMALL[name]["width"])  # not the head's
    assert torch.equal(latent, model.backbone(images))


def test_the_full_models_have_a_backbone_of_512_numbers() -> None:
    images = torch.rand(2, 3, 32, 32)
    assert SimClr((3, 32, 32)).eval()(images).shape == VicReg((3, 32, 32), expander=8).eval()(images).shape == (2, 512)


@pytest.mark.parametrize("name", ["simclr", "vicreg"])
def test_self_supervised_losses_repeat_with_the_seed(name: str) -> None:
    model, batch = made(name, (2, 16, 16)).eval(), batch_of((2, 16, 16))
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model.losses(batch)["loss"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_vicreg_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(9, 4, generator=generator), torch.randn(9, 4, generator=generator)
    found = vicreg_terms(first, second)
    variance = covariance = 0.0
    for z in (first, second):
        c = torch.cov(z.T)
        deviations = (c.diagonal() + 1e-4).sqrt()
        variance += float((1 - deviations).clamp(min=0).mean()) / 2
        covariance += sum(float(c[i, j]) ** 2 for i in range(4) for j in range(4) if i != j) / 4
    assert float(found["invariance"]) == pytest.approx(float((first - second).square().mean()))
    assert float(found["variance"]) == pytest.approx(variance, rel=1e-5)
    assert float(found["covariance"]) == pytest.approx(covariance, rel=1e-5)
    assert float(vicreg_terms(torch.zeros(5, 4), torch.zeros(5, 4))["variance"]) == pytest.approx(0.99, abs=1e-6)


# ------------------------------------------------------------------------------------------------------- views
def test_a_blur_keeps_the_light_and_spreads_it() -> None:
    images = torch.zeros(3, 2, 33, 33)
    images[..., 16, 16] = 1.0
    found = blurred(images, torch.tensor([0.0, 1.0, 2.0]), reach=8)
    assert torch.equal(found[0], images[0])
    torch.testing.assert_close(found.sum((2, 3)), torch.ones(3, 2))
    offset = torch.arange(33.0) - 16
    for i, sigma in ((1, 1.0), (2, 2.0)):
        assert float((found[i, 0].sum(0) * offset.square()).sum()) == pytest.approx(sigma**2, rel=0.02)
        torch.testing.assert_close(found[i], found[i].transpose(-1, -2))


def test_a_magnified_view_shows_a_part_of_the_stamp() -> None:
    torch.manual_seed(0)
    stamps = (torch.arange(32.0) / 31)[None, None, None].expand(64, 1, 32, 32)  # brighter to one side
    whole = Views(**QUIET)(stamps, (16, 16))
    torch.manual_seed(0)
    part = Views(zoom=0.25, **QUIET)(stamps, (16, 16))
    spans = [view.amax((1, 2, 3)) - view.amin((1, 2, 3)) for view in (whole, part)]
    assert (spans[1] < spans[0] + 0.02).all()
    assert (spans[1] / spans[0]).mean() < 0.9
    assert (spans[1] / spans[0]).min() < 0.6
    assert part.min() > 0  # within the stamp: no sky from beyond its edge


def test_size_changes_about_the_middle() -> None:
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    blob = torch.exp(-(x**2 + y**2) / 18).expand(64, 1, 33, 33)
    views = Views(scale=0.5, **QUIET)(blob, (33, 33))[:, 0]
    light = views.sum((1, 2))
    widths = ((views * (x**2 + y**2)).sum((1, 2)) / light / 18).sqrt()
    assert 0.5 < widths.min() < 0.75 < 1.3 < widths.max() < 1.7
    torch.testing.assert_close((views * x).sum((1, 2)) / light, torch.zeros(64), atol=0.05, rtol=0)
    torch.testing.assert_close(views[:, 16, 16], torch.ones(64), atol=0.02, rtol=0)


def test_colours_change_by_band_and_brightness_for_all() -> None:
    stamps = torch.ones(200, 3, 24, 24)
    torch.manual_seed(0)
    bright = Views(brightness=0.5, **QUIET)(stamps, (8, 8)).mean((2, 3))
    torch.testing.assert_close(bright, bright[:, :1].expand(-1, 3))
    assert bright.log().abs().max() <= 0.5
    assert bright.log().std() > 0.2
    colour = Views(colour=0.5, **QUIET)(stamps, (8, 8)).mean((2, 3))
    assert (colour[:, 0] - colour[:, 1]).abs().mean() > 0.1
    grey = Views(colour=0.5, grey=0.3, **QUIET)(stamps, (8, 8)).mean((2, 3))
    without_colour = ((grey - grey[:, :1]).abs() < 1e-6).all(1).float().mean()
    assert 0.15 < float(without_colour) < 0.45


def test_views_of_the_default_model_are_what_they_were() -> None:
    """What the other models add draws no random number unless it is asked for."""
    stamps = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    found = []
    for more in ({}, {"zoom": 1.0, "brightness": 0.0, "colour": 0.0, "blur_px": 0.0, "grey": 0.0}):
        torch.manual_seed(0)
        found.append(Views(**more)(stamps, (32, 32)))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("zoom", [0.0, -1.0, 1.5])
def test_an_impossible_zoom_is_refused(data: StampData, zoom: float) -> None:
    with pytest.raises(SettingsError, match=r"views\.zoom must be above 0"):
        build_model(GalaxiesModel(name="simclr", args={"views": {"zoom": zoom}}), data)


# ---------------------------------------------------------------------------------------------------- features
def test_features_of_any_unit_count_alike() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(200, 3, 1, 1) * torch.tensor([1e-3, 1.0, 1e5])[:, None, None] + 7
    inputs[:, 1] = 4.25  # says nothing
    model = Features((3, 1, 1), latent=2, hidden=[8])
    model.adapt(inputs, lambda stamps: stamps)
    torch.testing.assert_close(model.mean.flatten(), inputs.mean(0).flatten())
    assert model.scale[1].item() == 1
    scaled = (inputs - model.mean) / model.scale
    torch.testing.assert_close(scaled[:, [0, 2]].std(0, correction=0), torch.ones(2, 1, 1), rtol=1e-3, atol=0)
    loss = model.losses({"images": inputs})["loss"]
    assert 0.1 < loss.item() < 10
    fresh = Features((3, 1, 1), latent=2, hidden=[8])
    fresh.load_state_dict(model.state_dict())  # weights alone carry mean and scale
    assert torch.equal(fresh(inputs), model(inputs))


def test_strangeness_of_features_is_in_units_of_their_spread() -> None:
    model = made("features", (2, 1, 1), latent=1, hidden=[4])
    model.scale.copy_(torch.tensor([1e-3, 1e3])[:, None, None])
    batch = {"images": torch.ones(3, 2, 1, 1), "sample_id": ["a", "b", "c"]}
    with torch.inference_mode():
        found = describe(model.eval(), batch)
        error = model.decode(model(batch["images"])) - batch["images"]
    expected = (error / model.scale).square().flatten(1).mean(1)
    np.testing.assert_allclose(found.columns["outlier_reconstruction"], expected, rtol=1e-5)
    np.testing.assert_allclose(found.columns["reconstruction_error"], error.square().flatten(1).mean(1), rtol=1e-5)
    assert "outlier_asymmetry" not in found.columns  # one pixel has no sides


def test_identity_passes_its_input_through() -> None:
    inputs = torch.randn(4, 6, 1, 1)
    assert torch.equal(Identity((6, 1, 1))(inputs), inputs.flatten(1))
