"""A long search needs no more memory than a short one, apart from the trials that it records.

What may grow, linearly: `Ledger.trials` and the records behind it, and one score for each different network that the search
knows. Both hold numbers and no tensor: about 2 KB a trial for four groups.
"""

import fnmatch
import gc
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import TensorDataset
from torch.utils.weak import WeakIdKeyDictionary
from toys import in_turn

import freeprune
from freeprune.backends.recovery import candidates
from freeprune.engine.asked.settings import settings
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.run.job import prepare, strategy_of
from freeprune.engine.run.loop import search
from freeprune.engine.store.ledger import Ledger

EARLY, LATE = 40, 140
PACKAGE = Path(freeprune.__file__).parent
FOLDERS = [f"{PACKAGE}/{name}/*" for name in ("engine", "search", "metrics", "backends")] + [f"{PACKAGE}/common.py"]
KNOWN = 250  # bytes of a network's key and score in the dictionary of known ones, and of its slot


def job(granularity, strategy):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 20, 3), nn.ReLU(), nn.Conv2d(20, 24, 1),
        nn.ReLU(), nn.Conv2d(24, 28, 1), nn.ReLU(), nn.Conv2d(28, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    data = tuple(TensorDataset(torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 3) for n in (20, 10))
    options = {"granularity": granularity, "calibration_images": 4}
    if granularity == "channel":
        options["round_to"] = 1  # else there are a few networks, and what is known is not scored again
    return prepare(GivenModel(network), data, settings({"macs": 0.5}, options, strategy=strategy, trials=LATE), None)


def own_bytes():
    """What lines of this package have allocated and not freed."""
    return sum(
        trace.size
        for trace in tracemalloc.take_snapshot().traces
        if any(fnmatch.fnmatch(trace.traceback[0].filename, pattern) for pattern in FOLDERS)
    )


def alive():
    gc.collect()
    return [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and not is_lazy(one)]


def state(foreign):
    """How many tensors there are, their bytes, and those of the package; without foreign tensors, which may go at any time."""
    tensors = [one for one in alive() if one not in foreign]
    return len(tensors), sum(one.numel() * one.element_size() for one in tensors), own_bytes()


@pytest.mark.parametrize(("granularity", "strategy"), [("channel", "random"), ("weight", "evolution")])
def test_memory_is_flat_but_for_the_recorded_trials(granularity, strategy, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "KEPT_BYTES", 1)  # else the weights solved so far, up to half a gigabyte
    foreign = WeakIdKeyDictionary()
    for one in alive():  # of tests before this one in the same process, such as those that an export holds on to
        foreign[one] = None
    asked, path, states = job(granularity, strategy), tmp_path / "trials.jsonl", {}

    def progress(done, total, best):
        if done in (EARLY, LATE) and done not in states:
            states[done] = state(foreign)

    scorer = asked.scorer()
    tracemalloc.start()
    try:
        ledger = Ledger(path)
        search(
            asked.space, strategy_of(asked, strategy, 0), in_turn(lambda kept: scorer(kept)[0]), ledger, LATE, progress=progress
        )
        assert len({tuple(trial.kept) for trial in ledger.trials[EARLY:]}) > (LATE - EARLY) / 2
        (early, early_bytes, before), (late, late_bytes, after) = states[EARLY], states[LATE]
        assert (late, late_bytes) == (early, early_bytes)
        recorded = recorded_bytes(path, LATE) - recorded_bytes(path, EARLY)
    finally:
        tracemalloc.stop()
    assert 0 < after - before <= recorded + KNOWN * (LATE - EARLY)


def recorded_bytes(path, trials):
    """What a ledger of so many trials takes when nothing else is there."""
    part = path.with_name("part.jsonl")
    part.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: trials + 1]))
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    ledger = Ledger(part)
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    assert len(ledger.trials) == trials
    return taken
