"""t-SNE: openTSNE's gradients around neighbours and a start of our own, which make it seeded and the same each time.

Van der Maaten and Hinton, Visualizing Data using t-SNE (2008); new objects are placed as in Poličar, Stražar and Zupan,
Embedding to Reference t-SNE Space (2021), each by itself among the fitted ones, which stay.
"""

from __future__ import annotations

import numpy as np

from manyscope.latent.reducers import NeighbourReducer
from manyscope.log import logger, progress

_REACH = 3  # neighbours for each unit of perplexity, beyond which a Gaussian has nearly nothing left
_START = 1e-4  # standard deviation of the first axis: distances that are large from the start hinder the layout
_NOISE = 1e-2  # of that, to part objects that principal components put in one place
_EARLY, _LATER, _PART = 250, 500, 50  # passes with and without exaggeration, and how many go between two progress lines
_EXAGGERATION = 12.0
_INTERPOLATED = 10_000  # objects in the plane from which it is quicker to interpolate repulsion on a grid
_SLOW = 20_000  # objects in space, where there is no such grid
_NEW = {"learning_rate": 0.1, "exaggeration": 1.5, "momentum": 0.8, "max_grad_norm": 0.25}  # openTSNE's for new objects
_NEW_PASSES, _NEW_PERPLEXITY = 250, 5.0


class Tsne(NeighbourReducer):
    """With fewer than 3 * `perplexity` neighbours the perplexity is lowered to a third of what there is.

    A new object that equals a fitted one lies where that one does.
    """

    def _layout(self, start: np.ndarray) -> np.ndarray:
        from openTSNE import TSNEEmbedding, affinity

        n = len(self.vectors)
        k = min(n - 1, int(_REACH * self.settings.perplexity))
        perplexity = min(self.settings.perplexity, k / _REACH)
        if perplexity < self.settings.perplexity:
            logger.warning("%d objects: perplexity is lowered from %g", n, self.settings.perplexity)
        planar = self.settings.components == 2
        if not planar and n > _SLOW:
            logger.warning("t-SNE of %d objects in three dimensions takes long: umap.fit_objects limits them", n)
        distances, rows = self._neighbours(None, k)
        affinities = affinity.joint_probabilities_nn(rows, distances, [perplexity], n_jobs=1)
        spread = float(start[:, 0].std()) or 1.0
        noise = np.random.default_rng(self.settings.seed).normal(scale=_NOISE, size=start.shape)
        shown = progress(range((_EARLY + _LATER) // _PART), "t-SNE")

        def show(*_: object) -> bool:
            next(shown)
            return False  # is what a callback says for not to stop

        embedding = TSNEEmbedding(
            (start / spread + noise) * _START, affinity.PrecomputedAffinities(affinities, normalize=False),
            n_jobs=1, random_state=self.settings.seed, max_step_norm=5, callbacks=show, callbacks_every_iters=_PART,
            negative_gradient_method="fft" if planar and n >= _INTERPOLATED else "bh",
        )  # fmt: skip
        embedding.optimize(_EARLY, inplace=True, exaggeration=_EXAGGERATION, momentum=0.8)
        embedding.optimize(_LATER, inplace=True, exaggeration=1.0, momentum=0.8)
        return np.asarray(embedding, np.float32)

    def _place(self, scaled: np.ndarray) -> np.ndarray:
        from openTSNE import TSNEEmbedding, affinity
        from openTSNE.tsne import PartialTSNEEmbedding
        from scipy.sparse import csr_matrix

        n = len(self.vectors)
        k = min(n, int(_REACH * _NEW_PERPLEXITY))
        distances, rows = self._neighbours(scaled, k)
        affinities = affinity.joint_probabilities_nn(
            rows, distances, [min(_NEW_PERPLEXITY, k / _REACH)], symmetrize=False, normalization="point-wise",
            n_reference_samples=n, n_jobs=1,
        )  # fmt: skip
        unused = affinity.PrecomputedAffinities(csr_matrix((n, n)), normalize=False)  # the fitted ones stay
        # The grid, which is quicker, throws some of those at the rim far away.
        fitted = TSNEEmbedding(self.coordinates, unused, negative_gradient_method="bh", n_jobs=1)
        start = np.median(self.coordinates[rows], axis=1)
        placed = PartialTSNEEmbedding(start, fitted, affinities, **fitted.gradient_descent_params)
        placed.optimize(_NEW_PASSES, inplace=True, **_NEW)
        # The cosine of a vector with itself is 1 but for the last digits.
        same = distances[:, :1] <= (1e-7 if self.settings.metric == "cosine" else 0)
        return np.where(same, self.coordinates[rows[:, 0]], placed).astype(np.float32)
