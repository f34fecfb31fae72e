"""Random small networks under every granularity: pruned as promised, or refused in one sentence.

Forty networks by default, each under some of the granularities; `HYPOTHESIS=thorough pytest
tests/backends/test_random_networks.py` takes 2,000 networks and all of them. What is checked is in `tests/random_networks.py`.
"""

import os
from collections import Counter

import pytest
import random_networks
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from random_networks import BLOCKS, GRANULARITIES, HEADS, Description
from torch import nn

from freeprune.backends import find_backend
from freeprune.errors import FreePruneError

THOROUGH = os.environ.get("HYPOTHESIS") == "thorough"
# The same networks in every run of the normal suite, and no shrinking: the thorough profile finds others and smaller ones.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if THOROUGH else [])]
FUZZED = settings(
    max_examples=2000 if THOROUGH else 40, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES, database=None,
    derandomize=not THOROUGH,
)  # fmt: skip


@st.composite
def descriptions(draw):
    return Description.draw(lambda choices: draw(st.sampled_from(list(choices))))


def test_whatever_is_pruned_is_pruned_as_promised():
    outcomes: dict[str, Counter] = {name: Counter() for name in GRANULARITIES}
    number = 0

    @FUZZED
    @given(descriptions())
    def holds(description):
        nonlocal number
        number += 1
        for k, name in enumerate(GRANULARITIES):
            if not THOROUGH and (number + k) % 5:
                continue  # each network under two or three, so that forty reach each granularity eight times
            note(f"python tests/random_networks.py --granularity {name} --network '{description}'")
            try:
                random_networks.check(description, name, onnx=(number + 7 * k) % 30 == 0)
                outcomes[name]["pruned"] += 1
            except FreePruneError as error:
                outcomes[name]["refused" if "\n" not in str(error) else "refused in several lines"] += 1

    holds()
    for name, found in outcomes.items():
        assert set(found) <= {"pruned", "refused"}
        assert found["refused"] <= found.total() / 3, f"{name} refuses {found['refused']} of {found.total()} networks"


def test_a_description_is_what_it_says():
    text = "tokens perceptron:8 swiglu:16 > mean:3 #5"
    assert str(Description.parse(text)) == text
    a, b = (random_networks.build(Description.parse(text)).state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_every_kind_of_block_and_head_runs(kind):
    for width, (name, head) in enumerate((name, head) for name in sorted(BLOCKS[kind]) for head in sorted(HEADS[kind])):
        description = Description(kind, ((name, (4, 6, 16)[width % 3]), (name, 8)), head, 3, 0)
        output = random_networks.build(description)(random_networks.examples(description, 2))
        assert output.shape == (2, 3)
        assert output.isfinite().all()


# The check itself: what it sees of networks whose zeros are put there by hand.


class Both(nn.Module):
    """A weight from the right, one from the left, a transposed convolution in two groups."""

    def __init__(self):
        super().__init__()
        self.right, self.left = nn.Parameter(torch.ones(8, 4)), nn.Parameter(torch.ones(4, 4))
        self.conv = nn.ConvTranspose1d(4, 6, 3, groups=2)

    def forward(self, x):
        return self.conv(self.left @ (x @ self.right))


def zeros_of(place, granularity, options):
    x = torch.ones(1, 4, 8)
    dense, pruned = Both(), Both()
    pruned.load_state_dict(dense.state_dict())
    with torch.no_grad():
        place(pruned)
    watches = [random_networks.watched(network, x) for network in (dense, pruned)]
    random_networks.check_zeros(granularity, options, *watches)
    return random_networks.count(*watches, pruned)


def test_zeros_and_costs_by_hand():
    def columns(network):
        network.right[0:2] = network.right[5:7] = 0  # two of four inputs of each output

    found = zeros_of(columns, "nm", {"nm": "2:4"})
    assert found.macs == (4 * 4 * 4 + 4 * 4 * 4 + 4 * 4 * 3 * 3,) * 2
    assert found.nonzero == (4 * 4 + 4 * 4 + 4 * 3 * 3,) * 2


@pytest.mark.parametrize(
    ("granularity", "options", "place"),
    [
        ("nm", {"nm": "2:4"}, lambda n: n.right[:, 0:2].fill_(0)),  # along the outputs
        ("nm", {"nm": "2:4"}, lambda n: n.left[0:2].fill_(0)),
        ("nm", {"nm": "1:2"}, lambda n: n.conv.weight[:, ::2].fill_(0)),
        ("block", {"block": "1x4"}, lambda n: n.right[:, 0:4].narrow(0, 2, 4).fill_(0)),
        ("block", {"block": "4x1"}, lambda n: n.left[0, 0:4].fill_(0)),
        ("kernel", {}, lambda n: n.conv.weight[0, 0, :2].fill_(0)),
        ("pattern", {}, lambda n: n.conv.weight[0, 0, :2].fill_(0)),
    ],
)
def test_misplaced_zeros_are_found(granularity, options, place):
    with pytest.raises(random_networks.Fault, match=f"zeros of {granularity}"):
        zeros_of(place, granularity, options)


@pytest.mark.parametrize(
    ("granularity", "options", "place"),
    [
        ("nm", {"nm": "2:4"}, lambda n: n.left[:, 0:2].fill_(0)),
        ("nm", {"nm": "1:2"}, lambda n: n.conv.weight[::2].fill_(0)),
        ("block", {"block": "1x4"}, lambda n: n.right[4:, 1].fill_(0)),
        ("block", {"block": "1x2"}, lambda n: n.conv.weight[0:2, 1, 2].fill_(0)),
        ("block", {"block": "4x1"}, lambda n: n.right[3].fill_(0)),
        ("kernel", {}, lambda n: n.conv.weight[3, 1].fill_(0)),
        ("weight", {}, lambda n: n.conv.weight[3, 1, 1].fill_(0)),
    ],
)
def test_zeros_in_their_place_are_accepted(granularity, options, place):
    zeros_of(place, granularity, options)


def test_a_wrong_cost_is_found(monkeypatch):
    description = Description.parse("tokens from_right:8 > mean:3 #1")
    random_networks.check(description, "weight")
    backend = find_backend("weight")
    monkeypatch.setattr(
        backend, "costs", lambda self, kept, honest=backend.costs: {k: v + 1 for k, v in honest(self, kept).items()}
    )
    with pytest.raises(random_networks.Faults, match=r"macs are not those counted.*nonzero are not those counted"):
        random_networks.check(description, "weight")
