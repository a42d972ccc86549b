"""How good the latent space is: what the neighbours of a test object say of it, and whether strangers stand out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.evaluation.bootstrap import Score, compare
from manyscope.latent.neighbours import nearest_neighbours
from manyscope.log import logger
from manyscope.scopes.base import Evaluation
from manyscope.scopes.galaxies.data.stamps import FEATURE
from manyscope.scopes.galaxies.data.thumbnails import painter
from manyscope.scopes.galaxies.evaluate import baselines, figures, outliers
from manyscope.scopes.galaxies.evaluate.baselines import Contender
from manyscope.scopes.galaxies.evaluate.measured import MEASURED, measured
from manyscope.tables.metrics import Metric

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.data.stamps import StampData
    from manyscope.scopes.galaxies.settings import GalaxiesEvaluate, GalaxiesModel
    from manyscope.settings.sections import GatherSettings

# Fluxes and sizes span decades: their logarithm is what neighbours predict.
SCALES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"log": np.log10, "linear": np.asarray}
NORMAL = "none"
_RINGS_PX = 8  # smaller images have no rings
_NAME_LETTERS = 16  # of a longer name only the end has room above a stamp


def evaluate(
    model: GalaxiesModel,
    settings: GalaxiesEvaluate,
    gather: GatherSettings,
    data: StampData,
    samples: pl.DataFrame,
    predictions: pl.DataFrame,
) -> Evaluation:
    """Judge the test objects, by neighbours among the training objects, beside PCA, rings and the untrained network.

    Raises:
        DataError: the predictions are not of these samples, or no metric can be measured.
    """
    if predictions["sample_id"].to_list() != samples["sample_id"].to_list():
        raise DataError(f"{len(predictions)} predictions are not of the {len(samples)} samples, in their order")
    train, test = (_some(data.rows(split), settings) for split in ("train", "test"))
    own = baselines.of_model(predictions, train, test)
    shared = {"outlier_asymmetry": own.outliers["outlier_asymmetry"]} if "outlier_asymmetry" in own.outliers else {}
    contenders = {
        "model": own,
        "pca": baselines.pca(settings, gather, data, train, test, own.train.shape[1], shared),
        "untrained": baselines.untrained(model, settings, gather, data, train, test),
    }
    if min(data.shape[1:]) >= _RINGS_PX:
        contenders["rings"] = baselines.rings(settings, gather, data, train, test, shared)
    scales = _usable(settings.properties, samples)
    if not scales and not data.classes and data.unit != FEATURE:
        logger.info("no column says what an object is: brightness, size and colour are measured on the stamps")
        samples = samples.with_columns(measured(data, np.concatenate([train, test])).get_columns())
        scales = dict(MEASURED)
    kinds = _kinds(samples)
    judge = _Judge(contenders, settings, samples[train], samples[test], None if kinds is None else kinds[test])
    judge.classes(data.labels[train], data.labels[test], data.classes)
    judge.properties(scales)
    judge.anomalies()
    judge.reconstruction(np.ptp(data.images(train[:1000])))
    if not judge.metrics:
        raise DataError(
            "there is nothing to judge the latent space by",
            place=data.folder / "samples.parquet",
            allowed=f"classes (preprocess.label), a column anomaly, one of evaluate.properties"
            f" ({', '.join(settings.properties)}), or a model that reconstructs",
        )
    judge.pictures(data, test, train)
    judge.strangers(data, samples, predictions, kinds)
    headline = judge.metrics[0].name
    return Evaluation(headline, judge.metrics, judge.figures, judge.captions, judge.tables)


class _Judge:
    """Metrics and figures of several latent spaces of the same objects.

    Args:
        kinds: (test objects,) kind of anomaly, `NORMAL`, or null where it is unknown; None if nothing is known.
    """

    def __init__(
        self,
        contenders: dict[str, Contender],
        settings: GalaxiesEvaluate,
        train: pl.DataFrame,
        test: pl.DataFrame,
        kinds: pl.Series | None,
    ) -> None:
        self.contenders, self.settings, self.train, self.test, self.kinds = contenders, settings, train, test, kinds
        self.metrics: list[Metric] = []
        self.figures: dict[str, object] = {}
        self.captions: dict[str, str] = {}
        self.tables: dict[str, pl.DataFrame] = {}

    def properties(self, scales: Mapping[str, str]) -> None:
        """R² of properties, from the mean of the nearest training objects that have them.

        Args:
            scales: column -> "log" or "linear".
        """
        shown = {}
        for name, scale in scales.items():
            known, truth = (_known(part[name], SCALES[scale]) for part in (self.train, self.test))
            of_train, of_test = np.flatnonzero(np.isfinite(known)), np.flatnonzero(np.isfinite(truth))
            if len(of_train) < self.settings.neighbours or len(of_test) < 2:
                logger.warning("%s: too few objects have it to be judged", name)
                continue
            predicted = {
                who: known[of_train][self._neighbours(c, of_train, of_test)].mean(1)
                for who, c in self.contenders.items()
            }
            target = truth[of_test]
            self._compare("property_r2", name, "", {w: _r2(p, target) for w, p in predicted.items()}, of_test)
            shown[name] = (target, predicted["model"], predicted["pca"])
        if shown:
            self.figures["properties"] = figures.properties(shown)
            self.captions["properties"] = (
                "Measured properties of test objects against the mean of their nearest training objects in the latent "
                "space; grey: the same in principal components. Flux and radius are in decades."
            )

    def classes(self, member: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> None:
        """Share of normal test objects whose class the nearest training objects vote for, and of a network that learns
        classes, whose class it tells itself.

        Args:
            member, truth: numbers of the classes of training and test objects, -1 where unknown.
        """
        of_train, of_test = np.flatnonzero(member >= 0), np.flatnonzero(self._normal() & (truth >= 0))
        if len(of_train) < self.settings.neighbours or not len(of_test):
            return
        votes = {
            who: _vote(member[of_train][self._neighbours(c, of_train, of_test)], len(names))
            for who, c in self.contenders.items()
        }
        right = {who: _mean((vote == truth[of_test]).astype(float)) for who, vote in votes.items()}
        self._compare("class_accuracy", "all", "", right, of_test)
        told = self.contenders["model"].told
        if told is not None:
            own = _mean((told[of_test] == np.array(names)[truth[of_test]]).astype(float))
            self._compare("classifier_accuracy", "all", "", {**right, "model": own}, of_test)
        self.figures["classes"] = figures.confusion(truth[of_test], votes["model"], list(names))
        self.captions["classes"] = "Class by vote of the nearest training objects, as a share of each true class."

    def anomalies(self) -> None:
        """Area under the ROC curve of the mean rank of all outlier scores, and recall, of the test objects of which it
        is known whether they are anomalies."""
        if self.kinds is None or not self.contenders["model"].outliers:
            return
        known = np.flatnonzero(self.kinds.is_not_null())
        kind = self.kinds.drop_nulls().to_numpy()
        strange = {who: c.strangeness[known] for who, c in self.contenders.items()}
        kinds = [k for k in np.unique(kind) if k != NORMAL]
        for group in ("all", *kinds):
            rows = np.flatnonzero((kind == NORMAL) | (group == "all") | (kind == group))
            odd = kind[rows] != NORMAL
            scores = {who: _auroc(strangeness[rows], odd) for who, strangeness in strange.items()}
            self._compare("anomaly_auroc", group, "", scores, known[rows])
        for group, scores in outliers.recalls(strange, kind, NORMAL):
            self._compare("anomaly_recall", group, "", scores, known)
        if kinds:
            self.figures["recall"] = figures.recall(strange, kind, NORMAL)
            self.captions["recall"] = (
                "Share of the injected anomalies found, against the share of the test objects looked at, the strangest"
                " first: all kinds for each latent space, and each kind for the model. Dotted: the best that is"
                " possible, and a random order."
            )
            self.figures["anomalies"] = figures.roc(strange, kind, NORMAL)
            self.captions["anomalies"] = (
                "How early strangers are found when objects are sorted by the mean rank of their outlier scores: all "
                "kinds for each latent space, and each kind for the model."
            )

    def reconstruction(self, span: float) -> None:
        """Peak signal-to-noise ratio of reconstructed test images, of which `span` is the range of values."""
        errors = {who: c.error for who, c in self.contenders.items() if c.error is not None}
        if "model" not in errors:
            return

        def psnr(error: np.ndarray) -> Score:
            return lambda rows: 10 * np.log10(span**2 / error[rows].mean())

        everything = np.arange(len(self.test))
        self._compare("reconstruction_psnr", "all", "dB", {w: psnr(e) for w, e in errors.items()}, everything)

    def strangers(
        self, data: StampData, samples: pl.DataFrame, predictions: pl.DataFrame, kinds: pl.Series | None
    ) -> None:
        """The ranking of all objects, and a gallery of its first.

        Args:
            kinds: as of `_Judge`, but of all samples.
        """
        if not self.contenders["model"].outliers:
            return
        ranked = outliers.table(samples, predictions)
        self.tables[outliers.FILE] = ranked
        paint = painter(data.unit, data.stamps, data.top_down)
        if paint is None:
            return
        row = predictions.select("object_id").with_row_index("row")
        shown = ranked.drop_nulls("strangeness").head(self.settings.gallery)
        shown = shown.join(row, on="object_id", how="left", maintain_order="left")
        named = shown["object_id"] if kinds is None else kinds[shown["row"]].fill_null("unknown")
        short = [name if len(name) <= _NAME_LETTERS else f"…{name[1 - _NAME_LETTERS :]}" for name in named]
        titles = [f"{r}: {n}\n{s:.3f}" for r, n, s in zip(shown["rank"], short, shown["strangeness"], strict=True)]
        self.figures["strangers"] = figures.gallery(data.stamps[shown["row"].to_numpy()], titles, paint)
        self.captions["strangers"] = (
            f"The strangest of all objects, with their ranks in {outliers.FILE} and the mean ranks of their outlier"
            " scores, 1 being the strangest."
        )

    def pictures(self, data: StampData, test: np.ndarray, train: np.ndarray) -> None:
        """A gallery of neighbours."""
        paint = painter(data.unit, data.stamps, data.top_down)
        if paint is None:
            return
        own = self.contenders["model"]
        order = np.arange(len(test))
        if "snr" in self.test.columns and _is_number(self.test["snr"]):  # of the faintest there is little to see
            brightness = _known(self.test["snr"], SCALES["linear"])
            order = np.argsort(-brightness, kind="stable")[: max(6, len(test) // 4)]
        shown = order[np.linspace(0, len(order) - 1, min(6, len(order))).astype(int)]
        near = nearest_neighbours(own.train, min(8, len(train)), own.test[shown])[1]
        strips = np.stack(
            [data.stamps[np.concatenate([test[[i]], train[n]])] for i, n in zip(shown, near, strict=True)]
        )
        self.figures["neighbours"] = figures.strips(strips, paint)
        self.captions["neighbours"] = "Test objects (left) and their nearest training objects in the latent space."

    def _normal(self) -> np.ndarray:
        if self.kinds is None:
            return np.ones(len(self.test), bool)
        return (self.kinds.is_null() | (self.kinds == NORMAL).fill_null(False)).to_numpy()

    def _neighbours(self, contender: Contender, of_train: np.ndarray, of_test: np.ndarray) -> np.ndarray:
        return nearest_neighbours(contender.train[of_train], self.settings.neighbours, contender.test[of_test])[1]

    def _compare(self, name: str, group: str, unit: str, scores: dict[str, Score], rows: np.ndarray) -> None:
        try:
            self.metrics += compare(
                name,
                group,
                unit=unit,
                higher_is_better=True,
                n=len(rows),
                model=scores["model"],
                baselines={who: score for who, score in scores.items() if who != "model"},
                clusters=self.test["group"].to_numpy()[rows],
                draws=self.settings.bootstrap_draws,
                seed=self.settings.seed,
            )
        except DataError as error:  # a tiny test set may hold no object of a kind
            logger.warning("%s of %s is left out: %s", name, group, error)


def _some(rows: np.ndarray, settings: GalaxiesEvaluate) -> np.ndarray:
    """At most `settings.objects` of the rows, a seeded choice, in their order."""
    if len(rows) <= settings.objects:
        return rows
    return np.sort(np.random.default_rng(settings.seed).choice(rows, settings.objects, replace=False))


def _usable(properties: Mapping[str, str], samples: pl.DataFrame) -> dict[str, str]:
    """The properties that there are, as numbers."""
    there = {name: scale for name, scale in properties.items() if name in samples.columns}
    for name in [name for name in there if not _is_number(samples[name])]:
        logger.warning("column %r holds no numbers (%s): it is not judged as a property", name, samples[name].dtype)
        del there[name]
    return there


def _kinds(samples: pl.DataFrame) -> pl.Series | None:
    """What the column `anomaly` says of each sample, (samples,) text: a kind of anomaly, `NORMAL`, or null where it is
    unknown. A column of true and false knows one kind. None without a column that says it."""
    if "anomaly" not in samples.columns:
        return None
    column = samples["anomaly"]
    if column.dtype == pl.Boolean:
        kinds = column.replace_strict([True, False], ["anomaly", NORMAL], default=None, return_dtype=pl.String)
    elif column.dtype in (pl.String, pl.Categorical, pl.Enum):
        kinds = column.cast(pl.String)
    else:
        logger.warning("column 'anomaly' holds neither names nor true and false (%s): it is not used", column.dtype)
        return None
    if NORMAL not in kinds:
        logger.warning("column 'anomaly' calls no object %r: it is not used", NORMAL)
        return None
    return kinds


def _is_number(column: pl.Series) -> bool:
    return column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)


def _known(column: pl.Series, scale: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The scaled values, (n,) float64; NaN where there is none or where the scale has no value for it."""
    values = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    with np.errstate(all="ignore"):
        scaled = scale(values)
    return np.where(np.isfinite(scaled), scaled, np.nan)


def _vote(classes: np.ndarray, count: int) -> np.ndarray:
    """The most frequent class of each row of neighbours, nearest first; of equally frequent ones, the nearer."""
    n, k = classes.shape
    weight = 1 + 0.5 ** np.arange(1, k + 1)  # what is added sums to less than one vote
    votes = np.bincount((np.arange(n)[:, None] * count + classes).ravel(), np.tile(weight, n), n * count)
    return votes.reshape(n, count).argmax(1)


def _r2(predicted: np.ndarray, truth: np.ndarray) -> Score:
    """Coefficient of determination: 1 - squared error over variance."""
    error = (truth - predicted) ** 2

    def score(rows: np.ndarray) -> float:
        spread = ((truth[rows] - truth[rows].mean()) ** 2).sum()
        return float(1 - error[rows].sum() / spread) if spread > 0 else np.nan

    return score


def _mean(values: np.ndarray) -> Score:
    return lambda rows: float(values[rows].mean())


def _auroc(strangeness: np.ndarray, odd: np.ndarray) -> Score:
    """Probability that an anomaly is stranger than a normal object, ties counting half (Mann and Whitney 1947)."""
    level = np.unique(strangeness, return_inverse=True)[1]
    levels = int(level.max()) + 1

    def score(rows: np.ndarray) -> float:
        is_odd = odd[rows]
        positive = np.bincount(level[rows][is_odd], minlength=levels)
        negative = np.bincount(level[rows][~is_odd], minlength=levels)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative / 2
        return float((positive * below).sum() / pairs) if pairs else np.nan

    return score
