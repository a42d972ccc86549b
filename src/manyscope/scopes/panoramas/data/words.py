"""What is compared of answers."""

from __future__ import annotations

import re

Words = tuple[str, ...]

_WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> Words:
    """Words and signs in lower case, without a final full stop: two answers are the same if these are equal."""
    words = _WORD.findall(text.lower())
    return tuple(words[:-1] if len(words) > 1 and words[-1] == "." else words)
