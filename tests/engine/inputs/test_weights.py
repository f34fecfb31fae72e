"""Weights from files as training scripts leave them, and the sentence for everything that can go wrong with one."""

from __future__ import annotations

import argparse
import collections
import enum
import json
import pathlib
from itertools import permutations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from freeprune.engine.inputs.networks import cifar_resnet
from freeprune.engine.inputs.weights import load_weights
from freeprune.errors import FreePruneError

COUNTER = "1.num_batches_tracked"


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


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


def test_a_network_that_has_a_module_called_module(tmp_path):
    source = nn.ModuleDict({"module": nn.Linear(2, 2)})
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    network = load_weights(nn.ModuleDict({"module": nn.Linear(2, 2)}), tmp_path / "w.safetensors")
    assert_same_state(network.state_dict(), source.state_dict())


class Spectrum(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, dtype=kind))


def test_complex_weights_come_back_and_are_of_another_type_for_real_ones(tmp_path):
    source = Spectrum(torch.cfloat)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert_same_state(load_weights(Spectrum(torch.cfloat), tmp_path / "w.safetensors").state_dict(), source.state_dict())
    for kind in (torch.float32, torch.int64):
        real = nn.Module()
        real.register_buffer("weight", torch.ones(2, 2, dtype=kind))
        with pytest.raises(FreePruneError, match="1 of another type"):
            load_weights(real, tmp_path / "w.safetensors")


def test_batches_tracked_may_be_missing(tmp_path):
    state = small().state_dict()
    del state["1.num_batches_tracked"]
    save_file(state, tmp_path / "w.safetensors")
    assert torch.equal(load_weights(small(), tmp_path / "w.safetensors")[0].weight, state["0.weight"])


@pytest.mark.parametrize("counted", [3.0, 0.37, float("inf")])
def test_counters_may_be_cast_with_the_weights(tmp_path, counted):
    state = {name: value.half() for name, value in small().state_dict().items()} | {COUNTER: torch.tensor(counted).half()}
    torch.save(state, tmp_path / "w.pt")
    network = load_weights(small(), tmp_path / "w.pt")
    assert torch.equal(network[0].weight, state["0.weight"].float())
    assert network.state_dict()[COUNTER] == (3 if counted == 3 else 0)


def test_other_whole_numbers_may_not_be_fractions(tmp_path):
    network = nn.Linear(2, 2)
    network.register_buffer("places", torch.arange(3))
    torch.save({**network.state_dict(), "places": torch.tensor([0, 0.5, 1])}, tmp_path / "w.pt")
    with pytest.raises(FreePruneError, match="1 of another type"):
        load_weights(network, tmp_path / "w.pt")


@pytest.mark.parametrize("kept", ["first.weight", "second.weight"])
def test_tied_weights_may_be_missing(tmp_path, kept):
    save_file({kept: torch.full((3, 3), 2.0)}, tmp_path / "w.safetensors")
    network = load_weights(Tied(), tmp_path / "w.safetensors")
    assert (network.first.weight == 2).all()
    assert (network.second.weight == 2).all()


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_the_network_itself_makes_fit_is_loaded(tmp_path, prefix):
    before = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    torch.save({prefix + name: tensor for name, tensor in before.state_dict().items()}, tmp_path / "w.pt")
    now = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    x = torch.ones(2, 3)
    assert torch.equal(load_weights(now, tmp_path / "w.pt")(x), before(x))


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
        ({"0.weight": 3}, "holds an int under '0.weight'"),
        ({0: torch.zeros(1)}, "holds a Tensor under 0"),
    ],
)
def test_content_that_is_no_state_dict(tmp_path, content, sentence):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(FreePruneError, match=sentence) as caught:
        load_weights(small(), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("content", [b"", b"not weights at all, only text"])
def test_a_corrupt_file_is_one_sentence(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(FreePruneError, match="cannot be read") as caught:
        load_weights(small(), path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_ending_are_told(tmp_path):
    for given in (True, small().state_dict()):
        with pytest.raises(FreePruneError, match=r"`weights` is an? .*; give the path of a file, or load the weights into"):
            load_weights(small(), given)
    with pytest.raises(FreePruneError, match=r"end in ''; .* or 'pretrained' for those"):
        load_weights(small(), "DEFAULT")
    with pytest.raises(FreePruneError, match="no weights file"):
        load_weights(small(), tmp_path / "w.pt")
    with pytest.raises(FreePruneError, match=r"end in '.onnx'; expected a file that ends in .safetensors, .*, .json"):
        load_weights(small(), tmp_path / "w.onnx")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def arrives(tmp_path, content, suffix=".pt", key=None):
    """Whether the weights of a network, put into a file by a function, arrive in another one."""
    source, path = small(), tmp_path / f"w{suffix}"
    torch.save(content(source.state_dict()), path)
    assert_same_state(load_weights(small(), path, key).state_dict(), source.state_dict())


def refused(tmp_path, content, sentence, key=None, network=None):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(FreePruneError, match=sentence) as caught:
        load_weights(network or small(), tmp_path / "w.pt", key)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pth.tar", ".tar", ".CKPT", ".pkl"])
def test_weights_arrive_whatever_the_ending_of_their_file(tmp_path, suffix):
    arrives(tmp_path, lambda state: {"state_dict": state}, suffix)


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "state", "generator"]
)
def test_whatever_key_the_weights_lie_under(tmp_path, key):
    optimizer = torch.optim.Adam([torch.zeros(3, requires_grad=True)])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    rest = {"epoch": 3, "acc": 93.0, "optimizer": optimizer.state_dict(), "args": ["--lr", 0.1], "mean": torch.zeros(3)}
    arrives(tmp_path, lambda state: {**rest, key: state})
    arrives(tmp_path, lambda state: {"checkpoint": {**rest, key: under("module.", state)}})


@pytest.mark.parametrize("words", [*permutations(["module", "_orig_mod", "model"]), *permutations(["network", "net"])])
def test_prefixes_in_any_order(tmp_path, words):
    arrives(tmp_path, lambda state: under(".".join(words) + ".", state))
    arrives(tmp_path, lambda state: {"state_dict": under(".".join(words) + ".", state)})


def test_a_prefix_of_ones_own(tmp_path):
    arrives(tmp_path, lambda state: {"state_dict": under("student.", state)})
    arrives(tmp_path, lambda state: under("lit.backbone.", state))
    for word in ("optimized_model", "best_optimised", "gradcam", "momentary"):
        arrives(tmp_path, lambda state, word=word: {"state_dict": under(f"{word}.", state)})


@pytest.mark.parametrize(
    "word", ["optimizer", "my_optimizer_state", "optim.exp_avg", "exp_avg_sq", "grads", "momentum_buffer", "moment1"]
)
def test_moments_by_the_names_of_weights_are_no_weights(tmp_path, word):
    arrives(tmp_path, lambda state: {**under("my_net.", state), word: {name: 0 * x for name, x in state.items()}})


@pytest.mark.parametrize("part", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])
def test_a_part_of_the_network_that_was_wrapped(tmp_path, part):
    arrives(tmp_path, lambda state: {name.replace("0.", f"0.{part}.", 1): tensor for name, tensor in state.items()})
    arrives(tmp_path, lambda s: {"model." + name.replace("1.", f"1.{part}.", 1): tensor for name, tensor in s.items()})


def test_what_a_lightning_module_holds_beside_the_network(tmp_path):
    arrives(tmp_path, lambda state: {"state_dict": {**under("model.", state), "loss.weight": torch.ones(10)}}, ".ckpt")


def test_a_state_dict_of_state_dicts(tmp_path):
    source = nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, 2)})
    torch.save({name: part.state_dict() for name, part in source.items()}, tmp_path / "w.pt")
    network = load_weights(nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, 2)}), tmp_path / "w.pt")
    assert_same_state(network.state_dict(), source.state_dict())


def averaged(state):
    return {name: tensor * 0 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@pytest.mark.parametrize("key", ["ema", "model_ema", "state_dict_ema", "params_ema", "ema_model.module", "swa"])
def test_averaged_weights_on_request(tmp_path, key):
    outer, _, inner = key.partition(".")
    state = small().state_dict()
    content = {"model": state, outer: under(f"{inner}." if inner else "", averaged(state))}
    torch.save(content, tmp_path / "w.pt")
    assert_same_state(load_weights(small(), tmp_path / "w.pt").state_dict(), state)
    assert_same_state(load_weights(small(), tmp_path / "w.pt", key).state_dict(), averaged(state))
    assert_same_state(load_weights(small(), tmp_path / "w.pt", outer).state_dict(), averaged(state))
    refused(tmp_path, {outer: content[outer]}, f"averaged ones, under '{key}'; ask for them with `weights_key='{key}'`")


def test_a_dotted_key_leads_to_weights_or_into_their_names(tmp_path):
    state = small().state_dict()
    content = {"state_dict": {**under("student.", state), **under("teacher.", averaged(state))}}
    sentence = refused(tmp_path, content, "several weights that fit the network, under 'state_dict.student' and")
    assert "`weights_key='state_dict.student'`" in sentence
    network = load_weights(small(), tmp_path / "w.pt", "state_dict.teacher")
    assert_same_state(network.state_dict(), averaged(state))
    refused(tmp_path, content, "no weights under `weights_key='state_dict.teach'`; did you mean", key="state_dict.teach")


def test_the_same_weights_twice_are_no_question(tmp_path):
    arrives(tmp_path, lambda state: {"generator": state, "best": state})


def test_weights_of_half_precision(tmp_path):
    state = small().state_dict()
    torch.save({name: t.bfloat16() if t.is_floating_point() else t for name, t in state.items()}, tmp_path / "w.pt")
    network = load_weights(small(), tmp_path / "w.pt")
    assert network[0].weight.dtype == torch.float32
    assert torch.equal(network[0].weight, state["0.weight"].bfloat16().float())


class Colour(enum.Enum):
    RED = 1


class Config:
    """Stands for whatever a project keeps in its checkpoints."""

    def __init__(self):
        self.rate = 0.1


class Attributes(dict):
    """A dictionary with attributes, as Lightning, EasyDict and many projects keep their options in."""

    __getattr__ = dict.__getitem__


class OwnList(list):
    pass


BESIDE = {
    "numpy number": np.float64(0.93),
    "numpy array": np.arange(3),
    "namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("runs")),
    "path": pathlib.Path("runs"),
    "enum": Colour.RED,
    "object": Config(),
    "function": np.mean,
    "counter": collections.Counter("abc"),
    "attributes": Attributes(lr=0.1, inner=Attributes(steps=[1, 2])),
    "own list": OwnList([1, 2]),
    "deque": collections.deque([1, 2], 3),
    "named": [{"deep": [Config(), {1: Config()}]}],
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_weights_is_not_read(tmp_path, name, old):
    source = small()
    content = {"best": BESIDE[name], "state_dict": source.state_dict()}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    assert_same_state(load_weights(small(), tmp_path / "w.pt").state_dict(), source.state_dict())


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_needs_code_names_the_class(tmp_path, old):
    for content, where in ((Config(), ""), ({"model": Config(), "epoch": 1}, " under 'model'")):
        torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
        with pytest.raises(FreePruneError, match=rf"an object of the class \S*test_weights.Config{where}, which only that"):
            load_weights(small(), tmp_path / "w.pt")
    torch.save({"model": Config(), "mean": torch.zeros(3)}, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(FreePruneError, match=r"test_weights.Config under 'model'"):
        load_weights(small(), tmp_path / "w.pt")
    with pytest.raises(FreePruneError, match=r"test_weights.Config under 'model'"):
        load_weights(small(), tmp_path / "w.pt", "model")


def test_a_file_that_holds_a_network_instead_of_weights_is_refused(tmp_path):
    refused(tmp_path, nn.Linear(2, 2), "an object of the class torch.nn.modules.linear.Linear, which only that code")


def test_a_dictionary_that_holds_itself(tmp_path):
    content = {"state_dict": small().state_dict()}
    content["self"] = content
    torch.save(content, tmp_path / "w.pt")
    found = load_weights(small(), tmp_path / "w.pt", "state_dict")
    assert_same_state(found.state_dict(), content["state_dict"])


def test_another_architecture_under_a_prefix(tmp_path):
    other = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 2))
    sentence = refused(tmp_path, {"epoch": 3, "state_dict": under("module.", other.state_dict())}, "do not fit the network")
    assert "under 'state_dict.module', 2 unexpected (2.weight, 2.bias)" in sentence
    assert "6 of another shape (0.weight (6, 3, 3, 3) instead of (4, 3, 3, 3), " in sentence


def test_values_of_other_weights_do_not_matter(tmp_path):
    arrives(tmp_path, lambda state: {"model": state, "log": {"loss": torch.tensor([float("nan")])}})


# --- several parts ----------------------------------------------------------------------------------------------------


def in_parts(tmp_path, state, suffix=".safetensors"):
    """Writes two parts and returns the path of their index."""
    names = [f"model-0000{number}-of-00002{suffix}" for number in (1, 2)]
    places = {key: names[number % 2] for number, key in enumerate(state)}
    for name in names:
        some = {key: tensor for key, tensor in state.items() if places[key] == name}
        save_file(some, tmp_path / name) if suffix == ".safetensors" else torch.save(some, tmp_path / name)
    index = tmp_path / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_parts_are_read_by_their_index(tmp_path, suffix, prefix):
    source = small()
    index = in_parts(tmp_path, under(prefix, source.state_dict()), suffix)
    assert_same_state(load_weights(small(), index).state_dict(), source.state_dict())


def test_a_part_alone_and_a_folder_are_sentences(tmp_path):
    index = in_parts(tmp_path, small().state_dict())
    with pytest.raises(FreePruneError, match=r"do not fit the network: .*; give the .index.json of all parts"):
        load_weights(small(), tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(FreePruneError, match=r"are a folder; give a file of weights in it, or the .index.json"):
        load_weights(small(), tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FreePruneError, match=r"cannot be read .*model-00002-of-00002.safetensors"):
        load_weights(small(), index)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": [1]}}',
        '{"weight_map": {"a": "w.onnx"}}',
        '{"weight_map": {"a": "model.index.json"}}',
        '{"weight_map": {"a": "../../w.pt"}}',
        "[" * 9999,
    ],
)
def test_an_index_that_is_none_is_a_sentence(tmp_path, content):
    (tmp_path / "model.index.json").write_text(content)
    with pytest.raises(FreePruneError, match="cannot be read") as caught:
        load_weights(small(), tmp_path / "model.index.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_what_torch_did_not_write_is_said_in_a_few_words(tmp_path, suffix):
    (tmp_path / f"w{suffix}").write_text("<html>404")
    with pytest.raises(FreePruneError, match=r"cannot be read \(it is no file of torch.save\)"):
        load_weights(small(), tmp_path / f"w{suffix}")


def test_a_defaultdict_is_a_dictionary(tmp_path):
    network = small()
    torch.save({"model": collections.defaultdict(list, network.state_dict())}, tmp_path / "w.pt")
    assert_same_state(load_weights(small(), tmp_path / "w.pt").state_dict(), network.state_dict())


def test_a_dictionary_of_a_class_of_ones_own_is_one(tmp_path):
    arrives(tmp_path, lambda state: Attributes(model=Attributes(state), epoch=1))


def test_the_content_says_how_a_file_is_read_whatever_its_ending(tmp_path):
    for suffix in ("", ".th", ".pyth", ".0", ".safetensors"):
        arrives(tmp_path, lambda state: {"state_dict": state}, suffix)
    source = small()
    for name in ("best", "w.pt"):
        save_file(source.state_dict(), tmp_path / name)
        assert_same_state(load_weights(small(), tmp_path / name).state_dict(), source.state_dict())
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in source.state_dict().items()})
    with pytest.raises(FreePruneError, match=r"end in '\.npz'; expected"):
        load_weights(small(), tmp_path / "w.npz")


@pytest.mark.parametrize("make", [lambda state: (state, 3), lambda state: [{"epoch": 3}, {"state_dict": state}]])
def test_weights_in_a_tuple_or_list_are_found(tmp_path, make):
    state = {name: (tensor + 0.5).to(tensor.dtype) for name, tensor in small().state_dict().items()}
    torch.save(make(state), tmp_path / "w.pt")
    found = load_weights(small(), tmp_path / "w.pt").state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state if state[name].is_floating_point())
