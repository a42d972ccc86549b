"""How often answers are right, and how like the references they are, beside answers that nobody looked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.evaluation.bootstrap import Score, compare
from manyscope.log import logger
from manyscope.scopes.base import Evaluation
from manyscope.scopes.panoramas.data.sources import FEWEST
from manyscope.scopes.panoramas.data.words import Words, words_of
from manyscope.scopes.panoramas.evaluate import captions, figures
from manyscope.scopes.panoramas.evaluate.baselines import Majority
from manyscope.scopes.panoramas.evaluate.captions import MOST
from manyscope.scopes.panoramas.views.layout import draw_layout
from manyscope.tables.metrics import Metric

if TYPE_CHECKING:
    from manyscope.scopes.panoramas.data.panoramas import Panoramas
    from manyscope.scopes.panoramas.settings import PanoramasEvaluate

HEADLINE = "exact_match"
MODEL = "model"
ALL, SEAM = "all", "seam"
SEPARATOR = " | "
_ANSWERS = {MODEL: "answer", "blind": "blind_answer"}  # columns of the predictions
_AT_THE_SEAM = "back"
_AGAIN = "run the stage infer again"


@dataclass(frozen=True)
class _Test:
    """The judged questions.

    Attributes:
        questions: rows of the samples.
        references: of each question.
        answers: method -> to each question; the model is one of the methods.
        right: method -> whether each is one of the references, (n,) bool.
    """

    questions: pl.DataFrame
    references: list[list[str]]
    answers: dict[str, list[str]]
    right: dict[str, np.ndarray]

    def groups(self) -> dict[str, np.ndarray]:
        """Name -> which questions, (n,) bool: all; each type if there are several; those about what is behind the
        camera, where the panorama's left and right edges meet."""
        kinds = self.questions["type"].to_numpy()
        names = sorted(set(kinds))
        groups = {ALL: np.ones(len(kinds), bool)}
        if len(names) > 1:
            groups |= {name: kinds == name for name in names if name not in (ALL, SEAM)}
        at_the_seam = (self.questions["direction"] == _AT_THE_SEAM).to_numpy()
        return groups | ({SEAM: at_the_seam} if at_the_seam.any() else {})


def evaluate(
    settings: PanoramasEvaluate, data: Panoramas, samples: pl.DataFrame, predictions: pl.DataFrame
) -> Evaluation:
    """Judge the answers to the questions of the test split; intervals are those of other pictures.

    - exact_match: the share that equals a reference by its words (see `words.words_of`): of all questions, of each
      type, and of those about the direction at the seam of the panorama;
    - bleu4, rouge_l, cider_d, of all. Without a reference of four words there is no BLEU-4.

    Each is set beside two baselines: majority, the commonest answer to the question in the training split, and blind,
    a model that never saw a picture.

    Args:
        samples: the samples of `data`.
        predictions: sample_id, answer, blind_answer; in any order, and maybe of other splits too.

    Raises:
        DataError: a test question has no answer, several, or no reference; or fewer than five pictures have any.
    """
    test = _test(data, samples, predictions)
    metrics = list(_metrics(settings, test))
    drawn, said = _figures(settings, data, test, metrics)
    return Evaluation(HEADLINE, metrics, drawn, said, {"answers.csv": _table(test)})


def _test(data: Panoramas, samples: pl.DataFrame, predictions: pl.DataFrame) -> _Test:
    for name in ("sample_id", *_ANSWERS.values()):
        if name not in predictions.columns:
            raise DataError(f"the predictions have no column {name!r}", remedy=_AGAIN)
    questions = samples.filter(pl.col("split") == "test")
    place = data.folder / "samples.parquet"
    if questions.is_empty():
        raise DataError("there is no test question to judge answers of", place=place)
    answers = predictions.select("sample_id", *(pl.col(name).alias(f"_{name}") for name in _ANSWERS.values()))
    joined = questions.join(answers, on="sample_id", how="left", maintain_order="left")
    missing = joined.filter(pl.any_horizontal(pl.col(f"_{name}").is_null() for name in _ANSWERS.values()))["sample_id"]
    if len(missing):
        raise DataError(
            f"{len(missing)} of {len(questions)} test questions have no answer, for example {missing[0]!r}",
            remedy=f"let infer.splits hold 'test', and {_AGAIN}",
        )
    if len(joined) > len(questions):
        repeated = joined["sample_id"].filter(joined["sample_id"].is_duplicated())[0]
        raise DataError(f"question {repeated!r} has more than one answer", remedy=_AGAIN)
    references = [data.references.get(sample, []) for sample in questions["sample_id"]]
    if [] in references:
        without = questions["sample_id"][references.index([])]
        raise DataError(f"test question {without!r} has no reference", place=place, remedy="run preprocess again")

    majority = Majority(turn for picture in data.pictures_of("train") for turn in data.turns.get(int(picture), ()))
    prior = [majority(question, kind) for question, kind in questions.select("question", "type").iter_rows()]
    model, blind = (joined[f"_{name}"].to_list() for name in _ANSWERS.values())
    everyone = {MODEL: model, "majority": prior, "blind": blind}
    words = [[words_of(text) for text in some] for some in references]
    right = {who: captions.exact([words_of(text) for text in texts], words) for who, texts in everyone.items()}
    return _Test(questions, references, everyone, right)


def _metrics(settings: PanoramasEvaluate, test: _Test) -> Iterator[Metric]:
    pictures = test.questions["picture"].to_numpy()

    def rows(name: str, group: str, scores: dict[str, Score], clusters: np.ndarray) -> list[Metric]:
        return compare(
            name,
            group,
            unit="",
            higher_is_better=True,
            n=len(clusters),
            model=scores[MODEL],
            baselines={who: score for who, score in scores.items() if who != MODEL},
            clusters=clusters,  # questions about one picture are right or wrong together
            draws=settings.bootstrap_draws,
            seed=settings.seed,
        )

    for group, member in test.groups().items():
        count = len(np.unique(pictures[member]))
        if count < FEWEST and group != ALL:
            logger.warning("group %r is left out: it has %d test pictures, fewer than %d", group, count, FEWEST)
            continue
        scores = {who: _mean(right[member]) for who, right in test.right.items()}
        yield from rows(HEADLINE, group, scores, pictures[member])

    references = [[words_of(text) for text in some] for some in test.references]
    cider = captions.Cider(references)
    likeness: dict[str, Callable[[list[Words]], Score]] = {
        "bleu4": lambda answers: _bleu(captions.bleu_counts(answers, references)),
        "rouge_l": lambda answers: _mean(captions.rouge_l(answers, references)),
        "cider_d": lambda answers: _mean(cider(answers)),
    }
    longest = max(len(words) for some in references for words in some)
    if longest < MOST:
        logger.info("no bleu4: the longest reference has %d words, fewer than %d", longest, MOST)
        del likeness["bleu4"]
    for name, of_answers in likeness.items():
        scores = {who: of_answers([words_of(text) for text in texts]) for who, texts in test.answers.items()}
        yield from rows(name, ALL, scores, pictures)


def _mean(values: np.ndarray) -> Score:
    return lambda rows: float(values[rows].mean())


def _bleu(counts: np.ndarray) -> Score:
    return lambda rows: captions.bleu(counts[rows])


def _table(test: _Test) -> pl.DataFrame:
    return test.questions.select("sample_id", "type", "direction", "question").with_columns(
        answer=pl.Series(test.answers[MODEL], dtype=pl.String),
        references=pl.Series([SEPARATOR.join(some) for some in test.references], dtype=pl.String),
        right=pl.Series(test.right[MODEL]),
        majority=pl.Series(test.answers["majority"], dtype=pl.String),
        blind=pl.Series(test.answers["blind"], dtype=pl.String),
    )


def _figures(
    settings: PanoramasEvaluate, data: Panoramas, test: _Test, metrics: list[Metric]
) -> tuple[dict[str, object], dict[str, str]]:
    drawn: dict[str, object] = {"accuracy": figures.accuracy([m for m in metrics if m.name == HEADLINE])}
    said = {
        "accuracy": "Share of the test questions whose answer equals a reference, with the interval that other pictures"
        " would give, beside the commonest training answer (majority) and a model without pictures (blind)."
    }
    pictures = test.questions["picture"].to_numpy()
    first = int(pictures[0])
    drawn["views"] = draw_layout(np.asarray(data.previews[first]), data.views, np.asarray(data.pixels[first]))
    said["views"] = "How a panorama is cut into views: their outlines on a small picture of it, and what each shows."
    some = figures.choose(test.right[MODEL], pictures, settings.shown, settings.seed)
    if len(some):
        shown = [
            figures.Example(
                data.previews[pictures[i]],
                data.pixels[pictures[i]].transpose(0, 2, 3, 1),
                test.questions["question"][i],
                test.answers[MODEL][i],
                test.references[i],
                bool(test.right[MODEL][i]),
            )
            for i in some.tolist()
        ]
        drawn["answers"] = figures.answers(shown)
        said["answers"] = (
            "Test questions, with the panorama and the views that the model is given of it. As many right answers as"
            " wrong ones are shown if there are as many: this is no sample of how often they are right."
        )
    counts = (test.questions["type"] == "count").to_numpy()
    if counts.any():
        rows = np.flatnonzero(counts).tolist()
        drawn["counts"] = figures.counts([test.references[i][0] for i in rows], [test.answers[MODEL][i] for i in rows])
        said["counts"] = "Questions how many there are: true number and answer; colour is the share of the row."
    return drawn, said
