from __future__ import annotations

import pytest
import torch
import transformers

from manyscope.errors import SettingsError
from manyscope.scopes.panoramas.model.chat import IGNORED
from manyscope.scopes.panoramas.model.language import load_tokenizer
from manyscope.scopes.panoramas.model.packing import hide, pack, places
from small_pano import small_network, small_settings

TURNS = [("look left", "blue cube"), ("how many ball objects are there ?", "two"), ("where is the red cone ?", "back")]


@pytest.fixture(scope="module")
def network(rooms):
    return small_network(rooms)


def scores(network, tokens, batch):
    """Logits at the places of the turns."""
    ids = batch["ids"]
    before = network.language.words(torch.tensor(network.chat.before)).expand(len(ids), -1, -1)
    vectors = torch.cat([before, network.projector(tokens), network.language.words(ids)], 1)
    states = network.language.states(vectors, batch["mask"], batch["positions"])
    return network.language.scores(states[:, -ids.shape[1] :])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3"])
def test_packed_turns_are_computed_as_if_each_were_alone(rooms, kind):
    network = small_network(rooms, f"model.language.type={kind}")
    tokens = torch.randn(2, 8, 16, 8)
    encoded = [network.chat.encode(*turn) for turn in TURNS]
    packed = pack([encoded, encoded[1:]], len(network.chat.before), network.projector.views, 0)
    together = scores(network, tokens, packed)
    first = 0
    for turn in encoded:
        alone = pack([[turn]], len(network.chat.before), network.projector.views, 0)
        expected = scores(network, tokens[:1], alone)[0]
        torch.testing.assert_close(together[0, first : first + len(turn.ids)], expected, rtol=1e-4, atol=1e-5)
        first += len(turn.ids)


@torch.no_grad()
@pytest.mark.parametrize("order", ["sequence", "shared"])
def test_generation_goes_on_from_what_training_saw(rooms, order):
    """The word that the packed turn gives the highest score is the first one of the answer to the same question, padded
    to the left among others of other lengths."""
    network = small_network(rooms, f"model.projector.order={order}")
    tokens = torch.randn(1, 8, 16, 8)
    encoded = [network.chat.encode(*turn) for turn in TURNS]
    packed = pack([encoded], len(network.chat.before), network.projector.views, 0, order == "shared")
    together, first, expected = scores(network, tokens, packed)[0], 0, []
    for turn in encoded:
        begins = next(i for i, label in enumerate(turn.labels) if label != IGNORED)
        expected.append(network.chat.text([int(together[first + begins].argmax())]))
        first += len(turn.ids)
    seen = network.projector(tokens).expand(3, -1, -1)
    asked = [network.chat.ask(question) for question, _ in TURNS]
    for longest in (max(map(len, asked)), 20):
        assert network.answer(seen, asked, longest, 1) == expected


@torch.no_grad()
def test_a_turn_of_one_view_sees_no_other(network):
    tokens = torch.randn(1, 8, 16, 8)
    encoded = [network.chat.encode("look left", "blue cube"), network.chat.encode("look front", "nothing")]
    batch = pack([encoded], len(network.chat.before), network.projector.views, 0, seen=[[6, None]])
    before = scores(network, tokens, batch)[0]
    changed = tokens.clone()
    changed[:, 3] += 1
    after = scores(network, changed, batch)[0]
    size = len(encoded[0].ids)
    torch.testing.assert_close(after[:size], before[:size])
    assert (after[size:] - before[size:]).abs().max() > 1e-4
    changed = tokens.clone()
    changed[:, 6] += 1
    assert (scores(network, changed, batch)[0][:size] - before[:size]).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kinds", [("sliding", "full"), ("sliding", "sliding")])
def test_layers_with_a_window_see_no_farther_than_in_generation(rooms, tmp_path, kinds):
    tokenizer = load_tokenizer(small_settings().model.language, rooms.words, tmp_path)
    config = transformers.Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=5, layer_types=[f"{kind}_attention" for kind in kinds],
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    changes = (f"model.language.pretrained={tmp_path}", "model.lora.rank=0")
    network = small_network(rooms, *changes)
    tokens = torch.randn(1, 8, 16, 8)
    packed, first, expected = [network.chat.encode(*turn) for turn in TURNS], 0, []
    together = scores(network, tokens, pack([packed], len(network.chat.before), network.projector.views, 0))[0]
    unlimited = small_network(rooms, *changes, "model.language.most_tokens=5")
    assert unlimited.language.window is None
    for turn, (question, _) in zip(packed, TURNS, strict=True):
        asked = network.chat.ask(question)
        made = generated(network, tokens, asked)
        torch.testing.assert_close(together[first + len(asked) - 1], made, rtol=1e-4, atol=1e-5)
        expected.append(made)
        first += len(turn.ids)
    network.language.window, network.language._layers = None, "full_attention"
    without = scores(network, tokens, pack([packed], len(network.chat.before), network.projector.views, 0))[0]
    assert (without - together).abs().max() > 1e-3
    with pytest.raises(SettingsError, match=r"model\.projector\.order: shared.*5 tokens"):
        small_network(rooms, *changes, "model.projector.order=shared")


def generated(network, tokens, asked):
    """Logits of the first word that transformers generates."""
    before = network.language.words(torch.tensor([network.chat.before]))
    vectors = torch.cat([before, network.projector(tokens), network.language.words(torch.tensor([asked]))], 1)
    return network.language.model.generate(
        inputs_embeds=vectors, attention_mask=torch.ones(vectors.shape[:2], dtype=torch.int64), max_new_tokens=1,
        do_sample=False, output_logits=True, return_dict_in_generate=True,
    ).logits[0][0]  # fmt: skip


def test_what_is_hidden_is_seen_by_itself_alone(network):
    encoded = [network.chat.encode(*turn) for turn in TURNS]
    mask = pack([encoded, encoded[:1]], 2, [0, 0, 1, 1], 7)["mask"]
    hidden = torch.tensor([[False, True, False, False], [True, True, False, True]])
    found = hide(mask, hidden, 2)
    for row in range(2):
        for column in range(mask.shape[-1]):
            seen = found[row, 0, :, column]
            if 2 <= column < 6 and hidden[row, column - 2]:
                assert seen.nonzero().flatten().tolist() == [column]
            else:
                assert torch.equal(seen, mask[row, 0, :, column])


def test_rows_of_different_lengths_are_filled_with_what_is_not_learned(network):
    encoded = [network.chat.encode(*turn) for turn in TURNS]
    batch = pack([encoded, encoded[:1]], 1, network.projector.views, 7)
    size = len(encoded[0].ids)
    assert (batch["ids"][1, size:] == 7).all()
    assert (batch["labels"][1, size:] == IGNORED).all()
    assert not batch["mask"][:, 0, : 1 + len(network.projector.views), 1 + len(network.projector.views) :].any()
    assert batch["mask"].diagonal(dim1=-2, dim2=-1).all()


def test_positions(network):
    encoded = [network.chat.encode("look left", "blue cube"), network.chat.encode("look front", "nothing")]
    sizes = [len(turn.ids) for turn in encoded]
    batch = pack([encoded], 2, [0, 0, 1], 0)
    assert batch["positions"][0].tolist() == [0, 1, 2, 3, 4, *range(5, 5 + sizes[0]), *range(5, 5 + sizes[1])]
    batch = pack([encoded], 2, [0, 0, 1], 0, shared_place=True)
    assert batch["positions"][0].tolist() == [0, 1, 2, 2, 2, *range(3, 3 + sizes[0]), *range(3, 3 + sizes[1])]
    assert places(2, 0, True) == [0, 1, 2]
