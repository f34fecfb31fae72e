"""The user's own fine-tuning function: what it may return, and what becomes of an error in it."""

import math
import sys
from multiprocessing import get_context
from threading import Thread

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import network

import freeprune
from freeprune import FreePruneError
from freeprune.backends.onnx import ONNX_RUNTIME
from freeprune.backends.onnx.export import export_onnx
from freeprune.engine.delivery import export as export_module
from freeprune.engine.delivery import finish as finish_module
from freeprune.engine.store import lock
from freeprune.engine.training import trainer
from freeprune.engine.training.checkpoint import Saving


def data():
    generator = torch.Generator().manual_seed(0)
    return tuple(TensorDataset(torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 3) for n in (60, 30))


def prune(out, finetune, **more):
    options = {"target": {"macs": 0.6}, "trials": 0, "calibration_images": 20, "rehearsal": False, **more}
    return freeprune.prune(network(), data(), out=out, finetune=finetune, **options)


def moved(smaller):
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.add_(0.01)
    return smaller


RETURNED = {
    "itself": lambda smaller: moved(smaller),
    "in DataParallel": lambda smaller: nn.DataParallel(moved(smaller)),
    "averaged": lambda smaller: torch.optim.swa_utils.AveragedModel(moved(smaller)),
    "in another type": lambda smaller: moved(smaller).double(),
    "a copy in training mode": lambda smaller: torch.optim.swa_utils.AveragedModel(moved(smaller)).module.train(),
    "frozen": lambda smaller: moved(smaller).requires_grad_(False),
}


def no_export(*_):
    raise FreePruneError("left out, since it takes most of a run")


@pytest.fixture(autouse=True)
def _without_export(monkeypatch):
    monkeypatch.setattr(export_module, "export_onnx", no_export)


@pytest.mark.parametrize("granularity", ["channel", "weight"])
@pytest.mark.parametrize("name", RETURNED)
def test_result_and_files_are_the_network_that_was_trained(name, granularity, tmp_path):
    held = []

    def tune(smaller, given):
        held.append(RETURNED[name](smaller))
        return held[0]

    target = {"macs": 0.6} if granularity == "channel" else {"nonzero": 0.5}
    result = prune(tmp_path / "out", tune, granularity=granularity, target=target, compaction=False)
    trained = {n.removeprefix("module."): p for n, p in held[0].named_parameters()}
    loaded = freeprune.load(tmp_path / "out", network())
    for parameters in (result.network, loaded):
        for key, parameter in parameters.named_parameters():
            mask = result.plan.masks.get(key, torch.tensor(True))
            assert torch.equal(parameter, trained[key].float() * mask), key
    assert not result.network.training


def test_the_onnx_file_is_it_too(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "export_onnx", export_onnx)
    result = prune(tmp_path / "out", lambda smaller, given: nn.DataParallel(moved(smaller)).train())
    images = torch.randn(3, 1, 8, 8)
    (output,) = ONNX_RUNTIME.outputs(tmp_path / "out" / "model.onnx", (images,))
    assert torch.allclose(torch.from_numpy(output), result.network(images), atol=1e-4)


class Tripled(nn.Sequential):
    def forward(self, x):
        return 3 * super().forward(x)


class Adapter(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)

    def merge_and_unload(self):
        return self.inner


def spoilt(smaller, place, value=math.nan):
    with torch.no_grad():
        smaller.state_dict()[place].view(-1)[0] = value
    return smaller


def without_norm(smaller):
    smaller[1] = nn.Identity()
    return smaller


def of_class(smaller, kind):
    smaller.__class__ = kind
    return smaller


def hooked(smaller):
    smaller[3].register_forward_hook(lambda module, inputs, output: 2 * output)
    return smaller


REFUSED = {
    "nothing": (lambda s: None, "returned NoneType; return the trained network"),
    "its state": (lambda s: s.state_dict(), "returned OrderedDict; return the trained network"),
    "adapter": (lambda s: Adapter(s), r"cannot be taken over: module 'the network' is an adapter \(Adapter\).*merge it first"),
    "adapter in a wrapper": (lambda s: nn.DataParallel(Adapter(s)), "is an adapter"),
    "weight norm": (lambda s: nn.utils.parametrizations.weight_norm(s[3]) and s, r"'3.weight' is missing, where it was of"),
    "fused norm": (without_norm, "another network: '1.weight' is missing"),
    "the dense network": (lambda s: network(), r"'0.weight' is of shape \(8, 1, 3, 3\), where it was of shape"),
    "a further layer": (lambda s: s.append(nn.Linear(3, 3)), r"'8.weight' is of shape \(3, 3\), where there was none"),
    "wrapped by hand": (lambda s: nn.Sequential(s), "'0.weight' is missing"),
    "another pass": (lambda s: of_class(s, Tripled), "computes something else than the pruned one with its weights"),
    "a hook left on": (hooked, "computes something else than the pruned one with its weights"),
    "weight without a number": (lambda s: spoilt(s, "3.weight"), "'3.weight' holds values that are not finite after training"),
    "infinite weight": (lambda s: spoilt(s, "7.bias", math.inf), "'7.bias' holds values that are not finite"),
    "buffer without a number": (lambda s: spoilt(s, "1.running_var"), "'1.running_var' holds values that are not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_another_network_than_the_given_one_is_refused_and_nothing_but_the_plan_is_kept(name, tmp_path):
    change, sentence = REFUSED[name]
    with pytest.raises(FreePruneError, match=sentence):
        prune(tmp_path / "out", lambda smaller, given: change(smaller))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "calibration.safetensors", "plan.json"}


def test_weights_beyond_the_range_of_the_given_type_are_refused(tmp_path):
    def tune(smaller, given):
        with torch.no_grad():
            smaller[7].bias.fill_(60000.0)
        smaller = smaller.float()
        with torch.no_grad():
            smaller[7].bias.fill_(70000.0)
        return smaller

    with pytest.raises(FreePruneError, match=r"'7.bias' holds values that are not finite after training"):
        freeprune.prune(
            network().half(), data(), target={"macs": 0.6}, trials=0, finetune=tune, rehearsal=False, out=tmp_path / "out"
        )


def failing(smaller, given):
    raise ValueError("the loader is empty\nand more")


def failing_in_torch(smaller, given):
    return smaller(torch.zeros(1, 5, 8, 8))


def failing_metric(candidate, dense, batch):
    return candidate.no_such_thing


FAILING = {
    "fine-tuning": (
        {"finetune": failing},
        r"the fine-tuning function '.*:failing' failed \(ValueError: the loader is empty at ",
    ),
    "within torch": ({"finetune": failing_in_torch}, r"'.*:failing_in_torch' failed \(RuntimeError: Given groups=1.* at "),
    "metric": ({"metric": failing_metric, "finetune": None}, r"the metric '.*:failing_metric' failed \(AttributeError: .* at "),
}


@pytest.mark.parametrize("name", FAILING)
def test_an_error_in_the_users_function_is_a_sentence_with_its_place_and_keeps_its_traceback(name, tmp_path):
    options, sentence = FAILING[name]
    function = next(f for f in options.values() if f is not None)
    line = function.__code__.co_firstlineno + 1
    with pytest.raises(FreePruneError, match=sentence) as found:
        prune(tmp_path / "out", **{"finetune": None, **options})
    told = str(found.value)
    assert f"{__file__}:{line})" in told
    assert "\n" not in told
    assert told.endswith(f"mend it; then go on with `resume=True`; the traceback is in {tmp_path / 'out' / 'error.txt'}")
    kept = (tmp_path / "out" / "error.txt").read_text()
    assert kept.startswith("Traceback (most recent call last)")
    assert f"line {line}, in {function.__name__}" in kept


def test_an_error_before_a_run_that_replaces_another_one_leaves_that_one_alone(tmp_path):
    prune(tmp_path / "out", None)

    def collate(items):
        raise KeyError("scale")

    loaders = tuple(DataLoader(part, 4, collate_fn=collate) for part in data())
    with pytest.raises(FreePruneError, match="KeyError: 'scale'") as found:
        freeprune.prune(network(), loaders, out=tmp_path / "out", target={"macs": 0.5}, force=True)
    assert "`resume=True`" not in str(found.value)
    assert not (tmp_path / "out" / "error.txt").exists()
    assert (tmp_path / "out" / "summary.json").exists()


def test_what_was_mended_goes_on_with_resume(tmp_path):
    broken = [True]

    def tune(smaller, given):
        if broken:
            raise KeyError("lr")
        return moved(smaller)

    with pytest.raises(FreePruneError, match=r"KeyError: 'lr' at .*error\.txt"):
        prune(tmp_path / "out", tune)
    broken.clear()
    prune(tmp_path / "out", tune, resume=True)
    assert (tmp_path / "out" / "summary.json").exists()
    assert not (tmp_path / "out" / "error.txt").exists()


@pytest.mark.parametrize("workers", [None, 2])
def test_an_error_in_a_worker_is_told_alike(workers, tmp_path):
    def metric(candidate, dense, batch):
        raise ZeroDivisionError("no layers")

    with pytest.raises(FreePruneError, match=r"metric' failed \(ZeroDivisionError: no layers at .*test_finetuning.*error\.txt"):
        prune(tmp_path / "out", None, metric=metric, trials=2, workers=workers)
    assert "ZeroDivisionError: no layers" in (tmp_path / "out" / "error.txt").read_text()


@pytest.mark.parametrize("found", [None, "much", torch.zeros(3)])
def test_a_metric_that_gives_no_number_is_a_sentence(found, tmp_path):
    with pytest.raises(FreePruneError, match=f"returned a {type(found).__name__}, where one number was expected"):
        prune(tmp_path / "out", None, metric=lambda *_: found)


class Interrupted(Exception):
    pass


def test_a_fine_tuning_by_a_recipe_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(finish_module, "Saving", lambda path: Saving(path, 0.0))
    recipe = freeprune.Recipe(epochs=2.0, batch_size=10)
    steps = []

    def until(stage, done, total, note):
        if stage == "fine-tune":
            steps.append(done)
            if steps == [1, 2, 3]:
                raise Interrupted

    with pytest.raises(Interrupted):
        prune(tmp_path / "cut", recipe, progress=until)
    assert (tmp_path / "cut" / "training.safetensors").exists()
    prune(tmp_path / "cut", recipe, progress=until, resume=True)
    assert steps == [1, 2, 3, *range(4, 12)]  # 54 of 60 images are trained on, twice
    prune(tmp_path / "whole", recipe)
    names = {path.name for path in (tmp_path / "cut").iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}
    assert not names & {"training.safetensors", ".running"}
    both = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert both[0] == both[1]


def test_a_device_without_memory_is_a_sentence_with_the_option_to_lower(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(trainer, "trained_here", full)
    sentence = r"out of memory \(CUDA out of memory. Tried to allocate 2 GiB\); lower `batch_size` \(now 10\), and go on"
    with pytest.raises(FreePruneError, match=sentence):
        prune(tmp_path / "out", freeprune.Recipe(batch_size=10))
    monkeypatch.undo()
    monkeypatch.setattr(finish_module, "made_good", full)
    sentence = r"lower `calibration_images` or the `image_size`, or give shorter sequences, and go on with `resume=True`"
    with pytest.raises(FreePruneError, match=sentence):
        prune(tmp_path / "out", freeprune.Recipe(batch_size=10), resume=True)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    seen = []

    def another():
        try:
            prune(tmp_path / "out", None, force=True)
        except FreePruneError as error:
            seen.append(str(error))

    def tune(smaller, given):
        thread = Thread(target=another)
        thread.start()
        thread.join()
        context = get_context("fork")
        process = context.Process(target=lambda: sys.exit(3 if refused() else 0))
        process.start()
        process.join()
        seen.append(process.exitcode)
        return moved(smaller)

    def refused():
        lock.held.clear()  # as in a process that was started by itself
        another()
        return seen[-1].startswith("another run is writing to")

    prune(tmp_path / "out", tune)
    assert seen == [f"another run is writing to {tmp_path / 'out'}; wait for it, or give another `out`", 3]
    prune(tmp_path / "out", tune, resume=True)  # it was given back
