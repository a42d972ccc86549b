"""The architectures, the module that holds both parts, parameter-efficient fine-tuning, and pretrained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from manyscope.errors import CheckpointError, ManyscopeError
from manyscope.scopes.cells.data.images import CellImages
from manyscope.scopes.cells.settings import CellsModel, CellsSettings, PeftSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.training import checkpoints
from manyscope.training.run import TrainingRun
from manyscope.training.seeds import seed_weights

pytestmark = pytest.mark.xdist_group("cells")

Train = Callable[[CellsSettings, Path], Any]
Settings = Callable[..., CellsSettings]

# What each method lets learn of the encoder: names that a trainable parameter's name holds one of.
LEARNS = {
    "lora": ("w_a_linear", "w_b_linear"),
    "fact": ("FacT",),
    "adaptformer": ("mlp.alpha", "mlp.down_proj", "mlp.up_proj"),
    "ssf": (".scale", ".shift"),
    "attention": (".attn.",),
    "bias": ("bias",),
    "layer_norm": (".norm1.", ".norm2."),
    "classical": ("blocks.",),
}


def encoder(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.sam.image_encoder.named_parameters())  # type: ignore[union-attr, operator]


# ------------------------------------------------------------------------------------------------- architectures
def test_the_default_model_is_small_and_whole(small_settings: Settings) -> None:
    from manyscope.scopes.cells.model.networks import build

    model = build(CellsModel(decoder_features=16))
    assert model.image_size == 256
    assert 2.4e6 < sum(p.numel() for p in encoder(model).values()) < 2.7e6
    model = build(small_settings().model)
    assert model.image_size == 128
    assert sum(p.numel() for p in encoder(model).values()) < 1e6
    output = model.unetr(torch.rand(2, 1, 128, 128) * 255)
    assert output.shape == (2, 3, 128, 128)
    assert 0 <= output.min() < output.max() <= 1


def test_both_parts_share_one_encoder_and_the_state_holds_it_once(small_settings: Settings) -> None:
    from manyscope.scopes.cells.model.networks import build

    model = build(small_settings().model)
    assert model.unetr.encoder is model.sam.image_encoder
    own = {id(p) for p in model.parameters()}
    assert {id(p) for p in model.unetr.parameters()} <= own
    assert len(own) == len(list(model.parameters())) == len([n for n in model.state_dict() if is_weight(model, n)])
    with torch.no_grad():
        next(iter(encoder(model).values())).add_(1)
    state = model.unetr.state_dict()
    assert all(torch.equal(state[f"encoder.{name}"], value) for name, value in encoder(model).items())


def is_weight(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"args": {"image_size": 100}}, r"^model\.args: image_size 100, .*; allowed: .*image_size a multiple of 16"),
        ({"args": {"embed_dim": 33, "heads": 2}}, r"embed_dim 33, heads 2; allowed: .*multiple of heads"),
        ({"args": {"width": 33}}, r"model.args: model 'tiny' refuses its arguments \(.*width"),
        ({"name": "tin"}, "did you mean 'tiny'"),
        ({"name": "torch.nn:Identity"}, "model.name: model 'torch.nn:Identity' gives a Identity; allowed: a segment_a"),
        ({"name": "vit_b_lm", "decoder_features": 32}, "model.decoder_features: 32 features .*'vit_b_lm'; allowed: 64"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(values: dict[str, Any], message: str) -> None:
    from manyscope.scopes.cells.model.networks import build

    with pytest.raises(ManyscopeError, match=message):
        build(CellsModel(**values))


def test_names_of_micro_sams_registry_become_architectures() -> None:
    from manyscope.scopes.cells.data.weights import NAMES
    from manyscope.scopes.cells.model.networks import MODELS, architecture

    assert architecture("vit_b_lm") == "vit_b"
    assert architecture("vit_b_histopathology") == "vit_b"
    assert architecture("tiny") == "tiny"
    assert all(callable(MODELS.find(architecture(name))) for name in NAMES)


# ------------------------------------------------------------------------------------------------------ freezing
@pytest.mark.parametrize("parts", [("image_encoder",), ("prompt_encoder", "mask_decoder"), ()])
def test_frozen_parts_stay_and_the_others_learn(small_settings: Settings, parts: tuple[str, ...]) -> None:
    from manyscope.scopes.cells.model.networks import build, freeze

    model = build(small_settings().model)
    fixed = {n for n, p in model.sam.named_parameters() if not p.requires_grad}
    freeze(model, parts)
    for name, parameter in model.sam.named_parameters():
        assert parameter.requires_grad == (name not in fixed and name.split(".")[0] not in parts), name
    assert all(p.requires_grad for p in model.decoder.parameters())


def test_a_frozen_encoder_comes_through_a_training_unchanged(
    small_settings: Settings, train: Train, tmp_path: Path
) -> None:
    from manyscope.scopes.cells.model.networks import build

    values = {"freeze": ("image_encoder",), "epochs": 1, "patches_per_epoch": 2}
    done = train(small_settings(train=values), tmp_path)
    seed_weights(done.settings.train.seed)
    begun, ended = build(done.settings.model).state_dict(), checkpoints.load(done.run.best)["state_dict"]
    moved = {name.split(".")[1] for name in begun if name != "chosen" and not torch.equal(begun[name], ended[name])}
    assert not {"image_encoder", "mask_decoder", "prompt_encoder"} & moved
    assert {"decoder_head", "out_conv", "base"} <= moved


# ---------------------------------------------------------------------------------------------------------- PEFT
@pytest.mark.parametrize("method", LEARNS)
def test_only_what_the_method_names_learns(small_settings: Settings, method: str) -> None:
    from manyscope.scopes.cells.model.networks import add_peft, build

    model = build(small_settings(model={"peft": {"method": method, "rank": 3}}).model)
    others = {n: p.requires_grad for n, p in model.named_parameters() if not n.startswith("sam.image_encoder")}
    add_peft(model, PeftSettings(method=method, rank=3))  # type: ignore[arg-type]
    learns = {name for name, p in encoder(model).items() if p.requires_grad}
    assert learns == {name for name in encoder(model) if any(part in name for part in LEARNS[method])} - (
        {name for name in encoder(model) if "blocks." not in name} if method == "bias" else set()
    )
    assert learns
    assert others == {n: p.requires_grad for n, p in model.named_parameters() if not n.startswith("sam.image_encoder")}
    before = {name: value.detach().clone() for name, value in encoder(model).items()}
    image = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0)) * 255
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):  # the second matrix of an update begins with zeros, so the first has no gradient yet
        optimizer.zero_grad()
        model.unetr(image).square().sum().backward()
        optimizer.step()
    moved = {name for name, value in encoder(model).items() if not torch.equal(value, before[name])}
    assert moved <= learns
    assert len(moved) > 0.8 * len(learns)


@pytest.mark.parametrize(("method", "rank"), [("lora", 3), ("fact", 3)])
def test_the_rank_is_honoured(small_settings: Settings, method: str, rank: int) -> None:
    from manyscope.scopes.cells.model.networks import add_peft, build

    model = build(small_settings().model)
    add_peft(model, PeftSettings(method=method, rank=rank))  # type: ignore[arg-type]
    assert all(rank in p.shape for p in encoder(model).values() if p.requires_grad)


def test_arguments_of_a_method_are_honoured_and_wrong_ones_refused(small_settings: Settings) -> None:
    from manyscope.scopes.cells.model.networks import add_peft, build

    model = build(small_settings().model)
    add_peft(model, PeftSettings(args={"attention_layers_to_update": [1]}))
    assert all("blocks.1." in name for name, p in encoder(model).items() if p.requires_grad)
    for args in ({"update_matrices": ["z"]}, {"no_such": 1}, {"attention_layers_to_update": [7]}):
        with pytest.raises(ManyscopeError, match=r"^model\.peft: 'lora' cannot be added to this model"):
            add_peft(build(small_settings().model), PeftSettings(args=args))


def test_a_frozen_encoder_with_peft_is_refused(small_settings: Settings) -> None:
    with pytest.raises(ValidationError, match=r"image_encoder cannot be frozen while model\.peft trains it"):
        small_settings(model={"peft": {}}, train={"freeze": ("image_encoder",)})
    small_settings(model={"peft": {}}, train={"freeze": ("mask_decoder",)})


def test_lora_trains_from_a_plain_model_and_from_its_own(
    undisturbed: Callable[[str], Any], small_settings: Settings, train: Train, tmp_path: Path
) -> None:
    """The plain weights stay, the updates learn, and micro_sam loads the export with its peft_kwargs."""
    from micro_sam.util import get_sam_model

    from manyscope.scopes.cells.model.export import known_to_micro_sam
    from manyscope.scopes.cells.model.networks import peft_arguments

    plain = undisturbed("instance")
    start = ExperimentPaths.of(tmp_path, "plain").model
    start.parent.mkdir(parents=True)
    start.write_bytes(plain.run.best.read_bytes())
    values = {"epochs": 1, "patches_per_epoch": 2, "start_from": "plain"}
    settings = small_settings(model={"peft": {"rank": 3}}, train=values)
    done = train(settings, tmp_path)
    begun = checkpoints.load(start)["state_dict"]
    ended = checkpoints.load(done.run.best)["state_dict"]
    renamed = {name.replace("attn.qkv.qkv_proj.", "attn.qkv."): value for name, value in ended.items()}
    base = [name for name in begun if name.startswith("sam.")]
    assert all(torch.equal(begun[name], renamed[name]) for name in base)
    assert any(not torch.equal(begun[name], renamed[name]) for name in begun if name.startswith("decoder."))
    updates = {name: value for name, value in ended.items() if "w_b_linear" in name}
    assert len(updates) == 4  # of queries and values in two blocks
    assert all(value.abs().max() > 0 for value in updates.values())  # they begin with zeros
    with known_to_micro_sam(settings.model) as name:
        assert settings.model.peft
        file, peft = str(done.run.export / "small.pt"), peft_arguments(settings.model.peft)
        predictor, state = get_sam_model(name, device="cpu", checkpoint_path=file, return_state=True, peft_kwargs=peft)
    loaded = predictor.model.state_dict()
    assert all(torch.equal(loaded[name.removeprefix("sam.")], ended[name]) for name in ended if name.startswith("sam."))
    assert "decoder_state" in state
    # And once more, from the model that has the updates already.
    second = ExperimentPaths.of(tmp_path / "second", "plain").model
    second.parent.mkdir(parents=True)
    second.write_bytes(done.run.best.read_bytes())
    again = train(settings, tmp_path / "second")
    updated = checkpoints.load(again.run.best)["state_dict"]
    base = [name for name in ended if name.startswith("sam.") and "linear_" not in name]
    assert all(torch.equal(ended[name], updated[name]) for name in base)
    moved = max((updated[name] - ended[name]).abs().max().item() for name in updates)
    assert 0 < moved < 2.5e-3  # a step or two of Adam's from where the first training ended


# ------------------------------------------------------------------------------------------- weights to start with
@pytest.fixture
def weights(undisturbed: Callable[[str], Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes the exported weights of a training, changed, into a file."""

    def write(change: Callable[[dict[str, Any]], Any] = lambda content: content, mode: str = "instance") -> Path:
        content = torch.load(undisturbed(mode).run.export / "small.pt", weights_only=True)
        file = tmp_path / "weights.pt"
        torch.save(change(content), file)
        return file

    return write


def test_weights_of_both_parts_and_of_one_are_loaded(weights: Callable[..., Path], small_settings: Settings) -> None:
    from manyscope.scopes.cells.model.networks import build
    from manyscope.scopes.cells.model.pretrained import load_pretrained

    forms: dict[str, Callable[[dict[str, Any]], Any]] = {
        "both": lambda c: c,
        "promptable": lambda c: c["model_state"],
        "promptable in a training": lambda c: {"model_state": {f"sam.{k}": v for k, v in c["model_state"].items()}},
    }
    for form, change in forms.items():
        file = weights(change)
        model = build(small_settings().model)
        decoder = {name: value.clone() for name, value in model.decoder.state_dict().items()}
        load_pretrained(model, small_settings(model={"weights": file}).model)
        content = torch.load(weights(), weights_only=True)
        assert all(torch.equal(value, content["model_state"][name]) for name, value in model.sam.state_dict().items())
        wanted = content["decoder_state"] if form == "both" else decoder
        assert all(torch.equal(value, wanted[name]) for name, value in model.decoder.state_dict().items())


def test_a_training_begins_with_the_weights(
    weights: Callable[..., Path], small_settings: Settings, train: Train, tmp_path: Path
) -> None:
    file = weights()
    values = {"epochs": 1, "patches_per_epoch": 2, "lr": 1e-12, "weight_decay": 0.0}
    done = train(small_settings(model={"weights": file}, train=values), tmp_path)
    begun, ended = (torch.load(f, weights_only=True) for f in (file, done.run.export / "small.pt"))
    for part in begun:
        # Normalisations count their batches whatever the rate.
        names = [name for name in begun[part] if not name.endswith(("running_mean", "running_var", "tracked"))]
        assert all(torch.allclose(begun[part][name], ended[part][name], atol=1e-9) for name in names)


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {**content, "model_state": {k: v for k, v in content["model_state"].items() if k != name}}


@pytest.mark.parametrize(
    ("change", "model", "message"),
    [
        (
            None,
            {"args": {"image_size": 128, "embed_dim": 48, "depth": 2, "heads": 2}},
            r"32\) in the file and \(.*48\)",
        ),
        (None, {"args": {"image_size": 128, "embed_dim": 32, "depth": 3, "heads": 2}}, "is absent in the file"),
        (None, {"decoder_features": 3}, r"in the file and .*allowed: its decoder as model.name"),
        (without("image_encoder.pos_embed"), {}, "'image_encoder.pos_embed' is absent in the file"),
        (lambda content: [1, 2], {}, "or is broken; export the model"),
        (lambda content: {"model_state": {"encoder.pos_embed": torch.zeros(1)}}, {}, "mode 'instance' that was not ex"),
    ],
)
def test_weights_of_another_model_are_refused_before_training(
    weights: Callable[..., Path],
    small_settings: Settings,
    small_images: Path,
    tmp_path: Path,
    change: Any,
    model: dict[str, Any],
    message: str,
) -> None:
    from manyscope.scopes.cells.model.fit import fit

    file = weights(change or (lambda content: content))
    settings = small_settings(model={**model, "weights": file}).for_stage("train")
    run = TrainingRun(settings, ExperimentPaths.of(tmp_path, "small"), "data", "code", {})
    with pytest.raises(CheckpointError, match=message) as refused:
        fit(settings, CellImages(small_images), run)  # type: ignore[arg-type]
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)
    assert not (run.folder / "history.jsonl").exists()


def test_a_training_that_was_not_exported_and_rubbish_are_refused(
    undisturbed: Callable[[str], Any], small_settings: Settings, tmp_path: Path
) -> None:
    from manyscope.scopes.cells.model.networks import build
    from manyscope.scopes.cells.model.pretrained import load_pretrained

    rubbish = tmp_path / "rubbish.pt"
    rubbish.write_bytes(b"no checkpoint")
    unexported = undisturbed("instance").run.folder / "checkpoints" / "small" / "best.pt"
    for file, message in (
        (rubbish, "or is broken; export the model with micro_sam first"),
        (unexported, "mode 'instance' that was not exported; use the exported model"),
        (tmp_path / "missing.pt", "no such file or folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(build(small_settings().model), small_settings(model={"weights": file}).model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"args": {"image_size": 128, "embed_dim": 48, "depth": 2, "heads": 2}}, r"in the file and .* in the model"),
        ({"decoder_features": 3}, r"in the file and .* in the model"),
        ({"name": "vit_b", "decoder_features": 64}, "holds model 'tiny' of scope 'cells'; allowed: model 'vit_b'"),
    ],
)
def test_weights_of_an_experiment_with_another_model_are_refused_before_training(
    undisturbed: Callable[[str], Any],
    small_settings: Settings,
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, Any],
    message: str,
) -> None:
    from manyscope.scopes.cells.model import networks

    start = ExperimentPaths.of(tmp_path, "other").model
    start.parent.mkdir(parents=True)
    start.write_bytes(undisturbed("instance").run.best.read_bytes())
    monkeypatch.setattr(networks, "vit_b", networks.tiny)  # the real one takes seconds to build
    settings = small_settings(model=model, train={"start_from": "other"})
    with pytest.raises(CheckpointError, match=message):
        train(settings, tmp_path)
    assert not list((tmp_path / "small").rglob("history.jsonl"))
