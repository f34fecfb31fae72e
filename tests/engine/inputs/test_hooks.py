"""Forward hooks: those that the user's code cannot register again may not change what a network computes."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as masks
from torch.utils.data import TensorDataset
from toys import network

import freeprune
from freeprune import FreePruneError
from freeprune.engine.delivery import export as export_module
from freeprune.engine.inputs.hooks import check_hooks

CODE = """
from toys import network

def clamped(module, inputs, output):
    return output.clamp(max=0.1)

def make():
    made = network()
    made[3].register_forward_hook(clamped)
    return made
"""
IMAGES = (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


def decorated(method):
    def inner(*arguments):
        return method(*arguments)

    return inner


class Own(nn.Module):
    """Registers its hooks itself, in every way there is."""

    def __init__(self):
        super().__init__()
        self.inner = network()
        self.inner[0].register_forward_hook(self.added)
        self.inner[0].register_forward_hook(self.lessened)
        self.inner[3].register_forward_hook(lambda module, inputs, output: output + 1)
        self.inner[4].register_forward_pre_hook(functools.partial(self.scaled, factor=3))
        self.inner[7].register_forward_pre_hook(Own.doubled)

    def added(self, module, inputs, output):
        return output + 2

    @decorated
    def lessened(self, module, inputs, output):
        return output - 2

    def scaled(self, module, inputs, factor):
        return (factor * inputs[0],)

    @staticmethod
    def doubled(module, inputs):
        return (2 * inputs[0],)

    def forward(self, x):
        return self.inner(x)


class Clamp:
    def __call__(self, module, inputs, output):
        return output.clamp(max=0.1)


class Count:
    """Changes nothing that a network computes."""

    def __init__(self):
        self.seen = 0

    def __call__(self, module, inputs, output):
        self.seen += 1


def hooked(kind, place, hook, **options):
    made = network()
    getattr(made.get_submodule(place), f"register_forward_{kind}")(hook, **options)
    return made


def masked():
    made = network()
    masks.l1_unstructured(made[3], "weight", 0.5)
    return made


def normed():
    made = network()
    nn.utils.spectral_norm(made[7])
    return made


FINE = {
    "none": network,
    "of its own code": Own,
    "that counts": lambda: hooked("hook", "3", Count()),
    "that prints": lambda: hooked("pre_hook", "3", lambda module, inputs: None),
    "of torch.nn.utils.prune": masked,
    "of torch.nn.utils.spectral_norm": normed,
}
GUILTY = {
    "output": (lambda: hooked("hook", "3", lambda m, i, o: o * 2), "<lambda>' on module '3'"),
    "input": (lambda: hooked("pre_hook", "7", lambda m, i: (i[0] + 1,)), "<lambda>' on module '7'"),
    "with options": (lambda: hooked("pre_hook", "7", lambda m, i, k: ((i[0] + 1,), k), with_kwargs=True), "on module '7'"),
    "object": (lambda: hooked("hook", "3", Clamp()), "'Clamp' on module '3'"),
    "of the whole": (lambda: hooked("hook", "", lambda m, i, o: o.softmax(1)), "on module 'the network'"),
    "in place": (lambda: hooked("hook", "3", lambda m, i, o: o.mul_(2)), "on module '3'"),
    "of another network": (lambda: hooked("hook", "3", Own().added), "'Own.added' on module '3'"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning", "ignore:.*spectral_norm.*:DeprecationWarning")
@pytest.mark.parametrize("name", FINE)
def test_hooks_that_are_made_again_or_change_nothing_are_fine(name):
    made = FINE[name]()
    check_hooks(made, IMAGES)
    hooks = [hook for module in made.modules() for hook in module._forward_hooks.values()]
    assert not any(hook.seen for hook in hooks if isinstance(hook, Count))


@pytest.mark.parametrize("name", GUILTY)
def test_hooks_that_change_outputs_are_named(name):
    make, sentence = GUILTY[name]
    with pytest.raises(FreePruneError, match=f"a forward hook .*{sentence} changes the outputs"):
        check_hooks(make(), IMAGES)


def test_of_several_the_one_that_counts_is_named():
    made = hooked("hook", "0", lambda module, inputs, output: None)
    made[3].register_forward_hook(Clamp())
    with pytest.raises(FreePruneError, match="'Clamp' on module '3'"):
        check_hooks(made, IMAGES)


def test_a_run_refuses_them_for_a_network_of_python_but_not_for_one_of_code(tmp_path, monkeypatch):
    def no_export(*_):
        raise FreePruneError("left out, since it takes most of a run")

    monkeypatch.setattr(export_module, "export_onnx", no_export)
    labels = torch.arange(40) % 3
    data = TensorDataset(torch.randn(40, 1, 8, 8), labels)
    options = {"target": {"macs": 0.6}, "trials": 0, "finetune": None, "rehearsal": False, "calibration_images": 20}
    with pytest.raises(FreePruneError, match="'Clamp' on module '3' changes the outputs"):
        freeprune.prune(hooked("hook", "3", Clamp()), (data, data), out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "code.py").write_text(CODE)
    freeprune.prune(f"{tmp_path / 'code.py'}:make", (data, data), out=tmp_path / "out", **options)
