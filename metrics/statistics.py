"""Measures how well a score ranks: rank correlations with intervals, regret, and the noise ceiling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Statistic = Callable[..., Floats]
"""A function of arrays `(..., n)`, over the last axis, so that all bootstrap resamples are computed at once."""

RESAMPLES = 1000
TOP = 5  # best-scored candidates that regret looks at


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95% interval. NaN where undefined."""

    value: float
    low: float
    high: float


def spearman(scores: Floats, accuracies: Floats) -> Floats:
    """Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank; NaN if one side is constant."""
    return _pearson(stats.rankdata(scores, axis=-1), stats.rankdata(accuracies, axis=-1))


def kendall(scores: Floats, accuracies: Floats) -> Floats:
    """Kendall's tau-b, `sum of s t / sqrt(sum of s² sum of t²)` over pairs, s and t the signs of their differences.

    NaN if one side is constant.
    """
    # Of ranks, since the difference of two infinite scores has no sign.
    s, t = (np.sign(r[..., :, None] - r[..., None, :]) for r in (stats.rankdata(x, axis=-1) for x in (scores, accuracies)))
    return _ratio((s * t).sum(axis=(-2, -1)), (s * s).sum(axis=(-2, -1)) * (t * t).sum(axis=(-2, -1)))


def partial_spearman(scores: Floats, accuracies: Floats, control: Floats) -> Floats:
    """Partial Spearman correlation given a control: `(r_sa - r_sc r_ac) / sqrt((1 - r_sc²)(1 - r_ac²))`.

    NaN if one side is constant, or the control ranks like one of them. A constant control changes nothing.
    """
    with_score, with_accuracy = (np.nan_to_num(spearman(x, control)) for x in (scores, accuracies))
    left = (1 - with_score**2) * (1 - with_accuracy**2)
    return _ratio(spearman(scores, accuracies) - with_score * with_accuracy, np.where(left > 1e-12, left, 0.0))


def regret(scores: Floats, accuracies: Floats) -> Floats:
    """The accuracy of the best candidate minus that of the best of the five best-scored, in percentage points."""
    best_scored = np.argsort(-scores, axis=-1, kind="stable")[..., :TOP]
    found: Floats = accuracies.max(axis=-1) - np.take_along_axis(accuracies, best_scored, axis=-1).max(axis=-1)
    return 100 * found


def estimate(statistic: Statistic, values: Sequence[Floats], seed: int) -> Estimate:
    """A statistic with its percentile interval from a bootstrap over candidates.

    Args:
        statistic: takes as many arrays `(..., n)` as there are `values`.
        values: arrays `(n,)`; entry i is candidate i.
        seed: decides the resampling.

    Source: Efron and Tibshirani 1993, chapter 13. Resamples in which the statistic is undefined are left out.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, values[0].size, (RESAMPLES, values[0].size))
    found = statistic(*(v[picks] for v in values))
    found = found[~np.isnan(found)]
    low, high = np.quantile(found, (0.025, 0.975)) if found.size else (math.nan, math.nan)
    return Estimate(float(statistic(*values)), float(low), float(high))


@dataclass(frozen=True)
class Noise:
    """How much of the spread in accuracy is chance, from `noise`.

    Attributes:
        deviation: standard deviation of one accuracy between seeds, as a fraction; NaN if no candidate was repeated.
        spread: standard deviation of the ranked accuracies over candidates.
        ceiling: the correlation that a perfect score could reach, 0 to 1; NaN if it cannot be estimated.
    """

    deviation: float
    spread: float
    ceiling: float


def noise(runs: Sequence[Sequence[float]]) -> Noise:
    """The noise ceiling `sqrt(1 - s² / v)` of accuracies that are means over several runs each.

    `v` is the variance of the means over candidates; `s²` the average variance of a candidate's mean: the variance between
    seeds, pooled over the repeated candidates, divided by the number of runs.

    Args:
        runs: the accuracies of each candidate, one per fine-tuning seed.
    """
    means = np.array([np.mean(run) for run in runs])
    spread = float(np.var(means, ddof=1)) if len(runs) > 1 else math.nan
    repeated = [np.asarray(run) for run in runs if len(run) > 1]
    if not repeated:
        return Noise(math.nan, math.sqrt(spread), math.nan)
    freedom = sum(run.size - 1 for run in repeated)
    within = sum(float(((run - run.mean()) ** 2).sum()) for run in repeated) / freedom
    of_means = within * float(np.mean([1 / len(run) for run in runs]))
    ceiling = math.sqrt(max(0.0, 1 - of_means / spread)) if spread > 0 else math.nan
    return Noise(math.sqrt(within), math.sqrt(spread), ceiling)


def is_constant(scores: Floats) -> bool:
    """Whether a score is the same for every candidate, up to rounding."""
    finite = scores[np.isfinite(scores)]
    if finite.size < scores.size:
        return not finite.size and bool((scores == scores[0]).all())
    return bool(np.ptp(finite) <= 1e-9 * max(1e-300, float(np.abs(finite).max())))


def judged(
    scores: Mapping[str, Floats], accuracies: Floats, control: Floats, seed: int
) -> dict[str, dict[str, Estimate] | None]:
    """All statistics of every metric; None for a metric that is the same for every candidate.

    Args:
        scores: by metric `(n,)`; larger is better; `-inf` ranks last.
        accuracies: `(n,)`.
        control: `(n,)`: held constant by the partial correlations.
    """
    result: dict[str, dict[str, Estimate] | None] = {}
    for name, values in scores.items():
        if is_constant(values):
            result[name] = None
            continue
        pair = (values, accuracies)
        result[name] = {
            "spearman": estimate(spearman, pair, seed),
            "kendall": estimate(kendall, pair, seed),
            "partial": estimate(partial_spearman, (*pair, control), seed),
            "regret": estimate(regret, pair, seed),
        }
    return result


def _pearson(a: Floats, b: Floats) -> Floats:
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    return _ratio((a * b).sum(axis=-1), (a * a).sum(axis=-1) * (b * b).sum(axis=-1))


def _ratio(above: Floats, square: Floats) -> Floats:
    """`above / sqrt(square)`, NaN where the square is 0."""
    root = np.sqrt(square)
    found: Floats = np.divide(above, root, out=np.full(np.shape(root), math.nan), where=root > 0)
    return found


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of a few independent values and its 95% interval by Student's t; no interval for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half)


def paired_p(one: Sequence[float], other: Sequence[float]) -> float:
    """The two-sided p-value of Student's paired t-test. NaN for a single pair."""
    differences = np.subtract(one, other)
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) == 0:  # the statistic would be 0 / 0 or infinite
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_rel(one, other).pvalue)
