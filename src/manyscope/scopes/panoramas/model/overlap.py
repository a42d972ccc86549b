"""Agreement of views about what several of them see.

A correspondence pairs tokens of one view with places of another; a loss compares their features. `exact` pairs what
looks into the same direction; `columns` is the common shortcut that takes the last columns of a view for the first ones
of the next, which a pinhole camera does not bear out.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyscope.errors import ManyscopeError
from manyscope.nn.across import gather, share_of
from manyscope.registry import Registry
from manyscope.scopes.panoramas.settings import OverlapSettings
from manyscope.scopes.panoramas.views.geometry import View, Views, project, rays

_HERE = "manyscope.scopes.panoramas.model.overlap"
LOSSES = Registry(
    "overlap loss", {"vicreg": f"{_HERE}:VICReg", "infonce": f"{_HERE}:InfoNCE", "densecl": f"{_HERE}:DenseCL"}
)
_PLACE = "model.overlap"
_EDGE = 1e-6  # of a token: so far beyond the outermost token's middle counts as on it
_STEP = 1e-4  # of u and v, for the solid angle
_EPS = 1e-4  # of VICReg's variance
_DROPOUT = 0.1
_WITHIN_WEIGHT, _WITHIN_TEMPERATURE = 0.1, 0.2


@dataclass(frozen=True)
class Correspondence:
    """p pairs of a token of view a and a place in view b, sorted by their views.

    Tokens are numbered over all views of a panorama: view * grid² + row * grid + column.

    Attributes:
        views: a and b, (p, 2) int64.
        tokens: of a, (p,) int64.
        corners: the four tokens of b around the place, (p, 4) int64.
        shares: bilinear weights of the corners, (p, 4) float32, each row's sum is 1.
        weights: solid angle of the token of a, with mean 1; (p,) float32.
    """

    views: np.ndarray
    tokens: np.ndarray
    corners: np.ndarray
    shares: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def exact(cls, views: Views, grid: int) -> Correspondence:
        """Each token of each view with the place in every other one that looks into the same direction, if that lies
        between the middles of four tokens there: the feature at it is then known by interpolation alone.

        Global views are left out. Of a pair of views each is once a and once b.

        Raises:
            ManyscopeError: no view sees a token of another.
        """
        directions = views.token_rays(grid)
        places = views.token_places(grid)
        apart = places[1] - places[0] if grid > 1 else 2.0  # in u and v, of the tokens' middles
        solid = [_solid_angles(view, places) for view in views.views]
        parts = [index for index, view in enumerate(views.views) if not view.is_global]
        rows = []
        for a in parts:
            for b in parts:
                if a == b:
                    continue
                where, inside = project(views.views[b], directions[a])
                spots = (where - places[0]) / apart
                inside = inside & ((spots >= -_EDGE) & (spots <= grid - 1 + _EDGE)).all(-1)
                own = np.flatnonzero(inside)
                corners, shares = _bilinear(spots.reshape(-1, 2)[own], grid)
                pair = np.broadcast_to([a, b], (len(own), 2))
                rows.append((pair, a * grid**2 + own, b * grid**2 + corners, shares, solid[a].reshape(-1)[own]))
        if not any(len(own) for _, own, _, _, _ in rows):
            raise ManyscopeError(
                f"no view sees the middle of a token of another one, with {len(parts)} views of {grid} x {grid} tokens",
                place=_PLACE,
                remedy="set model.overlap.loss to none, or let the views overlap: preprocess.views.overlap, fov_deg",
            )
        pairs, tokens, corners, shares, weights = (np.concatenate(column) for column in zip(*rows, strict=True))
        return cls(pairs, tokens, corners, shares.astype(np.float32), (weights / weights.mean()).astype(np.float32))

    @classmethod
    def columns(cls, views: Views, grid: int, force: bool) -> Correspondence:
        """The last columns of each view with the first of the next one to the right, row by row, all with weight 1: as
        many as are of the share of its width that the two have in common, rounded down, but at least one.

        The last view is followed by the first. Only views of equal pitch, height and kind follow one another, and only
        those that have some of their width in common; global ones are left out.

        Args:
            force: also where two views have nothing in common; then it is one column.

        Raises:
            ManyscopeError: no view has a next one, or they share no place.
        """
        rows_of: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for index, view in enumerate(views.views):
            if not view.is_global:
                rows_of[view.kind, view.pitch_deg, view.height_deg].append(index)
        followed = []
        for row in rows_of.values():
            row.sort(key=lambda index: views.views[index].yaw_deg % 360)
            if len(row) > 1:
                followed += list(zip(row, row[1:] + row[:1], strict=True))
        if not followed:
            raise ManyscopeError(
                "no view has a next one beside it whose columns could follow",
                place=_PLACE,
                remedy="set model.overlap.loss to none, or choose other preprocess.views",
            )
        shares_of = {(a, b): _in_common(views.views[a], views.views[b]) for a, b in sorted(followed)}
        if not force:
            apart = ManyscopeError(
                "views share no place, so their columns show different things",
                place=_PLACE,
                remedy="let the views overlap, or set model.overlap.force to pair them all the same",
            )
            shares_of = {pair: share for pair, share in shares_of.items() if share > 0}
            if not shares_of:
                raise apart
            try:
                cls.exact(views, grid)
            except ManyscopeError as error:
                raise apart from error
        rows = []
        for (a, b), share in shares_of.items():
            count = max(1, int(grid * share + _EDGE))
            down, across = (axis.reshape(-1) for axis in np.mgrid[:grid, :count])
            own, other = a * grid**2 + down * grid + across + grid - count, b * grid**2 + down * grid + across
            rows.append((np.broadcast_to([a, b], (len(own), 2)), own, other))
        pairs, tokens, corners = (np.concatenate(column) for column in zip(*rows, strict=True))
        ones = np.ones(len(tokens), np.float32)
        shares = np.stack([ones, 0 * ones, 0 * ones, 0 * ones], -1)
        return cls(pairs, tokens, np.repeat(corners[:, None], 4, 1), shares, ones)


def _in_common(view: View, following: View) -> float:
    """The share of a view's width in yaw that the one to its right has, too."""
    return max(0.0, 1 - (following.yaw_deg - view.yaw_deg) % 360 / view.width_deg)


def _bilinear(spots: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """The four tokens around places (n, 2) in columns and rows, and their weights: (n, 4) int64, (n, 4) float64."""
    low = np.clip(np.floor(spots), 0, max(grid - 2, 0)).astype(np.int64)
    (column, row), (right, down) = low.T, np.clip(spots - low, 0, 1).T
    corners = np.stack([(row + i) * grid + column + j for i in (0, 1) for j in (0, 1)], -1)
    shares = np.stack([(down if i else 1 - down) * (right if j else 1 - right) for i in (0, 1) for j in (0, 1)], -1)
    return corners, shares


def _solid_angles(view: View, places: np.ndarray) -> np.ndarray:
    """Proportional to the solid angle of each token of a view, (grid, grid): |dr/du x dr/dv|, of unit rays r, times
    the tokens' size in u and v, which is the same for all views."""
    v, u = np.meshgrid(places, places, indexing="ij")
    along_u = rays(view, u + _STEP, v) - rays(view, u - _STEP, v)
    along_v = rays(view, u, v + _STEP) - rays(view, u, v - _STEP)
    return np.linalg.norm(np.cross(along_u, along_v), axis=-1) / (2 * _STEP) ** 2


class Head(nn.Module):
    """What stands between tokens and the loss that compares them, and is not used for anything else.

    Args:
        width: of a token, in and out.
        hidden: neurons of the hidden layer.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, width) -> (…, width)."""
        mapped: Tensor = self.layers(tokens)
        return mapped


def build_loss(settings: OverlapSettings, views: Views, grid: int | None) -> nn.Module | None:
    """The loss of the settings; None if they ask for none.

    Args:
        grid: side of the grid of the tokens that are compared; None if the resampler keeps none.

    Returns:
        A module whose forward takes tokens behind the head, (batch, views, grid², width), and answers scalars: loss,
        and the parts that it consists of.

    Raises:
        ManyscopeError: the tokens lie on no grid, or views share no place.
        SettingsError: the loss cannot be built.
    """
    if settings.loss == "none":
        return None
    if grid is None:
        raise ManyscopeError(
            "the resampler keeps no grid of tokens, so there is nothing to compare between views",
            place=_PLACE,
            remedy="set model.overlap.loss to none, or choose a resampler that keeps one: mlp, c_abstractor,"
            " spatial_pool, masked_drop, bimamba",
        )
    if settings.correspondence == "columns":
        pairs = Correspondence.columns(views, grid, settings.force)
    else:
        pairs = Correspondence.exact(views, grid)
    made: nn.Module = LOSSES.build(settings.loss, settings, pairs, place=f"{_PLACE}.loss")
    return made


class _Paired(nn.Module):
    """The features of both sides of each pair; computed in float32 at least, outside autocast."""

    tokens: Tensor
    corners: Tensor
    shares: Tensor
    weights: Tensor

    def __init__(self, pairs: Correspondence) -> None:
        super().__init__()
        # Not part of the state: they follow from the settings.
        for name in ("tokens", "corners", "shares", "weights"):
            values = torch.from_numpy(np.ascontiguousarray(getattr(pairs, name)))
            self.register_buffer(name, values, persistent=False)
        changes = np.flatnonzero((np.diff(pairs.views, axis=0) != 0).any(1)) + 1
        bounds = [0, *changes.tolist(), len(pairs)]
        self.groups = [slice(low, high) for low, high in pairwise(bounds)]

    def sides(self, tokens: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            tokens: (batch, views, grid², width).
            others: the tokens of the places' side, if these are not the same.

        Returns:
            Tokens of a, and what b has at the places: (batch, p, width) each.
        """
        first, second = tokens.flatten(1, 2), (tokens if others is None else others).flatten(1, 2)
        around = second.index_select(1, self.corners.flatten()).unflatten(1, self.corners.shape)
        placed = (around * self.shares.to(around.dtype)[..., None]).sum(2)
        return first.index_select(1, self.tokens), placed


class VICReg(_Paired):
    """Bardes, Ponce and LeCun 2022, https://arxiv.org/abs/2105.04906, on pairs of places instead of pairs of pictures.

    Variance and covariance are those of all paired tokens of the batch together, on each side; pairs count by their
    solid angle. The paper's covariance is a sum over pairs of features divided by the width, its variance and
    invariance are means over features.
    """

    def __init__(self, settings: OverlapSettings, pairs: Correspondence) -> None:
        super().__init__(pairs)
        self.factors = {
            "invariance": settings.invariance, "variance": settings.variance, "covariance": settings.covariance,
        }  # fmt: skip

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        with torch.autocast(tokens.device.type, enabled=False):
            first, second = self.sides(_precise(tokens))
            spreads = [self._spread(side) for side in (first, second)]
            parts = {
                "invariance": ((first - second).square().mean(-1) * self.weights).mean(),
                "variance": (spreads[0][0] + spreads[1][0]) / 2,
                "covariance": (spreads[0][1] + spreads[1][1]) / 2,
            }
            loss = torch.stack([self.factors[name] * part for name, part in parts.items()]).sum()
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    def _spread(self, side: Tensor) -> tuple[Tensor, Tensor]:
        """What the features (batch, p, width) of all processes lack in variance, and their covariance."""
        weights = self.weights[:, None] / len(self.weights)
        mean = gather((side * weights).sum(1)).mean(0)
        centred = side - mean
        # The second moments of each sample, so that processes exchange them and not all their tokens.
        moments = gather((centred * weights).mT @ centred)
        n = len(moments) * len(self.weights)
        covariance = moments.mean(0) * (n / max(n - 1, 1))
        variance = covariance.diagonal()
        lack = F.relu(1 - (variance + _EPS).sqrt()).mean()
        return lack, (covariance.square().sum() - variance.square().sum()) / len(variance)


class DenseCL(_Paired):
    """Wang et al. 2021, https://arxiv.org/abs/2011.09157, with known pairs: each token finds its place among all of
    the same two views in the batch, and each place its token. The mean over pairs of views, by solid angle within."""

    def __init__(self, settings: OverlapSettings, pairs: Correspondence) -> None:
        super().__init__(pairs)
        self.temperature = settings.temperature

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        with torch.autocast(tokens.device.type, enabled=False):
            return {"loss": self.between(*self.sides(_precise(tokens)))}

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        first, second = (F.normalize(gather(side), dim=-1) for side in (first, second))
        terms = []
        for group in self.groups:
            a, b = first[:, group].flatten(0, 1), second[:, group].flatten(0, 1)
            alike = a @ b.T / self.temperature
            itself = torch.arange(len(a), device=a.device)
            found = F.cross_entropy(alike, itself, reduction="none") + F.cross_entropy(
                alike.T, itself, reduction="none"
            )
            weights = self.weights[group].repeat(len(first))
            terms.append((found / 2 * weights).sum() / weights.sum())
        return torch.stack(terms).mean()


class InfoNCE(DenseCL):
    """As DenseCL, between two passes of the tokens through dropout; and beside it each token of a view finds itself in
    the other pass among all tokens of that view. The dropout is of the head's output, while training."""

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        with torch.autocast(tokens.device.type, enabled=False):
            precise = _precise(tokens)
            one, other = self._dropped(precise), self._dropped(precise)
            between = self.between(*self.sides(one, other))
            a, b = F.normalize(one, dim=-1).flatten(0, 1), F.normalize(other, dim=-1).flatten(0, 1)
            alike = a @ b.mT / _WITHIN_TEMPERATURE
            within = (alike.logsumexp(-1) - alike.diagonal(dim1=-2, dim2=-1)).mean()
            loss = between + _WITHIN_WEIGHT * within
        return {"loss": loss, "between": between.detach(), "within": within.detach()}

    def _dropped(self, tokens: Tensor) -> Tensor:
        if not self.training:
            return tokens
        share = share_of(len(tokens))
        kept = share.rand(*tokens.shape[1:], device=tokens.device)[share.mine] >= _DROPOUT
        return tokens * kept / (1 - _DROPOUT)


def _precise(tokens: Tensor) -> Tensor:
    return tokens if tokens.dtype == torch.float64 else tokens.float()
