"""Several processes give the weights of one; what cannot be divided, or fails in one of them, is a sentence."""

import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from freeprune.engine.asked.declaration import Hardware
from freeprune.engine.asked.recipe import Recipe
from freeprune.engine.training.checkpoint import Saving
from freeprune.engine.training.processes import check_hardware
from freeprune.engine.training.trainer import train
from freeprune.errors import FreePruneError


class Images(Dataset):
    def __init__(self, spoilt=None):
        self.images = torch.randn(23, 3, 8, 8, generator=torch.Generator().manual_seed(5))
        self.spoilt, self.main = spoilt, os.getpid()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if self.spoilt is not None and os.getpid() != self.main:
            self.spoilt()
        return self.images[index], index % 3


class Network(nn.Module):
    """With a batch norm, and a side output that no loss is made of."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten())
        self.head, self.side = nn.Linear(24, 3), nn.Linear(24, 2)

    def forward(self, x):
        x = self.body(x)
        return (self.head(x), self.side(x)) if self.training else self.head(x)


RECIPE = Recipe(epochs=2.0, batch_size=7, augment=True, clip=2.0, average=0.5, learning_rate=0.05)  # 4 and 3 for two processes
MASKS = {"head.weight": torch.rand(3, 24, generator=torch.Generator().manual_seed(0)) < 0.5}
TWO = Hardware(device="cpu", devices=2)


def trained(hardware, recipe=RECIPE, dataset=None, **more):
    return train(Network(), dataset or Images(), recipe, seed=1, masks=MASKS, hardware=hardware, **more)


class Interrupted(Exception):
    pass


def test_two_processes_give_the_weights_of_one_also_after_an_interruption(tmp_path):
    losses, expected = {}, {}
    one = trained(Hardware(device="cpu"), progress=lambda step, steps, loss: expected.update({step: loss}))

    def until(step, steps, loss):
        losses[step] = loss
        if step == 3:
            raise Interrupted

    saving = Saving(tmp_path / "training.safetensors", 0.0)
    with pytest.raises(Interrupted):
        trained(TWO, saving=saving, progress=until)
    first = min(losses)
    two = trained(TWO, saving=saving, progress=lambda step, steps, loss: losses.update({step: loss}))
    assert first == 1
    assert len(expected) == 7
    assert {step: pytest.approx(loss, abs=1e-5) for step, loss in expected.items() if step in losses} == losses
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, rtol=0, atol=1e-5)
    assert (two.head.weight[~MASKS["head.weight"]] == 0).all()
    assert type(two.body[1]) is nn.BatchNorm2d
    assert "forward" not in vars(two.body[1])
    assert not torch.distributed.is_initialized()  # here, so that this can be done again


def fails():
    raise OSError("truncated file")


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("spoilt", "sentence"),
    [
        (fails, r"items of an Images cannot be read into a batch \(OSError: truncated file"),
        (dies, r"a process that trains on another device died, .*lower `batch_size`, and go on with `resume=True`"),
    ],
)
def test_what_fails_in_another_process_is_a_sentence(spoilt, sentence):
    with pytest.raises(FreePruneError, match=sentence):
        trained(TWO, dataset=Images(spoilt))


def test_what_cannot_be_divided_is_a_sentence(monkeypatch):
    with pytest.raises(FreePruneError, match=r"`batch_size` is 3 for 2 processes .* at least 4"):
        trained(TWO, Recipe(batch_size=3))
    with pytest.raises(FreePruneError, match="`nodes=2` was given, but this process was not started by torchrun"):
        check_hardware(Hardware(nodes=2))
    with pytest.raises(FreePruneError, match="`device` is 'cuda:9', and"):
        check_hardware(Hardware(device="cuda:9", devices=2))
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    check_hardware(Hardware(device="cpu", devices=2, nodes=2))
    with pytest.raises(FreePruneError, match="are 3 processes, but torchrun started 4"):
        check_hardware(Hardware(device="cpu", devices=3))
