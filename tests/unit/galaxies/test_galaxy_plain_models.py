"""A plain torch module of a user's own as a model: what it is given, what it is compared to, and clear refusals."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor, nn

from manyscope.errors import CheckpointError, DataError, ManyscopeError, SettingsError
from manyscope.registry import load_object
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.model import MODELS, build_model, describe
from manyscope.scopes.galaxies.model.plain import Classifying, Reconstructing, given_to
from manyscope.scopes.galaxies.scope import Galaxies
from manyscope.scopes.galaxies.settings import GalaxiesModel, GalaxiesSettings
from manyscope.training.checkpoints import save_weights
from manyscope.training.choices import training_problems

REPOSITORY = Path(__file__).resolve().parents[3]
SHAPE = (3, 16, 16)
PIXELS = math.prod(SHAPE)


class Draws(nn.Module):
    """Reconstructs; its latent vector is what `encode` gives, here not yet flat."""

    def __init__(self, shape: tuple[int, int, int], width: int = 4) -> None:
        super().__init__()
        self.encode = nn.Conv2d(shape[0], width, 3, 4, 1)
        self.decode = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(width, shape[0], 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))


class Names(nn.Module):
    """Gives logits; does not ask for the shape."""

    def __init__(self, classes: list[str], width: int = 5) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.ReLU())
        self.last = nn.Linear(width, len(classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.embed(images))


class Flat(nn.Module):
    """Takes nothing at all; its output is an image and its latent vector."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((PIXELS,), 0.5))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * self.gain


class Outputs(nn.Module):
    """As many numbers as it is told."""

    def __init__(self, in_shape: tuple[int, int, int], numbers: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(in_shape), numbers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


class Pair(Flat):
    def forward(self, images: Tensor) -> Any:
        return images, images


class Learned(Flat):
    """Knows its own losses, as the models of Manyscope do, and draws flat images."""

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": self.gain.square().sum()}

    def decode(self, latent: Tensor) -> Tensor:
        return latent


class Nameless(Learned):
    """Tells classes, and not which."""

    def __init__(self, classes: Any = None, logits: int = 2) -> None:
        super().__init__()
        self.classes, self.logits = classes, logits

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), images.new_zeros(len(images), self.logits)


class Cropped(Learned):
    def decode(self, latent: Tensor) -> Tensor:
        return latent[:, :-1]


class Deep(Draws):
    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": self(batch["images"]).square().mean()}

    def forward(self, images: Tensor) -> Tensor:
        return self.encode(images)


def no_module() -> int:
    return 5


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, data: StampData) -> Callable[..., Any]:
    """A model of this file, as a user names one."""
    monkeypatch.setitem(sys.modules, "my_nets", sys.modules[__name__])

    def build(name: str, **model: Any) -> Any:
        torch.manual_seed(0)
        return build_model(GalaxiesModel(name=f"my_nets:{name}", **model), data)

    return build


def steps(model: Any, batch: dict[str, Any], count: int = 20) -> list[float]:
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    values = []
    for _ in range(count):
        losses = model.train().losses(batch)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        values.append(losses["loss"].item())
    return values


# ----------------------------------------------------------------------------------------------- what it is given
def test_a_constructor_gets_what_it_asks_for() -> None:
    classes = ["a", "b"]

    def first(in_shape: Any, width: int) -> None: ...
    def named(width: int, shape: Any = None) -> None: ...
    def nothing() -> None: ...
    def only(width: int) -> None: ...
    def optional(width: int = 3) -> None: ...
    def anything(**args: Any) -> None: ...
    def both(shape: Any, classes: Any) -> None: ...

    assert given_to(first, {"width": 3}, SHAPE, classes) == ((SHAPE,), {})
    assert given_to(named, {"width": 3}, SHAPE, classes) == ((), {"shape": SHAPE})
    assert given_to(nothing, {}, SHAPE, classes) == ((), {})
    assert given_to(only, {"width": 3}, SHAPE, classes) == ((), {})
    assert given_to(optional, {}, SHAPE, classes) == ((), {})
    assert given_to(anything, {"width": 3}, SHAPE, classes) == ((), {})
    assert given_to(both, {}, SHAPE, classes) == ((), {"shape": SHAPE, "classes": classes})
    assert given_to(both, {"shape": (1, 2, 3), "classes": ["x"]}, SHAPE, classes) == ((), {})


# ------------------------------------------------------------------------------------------ what it is compared to
def test_a_module_that_draws_images_learns_to(own: Callable[..., Any], data: StampData) -> None:
    model, batch = own("Draws", args={"width": 6}), data.train_batch(range(40))
    assert isinstance(model, Reconstructing)
    loss = model.losses(batch)["loss"]
    torch.testing.assert_close(loss, (model.module(batch["images"]) - batch["images"]).square().mean())
    values = steps(model, batch)
    assert values[-1] < 0.8 * values[0]
    with torch.inference_mode():
        found = describe(model.eval(), batch)
    assert found.embedding.shape == (40, 6 * 4 * 4)
    np.testing.assert_allclose(found.columns["reconstruction_error"].mean(), model.losses(batch)["loss"].item(), 1e-4)


def test_a_module_that_names_classes_learns_to(own: Callable[..., Any], data: StampData) -> None:
    model, batch = own("Names"), data.train_batch(range(40))
    assert isinstance(model, Classifying)
    values = steps(model, batch, 40)
    assert values[-1] < 0.8 * values[0]
    with torch.inference_mode():
        found = describe(model.eval(), batch)
    assert found.embedding.shape == (40, 5)
    assert set(found.columns["predicted_class"]) <= set(data.classes)
    assert (found.columns["predicted_probability"] >= 1 / len(data.classes)).all()


def test_without_an_embedding_of_its_own_it_is_the_output(own: Callable[..., Any], data: StampData) -> None:
    batch = data.batch(np.arange(4))
    with torch.inference_mode():
        found = describe(own("Flat").eval(), batch)
    np.testing.assert_array_equal(found.embedding, 0.5 * batch["images"].flatten(1).numpy())
    np.testing.assert_allclose(
        found.columns["reconstruction_error"], 0.25 * batch["images"].flatten(1).square().mean(1).numpy(), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("criterion", "args", "expected"),
    [
        (None, {}, nn.MSELoss()),
        ("mse", {"reduction": "sum"}, nn.MSELoss(reduction="sum")),
        ("l1", {}, nn.L1Loss()),
        ("huber", {"delta": 0.1}, nn.HuberLoss(delta=0.1)),
        ("torch.nn:SmoothL1Loss", {"beta": 0.2}, nn.SmoothL1Loss(beta=0.2)),
    ],
)
def test_the_criterion_is_the_one_that_is_named(
    own: Callable[..., Any], data: StampData, criterion: str | None, args: dict[str, Any], expected: nn.Module
) -> None:
    model, batch = own("Flat", criterion=criterion, criterion_args=args), data.batch(np.arange(4))
    wanted = expected(0.5 * batch["images"], batch["images"])
    torch.testing.assert_close(model.losses(batch)["loss"], wanted)


def test_a_criterion_of_labels_takes_arguments(own: Callable[..., Any], data: StampData) -> None:
    model = own("Outputs", args={"numbers": 5}, target="labels", criterion_args={"label_smoothing": 0.2})
    batch = data.batch(np.arange(8))
    logits = model.module(batch["images"])
    smooth = nn.CrossEntropyLoss(label_smoothing=0.2)(logits, batch["labels"])
    torch.testing.assert_close(model.losses(batch)["loss"], smooth)
    with torch.inference_mode():  # numbers beyond the classes have no name
        assert set(describe(model.eval(), batch).columns["predicted_class"]) <= set(data.classes)


def test_losses_of_its_own_win_over_a_criterion(
    own: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("manyscope"), "propagate", True)
    model = own("Learned", criterion="l1")
    assert isinstance(model, Learned)
    assert "has losses of its own: model.criterion" in caplog.text
    caplog.clear()
    own("Learned")
    assert not caplog.text


# ----------------------------------------------------------------------------------------------------- the user's
def test_a_file_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by programs that Python does not start with `-m`, such as `manyscope` and `snakemake` themselves."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(Path.cwd()))])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_of_a_user.py").write_text("class Net: pass\n")
    (tmp_path / "polars.py").write_text("raise SystemExit('installed packages come first')\n")
    before = list(sys.path)
    assert load_object("nets_of_a_user:Net").__name__ == "Net"
    assert load_object("polars:DataFrame")
    assert sys.path == [*before, str(tmp_path)]  # behind all others, and once
    monkeypatch.delitem(sys.modules, "nets_of_a_user")


@pytest.mark.parametrize(
    ("text", "found"), [("def net(:\n", "SyntaxError"), ("1 / 0\n", "ZeroDivisionError: division")]
)
def test_a_users_module_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_nets.py").write_text(text)
    with pytest.raises(ManyscopeError, match=rf"'broken_nets' fails while it is imported \({found}") as caught:
        load_object("broken_nets:Net")
    assert "\n" not in str(caught.value)


def test_the_examples_of_the_documentation_are_valid(data: StampData, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "docs/bring-your-own.md").read_text()
    blocks = re.findall(r"```yaml\n(model:.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    module = ModuleType("my_models")
    (source,) = re.findall(r"```python\n(# my_models\.py.*?)```", text, re.DOTALL)
    exec(compile(source, "my_models.py", "exec"), module.__dict__)
    module.Plain = Draws  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_models", module)
    for block in blocks:
        values = YAML(typ="safe").load(block)
        settings = GalaxiesSettings(scope="galaxies", **values)
        assert not list(training_problems(settings.train))
        model: Any = build_model(settings.model, data)
        assert torch.isfinite(model.losses(data.train_batch([0, 1]))["loss"])
        with torch.inference_mode():
            assert describe(model.eval(), data.batch(np.arange(2))).embedding.shape[0] == 2
    examples = (REPOSITORY / "docs/galaxies-models.md").read_text()
    (block,) = re.findall(r"```yaml\n(model:.*?)```", examples, re.DOTALL)
    build_model(GalaxiesSettings(scope="galaxies", **YAML(typ="safe").load(block)).model, data)
    assert set(re.findall(r"^\| `(\w+)` \|", examples.partition("## Views")[0], re.MULTILINE)) == set(MODELS.names())


# ------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("Outputs", {"args": {"numbers": 7}}, r"its output is shape \(2, 7\); allowed: \(2, 3, 16, 16\), to recon"),
        ("Outputs", {"args": {"numbers": 2}, "target": "labels"}, r"shape \(2, 2\); allowed: \(2, \d or more\), to na"),
        ("Names", {"target": "images"}, r"its output is shape \(2, \d\); allowed: \(2, 3, 16, 16\)"),
        ("Pair", {}, r"its output is a tuple; allowed"),
        ("Flat", {"criterion": "cross_entropie"}, r"did you mean 'cross_entropy'"),
        ("Flat", {"criterion": "huber", "criterion_args": {"beta": 1}}, r"model\.criterion_args: .*refuses them"),
        ("Flat", {"criterion_args": {"reduction": "none"}}, r"gives shape \(2, 3, 16, 16\); it must give one number"),
        ("Names", {"criterion": "huber"}, r"model\.criterion: 'huber' cannot compare the model's output to labels"),
        ("Flat", {"args": {"width": 3}}, r"model\.args: model 'my_nets:Flat' refuses them"),
        (
            "Nameless",
            {"args": {"classes": None}},
            r"has classify.*attribute 'classes' is None; allowed: the names of its",
        ),
        ("Nameless", {"args": {"classes": 2}}, r"attribute 'classes' is 2; allowed"),
        ("Nameless", {"args": {"classes": []}}, r"attribute 'classes' is \[\]; allowed"),
        ("no_module", {}, r"gives 5; allowed: a torch\.nn\.Module"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_what_was_found(
    own: Callable[..., Any], name: str, model: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message) as caught:
        own(name, **model)
    assert type(caught.value).__name__ in ("SettingsError", "ManyscopeError")
    assert "\n" not in str(caught.value)


def test_each_logit_has_a_name(own: Callable[..., Any], data: StampData) -> None:
    batch = data.batch(np.arange(3))
    with torch.inference_mode():
        assert describe(own("Nameless", args={"classes": ["a", "b"]}), batch).columns["predicted_class"] == ["a"] * 3
        with pytest.raises(DataError, match=r"logits of shape \(3, 4\) for 3 images; allowed: \(3, 2\): one for each"):
            describe(own("Nameless", args={"classes": ["a", "b"], "logits": 4}), batch)


@pytest.mark.parametrize(
    "model", [{"name": "my_nets:Outputs", "args": {"numbers": 9}, "target": "labels"}, {"name": "cnn"}]
)
def test_weights_do_not_tell_other_classes_than_they_learnt(
    data: StampData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    """Data that grew by a class, whose names are numbered by the alphabet, would turn the old numbers' meaning."""
    monkeypatch.setitem(sys.modules, "my_nets", sys.modules[__name__])
    scope, weights, ids = Galaxies(), tmp_path / "model.ckpt", data.samples["sample_id"][:2].to_list()
    settings = GalaxiesSettings.model_validate({"scope": "galaxies", "model": model})
    trained = data.classes
    values = settings.model.model_dump(mode="json")
    save_weights(weights, scope.new_model(settings, data), "galaxies", values)
    assert len(list(scope.predict(settings, data.folder, weights, ids, tmp_path))) == 1
    monkeypatch.setattr(scope, "data", lambda *_: data)
    data.classes = ["a new one", *trained]
    with pytest.raises(
        CheckpointError, match=r"the classes have changed: the weights know .*'a new one'.*train"
    ) as caught:
        list(scope.predict(settings, data.folder, weights, ids, tmp_path))
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_see_the_images_is_refused(data: StampData) -> None:
    with pytest.raises(SettingsError, match=r"cannot be applied to images \(2, 3, 16, 16\)"):
        build_model(GalaxiesModel(name="torch.nn:Linear", args={"in_features": 5, "out_features": 2}), data)


def test_labels_without_classes_are_refused(own: Callable[..., Any], data: StampData) -> None:
    data.classes = []
    with pytest.raises(SettingsError, match=r"the data has 0 classes, see preprocess\.label"):
        own("Outputs", args={"numbers": 3}, target="labels")


def test_an_unknown_criterion_is_found_before_the_training(tiny: GalaxiesSettings) -> None:
    settings = tiny.model_copy(update={"model": GalaxiesModel(criterion="msa")})
    assert any("model.criterion" in problem and "'mse'" in problem for problem in Galaxies().problems(settings))


# ------------------------------------------------------------------------------------- models with their own losses
def test_vectors_of_any_shape_are_flattened(own: Callable[..., Any], data: StampData) -> None:
    with torch.inference_mode():
        found = describe(own("Deep").eval().requires_grad_(False), {**data.batch(np.arange(3))})
    assert found.embedding.shape == (3, 4 * 4 * 4)
    assert "reconstruction_error" in found.columns  # of the vector as it was


def test_a_flat_drawing_is_an_image_and_another_size_is_refused(own: Callable[..., Any], data: StampData) -> None:
    batch = data.batch(np.arange(3))
    with torch.inference_mode():
        assert describe(own("Learned").eval(), batch).columns["reconstruction_error"].shape == (3,)
        with pytest.raises(DataError, match=r"draws shape \(3, 767\) for images \(3, 3, 16, 16\)"):
            describe(own("Cropped").eval(), batch)
