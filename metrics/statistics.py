"""How well a score ranks: rank correlations with intervals, regret, and what a perfect score could reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Statistic = Callable[..., float]

RESAMPLES = 1000
TOP = 5  # how many of the best-scored candidates one would look at


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap 95% interval over candidates. NaN where it is not defined."""

    value: float
    low: float
    high: float


def spearman(scores: Floats, accuracies: Floats) -> float:
    """Pearson's correlation of the ranks, ties sharing their mean rank; NaN where one side is constant."""
    return _pearson(stats.rankdata(scores), stats.rankdata(accuracies))


def kendall(scores: Floats, accuracies: Floats) -> float:
    """Kendall's tau-b; NaN where one side is constant."""
    return float(stats.kendalltau(scores, accuracies).statistic)


def partial_spearman(scores: Floats, accuracies: Floats, control: Floats) -> float:
    """Spearman's correlation of what a control leaves unexplained: `(r_sa - r_sc r_ac) / sqrt((1 - r_sc²)(1 - r_ac²))`.

    NaN where one side is constant, or the control ranks as one of the two does. A constant control changes nothing.
    """
    plain = spearman(scores, accuracies)
    with_score, with_accuracy = spearman(scores, control), spearman(accuracies, control)
    if math.isnan(with_score) or math.isnan(with_accuracy):
        return plain
    left = (1 - with_score**2) * (1 - with_accuracy**2)
    return (plain - with_score * with_accuracy) / math.sqrt(left) if left > 1e-12 else math.nan


def regret(scores: Floats, accuracies: Floats) -> float:
    """How many points of accuracy the best of the five best-scored candidates lacks to the best of all."""
    best_scored = np.argsort(-scores, kind="stable")[:TOP]
    return 100 * float(accuracies.max() - accuracies[best_scored].max())


def estimate(statistic: Statistic, values: Sequence[Floats], seed: int) -> Estimate:
    """A statistic of paired values with the percentile interval of a bootstrap over candidates.

    Args:
        statistic: of as many arrays `(n,)` as are given.
        values: arrays `(n,)`, entry i of each belonging to candidate i.
        seed: decides the resampling.

    Source: Efron and Tibshirani 1993, chapter 13. Resamples in which the statistic is not defined are left out.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, values[0].size, (RESAMPLES, values[0].size))
    found = np.array([statistic(*(v[pick] for v in values)) for pick in picks])
    found = found[~np.isnan(found)]
    low, high = np.quantile(found, (0.025, 0.975)) if found.size else (math.nan, math.nan)
    return Estimate(statistic(*values), float(low), float(high))


@dataclass(frozen=True)
class Noise:
    """How much of the spread in accuracy is chance.

    Attributes:
        deviation: of one accuracy from seed to seed, as a fraction; NaN where no candidate was repeated.
        spread: standard deviation over candidates of the accuracies that are ranked.
        ceiling: the correlation that a perfect score could reach, 0 to 1; NaN where it cannot be estimated.
    """

    deviation: float
    spread: float
    ceiling: float


def noise(runs: Sequence[Sequence[float]]) -> Noise:
    """The noise ceiling `sqrt(1 - s² / v)` of accuracies that are means over each candidate's runs.

    `v` is the variance of those means over candidates; `s²` the mean over candidates of the variance of their mean: the
    variance from seed to seed, pooled over the repeated candidates, divided by the number of runs.

    Args:
        runs: the accuracies of each candidate, one for each seed that it was fine-tuned with.
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
    """Whether a score says the same of every candidate, up to rounding."""
    finite = scores[np.isfinite(scores)]
    if finite.size < scores.size:
        return not finite.size and bool((scores == scores[0]).all())
    return bool(np.ptp(finite) <= 1e-9 * max(1e-300, float(np.abs(finite).max())))


def judged(
    scores: Mapping[str, Floats], accuracies: Floats, control: Floats, seed: int
) -> dict[str, dict[str, Estimate] | None]:
    """Every statistic of every metric; None for a metric that says the same of every candidate.

    Args:
        scores: by metric `(n,)`; larger is better; `-inf` ranks last.
        accuracies: `(n,)`.
        control: `(n,)`: what partial correlations hold constant.
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


def _pearson(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan
