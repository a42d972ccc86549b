"""Answers of a trained model, and the vectors by which questions are mapped and found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from manyscope.log import progress
from manyscope.scopes.panoramas.data.panoramas import Panoramas
from manyscope.scopes.panoramas.data.words import words_of
from manyscope.scopes.panoramas.model.network import PanoramaModel
from manyscope.tables.predictions import Objects


@dataclass(frozen=True)
class _Question:
    sample_id: str
    text: str
    seen: Tensor


class Answers:
    """Answers of one model. Every batch has one size and every question one length, whatever is asked together, so
    that no digit depends on the other questions.

    Args:
        batch_size: questions answered at once.
        most_words: tokens of an answer.

    Raises:
        DataError: a question does not fit into the model.
    """

    def __init__(self, network: PanoramaModel, data: Panoramas, batch_size: int, most_words: int) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = network.to(self._device).eval()
        self._data, self._size, self._most_words = data, batch_size, most_words
        self._longest = max(len(network.chat.ask(text)) for text in data.samples["question"].unique())
        self._meaning: dict[str, np.ndarray] = {}
        self._blind: dict[str, str] = {}

    def of(self, sample_ids: Sequence[str]) -> Iterator[Objects]:
        """The answers to the named questions."""
        rows = self._data.rows_of(sample_ids)
        chosen = self._data.samples[rows.tolist()].sort("picture", maintain_order=True)
        waiting: list[_Question] = []
        by_picture = chosen.partition_by("picture", maintain_order=True)
        each = max(1, self._size // len(self._data.views))
        for first in progress(range(0, len(by_picture), each), "infer", -(-len(by_picture) // each)):
            some = by_picture[first : first + each]
            seen = self._see([int(table["picture"][0]) for table in some], each)
            for table, tokens in zip(some, seen, strict=False):
                asked = table.select("sample_id", "question").iter_rows()
                waiting += [_Question(sample, question, tokens) for sample, question in asked]
            while len(waiting) >= self._size:
                yield self._answer(waiting[: self._size])
                waiting = waiting[self._size :]
        if waiting:
            yield self._answer(waiting)

    @torch.inference_mode()
    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """The half of a vector that stands for a panorama, (width,) float32.

        Args:
            pixels: its views, (views, 3, size, size) uint8.
        """
        tokens = self._network.projector(self._network.see(torch.tensor(pixels[None]).to(self._device)))
        return _unit(tokens.mean(1))[0]

    @torch.inference_mode()
    def question(self, text: str) -> np.ndarray:
        """The half of a vector that stands for a question, (width,) float32."""
        if text not in self._meaning:
            words = self._network.chat.words(text)
            self._meaning[text] = _unit(self._network.language.meaning([words], self._device))[0]
        return self._meaning[text]

    @torch.inference_mode()
    def _see(self, pictures: Sequence[int], size: int) -> Tensor:
        filled = [*pictures, *[pictures[0]] * (size - len(pictures))]
        pixels = torch.from_numpy(np.stack([self._data.pixels[row] for row in filled]))
        return self._network.projector(self._network.see(pixels.to(self._device)))

    @torch.inference_mode()
    def _answer(self, questions: Sequence[_Question]) -> Objects:
        filled = [*questions, *[questions[0]] * (self._size - len(questions))]
        asked = [self._network.chat.ask(question.text) for question in filled]
        seen = torch.stack([question.seen for question in filled])
        answers = self._network.answer(seen, asked, self._longest, self._most_words)[: len(questions)]
        looks = _unit(seen.mean(1))[: len(questions)]
        means = np.stack([self.question(question.text) for question in questions])
        self._ask_blind([question.text for question in questions])
        columns: dict[str, Any] = {
            "answer": answers,
            "blind_answer": [self._blind[question.text] for question in questions],
            "right": pl.Series(
                [self._is_right(q.sample_id, said) for q, said in zip(questions, answers, strict=True)],
                dtype=pl.Boolean,
            ),
        }
        return Objects.one_each([q.sample_id for q in questions], np.concatenate([looks, means], 1), columns)

    def _is_right(self, sample_id: str, answer: str) -> bool | None:
        """Whether an answer equals a reference by its words; None where there is no reference."""
        references = self._data.references.get(sample_id)
        return words_of(answer) in map(words_of, references) if references else None

    def _ask_blind(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._blind]
        if new:
            filled = [*new, *[new[0]] * (self._size - len(new))]
            asked = [self._network.chat.ask(text) for text in filled]
            answers = self._network.answer(None, asked, self._longest, self._most_words)
            self._blind |= dict(zip(new, answers, strict=False))


def embed(answers: Answers, query: np.ndarray | str) -> np.ndarray:
    """The vector of a query that is half of one: what the other half would say adds the same to every distance.

    Args:
        query: views of a panorama, (views, 3, size, size) uint8, or a question.
    """
    if isinstance(query, str):
        half = answers.question(query)
        return np.concatenate([np.zeros_like(half), half])
    half = answers.picture(query)
    return np.concatenate([half, np.zeros_like(half)])


def _unit(vectors: Tensor) -> np.ndarray:
    return F.normalize(vectors.float(), dim=-1).cpu().numpy()
