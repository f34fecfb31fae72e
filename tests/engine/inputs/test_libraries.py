"""Networks of torchvision, timm and transformers by stand-ins of the libraries: names, pretrained weights, preparation."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from refusals import raises
from torch import nn

import freeprune
from freeprune.engine.inputs import libraries
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.inputs.image_files import NOTHING_STATED, Preparation
from freeprune.engine.inputs.libraries import LIBRARIES, stated_by
from freeprune.engine.inputs.models import load_model

KNOWN = ("resnet18", "broken", "bare")


class Net(nn.Module):
    def __init__(self, pretrained):
        super().__init__()
        self.last = nn.Linear(2, 2)
        self.pretrained = pretrained


def built(name, pretrained):
    """A network of a stand-in; `far` is known and cannot be downloaded, `bare` has no weights, `broken` no code."""
    if name not in (*KNOWN, "far"):
        raise ValueError(f"unknown {name}")
    if name == "broken":
        raise TypeError("no code")
    if pretrained and name == "far":
        raise OSError("no route\nto anywhere")
    return Net(pretrained)


class Torchvision:
    @staticmethod
    def get_model(name, *, weights):
        assert weights in (None, "DEFAULT")
        return built(name, weights is not None)

    @staticmethod
    def list_models():
        return [*KNOWN, "far"]

    @staticmethod
    def get_model_weights(name):
        told = SimpleNamespace(
            crop_size=[224], resize_size=[256], mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6],
            interpolation=SimpleNamespace(value="bicubic"),
        )  # fmt: skip
        return SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: told))


class Timm:
    @staticmethod
    def create_model(name, *, pretrained):
        return built(name.partition(".")[0], pretrained)

    @staticmethod
    def list_models(pretrained=False):
        return ["resnet18.tag", "far.tag", "broken.tag"] if pretrained else [*KNOWN, "far"]


class Transformers:
    class AutoConfig:
        @staticmethod
        def from_pretrained(name, *, trust_remote_code):
            assert trust_remote_code is False
            if name == "nowhere":
                raise OSError("is no folder\nand no name")
            return SimpleNamespace(
                architectures={"resnet18": ["Theirs"], "far": ["Theirs"], "odd": ["Own"]}.get(name), name=name
            )

    class Theirs(Net):
        def __init__(self, config):
            super().__init__(False)

        @classmethod
        def from_pretrained(cls, name):
            return built(name, True)

    class AutoModel:
        @staticmethod
        def from_config(config):
            return Net(False)

        @staticmethod
        def from_pretrained(name):
            return Net(True)

    class ImageProcessingMixin:
        @staticmethod
        def get_image_processor_dict(name):
            if name == "text":
                raise OSError("no images")
            return {
                "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224}, "resample": 3,
            }, {}  # fmt: skip


STAND_INS = {"torchvision": Torchvision, "timm": Timm, "hf": Transformers}
STATED = Preparation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), size=224, kept=0.875, filter="bicubic")


@pytest.fixture(autouse=True)
def _libraries(monkeypatch):
    data = ModuleType("timm.data")
    data.resolve_model_data_config = lambda network: {
        "input_size": (3, 224, 224), "mean": STATED.mean, "std": STATED.std, "crop_pct": 0.875, "interpolation": "bicubic",
    }  # fmt: skip
    for library, stand_in in STAND_INS.items():
        module = ModuleType(LIBRARIES[library].module)
        vars(module).update({name: getattr(stand_in, name) for name in vars(stand_in) if not name.startswith("_")})
        monkeypatch.setitem(sys.modules, module.__name__.partition(".")[0], ModuleType(library))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "timm.data", data)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_network_and_its_pretrained_weights(library):
    assert load_model(f"{library}:resnet18").pretrained is False
    assert load_model(f"{library}:resnet18", pretrained=True).pretrained is True
    assert GivenModel(f"{library}:resnet18", "pretrained").network(0).pretrained is True
    assert stated_by(f"{library}:resnet18", "pretrained", Net(True)) == STATED
    assert stated_by(f"{library}:resnet18", None, Net(True)) == NOTHING_STATED
    assert stated_by(f"{library}:resnet18", "pretrained.pt", Net(True)) == NOTHING_STATED


@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_that_cannot_be_downloaded(library):
    with raises(f"weights of '{library}:far' cannot be had .OSError: no route.; they are downloaded, so connect") as caught:
        load_model(f"{library}:far", pretrained=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_name_that_the_library_does_not_know(library, pretrained):
    with raises(f"no model '{library}:resnet81' to be had; did you mean 'resnet18"):
        load_model(f"{library}:resnet81", pretrained=pretrained)
    with raises(r"building it failed .TypeError: no code|cannot be had .TypeError: no code"):
        load_model(f"{library}:broken", pretrained=pretrained)


def test_a_tag_that_timm_does_not_know(monkeypatch):
    monkeypatch.setattr(sys.modules["timm"], "create_model", lambda name, pretrained: built(name, pretrained))
    with raises(r"no model 'timm:resnet18.tug' to be had; did you mean 'resnet18.tag'"):
        load_model("timm:resnet18.tug", pretrained=True)


def test_an_architecture_without_pretrained_weights(monkeypatch):
    def without(name, pretrained):
        raise RuntimeError("no weights")

    monkeypatch.setattr(sys.modules["timm"], "create_model", without)
    with raises("no pretrained weights of 'timm:bare' to be had; did you mean"):
        load_model("timm:bare", pretrained=True)


def test_names_that_the_hub_does_not_know():
    with raises(r"no model 'hf:nowhere' to be had; give a name .* .OSError: is no folder.") as caught:
        load_model("hf:nowhere")
    assert "\n" not in str(caught.value)
    assert load_model("hf:odd", pretrained=True).pretrained is True  # its class is no part of transformers
    assert load_model("hf:plain").pretrained is False
    assert stated_by("hf:text", "pretrained", Net(True)) == NOTHING_STATED


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"size": 224}, Preparation(size=224)),
        ({"size": {"height": 224, "width": 224}, "image_mean": [0.5], "image_std": [0.5]}, Preparation((0.5,), (0.5,), 224)),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, Preparation(size=224, kept=0.875)),
        ({"size": 256, "crop_size": 224, "do_center_crop": False}, Preparation(size=256)),
        ({"do_normalize": False, "image_mean": [0.5] * 3}, Preparation((0.0,) * 3, (1.0,) * 3)),
    ],
)
def test_what_image_processors_state(told, expected, monkeypatch):
    monkeypatch.setattr(Transformers.ImageProcessingMixin, "get_image_processor_dict", staticmethod(lambda name: (told, {})))
    assert stated_by("hf:any", "pretrained", Net(True)) == expected


@pytest.mark.parametrize("spec", ["digits:cnn", "my.py:Net", "torch.nn:Identity"])
def test_pretrained_weights_of_what_has_none(spec):
    with raises(f"`weights='pretrained'` was given for '{spec}', but only torchvision:NAME, timm:NAME, hf:NAME"):
        load_model(spec, pretrained=True)


def test_words_that_do_not_go_together():
    with raises("`weights='pretrained'` was given with a network, which has its weights already"):
        GivenModel(Net(True), "pretrained").network(0)
    for weights in (None, "pretrained"):
        with raises("`weights_key='ema'` was given without a file"):
            GivenModel("timm:resnet18", weights, "ema").network(0)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_that_is_not_installed_is_told_how_to_install_it(monkeypatch, library):
    def absent(name):
        raise ModuleNotFoundError("No module named 'it'", name="it")

    monkeypatch.setattr(libraries.importlib, "import_module", absent)
    with raises(rf"No module named 'it'\); pip install 'freeprune\[{LIBRARIES[library].package}\]'"):
        load_model(f"{library}:resnet18")


@pytest.mark.parametrize("library", LIBRARIES)
def test_library_that_does_not_import(monkeypatch, library):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist\nand a long story")

    monkeypatch.setattr(libraries.importlib, "import_module", broken)
    with raises(r"operator torchvision::nms does not exist\); install a build") as caught:
        load_model(f"{library}:resnet18")
    assert "long story" not in str(caught.value)


def test_a_folder_of_images_is_prepared_as_the_weights_want_it(tmp_path, monkeypatch):
    from PIL import Image

    for i in range(12):
        Image.new("RGB", (40, 30), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")

    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3, stride=8), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=8), nn.ReLU())
            self.last = nn.Linear(16, 3)

        def forward(self, x):
            assert x.shape[2:] == (224, 224)
            return self.last(self.body(x).mean((2, 3)))

    monkeypatch.setattr(sys.modules["torchvision.models"], "get_model", lambda name, weights: Takes())
    asked = {"target": {"macs": 0.8}, "trials": 0, "finetune": None, "weights": "pretrained", "rehearsal": False}
    torch.manual_seed(0)
    result = freeprune.prune("torchvision:resnet18", f"imagefolder:{tmp_path}", out=tmp_path / "run", progress=False, **asked)
    config = freeprune.engine.store.run_folder.read_config(result.folder)
    assert (config["mean"], config["std"], config["weights"]) == (list(STATED.mean), list(STATED.std), "pretrained")
    assert config["image_size"] is None
