"""How good the latent space is: what the neighbours of a test object say of it, and whether strangers stand out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.evaluation.bootstrap import Score, compare
from manyscope.latent.neighbours import nearest_neighbours
from manyscope.log import logger
from manyscope.scopes.base import Evaluation
from manyscope.scopes.galaxies.evaluate import baselines, figures
from manyscope.scopes.galaxies.evaluate.baselines import Contender
from manyscope.tables.metrics import Metric

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.data.stamps import StampData
    from manyscope.scopes.galaxies.settings import GalaxiesEvaluate, GalaxiesModel
    from manyscope.settings.sections import GatherSettings

# Fluxes and sizes span decades: their logarithm is what neighbours predict.
PROPERTIES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "flux": np.log10,
    "half_light_radius": np.log10,
    "ellipticity": np.asarray,
    "colour": np.asarray,
}
NORMAL = "none"


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
        "rings": baselines.rings(settings, gather, data, train, test, shared),
    }
    judge = _Judge(contenders, settings, samples[train], samples[test])
    judge.classes()
    judge.properties()
    judge.anomalies()
    judge.reconstruction(np.ptp(data.images(train[:1000])))
    if not judge.metrics:
        raise DataError(
            "there is nothing to judge the latent space by",
            place=data.folder / "samples.parquet",
            allowed=f"a column class, anomaly, {', '.join(PROPERTIES)}, or a model that reconstructs",
        )
    judge.pictures(data, test, train)
    headline = judge.metrics[0].name
    return Evaluation(headline, judge.metrics, judge.figures, judge.captions)


class _Judge:
    """Metrics and figures of several latent spaces of the same objects."""

    def __init__(
        self,
        contenders: dict[str, Contender],
        settings: GalaxiesEvaluate,
        train: pl.DataFrame,
        test: pl.DataFrame,
    ) -> None:
        self.contenders, self.settings, self.train, self.test = contenders, settings, train, test
        self.metrics: list[Metric] = []
        self.figures: dict[str, object] = {}
        self.captions: dict[str, str] = {}

    def properties(self) -> None:
        """R² of measured properties, from the mean of the nearest training objects that have them."""
        shown = {}
        for name, scale in PROPERTIES.items():
            if name not in self.test.columns:
                continue
            known, truth = _known(self.train[name], scale), _known(self.test[name], scale)
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

    def classes(self) -> None:
        """Share of normal test objects whose class the nearest training objects vote for."""
        if "class" not in self.test.columns:
            return
        names = np.unique(np.concatenate([self.train["class"].to_numpy(), self.test["class"].to_numpy()]))
        member, truth = (np.searchsorted(names, part["class"].to_numpy()) for part in (self.train, self.test))
        of_test = np.flatnonzero(self._normal())
        everyone = np.arange(len(self.train))
        votes = {
            who: _vote(member[self._neighbours(c, everyone, of_test)], len(names)) for who, c in self.contenders.items()
        }
        right = {who: _mean((vote == truth[of_test]).astype(float)) for who, vote in votes.items()}
        self._compare("class_accuracy", "all", "", right, of_test)
        self.figures["classes"] = figures.confusion(truth[of_test], votes["model"], list(names))
        self.captions["classes"] = "Class by vote of the nearest training objects, as a share of each true class."

    def anomalies(self) -> None:
        """Area under the ROC curve of the mean rank of all outlier scores."""
        if "anomaly" not in self.test.columns or not self.contenders["model"].outliers:
            return
        kind = self.test["anomaly"].to_numpy()
        strange = {who: c.strangeness for who, c in self.contenders.items()}
        kinds = [k for k in np.unique(kind) if k != NORMAL]
        for group in ("all", *kinds):
            rows = np.flatnonzero((kind == NORMAL) | (group == "all") | (kind == group))
            odd = kind[rows] != NORMAL
            self._compare("anomaly_auroc", group, "", {w: _auroc(s[rows], odd) for w, s in strange.items()}, rows)
        if kinds:
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

    def pictures(self, data: StampData, test: np.ndarray, train: np.ndarray) -> None:
        """Galleries of strangers and of neighbours."""
        own = self.contenders["model"]
        if own.outliers:
            strangest = np.argsort(-own.strangeness, kind="stable")[: self.settings.gallery]
            names = (
                self.test["anomaly"].to_list() if "anomaly" in self.test.columns else self.test["sample_id"].to_list()
            )
            self.figures["strangers"] = figures.gallery(data.stamps[test[strangest]], [names[i] for i in strangest])
            self.captions["strangers"] = "The strangest test objects, by the mean rank of their outlier scores."
        order = np.arange(len(test))
        if "snr" in self.test.columns:  # of the faintest there is little to see
            order = np.argsort(-self.test["snr"].to_numpy(), kind="stable")[: max(6, len(test) // 4)]
        shown = order[np.linspace(0, len(order) - 1, min(6, len(order))).astype(int)]
        near = nearest_neighbours(own.train, min(8, len(train)), own.test[shown])[1]
        strips = np.stack(
            [data.stamps[np.concatenate([test[[i]], train[n]])] for i, n in zip(shown, near, strict=True)]
        )
        self.figures["neighbours"] = figures.strips(strips)
        self.captions["neighbours"] = "Test objects (left) and their nearest training objects in the latent space."

    def _normal(self) -> np.ndarray:
        if "anomaly" not in self.test.columns:
            return np.ones(len(self.test), bool)
        return (self.test["anomaly"] == NORMAL).to_numpy()

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
