"""Queries and keys that lost widths keep their products."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from freeprune.backends import BACKENDS, apply, importance
from freeprune.backends.plan import Plan, structure_of
from freeprune.backends.recovery.recover import recover
from freeprune.backends.recovery.wanted import see

ROWS = torch.randn(40, 9, 6, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """One head, whose scores are made in one of several ways."""

    def __init__(self, scores, width=12):
        super().__init__()
        self.scores = scores
        self.query, self.key = nn.Linear(6, width), nn.Linear(6, width)
        self.value, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.after = nn.Parameter(torch.randn(8, width))
        self.positions = nn.Parameter(torch.ones(1, 9, 1))

    def forward(self, x):
        return self.head(self.scores(self, self.query(x), self.key(x), self.value(x)))


class Pixels(nn.Module):
    """The non-local block of Wang et al. 2018: queries and keys are convolutions, and nothing is scaled."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Conv2d(6, 12, 1), nn.Conv2d(6, 12, 1, bias=False)
        self.value, self.head = nn.Conv2d(6, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        x = x.mT.unflatten(2, (3, 3))
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        return self.head((value @ (query.mT @ key).softmax(-1).mT).mT)


def built(network):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return network().eval()


def fused_heads(m, q, k, v):
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=0.3)[:, 0]


def two_heads(m, q, k, v):
    """Each token's heads attend to each other, which takes no copy."""
    q, k, v = (x.unflatten(-1, (2, -1)).flatten(0, 1) for x in (q, k, v))
    return ((q @ k.mT).softmax(-1) @ v).reshape(-1, 9, 8)


KNOWN = {
    "fused": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "fused, scaled by its width": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v),
    "queries scaled by their width": lambda m, q, k, v: ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v,
    "products scaled by the width": lambda m, q, k, v: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v,
    "fused, a dimension for heads": fused_heads,
    "by hand": lambda m, q, k, v: ((0.3 * q) @ k.mT).softmax(-1) @ v,
    "divided": lambda m, q, k, v: (q @ (k.mT / 3)).softmax(-1) @ v,
    "einsum": lambda m, q, k, v: torch.einsum("nij,njd->nid", torch.einsum("nid,njd->nij", q, k).softmax(-1), v),
}
UNKNOWN = {
    "changed on the way": lambda m, q, k, v: ((q + m.positions) @ k.mT).softmax(-1) @ v,
    "changed in place": lambda m, q, k, v: (q.add_(m.positions) @ k.mT).softmax(-1) @ v,
    "used twice": lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v + q.relu().sum(-1, keepdim=True),
    "joined": lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v + torch.cat([q, q]).sum(),
    "read by a layer": lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v + F.linear(q, m.after),
    "normalised": lambda m, q, k, v: (F.normalize(q, dim=-1) @ k.mT).softmax(-1) @ v,
    "of several heads": two_heads,
}
NETWORKS = {name: lambda scores=scores: Attention(scores) for name, scores in KNOWN.items()} | {"pixels": Pixels}


def pruned(network, kept):
    backend = BACKENDS["channel"](network, (ROWS,), importance("l2", network))
    plan = backend.plan(np.array([kept if g.name == "query" else g.units for g in backend.groups]))
    return plan, apply(network, plan)


def outputs(network):
    with torch.no_grad():
        return network(ROWS)


@pytest.mark.parametrize("name", NETWORKS)
def test_as_many_widths_as_the_products_have_dimensions_lose_nothing(name):
    """Queries of six numbers span six or, with a bias, seven dimensions: any seven widths are enough."""
    network = built(NETWORKS[name])
    plan, compact = pruned(network, 7)
    found = recover(network, compact, plan, (ROWS,)).network
    wanted = outputs(network)
    assert (outputs(compact) - wanted).norm() > 0.05 * wanted.norm()
    assert (outputs(found) - wanted).norm() < 1e-3 * wanted.norm()


def test_the_maps_are_those_of_the_best_products():
    network = built(NETWORKS["by hand"])
    plan, _ = pruned(network, 3)
    scores = see(network, plan, (ROWS,)).scores
    assert not scores.maps({"query.weight"})  # both change, or none
    (_, of_queries), (_, of_keys) = scores.maps({"query.weight", "key.weight"}).values()
    with torch.no_grad():
        query, key = (layer(ROWS).flatten(0, 1).double() for layer in (network.query, network.key))
    error = (query @ (of_queries @ of_keys.mT) @ key.mT - query @ key.mT).norm()
    best = torch.linalg.svdvals(query @ key.mT)[3:].norm()
    assert torch.isclose(error, best, rtol=1e-3)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_more_than_a_product_is_left_to_each_layer(name):
    network = built(lambda: Attention(UNKNOWN[name]))
    three = {0: np.arange(3)}
    plan = Plan("channel", structure_of(network), {}, {"query.weight": three, "key.weight": three})
    scores = see(network, plan, (ROWS,)).scores
    assert not scores.maps({"query.weight", "key.weight"})
