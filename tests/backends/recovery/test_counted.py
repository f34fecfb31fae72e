"""Padding, and tokens that nothing reads, are not fitted to."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from freeprune.backends import apply
from freeprune.backends.plan import Plan, structure_of
from freeprune.backends.recovery.candidates import layers
from freeprune.backends.recovery.counted import among, counted
from freeprune.backends.recovery.recover import recover

LENGTH = 12


class Reader(nn.Module):
    """Attention over tokens that are there, then the first token or the mean of those that are there."""

    def __init__(self, first=False):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.before, self.after = nn.Linear(8, 6), nn.Linear(6, 8)
        self.last = nn.Linear(8, 5)
        self.first = first

    def forward(self, ids, mask):
        x = self.words(ids)
        x = x + self.after(F.relu(self.before(x)))
        x = F.scaled_dot_product_attention(x, x, x, mask[:, None, :].bool())
        x = self.last(x)
        return x[:, 0] if self.first else (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def sentences(padding, count=70):
    """Tokens and masks; the same but for the token that pads."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    return torch.where(mask.bool(), torch.randint(1, 20, mask.shape, generator=generator), padding), mask


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Reader().eval()


def pruned(network):
    few = torch.arange(4).numpy()
    kept = {"before.weight": {0: few}, "before.bias": {0: few}, "after.weight": {1: few}}
    plan = Plan("channel", structure_of(network), {}, kept)
    return apply(network, plan), plan


def test_the_rows_of_padding_do_not_count(network):
    ids, mask = sentences(0)
    found = counted(network, (ids, mask))
    assert {name for name, _ in found} == {"words.weight", "before.weight", "after.weight", "last.weight"}
    assert all(torch.equal(rows, mask.bool().flatten()) for rows in found.values())


def test_nor_do_tokens_that_nothing_reads():
    found = counted(Reader(first=True), sentences(0))
    assert torch.equal(found["last.weight", 0].view(-1, LENGTH).long(), F.one_hot(torch.zeros(70, dtype=torch.long), LENGTH))


@pytest.mark.parametrize("padding", [0, 7])
def test_what_pads_does_not_change_what_is_fitted(padding, network):
    compact, plan = pruned(network)
    found, other = (recover(network, compact, plan, sentences(each)).network for each in (0, padding))
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(found.parameters(), other.parameters(), strict=True))


def test_nor_what_candidates_are_fitted_to(network):
    found, other = (layers(network, sentences(each)) for each in (0, 7))
    assert set(found) == {"before.weight", "after.weight", "last.weight"}
    assert all(torch.allclose(found[name].moments, other[name].moments, atol=1e-5) for name in found)


def test_images_are_not_looked_at():
    assert counted(nn.Linear(4, 3), (torch.ones(3, 5, 4),)) == {}


def test_too_few_rows_are_none():
    counts = {("a", 0): torch.tensor([True, False, True])}
    assert among(counts, ("a", 0), 3, 2).tolist() == [0, 2]
    assert among(counts, ("a", 0), 3, 3) is None
    assert among(counts, ("a", 0), 4, 1) is None
    assert among(counts, ("b", 0), 3, 1) is None
