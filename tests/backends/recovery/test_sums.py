"""Branches that stay do the work of those that went."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from freeprune.backends import BACKENDS, apply, importance
from freeprune.backends.recovery.products import Watched
from freeprune.backends.recovery.recover import recover
from freeprune.common import Skeleton

IMAGES = torch.randn(64, 6, 6, 6, generator=torch.Generator().manual_seed(1))


def branch(normed):
    norm = [nn.BatchNorm2d(6)] if normed else []
    return nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 6, 3, padding=1, bias=not normed), *norm)


class Twice(nn.Module):
    """Two branches that give the same; `also` reads the second one's result once more."""

    def __init__(self, normed=False, swapped=False, in_place=False, also=False):
        super().__init__()
        self.stem = nn.Conv2d(6, 6, 1)
        self.one, self.head = branch(normed), nn.Conv2d(6, 3, 1)
        self.two = copy.deepcopy(self.one)
        self.swapped, self.in_place, self.also = swapped, in_place, also

    def forward(self, x):
        start = x = self.stem(x)
        x = self._sum(x, self.one(start))
        given = self.two(start)
        read = given.mean() if self.also else 0.0
        return self.head(self._sum(x, given)) + read

    def _sum(self, x, given):
        if self.in_place:
            given += x
            return given
        return torch.add(x, given) if self.swapped else given + x


def build(make, **options):
    torch.manual_seed(0)
    network = make(**options).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network


def without_the_first(network):
    backend = BACKENDS["channel"](network, (IMAGES,), importance("l2", network), depth=True)
    gone = [group.name.startswith("one") and group.name.endswith("branch") for group in backend.groups]
    kept = np.where(gone, 0, [group.units for group in backend.groups])
    assert (kept == 0).any()
    return apply(network, backend.plan(kept)).eval(), backend.plan(kept)


def outputs(network):
    skeleton = Skeleton(network)
    with torch.no_grad(), skeleton.batch_statistics():
        return skeleton.network(IMAGES)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("how", [{}, {"swapped": True}, {"in_place": True}])
def test_the_branch_that_stays_gives_twice_as_much(normed, how):
    network = build(Twice, normed=normed, **how)
    smaller, plan = without_the_first(network)
    found = recover(network, smaller, plan, (IMAGES,), ridge=1e-6).network
    before, after = ((outputs(each) - outputs(network)).norm() / outputs(network).norm() for each in (smaller, found))
    assert before > 0.1
    assert after < 1e-2


def test_a_norm_takes_the_size_and_the_weights_keep_theirs():
    network = build(Twice, normed=True)
    smaller, plan = without_the_first(network)
    found = recover(network, smaller, plan, (IMAGES,)).network
    before, after = (dict(each.named_parameters())["two.2.weight"].flatten(1).norm(dim=1) for each in (smaller, found))
    assert after.detach() == pytest.approx(before.detach(), rel=1e-4)


def test_what_is_read_elsewhere_keeps_its_own_outputs():
    network = build(Twice, also=True)
    smaller, plan = without_the_first(network)
    found = recover(network, smaller, plan, (IMAGES,), ridge=1e-6).network
    weights, was = (dict(each.named_parameters())["two.2.weight"].detach() for each in (found, network))
    assert weights == pytest.approx(was, abs=1e-3)


class Tokens(nn.Module):
    """As a transformer adds what its perceptrons give: rows in a sequence, without a norm behind."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.one = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.two = copy.deepcopy(self.one)

    def forward(self, x):
        start = self.stem(x.flatten(2).movedim(1, 2))
        x = start + self.one(start)
        return self.head(x + self.two(start))


def test_sequences_are_sums_of_rows():
    network = build(Tokens)
    smaller, plan = without_the_first(network)
    found = recover(network, smaller, plan, (IMAGES,), ridge=1e-6).network
    before, after = ((outputs(each) - outputs(network)).norm() / outputs(network).norm() for each in (smaller, found))
    assert before > 0.05
    assert after < 0.1 * before


def test_ends_are_counted_by_where_they_are_read():
    network, told = build(Twice, normed=True), {}
    skeleton = Skeleton(network)

    def summed(ends):
        told.update({end.key: end.norm and end.norm.scale for end, _, _ in ends})

    with torch.no_grad(), Watched(skeleton.tensors, lambda c: c.run(c.weight, c.bias), 1000, summed=summed) as watched:
        skeleton.network(IMAGES)
    assert told == {("stem.weight", 0): None, ("one.2.weight", 0): "one.3.weight", ("two.2.weight", 0): "two.3.weight"}
    once = {("one.0.weight", 0), ("one.2.weight", 0), ("two.0.weight", 0), ("two.2.weight", 0), ("head.weight", 0)}
    assert watched.ends.uses == {("stem.weight", 0): 3, **dict.fromkeys(once, 1)}


def test_a_row_that_a_mask_emptied_stays_empty_and_everything_finite():
    network = build(Twice, normed=True)
    backend = BACKENDS["weight"](network, (IMAGES,), importance("l2", network))
    plan = backend.plan(np.array([group.units for group in backend.groups]))
    mask = torch.ones_like(network.two[2].weight, dtype=torch.bool)
    mask[1] = False
    plan = replace(plan, masks={**plan.masks, "two.2.weight": mask})
    found = recover(network, apply(network, plan).eval(), plan, (IMAGES,)).network
    assert not found.two[2].weight[1].any()
    assert all(tensor.isfinite().all() for tensor in found.state_dict().values())


def test_a_norm_that_two_branches_share_keeps_its_values():
    network = build(Twice, normed=True)
    network.two[3] = network.one[3]
    backend = BACKENDS["weight"](network, (IMAGES,), importance("l2", network))
    plan = backend.plan(np.array([group.units // 2 for group in backend.groups]))
    smaller = apply(network, plan).eval()
    found = recover(network, smaller, plan, (IMAGES,)).network
    assert torch.equal(found.one[3].weight, network.one[3].weight)
    before, after = ((outputs(each) - outputs(network)).norm() for each in (smaller, found))
    assert after < before
