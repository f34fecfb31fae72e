"""A model of the scores so far. It says which of many networks are likely to be good, and of which little is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


class Surrogate:
    """Kernel ridge regression of scores on what is removed from each group: linear and quadratic terms, and weaker pairs.

    The kernel of two networks a and b, as proposals of the unit cube less a centre, is
    `s a.b + s a².b² + PAIRS (1 + s a.b)²`: losses of single groups, which nearly add up, and a little of every product of two.
    The scale s and the ridge are those with the largest marginal likelihood, and deviations are those of the Gaussian process
    with this kernel (Rasmussen and Williams 2006, equations 2.25, 2.26 and 5.8). Scores that are far below the others count as
    the worst tenth does, since a model of good networks need not know how bad the bad ones are.

    Args:
        points: `(P, L)` proposals (see `Space.proposal`), P at least 1.
        scores: `(P,)`; NaN and infinities count as the worst.
    """

    MOST = 200  # networks that the model knows, the best ones: time grows with the cube
    WORST = 0.1  # the quantile below which scores are alike
    PAIRS = 0.3
    SCALES = (0.3, 1.0, 3.0)
    RIDGES = (1e-4, 1e-3, 1e-2)  # relative to the variance of what is modelled

    def __init__(self, points: Values, scores: Values) -> None:
        finite = np.isfinite(scores)
        scores = np.where(finite, scores, scores[finite].min() if finite.any() else 0.0)
        best = np.argsort(-scores, kind="stable")[: self.MOST]
        self._centre = points[best[0]]
        self._points = points[best] - self._centre
        known = np.maximum(scores[best], np.quantile(scores[best], self.WORST))
        known = (known - known.mean()) / max(float(known.std()), 1e-300)
        likeliest = -np.inf
        for scale in self.SCALES:
            values, vectors = np.linalg.eigh(self._kernel(self._points, scale))
            values, turned = np.maximum(values, 0), vectors.T @ known
            for ridge in self.RIDGES:
                signal = float((turned**2 / (values + ridge)).mean()) + 1e-300  # the likeliest variance, in closed form
                likelihood = -len(known) * np.log(signal) - float(np.log(values + ridge).sum())
                if likelihood > likeliest:
                    likeliest, self._scale, self._signal = likelihood, scale, signal
                    self._weights = vectors @ (turned / (values + ridge))
                    self._known = vectors / np.sqrt(values + ridge)

    def __call__(self, points: Values) -> tuple[Values, Values]:
        """Predicted scores `(P,)` of proposals `(P, L)`, and how far off they may be, as standard deviations `(P,)`.

        Both are in one unit, the spread of the known scores, and the scores are up to a constant.
        """
        points = points - self._centre
        kernel = self._kernel(points, self._scale)
        variance = self._alone(points) - np.square(kernel @ self._known).sum(axis=1)
        return kernel @ self._weights, np.sqrt(self._signal * np.maximum(variance, 0))

    def _alone(self, points: Values) -> Values:
        """The kernel `(P,)` of each point with itself."""
        product = self._scale * (points**2).sum(axis=1)
        alone: Values = product + self._scale * (points**4).sum(axis=1) + self.PAIRS * (1 + product) ** 2
        return alone

    def _kernel(self, points: Values, scale: float) -> Values:
        products = scale * points @ self._points.T
        squares = scale * points**2 @ (self._points**2).T
        kernel: Values = products + squares + self.PAIRS * (1 + products) ** 2
        return kernel
