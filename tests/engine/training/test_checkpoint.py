"""A training that is interrupted and goes on ends with the same bits; what is not its own or damaged is a sentence."""

import random
import resource
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from freeprune.engine.asked.declaration import Hardware
from freeprune.engine.asked.recipe import Recipe
from freeprune.engine.training.checkpoint import Saving
from freeprune.engine.training.trainer import train
from freeprune.errors import FreePruneError


class Noisy(Dataset):
    """Draws from all three global generators, as a user's own augmentation may."""

    def __init__(self, length=22):
        self.images = torch.randn(length, 3, 8, 8, generator=torch.Generator().manual_seed(5))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + 0.1 * (torch.randn(()) + random.gauss(0, 1) + np.random.randn()), index % 3  # noqa: NPY002


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(6 * 36, 3),
    )  # fmt: skip


class Interrupted(Exception):
    pass


RECIPE = {"epochs": 3.0, "batch_size": 5, "augment": True}  # 14 steps, 4 a shuffle
RECIPES = {
    "sgd": Recipe(**RECIPE),
    "adamw": Recipe(**RECIPE, optimizer="adamw", clip=1.0, average=0.9, label_smoothing=0.1),
    "bf16": Recipe(**RECIPE, precision="bf16-mixed", distill=0.5),
}
MASKS = {"3.weight": torch.rand(6, 6, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5}


def trained(recipe, path=None, until=None, seconds=0.0, losses=None, **more):
    def progress(step, steps, loss):
        if losses is not None:
            losses.append(loss)
        if step == until:
            raise Interrupted

    saving = None if path is None else Saving(path, seconds)
    options = {"seed": 1, "masks": MASKS, "teacher": network(), **more}
    return train(network(), options.pop("dataset", Noisy()), recipe, saving=saving, progress=progress, **options)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "training.safetensors"


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("loaders", [0, 2])
def test_an_interrupted_training_ends_with_the_same_bits(name, loaders, path):
    if loaders and name != "sgd":
        pytest.skip("one recipe is enough")
    more = {"hardware": Hardware(loaders=loaders)}
    losses, expected = [], []
    whole = trained(RECIPES[name], losses=expected, **more)
    for until in (4, 9) if loaders else (1, 4, 9, 13):  # 4: a shuffle has just ended
        with pytest.raises(Interrupted):
            trained(RECIPES[name], path, until, losses=losses, **more)
    resumed = trained(RECIPES[name], path, losses=losses, **more)
    assert losses == expected
    assert same(resumed, whole)
    assert (resumed[3].weight[~MASKS["3.weight"]] == 0).all()


def test_a_finished_training_is_not_done_again(path):
    losses = []
    whole = trained(RECIPES["sgd"], path)
    assert same(trained(RECIPES["sgd"], path, losses=losses), whole)
    assert losses == []


def test_checkpoints_come_as_often_as_asked(path):
    with pytest.raises(Interrupted):
        trained(RECIPES["sgd"], path, 10, seconds=3600)
    assert not path.exists()


def test_another_training_does_not_go_on(path):
    with pytest.raises(Interrupted):
        trained(RECIPES["sgd"], path, 2)
    for recipe, more, sentence in (
        (RECIPES["adamw"], {}, "is of a training with recipe = "),
        (Recipe(**RECIPE, clip=1.0), {}, r"with recipe = \{'clip': None\}, not \{'clip': 1\.0\}; train as before"),
        (RECIPES["sgd"], {"seed": 2}, "is of a training with seed = 1, not 2; train as before, or delete it"),
        (RECIPES["sgd"], {"dataset": Noisy(23)}, "with images = 22, not 23"),
        (RECIPES["sgd"], {"masks": {}}, "with masks = "),
    ):
        with pytest.raises(FreePruneError, match=sentence):
            trained(recipe, path, **more)


def test_a_damaged_checkpoint_is_a_sentence(path):
    with pytest.raises(Interrupted):
        trained(RECIPES["sgd"], path, 2)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    for broken in (bytes(content), bytes(content[:-100]), b""):
        path.write_bytes(broken)
        with pytest.raises(FreePruneError, match=r"training.safetensors is damaged .*; delete it to train from the beginning"):
            trained(RECIPES["sgd"], path)


def test_a_full_disk_is_a_sentence_and_leaves_the_checkpoint_from_before(path):
    """A limit on the size of files stands for the disk: the write itself fails."""
    with pytest.raises(Interrupted):
        trained(RECIPES["sgd"], path, 3)
    before = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(FreePruneError, match=r"cannot be saved in .* the checkpoint from before is kept: make room"):
            trained(RECIPES["sgd"], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert same(trained(RECIPES["sgd"], path), trained(RECIPES["sgd"]))
