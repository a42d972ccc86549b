"""Directions on the sphere: angles, distances between directions, and losses of a network that predicts one.

A network's raw output p (..., 3) stands for a von Mises-Fisher distribution on the sphere (Fisher, Proc. R. Soc. A 217
(1953) 295): its direction p/|p|, and its concentration kappa = |p|. Losses compare it with the true unit vector n. They
are computed in float32 at least, outside autocast, since 16 bits cannot tell directions within a few degrees apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from manyscope.errors import SettingsError
from manyscope.registry import Registry

LOSSES = Registry(
    "directional loss",
    {
        "vmf": "manyscope.nn.directional:vmf_loss",
        "angular": "manyscope.nn.directional:angular_loss",
        "cosine": "manyscope.nn.directional:cosine_loss",
    },
)
MAX_KAPPA = 1e6
_DISTANCE_EPS = 1e-12
_SHORTEST = 1e-6  # an output shorter than this has no direction to speak of
_SERIES_BELOW = 0.2
# log(sinh k / k) = k²/6 - k⁴/180 + …: coefficients 2^2n B_2n / (2n (2n)!) of k^2n
_LOG_SINHC = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775)


def unit_vector(azimuth: Tensor, zenith: Tensor) -> Tensor:
    """n = (cos az sin zen, sin az sin zen, cos zen), (..., 3), of angles (...) in radians."""
    sin_zenith = torch.sin(zenith)
    return torch.stack(
        (torch.cos(azimuth) * sin_zenith, torch.sin(azimuth) * sin_zenith, torch.cos(zenith).expand_as(sin_zenith)), -1
    )


def angles(vector: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuth in [0, 2 pi) and zenith in [0, pi], each (...), of vectors (..., 3) of any length.

    The bounds hold for the numbers as stored, also once cast to float64: float32 rounds both pi and 2 pi upwards. A
    vector along z has azimuth 0, the zero vector both angles 0. For results, not for training: at the poles there is no
    gradient.
    """
    x, y, z = _precise(vector).unbind(-1)
    across = torch.hypot(x, y)
    azimuth = torch.atan2(y, x)
    azimuth = torch.where(azimuth < 0, azimuth + 2 * math.pi, azimuth)
    azimuth = torch.where((azimuth >= 2 * math.pi) | (across == 0), 0.0, azimuth)
    zenith = torch.where((across == 0) & (z == 0), 0.0, torch.atan2(across, z))
    greatest_below_pi = math.pi if z.dtype == torch.float64 else float(np.nextafter(np.float32(math.pi), np.float32(0)))
    return azimuth, zenith.clamp(max=greatest_below_pi)


def angular_distance(u: Tensor, v: Tensor, eps: float = 0.0) -> Tensor:
    """Great-circle angle (...) in [0, pi] between unit vectors u and v (..., 3), in radians.

    2 atan2(|u - v|, |u + v|) (Kahan, "How futile are mindless assessments of roundoff in floating-point computation",
    2006), which is accurate at 0 and pi, where arccos(u.v) is not.

    Args:
        u: unit vectors (..., 3).
        v: unit vectors (..., 3).
        eps: |x| is taken as sqrt(x.x + eps). With 0 the gradient at u = v and at u = -v is not a number; with 1e-12 it
            is finite everywhere and the angle is off by 1e-6 at most.
    """
    with _full_precision(u):
        u, v = _precise(u), _precise(v)
        apart = ((u - v).square().sum(-1) + eps).sqrt()
        along = ((u + v).square().sum(-1) + eps).sqrt()
        return 2 * torch.atan2(apart, along)


def vmf_log_normaliser(kappa: Tensor) -> Tensor:
    """log C3 = log(kappa / (4 pi sinh kappa)) (...) of concentrations (...) >= 0.

    The density is C3 exp(kappa mu.x) on the sphere (Mardia & Jupp, Directional Statistics, 2000, section 9.3).
    Computed as log k - k - log(1 - exp(-2k)) - log(2 pi), and below 0.2, where the gradient of that form cancels to
    noise in float32, by the series of log(sinh k / k). Value and gradient are finite for kappa from 0 to 1e6.
    """
    with _full_precision(kappa):
        kappa = _precise(kappa)
        return _scaled_log_normaliser(kappa) - kappa


def vmf_loss(p: Tensor, n: Tensor) -> Tensor:
    """Negative log-likelihood (...) of true unit vectors n (..., 3) under the outputs p (..., 3): -log C3(|p|) - p.n.

    kappa - p.n, the difference of two large numbers for a sharp prediction, is computed as kappa |p/|p| - n|² / 2.
    """
    with _full_precision(p):
        p, n = _precise(p), _precise(n)
        kappa = torch.linalg.vector_norm(p, dim=-1)
        sharp = kappa > 1
        # The branch not taken must stay finite too: where() multiplies its gradient by zero.
        length = torch.where(sharp, kappa, 1.0)
        apart = length * (p / length[..., None] - n).square().sum(-1) / 2
        return torch.where(sharp, apart, kappa - (p * n).sum(-1)) - _scaled_log_normaliser(kappa)


def angular_loss(p: Tensor, n: Tensor) -> Tensor:
    """Great-circle angle (...), in radians, between the directions of p and the true unit vectors n (..., 3)."""
    with _full_precision(p):
        return angular_distance(_direction(p), n, eps=_DISTANCE_EPS)


def cosine_loss(p: Tensor, n: Tensor) -> Tensor:
    """1 - cos of the angle (...) between p and the true unit vectors n (..., 3), as |p/|p| - n|² / 2."""
    with _full_precision(p):
        return (_direction(p) - _precise(n)).square().sum(-1) / 2


class DirectionalLoss:
    """A weighted sum of losses by name.

    Args:
        weights: name in `LOSSES`, or import path of a function (p, n) -> loss per row, to its weight. A loss of weight
            0 is reported and does not train.

    Raises:
        ManyscopeError: a name is unknown.
        SettingsError: the weights are none, negative, not finite, or all 0.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        if not all(0 <= w < math.inf for w in weights.values()) or not any(weights.values()):
            raise SettingsError(
                f"loss weights: {dict(weights)}; allowed: finite numbers >= 0, at least one of them > 0"
            )
        self.weights = dict(weights)
        self._losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {name: LOSSES.find(name) for name in weights}

    def __call__(self, p: Tensor, n: Tensor) -> dict[str, Tensor]:
        """Means over the rows of p (B, 3) and n (B, 3): "loss", the weighted sum, and each one by its name; scalars."""
        means = {name: loss(p, n).mean() for name, loss in self._losses.items()}
        trained = [weight * means[name] for name, weight in self.weights.items() if weight]
        return {"loss": torch.stack(trained).sum(), **means}


def vmf_cone(kappa: np.ndarray | float, share: np.ndarray | float) -> np.ndarray:
    """Half-angle, radians, of the cone about its mean that holds a share of a von Mises-Fisher distribution.

    1 - cos t = -log(1 - share (1 - exp(-2 kappa))) / kappa (inverse of the distribution of cos t, Fisher 1953), and
    2 share for the uniform distribution at kappa = 0.

    Args:
        kappa: concentrations >= 0; broadcast with `share`.
        share: probabilities in [0, 1].

    Returns:
        Angles in [0, pi], float64.
    """
    kappa, share = np.broadcast_arrays(np.asarray(kappa, np.float64), np.asarray(share, np.float64))
    k = np.where(kappa > 0, kappa, 1.0)
    with np.errstate(divide="ignore"):
        # the logarithm of one number: the first form keeps its digits where that is near 1, the second near 0
        near_one = np.log1p(share * np.expm1(-2 * k))
        near_zero = np.log((1 - share) + share * np.exp(-2 * k))
    log_outside = np.where((share < 0.5) | (k < 1), near_one, near_zero)
    versine = np.where(kappa > 0, -log_outside / k, 2 * share)
    return np.asarray(2 * np.arcsin(np.sqrt(np.clip(versine / 2, 0, 1))))


def kappa_of_cone(angle: np.ndarray | float, share: np.ndarray | float) -> np.ndarray:
    """The concentration whose cone of a share has the half-angle given: the inverse of `vmf_cone` in kappa.

    Args:
        angle: radians in [0, pi]; broadcast with `share`.
        share: probabilities, inside (0, 1).

    Returns:
        float64 in [0, 1e6], by bisection; 0 for an angle as wide as that of the uniform distribution or wider, 1e6 for
        one narrower than any.
    """
    angle, share = np.broadcast_arrays(np.asarray(angle, np.float64), np.asarray(share, np.float64))
    low, high = np.zeros(angle.shape), np.full(angle.shape, math.log1p(MAX_KAPPA))  # log(1 + kappa)
    for _ in range(60):
        middle = (low + high) / 2
        too_wide = vmf_cone(np.expm1(middle), share) > angle
        low, high = np.where(too_wide, middle, low), np.where(too_wide, high, middle)
    kappa = np.expm1((low + high) / 2)
    kappa = np.where(vmf_cone(0.0, share) <= angle, 0.0, kappa)
    return np.asarray(np.where(vmf_cone(MAX_KAPPA, share) >= angle, MAX_KAPPA, kappa))


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    return torch.autocast(x.device.type, enabled=False)


def _direction(p: Tensor) -> Tensor:
    return F.normalize(_precise(p), dim=-1, eps=_SHORTEST)


def _scaled_log_normaliser(kappa: Tensor) -> Tensor:
    """log C3(kappa) + kappa, free of the large numbers that cancel in a likelihood."""
    near_zero = kappa < _SERIES_BELOW
    small, large = torch.where(near_zero, kappa, 0.0), torch.where(near_zero, 1.0, kappa)
    square, series = small.square(), torch.zeros_like(small)
    for coefficient in reversed(_LOG_SINHC):
        series = (series + coefficient) * square
    closed = large.log() - torch.log(-torch.expm1(-2 * large)) - math.log(2 * math.pi)
    return torch.where(near_zero, small - series - math.log(4 * math.pi), closed)
