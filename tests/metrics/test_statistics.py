import math

import numpy as np
import pytest
import scipy.stats

from freeprune.metrics.statistics import estimate, is_constant, judged, kendall, noise, partial_spearman, regret, spearman


def floats(*values):
    return np.array(values, np.float64)


def test_spearman_by_hand():
    # Ranks 1 2 3 4 and 2 1 4 3: sum of squared differences 4, and 1 - 6 * 4 / (4 * 15) = 0.6.
    assert spearman(floats(1, 10, 100, 1000), floats(0.2, 0.1, 0.4, 0.3)) == pytest.approx(0.6)


def test_what_gave_minus_infinity_ranks_last():
    assert spearman(floats(-math.inf, 1, 2), floats(0.1, 0.2, 0.3)) == pytest.approx(1)


def test_kendall_by_hand():
    # Of six pairs two are in the wrong order: (4 - 2) / 6.
    assert kendall(floats(1, 2, 3, 4), floats(2, 1, 4, 3)) == pytest.approx(1 / 3)


def test_kendall_is_scipys_with_ties_and_over_the_last_axis():
    rng = np.random.default_rng(0)
    scores, accuracies = rng.integers(0, 6, (2, 20, 12)).astype(np.float64)
    expected = [scipy.stats.kendalltau(a, b).statistic for a, b in zip(scores, accuracies, strict=True)]
    assert kendall(scores, accuracies) == pytest.approx(expected)
    assert kendall(floats(-math.inf, -math.inf, 1), floats(1, 2, 3)) == pytest.approx(2 / math.sqrt(6))


def test_the_partial_correlation_takes_the_control_out():
    # r(s, a) = 0.6 as above; the control ranks 1 3 2 4: r(s, c) = 1 - 6 * 2 / 60 = 0.8; r(a, c): differences 1 2 2 1,
    # 1 - 6 * 10 / 60 = 0. So 0.6 / sqrt(1 - 0.64) = 1.
    found = partial_spearman(floats(1, 2, 3, 4), floats(2, 1, 4, 3), floats(1, 3, 2, 4))
    assert found == pytest.approx(1.0)


def test_a_constant_control_changes_nothing_and_an_equal_one_leaves_nothing():
    scores, accuracies = floats(1, 2, 3, 4), floats(2, 1, 4, 3)
    assert partial_spearman(scores, accuracies, floats(5, 5, 5, 5)) == pytest.approx(0.6)
    assert math.isnan(partial_spearman(scores, accuracies, scores))


def test_regret_is_what_the_best_of_the_top_five_lacks():
    accuracies = floats(0.90, 0.80, 0.70, 0.60, 0.50, 0.40, 0.30)
    assert regret(accuracies, accuracies) == 0
    assert regret(-accuracies, accuracies) == pytest.approx(20)  # the five worst: 0.70 down


def test_the_interval_holds_the_value_and_narrows_with_more_candidates():
    rng = np.random.default_rng(0)
    widths = []
    for count in (10, 200):
        x = rng.normal(size=count)
        found = estimate(spearman, (x, x + rng.normal(size=count)), 0)
        assert found.low < found.value < found.high
        assert estimate(spearman, (x, x), 0).low == pytest.approx(1)
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_the_noise_ceiling_by_hand():
    # Repeated: 0.5 and 0.6 differ by 0.1, so 0.005 from seed to seed; the single ones add their whole variance, the mean of two
    # half of it: s² = 0.005 * (1/2 + 1 + 1) / 3. Means 0.55, 0.2, 0.9: variance 0.1225 + 0.0225.
    found = noise([[0.5, 0.6], [0.2], [0.9]])
    variance = np.var([0.55, 0.2, 0.9], ddof=1)
    assert found.deviation == pytest.approx(math.sqrt(0.005))
    assert found.spread == pytest.approx(math.sqrt(variance))
    assert found.ceiling == pytest.approx(math.sqrt(1 - 0.005 * 2.5 / 3 / variance))


def test_without_repeats_there_is_no_ceiling_and_pure_noise_has_ceiling_0():
    assert math.isnan(noise([[0.1], [0.2]]).ceiling)
    assert noise([[0.1, 0.9], [0.2, 0.85], [0.5, 0.5]]).ceiling == 0


def test_a_metric_that_the_budget_makes_constant_is_not_correlated():
    assert is_constant(floats(0.3, 0.3, 0.3 + 1e-13))
    assert is_constant(floats(-math.inf, -math.inf))
    assert not is_constant(floats(-math.inf, 0))
    accuracies = floats(0.1, 0.2, 0.3)
    found = judged({"same": floats(7, 7, 7), "good": accuracies}, accuracies, floats(1, 3, 2), 0)
    assert found["same"] is None
    assert found["good"]["spearman"].value == pytest.approx(1)
