"""Examples of tokens by their shape, and what an embedding rejects."""

import pytest
import torch
from torch import nn

import freeprune
from freeprune.engine.inputs.example import example_of
from freeprune.errors import FreePruneError


class Reader(nn.Module):
    """Classes of sequences of at most 8 of 50 tokens."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(50, 16), nn.Embedding(8, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, input_ids, cache=None, attention_mask=None):
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.token(input_ids) + self.position(places)
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        return self.body(hidden.mean(1))


@pytest.mark.parametrize(
    "example",
    [
        "ids:1x8",
        "ids:8",
        "8",
        ("ids:1x8", "mask:1x8"),
        ("attention_mask:1x8", "input_ids:1x8"),
        torch.zeros(1, 8, dtype=torch.long),
        {"input_ids": torch.zeros(1, 8, dtype=torch.long), "attention_mask": torch.ones(1, 8), "labels": torch.zeros(1)},
    ],
)
def test_tokens_as_an_example(example):
    found = freeprune.inspect(Reader(), example)
    assert {group.width for group in found.groups} == {16, 32}


def test_random_values_suit_their_names():
    inputs, collate = example_of(("mask:2x5", "ids:2x5"), network=Reader())
    assert collate.inputs == ("input_ids", "attention_mask")
    ids, mask = inputs
    assert ids.shape == mask.shape == (2, 5)
    assert mask.all()
    assert ids.min() >= 0
    assert ids.max() < 8  # the smallest embedding that a network has, where its configuration does not tell


class Shop(nn.Module):
    """What a customer, whose number comes as a float, makes of a basket and its prices."""

    def __init__(self):
        super().__init__()
        self.customer, self.goods = nn.Embedding(7, 16), nn.EmbeddingBag(30, 16, mode="mean")
        self.body = nn.Sequential(nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, who, basket, prices):
        return self.body(torch.cat([self.customer(who.long()).flatten(1), self.goods(basket), prices], 1))


class Writer(nn.Module):
    """Reads with the sequence first."""

    def __init__(self):
        super().__init__()
        self.letters, self.body, self.last = nn.Embedding(30, 16), nn.GRU(16, 32), nn.Linear(32, 30)

    def forward(self, x):
        return self.last(self.body(self.letters(x.t()))[0][-1])


@pytest.mark.parametrize(
    ("network", "example", "tokens"),
    [
        (Shop(), ("1", "4", "4"), [7, 30, None]),
        (Shop(), ("basket:5x4", "prices:5x4", "who:5x1"), [7, 30, None]),
        (Writer(), "20", [30]),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 4)), "3x4", [None]),
    ],
)
def test_what_an_embedding_looks_up_is_tokens_whatever_it_is_called(network, example, tokens):
    inputs, _ = example_of(example, network=network)
    for x, rows in zip(inputs, tokens, strict=True):
        assert x.is_floating_point() == (rows is None)
        assert rows is None or (int(x.min()) >= 0 and int(x.max()) < rows)
    assert freeprune.inspect(network, example).groups


@pytest.mark.parametrize(
    ("example", "sentence"),
    [
        (torch.zeros(1, 8), "embedding 'token' looks up whole numbers, and was given float32; give tokens as integers"),
        ("ids:1x9", "sequence of 9 tokens is longer than what the embedding 'position' holds, .* of at most 8"),
        (torch.full((1, 4), 50), "embedding 'token' has 50 rows, and was asked for number 50; give tokens from 0 to 49"),
        (torch.full((1, 4), -1), "asked for number -1"),
        ("words:1x8", "takes .input_ids, cache, attention_mask., and none of them is 'words'"),
        (("ids:1x8", "8"), "some have a name; give all a name, or none"),
        (
            {"words": torch.zeros(1, 8), "more": torch.zeros(1, 2)},
            "the example is a dictionary with words, more, .* no 'input_ids'",
        ),
    ],
)
def test_what_a_network_of_tokens_does_not_take(example, sentence):
    with pytest.raises(FreePruneError, match=sentence):
        freeprune.inspect(Reader(), example)


def test_a_run_says_it_too(tmp_path):
    class Long(torch.utils.data.Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, i):
            return {"input_ids": torch.arange(9), "labels": i % 3}

    with pytest.raises(FreePruneError, match="sequence of 9 tokens is longer"):
        freeprune.prune(Reader(), (Long(), Long()), target={"macs": 0.5}, out=tmp_path / "out")


@pytest.mark.parametrize("odd", range(0, 40, 3))
def test_a_rare_token_is_told_wherever_it_comes_up(odd, tmp_path):
    """Among the calibration images, those that judge recovery, those to train on, or the test."""
    generator = torch.Generator().manual_seed(0)
    items = [{"input_ids": torch.randint(50, (8,), generator=generator), "labels": i % 3} for i in range(40)]
    items[odd]["input_ids"][2] = 50
    with pytest.raises(FreePruneError, match="embedding 'token' has 50 rows, and was asked for number 50; give tokens from 0"):
        freeprune.prune(
            Reader(),
            (items, items),
            target={"macs": 0.5},
            trials=0,
            calibration_images=12,
            rehearsal=False,
            out=tmp_path / "out",
        )


def test_a_dictionary_is_scored():
    network = Reader()
    batch = {"input_ids": torch.randint(0, 50, (4, 8)), "attention_mask": torch.ones(4, 8)}
    assert freeprune.score(network, network, batch) == pytest.approx(0.0, abs=1e-5)
