"""The thresholds of the watershed: the best of those that are tried, on validation images alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from manyscope.scopes.cells.data.images import CellImages
from manyscope.scopes.cells.settings import CellsSettings
from manyscope.training.checkpoints import load

if TYPE_CHECKING:
    from manyscope.scopes.cells.model.networks import CellSegmenter

pytestmark = pytest.mark.xdist_group("cells")

Settings = Callable[..., CellsSettings]


class ValidationAlone:
    """A data set that may be asked for its validation images, and for nothing else."""

    def __init__(self, data: CellImages) -> None:
        self._data = data
        self.allowed = set(data.rows("validation").tolist())
        self.seen: list[int] = []

    def labelled(self, split: str) -> np.ndarray:
        assert split == "validation"
        return self._data.labelled(split)

    def image(self, row: int) -> np.ndarray:
        assert row in self.allowed
        self.seen.append(row)
        return self._data.image(row)

    def labels(self, row: int) -> np.ndarray | None:
        assert row in self.allowed
        return self._data.labels(row)


def disc(y: float, x: float, radius: float) -> np.ndarray:
    grid = np.mgrid[:160, :160]
    return np.hypot(grid[0] - y, grid[1] - x) < radius


@pytest.fixture
def chosen_from(seeing_model: CellSegmenter, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Chooses where a watershed finds discs that depend on its thresholds, and notes all that were tried."""
    from manyscope.scopes.cells.model import thresholds as module
    from manyscope.scopes.cells.model.segment import Segmenter

    def choose(settings: CellsSettings, data: Any, masks: Callable[..., np.ndarray]) -> list[float]:
        monkeypatch.setattr(Segmenter, "instances", lambda self, fields, **values: masks(**values))
        module.choose_thresholds(seeing_model, settings, data)
        return [round(value, 6) for value in seeing_model.chosen.tolist()]

    return choose


def test_only_validation_images_are_read(seeing_model: CellSegmenter, seeing: Any, small_data: CellImages) -> None:
    from manyscope.scopes.cells.model.thresholds import choose_thresholds

    data = ValidationAlone(small_data)
    seeing_model.chosen.zero_()
    choose_thresholds(seeing_model, seeing.settings, data)  # type: ignore[arg-type]
    assert set(data.seen) == data.allowed
    assert {round(value, 6) for value in seeing_model.chosen[:3].tolist()} <= {0.3, 0.5}
    assert torch.equal(seeing_model.chosen, load(seeing.run.best)["state_dict"]["chosen"])


def test_the_best_of_what_is_tried_is_chosen(
    chosen_from: Callable[..., list[float]], small_data: CellImages, small_settings: Settings
) -> None:
    truth = small_data.labels(int(small_data.labelled("validation")[0]))
    assert truth is not None
    tried: list[tuple[float, float, float]] = []
    speck = truth.copy()
    speck[:6, :10][truth[:6, :10] == 0] = truth.max() + 1  # of 60 px or less: an object that is none

    def masks(centre: float, border: float, foreground: float) -> np.ndarray:
        tried.append((centre, border, foreground))
        wrong = (centre != 0.4) + (border != 0.6) + (foreground != 0.3)
        found = speck.copy()
        found[truth % 4 < wrong] = 0
        return found

    train = {"thresholds": (0.3, 0.4, 0.6), "min_areas_px": (25, 61, 4000)}
    assert chosen_from(small_settings(train=train), small_data, masks) == [0.4, 0.6, 0.3, 61]
    assert len({pair[:2] for pair in tried}) == 9
    assert {values[2] for values in tried} == {0.3, 0.4, 0.6}


def test_where_nothing_is_right_the_nearer_number_of_cells_is_chosen(
    chosen_from: Callable[..., list[float]], small_data: CellImages, small_settings: Settings
) -> None:
    def masks(centre: float, border: float, foreground: float) -> np.ndarray:
        found = np.zeros((160, 160), np.uint32)
        for number in range({0.3: 1, 0.4: 5, 0.5: 2}[centre]):
            found[disc(30 * number, 150, 3)] = number + 1
        return found

    chosen = chosen_from(small_settings(train={"thresholds": (0.3, 0.4, 0.5), "min_areas_px": (0,)}), small_data, masks)
    assert chosen[0] == 0.4


def test_at_most_24_images_decide(
    seeing_model: CellSegmenter, small_settings: Settings, small_data: CellImages
) -> None:
    from manyscope.scopes.cells.model.thresholds import choose_thresholds

    seen: list[int] = []

    class Many:
        def labelled(self, split: str) -> np.ndarray:
            return np.arange(100, 160)

        def image(self, row: int) -> np.ndarray:
            seen.append(row)
            return small_data.image(0)[:64, :64]

        def labels(self, row: int) -> np.ndarray:
            labels = small_data.labels(0)
            assert labels is not None
            return labels[:64, :64]

    settings = small_settings()
    choose_thresholds(seeing_model, settings, Many())  # type: ignore[arg-type]
    assert len(seen) == len(set(seen)) == 24
    first, seen[:] = list(seen), []
    choose_thresholds(seeing_model, settings, Many())  # type: ignore[arg-type]
    assert seen == first
