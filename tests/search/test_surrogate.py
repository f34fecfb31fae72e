"""The model of the score: what it learns, and what it makes of scores that are none."""

from itertools import product

import numpy as np
import pytest

from freeprune.search.surrogate import Surrogate

RNG = np.random.default_rng(0)
SENSITIVITY = np.array([1.0, 0.3, 0.1, 0.03])


def loss(points):
    """Of each group alone, and less of each pair of neighbours."""
    losses = SENSITIVITY * points**2
    return losses.sum(1) + 0.3 * np.sqrt(losses[:, 1:] * losses[:, :-1]).sum(1)


def test_it_predicts_networks_that_it_has_not_seen():
    seen, others = RNG.random((80, 4)), RNG.random((200, 4))
    model = Surrogate(seen, -loss(seen))
    predicted, _ = model(others)
    assert np.corrcoef(predicted, -loss(others))[0, 1] > 0.98


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_scores_that_are_not_finite_count_as_the_worst(bad):
    points, scores = np.linspace(0, 1, 11)[:, None], -np.linspace(0, 1, 11)
    worst, none = scores.copy(), scores.copy()
    worst[7], none[7] = scores.min(), bad
    asked = np.array([[0.1], [0.7]])
    assert np.array_equal(Surrogate(points, none)(asked), Surrogate(points, worst)(asked))


def test_without_any_score_all_networks_are_alike():
    points = RNG.random((5, 3))
    assert np.ptp(Surrogate(points, np.full(5, np.nan))(points)[0]) == 0


def test_deviations_are_those_of_the_gaussian_process():
    seen, asked = RNG.random((40, 4)), RNG.random((10, 4))
    scores = -loss(seen)
    centre = seen[scores.argmax()]
    known = np.maximum(scores, np.quantile(scores, Surrogate.WORST))
    known = (known - known.mean()) / known.std()

    def process(scale, ridge):
        """Its likelihood, and its deviations at the points that are asked for."""

        def kernel(a, b):
            products = scale * (a - centre) @ (b - centre).T
            return products + scale * (a - centre) ** 2 @ ((b - centre) ** 2).T + Surrogate.PAIRS * (1 + products) ** 2

        covariance = kernel(seen, seen) + ridge * np.eye(len(seen))
        signal = known @ np.linalg.solve(covariance, known) / len(seen)
        likelihood = -len(seen) * np.log(signal) - np.linalg.slogdet(covariance)[1]
        explained = np.diag(kernel(asked, seen) @ np.linalg.solve(covariance, kernel(seen, asked)))
        return likelihood, np.sqrt(signal * (np.diag(kernel(asked, asked)) - explained))

    _, expected = max((process(*pair) for pair in product(Surrogate.SCALES, Surrogate.RIDGES)), key=lambda pair: pair[0])
    assert Surrogate(seen, scores)(asked)[1] == pytest.approx(expected)
