"""Strangers: the ranking of all objects, and how early injected anomalies are found in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from manyscope.evaluation.bootstrap import Score
from manyscope.latent.ranking import ranking

FILE = "outliers.csv"
SHARES = (0.01, 0.05, 0.10)
"""Of the objects that somebody looks at, the strangest first."""
_KNOWN = ("split", "class", "anomaly")


def table(samples: pl.DataFrame, predictions: pl.DataFrame) -> pl.DataFrame:
    """All objects, of every split, by `manyscope.latent.ranking.ranking`; with what is known of each, if anything:
    split, class and anomaly.

    Args:
        predictions: one object a sample, with at least one outlier score.
    """
    ranked = ranking(predictions).with_columns(pl.col("percentile").round(3), pl.col("strangeness").round(6))
    known = samples.select("sample_id", *(name for name in _KNOWN if name in samples.columns))
    of_object = predictions.select("object_id", "sample_id").join(known, on="sample_id", how="left").drop("sample_id")
    return ranked.join(of_object, on="object_id", how="left", maintain_order="left")


def recalls(
    strangeness: Mapping[str, np.ndarray], kind: np.ndarray, normal: str
) -> Iterator[tuple[str, dict[str, Score]]]:
    """The name of a group, and the recall of each contender: of all anomalies at each of `SHARES`, then of each kind at
    the largest one.

    Args:
        strangeness: contender -> (objects,).
        kind: (objects,) kind of anomaly, or `normal`.
    """
    for group in ("all", *(k for k in np.unique(kind) if k != normal)):
        odd = kind != normal if group == "all" else kind == group
        for share in SHARES if group == "all" else SHARES[-1:]:
            yield f"{group}, top {share:.0%}", {who: recall(s, odd, share) for who, s in strangeness.items()}


def recall(strangeness: np.ndarray, odd: np.ndarray, share: float) -> Score:
    """Share of the `odd` objects among so large a share of all objects, the strangest first. Of equally strange ones at
    the border, and of an object that the share divides, a part counts: what is expected of a random order."""
    level = np.unique(-strangeness, return_inverse=True)[1]
    levels = int(level.max()) + 1

    def score(rows: np.ndarray) -> float:
        objects = np.bincount(level[rows], minlength=levels)
        anomalies = np.bincount(level[rows][odd[rows]], minlength=levels)
        if not anomalies.any():
            return np.nan
        stranger = np.cumsum(objects) - objects
        seen = np.clip((share * len(rows) - stranger) / np.maximum(objects, 1), 0, 1)
        return float((anomalies * seen).sum() / anomalies.sum())

    return score


def curve(strangeness: np.ndarray, odd: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """`recall` at each share, (shares,)."""
    everyone = np.arange(len(odd))
    return np.array([recall(strangeness, odd, share)(everyone) for share in shares])
