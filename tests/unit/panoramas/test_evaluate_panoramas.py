"""Answers, judged beside the commonest answer and beside a model without pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from matplotlib.text import Text

from manyscope.errors import DataError
from manyscope.evaluation.figures import save_figure
from manyscope.scopes.base import Evaluation
from manyscope.scopes.panoramas.data.panoramas import (
    GEOMETRY,
    PICTURES,
    PREVIEW_PX,
    PREVIEWS,
    REFERENCES,
    VIEWS,
    WORDS,
    Panoramas,
)
from manyscope.scopes.panoramas.data.thumbnails import thumbnails
from manyscope.scopes.panoramas.data.turns import Turn
from manyscope.scopes.panoramas.evaluate import evaluate, figures
from manyscope.scopes.panoramas.evaluate.baselines import Majority
from manyscope.scopes.panoramas.settings import PanoramasEvaluate
from manyscope.scopes.panoramas.views.geometry import View, Views
from manyscope.tables.metrics import Metric
from manyscope.tables.parquet import write_table
from manyscope.tables.whole import write_json

SETTINGS = PanoramasEvaluate(bootstrap_draws=100)
PX = 8


class Asked(NamedTuple):
    """A question of a picture, with its references, and what a model says."""

    picture: int
    split: str
    type: str
    question: str
    references: Sequence[str]
    answer: str = ""
    blind: str = ""
    direction: str = ""


def rooms() -> list[Asked]:
    """Six pictures train, one validates, eight test. Of the test's colours, seven of eight are answered rightly."""
    made = []
    for i in range(15):
        split = "train" if i < 6 else "validation" if i < 7 else "test"
        colour = "red" if i % 3 else "blue"  # red is the commoner one in training
        said = colour if i != 8 else "green"
        made += [
            Asked(i, split, "colour", "what colour is behind you ?", [colour], said, "blue", "back"),
            Asked(i, split, "count", "how many cubes are there ?", [str(i % 2)], "0", "1"),
        ]
    return made


def captions() -> list[Asked]:
    some = []
    for i in range(12):
        split = "train" if i < 3 else "validation" if i < 4 else "test"
        text = f"A wide square number {i} with a church behind it."
        some.append(Asked(i, split, "question", "location", [text, f"square {i}"], text, "A narrow street at night"))
    return some


class Made(NamedTuple):
    data: Panoramas
    predictions: pl.DataFrame

    def judged(self, settings: PanoramasEvaluate = SETTINGS, **columns: Sequence[str]) -> Evaluation:
        predictions = self.predictions.with_columns(**{name: pl.Series(texts) for name, texts in columns.items()})
        return evaluate(settings, self.data, self.data.samples, predictions)


def make(folder: Path, asked: Sequence[Asked]) -> Made:
    """The prepared folder and the predictions, which stand in another order."""
    rng = np.random.default_rng(0)
    number = max(one.picture for one in asked) + 1
    split = {one.picture: one.split for one in asked}
    ids = [f"picture{one.picture:02d}-{row:08x}" for row, one in enumerate(asked)]
    names = [f"picture{i:02d}" for i in range(number)]
    Views((View("perspective", 0.0, 0.0, 90.0, 90.0), View("perspective", 180.0, 0.0, 90.0, 90.0)), PX).save(
        folder / GEOMETRY
    )
    np.save(folder / VIEWS, rng.integers(0, 256, (number, 2, 3, PX, PX), np.uint8))
    np.save(folder / PREVIEWS, rng.integers(0, 256, (number, *PREVIEW_PX, 3), np.uint8))
    columns = {"picture": names, "file": names, "split": [split[i] for i in range(number)]}
    write_table(folder / PICTURES, pl.DataFrame(columns))
    write_json(folder / WORDS, [])
    samples = {
        "sample_id": ids,
        "group": [names[one.picture] for one in asked],
        "split": [one.split for one in asked],
        "picture": [one.picture for one in asked],
        "question": [one.question for one in asked],
        "answer": [one.references[0] for one in asked],
        "type": [one.type for one in asked],
        "direction": [one.direction for one in asked],
        "references": [len(one.references) for one in asked],
    }
    write_table(folder / "samples.parquet", pl.DataFrame(samples))
    pairs = [(name, text) for name, one in zip(ids, asked, strict=True) for text in one.references]
    write_table(folder / REFERENCES, pl.DataFrame(pairs, {"sample_id": pl.String, "answer": pl.String}, orient="row"))
    said = {"answer": [one.answer for one in asked], "blind_answer": [one.blind for one in asked]}
    vectors = rng.normal(size=(len(asked), 3)).astype(np.float32)
    predictions = pl.DataFrame({"object_id": ids, "sample_id": ids, "embedding": vectors, **said})
    return Made(Panoramas(folder), predictions.reverse())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("rooms"), rooms())


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("captions"), captions())


def values(found: Evaluation) -> dict[tuple[str, str, str | None], tuple[float, float | None]]:
    return {(m.name, m.group, m.baseline): (m.value, m.baseline_value) for m in found.metrics}


def test_shares_of_right_answers(made: Made) -> None:
    """Test pictures 7 … 14: blue where the number is a multiple of three (9, 12), red elsewhere; 8 is answered green.
    Of the counts the odd ones (7, 9, 11, 13) are 1: half of the answers '0' are right, and half of the blind '1'."""
    found = made.judged()
    exact = {key[1:]: value for key, value in values(found).items() if key[0] == found.headline}
    assert found.headline == "exact_match"
    assert exact == {
        ("all", "majority"): (11 / 16, 10 / 16),
        ("all", "blind"): (11 / 16, 6 / 16),
        ("colour", "majority"): (7 / 8, 6 / 8),
        ("colour", "blind"): (7 / 8, 2 / 8),
        ("count", "majority"): (4 / 8, 4 / 8),
        ("count", "blind"): (4 / 8, 4 / 8),
        ("seam", "majority"): (7 / 8, 6 / 8),
        ("seam", "blind"): (7 / 8, 2 / 8),
    }
    assert {m.n for m in found.metrics if m.group == "all"} == {16}
    assert {m.n for m in found.metrics if m.group == "seam"} == {8}


def test_one_word_answers_have_no_bleu4(made: Made) -> None:
    names = {m.name for m in made.judged().metrics}
    assert names == {"exact_match", "rouge_l", "cider_d"}
    rouge = values(made.judged())["rouge_l", "all", "majority"]
    assert rouge == pytest.approx((11 / 16, 10 / 16))  # of single words it is the share of right ones


def test_texts_without_types_are_judged_as_one_group(described: Made) -> None:
    found = described.judged()
    assert {m.group for m in found.metrics} == {"all"}
    assert [m.name for m in found.metrics[::2]] == ["exact_match", "bleu4", "rouge_l", "cider_d"]
    assert {m.baseline for m in found.metrics} == {"majority", "blind"}
    perfect = values(found)
    assert perfect["exact_match", "all", "blind"] == (1.0, 0.0)
    assert perfect["bleu4", "all", "blind"] == (1.0, 0.0)
    assert perfect["rouge_l", "all", "blind"][0] == 1.0
    assert perfect["cider_d", "all", "blind"][0] > 2


def test_any_reference_is_right(described: Made) -> None:
    short = [f"Square {int(name[7:9])}" for name in described.predictions["sample_id"]]
    assert values(described.judged(answer=short))["exact_match", "all", "blind"][0] == 1.0


def test_no_type_takes_the_place_of_all_questions(tmp_path: Path) -> None:
    asked = [one._replace(type={"colour": "all"}.get(one.type, one.type)) for one in rooms()]
    metrics = make(tmp_path, asked).judged().metrics
    assert {m.group: m.n for m in metrics} == {"all": 16, "count": 8, "seam": 8}


def test_intervals_are_of_pictures_not_of_questions(tmp_path: Path) -> None:
    """Each picture is asked the same twenty times: the interval is that of the pictures."""
    asked = [
        Asked(i, "train" if i < 4 else "validation" if i < 5 else "test", "question", f"q{j}", ["a"], "ab"[i % 2], "b")
        for i in range(25)
        for j in range(20)
    ]
    metric = make(tmp_path, asked).judged(PanoramasEvaluate(bootstrap_draws=300)).metrics[0]
    assert metric.value == 0.5
    assert metric.n == 400
    # 20 pictures: a standard error of .112; of 400 questions it would be .025.
    assert 0.3 < metric.high - metric.low < 0.6


def test_a_group_of_few_pictures_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rare = [Asked(i, "test", "shape", "what shape ?", ["cube"], "cube", "ball", "back") for i in range(7, 11)]
    asked = [one._replace(direction="") for one in rooms()]
    with caplog.at_level("WARNING", "manyscope"):
        found = make(tmp_path, [*asked, *rare]).judged()
    assert {m.group for m in found.metrics} == {"all", "colour", "count"}
    assert "group 'shape' is left out: it has 4 test pictures, fewer than 5" in caplog.text
    assert "group 'seam'" in caplog.text


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    asked = [one for one in rooms() if one.picture < 10]
    with pytest.raises(DataError, match="3 clusters"):
        make(tmp_path, asked).judged()


def test_the_same_seed_gives_the_same_intervals(made: Made) -> None:
    assert made.judged().metrics == made.judged().metrics
    other = made.judged(SETTINGS.model_copy(update={"seed": 1}))
    assert other.metrics != made.judged().metrics


def test_the_table_of_answers(described: Made) -> None:
    table = described.judged().tables["answers.csv"]
    assert table.columns == [
        "sample_id",
        "type",
        "direction",
        "question",
        "answer",
        "references",
        "right",
        "majority",
        "blind",
    ]
    assert len(table) == 8
    first = table.row(0, named=True)
    assert first["sample_id"] == "picture04-00000004"
    assert first["references"] == "A wide square number 4 with a church behind it. | square 4"
    assert first["right"] is True
    # Each training reference is there once: the first of the alphabet, not one of the test.
    assert first["majority"] == "a wide square number 0 with a church behind it"


@pytest.mark.parametrize("column", ["answer", "blind_answer"])
def test_an_answer_that_is_missing_is_an_error(made: Made, column: str) -> None:
    missing = pl.when(pl.col("sample_id").str.starts_with("picture10")).then(None).otherwise(pl.col(column))
    some = made.predictions.with_columns(missing.alias(column))
    with pytest.raises(DataError, match="2 of 16 test questions have no answer, for example 'picture10-00000014'"):
        evaluate(SETTINGS, made.data, made.data.samples, some)
    with pytest.raises(DataError, match=f"no column '{column}'"):
        evaluate(SETTINGS, made.data, made.data.samples, made.predictions.drop(column))


def test_rows_that_are_missing_or_repeated_are_an_error(made: Made) -> None:
    table = made.predictions
    with pytest.raises(DataError, match="1 of 16 test questions have no answer"):
        evaluate(SETTINGS, made.data, made.data.samples, table[1:])
    with pytest.raises(DataError, match="has more than one answer"):
        evaluate(SETTINGS, made.data, made.data.samples, pl.concat([table, table[:1]]))


def test_a_test_question_without_reference_is_an_error(tmp_path: Path) -> None:
    made = make(tmp_path, rooms())
    last = made.data.samples["sample_id"][-1]
    references = pl.read_parquet(tmp_path / REFERENCES).filter(pl.col("sample_id") != last)
    write_table(tmp_path / REFERENCES, references)
    with pytest.raises(DataError, match=f"test question '{last}' has no reference; run preprocess again"):
        evaluate(SETTINGS, Panoramas(tmp_path), made.data.samples, made.predictions)


def test_majority_falls_back_from_question_to_type_to_all() -> None:
    majority = Majority(
        [
            Turn("colour", "left ?", "Red."),
            Turn("colour", "left ?", "red"),
            Turn("colour", "left ?", "blue"),
            Turn("colour", "right ?", "blue"),
            Turn("colour", "right ?", "green"),
            Turn("count", "cubes ?", "2"),
            Turn("count", "cubes ?", "1"),
            *[Turn("shape", "left shape ?", "cube")] * 4,
        ]
    )
    assert majority("left ?", "colour") == "red"  # the sign and the capital letter make no other answer
    assert majority("right ?", "colour") == "blue"  # as common as green, and before it in the alphabet
    assert majority("behind ?", "colour") == "blue"  # red and blue are equally common among colours
    assert majority("balls ?", "count") == "1"
    assert majority("why ?", "other") == "cube"


def test_the_majority_is_of_the_training_split(tmp_path: Path) -> None:
    asked = [one._replace(references=["violet"]) if one.split != "train" else one for one in rooms()]
    table = make(tmp_path, asked).judged().tables["answers.csv"]
    assert set(table["majority"]) == {"red", "0"}


# Figures


def test_every_figure_has_its_caption_and_can_be_drawn(made: Made, described: Made, tmp_path: Path) -> None:
    for found, names in (
        (made.judged(), {"accuracy", "answers", "counts"}),
        (described.judged(), {"accuracy", "answers"}),
        (made.judged(SETTINGS.model_copy(update={"shown": 0})), {"accuracy", "counts"}),
    ):
        assert found.figures.keys() == found.captions.keys() == {"views", *names}
        for name, figure in found.figures.items():
            save_figure(figure, tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 5_000


def texts_of(figure: object) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]  # type: ignore[attr-defined]


def test_the_page_of_answers_says_right_and_wrong(made: Made) -> None:
    figure = made.judged(SETTINGS.model_copy(update={"shown": 4})).figures["answers"]
    texts = texts_of(figure)
    assert sum(text.startswith("right: ") for text in texts) == 2
    assert sum(text.startswith("wrong: ") for text in texts) == 2
    assert sum(text.startswith("reference: ") for text in texts) == 2  # that of a right answer is the answer
    drawn = [axis.get_images()[0].get_array() for axis in figure.axes if axis.get_images()]
    assert {array.shape for array in drawn} == {(*PREVIEW_PX, 3), (PX + 4, 2 * PX + 4, 3)}
    panoramas = [array for array in drawn if array.shape == (*PREVIEW_PX, 3)]
    assert len(panoramas) == 4
    assert all(any((array == preview).all() for preview in made.data.previews) for array in panoramas)


def test_long_texts_and_signs_stay_on_the_page(tmp_path: Path) -> None:
    picture = np.zeros((4, 8, 3), np.uint8)
    views = np.zeros((13, 16, 16, 3), np.uint8)
    many = [f"reference {i} " + "of many words " * 9 for i in range(5)]
    figure = figures.answers([figures.Example(picture, views, "a $5 question $ " * 40, " ", many, False)])
    texts = texts_of(figure)
    assert max(map(len, texts)) <= 52
    assert "wrong: (no answer)" in texts
    assert len(texts) <= 4 + 1 + 4
    assert [f"reference {i} of" in " ".join(texts) for i in range(4)] == [True, True, True, False]
    assert texts[-1].endswith("2 more")
    save_figure(figure, tmp_path / "page.png")


@pytest.mark.parametrize(
    ("right", "count", "shown"),
    [([1] * 8 + [0] * 8, 6, 3), ([1] * 15 + [0], 6, 5), ([1] + [0] * 15, 6, 1), ([0] * 4, 6, 0), ([1] * 4, 6, 4)],
)
def test_right_and_wrong_are_shown(right: list[int], count: int, shown: int) -> None:
    judged = np.array(right, bool)
    rows = figures.choose(judged, np.arange(len(right)), count, 0)
    assert len(rows) == min(count, len(right)) == len(set(rows))
    assert judged[rows].sum() == shown


def test_other_pictures_are_shown_first() -> None:
    pictures = np.repeat(np.arange(4), 10)
    rows = figures.choose(np.ones(40, bool), pictures, 4, 3)
    assert sorted(pictures[rows]) == [0, 1, 2, 3]
    assert (rows != figures.choose(np.ones(40, bool), pictures, 4, 4)).any()
    assert (rows == figures.choose(np.ones(40, bool), pictures, 4, 3)).all()


def ticks(labels: Sequence[Text]) -> str:
    return " ".join(label.get_text() for label in labels)


def test_counts_stand_where_they_were_answered() -> None:
    assert ticks(figures.counts(["2", "10", "2", "1"], ["2", "2", "10", "1"]).axes[0].get_yticklabels()) == "1 2 10"
    axis = figures.counts(["two", "ten", "two", "one"], ["Two", "two", "red", "one."]).axes[0]
    assert ticks(axis.get_yticklabels()) == "one two ten"
    assert ticks(axis.get_xticklabels()) == "one two ten other"
    table = np.array([int(text.get_text()) for text in axis.texts]).reshape(3, 4)
    np.testing.assert_array_equal(table, [[1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0]])


def test_the_bars_are_those_of_the_metrics() -> None:
    def metric(group: str, value: float, baseline: str, beside: float) -> Metric:
        return Metric("exact_match", group, "", 9, True, value, value - 0.1, value + 0.1, baseline, beside, 0.1, 0, 0.2)

    rows = [metric("all", 0.8, "majority", 0.3), metric("all", 0.8, "blind", 0.2), metric("count", 0.5, "blind", 0.4)]
    axis = figures.accuracy(rows).axes[0]
    assert [bar.get_width() for bar in axis.patches] == [0.8, 0.5]
    marks = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
    assert marks["majority"] == [0.3]
    assert marks["blind"] == [0.2, 0.4]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["all  (n=9)", "count  (n=9)"]


# Small pictures for the page


def test_thumbnails_are_the_panoramas_of_the_questions(made: Made, tmp_path: Path) -> None:
    objects = made.predictions.drop("embedding")
    found = list(thumbnails(made.data.folder, tmp_path, objects))
    assert len(found) == len(objects)
    for picture, name in zip(found, objects["sample_id"], strict=True):
        assert picture is not None
        marked, shown = np.asarray(picture), np.asarray(made.data.previews[int(name[7:9])])
        assert picture.width == 128
        assert picture.height > 64
        np.testing.assert_array_equal(marked[7:64], shown[7:])  # above are the ticks of directions


def test_thumbnails_mark_the_direction_that_is_asked_about_and_the_view_of_it(made: Made, tmp_path: Path) -> None:
    questions = made.data.samples
    found = list(thumbnails(made.data.folder, tmp_path, questions.select("sample_id")))
    for picture, (row, direction) in zip(found, questions.select("picture", "direction").iter_rows(), strict=True):
        assert picture is not None
        changed = np.flatnonzero((np.asarray(picture)[:6] != made.data.previews[row][:6]).any((0, 2)))
        front, back = (picture.getpixel((column, 65)) == (255, 176, 0) for column in (0, 64))
        assert (front, back) == (False, direction == "back")
        assert bool(len(changed)) is (direction == "back")
        assert (np.minimum(changed, 127 - changed) <= 4).all()  # behind is at both sides of the panorama


def test_thumbnails_of_an_unknown_question_are_an_error(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sample 'absent' is unknown"):
        list(thumbnails(made.data.folder, tmp_path, pl.DataFrame({"sample_id": ["absent"]})))
