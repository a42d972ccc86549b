"""Several turns about one panorama in a row that shares its views, each computed as if it were alone.

A row is: what comes before the views, the views' tokens, then the turns. A turn sees what comes before, the views and
itself, and its positions go on from the views': so it costs a fraction of a row of its own, and a model trained this
way is asked in training exactly what it is asked afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manyscope.scopes.panoramas.model.chat import IGNORED, Encoded


def pack(
    rows: Sequence[Sequence[Encoded]],
    before: int,
    views: Sequence[int],
    padding: int,
    shared_place: bool = False,
    seen: Sequence[Sequence[int | None]] | None = None,
) -> dict[str, Tensor]:
    """Turns of several panoramas as one batch.

    Args:
        rows: for each panorama its turns.
        before: tokens in front of the views.
        views: for each of the views' tokens the view that it is of.
        padding: the token behind the turns of a shorter row.
        shared_place: all of the views' tokens have one position.
        seen: for each turn the only view that it sees, or None for all of them. If it is given, no view sees another.

    Returns:
        ids, labels: (rows, longest) int64 of the turns; positions: (rows, before + views + longest) int64; mask:
        (rows, 1, all, all) bool, whether a token (row) sees another (column).
    """
    longest = max(sum(len(turn.ids) for turn in turns) for turns in rows)
    shared, size = before + len(views), before + len(views) + longest
    ids = torch.full((len(rows), longest), padding)
    labels = torch.full((len(rows), longest), IGNORED)
    number = torch.full((len(rows), longest), -1)  # of the turn that a token is of
    only = torch.full((len(rows), longest), -1)
    positions = torch.zeros(len(rows), size, dtype=torch.int64)
    positions[:, :shared] = torch.tensor(places(before, len(views), shared_place)[:-1], dtype=torch.int64)
    begin = places(before, len(views), shared_place)[-1]
    for row, turns in enumerate(rows):
        first = 0
        for k, turn in enumerate(turns):
            some = slice(first, first + len(turn.ids))
            ids[row, some], labels[row, some] = torch.tensor(turn.ids), torch.tensor(turn.labels)
            number[row, some] = k
            if seen is not None and (view := seen[row][k]) is not None:
                only[row, some] = view
            positions[row, shared + first : shared + first + len(turn.ids)] = begin + torch.arange(len(turn.ids))
            first += len(turn.ids)
    view_of = torch.tensor(views, dtype=torch.int64)
    earlier = torch.ones(size, size).tril().bool()
    mask = earlier.repeat(len(rows), 1, 1)
    if seen is not None:
        same = (view_of[:, None] == view_of[None]) & earlier[: len(views), : len(views)]
        mask[:, before:shared, before:shared] = same
    mask[:, shared:, before:shared] = (only[:, :, None] < 0) | (only[:, :, None] == view_of)
    mask[:, shared:, shared:] &= (number[:, :, None] == number[:, None]) & (number[:, :, None] >= 0)
    mask[:, range(size), range(size)] = True  # padding sees itself: a row of nothing has no softmax
    return {"ids": ids, "labels": labels, "positions": positions, "mask": mask[:, None]}


def hide(mask: Tensor, hidden: Tensor, before: int) -> Tensor:
    """A mask in which nothing sees some of the views' tokens, but each of them itself.

    Args:
        mask: as `pack` gives it.
        hidden: (rows, views) bool.
        before: tokens in front of the views.
    """
    columns = mask.new_zeros(len(mask), mask.shape[-1])
    columns[:, before : before + hidden.shape[1]] = hidden
    itself = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    return mask & (~columns[:, None, None] | itself)


def places(before: int, views: int, shared_place: bool) -> list[int]:
    """Positions of what comes before the views, of the views' tokens, and of the first token of a turn."""
    seen = [before] * views if shared_place else [*range(before, before + views)]
    return [*range(before), *seen, seen[-1] + 1 if seen else before]
