import json
import threading
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as masks
from torch.utils.data import TensorDataset
from toys import network

import freeprune
from freeprune.backends.onnx import export as export_module
from freeprune.backends.onnx.onnx_runtime import ONNX_RUNTIME, OnnxRuntime
from freeprune.engine import prune as run_module
from freeprune.engine.inputs.networks import NETWORKS
from freeprune.engine.tasks import CLASSIFICATION

GRANULARITIES = {"channel": {"macs": 0.5}, "weight": {"nonzero": 0.2}}


def pair(seed=0):
    """Stripes in one of three directions, with noise."""
    generator = torch.Generator().manual_seed(seed)

    def make(count):
        labels = torch.arange(count) % 3
        x, y = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        waves = torch.stack([torch.sin(1.5 * a) for a in (x, y, x + y)])
        return TensorDataset((waves[labels] + torch.randn(count, 8, 8, generator=generator)).unsqueeze(1), labels)

    return make(200), make(60)


def prune(out, granularity="channel", **options):
    settings = {
        "target": GRANULARITIES.get(granularity),
        "granularity": granularity,
        "strategy": "random",
        "trials": 12,
        "calibration_images": 80,
        "finetune": freeprune.Recipe(epochs=1, batch_size=32),
    }
    return freeprune.prune(options.pop("model", network()), options.pop("data", pair()), out=out, **{**settings, **options})


@pytest.fixture(scope="module", params=sorted(GRANULARITIES))
def finished(request, tmp_path_factory):
    return prune(tmp_path_factory.mktemp("run") / "out", request.param)


def test_the_summary_says_what_was_asked_for(finished):
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary == finished.summary.to_json()
    granularity = finished.plan.granularity
    assert (summary["cost"]["params"] is None) == (granularity == "weight")
    name = next(iter(GRANULARITIES[granularity]))
    cost = summary["cost"][name]
    assert cost["pruned"] <= cost["target"] < cost["dense"]
    assert cost["target"] == int(GRANULARITIES[granularity][name] * cost["dense"])
    assert set(summary["accuracy"]) == {"dense", "pruned", "recovered", "finetuned"}
    assert summary["score"]["best"] >= summary["score"]["uniform"]
    assert summary["agreement"]["masked_vs_compact"] < 1e-5
    assert summary["agreement"]["compact_vs_onnx"] < 1e-4
    assert set(summary["seconds"]) == {"trace", "search", "overhead", "per_trial", "recover", "finetune", "export"}
    assert set(summary["onnx"]["latency_ms"]) == {"dense", "pruned"}
    assert summary["seed"] == 0


def test_the_loaded_network_is_the_result(finished):
    loaded = freeprune.load(finished.folder, network())
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images), finished.network(images))
        session = onnxruntime.InferenceSession(finished.folder / "model.onnx", providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert np.allclose(output, loaded(images).numpy(), atol=1e-4)


def test_single_weights_are_counted_exactly_and_stay_zero(tmp_path):
    result = prune(tmp_path / "out", "weight", compaction=False)
    layers = [m.weight for m in result.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    kept = sum(int(mask.sum()) for mask in result.plan.masks.values())
    others = sum(w.numel() for n, w in result.network.named_parameters() if w.dim() > 1 and n not in result.plan.masks)
    total = sum(w.numel() for w in layers)
    assert kept + others == total // 5 == result.summary["cost"]["nonzero"]["pruned"]
    for name, mask in result.plan.masks.items():
        assert not dict(result.network.named_parameters())[name][~mask].any()


def test_a_second_round_keeps_the_zeros_of_the_first(tmp_path):
    few = {"trials": 1, "compaction": False, "finetune": freeprune.Recipe(epochs=1, batch_size=64)}
    first = prune(tmp_path / "first", "weight", **few)
    second = prune(tmp_path / "second", "weight", model=first.network, target={"nonzero": 0.5}, **few)
    there, left = (sum(int(p.count_nonzero()) for p in r.network.parameters() if p.dim() > 1) for r in (first, second))
    cost = second.summary["cost"]["nonzero"]
    assert (cost["dense"], cost["pruned"]) == (there, there // 2)
    assert left <= there // 2
    for old, new in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert old.dim() < 2 or not new[old == 0].any()


@pytest.mark.filterwarnings("ignore:the dense network has")
def test_zeros_that_channels_do_not_keep_are_told_before_the_search(tmp_path):
    sparse = network()
    with torch.no_grad():
        sparse[3].weight[:, :4] = 0  # 432 of 972 weights in all
    message = "44% of the network's weights are zero already, and granularity channel counts them as weights"
    with pytest.warns(freeprune.FreePruneWarning, match=message):
        prune(tmp_path / "out", model=sparse, trials=0, finetune=None)


@pytest.mark.filterwarnings("ignore:the dense network has")
def test_steps_that_leave_much_of_the_target_over_are_told(tmp_path, recwarn):
    wide = torch.nn.Sequential(torch.nn.Conv2d(1, 32, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32 * 36, 3))
    options = {"model": wide, "target": {"macs": 0.49}, "trials": 1, "finetune": None}
    with pytest.warns(freeprune.FreePruneWarning, match="takes 51% of what macs=49% allows: channels leave several at a time"):
        found = prune(tmp_path / "steps", **options)  # 15 channels would do, 8 are left
    assert found.summary["cost"]["macs"].pruned * 4 == found.summary["cost"]["macs"].dense
    recwarn.clear()
    prune(tmp_path / "single", round_to=1, **options)
    assert not any("several at a time" in str(warning.message) for warning in recwarn)


def test_a_compressed_file_is_smaller_and_computes_the_same(tmp_path):
    options = {"target": {"nonzero": 0.1}, "trials": 0, "finetune": None, "compaction": False}
    plain, small = (prune(tmp_path / str(c), "weight", compress=c, **options) for c in (False, True))
    assert plain.summary["onnx"]["compressed"] is None
    found = small.summary["onnx"]["compressed"]
    assert found.before == plain.summary["onnx"]["bytes"]
    assert found.bytes == small.summary["onnx"]["bytes"] == (small.folder / "model.onnx").stat().st_size < found.before
    assert small.summary["agreement"] == plain.summary["agreement"]


def test_the_verdict_goes_by_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxRuntime, "latency_ms", lambda *_, **__: {"dense": 2.0, "pruned": 2.0})
    verdict = prune(tmp_path / "out", "weight", trials=0, finetune=None).summary["onnx"]["verdict"]
    assert verdict.startswith(
        "Not faster: weight takes 1.00 of the dense latency in ONNX Runtime on this CPU, batch 32, 1 thread"
    )


def dying(smaller, data):
    """Leaves channels of the first layer without weights, as fine-tuning with masks may: five, but not all."""
    with torch.no_grad():
        few = min(5, len(smaller[0].weight) - 1)
        smaller[0].weight[:few] = 0
        smaller[1].bias[:few], smaller[1].bias[1] = -1.0, 0.5
    return smaller


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_channels_that_no_longer_matter_leave_after_fine_tuning(granularity, tmp_path):
    result = prune(tmp_path / "out", granularity, trials=0, finetune=dying)
    params = result.summary["compaction"]["params"]
    assert params["after"] < params["before"]
    width = len(result.plan.kept.get("0.weight", {}).get(0, range(8)))
    assert result.network[0].out_channels < width
    loaded = freeprune.load(tmp_path / "out", network())
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images), result.network(images))
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert len(json.loads(metadata["channels"])["0.weight"]["0"]) == result.network[0].out_channels


def test_n_of_m_layouts_are_not_compacted(tmp_path):
    result = prune(tmp_path / "out", "nm", target={"nonzero": 0.7}, trials=0, finetune=dying)
    assert "N:M" in result.summary["compaction"]["note"]


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["grad", "inference", "cast"],
)
def test_modes_of_the_callers_code_do_not_reach_a_run(mode, tmp_path):
    given = network()
    with mode():
        result = prune(tmp_path / "out", trials=0, model=given)
        assert torch.is_grad_enabled() == (mode is not torch.no_grad and mode is not torch.inference_mode)
        freeprune.inspect(given, pair())
    assert result.summary.accuracy.final is not None


def test_the_callers_network_is_untouched(tmp_path):
    dense = network().train()
    before = {name: t.clone() for name, t in dense.state_dict().items()}
    prune(tmp_path / "out", model=dense)
    assert dense.training
    assert all(torch.equal(before[name], t) for name, t in dense.state_dict().items())


def same_files(a, b):
    """Times aside, two run folders hold the same."""
    for name in ("config.json", "plan.json", "model.safetensors", "model.onnx"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    times = {"seconds": 0, "elapsed": 0, "overhead": 0}
    strip = [[{**json.loads(x), **times} for x in (f / "trials.jsonl").read_text().splitlines()] for f in (a, b)]
    assert strip[0] == strip[1]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (a, b)]
    for summary in summaries:
        del summary["seconds"], summary["memory"], summary["onnx"]["latency_ms"], summary["onnx"]["verdict"]
    assert summaries[0] == summaries[1]


class Killed(BaseException):
    """As sudden as a signal."""


@pytest.mark.parametrize(("stage", "at"), [("search", 1), ("search", 7), ("fine-tune", 2), ("export", 0)])
def test_a_run_killed_anywhere_and_resumed_ends_as_if_it_was_not(stage, at, finished, tmp_path):
    def killer(name, done, total, note):
        if (name, done) == (stage, at):
            raise Killed

    granularity = finished.plan.granularity
    with pytest.raises(Killed):
        prune(tmp_path / "out", granularity, progress=killer)
    assert not (tmp_path / "out" / "summary.json").exists()
    prune(tmp_path / "out", granularity, resume=True)
    same_files(tmp_path / "out", finished.folder)


def test_a_network_that_gets_nothing_right_is_doubted_before_the_search(tmp_path):
    def told(name, data):
        stages = []
        prune(tmp_path / name, data=data, trials=1, finetune=None, progress=lambda *stage: stages.append(stage))
        assert stages[0][0] == "dense" and stages[0][2] == 80  # noqa: PT018
        assert stages[0][3] == "of the calibration images right"
        return stages[0][1]

    images, net = pair()[0].tensors[0], network().eval()
    best = net(images).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert told("own", (TensorDataset(images, best), TensorDataset(images, best))) > 70  # all, but for batch statistics
    wrong = (best + 1) % 3
    with pytest.warns(freeprune.FreePruneWarning, match="hardly more than by guessing; give the `weights`") as caught:
        assert told("foreign", (TensorDataset(images, wrong), TensorDataset(images, wrong))) < 10
    assert [Path(one.filename).name for one in caught] == [Path(__file__).name]


def alone():
    """The images of `pair` without their labels."""
    return tuple(part.tensors[0] for part in pair())


@pytest.mark.parametrize(
    ("turned", "asked", "weight"), [(0, None, CLASSIFICATION.distill), (1, None, 0.0), (0, 0.25, 0.25), (1, 0.25, 0.25)]
)
@pytest.mark.filterwarnings("ignore:the dense network has")
def test_training_follows_a_dense_network_that_knows_the_labels(tmp_path, turned, asked, weight):
    images, net = pair()[0].tensors[0], network().eval()
    data = TensorDataset(images, (net(images).argmax(1) + turned) % 3)
    recipe = freeprune.Recipe(epochs=1, batch_size=32, distill=asked)
    result = prune(tmp_path / "out", data=(data, data), trials=1, finetune=recipe)
    assert json.loads((result.folder / "config.json").read_text())["finetune"]["distill"] == weight


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"metric": "snip"}, "the metric 'snip' reads labels, and the data have none"),
        ({"criterion": "taylor"}, "taylor.* reads labels, and the data have none"),
    ],
)
def test_what_reads_labels_is_refused_before_the_search_where_there_are_none(tmp_path, options, sentence):
    with pytest.raises(freeprune.FreePruneError, match=sentence):
        prune(tmp_path / "out", data=alone(), **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("finetune", [None, freeprune.Recipe(epochs=1, batch_size=32)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_run_without_labels_measures_agreement_with_the_dense_network(tmp_path, granularity, finetune):
    told, net = [], network().eval()
    result = prune(
        tmp_path / "out", granularity, data=alone(), finetune=finetune, model=net, progress=lambda *stage: told.append(stage)
    )
    images = alone()[1]
    with torch.no_grad():
        dense, pruned = net(images), result.network(images)
    found, apart = result.summary.accuracy, result.summary.divergence
    assert found.dense == 1
    assert apart.dense == 0
    assert found.final == (dense.argmax(1) == pruned.argmax(1)).double().mean()
    expected = (dense.softmax(1) * (dense.log_softmax(1) - pruned.log_softmax(1))).sum(1).mean()
    assert apart.final == pytest.approx(expected.item(), rel=1e-2)
    assert (found.finetuned is None) == (finetune is None) == (apart.finetuned is None)
    assert not any(stage[0] == "dense" for stage in told)
    assert "agreement with the dense network of the pruned network" in [note for stage, *_, note in told if stage == "test"]
    kept = json.loads((result.folder / "summary.json").read_text())
    assert kept["measure"] == "agreement with the dense network"
    assert kept["images"] == {"train": 180, "test": 60, "labelled": False}
    for text in (result.shown().text(), (result.folder / "report.html").read_text()):
        assert "accuracy" not in text.replace("no accuracy was measured", "")
        assert "test agreement with the dense network" in text
        assert "KL divergence from" in text
    again = prune(tmp_path / "out", granularity, data=alone(), finetune=finetune, model=net, resume=True)
    assert again.summary == result.summary


def test_labels_change_nothing_but_what_is_measured(tmp_path):
    without, labelled = (prune(tmp_path / name, data=data, finetune=None) for name, data in (("a", alone()), ("b", pair())))
    state = without.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in labelled.network.state_dict().items())
    assert labelled.summary.measure == "accuracy"
    assert not {"measure", "divergence"} & json.loads((labelled.folder / "summary.json").read_text()).keys()


def test_a_run_without_labels_that_was_killed_goes_on(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(run_module, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path / "out", data=alone(), finetune=None)
    resumed = prune(tmp_path / "out", data=alone(), finetune=None, resume=True)
    assert resumed.summary.accuracy == prune(tmp_path / "whole", data=alone(), finetune=None).summary.accuracy


def test_an_empty_text_is_no_folder():
    with pytest.raises(freeprune.FreePruneError, match="`out` is an empty text; give a path"):
        prune("", data=alone(), finetune=None)


def test_training_needs_labels():
    with pytest.raises(freeprune.FreePruneError, match="the data own:TensorDataset have no labels to train on"):
        freeprune.train(network(), alone())


@pytest.mark.parametrize("gone", ["model.safetensors", "plan.json"])
def test_what_a_finished_run_has_lost_is_made_again(gone, tmp_path):
    first = prune(tmp_path / "out", finetune=None)
    (tmp_path / "out" / gone).unlink()
    with pytest.raises(freeprune.FreePruneError, match="was started with seed = 0, not 1"):
        prune(tmp_path / "out", finetune=None, seed=1, resume=True)
    assert (tmp_path / "out" / "summary.json").exists()
    again = prune(tmp_path / "out", finetune=None, resume=True, model=nn.DataParallel(network()))
    assert (tmp_path / "out" / gone).exists()
    assert again.summary.accuracy == first.summary.accuracy


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_the_onnx_file_of_a_finished_run_is_written_again(granularity, tmp_path, monkeypatch):
    asked = {"target": {"nonzero": 0.3}, "finetune": None}
    first = prune(tmp_path / "out", granularity, **asked)
    content = (tmp_path / "out" / "model.onnx").read_bytes()
    (tmp_path / "out" / "model.onnx").unlink()
    monkeypatch.setattr(run_module, "search", None)
    assert prune(tmp_path / "out", granularity, **asked, resume=True).summary == first.summary
    assert (tmp_path / "out" / "model.onnx").read_bytes() == content


def test_the_second_file_of_a_large_network_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "LARGEST_FILE", 1)
    first = prune(tmp_path / "out", finetune=None)
    content = (tmp_path / "out" / "model.onnx.data").read_bytes()
    (tmp_path / "out" / "model.onnx.data").unlink()
    assert prune(tmp_path / "out", finetune=None, resume=True).summary == first.summary
    assert (tmp_path / "out" / "model.onnx.data").read_bytes() == content


def test_a_finished_run_is_only_read_again(finished, monkeypatch):
    monkeypatch.setattr(run_module, "search", None)
    again = prune(finished.folder, finished.plan.granularity, resume=True)
    assert again.summary == finished.summary


def test_a_folder_with_a_run_is_kept_unless_told(tmp_path):
    out = tmp_path / "out"
    prune(out, trials=2, finetune=None)
    before = (out / "trials.jsonl").read_bytes()
    with pytest.raises(freeprune.FreePruneError, match="already holds a run; go on with `resume=True`"):
        prune(out)
    with pytest.raises(freeprune.FreePruneError, match="was started with trials = 2, of which 2 are done; trials are added"):
        prune(out, trials=1, finetune=None, resume=True)
    with pytest.raises(freeprune.FreePruneError, match="give one"):
        prune(out, resume=True, force=True)
    assert (out / "trials.jsonl").read_bytes() == before
    (out / "notes.txt").write_text("mine")
    prune(out, trials=3, finetune=None, force=True)
    assert len((out / "trials.jsonl").read_text().splitlines()) == 4
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(freeprune.FreePruneError, match="holds no run to resume"):
        prune(tmp_path / "new", resume=True)
    with pytest.raises(freeprune.FreePruneError, match="is a file"):
        prune(out / "notes.txt")


class Curves(nn.Module):
    """A layer without a matrix product: a sum of cosines of each feature, as in networks of learnable functions."""

    def __init__(self, features, outputs):
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(outputs, features, 5))
        self.height = nn.Parameter(torch.randn(outputs, features, 5) / features)

    def forward(self, x):
        return (torch.cos(self.frequency * x[:, None, :, None]) * self.height).sum((-2, -1))


def test_a_network_without_matrix_products_is_pruned_by_its_parameters(tmp_path):
    torch.manual_seed(0)
    model, images = nn.Sequential(Curves(6, 16), Curves(16, 3)), torch.randn(120, 6)
    labels = model(images).argmax(1).detach()
    given = TensorDataset(images, labels), TensorDataset(images[:40], labels[:40])
    result = prune(tmp_path / "run", model=model, data=given, target={"params": 0.5}, finetune=None)
    assert set(freeprune.inspect(model, (6,)).costs) == {"params"}
    assert "MACs" not in str(result)
    assert result.summary["cost"]["params"]["pruned"] <= 0.5 * result.summary["cost"]["params"]["dense"]
    assert result.summary["cost"]["macs"] is None
    assert "instead" not in str(result)  # of a target on latency, which nothing is known of


class OwnKernels(nn.Module):
    """Each image under kernels of its own, in as many groups as there are images and channels."""

    def __init__(self, last):
        super().__init__()
        self.seen, self.kernels, self.head, self.last = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 8, 8), nn.Linear(8, 3), last

    def forward(self, images):
        seen, kernels = self.seen(images), self.kernels(images)
        count, channels = seen.shape[:2]
        made = nn.functional.conv2d(seen.view(1, -1, 6, 6), kernels.view(-1, 1, 1, 1), groups=count * channels)
        return self.last(self.head(made.view(count, channels, 36).amax(2)))


@pytest.mark.parametrize("last", [lambda logits: logits, lambda logits: (logits, logits.T)])
def test_a_file_for_one_batch_size_is_for_that_which_is_timed(last, tmp_path):
    """It was for as many images as were scored, over which a few were timed, filled up with others."""
    torch.manual_seed(0)
    model = OwnKernels(last)
    result = prune(tmp_path / "run", model=model, data=pair()[0].tensors[0], trials=1, latency_batch=4, finetune=None)
    exported = result.summary.exported
    assert (exported.dynamic_batch, exported.batch, exported.latency_batch) == (False, 4, 4)
    assert result.summary.agreement.compact_vs_onnx < 1e-5
    assert "takes batches of 4 only, the size that `latency_batch` says" in exported.warnings[0]


def test_no_trials_mean_equal_rates(tmp_path):
    result = prune(tmp_path / "out", "weight", trials=0, finetune=None)
    assert result.summary["score"]["best"] == result.summary["score"]["uniform"]
    assert result.summary["seconds"]["per_trial"] is None
    assert np.ptp(list(result.plan.rates.values())) < 0.02


def test_no_fine_tuning_is_reported_as_none(tmp_path):
    result = prune(tmp_path / "out", trials=2, finetune=None)
    assert result.summary["accuracy"]["finetuned"] is None


def smallest(candidate, dense, batch):
    """In entries of tensors, as a tensor: what a metric has at its end, often enough."""
    return -torch.tensor(sum(tensor.numel() for tensor in candidate.tensors.values()))


def test_the_users_own_metric_decides_and_is_recorded(tmp_path):
    result = prune(tmp_path / "a", metric=smallest, finetune=None)
    scores = [json.loads(line)["score"] for line in (tmp_path / "a" / "trials.jsonl").read_text().splitlines()[1:]]
    assert len(set(scores)) > 1
    assert all(score < 0 and score.is_integer() for score in scores)
    assert result.summary["score"]["best"] == max(scores)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["metric"].endswith("test_prune:smallest")
    file = tmp_path / "mine.py"
    file.write_text("def one(candidate, dense, batch):\n    return 1.0\n")
    assert prune(tmp_path / "b", metric=f"{file}:one", finetune=None).summary["score"]["best"] == 1.0


def full(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_a_metric_that_finds_no_memory_is_no_mistake_of_its_author(tmp_path):
    sentence = r"^the device is out of memory \(CUDA .*\); lower `calibration_images` .*, and go on with `resume=True`$"
    with pytest.raises(freeprune.FreePruneError, match=sentence):
        prune(tmp_path / "out", metric=full, finetune=None)


def test_fine_tuning_of_ones_own_that_finds_no_memory_is_to_take_less(tmp_path):
    sentence = r"^the device is out .*\); let the fine-tuning function '.*:full' take smaller batches, and go on with `resume"
    with pytest.raises(freeprune.FreePruneError, match=sentence):
        prune(tmp_path / "out", trials=2, finetune=full)


def test_the_users_own_fine_tuning_is_taken_and_held_to_the_masks(tmp_path):
    def ruin(smaller, data):
        with torch.no_grad():
            for parameter in smaller.parameters():
                parameter.add_(1.0)
        return smaller.train()

    result = prune(tmp_path / "out", "weight", trials=2, finetune=ruin, compaction=False)
    assert not result.network.training
    for name, mask in result.plan.masks.items():
        weight = dict(result.network.named_parameters())[name]
        assert not weight[~mask].any()
        assert weight[mask].all()
    with pytest.raises(freeprune.FreePruneError, match="returned NoneType; return the trained network"):
        prune(tmp_path / "other", trials=2, finetune=lambda smaller, data: None)


def test_distillation_needs_no_teacher_from_the_user(tmp_path):
    plain = prune(tmp_path / "a", trials=2)
    distilled = prune(tmp_path / "b", trials=2, finetune=freeprune.Recipe(epochs=1, batch_size=32, distill=0.7))
    assert not torch.equal(plain.network[0].weight, distilled.network[0].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "channel", "strategy": "evolutoin"}, "there is no strategy 'evolutoin'; did you mean 'evolution'"),
        ({"granularity": "channel", "strategy": None}, "the strategy is None; give its name, such as 'random'"),
        ({"force": "no"}, "`force` is 'no'; give True or False"),
        ({"resume": 1}, "`resume` is 1; give True or False"),
        ({"metric": "freprune"}, "there is no metric 'freprune'; did you mean 'freeprune'"),
        ({"criterion": "l3"}, "there is no criterion 'l3'"),
        ({"warm_starts": ("deep",), "weights": "missing.safetensors"}, "there is no warm start 'deep'"),
        ({"model": "digits:cn"}, "did you mean 'digits:cnn'"),
        ({"trials": -1}, "`trials` is -1; give 0 or more"),
        ({"round_to": 0}, "`round_to=0` is no number"),
        ({"only": ["stem"]}, "`only='stem'` matches no layer"),
        ({"max_rate": 1.0}, "`max_rate` is 1"),
        ({"target": {"macs": 0.001}}, "cannot be met: the smallest network allowed has"),
        ({"target": {"macs": 0}}, "leaves nothing"),
        ({"target": ["macs=200%"]}, "more than the dense network has"),
        ({"calibration_images": 1}, "too few for batch statistics"),
        ({"model": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))}, "rejects an input of shape 1x1x8x8"),
        ({"model": nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(3))}, "'2.weight' has no size yet"),
        ({"model": nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))}, "nothing to prune"),
        ({"round_to": 64}, "no channel that may be removed .*lower `round_to=64`"),
        ({"min_width": 100}, r"may be removed \(the widest of \d groups has \d+\); use .* or lower `min_width=100`"),
        ({"max_rate": 0.01}, r"may be removed \(.*\); use .* or raise `max_rate=0.01`"),
        (
            {"metric": lambda candidate: 1.0},
            r"the metric .* takes \(candidate\); give a function of \(candidate, dense, batch\)",
        ),
        (
            {"finetune": lambda network: network},
            r"the fine-tuning function .* takes \(network\); give a function of \(network, data\)",
        ),
        ({"finetune": freeprune.Recipe}, "`finetune` is <class '.*Recipe'>; give a Recipe, a function"),
        ({"finetune": lambda network, data: (yield network)}, "is asynchronous or yields; expected one that returns"),
        ({"target": {"macs": 45}}, "'macs=45' is a number of MACs, of which .*; write a share as 'macs=60%' or 0.6"),
        ({"weights": "missing.safetensors"}, "missing.safetensors"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_nothing_behind(options, message, tmp_path):
    with pytest.raises(freeprune.FreePruneError, match=message):
        prune(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


class Literal(nn.Sequential):
    """Its code has a size that nothing else knows."""

    def forward(self, x):
        first, *others = self
        x = first(x).view(-1, 8, 8, 8)
        for layer in others:
            x = layer(x)
        return x


def test_layers_that_are_locked_are_named_where_a_target_cannot_be_met(tmp_path):
    dense = Literal(*network())
    with pytest.raises(freeprune.FreePruneError, match=r"which layers are locked, and why; locked are '0' \(.*view.*\)$"):
        prune(tmp_path / "out", model=dense, target={"macs": 0.001})


def test_what_a_granularity_does_not_do_is_a_sentence(tmp_path):
    with pytest.raises(freeprune.FreePruneError, match="there is no granularity 'chanel'; did you mean 'channel'"):
        freeprune.prune(network(), pair(), target={"macs": 0.5}, granularity="chanel", out=tmp_path / "out")
    with pytest.raises(freeprune.FreePruneError, match="'params=50%' means nothing at granularity weight"):
        prune(tmp_path / "out", "weight", target={"params": 0.5})
    with pytest.raises(freeprune.FreePruneError, match="`round_to=8` does not apply to granularity weight"):
        prune(tmp_path / "out", "weight", round_to=8)


def test_a_network_with_fewer_outputs_than_classes_is_refused_before_the_search(tmp_path):
    narrow = network()
    narrow[7] = nn.Linear(12, 2)
    with pytest.raises(
        freeprune.FreePruneError,
        match="there is a label 2, but the network has 2 classes; give labels from 0 to 1",
    ):
        prune(tmp_path / "out", model=narrow)
    assert not (tmp_path / "out").exists()


class Needs(nn.Module):
    """A forward pass that takes more than images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x, labels):
        return self.conv(x).mean((2, 3))


def mixed():
    dense = network()
    dense[3].to("meta")
    return dense


def spoilt():
    dense = network()
    with torch.no_grad():
        dense[3].weight[0, 0] = float("nan")
    return dense


def locked():
    dense = network()
    dense.lock = threading.Lock()
    return dense


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (locked, "the network cannot be copied .*lock.*make its modules hold plain parameters"),
        (Needs, r"the items hold 1 input .* and a label, .* needs \(\w+, labels\); give items that hold all"),
        (lambda: torch.jit.script(network()), "'the network' is scripted"),
        (mixed, "lie on cpu and meta; move it to one device"),
        (spoilt, "'3.weight' holds values that are not finite"),
    ],
)
def test_networks_that_cannot_be_pruned_are_sentences(make, message, tmp_path):
    with pytest.raises(freeprune.FreePruneError, match=message):
        prune(tmp_path / "out", model=make())
    assert not (tmp_path / "out").exists()


def test_load_refuses_what_is_not_the_run(finished, tmp_path):
    with pytest.raises(freeprune.FreePruneError, match="another network"):
        freeprune.load(finished.folder, NETWORKS["digits:cnn"]())
    for other in (tmp_path, finished.folder / "plan.json"):
        with pytest.raises(freeprune.FreePruneError, match=r"no plan\.json"):
            freeprune.load(other, network())
    for file in finished.folder.glob("*[ks].*s*"):
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "plan.json").write_bytes((finished.folder / "plan.json").read_bytes())
    with pytest.raises(freeprune.FreePruneError, match="is missing; finish the run"):
        freeprune.load(tmp_path, network())
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(freeprune.FreePruneError, match="does not hold the pruned network's weights"):
        freeprune.load(tmp_path, network())


@pytest.mark.parametrize(
    "call",
    [
        lambda: prune(None),
        lambda: freeprune.load(network(), "runs/mine"),
        lambda: freeprune.apply(network(), {"kept": {}}),
        lambda: freeprune.train(network(), pair(), out=3),
        lambda: freeprune.report(None),
        lambda: freeprune.inspect(network(), "1x8x8", graph=3),
    ],
)
def test_what_is_no_path_is_a_sentence(call):
    with pytest.raises(
        freeprune.FreePruneError, match=r"^`(out|folder|plan|graph)` is an? (NoneType|Sequential|dict|int); give a path$"
    ):
        call()


def test_a_home_folder_is_found_where_no_shell_looked_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    prune("~/run", trials=0, finetune=None)
    freeprune.train(network(), pair(), recipe=freeprune.Recipe(images=32, batch_size=32), out="~/dense.safetensors")
    smaller = freeprune.apply(network(), "~/run", weights="~/dense.safetensors", out="~/again")
    again = freeprune.load("~/again", network())
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in smaller.state_dict().items())
    freeprune.inspect(network(), "1x8x8", graph="~/coupling.svg")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "dense.safetensors", "again", "coupling.svg"}


def normed(layer):
    return nn.utils.weight_norm(layer)


def spectral(layer):
    return nn.utils.spectral_norm(layer)


def live_mask(layer):
    masks.l1_unstructured(layer, "weight", 0.3)
    return layer


@pytest.mark.filterwarnings("ignore:.*norm.*:FutureWarning", "ignore:.*norm.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "granularity"), [(normed, "weight"), (spectral, "weight"), (live_mask, "weight"), (live_mask, "nm")]
)
def test_weights_that_are_computed_are_pruned_or_named(change, granularity, tmp_path):
    """Through `torch.nn.utils.weight_norm`, `spectral_norm` and `prune`: the layer beside them is pruned in any case."""

    def make():
        made = network()
        made.append(nn.ReLU()).append(nn.Linear(3, 16)).append(nn.ReLU()).append(nn.Linear(16, 3))
        change(made[3])
        return made.train()

    dense = make()
    dense(torch.randn(4, 1, 8, 8))
    target = {"nonzero": 0.9 if granularity == "weight" else 0.99}
    result = prune(tmp_path / "out", granularity, model=dense, target=target, trials=2)
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = result.network(images)
        assert torch.equal(freeprune.load(tmp_path / "out", make())(images), expected)
        (output,) = ONNX_RUNTIME.outputs(tmp_path / "out" / "model.onnx", (images,))
    assert np.allclose(output, expected.numpy(), atol=1e-4)
    if change is not live_mask:
        with pytest.raises(freeprune.FreePruneError, match=r"cannot be met: .*'3\.weight_"):
            prune(tmp_path / "harsh", granularity, model=dense, target={"nonzero": 0.1}, trials=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warm_starts": ("deep",)}, "there is no warm start 'deep'"),
        ({"strategy": "knapsack", "trials": 2}, "needs . trials, and has 2"),
    ],
)
def test_what_the_strategy_refuses_leaves_nothing_behind(options, message, tmp_path):
    with pytest.raises(freeprune.FreePruneError, match=message):
        prune(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
