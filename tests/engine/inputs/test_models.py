"""Networks by name, weights from files, and the sentence for everything that can go wrong with either."""

from __future__ import annotations

import sys
import textwrap
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from freeprune.common import FreePruneError
from freeprune.engine.inputs import models
from freeprune.engine.inputs.models import load_model, load_weights
from freeprune.engine.inputs.networks import NETWORKS, cifar_resnet


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="nets.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write_file


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in sorted(NETWORKS) if name != "cifar:resnet110"])
def test_built_in(name):
    assert load_model(name).state_dict().keys() == NETWORKS[name]().state_dict().keys()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("cifar:resnet57", "no model 'cifar:resnet57'.*did you mean 'cifar:resnet56'"),
        ("digits:cmm", "did you mean 'digits:cnn'"),
        ("cfar:resnet20", "importing 'cfar' failed.*did you mean 'cifar:resnet20'"),
        ("resnet20", "give package.module:callable.*did you mean 'cifar:resnet20'"),
        ("", "give package.module:callable"),
        ("torch.nn:", "names no callable"),
        (":make", "names no callable"),
        ("torch.nn:Identiti", "'torch.nn' has no callable 'Identiti'; did you mean 'Identity'"),
        ("math:pi", "'math' has no callable 'pi'"),
        ("torch.nn:Linear", "needs arguments .*in_features.*missing a required argument"),
        ("builtins:dict", "returned a dict; expected a torch.nn.Module"),
        ("nothing/here.py:make", "no file .*here.py"),
    ],
)
def test_unknown_network(spec, sentence):
    with pytest.raises(FreePruneError, match=sentence) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


def test_callable_of_a_module():
    assert isinstance(load_model("torch.nn:Identity"), nn.Identity)


def test_callable_of_a_file_with_dataclasses_and_neighbours(write):
    write("WIDTH = 7", "neighbour_of_nets.py")
    path = write(
        """
        from __future__ import annotations
        from dataclasses import dataclass, field
        from torch import nn
        import neighbour_of_nets

        @dataclass
        class Shape:
            width: int = neighbour_of_nets.WIDTH
            rest: list[int] = field(default_factory=list)

        def make():
            return nn.Linear(Shape().width, 2)
        """
    )
    before = list(sys.path)
    assert load_model(f"{path}:make").in_features == 7
    assert sys.path == before
    first, second = load_model(f"{path}:make"), load_model(f"{path}:make")
    assert first is not second


def test_working_directory_can_be_imported_from(write, monkeypatch):
    path = write("from torch import nn\ndef make(): return nn.Identity()\n", "module_in_the_cwd.py")
    monkeypatch.chdir(path.parent)
    before = list(sys.path)
    assert isinstance(load_model("module_in_the_cwd:make"), nn.Identity)
    assert isinstance(load_model("module_in_the_cwd.py:make"), nn.Identity)
    assert sys.path == before


def test_a_file_that_takes_its_folder_off_the_path(write):
    path = write("import sys\nfrom torch import nn\nsys.path.pop(0)\ndef make(): return nn.Identity()\n", "takes_off.py")
    before = list(sys.path)
    load_model(f"{path}:make")
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def make(:", "importing .* failed .SyntaxError"),
        ("import sys; sys.exit(3)", "importing .* failed .SystemExit: 3"),
        ("import no_such_module_at_all", "importing .* failed .ModuleNotFoundError: No module named 'no_such_module"),
        ("def make(): raise ValueError('first\\nsecond')", r"failed when called \(ValueError: first\); mend"),
        ("def make(): raise ValueError", r"failed when called \(ValueError\)"),
        ("from freeprune.common import FreePruneError\nraise FreePruneError('mine')", "^mine$"),
        ("from freeprune.common import FreePruneError\ndef make(): raise FreePruneError('mine')", "^mine$"),
        ("def make(width): return width", r"needs arguments \(width\)"),
        ("def make(): pass", "returned nothing; expected a torch.nn.Module"),
        ("def makes(): pass", "no callable 'make'; did you mean 'makes'"),
        ("x = 1", "no callable 'make'; no name there is close to it"),
    ],
)
def test_file_that_will_not_do(write, text, sentence):
    path, before = write(text), (list(sys.path), set(sys.modules))
    with pytest.raises(FreePruneError, match=sentence) as caught:
        load_model(f"{path}:make")
    assert "\n" not in str(caught.value)
    assert sys.path == before[0]


def test_a_file_that_fails_leaves_no_module_behind(write):
    path = write("raise ValueError")
    before = set(sys.modules)
    with pytest.raises(FreePruneError):
        load_model(f"{path}:make")
    assert set(sys.modules) == before


def test_a_module_whose_own_import_fails(write, monkeypatch):
    path = write("import no_such_module_at_all", "imports_what_is_not.py")
    monkeypatch.chdir(path.parent)
    with pytest.raises(FreePruneError, match=r"importing 'imports_what_is_not' failed .*'no_such_module_at_all'"):
        load_model("imports_what_is_not:make")


def fake_library(monkeypatch, library):
    """A stand-in with the two functions that are used, which takes only the options that must be passed."""
    module = ModuleType(models.LIBRARIES[library][0])
    known = {"resnet18": nn.Identity, "broken": None}

    def get_model(name, *, weights):
        assert weights is None
        return known[name]()

    def create_model(name, *, pretrained):
        assert pretrained is False
        return known[name]()

    module.get_model, module.create_model, module.list_models = get_model, create_model, lambda: list(known)
    monkeypatch.setitem(sys.modules, library, ModuleType(library))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("library", sorted(models.LIBRARIES))
def test_network_of_a_library(monkeypatch, library):
    fake_library(monkeypatch, library)
    assert isinstance(load_model(f"{library}:resnet18"), nn.Identity)
    with pytest.raises(FreePruneError, match=f"no model '{library}:resnet81'.*did you mean 'resnet18'"):
        load_model(f"{library}:resnet81")
    with pytest.raises(FreePruneError, match=r"building it failed .TypeError"):
        load_model(f"{library}:broken")


@pytest.mark.parametrize("library", sorted(models.LIBRARIES))
def test_absent_library(monkeypatch, library):
    def absent(name):
        raise ModuleNotFoundError(f"No module named '{library}'", name=library)

    monkeypatch.setattr(models.importlib, "import_module", absent)
    with pytest.raises(FreePruneError, match=rf"No module named '{library}'\); pip install 'freeprune\[{library}\]'"):
        load_model(f"{library}:resnet18")


@pytest.mark.parametrize("library", sorted(models.LIBRARIES))
def test_library_that_does_not_import(monkeypatch, library):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist\nand a long story")

    monkeypatch.setattr(models.importlib, "import_module", broken)
    with pytest.raises(FreePruneError, match=r"operator torchvision::nms does not exist\); install a build") as caught:
        load_model(f"{library}:resnet18")
    assert "long story" not in str(caught.value)


# --- weights ----------------------------------------------------------------------------------------------------------


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".PTH"])
def test_weights_come_back(tmp_path, suffix):
    source, path = cifar_resnet(20), tmp_path / f"w{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    network = cifar_resnet(20)
    assert load_weights(network, str(path)) is network
    assert_same_state(network.state_dict(), source.state_dict())


@pytest.mark.parametrize("key", models.CHECKPOINT_KEYS)
def test_checkpoint_of_a_wrapped_network(tmp_path, key):
    source = small()
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"epoch": 3, key: state}, tmp_path / "w.pt")
    assert_same_state(load_weights(small(), tmp_path / "w.pt").state_dict(), source.state_dict())


def test_a_network_that_has_a_module_called_module(tmp_path):
    source = nn.ModuleDict({"module": nn.Linear(2, 2)})
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    network = load_weights(nn.ModuleDict({"module": nn.Linear(2, 2)}), tmp_path / "w.safetensors")
    assert_same_state(network.state_dict(), source.state_dict())


def test_batches_tracked_may_be_missing(tmp_path):
    state = small().state_dict()
    del state["1.num_batches_tracked"]
    save_file(state, tmp_path / "w.safetensors")
    assert torch.equal(load_weights(small(), tmp_path / "w.safetensors")[0].weight, state["0.weight"])


@pytest.mark.parametrize("kept", ["first.weight", "second.weight"])
def test_tied_weights_may_be_missing(tmp_path, kept):
    save_file({kept: torch.full((3, 3), 2.0)}, tmp_path / "w.safetensors")
    network = load_weights(Tied(), tmp_path / "w.safetensors")
    assert (network.first.weight == 2).all()
    assert (network.second.weight == 2).all()


def test_equal_but_untied_weights_may_not_be_missing(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(FreePruneError, match=r"1 missing \(1.weight\)"):
        load_weights(network, tmp_path / "w.safetensors")


def test_every_kind_of_misfit_is_named_and_nothing_is_changed(tmp_path):
    network = small()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state = {"0.weight": torch.zeros(5, 3, 3, 3), "1.weight": torch.zeros(4), **{f"x{i}": torch.zeros(1) for i in range(4)}}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(FreePruneError) as caught:
        load_weights(network, tmp_path / "w.safetensors")
    sentence = str(caught.value)
    assert "4 missing (0.bias, 1.bias, 1.running_mean, ...)" in sentence
    assert "4 unexpected (x0, x1, x2, ...)" in sentence
    assert "1 of another shape (0.weight (5, 3, 3, 3) instead of (4, 3, 3, 3))" in sentence
    assert_same_state(network.state_dict(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    network, state = small(), small().state_dict()
    before = network[0].weight.clone()
    state["1.running_var"][2] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(FreePruneError, match=r"tensor '1.running_var' .* NaN or infinite"):
        load_weights(network, tmp_path / "w.safetensors")
    assert torch.equal(network[0].weight, before)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([torch.zeros(1)], "holds a list; expected a state dict"),
        ({}, "holds a dict; expected a state dict with at least one tensor"),
        ({"0.weight": 3}, "holds a int under '0.weight'"),
        ({0: torch.zeros(1)}, "holds a Tensor under 0"),
        (nn.Identity(), r"cannot be read \(UnpicklingError"),
    ],
)
def test_content_that_is_no_state_dict(tmp_path, content, sentence):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(FreePruneError, match=sentence) as caught:
        load_weights(small(), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("content", [b"", b"not weights at all, only text"])
def test_corrupt_file(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(FreePruneError, match="cannot be read") as caught:
        load_weights(small(), path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_unknown_suffix(tmp_path):
    with pytest.raises(FreePruneError, match="no weights file"):
        load_weights(small(), tmp_path / "w.pt")
    with pytest.raises(FreePruneError, match=r"end in '.onnx'; expected .safetensors, .pt, .pth"):
        load_weights(small(), tmp_path / "w.onnx")
