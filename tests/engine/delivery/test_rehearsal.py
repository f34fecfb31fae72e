"""The rehearsal: what would fail after the search is refused before it, with nothing written."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset, TensorDataset
from toys import network

import freeprune
from freeprune import FreePruneError, Recipe
from freeprune.backends.onnx.onnx_runtime import OnnxRuntime
from freeprune.engine import prune as run_module
from freeprune.engine.command.cli import main
from freeprune.engine.delivery import export as export_module
from freeprune.engine.delivery import rehearsal
from freeprune.engine.inputs import devices
from freeprune.engine.training import processes, trainer

TRAINED = Recipe(images=20, batch_size=10)


def data(length=60, change=lambda labels: labels):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(length) % 3
    made = TensorDataset(torch.randn(length, 1, 8, 8, generator=generator), change(labels))
    return made, made


def with_odd(column, value, halved=1):
    """A value in one of the last items; the labels of the others are divided by `halved`, or what is left of that."""
    made = data(change=lambda y: y / halved if isinstance(halved, float) else y % halved if halved > 1 else y)[0]
    made.tensors[column][57] = value  # which is not among the calibration images
    return Subset(Subset(made, range(60)), range(60))


class Changed(nn.Module):
    """A network whose output is changed by a function of it and the mode."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = network(), change

    def forward(self, x):
        return self.change(self.inner(x), self.training)


class Single(Changed):
    """A network that knows no batch."""

    def __init__(self):
        super().__init__(lambda y, _: y[0])

    def forward(self, x):
        return super().forward(x[None])


class Remembering(Changed):
    """A network that keeps its last output."""

    def __init__(self):
        super().__init__(self.with_last)
        self.last = 0

    def with_last(self, output, training):
        last, self.last = self.last, output.detach().mean()
        return output + last


class Pair(nn.Conv2d):
    """Two classes for every position."""

    def __init__(self):
        super().__init__(1, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(super().forward(x).relu())


def masks(odd):
    """Masks of two classes, of which each position has one; the odd item, not among the calibration images, has both."""
    images = data()[0].tensors[0]
    made = torch.stack([images[:, 0] > 0, images[:, 0] <= 0], 1).long()
    made[[57] * odd] = 1
    return TensorDataset(images, made)


class Beside(nn.Module):
    """An image network with a number for each image, which an embedding may look up."""

    def __init__(self, table=None):
        super().__init__()
        self.inner, self.table = network(), table

    def forward(self, x, number):
        return self.inner(x) + (number[:, None] if self.table is None else self.table(number))


def beside(odd):
    """Images with a number of the odd one's type beside each, which one of the last has."""
    images, labels = data()[0].tensors
    numbers = torch.zeros(60, dtype=torch.tensor(odd).dtype)
    numbers[57] = odd
    return TensorDataset(images, numbers, labels)


def not_exportable(output, training):
    return output + torch.linalg.eigvals(output.detach().T @ output.detach()).real.sum() * 0


class BrokenTest(Dataset):
    """Its second item cannot be read."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 1:
            raise OSError("no such file")
        return torch.zeros(1, 8, 8), 0


REFUSED = {
    "dropout in eval mode": ({"model": Changed(lambda y, _: F.dropout(y, 0.5))}, "gives different outputs for the same images"),
    "noise": ({"model": Changed(lambda y, _: y + torch.randn(()))}, "gives different outputs .*no random numbers"),
    "what it kept": ({"model": Remembering()}, "gives different outputs .* keep nothing from one call to the next"),
    "frozen": ({"model": network().requires_grad_(False)}, "no parameter of the network requires a gradient"),
    "no gradient": ({"model": Changed(lambda y, _: y.detach())}, "backward pass failed"),
    "side output first": ({"model": Changed(lambda y, t: (y[:, 0], y) if t else y)}, "expected logits, one tensor"),
    "dictionary in training": ({"model": Changed(lambda y, t: {"n": len(y)} if t else y)}, "returned a dict without an output"),
    "not finite in training": ({"model": Changed(lambda y, t: y / 0 if t else y)}, "the loss became nan at step 1 of 1"),
    "test item": ({"data": (data()[0], BrokenTest())}, r"items of a BrokenTest cannot be read .*no such file at .*_rehearsal"),
    "numbers of items": (
        {"data": (TensorDataset(*data()[0].tensors, torch.arange(60)),) * 2},
        r"items hold 2 inputs .* in a batch. and a label, the last .*forward pass takes .input.; give items",
    ),
    "no batch": (
        {"model": Single()},
        r"takes single items .a float32 tensor of shape .1, 8, 8.. and rejects a batch .* `torch.stack\(",
    ),
    "batches as items": (
        {"data": ([(torch.randn(4, 1, 8, 8), torch.arange(4) % 3)] * 60,) * 2},
        r"takes single items .a float32 tensor of shape .4, 1, 8, 8.. .* give what is in them one by one",
    ),
    "late test label": (
        {"data": (data()[0], with_odd(1, 3)), "finetune": None}, "of the test data, there is a label 3, but the network has 3"
    ),
    "late test image": (
        {"data": (data()[0], with_odd(0, float("nan"))), "finetune": None}, "item 57 of the test data holds NaN or infinite"
    ),
    "late training image": ({"data": (with_odd(0, float("inf")), data()[0])}, "item 57 of the training data holds NaN"),
    "late number beside images": (
        {"model": Beside(), "data": (beside(0.0), beside(float("nan")))}, "item 57 of the test data holds NaN or infinite"
    ),
    "late token": (
        {"model": Beside(nn.Embedding(5, 3)), "data": (beside(9), beside(0))},
        "item 57 of the training data holds the token 9, and the network knows 0 to 4; give",
    ),
    "late test target": (
        {"model": Changed(lambda y, _: y[:, 0]), "data": (data(change=lambda y: y / 2)[0], with_odd(1, float("nan"), 2.0))},
        "of the test data, the labels hold NaN",
    ),
    "late label of two": (
        {"model": Changed(lambda y, _: y[:, 0]), "data": (data(change=lambda y: y % 2)[0], with_odd(1, 3, 2))},
        "the labels of the test data are .*; expected zeros and ones",
    ),
    "late masks that overlap": (
        {"model": Pair(), "data": (masks(0), masks(1)), "finetune": None},
        "of the test data, there are masks of 2 classes of which a position has several or none; use `task='multilabel'`",
    ),
    "test labels": ({"data": (data()[0], data(change=lambda y: y + 9)[0]), "finetune": None}, "there is a label"),
    "opset": ({"opset": 5, "finetune": None}, "`opset` is 5, which the exporter does not write; give a number from 18 to"),
    "no export": ({"model": Changed(not_exportable)}, r"cannot be exported .*; `rehearsal=False` prunes"),
}  # fmt: skip


def prune(out, **more):
    options = {"target": {"macs": 0.6}, "trials": 2, "calibration_images": 20, "finetune": TRAINED, **more}
    return freeprune.prune(options.pop("model", network()), options.pop("data", data()), out=out, **options)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_fail_is_refused_before_anything_is_written(name, tmp_path):
    options, sentence = REFUSED[name]
    with pytest.raises(FreePruneError, match=sentence) as found:
        prune(tmp_path / "out", **options)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_without_it_a_network_that_cannot_be_exported_is_pruned_all_the_same(tmp_path):
    result = prune(tmp_path / "out", model=Changed(not_exportable), rehearsal=False, finetune=None)
    assert result.summary["onnx"]["bytes"] is None
    assert result.summary["onnx"]["warnings"][0].startswith("the network cannot be exported to ONNX")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rehearsal"] is False
    (tmp_path / "out" / "summary.json").unlink()
    with pytest.raises(FreePruneError, match="was started with rehearsal = False, not True"):
        prune(tmp_path / "out", finetune=None, resume=True, model=Changed(lambda y, _: y))


def test_surgery_that_changes_the_outputs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "masked", lambda dense, plan: Changed(lambda y, _: y + 1))
    with pytest.raises(FreePruneError, match="the pruned network computes something else than the masked one"):
        prune(tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Tokens(nn.Module):
    """Numbers as tokens, each with its own vector and offset, but for the offset of the first, which is zero."""

    def __init__(self, width):
        super().__init__()
        self.vectors, self.offsets = nn.Parameter(torch.randn(3, width)), nn.Parameter(torch.randn(2, width))
        self.inner, self.norm, self.head = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.vectors * x[:, :, None] + torch.cat([torch.zeros(1, self.offsets.shape[1]), self.offsets])
        return self.head(self.norm(x + self.inner(x.relu())).mean(1))


def test_as_many_calibration_images_as_a_layer_has_channels_are_told_from_these(tmp_path):
    numbers = TensorDataset(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3)
    torch.manual_seed(0)
    result = prune(tmp_path / "out", model=Tokens(20), data=(numbers, numbers))
    assert result.summary.agreement.masked_vs_compact < 1e-5


def test_an_export_of_another_network_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxRuntime, "outputs", lambda self, path, images: (torch.ones(2, 3),))
    with pytest.raises(FreePruneError, match=r"the dense network's ONNX file computes something else .*`rehearsal=False`"):
        prune(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_dense_network_is_exported_once_and_nothing_else_changes(tmp_path, monkeypatch):
    exported, real = [], torch.onnx.export

    def noted(net, *given, **more):
        exported.append(net)
        return real(net, *given, **more)

    monkeypatch.setattr(torch.onnx, "export", noted)
    summaries = []
    for rehearsed in (True, False):
        exported.clear()
        result = prune(tmp_path / str(rehearsed), rehearsal=rehearsed)
        assert len(exported) == 2  # the dense and the pruned network
        summary = result.summary.to_json()
        del summary["onnx"]["latency_ms"], summary["onnx"]["verdict"], summary["seconds"], summary["memory"]
        summaries.append(summary)
    assert summaries[0] == summaries[1]
    for name in ("plan.json", "model.safetensors", "model.onnx"):
        assert (tmp_path / "True" / name).read_bytes() == (tmp_path / "False" / name).read_bytes()


def test_training_that_finds_no_memory_is_to_take_fewer_images_than_it_was_asked_to(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "trained_here", full)
    with pytest.raises(FreePruneError, match=r"lower `batch_size` \(now 10\)$"):  # nothing is there to go on with
        prune(tmp_path / "out", finetune=TRAINED)
    assert not (tmp_path / "out").exists()


def test_no_more_images_are_tried_than_are_trained_on_at_a_time(tmp_path):
    """Which may be as many as there is memory for."""
    seen = []

    def noted(y, training):
        if training:
            seen.append(len(y))
        return y

    prune(tmp_path / "out", model=Changed(noted), finetune=Recipe(images=0, batch_size=4), trials=0)
    prune(tmp_path / "other", model=Changed(noted), finetune=Recipe(images=0, batch_size=10), trials=0)
    assert seen == [4, 8]


@pytest.mark.parametrize("rehearsed", [True, False])
def test_a_batch_that_cannot_be_divided_is_refused_before_the_search(rehearsed, tmp_path):
    sentence = "`batch_size` is 8 for 8 processes that train together; give at least 16, or fewer `devices`"
    eight = {"device": "cpu", "devices": 8, "rehearsal": rehearsed}
    with pytest.raises(FreePruneError, match=sentence):
        prune(tmp_path / "out", finetune=Recipe(batch_size=8), **eight)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FreePruneError, match="`batch_size` is 54 for 30 processes"):  # of 60 images, six are for validation
        prune(tmp_path / "out", finetune=Recipe(batch_size=128), **{**eight, "devices": 30})
    assert not (tmp_path / "out").exists()


NOISY, FROZEN = Changed(lambda y, _: F.dropout(y, 0.5)), network().requires_grad_(False)
ENTRIES = {
    "compare": lambda net, **more: freeprune.compare(net, data(), target={"macs": 0.6}, calibration_images=20, **more),
    "sweep": lambda net, **more: freeprune.sweep(net, data(), calibration_images=20, **more),
    "correlate": lambda net, **more: freeprune.correlate(net, data(), target={"macs": 0.6}, calibration_images=20, **more),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_the_other_entries_rehearse_what_they_do(name, tmp_path):
    with pytest.raises(FreePruneError, match="gives different outputs for the same images"):
        ENTRIES[name](NOISY, out=tmp_path / "out")
    if name != "sweep":  # which trains nothing
        with pytest.raises(FreePruneError, match="requires a gradient"):
            ENTRIES[name](FROZEN, out=tmp_path / "out", finetune=TRAINED)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"nodes": 2}, "`nodes=2` was given, and only prune and train use several machines; leave it out"),
        ({"device": "cuda", "devices": 8}, r"`devices` is 8, but this machine has 1 of cuda; give at most that many"),
    ],
)
def test_hardware_that_is_not_there_is_refused_before_the_search(name, asked, sentence, tmp_path, monkeypatch):
    for module in (devices, processes):
        monkeypatch.setattr(module, "count_of", lambda kind: 1)
    with pytest.raises(FreePruneError, match=sentence):
        ENTRIES[name](network(), out=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [*ENTRIES, "pick"])
def test_what_is_done_in_one_process_is_refused_in_several(name, tmp_path, monkeypatch):
    for variable, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(variable, value)

    def pick(net, **more):
        return freeprune.pick(tmp_path, target={"macs": 0.6}, model=net, **more)

    with pytest.raises(FreePruneError, match=r"torchrun started this in several processes, .* start it in one, with `devices`"):
        {**ENTRIES, "pick": pick}[name](network(), out=tmp_path / "out", device="cpu", devices=2)
    assert not (tmp_path / "out").exists()


def test_entries_without_a_file_do_not_export(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", None)
    dense = Changed(not_exportable)
    freeprune.compare(
        dense, data(), target={"macs": 0.6}, strategies=["random"], seeds=1, trials=2, calibration_images=20, finetune=TRAINED,
        out=tmp_path / "compare",
    )  # fmt: skip
    freeprune.sweep(dense, data(), budgets=[0.7, 0.5], trials=2, calibration_images=20, out=tmp_path / "sweep")
    monkeypatch.undo()
    with pytest.raises(FreePruneError, match=r"cannot be exported .*`rehearsal=False`"):
        freeprune.pick(tmp_path / "sweep", target={"macs": 0.6}, model=dense, data=data(), out=tmp_path / "picked")
    assert not (tmp_path / "picked").exists()


def test_a_finished_run_is_read_again_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "export_onnx", lambda *_: (_ for _ in ()).throw(FreePruneError("left out")))
    first = prune(tmp_path / "out", rehearsal=True, trials=0, finetune=None)
    monkeypatch.setattr(run_module, "rehearse", None)
    again = prune(tmp_path / "out", rehearsal=True, trials=0, finetune=None, resume=True)
    assert again.summary == first.summary


@pytest.mark.parametrize("command", ["prune", "compare", "sweep", "pick", "correlate"])
def test_the_option_is_there(command):
    text = " ".join(CliRunner().invoke(main, [command, "--help"]).stdout.split())
    assert "--rehearsal / --no-rehearsal" in text
