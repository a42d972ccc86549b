"""Catmull-Rom splines over the time of a clip, as matrices from control points to values.

Between the control points v1 and v2, with neighbours v0 and v3 and u in [0, 1], a value is
0.5 [(-u³ + 2u² - u) v0 + (3u³ - 5u² + 2) v1 + (-3u³ + 4u² + u) v2 + (u³ - u²) v3] (Catmull and Rom, 1974).
"""

from __future__ import annotations

import numpy as np


def basis(times: np.ndarray, points: int, beyond: bool = False) -> np.ndarray:
    """The matrix that takes control points to values at the times, (times, points) float64; its rows sum to 1.

    Args:
        times: (n,), 0 is the first frame and 1 the last.
        points: number of control points, equally spaced.
        beyond: the points lie on [-d, 1 + d], d being their distance, so that every time has four; at least 4 of them.
            Else they lie on [0, 1], and a missing neighbour at the ends is extrapolated along a line; at least 1.
    """
    times = np.clip(np.asarray(times, float), 0, 1)
    if points < (4 if beyond else 1):
        raise ValueError(f"{points} control points")
    if points == 1:
        return np.ones((len(times), 1))
    inner = points - 2 if beyond else points
    place = times * (inner - 1)
    first = np.minimum(place.astype(int), inner - 2)
    u = (place - first)[:, None]
    weights = 0.5 * np.concatenate(
        [-(u**3) + 2 * u**2 - u, 3 * u**3 - 5 * u**2 + 2, -3 * u**3 + 4 * u**2 + u, u**3 - u**2], axis=1
    )
    padded = np.zeros((len(times), inner + 2))  # the points with one more at each end
    padded[np.arange(len(times))[:, None], first[:, None] + np.arange(4)] = weights
    if beyond:
        return padded
    matrix = padded[:, 1:-1].copy()
    matrix[:, 0] += 2 * padded[:, 0]
    matrix[:, 1] -= padded[:, 0]
    matrix[:, -1] += 2 * padded[:, -1]
    matrix[:, -2] -= padded[:, -1]
    return matrix


def fit(times: np.ndarray, values: np.ndarray, points: int) -> np.ndarray:
    """Control points on [0, 1] whose spline comes nearest to the values by least squares, (points, ...).

    Where values are too few for the points, the smoothest of the splines through them is taken.

    Args:
        times: (n,) in [0, 1].
        values: (n, ...).
    """
    matrix = basis(times, points)
    flat = np.asarray(values, float).reshape(len(values), -1)
    # A weak pull to equal steps decides what the values leave open.
    bend = 1e-4 * np.diff(np.eye(points), n=2, axis=0)
    solved, *_ = np.linalg.lstsq(
        np.concatenate([matrix, bend]), np.concatenate([flat, np.zeros((len(bend), flat.shape[1]))]), rcond=None
    )
    return solved.reshape(points, *np.shape(values)[1:])
