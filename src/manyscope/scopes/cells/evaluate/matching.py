"""How well found cells agree with true ones: segmentation accuracy over thresholds of the overlap.

SA(t) = TP / (TP + FP + FN), where a found cell is right (TP) if its intersection over union (IoU) with a true one is at
least t, one to one; mSA is the mean over t = .50, .55 … .95. So defined by the 2018 Data Science Bowl (Caicedo et al.,
Nature Methods 16, 1247, 2019, https://doi.org/10.1038/s41592-019-0612-7). Ties, empty images and the rounding of the
thresholds are as in elf.evaluation, which micro_sam's run_evaluation calls: where nothing is right, every score is 0,
also where there was nothing to be found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

# Not rounded to two digits: an IoU of exactly 3/5 must fall on the same side of .60 as it does in elf.
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
_AT_50, _AT_75 = 0, 5


@dataclass(frozen=True)
class Matching:
    """The agreement of two label images.

    Attributes:
        true, found: number of cells in each.
        right: (10,) int64, found cells that match a true one at each of `THRESHOLDS`.
    """

    true: int
    found: int
    right: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """SA at each of `THRESHOLDS`, (10,) in 0 … 1."""
        return self.right / np.maximum(self.true + self.found - self.right, 1)

    @property
    def scores(self) -> dict[str, float]:
        """msa, sa50, sa75, and precision, recall and f1 at an IoU of one half; each in 0 … 1."""
        accuracy, right = self.accuracy, int(self.right[_AT_50])
        return {
            "msa": float(accuracy.mean()),
            "sa50": float(accuracy[_AT_50]),
            "sa75": float(accuracy[_AT_75]),
            "precision": right / max(self.found, 1),
            "recall": right / max(self.true, 1),
            "f1": 2 * right / max(self.true + self.found, 1),
        }


def scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """`Matching.scores` of two label images, (h, w) integers not below 0, of which 0 is background.

    Raises:
        ValueError: the images differ in shape.
    """
    return match(truth, predicted).scores


def match(truth: np.ndarray, predicted: np.ndarray) -> Matching:
    """Match the cells of two label images, (h, w) integers not below 0, of which 0 is background.

    Raises:
        ValueError: the images differ in shape.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"label images of shapes {truth.shape} and {predicted.shape} cannot be compared")
    # One sort of the pairs that occur: a full table of all pairs would be quadratic in the number of cells.
    pairs, pixels = np.unique(
        (truth.astype(np.uint64).ravel() << np.uint64(32)) | predicted.astype(np.uint64).ravel(), return_counts=True
    )
    true_label, of_true = np.unique(pairs >> np.uint64(32), return_inverse=True)
    found_label, of_found = np.unique(pairs & np.uint64(0xFFFFFFFF), return_inverse=True)
    true_px, found_px = np.bincount(of_true, pixels), np.bincount(of_found, pixels)
    both = (true_label[of_true] > 0) & (found_label[of_found] > 0)
    t, f, shared = of_true[both], of_found[both], pixels[both]
    iou = shared / (true_px[t] + found_px[f] - shared)

    shape = (len(true_label), len(found_label))
    right = [_largest_matching(t[iou >= x], f[iou >= x], shape) for x in THRESHOLDS]
    return Matching(int((true_label > 0).sum()), int((found_label > 0).sum()), np.array(right))


def _largest_matching(true: np.ndarray, found: np.ndarray, shape: tuple[int, int]) -> int:
    """Most pairs that can be kept so that no cell is in two.

    Above an IoU of one half no two pairs share a cell; at exactly one half two may, as the halves of a cell cut in two.
    """
    graph = csr_array((np.ones(len(true), bool), (true, found)), shape=shape)
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
