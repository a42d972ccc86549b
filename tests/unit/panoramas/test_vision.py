"""Encoders of views: grids without prefix tokens, normalisation, what learns, and pretrained ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from manyscope.errors import CheckpointError, SettingsError
from manyscope.scopes.panoramas.model.vision import VisionEncoder, build_vision
from manyscope.scopes.panoramas.settings import VisionSettings

TYPES = ("siglip", "siglip2", "clip", "dinov2")
NOWHERE = Path("nowhere")
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def build(kind: str, size_px: int = 24, **more: Any) -> VisionEncoder:
    torch.manual_seed(0)
    small = {"width": 16, "mlp_width": 32, "heads": 2, "layers": 3}
    return build_vision(VisionSettings(type=kind, **{**small, **more}), size_px, NOWHERE)


def pixels(n: int = 2, size_px: int = 24) -> torch.Tensor:
    values = torch.randint(0, 256, (n, 3, size_px, size_px), generator=torch.Generator().manual_seed(1))
    return values.to(torch.uint8)


def saved(folder: Path, kind: str, towers: int = 1) -> Path:
    """A tiny checkpoint as transformers writes it: of the vision encoder alone, or with its text tower."""
    torch.manual_seed(3)
    name = {"siglip": "Siglip", "siglip2": "Siglip2", "clip": "CLIP", "dinov2": "Dinov2"}[kind]
    vision = dict(SIZES)
    if kind == "dinov2":
        vision["mlp_ratio"] = 2
    if kind == "siglip2":
        del vision["image_size"]
        vision["num_patches"] = 4
    suffix = "" if kind == "dinov2" else "Vision"
    if towers == 1:
        config = getattr(transformers, f"{name}{suffix}Config")(**vision)
        model = getattr(transformers, f"{name}{suffix}Model")(config)
    else:
        text = {**SIZES, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision)
        model = getattr(transformers, f"{name}Model")(config)
    model.eval().save_pretrained(folder)
    return folder


def pretrained(folder: Path, kind: str, size_px: int = 16) -> VisionEncoder:
    return build_vision(VisionSettings(type=kind, pretrained=str(folder)), size_px, NOWHERE)


@pytest.mark.parametrize("kind", TYPES)
def test_a_grid_of_tokens_without_prefix(kind: str) -> None:
    encoder = build(kind)
    assert (encoder.grid, encoder.width, len(encoder.blocks)) == (3, 16, 3)
    tokens = encoder(pixels())
    assert tokens.shape == (2, 3, 3, 16)
    assert tokens.dtype == torch.float32
    assert encoder.model.config._attn_implementation == "sdpa"
    everything = encoder.model(pixel_values=(pixels() / 255 - encoder.mean) / encoder.std).last_hidden_state
    prefix = {"siglip": 0, "siglip2": 0, "clip": 1, "dinov2": 1}[kind]
    assert everything.shape[1] == 9 + prefix
    torch.testing.assert_close(tokens.flatten(1, 2), everything[:, prefix:])


@pytest.mark.parametrize("kind", TYPES)
def test_tokens_are_where_their_patches_are(kind: str) -> None:
    encoder = build(kind)
    for block in encoder.blocks:  # so that no token sees another
        for name, parameter in block.named_parameters():
            if "out_proj" in name or "attention.output" in name or "o_proj" in name:
                parameter.data.zero_()
    before = pixels(1)
    after = before.clone()
    after[:, :, 16:, 8:16] = 255 - after[:, :, 16:, 8:16]
    changed = (encoder(after) - encoder(before)).abs().amax(-1)[0] > 1e-5
    assert changed.nonzero().tolist() == [[2, 1]]


def test_pixels_are_normalised_as_of_their_type() -> None:
    encoder = build("siglip")
    seen: list[torch.Tensor] = []
    encoder.model.register_forward_pre_hook(
        lambda _, args, options: seen.append(options["pixel_values"]), with_kwargs=True
    )
    encoder(torch.tensor([0, 255, 51]).to(torch.uint8).view(3, 1, 1, 1).expand(3, 3, 24, 24))
    torch.testing.assert_close(seen[0][:, 0, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))
    assert build("clip").mean.flatten().tolist() == pytest.approx([0.4815, 0.4578, 0.4082], abs=1e-4)
    assert build("dinov2").std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert "mean" not in encoder.state_dict()


@pytest.mark.parametrize("kind", TYPES)
def test_what_learns(kind: str) -> None:
    encoder = build(kind)

    def learning() -> set[str]:
        return {name for name, p in encoder.model.named_parameters() if p.requires_grad}

    encoder.learn(0, "x")
    assert not learning()
    encoder.learn(2, "x")
    first = {name.split(".")[2] for name in learning() if name.startswith("encoder.")}
    assert first == {"1", "2"}
    others = {name.split(".")[0] for name in learning() if not name.startswith("encoder.")}
    assert others == {"siglip": {"post_layernorm"}, "siglip2": {"post_layernorm"}, "clip": set()}.get(
        kind, {"layernorm"}
    )
    for blocks in (1, 2, -1):
        encoder.learn(blocks, "x")
        encoder.zero_grad()
        encoder(pixels()).square().sum().backward()
        # No parameter waits for a gradient that never comes.
        assert {name for name, p in encoder.model.named_parameters() if p.grad is not None} == learning()
    assert any(name.startswith("embeddings.patch") for name in learning())
    with pytest.raises(SettingsError, match=r"^train\.finetune\.vision_blocks: 4 of the vision encoder's 3 blocks"):
        encoder.learn(4, "train.finetune.vision_blocks")


@pytest.mark.parametrize("kind", TYPES)
def test_views_of_no_whole_patches_are_refused(kind: str) -> None:
    with pytest.raises(SettingsError, match=r"^preprocess\.views\.size_px: 30 is no multiple of 8.*below is 24"):
        build(kind, size_px=30)


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"^model\.vision\.width: 16 is no multiple of its 3 heads"):
        build("siglip", heads=3)
    with pytest.raises(SettingsError, match=r"^model\.vision\.mlp_width: 40 is no multiple of the width 16"):
        build("dinov2", mlp_width=40)


@pytest.mark.parametrize(
    ("kind", "stored", "towers"),
    [
        ("siglip", "siglip", 1),
        ("siglip", "siglip", 2),
        ("siglip2", "siglip", 2),
        ("clip", "clip", 1),
        ("clip", "clip", 2),
        ("dinov2", "dinov2", 1),
    ],
)
@pytest.mark.parametrize("size_px", [16, 32])
def test_pretrained_towers_answer_what_transformers_answers(
    kind: str, stored: str, towers: int, size_px: int, tmp_path: Path
) -> None:
    encoder = pretrained(saved(tmp_path, stored, towers), kind, size_px)
    model = transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True).eval()
    tower = getattr(model, "vision_model", model)
    options = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    normal = (pixels(size_px=size_px) / 255 - encoder.mean) / encoder.std
    with torch.no_grad():
        expected = tower(pixel_values=normal, **options).last_hidden_state[:, -((size_px // 8) ** 2) :]
        found = encoder.eval()(pixels(size_px=size_px))
    assert encoder.grid == size_px // 8
    torch.testing.assert_close(found.flatten(1, 2), expected)
    assert not any("text" in name or "head" in name for name, _ in encoder.model.named_parameters())


def test_the_processors_normalisation_counts(tmp_path: Path) -> None:
    folder = saved(tmp_path, "siglip")
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    assert pretrained(folder, "siglip").std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.7] * 3, "image_std": [0.8] * 3}))
    assert pretrained(folder, "siglip").mean.flatten().tolist() == pytest.approx([0.7] * 3)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, **values}))
    assert pretrained(folder, "siglip").std.flatten().tolist() == [1, 1, 1]


def test_a_checkpoint_for_any_shape_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "siglip2")
    with pytest.raises(CheckpointError, match=r"NaFlex.*google/siglip2-base-patch16-224.*model\.vision\.pretrained"):
        pretrained(folder, "siglip2")


def test_a_checkpoint_of_another_type_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "clip")
    with pytest.raises(
        CheckpointError, match=r"'clip_vision_model' where model\.vision\.type is dinov2; allowed: dinov2"
    ):
        pretrained(folder, "dinov2")


def test_weights_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path, "siglip")
    weights = load_file(folder / "model.safetensors")
    removed = weights.pop("post_layernorm.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"lacks 1 of the vision encoder's weights, such as post_layernorm\.weight"
    ):
        pretrained(folder, "siglip")
    save_file({**weights, "post_layernorm.weight": removed[:3]}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        pretrained(folder, "siglip")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        pretrained(folder, "siglip")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no safetensors weights"):
        pretrained(folder, "siglip")
