"""How near the predicted directions come to the true ones, beside the line fit; and whether kappa keeps its word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.evaluation.bootstrap import Score, compare
from manyscope.log import logger
from manyscope.nn.directional import vmf_cone
from manyscope.scopes.base import Evaluation
from manyscope.scopes.neutrinos.evaluate import displays, figures
from manyscope.scopes.neutrinos.evaluate.judged import Judged, judged, zenith
from manyscope.scopes.neutrinos.evaluate.submission import FILE_NAME, submission
from manyscope.tables.metrics import Metric

if TYPE_CHECKING:
    from manyscope.scopes.neutrinos.data.loading import EventData
    from manyscope.scopes.neutrinos.settings import NeutrinosEvaluate

HEADLINE = "mean_angular_error"
LEVELS = np.arange(1, 10) / 10  # nominal shares at which the cones are checked
CONE_SHARE = 0.68
FEWEST = 20  # events of a group
_ENERGY_EDGES = np.arange(1, 5.25, 0.5)  # half decades from 10 GeV to 100 TeV; all above is one band
_PULSE_EDGES = (100, 1000)
_HORIZONTAL = 0.33  # |cos zenith|

Groups = Mapping[str, np.ndarray]
Statistic = Callable[[np.ndarray], float]


def evaluate(
    settings: NeutrinosEvaluate, data: EventData, samples: pl.DataFrame, predictions: pl.DataFrame
) -> Evaluation:
    """Judge the predictions of the test events.

    Args:
        samples: the samples of `data`.
        predictions: sample_id, azimuth, zenith, kappa, kappa_raw; in any order, and maybe of other splits too.

    Raises:
        DataError: there is no test sample, one has no prediction or several, or one that is not a number.
    """
    if "test" not in samples["split"]:
        raise DataError("there is no test sample to judge the predictions on", place=data.folder / "samples.parquet")
    events = judged(data, samples, predictions)
    kinds = {"all": np.ones(len(events), bool), **{kind: events.of_kind(kind) for kind in events.kinds}}
    groups = _large_enough({**kinds, **_energies(events), **_pulses(events), **_zeniths(events)})
    kinds = {name: member for name, member in groups.items() if name in kinds}
    everything = {"all": kinds["all"]}

    measure = _Measure(settings)
    line_fit = {"line_fit": events.line_fit_error}
    measure(HEADLINE, groups, "rad", _mean, events.error, line_fit)
    measure("median_angular_error", kinds, "rad", _median, events.error, line_fit)
    uncalibrated = {"uncalibrated": too_narrow(events.error, events.kappa_raw)}
    measure("kappa_calibration", kinds, "", coverage_gap, too_narrow(events.error, events.kappa), uncalibrated)
    inside = events.error <= vmf_cone(events.kappa, CONE_SHARE)
    measure("cone_68_share", kinds, "", _mean, inside, {}, higher_is_better=None)  # 0.68 is right
    true = zenith(events.true)
    biased = {"line_fit": zenith(events.line_fit) - true}
    measure("zenith_bias", everything, "rad", _size_of_mean, zenith(events.model) - true, biased)

    table = submission(samples, predictions)
    drawn, captions = figures.draw(events)
    if settings.displays:
        drawn["events"] = displays.draw(data, events, settings.displays)
        captions["events"] = displays.CAPTION
    return Evaluation(HEADLINE, measure.metrics, drawn, captions, {} if table is None else {FILE_NAME: table})


def too_narrow(error: np.ndarray, kappa: np.ndarray) -> np.ndarray:
    """For each event, how many of the cones of the shares `LEVELS` do not hold its true direction, (n,) int64 in 0 … 9.

    Args:
        error: (n,) radians.
        kappa: (n,) concentration of a von Mises-Fisher distribution about the prediction.
    """
    narrow = np.zeros(len(error), np.int64)
    for level in LEVELS:
        narrow += error > vmf_cone(kappa, level)
    return narrow


def coverage_gap(narrow: np.ndarray) -> float:
    """Mean over `LEVELS` of the absolute difference between the share of events inside the cone and the nominal share.

    Args:
        narrow: (n,) what `too_narrow` says; cones are nested, so that a cone holds an event if fewer than it are.
    """
    held = np.cumsum(np.bincount(narrow, minlength=len(LEVELS) + 1))[:-1] / len(narrow)
    return float(np.abs(held - LEVELS).mean())


class _Measure:
    """Collects a metric for each of some groups."""

    def __init__(self, settings: NeutrinosEvaluate) -> None:
        self._settings = settings
        self.metrics: list[Metric] = []

    def __call__(
        self,
        name: str,
        groups: Groups,
        unit: str,
        statistic: Statistic,
        model: np.ndarray,
        baselines: Mapping[str, np.ndarray],
        *,
        higher_is_better: bool | None = False,
    ) -> None:
        for group, member in groups.items():
            # No clusters: events are recorded, or simulated, independently of each other.
            self.metrics += compare(
                name,
                group,
                unit=unit,
                higher_is_better=higher_is_better,
                n=int(member.sum()),
                model=_score(statistic, model[member]),
                baselines={who: _score(statistic, values[member]) for who, values in baselines.items()},
                draws=self._settings.bootstrap_draws,
                seed=self._settings.seed,
            )


def _score(statistic: Statistic, values: np.ndarray) -> Score:
    return lambda rows: statistic(values[rows])


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def _size_of_mean(values: np.ndarray) -> float:
    return float(abs(values.mean()))


def _energies(events: Judged) -> Groups:
    if events.energy_gev is None:
        return {}
    with np.errstate(invalid="ignore", divide="ignore"):
        band = np.where(events.energy_gev > 0, np.digitize(np.log10(events.energy_gev), _ENERGY_EDGES), -1)
    edges = [f"{10**edge:.0f}" for edge in _ENERGY_EDGES]
    between = [f"{low}-{high}" for low, high in pairwise(edges)]
    names = [f"< {edges[0]}", *between, f">= {edges[-1]}"]
    return {f"energy {name} GeV": band == i for i, name in enumerate(names)}


def _pulses(events: Judged) -> Groups:
    n, (few, many) = events.n_pulses, _PULSE_EDGES
    return {
        f"pulses < {few}": n < few,
        f"pulses {few}-{many}": (n >= few) & (n < many),
        f"pulses >= {many}": n >= many,
    }


def _zeniths(events: Judged) -> Groups:
    up = events.true[:, 2]  # cosine of the zenith of where the particle came from
    return {
        "down-going": up > _HORIZONTAL,
        "horizontal": np.abs(up) <= _HORIZONTAL,
        "up-going": up < -_HORIZONTAL,
    }


def _large_enough(groups: Groups) -> Groups:
    """The groups that are worth an interval; all events together are, whatever their number."""
    kept = {}
    for name, member in groups.items():
        count = int(member.sum())
        if count >= FEWEST or name == "all":
            kept[name] = member
        elif count:
            logger.warning("group %r is left out: it has %d test events, fewer than %d", name, count, FEWEST)
    return kept
