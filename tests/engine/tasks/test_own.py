"""A task of plain functions: what it lacks is absent, what it gives is checked, and it goes through whole runs."""

import json
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import TensorDataset

import freeprune
from freeprune.engine.command.cli import main
from freeprune.engine.tasks import AGREEMENT, TASKS, OwnTask, Task, own_task
from freeprune.errors import FreePruneError


def error(output, labels):
    return (output - labels).square().mean()


def test_what_is_not_given_is_absent():
    lone = OwnTask(outputs=lambda output: output)
    assert (lone.trains, lone.labelled, lone.measure, lone.unit, lone.larger) == (False, False, AGREEMENT.measure, "%", True)
    trained = OwnTask(loss=error)
    assert (trained.trains, trained.labelled, trained.judge.labelled) == (True, True, False)
    measured = OwnTask(measure=error, unit="px", larger=False)
    assert (measured.trains, measured.judge, measured.measure, measured.shown(2.5)) == (False, measured, "error", "2.5 px")
    assert OwnTask(measure=error, name="mean error").measure == "mean error"
    with pytest.raises(FreePruneError, match="has none of loss, measure, outputs"):
        OwnTask()
    with pytest.raises(FreePruneError, match="has no loss; give it one"):
        measured.loss(torch.zeros(2), torch.zeros(2))


def test_functions_with_other_arguments_are_refused():
    with pytest.raises(FreePruneError, match=r"the task's loss takes \(output\); give a function of \(output, labels\)"):
        OwnTask(loss=lambda output: output)
    with pytest.raises(FreePruneError, match=r"the task's outputs takes \(a, b\); give a function of \(output\)"):
        OwnTask(outputs=lambda a, b: a)
    with pytest.raises(FreePruneError, match="the task's measure is a str; give a function"):
        OwnTask(measure="accuracy")
    OwnTask(loss=lambda *all_of_them, scale=2: all_of_them[0])  # takes two as well


@pytest.mark.parametrize(
    ("part", "returned", "sentence"),
    [
        ("loss", torch.zeros(3), r"the task's loss returned a float32 tensor of shape \(3,\); return one number"),
        ("loss", 1.0, "the task's loss returned a float; return one number, as a tensor"),
        ("measure", "good", "the task's measure returned a str; return one number"),
        ("measure", torch.zeros(2), r"the task's measure returned a float32 tensor of shape \(2,\)"),
        ("measure", float("nan"), "the task's measure, measure, is nan on 4 images; return a finite number"),
        ("measure", float("inf"), "is inf on 4 images"),
        ("outputs", torch.zeros(4).long(), "returned an int64 tensor .*; return a tensor of floating numbers"),
        ("outputs", None, "the task's function for the outputs returned a NoneType"),
    ],
)
def test_what_functions_return_is_checked(part, returned, sentence):
    def measure(*_):
        return returned

    task, output = OwnTask(**{part: measure}), torch.zeros(4, 2)
    use = {
        "loss": lambda: task.loss(output, output),
        "measure": lambda: task.measured(task.tally(output, output)),
        "outputs": lambda: task.scored(output),
    }
    with pytest.raises(FreePruneError, match=sentence):
        use[part]()


def test_an_error_in_a_function_is_told_with_its_line():
    def loss(output, labels):
        raise KeyError("boxes")

    with pytest.raises(FreePruneError, match=r"the task's loss '.*loss' failed \(KeyError: 'boxes' at .*test_own.py:\d+\)"):
        OwnTask(loss=loss).loss(torch.zeros(1), None)


Pair = namedtuple("Pair", ["a", "b"])


@dataclass
class Output:
    a: torch.Tensor
    b: torch.Tensor


class Dictionary(dict):
    """As libraries have them, which no pytree knows."""


@pytest.mark.parametrize("make", [lambda a, b: (a, b), Pair, Output, lambda a, b: Dictionary(a=a, b={"c": b})])
def test_the_measure_gets_all_test_images_in_the_types_of_the_network(make):
    seen = []
    task = OwnTask(measure=lambda output, labels: seen.append((output, labels)) or 1.0)
    parts = [torch.arange(6.0).view(6, 1)[part] for part in (slice(0, 4), slice(4, 6))]
    tallies = [task.tally(make(x, x + 1), {"y": x + 2, "boxes": [[float(v)] for v in x]}) for x in parts]
    assert task.measured(task.added(*tallies)) == 1
    ((output, labels),) = seen
    whole = torch.arange(6.0).view(6, 1)
    expected = make(whole, whole + 1)
    assert type(output) is type(expected)
    assert str(output) == str(expected)
    assert torch.equal(labels["y"], whole + 2)
    assert labels["boxes"] == [[float(v)] for v in range(6)]


@pytest.mark.parametrize("counts", [(3, 2), (3, 3)])
def test_the_measure_gets_outputs_that_have_their_images_second(counts):
    """As those of a recurrent layer, `(T, N, C)`: they were joined along their steps, in silence where batches are alike."""
    seen = []
    task = OwnTask(None, lambda output, labels: seen.append((output, labels)) or 1.0, lambda output: output[0].movedim(1, 0))
    both = [torch.rand(4, n, 2) for n in counts]
    task.measured(task.added(*(task.tally((x, x[0]), x[0, :, :1].T.long()) for x in both)))
    (((steps, rows), labels),) = seen
    assert torch.equal(steps, torch.cat(both, dim=1))
    assert torch.equal(rows, torch.cat([x[0] for x in both]))
    assert labels.shape == (1, sum(counts))


def test_outputs_that_differ_in_size_from_batch_to_batch_are_a_sentence():
    task = OwnTask(measure=lambda output, labels: 1.0)
    tallies = [task.tally((torch.zeros(n, 1), torch.zeros(n, n)), torch.zeros(n)) for n in (3, 2)]
    with pytest.raises(FreePruneError, match=r"shape \(3, 3\) of one batch does not go together with .*\(2, 2\) of another"):
        task.measured(task.added(*tallies))


def test_lists_of_tensors_by_row_are_joined_and_lists_by_image_appended():
    seen = []
    task = OwnTask(measure=lambda output, labels: seen.append(labels) or 1.0)
    both = [task.tally(torch.zeros(n, 1), [torch.ones(n), torch.zeros(n, 2)]) for n in (3, 2)]
    boxes = [task.tally(torch.zeros(n, 1), [torch.ones(i, 4) for i in range(n)]) for n in (3, 2)]
    for tallies in (both, boxes):
        task.measured(task.added(*tallies))
    assert [x.shape for x in seen[0]] == [(5,), (5, 2)]
    assert [len(x) for x in seen[1]] == [0, 1, 2, 0, 1]


def test_a_dictionary_says_all_of_a_task_and_nothing_else():
    task = own_task({"measure": error, "larger": False, "unit": "px"})
    assert (task.larger, task.shown(2.5)) == (False, "2.5 px")
    with pytest.raises(FreePruneError, match="is a dictionary with 'mesure'; did you mean 'measure'"):
        own_task({"loss": error, "mesure": error})


def test_a_loss_as_a_class_or_in_place_of_a_task_is_told():
    with pytest.raises(FreePruneError, match=r"loss is the class CrossEntropyLoss; give an object of it, CrossEntropyLoss\(\)"):
        OwnTask(nn.CrossEntropyLoss)
    with pytest.raises(FreePruneError, match=r"a loss alone is freeprune.OwnTask\(loss\)"):
        own_task(nn.CrossEntropyLoss())
    assert OwnTask(nn.CrossEntropyLoss(), lambda output, labels: 0.5).measure == "measure"


def test_objects_with_such_functions_are_tasks():
    assert own_task(TASKS["binary"]) is TASKS["binary"]
    assert isinstance(own_task(type(TASKS["binary"])), type(TASKS["binary"]))
    for given in (SimpleNamespace(loss=error, unit="px"), {"loss": error}):
        assert own_task(given).trains
    for other in (3, object(), {"unit": "px"}):
        with pytest.raises(FreePruneError, match=r"expected a name, a freeprune\.OwnTask, or an object with functions loss,"):
            own_task(other)


# --- whole runs -------------------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """Which of three classes, and where, in a dictionary."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.kind, self.place = nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x):
        features = self.body(x).mean((2, 3))
        return {"kind": self.kind(features), "place": self.place(features)}


SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from freeprune.engine.inputs.batches import default_collate

class Items(torch.utils.data.Dataset):
    def __init__(self, seed):
        g = torch.Generator().manual_seed(seed)
        self.x, self.kind = torch.randn(60, 1, 8, 8, generator=g), torch.arange(60) % 3
        self.place = torch.randn(60, 2, generator=g)

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return self.x[i], {"kind": self.kind[i], "place": self.place[i]}

def loss(output, labels):
    return F.cross_entropy(output["kind"], labels["kind"]) + F.mse_loss(output["place"], labels["place"])

def error(output, labels):
    assert output["kind"].shape == (60, 3)  # of all test images
    return (output["place"] - labels["place"]).abs().mean()

class both:
    loss, measure = staticmethod(loss), staticmethod(error)
    larger, unit, name = False, "px", "distance"

def data():
    return Items(0), Items(1)
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "two_heads.py"
    path.write_text(SOURCE)
    return path


def test_a_network_with_two_heads_by_the_command_line(source, tmp_path):
    """Labels are a dictionary, outputs are one; both heads are scored, trained, measured and exported."""
    network = f"{__file__}:TwoHeads"
    words = [
        "prune", network, "--data", f"{source}:data", "--task", f"{source}:both", "--target", "macs=60%", "--trials", "4",
        "--calibration-images", "20", "--finetune-images", "64", "--batch-size", "16", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "test distance (less is better)" in done.stdout
    assert " px" in done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["measure"], summary["unit"], summary["larger"]) == ("distance", "px", False)
    assert summary["task"] == f"{source}:both"
    assert summary["onnx"]["bytes"]
    assert "distance (less is better)" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["task"] == f"{source}:both"
    resumed = CliRunner().invoke(main, [*words, "--resume"], catch_exceptions=False)
    assert resumed.exit_code == 0, resumed.stderr


def pair():
    generator = torch.Generator().manual_seed(0)
    made = TensorDataset(torch.randn(60, 1, 8, 8, generator=generator), torch.randn(60, 2, generator=generator))
    return made, made


FEW = {"target": {"macs": 0.6}, "trials": 2, "calibration_images": 20}


def test_without_a_loss_there_is_no_training_and_without_a_measure_agreement(tmp_path):
    task = OwnTask(outputs=lambda output: output["place"])
    result = freeprune.prune(TwoHeads(), pair(), task=task, out=tmp_path / "out", **FEW)
    assert result.summary.accuracy.finetuned is None
    assert result.summary.measure == "agreement with the dense network"
    assert result.summary.accuracy.dense == 1
    with pytest.raises(FreePruneError, match="the task 'own:OwnTask' has no loss, so that the built-in training"):
        freeprune.prune(TwoHeads(), pair(), task=task, out=tmp_path / "no", finetune=freeprune.Recipe(epochs=1), **FEW)
    assert not (tmp_path / "no").exists()


def test_metrics_that_read_a_loss_need_one(tmp_path):
    task = OwnTask(measure=lambda output, labels: 1.0)
    for option, sentence in (({"metric": "snip"}, "the metric 'snip'"), ({"criterion": "taylor"}, "the criterion 'taylor'")):
        with pytest.raises(FreePruneError, match=f"{sentence} reads the loss of labels, and the task 'own:OwnTask' has none"):
            freeprune.prune(TwoHeads(), pair(), task=task, out=tmp_path / "out", **FEW, **option)
    own = OwnTask(loss=lambda output, labels: (output["place"] - labels).square().mean())
    for option in ({"metric": "snip"}, {"criterion": "taylor"}):
        freeprune.prune(TwoHeads(), pair(), task=own, out=tmp_path / "out", force=True, finetune=None, **FEW, **option)


def test_a_measure_that_is_not_finite_is_refused_before_the_search(tmp_path):
    task = OwnTask(measure=lambda output, labels: float("nan"))
    with pytest.raises(FreePruneError, match="is nan on 60 images; return a finite number"):
        freeprune.prune(TwoHeads(), pair(), task=task, out=tmp_path / "out", **FEW)
    assert not (tmp_path / "out").exists()


def test_percents_that_are_no_fractions_are_doubted(tmp_path):
    task = OwnTask(measure=lambda output, labels: 43.2, unit="%")
    with pytest.warns(freeprune.FreePruneWarning, match="is 43.2 with the unit '%', which shows 1 as 100%; return 0.432, or"):
        freeprune.prune(TwoHeads(), pair(), task=task, out=tmp_path / "out", **FEW)


@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        (
            lambda output: torch.ones(4, 3),
            "a float32 tensor of shape .4, 3. for 8 images and .* for 4; expected a row for each",
        ),
        (lambda output: output["kind"][:0], r"shape \(0, 3\) for 8 images and .* for 4; expected a row for each image"),
        (lambda output: output["kind"].mean(0), r"for 8 images and .* for 4; expected a row for each image"),
        (lambda output: output["kind"].T, "a row for each image: its images lie along dimension 1, so give a task"),
        (lambda output: output["kind"][:-1], r"shape \(7, 3\) for 8 images"),
        (
            lambda output: torch.ones(len(output["kind"]), 3),
            "is the same for all of 8 images, a float32 tensor of shape .8, 3.",
        ),
    ],
)
def test_outputs_that_say_nothing_of_single_images_are_refused(outputs, sentence, tmp_path):
    with pytest.raises(FreePruneError, match=sentence):
        run(tmp_path, outputs)


def run(folder, outputs):
    task = OwnTask(outputs=outputs)
    made = TensorDataset(torch.randn(40, 1, 8, 8), torch.zeros(40))
    return freeprune.prune(
        TwoHeads(), (made, made), task=task, target={"macs": 0.8}, trials=0, finetune=None, out=folder / "run"
    )


@pytest.mark.parametrize("outputs", [lambda output: output["kind"].repeat_interleave(5, 0), lambda output: output["kind"]])
def test_outputs_with_rows_for_parts_of_images_are_taken(outputs, tmp_path):
    run(tmp_path, outputs)


def test_a_measure_is_tried_on_all_test_images(tmp_path):
    task = OwnTask(measure=lambda output, labels: 0.5 if len(labels) > 10 else float("nan"))
    assert freeprune.prune(TwoHeads(), pair(), task=task, out=tmp_path / "out", **FEW).summary.accuracy.final == 0.5


def test_a_study_ranks_by_a_measure_of_either_direction(tmp_path):
    """The same study by a measure and by its negative, of which less is better."""

    def near(output, labels):
        return -(output["place"] - labels).abs().mean()

    def far(output, labels):
        return (output["place"] - labels).abs().mean()

    def loss(output, labels):
        return (output["place"] - labels).square().mean()

    network = TwoHeads()
    studies = [
        freeprune.correlate(
            network, pair(), task=task, target={"macs": 0.6}, candidates=5, seeds=1, metrics=["freeprune"], round_to=1,
            finetune=freeprune.Recipe(images=64, batch_size=16), calibration_images=20, out=tmp_path / name,
        )
        for name, task in {"near": OwnTask(loss, near), "far": OwnTask(loss, far, unit="px", larger=False)}.items()
    ]  # fmt: skip
    one, other = (study.metrics["freeprune"] for study in studies)
    assert one.spearman == other.spearman
    assert one.regret.value == pytest.approx(other.regret.value)
    assert "far (less is better) after fine-tuning" in str(studies[1])
    assert "regret, px" in str(studies[1])
    assert "far (less is better)" in (tmp_path / "far" / "report.html").read_text()


def test_a_comparison_has_the_unit_at_the_head_of_its_column(tmp_path):
    def loss(output, labels):
        return (output["place"] - labels).square().mean()

    task = OwnTask(loss, lambda output, labels: 2.5, name="distance", unit="px", larger=False)
    found = freeprune.compare(
        TwoHeads(), pair(), task=task, target={"macs": 0.6}, strategies="random", trials=2, seeds=1, calibration_images=20,
        finetune=freeprune.Recipe(images=32, batch_size=16), out=tmp_path / "out",
    )  # fmt: skip
    assert "distance (less is better), px" in " ".join(str(found).split())
    assert "2.50" in str(found)
    assert "distance (less is better), px" in (tmp_path / "out" / "report.html").read_text()


def test_a_class_with_methods_is_a_task():
    class Mine:
        def loss(self, output, labels):
            return output.mean()

    assert own_task(Mine).trains

    class Needs(Mine):
        def __init__(self, weight):
            self.weight = weight

    with pytest.raises(FreePruneError, match=r"making an object of the task failed \(TypeError: .*'weight'"):
        own_task(Needs)

    class Half(Task):
        def loss(self, output, labels):
            return output.mean()

    with pytest.raises(FreePruneError, match=r"making an object of the task failed \(TypeError: .*abstract class"):
        own_task(Half)


def test_a_loss_without_a_gradient_is_told():
    output = torch.randn(4, 3, requires_grad=True)
    with pytest.raises(FreePruneError, match="the task's loss has no gradient"):
        OwnTask(lambda output, labels: output.mean().detach()).loss(output, None)


def test_a_measure_gets_the_states_inside_a_network_too():
    task = OwnTask(measure=lambda output, labels: float(len(output["hidden_states"]) + len(output["logits"])))
    tally = task.tally({"logits": torch.zeros(3, 2), "hidden_states": torch.zeros(3, 4)}, None)
    assert task.measured(task.added(tally, tally)) == 12
