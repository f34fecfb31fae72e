"""Loading processes: the same weights for any number of them, and what fails in one is a sentence."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from freeprune.engine.asked.declaration import Hardware
from freeprune.engine.asked.recipe import Recipe
from freeprune.engine.inputs.batches import Images
from freeprune.engine.tasks import CLASSIFICATION, TASKS
from freeprune.engine.training.feeding import Drawn, Order, Whole, batches_of, loader
from freeprune.engine.training.measuring import accuracy, measured
from freeprune.engine.training.trainer import train
from freeprune.errors import FreePruneError


class Items(Dataset):
    def __init__(self, noise=0.0, spoilt=None):
        self.images = torch.randn(22, 3, 4, 4, generator=torch.Generator().manual_seed(5))
        self.noise, self.spoilt, self.main = noise, spoilt, os.getpid()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if self.spoilt is not None and os.getpid() != self.main:
            self.spoilt()
        drawn = torch.randn(()) + random.gauss(0, 1) + np.random.randn() if self.noise else 0  # noqa: NPY002
        return self.images[index] + self.noise * drawn, index % 3


def trained(loaders, dataset, **more):
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    return train(network, dataset, Recipe(images=40, batch_size=5, **more), seed=1, hardware=Hardware(loaders=loaders))


def same(*networks):
    states = [network.state_dict() for network in networks]
    return all(torch.equal(tensor, state[name]) for state in states for name, tensor in states[0].items())


def test_any_number_of_loaders_gives_the_same_weights():
    assert same(*(trained(loaders, Items(noise=0.5), augment=True) for loaders in (1, 2)))
    assert same(*(trained(loaders, Items()) for loaders in (0, 2)))  # nothing is drawn on the way


@pytest.mark.parametrize("labelled", [True, False])
def test_batches_of_images_come_as_they_are_stored_and_are_the_same(labelled):
    pixels = torch.randint(0, 256, (9, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(9) if labelled else None, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    part = Subset(Subset(images, [8, 1, 2, 3, 4]), [0, 2, 4])
    numbered = [[(0, 0), (1, 2)], [(2, 1)]]
    assert isinstance(Drawn(part, 0).__getitems__(numbered[0]), Whole)
    batches = list(batches_of(part, iter(loader(Drawn(part, 0), numbered, None, 1, pinned=False)), 1))
    for numbers, batch in zip(([8, 4], [2]), batches, strict=True):
        found = batch[0] if labelled else batch
        expected = torch.stack([images[i][0] if labelled else images[i] for i in numbers])
        assert torch.equal(found, expected)
        assert not labelled or batch[1].tolist() == numbers


def test_the_test_set_is_loaded_by_processes_too():
    network = trained(0, Items())
    found = measured(network, Items(), CLASSIFICATION, hardware=Hardware(loaders=2))
    assert found == accuracy(network, Items())


def broken():
    raise OSError("truncated file")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("spoilt", "sentence"),
    [
        (broken, r"items of an Items cannot be read into a batch \(OSError: truncated file at .*test_feeding.py:\d+\)"),
        (killed, r"a loading process died, perhaps out of memory; lower `loaders` \(now 1\) or `batch_size`, and go on with"),
    ],
)
def test_what_fails_in_a_loading_process_is_a_sentence(spoilt, sentence):
    with pytest.raises(FreePruneError, match=sentence) as caught:
        trained(1, Items(spoilt=spoilt))
    assert "\n" not in str(caught.value)


def test_a_collate_function_that_fails_is_a_sentence():
    def collate(items):
        raise KeyError("image")

    with pytest.raises(FreePruneError, match=r"cannot be read into a batch .KeyError"):
        measured(nn.Flatten(), Items(), CLASSIFICATION, collate=collate, hardware=Hardware(loaders=1))


def test_an_order_goes_on_in_the_middle_of_a_shuffle():
    def order():
        return Order(11, 3, 8, torch.Generator().manual_seed(4))

    whole = order()
    batches, states = [], []
    for done, batch in enumerate(whole):
        states.append(whole.state(done))
        batches.append(batch)
    for done in range(1, 8):
        rest = order()
        rest.go_on(done, states[done], None)
        assert list(rest) == batches[done:]


class Apart(nn.Module):
    """Other things in training mode: losses alone, or a failure."""

    def __init__(self, fails):
        super().__init__()
        self.layer, self.fails = nn.Linear(48, 3), fails

    def forward(self, x, labels=None):
        given = self.layer(x.flatten(1))
        if self.training and self.fails:
            raise KeyError("labels")
        return {"loss": given.mean()} if self.training else given


@pytest.mark.parametrize(
    ("fails", "sentence"),
    [
        (
            True,
            r"in training mode fails on a float32 tensor of shape \(5, 3, 4, 4\) \(KeyError: 'labels' at .*; give .*`finetune`",
        ),
        (False, r"in training mode returned a dict without an output; .*`finetune`"),
    ],
)
def test_a_network_that_is_trained_in_another_way_is_told(fails, sentence):
    with pytest.raises(FreePruneError, match=sentence):
        train(Apart(fails), Items(), Recipe(images=20, batch_size=5), seed=1)


def test_images_of_another_shape_or_without_numbers_are_told_wherever_they_come():
    items, network = Items(), nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(FreePruneError, match=r"in eval mode fails on a float32 tensor of shape \(2, 3, 4, 4\)"):
        accuracy(network, items)
    items.images[20] = torch.nan
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    with pytest.raises(FreePruneError, match="the inputs of a batch hold NaN"):
        accuracy(network, items)
    with pytest.raises(FreePruneError, match="the inputs of a batch hold NaN"):
        train(network, items, Recipe(images=66, batch_size=11), seed=1)


def test_a_measure_without_a_number_is_told():
    class Far(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)) * torch.inf

    data = [(torch.randn(3, 4, 4), 0.5) for _ in range(4)]
    with pytest.raises(FreePruneError, match="the mean absolute error is inf, since the network's outputs on some test images"):
        measured(Far(48, 1), data, TASKS["regression"])


class Wider(nn.Module):
    """Scores against more classes in training mode, as against a queue of keys."""

    def __init__(self):
        super().__init__()
        self.layer, self.queue = nn.Linear(48, 3), nn.Linear(48, 8)

    def forward(self, x):
        return (self.queue if self.training else self.layer)(x.flatten(1))


def test_a_network_that_returns_another_shape_in_training_mode_is_told():
    sentence = r"in training mode returned a float32 tensor of shape \(5, 8\), and .* \(5, 3\) in eval mode; .*`finetune`"
    with pytest.raises(FreePruneError, match=sentence):
        train(Wider(), Items(), Recipe(images=20, batch_size=5, distill=0.5), seed=1, teacher=Wider())
