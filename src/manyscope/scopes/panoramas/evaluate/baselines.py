"""The answer that one would give without looking: the commonest one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from manyscope.scopes.panoramas.data.turns import Turn
from manyscope.scopes.panoramas.data.words import words_of


class Majority:
    """The commonest right answer to the same question; to a question that was never asked, that of its type; to one of
    an unknown type, that of all. Of equally common ones the first of the alphabet.

    Args:
        turns: of the training split, a turn for each reference. Answers are compared by their words.
    """

    def __init__(self, turns: Iterable[Turn]) -> None:
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for turn in turns:
            answer = " ".join(words_of(turn.answer))
            for key in (("question", turn.question), ("type", turn.type), ("all", "")):
                counts[key][answer] += 1
        self._answers = {key: min(some, key=lambda answer: (-some[answer], answer)) for key, some in counts.items()}

    def __call__(self, question: str, kind: str) -> str:
        """The answer, in lower case with a blank between words."""
        for key in (("question", question), ("type", kind), ("all", "")):
            if key in self._answers:
                return self._answers[key]
        return ""
