"""What each part of the training is fed: panoramas with some turns each, from tables or from rooms."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyscope.data.schedule import ShuffledSchedule
from manyscope.errors import DataError
from manyscope.log import progress
from manyscope.scopes.panoramas.data.panoramas import Panoramas
from manyscope.scopes.panoramas.data.turns import DIRECTIONS, Turn
from manyscope.scopes.panoramas.model.network import Lesson, PanoramaModel
from manyscope.scopes.panoramas.model.packing import pack
from manyscope.scopes.panoramas.model.variants import Variants
from manyscope.scopes.panoramas.views.geometry import Views
from manyscope.tables.whole import explaining_full_disk, reserve
from manyscope.training.environment import environment
from manyscope.training.launch import placement

LOOK = "look"
"""The type of turns that ask what is in a direction."""
# Of lessons that have no section of their own with types.
_REMEDIES = {"one_view": "set train.resampler.one_view_epochs to 0", "blind": "change train.finetune.types"}
_CLOSE_DEG = 22.5
_VALIDATION = 2**32 - 1  # in the place of a training's seed: validation asks the same each time


class Lessons:
    """The training data of one part of the training.

    Every choice, of turns and of how a room is turned, comes from (seed, place of the panorama in the order of the
    training) alone.

    Args:
        network: whose chat makes tokens, and whose tokens are cached; it must not learn what is cached.
        types: of turns; empty for every type of the table.
        turns: at most so many of a panorama in a step.
        look: of these, so many of the type look besides.
        one_view: each turn sees the view of its direction alone.
        change: turn and mirror rooms.
        cache: a folder for the tokens of all views, computed once; None computes them in each step.

    Raises:
        DataError: no panorama has a turn of these types.
    """

    def __init__(
        self, data: Panoramas, network: PanoramaModel, lesson: Lesson, seed: int, *, types: Sequence[str] = (),
        turns: int = 16, look: int = 0, one_view: bool = False, change: bool = True, cache: Path | None = None,
    ) -> None:  # fmt: skip
        self._data, self._chat, self._lesson, self._seed = data, network.chat, lesson, seed
        self._types, self._turns, self._look, self._one_view = tuple(types), turns, look, one_view
        self._view_of = [] if lesson.blind else network.projector.views
        self._shared_place = network.projector.shared_place
        self._own = view_of_direction(data.views) if one_view else {}
        self._variants = Variants(data.views, change and data.rooms is not None)
        self._pictures = {split: self._with_turns(split) for split in ("train", "validation")}
        self._seen: dict[str, np.ndarray] | None = None
        if cache is not None and not lesson.blind:
            self._seen = {
                "train": _tokens(network, data, self._pictures["train"], self._variants, cache),
                "validation": _tokens(network, data, self._pictures["validation"], Variants(data.views, False), cache),
            }

    @property
    def train_size(self) -> int:
        return len(self._pictures["train"])

    def train_schedule(self, batch_size: int, seed: int) -> KeyedSchedule:
        return KeyedSchedule(self.train_size, batch_size, seed)

    def train_batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        return self._batch("train", [(int(place), (self._seed, int(key))) for place, key in np.asarray(indices)])

    def validation_schedule(self, batch_size: int) -> Iterable[np.ndarray]:
        places = np.arange(len(self._pictures["validation"]))
        return (places[first : first + batch_size] for first in range(0, len(places), batch_size))

    def validation_batch(self, positions: Sequence[int] | np.ndarray) -> dict[str, Any]:
        return self._batch("validation", [(int(place), (_VALIDATION, int(place))) for place in positions])

    def _batch(self, split: str, wanted: Sequence[tuple[int, tuple[int, int]]]) -> dict[str, Any]:
        pixels, tokens, rows, seen = [], [], [], []
        for place, key in wanted:
            rng = np.random.default_rng(key)
            number = int(rng.integers(len(self._variants.all))) if split == "train" else 0
            variant, picture = self._variants.all[number], int(self._pictures[split][place])
            if self._lesson.answers:
                chosen = self._choose(picture, variant.turn_deg, variant.mirror, rng)
                if not chosen:
                    # A turned room may have no turn of the types, such as colour where nothing stands straight ahead or
                    # at a side any more. Were it so of a whole batch, its loss would be 0 / 0. As it was drawn, each
                    # room has one, see _with_turns.
                    variant = self._variants.all[0]
                    chosen = self._choose(picture, variant.turn_deg, variant.mirror, rng)
                rows.append([self._chat.encode(turn.question, turn.answer) for turn in chosen])
                seen.append([self._own.get(turn.direction) for turn in chosen])
            if self._seen is not None:
                tokens.append(self._seen[split][place][list(variant.sources)])
            elif not self._lesson.blind:
                sources = [self._variants.sources[source] for source in variant.sources]
                pixels.append(np.stack([source.apply(self._data.pixels[picture]) for source in sources]))
        batch: dict[str, Any] = {}
        if tokens:
            batch["tokens"] = torch.from_numpy(np.stack(tokens))
        if pixels:
            batch["pixels"] = torch.from_numpy(np.stack(pixels))
        if rows:
            padding = self._chat.tokenizer.pad_token_id
            only = seen if self._one_view else None
            batch |= pack(rows, len(self._chat.before), self._view_of, padding, self._shared_place, only)
        return batch

    def _choose(self, picture: int, turn_deg: float, mirror: bool, rng: np.random.Generator) -> list[Turn]:
        """Some of the turns of a panorama that is turned and mirrored, in random order."""
        rooms = self._data.rooms
        if rooms is None:
            turns = [t for t in self._data.turns.get(picture, ()) if not self._types or t.type in self._types]
            return [turns[i] for i in rng.permutation(len(turns))[: self._turns]]
        room = rooms[picture].changed(turn_deg, mirror)
        look = room.turns((LOOK,), rng) if self._look else []
        turns = room.turns(self._types or room.questions, rng)
        some = [look[i] for i in rng.permutation(len(look))[: self._look]]
        return some + [turns[i] for i in rng.permutation(len(turns))[: self._turns - len(some)]]

    def _with_turns(self, split: str) -> np.ndarray:
        """Rows of the pictures of a split that have a turn to be learned."""
        pictures = self._data.pictures_of(split)
        if self._lesson.answers:
            rng = np.random.default_rng(0)
            pictures = np.array([row for row in pictures if self._choose(int(row), 0, False, rng)], np.int64)
        if not len(pictures):
            known = sorted({turn.type for turns in self._data.turns.values() for turn in turns})
            wanted = ", ".join(self._types) or "of the table"
            raise DataError(
                f"no panorama of the split {split!r} has a turn of the types {wanted}",
                place=self._data.folder / "samples.parquet",
                allowed=", ".join(known),
                remedy=_REMEDIES.get(self._lesson.name, f"change train.{self._lesson.name}.types"),
            )
        return pictures


class KeyedSchedule:
    """Shuffled positions, each with the number that it has in the order of the whole training."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self._order = ShuffledSchedule(size, batch_size, seed)

    @property
    def steps_per_epoch(self) -> float:
        return self._order.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """(batch_size, 2) int64: position and number."""
        places = self._order.batch(step)
        return np.stack([places, step * self._order.batch_size + np.arange(len(places))], 1)


def view_of_direction(views: Views) -> dict[str, int]:
    """For each of DIRECTIONS the view whose middle is nearest in yaw; none for those to which no view looks."""
    found = {}
    for number, direction in enumerate(DIRECTIONS):
        yaw = number * 360 / len(DIRECTIONS)
        apart = [
            (abs((view.yaw_deg - yaw + 180) % 360 - 180), abs(view.pitch_deg), i)
            for i, view in enumerate(views.views)
            if not view.is_global
        ]
        if apart and min(apart)[0] < _CLOSE_DEG:
            found[direction] = min(apart)[2]
    return found


def _device() -> str:
    """On which this process will train; Lightning says so only when the training begins."""
    where = placement()
    return f"cuda:{environment(where).local_rank()}" if where.accelerator == "gpu" else "cpu"


@torch.inference_mode()
def _tokens(
    network: PanoramaModel, data: Panoramas, pictures: np.ndarray, variants: Variants, folder: Path
) -> np.ndarray:
    """What the resampler makes of every view of every variant, (pictures, sources, tokens, width) float16, in a file
    that has lost its name, and ends with the process.

    Raises:
        DataError: the disk is full.
    """
    device = _device()
    network.to(device).eval()
    shape = (len(pictures), len(variants.sources), network.resampler.tokens, network.resampler.width)
    with explaining_full_disk(folder / "tokens"), tempfile.NamedTemporaryFile(dir=folder, prefix=".tokens.") as file:
        tokens = np.memmap(file, np.float16, "w+", shape=shape)
        reserve(Path(file.name))
    for place, picture in enumerate(progress(pictures.tolist(), "tokens of the views", len(pictures))):
        pixels = np.stack([source.apply(data.pixels[picture]) for source in variants.sources])
        tokens[place] = network.see(torch.from_numpy(pixels).to(device)).half().cpu().numpy()
    network.train().to("cpu")
    return tokens
