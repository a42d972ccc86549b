"""The vision-language model: views -> encoder -> resampler -> projector -> language model, and its losses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyscope.errors import ManyscopeError, SettingsError
from manyscope.nn.across import gather
from manyscope.scopes.panoramas.model.chat import IGNORED, Chat
from manyscope.scopes.panoramas.model.language import LORA, Language, load_tokenizer
from manyscope.scopes.panoramas.model.overlap import Head, build_loss
from manyscope.scopes.panoramas.model.packing import hide, places
from manyscope.scopes.panoramas.model.projector import Projector
from manyscope.scopes.panoramas.model.resamplers import build_resampler
from manyscope.scopes.panoramas.model.vision import build_vision
from manyscope.scopes.panoramas.settings import PanoramasModel, Part
from manyscope.scopes.panoramas.views.geometry import Views

logging.getLogger("transformers").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Lesson:
    """What a part of the training minimises, and what learns in it.

    Attributes:
        name: of the part, in curves and folders.
        trains: what learns.
        vision_blocks: of the vision encoder, if it learns, so many of the last blocks; -1 is all of it.
        vision_rate: learning rate of the vision encoder, of the others'.
        overlap_weight: of the agreement of views.
        answers: whether answers are learned.
        blind: whether by the model that sees no picture.
    """

    name: str
    trains: tuple[Part, ...]
    vision_blocks: int = -1
    vision_rate: float = 1.0
    overlap_weight: float = 0.0
    answers: bool = True
    blind: bool = False


class PanoramaModel(nn.Module):
    """
    Args:
        views: of a panorama.
        words: of a language model of random numbers.

    Attributes:
        blind: a second language model of the same kind, for the baseline that sees no picture.

    Raises:
        CheckpointError: a pretrained model is missing or cannot be used.
        SettingsError: the parts do not fit together.
    """

    def __init__(self, settings: PanoramasModel, views: Views, words: Sequence[str]) -> None:
        super().__init__()
        self._settings, self._views = settings, views
        self.vision = build_vision(settings.vision, views.size_px, settings.weights)
        self.resampler = build_resampler(settings.resampler, self.vision.width, self.vision.grid)
        tokenizer = load_tokenizer(settings.language, words, settings.weights)
        self.language = Language(settings.language, settings.lora, tokenizer, settings.weights)
        self.blind = Language(settings.language, settings.lora, tokenizer, settings.weights)
        grid = self.resampler.grid
        self.projector = Projector(
            settings.projector, views, grid, self.resampler.tokens, self.resampler.width, self.language.width
        )
        self._shared_place = self.projector.shared_place
        if self._shared_place and self.language.window is not None:
            raise SettingsError(
                f"model.projector.order: shared has no order in which the {self.language.window} tokens that layers of"
                f" this language model look back could be counted; set order: sequence, or model.language.most_tokens"
                f" to {self.language.window} or less"
            )
        self.chat = Chat(tokenizer, settings.language, len(self.projector.views))
        self.head = Head(self.resampler.width, settings.overlap.hidden)
        self.lesson = Lesson("none", ())
        self._overlap: nn.Module | None = None
        self.register_state_dict_post_hook(_without_fixed)
        self.register_load_state_dict_post_hook(_fixed_may_miss)

    # ----------------------------------------------------------------------------------------------- training
    def begin(self, lesson: Lesson) -> None:
        """From now on learn this.

        Raises:
            ManyscopeError: the views share no place, or their tokens have none, where they shall agree; or what is
                stored nowhere would learn.
        """
        self.lesson = lesson
        self.train()  # pretrained models come without dropout
        self._choose(lesson)
        if lost := [name for name, p in self.named_parameters() if p.requires_grad and _fixed(self, name)]:
            raise ManyscopeError(
                f"{lost[0]} of the pretrained language model would learn, which is not stored beside its adapters",
                place=f"train.{lesson.name}.trains",
                remedy="name adapters in the place of language, or set model.lora.rank to 0",
            )
        self._overlap = None
        if lesson.overlap_weight and not lesson.blind:
            self._overlap = build_loss(self._settings.overlap, self._views, self.resampler.grid)

    def _choose(self, lesson: Lesson) -> None:
        """Let learn what the lesson names."""
        self.requires_grad_(False)
        if lesson.blind:
            for part in lesson.trains:
                _learn(self.blind.learning(part))
            return
        if "vision" in lesson.trains:
            self.vision.learn(lesson.vision_blocks, f"train.{lesson.name}.vision_blocks")
        for name, module in (("resampler", self.resampler), ("projector", self.projector)):
            module.requires_grad_(name in lesson.trains)
        for part in ("language", "adapters"):
            if part in lesson.trains:
                _learn(self.language.learning(part))
        self.head.requires_grad_(lesson.overlap_weight > 0 and not lesson.answers)

    def parameter_groups(self, rate: float) -> list[Any]:
        """What learns; the vision encoder apart, if it has a rate of its own."""
        seeing = {id(p) for p in self.vision.parameters()}
        learning = [p for p in self.parameters() if p.requires_grad]
        apart = [p for p in learning if id(p) in seeing]
        if not apart or self.lesson.vision_rate == 1:
            return learning
        others = [p for p in learning if id(p) not in seeing]
        groups = [{"params": others, "lr": rate}] if others else []  # first, since its rate is the one that is recorded
        return [*groups, {"params": apart, "lr": rate * self.lesson.vision_rate}]

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """
        Args:
            batch: either pixels (panoramas, views, 3, size, size) uint8 or tokens, as `see` makes them; and, where
                answers are learned, what `pack` gives.
        """
        if self.lesson.blind:
            return self._answers(self.blind, None, batch)
        kind = next(self.projector.parameters()).dtype
        tokens = batch["tokens"].to(kind) if "tokens" in batch else self.see(batch["pixels"])
        parts: dict[str, Tensor] = {}
        total = tokens.new_zeros(())
        if self._overlap is not None:
            parts = dict(self._overlap(self.head(tokens)))
            agreement = parts.pop("loss")
            total = total + self.lesson.overlap_weight * agreement
            parts["overlap"] = agreement
        if self.lesson.answers:
            answers = self._answers(self.language, self.projector(tokens), self._with_hidden(batch, len(tokens)))
            total = total + answers["loss"]
            parts |= {"answers": answers["loss"], "words_right": answers["words_right"]}
        return {"loss": total, **parts}

    def _with_hidden(self, batch: dict[str, Any], panoramas: int) -> dict[str, Any]:
        """The batch without what the resampler shows to nobody in this step."""
        views, tokens = len(self._views), self.projector.tokens
        hidden = self.resampler.unseen(panoramas, views, tokens, device=batch["mask"].device)
        if hidden is None:
            return batch
        return {**batch, "mask": hide(batch["mask"], self.projector.spread(hidden), len(self.chat.before))}

    def _answers(self, language: Language, seen: Tensor | None, batch: dict[str, Any]) -> dict[str, Tensor]:
        ids, labels = batch["ids"], batch["labels"]
        parts = [language.words(torch.tensor(self.chat.before, device=ids.device)).expand(len(ids), -1, -1)]
        parts += [seen] if seen is not None else []
        vectors = torch.cat([*parts, language.words(ids)], 1)
        states = language.states(vectors, batch["mask"], batch["positions"])[:, -ids.shape[1] :]
        learned = labels != IGNORED
        scores = language.scores(states[learned])
        wanted = labels[learned]
        # Means over the words of all processes, though these weigh what each of them finds by its panoramas.
        words = gather(learned.sum(1).float()).mean() * len(ids)
        right = (scores.argmax(-1) == wanted).float().sum() / words
        return {"loss": F.cross_entropy(scores.float(), wanted, reduction="sum") / words, "words_right": right}

    # ------------------------------------------------------------------------------------------------- seeing
    def see(self, pixels: Tensor) -> Tensor:
        """The resampler's tokens of views, (…, tokens, width), from their pixels, (…, 3, size, size) uint8."""
        return self.resampler(self.vision(pixels.flatten(0, -4)).unflatten(0, pixels.shape[:-3]))

    # ---------------------------------------------------------------------------------------------- answering
    @torch.no_grad()
    def answer(self, seen: Tensor | None, asked: Sequence[Sequence[int]], longest: int, most_words: int) -> list[str]:
        """Answers to questions.

        Args:
            seen: the projected tokens of the panorama of each question, (questions, tokens, width); None asks the
                blind model.
            asked: the questions, as `Chat.ask` gives them.
            longest: the number of tokens to which questions are padded, at least as many as they have.
        """
        language = self.language if seen is not None else self.blind
        device = next(language.parameters()).device
        ids = torch.full((len(asked), longest), self.chat.tokenizer.pad_token_id)
        for row, question in enumerate(asked):
            ids[row, longest - len(question) :] = torch.tensor(question)
        ids = ids.to(device)
        before = language.words(torch.tensor(self.chat.before, device=device)).expand(len(asked), -1, -1)
        shared = [before] + ([seen] if seen is not None else [])
        front = torch.cat(shared, 1)
        # What is shared comes before the question: padding on the left shifts it.
        words = language.words(ids)
        size, rows = front.shape[1] + longest, len(asked)
        vectors = front.new_zeros(rows, size, front.shape[2])
        mask, positions = torch.zeros(2, rows, size, dtype=torch.int64, device=device)
        *shared_places, begin = places(before.shape[1], seen.shape[1] if seen is not None else 0, self._shared_place)
        for row, question in enumerate(asked):
            blank = longest - len(question)
            vectors[row, blank : blank + front.shape[1]] = front[row]
            vectors[row, blank + front.shape[1] :] = words[row, blank:]
            mask[row, blank:] = 1
            own = [*shared_places, *range(begin, begin + len(question))]
            positions[row, blank:] = torch.tensor(own, device=device)
        return language.answer(vectors, mask, positions, self.chat, most_words)


def _learn(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(True)


def _fixed(network: nn.Module, name: str) -> bool:
    """Whether a tensor is of a pretrained model that never learns, and stays where it came from."""
    return any(
        getattr(network, part).fixed and name.startswith(f"{part}.") and LORA not in name
        for part in ("language", "blind")
    )


def _without_fixed(network: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in list(state):
        if name.startswith(prefix) and _fixed(network, name.removeprefix(prefix)):
            del state[name]


def _fixed_may_miss(network: nn.Module, incompatible: Any) -> None:
    named = network.named_parameters(remove_duplicate=False)
    own = {name for name, _ in named if _fixed(network, name)}
    missing = incompatible.missing_keys  # of the whole module that is loaded, of which this network may be a part
    missing[:] = [name for name in missing if not any(name.endswith(fixed) for fixed in own)]
