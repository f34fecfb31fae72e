"""What is said of targets that no network of a space meets."""

import numpy as np
import pytest

from freeprune.errors import FreePruneError
from freeprune.search.space import Space


def total(kept):
    return {"nonzero": kept.sum(1).astype(np.float64)}


def pair(kept):
    """Two layers, one after the other."""
    kept = kept.astype(np.float64)
    return {"macs": kept[:, 0] * kept[:, 1] * 126, "params": kept.sum(1)}


def test_an_unreachable_target_is_a_sentence():
    units, minimum = np.array([1000, 1000]), np.array([378, 378])
    with pytest.raises(FreePruneError) as caught:
        Space(units, minimum, pair, {"params": 2000, "macs": 12.6e6})
    assert str(caught.value) == (
        "target macs=12.6M (10.0% of dense) cannot be met: the smallest network allowed has 14.3% of the dense macs "
        "(18.0M of 126.0M); raise the `target` or `max_rate`"
    )


@pytest.mark.parametrize(
    ("minimum", "limit", "fixed", "advice"),
    [
        ([5, 1], 5.0, [], "raise the `target` or `max_rate`"),
        ([10, 1], 5.0, [], "let more shrink: 1 of 2 groups stay whole by `only`, `ignore` or `min_width`"),
        ([5, 1], 1.0, [], "it is too large even with every group at its smallest, so raise the `target`"),
        ([10, 1], 1.0, ["'a' (b)"], "`target`; freeprune inspect shows which layers are locked, and why; locked are 'a' (b)"),
    ],
)
def test_the_advice_fits_what_keeps_the_network_large(minimum, limit, fixed, advice):
    with pytest.raises(FreePruneError, match=r"cannot be met: the smallest network allowed has") as caught:
        Space(np.array([10, 10]), np.array(minimum), total, {"nonzero": limit}, fixed=fixed)
    assert str(caught.value).endswith(advice)


def test_an_unknown_cost_is_a_sentence():
    with pytest.raises(FreePruneError, match=r"no cost 'latency' .*; known: macs, params$"):
        Space(np.array([10, 10]), np.array([1, 1]), pair, {"latency": 3})
