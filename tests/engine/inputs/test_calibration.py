"""The calibration batch: decided by the seed whatever a data set draws, kept with the run, and read again on --resume."""

import json
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset
from toys import network

import freeprune
from freeprune import FreePruneError
from freeprune.common import Batch
from freeprune.engine.delivery import export as export_module
from freeprune.engine.inputs.batches import split
from freeprune.engine.inputs.calibration import calibration, draw, keep
from freeprune.engine.inputs.data import load_data


class Drawn(Dataset):
    """Other items at each access."""

    def __init__(self, draw, length=60):
        self.draw, self.length, self.reads = draw, length, 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.reads += 1
        image = torch.sin(torch.arange(64.0) * (index % 3 + 1)).view(1, 8, 8)
        return image + self.draw(), index % 3


OWN = np.random.default_rng(1)
DRAWS = {
    "python": random.random,
    "numpy": lambda: np.random.rand(),  # noqa: NPY002
    "torch": lambda: torch.randn(1, 8, 8),
}


def of(draw):
    return load_data((Drawn(draw), Drawn(draw)))


@pytest.mark.parametrize("name", DRAWS)
def test_the_seed_decides_what_a_data_set_draws_and_leaves_the_global_states(name):
    data = of(DRAWS[name])
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first, second, other = (draw(data.train, data, 20, seed) for seed in (1, 1, 2))
    assert torch.equal(first.inputs[0], second.inputs[0])
    assert not torch.equal(first.inputs[0], other.inputs[0])
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(states[2], torch.get_rng_state())


@pytest.mark.parametrize("name", DRAWS)
def test_two_runs_with_one_seed_are_the_same_although_the_data_draw(name, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "export_onnx", no_export)
    data, found = (Drawn(DRAWS[name]), Drawn(DRAWS[name])), []
    for run in "ab":
        result = prune(tmp_path / run, data, finetune=freeprune.Recipe(images=20, batch_size=10))
        rows = (tmp_path / run / "trials.jsonl").read_text().splitlines()[1:]
        found.append(([json.loads(row)["score"] for row in rows], result.summary["accuracy"]))
    assert found[0] == found[1]


def no_export(*_):
    raise FreePruneError("left out, since it takes most of a run")


def prune(out, data, **more):
    options = {"target": {"macs": 0.6}, "trials": 4, "proposals": 1, "strategy": "random", "calibration_images": 20}
    return freeprune.prune(network(), data, out=out, **{**options, "finetune": None, "rehearsal": False, **more})


class Killed(BaseException):
    pass


def kill(name, done, total, note):
    if (name, done) == ("search", 2):
        raise Killed


OPTIONS = {"target": {"macs": 0.6}, "calibration_images": 20, "progress": kill}
STUDY = {"metrics": ["macs"], "candidates": 3, "finetune": freeprune.Recipe(images=20, batch_size=10)}


def kill_study(name, done, total, note):
    if (name, done) == ("fine-tune", 1):
        raise Killed


ENTRIES = {
    "prune": lambda d, **m: freeprune.prune(network(), d, **{**OPTIONS, "trials": 4, "proposals": 1, "finetune": None, **m}),
    "compare": lambda d, **m: freeprune.compare(
        network(), d, **{**OPTIONS, "strategies": ["random"], "seeds": 1, "trials": 4, "progress": kill_compare, **m}
    ),
    "sweep": lambda d, **m: freeprune.sweep(
        network(), d, budgets=[0.7, 0.5], calibration_images=20, trials=4, **{"progress": kill_sweep, **m}
    ),
    "correlate": lambda d, **m: freeprune.correlate(network(), d, **{**OPTIONS, **STUDY, "progress": kill_study, **m}),
}  # fmt: skip


def kill_compare(name, done, total, note):
    if name == "search":
        raise Killed


def kill_sweep(name, done, total, note):
    if name == "sweep":
        raise Killed


@pytest.mark.parametrize("name", ENTRIES)
def test_a_resumed_run_scores_the_images_that_were_kept(name, tmp_path, monkeypatch):
    """Also where a data set has a generator of its own, which no seed reaches."""
    monkeypatch.setattr(export_module, "export_onnx", no_export)
    data, scored = (Drawn(OWN.standard_normal), Drawn(OWN.standard_normal)), []

    def reading(*arguments):
        scored.append(calibration(*arguments))
        return scored[-1]

    monkeypatch.setattr("freeprune.engine.run.job.calibration", reading)
    with pytest.raises(Killed):
        ENTRIES[name](data, out=tmp_path / "out", rehearsal=False)
    kept = (tmp_path / "out" / "calibration.safetensors").read_bytes()
    ENTRIES[name](data, out=tmp_path / "out", rehearsal=False, resume=True, progress=lambda *_: None)
    assert torch.equal(scored[0].inputs[0], scored[1].inputs[0])
    assert torch.equal(scored[0].labels, scored[1].labels)
    assert (tmp_path / "out" / "calibration.safetensors").read_bytes() == kept
    ENTRIES[name](data, out=tmp_path / "out", rehearsal=False, force=True, progress=lambda *_: None)
    assert (tmp_path / "out" / "calibration.safetensors").read_bytes() != kept


def test_images_of_our_own_are_not_kept(tmp_path):
    data = load_data("digits")
    training, _ = split(data, 0)
    keep(draw(training, data, 20, 0), data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_several_inputs_of_any_type_are_kept_as_they_are(tmp_path):
    items = TensorDataset(torch.randn(30, 1, 4).half(), torch.randint(9, (30, 5)), torch.arange(30) % 2)
    data = load_data((items, items))
    batch = draw(items, data, 20, 0)
    keep(batch, data, tmp_path)
    found = calibration(items, data, 20, 0, tmp_path)
    assert [x.dtype for x in found.inputs] == [torch.float32, torch.int64]
    assert all(torch.equal(a, b) for a, b in zip((*found.inputs, found.labels), (*batch.inputs, batch.labels), strict=True))


def flipped(content):
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda content: b"", "is damaged"),
        (lambda content: b"junk" * 100, "is damaged"),
        (lambda content: content[:-100], "is damaged"),
        (flipped, "is damaged .its content is not what was written.; start the run again with `force=True`"),
    ],
)
def test_a_damaged_file_is_a_sentence(damage, sentence, tmp_path):
    data = of(DRAWS["torch"])
    keep(draw(data.train, data, 20, 0), data, tmp_path)
    path = tmp_path / "calibration.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FreePruneError, match=sentence):
        calibration(data.train, data, 20, 0, tmp_path)


def test_images_of_other_data_are_a_sentence(tmp_path):
    data = of(DRAWS["torch"])
    keep(draw(data.train, data, 20, 0), data, tmp_path)
    larger = TensorDataset(torch.zeros(60, 1, 9, 9), torch.arange(60) % 3)
    for images, count in ((larger, 20), (data.train, 30), (Subset(data.train, range(10)), 20)):
        with pytest.raises(FreePruneError, match="holds images that are not of these data"):
            calibration(images, data, count, 0, tmp_path)


def test_labels_that_were_not_kept_are_those_of_the_data(tmp_path):
    data = of(DRAWS["torch"])
    keep(Batch((torch.ones(20, 1, 8, 8),)), data, tmp_path)
    found = calibration(data.train, data, 20, 0, tmp_path)
    assert torch.equal(found.inputs[0], torch.ones(20, 1, 8, 8))
    assert torch.equal(found.labels, draw(data.train, data, 20, 0).labels)
