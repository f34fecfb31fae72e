"""Networks by name, and the sentence for everything that can go wrong with one."""

from __future__ import annotations

import sys
import textwrap

import pytest
from torch import nn

from freeprune.engine.inputs.models import load_model
from freeprune.engine.inputs.networks import NETWORKS
from freeprune.errors import FreePruneError


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="nets.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write_file


def test_a_path_is_told_what_to_write_for_it(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("best.pt", "net.py", "folder/config.json"):
        (tmp_path / name).touch()
    for name, sentence in {
        "best.pt": "is a file; give what builds the network, .* and its weights as `weights`",
        "net.py": "is a file; give `.*net.py:callable`",
        "folder": "is a folder; give `hf:.*folder`",
        ".": "is a folder; give what builds the network",
    }.items():
        with pytest.raises(FreePruneError, match=sentence):
            load_model(str(tmp_path / name))


@pytest.mark.parametrize("name", [name for name in sorted(NETWORKS) if name != "cifar:resnet110"])
def test_built_in_networks_are_made_by_name(name):
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
def test_a_network_that_there_is_not_is_told_what_is_near(spec, sentence):
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
        ("def make(): raise ValueError('first\\nsecond')", r"failed when called \(ValueError: first at .*\.py:1\); mend"),
        ("def make(): raise ValueError", r"failed when called \(ValueError at .*\.py:1\)"),
        ("\nwidth = depth", r"importing .* failed \(NameError: name 'depth' is not defined at .*\.py:2\); name"),
        ("from freeprune.errors import FreePruneError\nraise FreePruneError('mine')", "^mine$"),
        ("from freeprune.errors import FreePruneError\ndef make(): raise FreePruneError('mine')", "^mine$"),
        ("def make(width): return width", r"needs arguments \(width\)"),
        ("from torch import nn\nmake = nn.Linear(2, 2)", "is a network already; name the class or function that makes it"),
        ("def make(): pass", "returned nothing; expected a torch.nn.Module"),
        ("def makes(): pass", "no callable 'make'; did you mean 'makes'"),
        ("from math import ceil, fabs\ndef data(): pass\nclass Net: pass", "no callable 'make'; it has data, Net$"),
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
