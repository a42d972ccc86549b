"""How like an answer is to its references: exact match, BLEU, ROUGE-L and CIDEr-D.

Each is computed for every answer by itself, so that a mean, or the BLEU of a corpus, over any choice of answers is a
sum of what is already known: a bootstrap draws rows of an array.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from manyscope.scopes.panoramas.data.words import Words

Grams = Counter[Words]

MOST = 4  # words of the longest n-gram
_BETA = 1.2
_SIGMA = 6.0


def exact(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """Whether an answer equals any of its references, (n,) bool."""
    return np.array([answer in some for answer, some in zip(answers, references, strict=True)], bool)


def bleu_counts(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """What BLEU needs of each answer, (n, 10) int64: its length; that of the reference whose length is the closest, of
    two the shorter; for n from 1 to 4 the n-grams that a reference holds, each at most as often as the one that has it
    most often; and for n from 1 to 4 all of its n-grams."""
    rows = []
    for answer, some in zip(answers, references, strict=True):
        closest = min((len(reference) for reference in some), key=lambda length: (abs(length - len(answer)), length))
        held, all_of_them = [], []
        for n in range(1, MOST + 1):
            grams = _grams(answer, n)
            most: Grams = Counter()
            for reference in some:
                most |= _grams(reference, n)
            held.append((grams & most).total())
            all_of_them.append(grams.total())
        rows.append([len(answer), closest, *held, *all_of_them])
    return np.array(rows, np.int64).reshape(-1, 2 + 2 * MOST)


def bleu(counts: np.ndarray, n: int = MOST) -> float:
    """BLEU-n of all answers together, from 0 to 1: the geometric mean of the shares of their 1- to n-grams that are in
    a reference, times exp(1 - r / c) where their length c is below that of their references, r. No smoothing: where no
    n-gram of one order is right it is 0, also where there is none of that order.

    Papineni, Roukos, Ward and Zhu, BLEU (2002), section 2.3.

    Args:
        counts: (m, 10), some rows of `bleu_counts`, maybe repeated.
    """
    total = counts.sum(0)
    length, closest = total[:2]
    held, all_of_them = total[2 : 2 + n], total[2 + MOST : 2 + MOST + n]
    if not held.all():
        return 0.0
    brevity = min(0.0, 1 - closest / length)
    return float(np.exp(brevity + np.log(held / all_of_them).mean()))


def rouge_l(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """ROUGE-L of each answer, (n,) float64 from 0 to 1: F = (1 + b²) P R / (R + b² P), where P is the longest common
    subsequence as a share of the answer, R as a share of the reference. With several references P and R are the largest
    of each by itself, and b is 1.2.

    Lin and Och, Automatic Evaluation of Machine Translation Quality Using Longest Common Subsequence (2004), for the
    formulas and several references; b is that of the evaluation of COCO's captions.
    """
    scores = np.zeros(len(answers))
    for i, (answer, some) in enumerate(zip(answers, references, strict=True)):
        common = [(_common(answer, reference), len(reference)) for reference in some]
        precision = max((length for length, _ in common), default=0) / max(1, len(answer))
        recall = max((length / max(1, total) for length, total in common), default=0.0)
        if precision:
            scores[i] = (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
    return scores


class Cider:
    """CIDEr-D against the references of a set of samples.

    For n from 1 to 4, a text is the vector of the counts of its n-grams, each times log(samples / samples with a
    reference that has it). An answer c beside a reference s has min(c, s) · s / (|c| |s|), times
    exp(-(difference of lengths)² / (2 · 6²)); its score is 10 times the mean over references and n. An answer of less
    than four words thus reaches 10 in no case, nor does one whose words are in every sample.

    Vedantam, Zitnick and Parikh, CIDEr (2015), section "CIDEr-D"; as in the authors' evaluation, counts are not divided
    by the length of the text before the smaller one is taken.

    Args:
        references: of each sample, one or more.
    """

    def __init__(self, references: Sequence[Sequence[Words]]) -> None:
        found: Counter[Words] = Counter()
        for some in references:
            found.update({gram for text in some for n in range(1, MOST + 1) for gram in _grams(text, n)})
        self._weight = {gram: float(np.log(len(references) / count)) for gram, count in found.items()}
        self._unseen = float(np.log(max(1, len(references))))
        self._references = [[(len(text), self._vectors(text)) for text in some] for some in references]

    def __call__(self, answers: Sequence[Words]) -> np.ndarray:
        """The score of the answer to each sample, (n,) float64 from 0 to 10."""
        scores = np.zeros(len(answers))
        for i, (answer, some) in enumerate(zip(answers, self._references, strict=True)):
            vectors = self._vectors(answer)
            for length, of_reference in some:
                likeness = sum(_clipped(own, other) for own, other in zip(vectors, of_reference, strict=True)) / MOST
                scores[i] += likeness * np.exp(-((len(answer) - length) ** 2) / (2 * _SIGMA**2)) / len(some)
        return 10 * scores

    def _vectors(self, text: Words) -> list[tuple[dict[Words, float], float]]:
        """For each n, the vector of a text and its length."""
        vectors = []
        for n in range(1, MOST + 1):
            vector = {gram: count * self._weight.get(gram, self._unseen) for gram, count in _grams(text, n).items()}
            vectors.append((vector, float(np.sqrt(sum(value**2 for value in vector.values())))))
        return vectors


def _clipped(own: tuple[dict[Words, float], float], other: tuple[dict[Words, float], float]) -> float:
    (mine, size), (theirs, other_size) = own, other
    if not size * other_size:
        return 0.0
    shared = mine.keys() & theirs.keys()
    return sum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in sorted(shared)) / (size * other_size)


def _grams(words: Words, n: int) -> Grams:
    return Counter(words[start : start + n] for start in range(len(words) - n + 1))


def _common(one: Words, other: Words) -> int:
    """Length of the longest common subsequence: a row of its table in the bits of one number, in which a 0 is a step.

    Hyyrö, Bit-Parallel LCS-length Computation Revisited (2004).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(one)) - 1
    row = whole
    for word in other:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & whole
    return len(one) - row.bit_count()
