"""What is killed at any moment and resumed ends as if it never was: with the same trials, answer and files."""

import gc
import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from toys import in_turn

import freeprune
from freeprune.engine.run.loop import search
from freeprune.engine.store.ledger import Ledger
from freeprune.search import STRATEGIES, Space

TRIALS, MOMENTS = 24, 20
UNITS = np.array([10, 20, 30, 40])
FORK = multiprocessing.get_context("fork")


def searched(path, name):
    space = Space(UNITS, np.ones(4, np.int64), lambda kept: {"size": kept.sum(axis=1).astype(float)}, {"size": 50.0})
    score = lambda kept: float(-np.abs(kept - np.array([10, 15, 15, 10])).sum())  # noqa: E731
    return search(space, STRATEGIES[name](space, 3, TRIALS), in_turn(score), Ledger(path), TRIALS, batch=7)


def trials(path):
    """The ledger without times."""
    times = ("seconds", "elapsed", "overhead")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in times} for entry in entries]


def forked(run):
    """The exit code of a function in a process of its own.

    It leaves what other tests have left in this one, such as threads and the objects that wait for them, untouched: nothing is
    collected, and nothing is ended with it.
    """

    def alone():
        run()
        sys.stdout.flush()
        os._exit(0)

    gc.collect()
    gc.freeze()
    process = FORK.Process(target=alone)
    process.start()
    process.join()
    return process.exitcode


def killed(path, name, moment, calls=None):
    """Search in a process of its own that is killed at its so-manieth call or return of any function, C or Python."""

    def run():
        count = 0

        def strike(*_):
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(strike)
        searched(path, name)
        sys.setprofile(None)
        if calls is not None:
            calls.value = count

    return forked(run)


@pytest.mark.parametrize("name", ["random", "evolution", "tpe"])
def test_a_search_killed_at_any_moment_and_resumed_ends_as_if_it_was_not(name, tmp_path):
    whole, calls = tmp_path / "whole.jsonl", FORK.Value("q", 0)
    assert killed(whole, name, 0, calls) == 0
    expected = searched(whole, name)
    cut = set()
    for moment in random.Random(5).sample(range(1, calls.value * 49 // 50), MOMENTS):
        path = tmp_path / f"{moment}.jsonl"
        assert killed(path, name, moment) == -signal.SIGKILL
        cut.add(len(path.read_bytes().splitlines()) if path.exists() else 0)
        resumed = searched(path, name)
        assert trials(path) == trials(whole)
        assert np.array_equal(resumed.kept, expected.kept)
        assert resumed.score == expected.score
    assert len(cut) > 3  # the moments were different ones


# A whole run

# As a run reports them; before its first report it prepares.
STAGES = ("prepare", "dense", "rehearse", "search", "recover", "test", "fine-tune", "export")
STRIKES = {"prepare": 1, "dense": 1, "rehearse": 1, "search": 2, "recover": 1, "test": 1, "fine-tune": 2, "export": 3}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )


def pair():
    generator = torch.Generator().manual_seed(0)
    return tuple(TensorDataset(torch.randn(n, 1, 6, 6, generator=generator), torch.arange(n) % 3) for n in (40, 12))


def pruned(out, **more):
    return freeprune.prune(
        network(), pair(), target={"nonzero": 0.5}, granularity="channel+weight", trials=8, proposals=3, calibration_images=20,
        finetune=freeprune.Recipe(epochs=1, batch_size=8), compress=True, latency_batch=2, out=out, **more,
    )  # fmt: skip


def killed_run(out, stage, moment, calls=None):
    """A run in a process of its own that is killed at the so-manieth call or return within a stage."""

    def run():
        now = ["prepare"]
        counts = dict.fromkeys(STAGES, 0)

        def strike(*_):
            counts[now[0]] += 1
            if counts[now[0]] == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        def progress(name, done, total, note):
            now[0] = name
            sys.setprofile(strike if stage in (None, name) else None)  # counting takes more time than the run

        progress("prepare", 0, 0, "")
        pruned(out, progress=progress)
        sys.setprofile(None)
        if calls is not None:
            calls[:] = [counts[name] for name in STAGES]

    return forked(run)


def files_of(folder):
    """Everything in a run folder but what was measured."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    summary = json.loads(found.pop("summary.json"))
    del summary["seconds"], summary["memory"], summary["onnx"]["latency_ms"], summary["onnx"]["verdict"]
    del found["trials.jsonl"], found["report.html"]  # which says how long things took
    return found, summary, trials(folder / "trials.jsonl")


def test_a_run_killed_at_any_moment_is_complete_or_ends_as_if_it_was_not(tmp_path):
    calls = FORK.Array("q", len(STAGES))
    pruned(tmp_path / "whole")
    assert killed_run(tmp_path / "again", None, 0, calls) == 0
    expected = files_of(tmp_path / "whole")
    assert files_of(tmp_path / "again") == expected
    rng, left = random.Random(7), set()
    for stage, count in zip(STAGES, calls, strict=True):
        assert count > 0
        for moment in rng.sample(range(1, count * 49 // 50), STRIKES[stage]):
            out = tmp_path / f"{stage}-{moment}"
            assert killed_run(out, stage, moment) == -signal.SIGKILL
            left.add(frozenset(path.name for path in out.iterdir()) if out.exists() else None)
            pruned(out, resume=(out / "config.json").exists())
            assert files_of(out) == expected
            freeprune.load(out, network())
    assert len(left) > 3  # the moments were different ones


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "calibration.safetensors",
        "plan.json",
        "masks.safetensors",
        "model.safetensors",
        "model.onnx",
        "summary.json",
    ],
)
def test_a_run_killed_while_it_writes_a_file_leaves_no_half_of_it(name, tmp_path, monkeypatch):
    out = tmp_path / "out"

    class Killed(BaseException):
        pass

    real = Path.replace

    def replace(path, to):
        if to.name == name:
            half = path.read_bytes()[: path.stat().st_size // 2]
            path.with_name(path.name.rstrip("0123456789") + "1").write_bytes(half)  # as a killed process would leave it
            raise Killed
        return real(path, to)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(Killed):
        pruned(out)
    monkeypatch.setattr(Path, "replace", real)
    assert not (out / name).exists()
    pruned(out, resume=(out / "config.json").exists())
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    freeprune.load(out, network())
