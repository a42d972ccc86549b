from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from manyscope.errors import CheckpointError, ManyscopeError, SettingsError
from manyscope.scopes.panoramas.model.adapters import save_adapters, save_merged
from manyscope.scopes.panoramas.model.fit import plan, stages_before
from manyscope.scopes.panoramas.model.infer import Answers, embed
from manyscope.scopes.panoramas.model.language import load_tokenizer
from manyscope.scopes.panoramas.model.lessons import Lessons
from manyscope.scopes.panoramas.model.names import problems
from manyscope.scopes.panoramas.model.network import Lesson
from manyscope.scopes.panoramas.model.projector import Projector
from manyscope.scopes.panoramas.settings import ProjectorSettings, ResamplerSettings, ViewSettings
from manyscope.scopes.panoramas.views.strategies import find_views
from manyscope.training import checkpoints
from small_pano import small_network, small_settings

PARTS = ("vision", "resampler", "projector", "language", "adapters")


def learning(network):
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    found = {name.split(".")[0] for name in names if "lora_" not in name}
    return found | {"adapters" for name in names if "lora_" in name and name.startswith("language")}


@pytest.mark.parametrize("part", PARTS)
def test_only_what_is_named_learns(rooms, part):
    network = small_network(rooms)
    network.begin(Lesson("some", (part,)))
    assert learning(network) == {part}
    before = {name: p.clone() for name, p in network.named_parameters()}
    lessons = Lessons(rooms, network, network.lesson, 0, types=("count", "look"))
    network.losses(lessons.train_batch(lessons.train_schedule(4, 0).batch(0)))["loss"].backward()
    for name, p in network.named_parameters():
        assert torch.equal(p, before[name])
        own = name.startswith("language.") and "lora_" in name if part == "adapters" else name.startswith(f"{part}.")
        own = own and (part == "adapters" or "lora_" not in name)
        assert (p.grad is not None) == own, name


def test_the_agreement_of_views_teaches_vision_resampler_and_head(rooms):
    network = small_network(rooms)
    network.begin(Lesson("vision", ("vision", "resampler"), overlap_weight=1.0, answers=False))
    assert learning(network) == {"vision", "resampler", "head"}
    lessons = Lessons(rooms, network, network.lesson, 0)
    losses = network.losses(lessons.train_batch(lessons.train_schedule(4, 0).batch(0)))
    assert set(losses) >= {"loss", "overlap", "invariance", "variance", "covariance"}
    torch.testing.assert_close(losses["loss"], losses["overlap"])


def test_both_losses_add_up(rooms):
    network = small_network(rooms)
    network.begin(Lesson("resampler", ("resampler", "projector"), overlap_weight=0.1))
    assert learning(network) == {"resampler", "projector"}
    lessons = Lessons(rooms, network, network.lesson, 0, types=("look",))
    losses = network.losses(lessons.train_batch(lessons.train_schedule(4, 0).batch(0)))
    torch.testing.assert_close(losses["loss"], losses["answers"] + 0.1 * losses["overlap"])


def test_the_vision_encoder_has_a_rate_of_its_own(rooms):
    network = small_network(rooms)
    network.begin(Lesson("one_view", ("vision", "projector"), vision_rate=0.1))
    fast, slow = network.parameter_groups(1e-2)
    assert (slow["lr"], fast["lr"]) == (pytest.approx(1e-3), 1e-2)
    assert {id(p) for p in slow["params"]} == {id(p) for p in network.vision.parameters() if p.requires_grad}


def test_without_a_grid_views_cannot_agree(rooms):
    perceiver = ResamplerSettings(name="perceiver", width=8)
    network = small_network(rooms, "model.projector.parts=null", resampler=perceiver)
    with pytest.raises(ManyscopeError, match=r"model\.overlap: the resampler keeps no grid"):
        network.begin(Lesson("vision", ("resampler",), overlap_weight=1.0, answers=False))


def test_parts_have_to_divide_the_grid(rooms):
    with pytest.raises(SettingsError, match=r"3 parts of a grid of 4 x 4"):
        small_network(rooms, "model.projector.parts=3")


def projector(views, **settings):
    torch.manual_seed(0)
    given = ProjectorSettings(**{"parts": 2, "hidden": 16, **settings})
    return Projector(given, find_views(ViewSettings(strategy=views, size_px=16)), 4, 16, 8, 12)


@torch.no_grad()
def test_tokens_of_overlapping_views_are_dropped():
    whole, fewer = projector("anyres_e2p", parts=4), projector("anyres_e2p", parts=4, drop_overlap=True)
    assert len(whole.views) == 9 * 16
    assert len(fewer.views) < len(whole.views)
    assert set(fewer.views) == set(range(9))
    assert fewer.views.count(0) == 16  # the global view stays whole
    tokens = torch.randn(1, 9, 16, 8)
    kept = {tuple(row) for row in whole(tokens)[0].round(decimals=4).tolist()}
    assert {tuple(row) for row in fewer(tokens)[0].round(decimals=4).tolist()} < kept
    with pytest.raises(SettingsError, match="nothing is left"):
        projector("anyres_e2p", drop_overlap=True)


@torch.no_grad()
def test_a_part_is_of_its_place():
    """Of a grid of 4 x 4 the token in row 1 and column 2 is in the upper right one of 2 x 2 parts."""
    made = projector("e2p")
    tokens = torch.randn(1, 8, 16, 8)
    before = made(tokens)
    for place in range(16):
        changed = tokens.clone()
        changed[0, 3, place] += 1
        moved = (made(changed) - before).abs().amax(-1)[0] > 1e-6
        row, column = divmod(place, 4)
        assert moved.nonzero().flatten().tolist() == [3 * 4 + 2 * (row // 2) + column // 2]


def test_pretrained_weights_that_never_learn_stay_where_they_are(rooms, tmp_path):
    base = small_network(rooms)
    folder = tmp_path / "model"
    tokenizer = load_tokenizer(small_settings().model.language, rooms.words, tmp_path)
    plain = small_network(rooms, "model.lora.rank=0", seed=5)
    plain.language.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    changes = (f"model.language.pretrained={folder}",)
    network = small_network(rooms, *changes, seed=1)
    for name, p in plain.language.model.named_parameters():
        assert torch.equal(dict(network.language.model.named_parameters())[_adapted(network, name)], p)
    network.begin(Lesson("finetune", ("adapters",)))
    assert all(module.training for module in network.modules())  # else adapters would learn without their dropout
    own = [name for name in network.state_dict() if name.startswith(("language.", "blind."))]
    assert own
    assert all("lora_" in name for name in own)
    assert any("lora_" not in name for name in base.state_dict() if name.startswith("language."))
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(0.01)
    checkpoints.save_weights(tmp_path / "w.ckpt", network, "panoramas", {"name": "panorama"})
    with pytest.raises(
        ManyscopeError, match=r"^train\.one_view\.trains: language\..* would learn, which is not stored"
    ):
        network.begin(Lesson("one_view", ("vision", "language")))
    with pytest.raises(ManyscopeError, match="not stored"):
        network.begin(Lesson("blind", ("language",), blind=True))
    network.begin(Lesson("finetune", ("projector", "adapters")))
    assert learning(network) == {"projector", "adapters"}
    other = small_network(rooms, *changes, seed=2)
    checkpoints.load_weights(tmp_path / "w.ckpt", other, "panoramas", {"name": "panorama"})
    for (name, a), (_, b) in zip(network.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_pretrained_language_model_that_is_not_whole_is_refused(rooms, tmp_path, capfd):
    folder = tmp_path / "model"
    small_network(rooms, "model.lora.rank=0").language.model.save_pretrained(folder)
    load_tokenizer(small_settings().model.language, rooms.words, tmp_path).save_pretrained(folder)
    changes, file = (f"model.language.pretrained={folder}",), folder / "model.safetensors"
    capfd.readouterr()
    small_network(rooms, *changes)
    assert capfd.readouterr() == ("", "")  # no bar
    weights = load_file(file)
    lost = next(name for name in weights if "q_proj" in name)
    save_file({name: p for name, p in weights.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lacks 1 of the language model's weights, such as {lost}; fetch"):
        small_network(rooms, *changes)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="the language model cannot be loaded"):
        small_network(rooms, *changes)


def _adapted(network, name):
    names = dict(network.language.model.named_parameters())
    return name if name in names else name.replace(".weight", ".base_layer.weight")


def test_adapters_are_read_by_peft(rooms, tmp_path):
    from peft import PeftModel

    network = small_network(rooms)
    with torch.no_grad():
        for name, p in network.language.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.5)
    save_adapters(network, tmp_path)
    plain = small_network(rooms, "model.lora.rank=0").language.model
    state = {
        name.replace(".base_layer.", "."): p
        for name, p in network.language.model.state_dict().items()
        if "lora_" not in name
    }
    plain.load_state_dict(state)
    ids = torch.tensor([[3, 8, 9, 4]])
    with torch.no_grad():
        own = network.language.model(input_ids=ids).logits
        assert (plain(input_ids=ids).logits - own).abs().max() > 1e-3
        adapted = PeftModel.from_pretrained(plain, tmp_path / "adapters").eval()
        torch.testing.assert_close(adapted(input_ids=ids).logits, own)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, own, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["r"] == 2


@torch.no_grad()
def test_a_merged_model_is_one_to_start_from(rooms, tmp_path):
    network = small_network(rooms)
    for name, p in network.language.named_parameters():
        if "lora_B" in name:
            p.normal_(0, 0.5)
    save_merged(network, tmp_path)
    other = small_network(rooms, f"model.language.pretrained={tmp_path / 'language'}", "model.lora.rank=0", seed=3)
    ids = torch.tensor([[3, 8, 9, 4]])
    own = network.language.model(input_ids=ids).logits
    torch.testing.assert_close(other.language.model(input_ids=ids).logits, own, rtol=1e-4, atol=1e-5)
    assert other.chat.ask("look left") == network.chat.ask("look left")


# ------------------------------------------------------------------------------------------------------ answering
def test_answers_do_not_depend_on_what_else_is_asked(rooms):
    network = small_network(rooms)
    ids = rooms.samples["sample_id"].to_list()[:60]
    whole = list(Answers(network, rooms, 16, 3).of(ids))
    found = {s: (v, a, b) for o in whole for s, v, a, b in
             zip(o.samples, o.embedding, o.columns["answer"], o.columns["blind_answer"], strict=True)}  # fmt: skip
    assert set(found) == set(ids)
    for part in (ids[::3], ids[5:6]):
        for objects in Answers(network, rooms, 16, 3).of(part):
            for s, v, a, b in zip(objects.samples, objects.embedding, objects.columns["answer"],
                                  objects.columns["blind_answer"], strict=True):  # fmt: skip
                assert np.array_equal(v, found[s][0])
                assert (a, b) == found[s][1:]


def test_the_blind_answer_the_same_question_alike(rooms):
    network = small_network(rooms)
    objects = list(Answers(network, rooms, 16, 3).of(rooms.samples["sample_id"].to_list()))
    question = dict(rooms.samples.select("sample_id", "question").iter_rows())
    said = {}
    for some in objects:
        for sample, answer in zip(some.samples, some.columns["blind_answer"], strict=True):
            assert said.setdefault(question[sample], answer) == answer
    assert len(said) > 5


def test_an_answer_is_right_if_it_equals_a_reference_and_unknown_without_one(rooms, monkeypatch):
    network = small_network(rooms)
    ids = rooms.samples["sample_id"].to_list()[:12]

    def said(column, ids):
        found = list(Answers(network, rooms, 16, 3).of(ids))
        assert all(o.columns["right"].dtype == pl.Boolean for o in found)
        return {s: v for o in found for s, v in zip(o.samples, o.columns[column], strict=True)}

    answer = said("answer", ids)[ids[0]]
    references = {ids[0]: ["never said", f" {answer.upper()}" + "." * bool(answer)], ids[1]: ["never said"]}
    monkeypatch.setitem(vars(rooms), "references", references)
    assert said("right", ids) == {**dict.fromkeys(ids), ids[0]: True, ids[1]: False}
    assert said("right", ids[5:6]) == {ids[5]: None}


def test_half_a_vector_finds_its_half(rooms):
    network = small_network(rooms)
    answers = Answers(network, rooms, 16, 3)
    ids = rooms.samples["sample_id"].to_list()
    vectors = np.concatenate([objects.embedding for objects in answers.of(ids)])
    order = [s for objects in answers.of(ids) for s in objects.samples]
    row = rooms.samples.filter(rooms.samples["sample_id"] == order[40])
    question, picture = row["question"][0], int(row["picture"][0])
    by_id = dict(zip(rooms.samples["sample_id"], rooms.samples["question"], strict=True))
    nearest = np.linalg.norm(vectors - embed(answers, question), axis=1).argmin()
    assert by_id[order[nearest]] == question
    nearest = np.linalg.norm(vectors - embed(answers, np.asarray(rooms.pixels[picture])), axis=1).argmin()
    assert int(rooms.samples.filter(rooms.samples["sample_id"] == order[nearest])["picture"][0]) == picture


# --------------------------------------------------------------------------------------------------------- stages
def test_the_plan():
    settings = small_settings()
    parts = plan(settings.train, settings.model)
    assert [part.lesson.name for part in parts] == ["vision", "one_view", "resampler", "finetune", "blind"]
    assert [part.stage for part in parts] == ["vision", None, "resampler", "finetune", None]
    assert len({part.train.seed for part in parts}) == 5
    assert parts[-1].lesson.trains == ("language",)  # its own, of random numbers
    one = small_settings("train.stages=[resampler]", "train.resampler.one_view_epochs=0", "train.resampler.lr=7e-4")
    only, blind = plan(one.train, one.model)
    assert (only.lesson.name, only.train.lr, only.train.batch_size) == ("resampler", 7e-4, 8)
    # Whatever answers is compared with a model that was taught the same without pictures.
    assert (blind.lesson.name, blind.train.lr, blind.feed["types"]) == ("blind", 7e-4, only.feed["types"])
    agreement = small_settings("train.stages=[vision]")
    assert [part.lesson.name for part in plan(agreement.train, agreement.model)] == ["vision"]


def test_finetune_builds_on_resampler(tmp_path):
    train = small_settings("train.stages=[finetune]").train
    with pytest.raises(SettingsError, match="builds on the stage resampler"):
        stages_before(train, None)
    weights = tmp_path / "train" / "model.ckpt"
    with pytest.raises(CheckpointError, match=r"stages none behind them.*resampler"):
        stages_before(train, weights)
    (weights.parent / "export").mkdir(parents=True)
    state = weights.parent / "export" / "stage_state.json"
    state.write_text(json.dumps({"version": 1, "completed": ["vision"], "parts": {}}))
    with pytest.raises(CheckpointError, match=r"stages vision behind them"):
        stages_before(train, weights)
    state.write_text(json.dumps({"version": 1, "completed": ["vision", "resampler"], "parts": {}}))
    assert stages_before(train, weights) == ["vision", "resampler"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("train.stages=[finetune]",), "train.stages: finetune builds on"),
        (("model.lora.rank=0",), "train.finetune.trains: there are no adapters"),
        (("train.vision.trains=[projector]",), "train.vision.trains"),
        (("model.overlap.loss=none",), "the stage vision learns nothing"),
        (("train.finetune.types=[colour, nearer]",), "train.finetune.types: the rooms have no turns 'nearer'"),
        (("train.resampler.trains=[]",), "train.resampler.trains: nothing learns"),
        (("model.language.pretrained=some/model",), "model.language.pretrained"),
    ],
)
def test_problems(changes, said, tmp_path):
    found = list(problems(small_settings(*changes, f"model.weights={tmp_path}")))
    assert any(said in text for text in found), found
    assert not list(problems(small_settings()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("train.stages=[vision, finetune]",), "train.stages: finetune builds on"),
        (("train.vision.trains=[vision]", "train.vision.vision_blocks=0"), "train.vision.vision_blocks: with 0 blocks"),
        (
            ("train.resampler.trains=[vision, projector]", "train.resampler.vision_blocks=2"),
            "train.resampler.vision_blocks: 2 of the vision encoder's 1 blocks",
        ),
        (
            ("train.stages=[resampler]", "train.resampler.overlap_weight=0.1", "model.overlap.loss=none"),
            "train.resampler.overlap_weight: without model.overlap.loss",
        ),
        (("download.source=csv",), "train.finetune.mixed_turns: tables have no turns"),
        (("preprocess.views.size_px=18",), "preprocess.views.size_px: 18 is no multiple of 4"),
        (("model.vision.heads=3",), "model.vision.width: 16 is no multiple of its 3 heads"),
        (("model.resampler.name=masked_drop",), "model.resampler.args: resampler 'masked_drop' refuses them"),
        (("model.projector.parts=3",), "model.projector.parts: 3 parts of a grid of 4 x 4"),
        (("model.projector.parts=null", "model.language.most_tokens=128"), "model.language.most_tokens: 128 has no"),
        (("preprocess.views.overlap=0", "preprocess.views.fov_deg=45"), "model.overlap: no view sees"),
        (("model.language.prompt=look",), "model.language.prompt"),
    ],
)
def test_settings_that_do_not_fit_are_found_without_a_training(changes, said):
    found = list(problems(small_settings(*changes)))
    assert len(found) == 1, found
    assert said in found[0]


def test_a_resampler_without_a_grid_is_found_without_a_training():
    settings = small_settings()
    queries = ResamplerSettings(name="qformer", width=8, args={"heads": 2})
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"resampler": queries})})
    parts, overlap = problems(settings)
    assert parts.startswith("model.projector.parts: 1 parts of no grid")
    assert overlap.startswith("model.overlap: the resampler keeps no grid")


_MARKED = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}"


@pytest.mark.parametrize("text", [_MARKED, _MARKED + "{% endfor %}{{ raise_exception('No') }}", "a"])
def test_a_template_that_cannot_be_used_is_found_without_a_training(text, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(text)
    (found,) = problems(small_settings(f"model.language.chat_template={file}"))
    assert found.startswith("model.language.chat_template")


RESAMPLERS = {
    "mlp": {"depth": 2, "hidden": 16},
    "qformer": {"queries": 5, "depth": 1, "heads": 2},
    "perceiver": {"latents": 5, "depth": 1, "heads": 2, "head_width": 4},
    "c_abstractor": {"hidden": 8, "blocks": 1},
    "spatial_pool": {"factor": 2},
    "masked_drop": {"keep": [0.3, 0.7]},
}


@pytest.mark.parametrize("name", RESAMPLERS)
def test_every_resampler_learns_to_answer(rooms, name):
    resampler = ResamplerSettings(name=name, width=8, args=RESAMPLERS[name])
    network = small_network(rooms, "model.projector.parts=null", "model.language.most_tokens=256", resampler=resampler)
    network.train()
    weight = 0.1 if (network.resampler.grid or 0) > 2 else 0.0  # of 2 x 2 tokens no two look into one direction
    network.begin(Lesson("resampler", ("resampler", "projector"), overlap_weight=weight))
    lessons = Lessons(rooms, network, network.lesson, 0, types=("look",), turns=3, one_view=name == "masked_drop")
    losses = network.losses(lessons.train_batch(lessons.train_schedule(2, 0).batch(0)))
    losses["loss"].backward()
    assert losses["answers"].isfinite()
    for part, p in network.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, part
            assert p.grad.isfinite().all(), part
            assert p.grad.any(), part


@pytest.mark.parametrize("changes", [("model.projector.parts=null",), ("model.projector.parts=2",),
                                     ("model.projector.parts=null", "model.projector.drop_overlap=true")])  # fmt: skip
def test_dropped_tokens_do_not_reach_the_answers(rooms, changes):
    """Only what the resampler lets be seen has a gradient; and in evaluation that is everything."""
    resampler = ResamplerSettings(name="masked_drop", width=8, args={"keep": 0.25})
    network = small_network(rooms, *changes, "model.language.most_tokens=256", resampler=resampler)
    lessons = Lessons(rooms, network, Lesson("resampler", ("projector",)), 0, types=("look",))
    network.begin(lessons._lesson)
    batch = lessons.train_batch(lessons.train_schedule(2, 0).batch(0))
    reached = []
    for training in (True, False):
        network.train(training)
        seen = []
        network.projector.register_forward_hook(lambda _, __, out, seen=seen: (out.retain_grad(), seen.append(out))[1])
        network.losses(batch)["loss"].backward()
        reached.append(seen[0].grad.abs().sum(-1) > 0)
    share = reached[0].float().mean()
    assert 0.15 < share < 0.35
    assert reached[1].all()
    if "drop_overlap" not in changes[-1]:
        of_view = reached[0].unflatten(1, (8, -1)).sum(-1)
        assert (of_view == (4 if changes[0].endswith("null") else 1)).all()
