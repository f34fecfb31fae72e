"""Data by their spec, with the options that go with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_sets import npz, own
from PIL import Image
from refusals import raises
from torch import nn

import freeprune
from freeprune.engine.inputs.data import Asked, asked_data, load_data
from freeprune.errors import FreePruneError


def test_the_home_folder_may_stand_after_the_kind(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_data("imagefolder:~/images").source == f"imagefolder:{folder}"
    npz(folder.parent)
    assert len(load_data("npz:~/data.npz").train) == 12


def test_a_callable_may_have_the_name_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "own_data.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def data(): return [TensorDataset(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1]))] * 2\n"
    )
    assert len(load_data("own_data.py:data").train) == 3


def test_a_callable_gives_a_pair_or_whole_data(tmp_path):
    path = tmp_path / "source_of_data.py"
    path.write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "from freeprune.engine.inputs.batches import Data\n"
        "def pair(): return [TensorDataset(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1]))] * 2\n"
        "def whole(): return Data(*pair(), ('a', 'b'), (0.5,), (0.5,), 'mine', True)\n"
        "def word(): return 'digits'\n"
    )
    data = load_data(f"{path}:pair")
    assert (len(data.train), data.classes, data.source) == (3, ("0", "1"), f"{path}:pair")
    whole = load_data(f"{path}:whole")
    assert (whole.classes, whole.mean, whole.augment, whole.source) == (("a", "b"), (0.5,), True, f"{path}:whole")
    with raises("the data are a str; expected a pair"):
        load_data(f"{path}:word")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("digit", "no data 'digit'; did you mean 'digits'"),
        ("digits:8", "no data 'digits:8'; did you mean 'digits'"),
        ("", "no data ''; known: digits, imagefolder:DIR"),
        ("csv:rows.csv", "'csv:rows.csv' names no callable; expected package.module:callable .*known: digits, imagefolder:DIR"),
        ("imagefoldr:DIR", "importing 'imagefoldr' failed.*did you mean 'imagefolder:DIR'"),
    ],
)
def test_an_unknown_spec_is_told_what_is_near(spec, sentence):
    with raises(sentence):
        load_data(spec)


@pytest.mark.parametrize("source", ["imagefolder:x", "wds:x.tar", "hf:x", "npz:x.npz", "digits", (own(), own())])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mean": 0.5}, r"`mean` is 0\.5; give numbers in a list"),
        ({"mean": torch.tensor(0.5)}, r"`mean` is 0\.5; give numbers in a list"),
        ({"mean": "0.5"}, r"`mean` is '0\.5'; give numbers in a list"),
        ({"std": ["1"]}, r"`std` is \('1',\); give numbers in a list"),
        ({"image_size": "224"}, "`image_size` is '224'; give a whole number"),
        ({"image_size": np.ones(2)}, r"`image_size` is array\(\[1., 1.\]\); give a whole number"),
        ({"image_size": 0}, "`image_size` is 0; give 1 or more"),
        ({"image_size": -3}, "`image_size` is -3; give 1 or more"),
        ({"bad_images": 3}, "`bad_images` is 3; give a text"),
        ({"bad_images": "ignore"}, "`bad_images` is 'ignore'; give refuse or skip"),
    ],
)
def test_options_are_checked_whatever_the_data_are(source, options, sentence):
    with raises(f"^{sentence}$"):
        load_data(asked_data(source, options))


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, iter])
def test_whatever_holds_numbers_will_do(kind):
    data = load_data(asked_data("digits", {"mean": kind([0.25]), "std": kind([2.0])}))
    assert (data.mean, data.std) == ((0.25,), (2.0,))


def test_options_that_do_not_apply():
    for options in ({"mean": (0,)}, {"std": (1,)}):
        with raises("datasets of your own come normalised"):
            load_data(Asked((own(), own()), **options))
    for source in ("digits", (own(), own())):
        with raises("`image_size=8` was given, but it applies to imagefolder:DIR, hf:NAME and wds:SHARDS only"):
            load_data(Asked(source, image_size=8))


@pytest.mark.parametrize("call", [freeprune.prune, freeprune.train])
def test_options_of_a_spec_are_keywords_in_python(call, tmp_path):
    more = {"out": tmp_path / "w.safetensors"} | ({"target": {"macs": 0.5}} if call is freeprune.prune else {})
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    for part, count in (("train", 6), ("test", 2)):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / part / label / f"{number}.png")
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"no image")
    spec = f"imagefolder:{tmp_path}"
    with pytest.raises(FreePruneError, match=r"cannot be read .*`bad_images=skip`"):
        call(network, spec, **more)
    with (
        pytest.warns(freeprune.FreePruneWarning, match="1 "),
        pytest.raises(FreePruneError, match="rejects an input of shape 1x3x5x5"),
    ):
        call(network, spec, bad_images="skip", image_size=5, **more)
    with pytest.raises(FreePruneError, match="`image_size=5` was given, but it applies to imagefolder:DIR"):
        call(network, [(torch.zeros(3, 3, 3), 0)], image_size=5, **more)


def test_a_path_without_its_kind_is_told(folder, tmp_path):
    for given in (str(folder), folder):
        with raises(f"are a folder; give `imagefolder:{folder}`"):
            load_data(given)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    with raises(f"are a folder; give `hf:{tmp_path}/saved`"):
        load_data(f"folder:{tmp_path}/saved")


@pytest.mark.parametrize("kind", ["", "csv:", "whatever:"])
@pytest.mark.parametrize(
    ("name", "way"), [("a.npz", "`npz:.*a.npz`"), ("a.tar", "`wds:.*a.tar`"), ("a.csv", "path/to/file.py:callable, a function")]
)
def test_a_file_under_another_kind_is_told_what_fits_it(tmp_path, kind, name, way):
    (tmp_path / name).touch()
    with raises(f"the data '{kind}.*{name}' are a file; give {way}"):
        load_data(f"{kind}{tmp_path / name}")
