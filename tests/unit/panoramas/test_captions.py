"""Scores of answers: examples worked by hand, identities, and the definitions written out anew."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyscope.scopes.panoramas.data.words import Words, words_of
from manyscope.scopes.panoramas.evaluate.captions import (
    Cider,
    bleu,
    bleu_counts,
    exact,
    rouge_l,
)

LETTERS = st.lists(st.sampled_from("abcd"), max_size=7).map(tuple)
SOME = st.lists(LETTERS.filter(bool), min_size=1, max_size=3)
CORPUS = st.lists(st.tuples(LETTERS, SOME), min_size=1, max_size=5)


def split(*texts: str) -> list[Words]:
    return [words_of(text) for text in texts]


# Words and exact match


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red ball.", ("a", "red", "ball")),
        ("  red   BALL", ("red", "ball")),
        ("left-of the cube, 2 m.", ("left", "-", "of", "the", "cube", ",", "2", "m")),
        ("really?", ("really", "?")),
        ("Fußgänger über Straße.", ("fußgänger", "über", "straße")),
        ("a. b. ", ("a", ".", "b")),
        ("wait...", ("wait", ".", ".")),
        ("", ()),
        (".", (".",)),
    ],
)
def test_words(text: str, words: Words) -> None:
    assert words_of(text) == words


def test_an_answer_is_right_if_it_is_any_of_the_references() -> None:
    answers = split("Red.", "red ball", "", "blue")
    references = [split("blue", "red"), split("ball red"), split("red"), split("Blue")]
    assert exact(answers, references).tolist() == [True, False, False, True]


# BLEU


def test_bleu_of_papineni_s_first_example() -> None:
    """Seven times "the" beside "the cat is on the mat" and "there is a cat on the mat": two of seven, since no
    reference has more than two. The reference that is closest in length has seven words."""
    counts = bleu_counts(
        split("the the the the the the the"), [split("the cat is on the mat", "there is a cat on the mat")]
    )
    assert counts.tolist() == [[7, 7, 2, 0, 0, 0, 7, 6, 5, 4]]
    assert bleu(counts, 1) == pytest.approx(2 / 7)
    assert bleu(counts, 2) == 0.0


def test_bleu_by_hand() -> None:
    """Answer 1: a b c d, references a b c e f and a c d. 1-grams: all four. 2-grams ab, bc, cd: all three. 3-grams abc
    yes, bcd no. 4-grams: none of one. Lengths 4; 5 and 3 are equally near, the shorter counts: 3.
    Answer 2: x y, reference x y z z z z: 2 of 2, 1 of 1. Lengths 2 and 6.
    Together c = 6, r = 9, shares 6/6, 4/4, 1/2: BLEU-3 is exp(1 - 9/6) (1/2)^(1/3), and BLEU-4 is 0."""
    counts = bleu_counts(split("a b c d", "x y"), [split("a b c e f", "a c d"), split("x y z z z z")])
    assert counts.tolist() == [[4, 3, 4, 3, 1, 0, 4, 3, 2, 1], [2, 6, 2, 1, 0, 0, 2, 1, 0, 0]]
    assert bleu(counts, 2) == pytest.approx(math.exp(-0.5))
    assert bleu(counts, 3) == pytest.approx(math.exp(-0.5) * 0.5 ** (1 / 3))
    assert bleu(counts) == 0.0


def test_a_long_answer_is_not_shortened() -> None:
    counts = bleu_counts(split("a b c d e"), [split("a b c d")])
    assert bleu(counts) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))


def test_nothing_said_is_worth_nothing() -> None:
    counts = bleu_counts(split("", ""), [split("a"), split("b c")])
    assert [bleu(counts, n) for n in (1, 2, 3, 4)] == [0.0] * 4


def brute_bleu(answers: Sequence[Words], references: Sequence[Sequence[Words]], n: int) -> float:
    logs = 0.0
    for k in range(1, n + 1):
        held = every = 0
        for answer, some in zip(answers, references, strict=True):
            mine = [answer[i : i + k] for i in range(len(answer)) if i + k <= len(answer)]
            every += len(mine)
            for gram in set(mine):
                times = [sum(text[i : i + k] == gram for i in range(len(text))) for text in some]
                held += min(mine.count(gram), max(times))
        if not held:
            return 0.0
        logs += math.log(held / every) / n
    length = sum(map(len, answers))
    closest = 0
    for answer, some in zip(answers, references, strict=True):
        distances = sorted((abs(len(text) - len(answer)), len(text)) for text in some)
        closest += distances[0][1]
    return math.exp(logs) * (1.0 if length > closest else math.exp(1 - closest / length))


@settings(deadline=None, max_examples=60)
@given(CORPUS, st.data())
def test_bleu_is_that_of_the_definition(corpus: list[tuple[Words, list[Words]]], data: st.DataObject) -> None:
    answers, references = map(list, zip(*corpus, strict=True))
    counts = bleu_counts(answers, references)
    rows = data.draw(st.lists(st.integers(0, len(corpus) - 1), min_size=1, max_size=6))
    for n in (1, 2, 3, 4):  # of any choice of rows, as a bootstrap draws them
        expected = brute_bleu([answers[row] for row in rows], [references[row] for row in rows], n)
        assert bleu(counts[rows], n) == pytest.approx(expected)


# ROUGE-L


def test_rouge_by_hand() -> None:
    """Beside "police killed the gunman" (Lin 2004, section 3.1) "police kill the gunman" has police, the, gunman:
    P = R = F = 3/4; "the gunman kill police" has the, gunman: 2/4.
    a b c beside a b x y z w and c: P is 2/3 by the first, R is 1 by the second: F = 2.44 * 2/3 / (1 + 1.44 * 2/3)."""
    reference = split("police killed the gunman")
    answers = split("police kill the gunman", "the gunman kill police", "a b c", "", "nothing")
    scores = rouge_l(answers, [reference, reference, split("a b x y z w", "c"), split("a"), split("a b")])
    expected = [0.75, 0.5, 2.44 * (2 / 3) / (1 + 1.44 * (2 / 3)), 0.0, 0.0]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def brute_common(one: Words, other: Words) -> int:
    for length in range(min(len(one), len(other)), 0, -1):
        parts = {tuple(one[i] for i in places) for places in combinations(range(len(one)), length)}
        if any(tuple(other[i] for i in places) in parts for places in combinations(range(len(other)), length)):
            return length
    return 0


@settings(deadline=None, max_examples=60)
@given(LETTERS, SOME)
def test_rouge_is_that_of_the_definition(answer: Words, some: list[Words]) -> None:
    common = [brute_common(answer, reference) for reference in some]
    precision = max(length / len(answer) if answer else 0.0 for length in common)
    recall = max(length / len(reference) for length, reference in zip(common, some, strict=True))
    expected = 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0.0
    assert rouge_l([answer], [some])[0] == pytest.approx(expected)


# CIDEr-D


def test_cider_by_hand() -> None:
    """Two samples, references a b and a c: a is in both and weighs log(2/2) = 0; b, c, ab, ac weigh log 2.
    Answer a b to the first: for n = 1 and 2 the vectors are equal and not 0: 1; there are no longer n-grams. 10 * 2/4.
    Answer a c c c to the second: 1-grams c: min(3, 1) * 1 / (3 * 1) = 1/3; 2-grams ac 1, cc 2, cc unseen, log 2:
    1 / sqrt(5); lengths 4 and 2: exp(-4/72)."""
    score = Cider([split("a b"), split("a c")])
    expected = [5.0, 10 * (1 / 3 + 1 / math.sqrt(5)) / 4 * math.exp(-4 / 72)]
    np.testing.assert_allclose(score(split("a b", "a c c c")), expected, rtol=1e-12)


def test_cider_is_a_mean_over_references() -> None:
    """The answer equals the first of two references, and shares nothing with the second: half of 10."""
    references = [split("a b c d", "e f g h"), split("i j k l"), split("m n o p")]
    assert Cider(references)(split("a b c d", "i j k l", "")).tolist() == pytest.approx([5.0, 10.0, 0.0])


def test_what_is_in_every_sample_says_nothing() -> None:
    assert Cider([split("a a a a"), split("a a a a")])(split("a a a a", "a a a a")).tolist() == [0.0, 0.0]
    assert Cider([split("a b c d")])(split("a b c d")).tolist() == [0.0]  # of one sample, each word is in every one


def brute_cider(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    def grams(text: Words, n: int) -> Counter[Words]:
        return Counter(text[i : i + n] for i in range(len(text) - n + 1))

    def weight(gram: Words) -> float:
        holds = sum(any(grams(text, len(gram))[gram] for text in some) for some in references)
        return math.log(len(references)) - math.log(max(1, holds))

    scores = []
    for answer, some in zip(answers, references, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):
            for text in some:
                names = sorted({*grams(answer, n), *grams(text, n)})
                c = np.array([grams(answer, n)[gram] * weight(gram) for gram in names])
                s = np.array([grams(text, n)[gram] * weight(gram) for gram in names])
                size = float(np.linalg.norm(c) * np.linalg.norm(s))
                like = float(np.minimum(c, s) @ s) / size if size else 0.0
                total += like * math.exp(-((len(answer) - len(text)) ** 2) / 72) / len(some)
        scores.append(10 * total / 4)
    return scores


@settings(deadline=None, max_examples=60)
@given(CORPUS)
def test_cider_is_that_of_the_definition(corpus: list[tuple[Words, list[Words]]]) -> None:
    answers, references = map(list, zip(*corpus, strict=True))
    np.testing.assert_allclose(Cider(references)(answers), brute_cider(answers, references), atol=1e-12)


# All of them


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=4, max_size=9), min_size=2, max_size=5))
def test_a_perfect_answer_has_the_best_scores(texts: list[list[str]]) -> None:
    """Each sample has words of its own, so that each n-gram is in one sample alone."""
    references = [[tuple(f"{word}{i}" for word in text)] for i, text in enumerate(texts)]
    answers = [some[0] for some in references]
    assert exact(answers, references).all()
    assert bleu(bleu_counts(answers, references)) == pytest.approx(1.0)
    np.testing.assert_allclose(rouge_l(answers, references), 1.0)
    np.testing.assert_allclose(Cider(references)(answers), 10.0)


@settings(deadline=None, max_examples=40)
@given(CORPUS)
def test_scores_stay_within_their_range(corpus: list[tuple[Words, list[Words]]]) -> None:
    answers, references = map(list, zip(*corpus, strict=True))
    counts = bleu_counts(answers, references)
    rouge, cider = rouge_l(answers, references), Cider(references)(answers)
    assert all(0 <= bleu(counts, n) <= 1 + 1e-9 for n in (1, 2, 3, 4))
    assert ((rouge >= 0) & (rouge <= 1 + 1e-9)).all()
    assert ((cider >= 0) & (cider <= 10 + 1e-9)).all()
    more = [[*some, answer or ("z",)] for answer, some in zip(answers, references, strict=True)]
    assert (rouge_l(answers, more) >= rouge - 1e-12).all()  # a further reference takes nothing away
