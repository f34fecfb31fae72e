"""Measurements in a file, and what is measured of what is wanted."""

import numpy as np
import pytest

from freeprune.engine.latency.layers import Layer
from freeprune.engine.latency.measurements import Measurements, Setting, Wanted
from freeprune.engine.latency.measuring import PASSES, measure, network_times
from freeprune.engine.latency.tables import Grid
from freeprune.engine.progress import silent
from freeprune.errors import FreePruneError

CONV = Layer("Conv", 16, 8, 1, (3, 3), (1, 8, 8), 64, (("pads", (1, 1, 1, 1)), ("strides", (1, 1))))
LINEAR = Layer("MatMul", 3, 16, 1, (), (4,), 4)
SETTING = Setting("ONNX Runtime", "1.2", 32, 1)
WANTED = Wanted(
    (), {CONV: Grid((8, 16), (8,), ((8, 7),)), LINEAR: Grid((3,), (8, 16), ((8,), (16,)))}, np.array([[4, 4], [3, 2]]),
    np.array([[2, 2]]), 32,
)  # fmt: skip


class Killed(BaseException):
    """As sudden as a signal."""


class Clock:
    """Every measurement takes longer than the one before; `dies_at` ends it at so many."""

    def __init__(self, dies_at=10**6):
        self.layers, self.networks, self.dies_at = [], [], dies_at

    def _tick(self):
        if len(self.layers) + len(self.networks) == self.dies_at:
            raise Killed
        return 1.0 + len(self.layers) + len(self.networks)

    def layer(self, *point):
        ms = self._tick()
        self.layers.append(point)
        return ms

    def network(self, kept, rounds):
        ms = self._tick()
        self.networks.append((*kept, rounds))
        return ms, 2 * ms


def measured(path, clock):
    found = Measurements(path)
    found.begin(SETTING)
    measure(WANTED, found, clock.layer, clock.network, silent)
    return found


def plain(found):
    """Everything but seconds."""
    layers = {layer: [one.ms for one in passes] for layer, passes in found.layers.items()}
    return found.setting, layers, {kept: timed[:2] for kept, timed in found.networks.items()}


def test_all_points_are_measured_in_passes_and_all_networks_once(tmp_path):
    clock = Clock()
    found = measured(tmp_path / "latency.jsonl", clock)
    points = [(CONV, 8, 8), (CONV, 8, 7), (CONV, 16, 8), (CONV, 16, 7), (LINEAR, 3, 8), (LINEAR, 3, 16)]
    assert clock.layers == PASSES * points
    assert clock.networks == [(4, 4, 1), (3, 2, 1), (2, 2, 1)]
    assert found.least(CONV) == {(8, 8): 1, (8, 7): 2, (16, 8): 3, (16, 7): 4}
    assert found.network(np.array([3, 2]))[:2] == (20, 40)
    assert found.network(np.array([9, 9])) is None


def test_the_least_of_all_passes_counts():
    found = Measurements()
    for first, second in ((3.0, 1.0), (2.0, 4.0)):
        found.add_pass(LINEAR, {(3, 8): first, (3, 16): second}, 0.1)
    assert found.least(LINEAR) == {(3, 8): 2.0, (3, 16): 1.0}


def test_what_is_read_back_is_what_was_measured(tmp_path):
    path = tmp_path / "latency.jsonl"
    found = measured(path, Clock())
    again = Measurements(path)
    assert again.setting == SETTING
    assert (again.layers, again.networks) == (found.layers, found.networks)
    assert b"pickle" not in path.read_bytes()


@pytest.mark.parametrize("moment", range(21))
def test_whenever_it_is_killed_what_is_on_disk_is_not_measured_again(moment, tmp_path):
    """Only the pass over a layer that was being made is begun again."""
    path, first, second = tmp_path / "latency.jsonl", Clock(moment), Clock()
    with pytest.raises(Killed):
        measured(path, first)
    lost = {CONV: 4, LINEAR: 2}
    done = Measurements(path)
    kept = sum(lost[layer] * len(passes) for layer, passes in done.layers.items())
    assert 0 <= len(first.layers) - kept < max(lost.values())
    assert len(done.networks) == len(first.networks)
    resumed = measured(path, second)
    assert len(second.layers) == 18 - kept
    assert len(second.networks) == 3 - len(first.networks)
    assert {layer: len(passes) for layer, passes in resumed.layers.items()} == {CONV: 3, LINEAR: 3}
    assert plain(Measurements(path)) == plain(resumed)
    third = Clock(0)
    assert plain(measured(path, third)) == plain(resumed)  # nothing is left to measure


def test_a_pass_without_all_points_does_not_count():
    found, clock = Measurements(), Clock()
    found.add_pass(CONV, {(8, 8): 0.5}, 0.1)
    measure(WANTED, found, clock.layer, clock.network, silent)
    assert len(clock.layers) == 18
    assert found.least(CONV)[8, 8] == 0.5


def test_a_network_is_timed_once(tmp_path):
    clock, path = Clock(), tmp_path / "latency.jsonl"
    found = Measurements(path)
    first = network_times(np.array([5, 5]), 3, found, clock.network)
    assert network_times(np.array([5, 5]), 3, found, clock.network) == first
    assert network_times(np.array([5, 5]), 3, Measurements(path), clock.network) == first
    assert clock.networks == [(5, 5, 3)]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text.replace('"freeprune_latency": 2', '"freeprune_latency": 1'), "was written by another version"),
        (lambda text: text.replace('"points":[[8,8,1.0]', '"points":[[8,8,-1.0]'), "line 3 of .* is damaged"),
        (lambda text: text.replace('"points":[[8,8,1.0]', '"points":[[8,8.5,1.0]'), "line 3 of .* is damaged"),
        (lambda text: text.replace('"pruned_ms":19.0', '"pruned_ms":0.0'), "line 9 of .* is damaged"),
        (lambda text: text.replace('"kept"', '"held"'), "line 9 of .* is damaged"),
    ],
)
def test_a_damaged_file_is_one_sentence(damage, sentence, tmp_path):
    path = tmp_path / "latency.jsonl"
    measured(path, Clock())
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(FreePruneError, match=sentence):
        Measurements(path)


def test_a_last_line_cut_short_is_measured_again(tmp_path):
    path, clock = tmp_path / "latency.jsonl", Clock()
    whole = measured(path, Clock())
    path.write_text(path.read_text()[:-5])
    assert plain(measured(path, clock))[:2] == plain(whole)[:2]
    assert (clock.layers, clock.networks) == ([], [(2, 2, 1)])
