from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from manyscope.errors import DataError
from manyscope.scopes.panoramas.data.room import Item, Room
from manyscope.scopes.panoramas.data.turns import DIRECTIONS
from manyscope.scopes.panoramas.model import lessons as module
from manyscope.scopes.panoramas.model.chat import IGNORED
from manyscope.scopes.panoramas.model.lessons import Lessons, view_of_direction
from manyscope.scopes.panoramas.model.network import Lesson
from manyscope.scopes.panoramas.settings import ViewSettings
from manyscope.scopes.panoramas.views.strategies import find_views
from small_pano import small_network

FINETUNE = Lesson("finetune", ("projector", "language"))
QUESTIONS = ("colour", "shape", "count", "exists", "opposite")


@pytest.fixture(scope="module")
def network(rooms):
    return small_network(rooms)


def spoken(network, batch, row):
    """The turns of a row as text."""
    text, found = [], []
    for token, label in zip(batch["ids"][row].tolist(), batch["labels"][row].tolist(), strict=True):
        text.append(network.chat.tokenizer.decode([token]))
        if label == network.chat.end:
            found.append(" ".join(text))
            text = []
    return found


def test_a_batch_is_a_function_of_seed_and_step(rooms, network):
    def made(seed):
        lessons = Lessons(rooms, network, FINETUNE, seed, types=QUESTIONS, turns=6, look=2)
        return lessons.train_batch(lessons.train_schedule(4, seed).batch(5))

    first, again, other = made(3), made(3), made(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["ids"][:, :20], other["ids"][:, :20])


def test_a_share_of_a_batch_is_what_it_is_in_the_whole(rooms, network):
    lessons = Lessons(rooms, network, FINETUNE, 0, types=QUESTIONS, turns=4)
    rows = lessons.train_schedule(4, 0).batch(2)
    whole, part = lessons.train_batch(rows), lessons.train_batch(rows[1::2])
    assert torch.equal(whole["pixels"][1::2], part["pixels"])
    size = part["ids"].shape[1]
    assert torch.equal(whole["ids"][1::2, :size], part["ids"])


def test_turns_are_of_the_changed_room(rooms, network):
    """Whatever a turn says of a direction is what the view of that direction shows."""
    lessons = Lessons(rooms, network, Lesson("resampler", ("projector",)), 0, types=("look",))
    seen = set()
    for step in range(6):
        rows = lessons.train_schedule(4, 0).batch(step)
        batch = lessons.train_batch(rows)
        for row, (place, _) in enumerate(rows):
            picture = int(rooms.pictures_of("train")[place])
            says = {t.split(" ")[1]: " ".join(t.split(" ")[3:]) for t in spoken(network, batch, row)}
            assert set(says) == set(DIRECTIONS)
            for turn in range(0, 360, 45):
                for mirror in (False, True):
                    room = rooms.rooms[picture].changed(turn, mirror)
                    told = {t.direction: t.answer for t in room.turns(("look",), np.random.default_rng(0))}
                    own = rooms.pixels[picture]
                    order = [(-s if mirror else s) + (turn // 45 if mirror else -(turn // 45)) for s in range(8)]
                    views = np.stack([own[s % 8][..., ::-1] if mirror else own[s % 8] for s in order])
                    if np.array_equal(views, batch["pixels"][row].numpy()):
                        assert says == told
                        seen.add((turn, mirror))
    assert len(seen) > 6  # several changes were met


def test_cached_tokens_are_those_of_the_views(rooms, network, tmp_path):
    plain = Lessons(rooms, network, FINETUNE, 0, types=QUESTIONS)
    cached = Lessons(rooms, network, FINETUNE, 0, types=QUESTIONS, cache=tmp_path)
    network.eval()
    rows = plain.train_schedule(4, 0).batch(1)
    pixels, tokens = plain.train_batch(rows)["pixels"], cached.train_batch(rows)["tokens"]
    with torch.no_grad():
        torch.testing.assert_close(tokens.float(), network.see(pixels), rtol=1e-2, atol=1e-3)
    place = next(iter(cached.validation_schedule(2)))
    with torch.no_grad():
        expected = network.see(plain.validation_batch(place)["pixels"])
    torch.testing.assert_close(cached.validation_batch(place)["tokens"].float(), expected, rtol=1e-2, atol=1e-3)
    assert not list(tmp_path.iterdir())  # the cache leaves nothing behind


def test_a_room_that_has_no_turn_when_turned_is_shown_as_it_is(prepared, rooms, network):
    """Else a batch without any would have a loss that is no number."""
    data = type(rooms)(prepared)
    data.rooms = [Room((Item(0.0, 2.0, 0.6, "red", "ball"),), ("ball",), ("colour",))] * len(data.pictures)
    lessons = Lessons(data, network, FINETUNE, 0, types=("colour",))
    rows = lessons.train_schedule(8, 0).batch(0)
    batch = lessons.train_batch(rows)
    assert (batch["labels"] != IGNORED).any(1).all()
    between = 0  # two directions that are asked for
    for row, (place, key) in enumerate(rows):
        variant = lessons._variants.all[int(np.random.default_rng((0, int(key))).integers(16))]
        between += variant.turn_deg % 90 != 0
        if variant.turn_deg % 90:
            picture = data.pictures_of("train")[place]
            assert np.array_equal(batch["pixels"][row].numpy(), data.pixels[picture])
            assert spoken(network, batch, row)[0].startswith("what color is the object in front of you")
    assert between


def test_each_process_computes_tokens_on_its_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert module._device() == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")  # as Lightning numbers the processes that it starts
    assert module._device() == "cuda:3"
    for name, value in {"STEP_NUM_TASKS": "8", "STEP_NUM_NODES": "4", "LOCALID": "1", "PROCID": "5"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert module._device() == "cuda:1"


def test_a_full_disk_is_said_before_tokens_are_cached(rooms, network, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(DataError, match=r"the disk is full .*; free some space"):
        Lessons(rooms, network, FINETUNE, 0, types=QUESTIONS, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_validation_asks_the_same_each_time(rooms, network):
    lessons = [Lessons(rooms, network, FINETUNE, seed, types=QUESTIONS, turns=5) for seed in (0, 1)]
    first, second = [lesson.validation_batch(np.arange(3)) for lesson in lessons]
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_look_turns_are_mixed_in(rooms, network):
    lessons = Lessons(rooms, network, FINETUNE, 0, types=("count",), turns=4, look=2)
    turns = spoken(network, lessons.train_batch(lessons.train_schedule(2, 0).batch(0)), 0)
    assert sum(turn.startswith("look") for turn in turns) == 2
    assert sum(turn.startswith("how many") for turn in turns) == 2


def test_the_blind_see_nothing(rooms, network):
    lessons = Lessons(rooms, network, Lesson("blind", ("language",), blind=True), 0, types=QUESTIONS)
    batch = lessons.train_batch(lessons.train_schedule(2, 0).batch(0))
    assert not {"pixels", "tokens"} & set(batch)
    assert batch["mask"].shape[-1] == len(network.chat.before) + batch["ids"].shape[1]


def test_vision_learns_without_turns(rooms, network):
    lessons = Lessons(rooms, network, Lesson("vision", ("vision",), overlap_weight=1, answers=False), 0)
    batch = lessons.train_batch(lessons.train_schedule(2, 0).batch(0))
    assert set(batch) == {"pixels"}
    assert lessons.train_size == len(rooms.pictures_of("train"))


def test_no_turn_of_the_wanted_types_is_an_error(prepared, network, rooms):
    (prepared / "rooms.parquet").rename(prepared / "hidden")
    try:
        table = type(rooms)(prepared)
        assert table.rooms is None
        lessons = Lessons(table, network, FINETUNE, 0, types=("count",), turns=2)
        turns = spoken(network, lessons.train_batch(lessons.train_schedule(2, 0).batch(0)), 0)
        assert len(turns) == 2
        assert all(turn.startswith("how many") for turn in turns)
        for name, remedy in {
            "finetune": r"change train\.finetune\.types",
            "one_view": r"set train\.resampler\.one_view_epochs to 0",
            "blind": r"change train\.finetune\.types",
        }.items():
            lesson = Lesson(name, ("language",))
            with pytest.raises(DataError, match=rf"the split 'train' has a turn of the types where; .*; {remedy}$"):
                Lessons(table, network, lesson, 0, types=("where",))
    finally:
        (prepared / "hidden").rename(prepared / "rooms.parquet")


def test_answers_alone_are_learned(rooms, network):
    lessons = Lessons(rooms, network, FINETUNE, 0, types=QUESTIONS, turns=3)
    batch = lessons.train_batch(lessons.train_schedule(3, 0).batch(0))
    for row in range(3):
        learned = [label for label in batch["labels"][row].tolist() if label != IGNORED]
        answers = [turn.rsplit("<|assistant|> ")[1] for turn in spoken(network, batch, row)]
        words = [word for answer in answers for word in [*answer.split(), "<|end|>"]]
        assert [network.chat.tokenizer.decode([label]) for label in learned] == words


def test_the_view_of_a_direction():
    eight = find_views(ViewSettings(strategy="e2p", fov_deg=60, overlap=0.25, pitch_deg=-15))
    assert view_of_direction(eight) == {name: number for number, name in enumerate(DIRECTIONS)}
    four = find_views(ViewSettings(strategy="cubemap"))
    assert set(view_of_direction(four)) == {"front", "right", "back", "left"}
    tiles = find_views(ViewSettings(strategy="anyres_e2p"))
    assert view_of_direction(tiles)["front"] == 1  # behind the global view
