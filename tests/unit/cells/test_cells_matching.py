"""Scores of masks: the same numbers as elf's, which micro_sam reports, on whatever two label images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manyscope.scopes.cells.evaluate.matching import match, scores

elf = pytest.importorskip("elf.evaluation")
NAMES = ("msa", "sa50", "sa75", "precision", "recall", "f1")


def of_elf(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    msa, accuracy = elf.mean_segmentation_accuracy(predicted, truth, return_accuracies=True)
    half = elf.matching(predicted, truth)
    of_half = {name: half[name] for name in ("precision", "recall", "f1")}
    return {"msa": msa, "sa50": accuracy[0], "sa75": accuracy[5], **of_half}


def cut_in_half() -> tuple[np.ndarray, np.ndarray]:
    """A cell of which each half was found as a cell: both have an IoU of exactly one half."""
    truth, found = np.zeros((4, 4), np.uint16), np.zeros((4, 4), np.uint32)
    truth[:2], found[0], found[1] = 1, 1, 2
    return truth, found


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two label images that mostly agree, with gaps in the numbers of their cells."""
    coarse = draw(hnp.arrays(np.uint32, (draw(st.integers(1, 6)), draw(st.integers(1, 6))), elements=st.integers(0, 7)))
    truth = np.kron(coarse, np.ones((2, 3), np.uint32))
    found = truth.copy()
    for _ in range(draw(st.integers(0, 6))):
        y, x = draw(st.integers(0, truth.shape[0] - 1)), draw(st.integers(0, truth.shape[1] - 1))
        h, w = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        found[y : y + h, x : x + w] = draw(st.integers(0, 9))
    return truth * np.uint32(draw(st.sampled_from([1, 3, 70_000]))), found


@given(pairs())
@example(cut_in_half())
@example((np.zeros((3, 3), np.uint16), np.zeros((3, 3), np.uint16)))
@example((np.eye(3, dtype=np.uint16), np.zeros((3, 3), np.uint16)))
@example((np.zeros((3, 3), np.uint16), np.eye(3, dtype=np.uint16)))
@settings(max_examples=300, deadline=None)
def test_the_scores_are_elfs(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, found = pair
    assert scores(truth, found) == pytest.approx(of_elf(truth, found), abs=1e-6)
    _, accuracy = elf.mean_segmentation_accuracy(found, truth, return_accuracies=True)
    assert match(truth, found).accuracy == pytest.approx(accuracy, abs=1e-6)


@given(
    hnp.arrays(np.uint16, (7, 9), elements=st.integers(0, 6)), hnp.arrays(np.uint16, (7, 9), elements=st.integers(0, 6))
)
@settings(max_examples=200, deadline=None)
def test_the_scores_of_unlike_images_are_elfs(truth: np.ndarray, found: np.ndarray) -> None:
    assert scores(truth, found) == pytest.approx(of_elf(truth, found), abs=1e-6)


@pytest.mark.slow
def test_the_scores_are_what_micro_sam_reports() -> None:
    evaluation = pytest.importorskip("micro_sam.evaluation.evaluation")
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 30, (12, 12)), np.ones((6, 6), int)).astype(np.uint16)
    found = np.roll(truth, 1, axis=0) * (rng.random(truth.shape) < 0.9)
    row = evaluation.run_evaluation([truth], [found], verbose=False).iloc[0]
    columns = ("mSA", "SA50", "SA75", "Precision", "Recall", "F1 Score")
    assert scores(truth, found) == pytest.approx({n: row[c] for n, c in zip(NAMES, columns, strict=True)}, abs=1e-6)
    assert 0.1 < row["mSA"] < 0.9  # a pair that says something


@given(pairs())
@settings(deadline=None)
def test_the_number_of_a_cell_does_not_matter_and_exchanging_the_images_exchanges_precision_and_recall(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    truth, found = pair
    here = scores(truth, found)
    other_numbers = np.random.default_rng(0).permutation(np.arange(1, 11)).astype(np.uint32)
    assert scores(truth, np.where(found > 0, other_numbers[found.clip(1) - 1], 0)) == here
    exchanged = scores(found, truth)
    assert (exchanged["precision"], exchanged["recall"]) == (here["recall"], here["precision"])
    assert {n: exchanged[n] for n in ("msa", "sa50", "sa75", "f1")} == {
        n: here[n] for n in ("msa", "sa50", "sa75", "f1")
    }
    assert all(0 <= value <= 1 for value in here.values())


def test_every_score_of_the_truth_itself_is_one() -> None:
    truth = np.kron(np.arange(9, dtype=np.uint16).reshape(3, 3), np.ones((5, 5), np.uint16))
    assert scores(truth, truth.astype(np.uint32)) == dict.fromkeys(NAMES, 1.0)


def test_a_cell_cut_in_two_is_found_once() -> None:
    assert scores(*cut_in_half()) == pytest.approx(
        {"msa": 0.05, "sa50": 0.5, "sa75": 0, "precision": 0.5, "recall": 1, "f1": 2 / 3}
    )


@pytest.mark.parametrize(("shared_px", "steps"), [(49, 0), (51, 1), (62, 3), (77, 6), (94, 9), (100, 10)])
def test_the_overlap_that_is_needed_grows_by_a_twentieth(shared_px: int, steps: int) -> None:
    truth, found = np.ones((1, 100), np.uint16), np.zeros((1, 100), np.uint16)
    found[0, :shared_px] = 1
    assert match(truth, found).right.tolist() == [1] * steps + [0] * (10 - steps)
    assert scores(truth, found)["msa"] == pytest.approx(steps / 10)


def test_images_of_different_shapes_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        match(np.zeros((2, 3), int), np.zeros((3, 2), int))
