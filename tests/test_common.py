from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

from freeprune import common, tables
from freeprune.common import Candidate, FreePruneError, Skeleton, cause, find, nearest, write_atomically
from freeprune.errors import first_line


def test_a_table_comes_first_then_other_packages(monkeypatch):
    asked = []

    def points(group):
        asked.append(group)
        return [EntryPoint("sqrt", "math:sqrt", group)]

    monkeypatch.setattr(tables, "entry_points", points)
    assert find({"freeprune": 1}, "freeprune", "metric") == 1
    assert find({}, "sqrt", "strategy")(9) == 3
    assert asked == ["freeprune.strategies"]
    with pytest.raises(FreePruneError, match=r"there is no granularity 'sqr'; did you mean 'sqrt'\? \(known: channel, sqrt\)"):
        find({"channel": 1}, "sqr", "granularity")


def test_a_far_name_lists_all():
    assert nearest("zzz", ["channel", "weight"]) == "known: channel, weight"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(common.os, "fsync", full)
    with pytest.raises(FreePruneError, match=r"file cannot be written \(no space left\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_candidate_leaves_sizes_and_statistics_as_they_were_also_after_an_error():
    network = nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.BatchNorm2d(4))
    skeleton = Skeleton(network)
    mean = skeleton.network[1].running_mean.clone()
    candidate = Candidate(skeleton, {}, [(skeleton.network[0], "groups", 1)])
    with pytest.raises(RuntimeError):
        candidate(torch.randn(3, 2, 4, 4))
    assert skeleton.network[0].groups == 2
    assert torch.equal(skeleton.network[1].running_mean, mean)
    Candidate(skeleton, {})(torch.randn(3, 2, 4, 4))
    assert torch.equal(skeleton.network[1].running_mean, mean)
    assert network[1].training


def test_the_first_line_of_an_error_has_no_codes_for_a_terminal():
    assert first_line("\n\x1b[1mdo this\x1b[0m\x07 and that\r\nand more") == "do this and that"
    assert cause(ValueError("\x1b[31mred\x1b[0m")) == "ValueError: red"
    assert first_line("") == ""
