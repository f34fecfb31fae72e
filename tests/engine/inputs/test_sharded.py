"""Weights in several files: what Hugging Face reads and writes, whole or not at all."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from freeprune.engine.inputs import sharded
from freeprune.engine.inputs.sharded import index_of, remove_weights, save_weights, weights_at
from freeprune.engine.inputs.weights import load_weights
from freeprune.errors import FreePruneError


def network(seed=0):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8))
    made[3].weight = made[2].weight
    return made


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_weights_that_fit_are_in_one_file(tmp_path):
    save_weights(network(), tmp_path / "model.safetensors")
    assert names(tmp_path) == ["model.safetensors"]
    assert weights_at(tmp_path / "model.safetensors") == tmp_path / "model.safetensors"


def test_more_weights_are_in_several_with_an_index(tmp_path):
    save_weights(network(), tmp_path / "model.safetensors", 300)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names(tmp_path) == [*shards, "model.safetensors.index.json"]
    for shard in shards:
        held = load_file(tmp_path / shard)
        assert {name for name, place in index["weight_map"].items() if place == shard} == set(held)
    assert "3.weight" not in index["weight_map"]  # the tied one
    assert index["metadata"]["total_size"] == 2 * 8 * 8 * 4 + 8 * 4 * 6 + 8
    assert same(load_weights(network(1), index_of(tmp_path / "model.safetensors")), network())


@pytest.mark.parametrize("shard", [10**9, 1])
def test_whoever_reads_other_files_reads_weights(shard, tmp_path):
    (tmp_path / "other").touch()
    save_weights(nn.Linear(4, 4), tmp_path / "w.safetensors", shard)
    written = list(tmp_path.glob("w*.safetensors"))
    assert written
    assert {path.stat().st_mode for path in written} == {(tmp_path / "other").stat().st_mode}


def test_a_place_where_nothing_can_be_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FreePruneError, match=r"w\.safetensors cannot be written \(NotADirectoryError"):
        save_weights(nn.Linear(4, 4), tmp_path / "file" / "w.safetensors")


def test_one_form_replaces_the_other(tmp_path):
    path = tmp_path / "model.safetensors"
    (tmp_path / "model-of-mine.safetensors").touch()
    save_weights(network(), path, 300)
    save_weights(network(), path, 600)
    assert len(names(tmp_path)) == 4
    save_weights(network(1), path)
    assert names(tmp_path) == ["model-of-mine.safetensors", "model.safetensors"]
    save_weights(network(), path, 300)
    remove_weights(path)
    assert names(tmp_path) == ["model-of-mine.safetensors"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_weights(network(), path, 300)
    before = names(tmp_path)

    def full(tensors, place, metadata):
        if "00002" in str(place):
            raise OSError(28, "No space left on device")
        save_file(tensors, place, metadata)

    monkeypatch.setattr(sharded.safetensors.torch, "save_file", full)
    with pytest.raises(FreePruneError, match=r"cannot be written .*No space left on device.*; make room"):
        save_weights(network(1), path, 300)
    assert names(tmp_path) == before
    assert same(load_weights(network(2), index_of(path)), network())


def test_old_weights_go_when_all_new_ones_are_there(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_weights(network(), path)
    replace = Path.replace

    def cut_short(place, target):
        if "00002" in target.name:
            raise OSError(5, "Input/output error")
        return replace(place, target)

    monkeypatch.setattr(Path, "replace", cut_short)
    with pytest.raises(FreePruneError, match="cannot be written"):
        save_weights(network(1), path, 300)
    assert same(load_weights(network(2), weights_at(path)), network())


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda p: p.with_name("model-00002-of-00003.safetensors").unlink(),
            "its file model-00002-of-00003.safetensors is missing",
        ),
        (
            lambda p: p.with_name("model-00002-of-00003.safetensors").write_bytes(
                p.with_name("model-00002-of-00003.safetensors").read_bytes()[:-9]
            ),
            "its file model-00002-of-00003.safetensors is damaged",
        ),
        (
            lambda p: p.write_text('{"weight_map": {"0.weight": "../other.safetensors"}}'),
            "'../other.safetensors', where a file of weights",
        ),
        (lambda p: p.write_text('{"weight_map": {"0.weight": "model.bin"}}'), "its file model.bin is missing"),
        (lambda p: p.write_text('{"weights": {}}'), "it is no index of weights"),
        (lambda p: p.write_text(p.read_text().replace('"0.bias"', '"0.offset"')), "none of its files holds '0.offset'"),
        (lambda p: p.write_text("[" * 9), "cannot be read"),
    ],
)
def test_damage_is_a_sentence(tmp_path, damage, sentence):
    path = index_of(tmp_path / "model.safetensors")
    save_weights(network(), tmp_path / "model.safetensors", 300)
    damage(path)
    with pytest.raises(FreePruneError, match=sentence):
        load_weights(network(), path)
