"""A turn: one question and one answer about a panorama."""

from __future__ import annotations

import re
from typing import NamedTuple

WORD = re.compile(r"\w+(?:-\w+)*|[^\w\s]")
"""A word of a question or an answer, for models that learn their words from the table: "back-left" is one."""

DIRECTIONS = ("front", "front-right", "right", "back-right", "back", "back-left", "left", "front-left")
"""Names of the directions, 45 degrees apart; the first is yaw 0 and they go to the right."""


class Turn(NamedTuple):
    """One question with its answer.

    Attributes:
        type: of the question, such as "count"; "question" where a table says none.
        question: as the table or the room has it, without prompt or template.
        answer: one right answer.
        direction: one of DIRECTIONS that the question is about, or empty.
    """

    type: str
    question: str
    answer: str
    direction: str = ""
