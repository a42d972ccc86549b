"""From how long a network makes its vector to a concentration that holds what it promises."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from manyscope.errors import DataError
from manyscope.nn.directional import kappa_of_cone

SHARE = 0.68  # of the events that a cone shall hold
_KNOTS = 16
_EVENTS_OF_KNOT = 10
FEWEST = 2 * _EVENTS_OF_KNOT  # events in all


class Calibration(nn.Module):
    """A rising curve from raw to calibrated kappa, straight in logarithms between knots; the identity until fitted."""

    raw: Tensor
    calibrated: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("raw", torch.logspace(-6, 6, _KNOTS))
        self.register_buffer("calibrated", torch.logspace(-6, 6, _KNOTS))

    def forward(self, kappa: Tensor) -> Tensor:
        """(n,) -> (n,) float32; beyond the outer knots kappa is scaled as at them, and zero stays zero."""
        x, xs, ys = kappa.float().clamp(min=1e-12).log(), self.raw.log(), self.calibrated.log()
        right = torch.searchsorted(xs, x).clamp(1, _KNOTS - 1)
        left = right - 1
        step = (xs[right] - xs[left]).clamp(min=1e-12)
        inside = torch.lerp(ys[left], ys[right], ((x - xs[left]) / step).clamp(0, 1))
        beyond = (x - xs[-1]).clamp(min=0) + (x - xs[0]).clamp(max=0)
        return torch.where(kappa > 0, (inside + beyond).exp(), 0.0)

    def fit(self, kappa: np.ndarray, angle: np.ndarray) -> None:
        """Let the cone that holds 68 % of a von Mises-Fisher distribution hold 68 % of these events, whatever kappa.

        Events are sorted by raw kappa and cut into equal parts; each part's 68th percentile of the error, made to
        fall with kappa (isotonic regression), gives a knot.

        Args:
            kappa: (events,) raw, of events that the network was not trained on.
            angle: (events,) error in rad.

        Raises:
            DataError: there are too few events.
        """
        from sklearn.isotonic import isotonic_regression

        if len(kappa) < FEWEST:
            raise DataError(
                f"{len(kappa)} validation events cannot calibrate kappa",
                allowed=f"{FEWEST} or more",
                remedy="raise preprocess.validation_fraction",
            )
        parts = np.array_split(np.argsort(kappa, kind="stable"), min(_KNOTS, len(kappa) // _EVENTS_OF_KNOT))
        centre = np.array([np.log(np.maximum(kappa[p], 1e-6)).mean() for p in parts])
        cone = np.array([np.quantile(angle[p], SHARE) for p in parts])
        smooth = isotonic_regression(cone, sample_weight=[len(p) for p in parts], increasing=False)
        goal = np.log(np.maximum(kappa_of_cone(smooth, SHARE), 1e-6))
        # As many knots whatever the number of parts: a checkpoint has one shape.
        knots = np.linspace(centre[0], centre[-1], _KNOTS)
        self.raw.copy_(torch.from_numpy(np.exp(knots)))
        self.calibrated.copy_(torch.from_numpy(np.exp(np.interp(knots, centre, goal))))
