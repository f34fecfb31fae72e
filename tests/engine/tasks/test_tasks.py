"""Tasks: what every one of the table keeps to, each by hand, and one of the user's own through a whole run."""

import functools
import math
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from toys import network

from freeprune.engine.asked.recipe import Recipe
from freeprune.engine.asked.settings import settings
from freeprune.engine.delivery.rehearsal import rehearse
from freeprune.engine.inputs.batches import stack
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.opening import Opening
from freeprune.engine.progress import silent
from freeprune.engine.prune import finished_run
from freeprune.engine.run.job import prepare, strategy_of
from freeprune.engine.tasks import AGREEMENT, CLASSIFICATION, TASKS, Task
from freeprune.engine.tasks.choice import Choice
from freeprune.engine.tasks.segmentation import Segmentation
from freeprune.engine.training.finetuning import finetuned
from freeprune.engine.training.measuring import accuracy, measured
from freeprune.engine.training.trainer import train
from freeprune.engine.workers.base import Placement
from freeprune.errors import FreePruneError

# For each task, labels and an output of a network for six images, the first rows of which are as good as can be.
ONE_HOT = torch.eye(3)[[0, 1, 2, 1, 2, 0]] * 9
SIGNS = torch.tensor([1, -1, 1, 1, -1, 1]) * 5.0
TOKENS = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2], [0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]])
WRONG = torch.tensor([0, 0, 0, 1, 1, 1])[:, None]  # by how much the class that is told differs
EXAMPLES = {
    "agreement": (torch.eye(3)[[0, 1, 2, 0, 1, 2]] * 9, ONE_HOT),
    "embedding": (torch.eye(3)[[0, 1, 2, 0, 1, 2]] * 9, ONE_HOT),
    "classification": (torch.tensor([0, 1, 2, 0, 1, 2]), ONE_HOT),
    "binary": (torch.tensor([1, 0, 1, 0, 1, 0]), SIGNS),
    "multilabel": (torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 0]]),
                   torch.tensor([[9, -9], [-9, 9], [9, 9], [9, 9], [-9, 9], [9, -9.0]])),
    "regression": (torch.arange(12.0).view(6, 2), torch.arange(12.0).view(6, 2) + WRONG),
    "segmentation": (TOKENS.view(6, 2, 2), torch.eye(3)[(TOKENS + WRONG) % 3].movedim(2, 1).reshape(6, 3, 2, 2) * 9),
    "tokens": (TOKENS, torch.eye(3)[(TOKENS + WRONG) % 3] * 9),
    "language": (TOKENS, torch.eye(3)[(TOKENS + 1 + WRONG) % 3] * 9),
}  # fmt: skip


@pytest.fixture(params=sorted(TASKS))
def example(request):
    task = TASKS[request.param]
    given, output = EXAMPLES[request.param]
    return task, task.as_labels(given), output


def test_every_task_has_an_example():
    assert EXAMPLES.keys() == TASKS.keys()


def test_labels_are_taken_again_as_they_are(example):
    task, labels, _ = example
    assert torch.equal(task.as_labels(labels), labels)
    assert task.as_labels(torch.zeros(6, 1, 2, 3, 4, 5, dtype=torch.complex64)) is None


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.float16, torch.bfloat16]
)
def test_zeros_and_ones_are_taken_in_any_type(dtype):
    rows = torch.eye(3)[[0, 2, 1]]
    masks = rows[:, :, None, None].expand(3, 3, 2, 2)
    forms = [("classification", rows), ("multilabel", rows), ("regression", rows), ("segmentation", masks)]
    forms += [("segmentation", masks[:, 0]), ("binary", rows[:, 0]), ("classification", rows[:, 0])]
    for name, given in forms:
        assert torch.equal(TASKS[name].as_labels(given.to(dtype)), TASKS[name].as_labels(given.long()))


def test_labels_and_measure_have_names(example):
    task, _, _ = example
    assert all(isinstance(name, str) and name for name in (task.label, task.batch_of_labels, task.measure))


@pytest.mark.parametrize("training", [False, True])
def test_one_tensor_is_trained_on_and_measured(example, training):
    task, labels, output = example
    assert torch.equal(task.output(output, labels, training=training), output)
    for given in ((output,), [output], {"logits": output, "other": output[:2]}, Output(output)):
        assert torch.equal(task.output(given, labels, training=True), output)
    for other in (None, {"no": None}, output[:2], output[..., None, None, None].expand(*output.shape, 2, 2, 2)):
        with pytest.raises(FreePruneError, match="the network returned a"):
            task.output(other, labels, training=training)


@dataclass
class Output:
    """What a network returns that is neither tensor, tuple nor dictionary."""

    logits: torch.Tensor
    hidden: torch.Tensor | None = None


def test_the_loss_is_one_number_with_a_gradient_and_smaller_where_outputs_are_right(example):
    task, labels, output = example
    output = output.clone().requires_grad_()
    loss = task.loss(output, labels)
    (gradient,) = torch.autograd.grad(loss, output)
    assert loss.ndim == 0
    assert gradient.abs().sum() > 0
    assert task.loss(output[:3], labels[:3]) < loss < task.loss(output[3:], labels[3:])


def test_distillation_ends_at_the_teacher(example):
    task, _, output = example
    assert task.distillation(output, output).item() == pytest.approx(0, abs=1e-6)
    assert task.distillation(output, output.roll(1, 0)) > 0


def test_the_measure_of_batches_is_that_of_all_images_and_has_a_direction(example):
    task, labels, output = example

    def of(*parts):
        tallies = [task.tally(output[part], labels[part]) for part in parts]
        assert all(tally.dtype == torch.float64 for tally in tallies)
        return task.measured(functools.reduce(task.added, tallies))

    assert of(slice(0, 6)) == pytest.approx(of(slice(0, 2), slice(2, 5), slice(5, 6)))
    best, all_of_them, worst = (of(part) if task.larger else -of(part) for part in (slice(0, 3), slice(0, 6), slice(3, 6)))
    assert best > all_of_them > worst
    assert task.quality(output, labels) == pytest.approx(all_of_them)
    assert task.shown(of(slice(0, 6)))


def test_what_is_scored_has_a_row_for_each_image_whatever_holds_it(example):
    task, _, output = example
    for given in (output, (output,), {"logits": output}, Output(output)):
        (found,) = task.scored(given)
        assert len(found) == 6
        assert found.is_floating_point()


def test_the_loss_of_metrics_is_that_of_training(example):
    task, labels, output = example
    assert task.loss_of({"logits": output}, labels) == task.loss(output, labels)


def test_what_the_dense_network_does_is_told_as_a_count_and_a_note(example):
    task, labels, output = example
    done, total, note = task.first_look(output, labels)
    assert 0 <= done <= total == 6
    assert note
    assert task.judge is task


def test_a_network_that_fits_passes(example):
    task, labels, output = example
    task.check(output, labels, 0)
    task.check(output, None, 0)


def test_a_task_is_sent_to_workers(example):
    task, labels, output = example
    assert pickle.loads(pickle.dumps(task)).loss(output, labels) == task.loss(output, labels)


def test_classification_by_hand():
    labels, output = EXAMPLES["classification"]
    assert CLASSIFICATION.tally(output, labels).tolist() == [3, 6]
    assert CLASSIFICATION.measured(torch.tensor([3.0, 6.0])) == 0.5
    assert CLASSIFICATION.shown(0.5) == "50.00%"
    right, wrong = math.log(1 + 2 * math.exp(-9)), math.log(math.exp(9) + 2)
    assert CLASSIFICATION.loss(output, labels).item() == pytest.approx((right + wrong) / 2)
    assert CLASSIFICATION.first_look(output[:4], labels[:4]) == (3, 4, "of the calibration images right")
    assert CLASSIFICATION.doubt(output[:4], labels[:4]) is None
    doubt = CLASSIFICATION.doubt(output[3:], labels[3:])
    assert "0 of the 3 calibration images right, hardly more than by guessing" in doubt
    assert all(option in doubt for option in ("`weights`", "`image_size`", "`mean`", "`std`"))
    assert CLASSIFICATION.doubt(output[:, :, None], labels) is None
    assert CLASSIFICATION.first_look(output[:, :, None], labels) is None


@pytest.mark.parametrize("labels", [torch.full((3,), 0.5), torch.zeros(3, 2).long(), torch.tensor(1), None, "cat"])
def test_classes_are_whole_numbers(labels):
    assert CLASSIFICATION.as_labels(labels) is None


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.float64, torch.float16, torch.bool])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_labels_of_any_type_that_hold_whole_numbers_are_classes(kind, shape):
    found = CLASSIFICATION.as_labels(torch.tensor([0, 1, 1, 0]).to(kind).view(shape))
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("training", [False, True])
def test_of_several_outputs_the_first_is_trained_on(training):
    labels, output = EXAMPLES["classification"]
    assert CLASSIFICATION.output((output, None), labels, training=training) is output


def test_a_network_with_too_few_outputs_is_refused():
    _, output = EXAMPLES["classification"]
    for labels, classes in ((None, 4), (torch.tensor([3]), 0)):
        with pytest.raises(FreePruneError, match="the network has 3 outputs and the data 4 classes"):
            CLASSIFICATION.check(output, labels, classes)


def test_agreement_of_logits_by_hand():
    dense, output = EXAMPLES["agreement"]
    tally = AGREEMENT.tally(output, dense)
    assert AGREEMENT.measured(tally) == 0.5
    assert AGREEMENT.shown(0.5) == "50.00%"
    # Softmaxes of (9, 0, 0) and of (0, 9, 0): their logarithms differ by 9, where one is large and where the other is.
    large = math.exp(9) / (math.exp(9) + 2)
    small = 1 / (math.exp(9) + 2)
    assert AGREEMENT.divergence(tally) == pytest.approx((9 * large - 9 * small) / 2)
    assert AGREEMENT.divergence(AGREEMENT.tally(dense, dense)) == 0
    assert CLASSIFICATION.divergence(tally) is None
    assert AGREEMENT.loss(output, dense) == CLASSIFICATION.distillation(output, dense)


@pytest.mark.parametrize("shape", [(2, 1), (2,), (2, 3, 4)])
def test_outputs_that_are_no_logits_agree_by_their_difference(shape):
    dense = torch.ones(shape)
    assert AGREEMENT.measured(AGREEMENT.tally(dense, dense)) == 1
    output = dense * torch.tensor([1.25, -3.0]).view(2, *[1] * (len(shape) - 1))  # a quarter off, and more than all of it
    tally = AGREEMENT.tally(output, dense)
    assert AGREEMENT.measured(tally) == pytest.approx((0.75 + 0) / 2)
    assert AGREEMENT.divergence(tally) is None
    assert AGREEMENT.loss(output, dense).item() == pytest.approx((0.25**2 + 4**2) / 2)
    assert AGREEMENT.measured(AGREEMENT.tally(dense * 0, dense * 0)) == 1


def test_one_logit_by_hand():
    task, labels = TASKS["binary"], torch.tensor([1, 0, 1, 0])
    output = torch.tensor([2.0, 2.0, -2.0, -2.0])
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    for kind in (torch.int64, torch.float64, torch.bool):
        for shape in ((4,), (4, 1)):
            taken = task.as_labels(labels.to(kind).view(shape))
            for given in (output, output[:, None]):
                read = task.output(given, taken, training=False)
                assert read.shape == taken.shape == (4,)
                assert task.loss(read, taken).item() == pytest.approx((right + wrong) / 2)
                assert task.measured(task.tally(read, taken)) == 0.5
    assert task.shown(0.5) == "50.00%"
    # p = sigmoid(1/2) of the teacher, softened by 4, against q = sigmoid(-1/2)
    p = 1 / (1 + math.exp(-0.5))
    apart = 16 * (p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p))
    assert task.distillation(torch.tensor([-2.0]), torch.tensor([2.0])).item() == pytest.approx(apart, rel=1e-5)
    assert task.right(torch.tensor([-2.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, 1.0])).tolist() == [True, False, True]
    assert task.as_labels(torch.tensor([0, 2])) is None
    assert "0 of the 2 calibration images right" in task.doubt(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0]))


def test_several_labels_by_hand():
    task = TASKS["multilabel"]
    labels = task.as_labels(torch.tensor([[1, 0, 1], [0, 0, 1]]))
    output = torch.tensor([[1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])  # 2 found, 1 wrongly, 1 missed
    assert task.tally(output, labels).tolist() == [2, 1, 1]
    assert task.measured(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert task.measured(torch.zeros(3)) == 1
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert task.loss(output, labels).item() == pytest.approx((4 * right + 2 * wrong) / 6)
    assert task.as_labels(torch.tensor([[0.5, 1]])) is None
    # The same, as masks of one image of 3 positions with two classes.
    masks, logits = (x.view(1, 2, 3) for x in (labels, output))
    assert torch.equal(task.as_labels(masks.long()), masks)
    assert task.tally(logits, masks).tolist() == [2, 1, 1]
    assert task.loss(logits, masks).item() == pytest.approx((4 * right + 2 * wrong) / 6)


def test_regression_by_hand():
    task = TASKS["regression"]
    labels = task.as_labels(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    for given in (torch.tensor([1.0, 3.0, 2.0]), torch.tensor([[1.0], [3.0], [2.0]])):
        output = task.output(given, labels, training=False)
        assert task.measured(task.tally(output, labels)) == 1  # (0 + 1 + 2) / 3
        assert task.loss(output, labels).item() == pytest.approx((0 + 1 + 4) / 3)
    assert task.distillation(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])).item() == pytest.approx(16 / 25)
    assert not task.larger
    assert task.quality(torch.tensor([1.0, 3.0, 2.0]), labels) == -1


def test_the_loss_of_numbers_does_not_grow_with_their_unit():
    years, output = torch.tensor([10.0, 30.0, 50.0]), torch.tensor([12.0, 30.0, 50.0])
    losses = [TASKS["regression"].for_labels(unit * years).loss(unit * output, unit * years).item() for unit in (1, 365, 1e6)]
    assert losses == pytest.approx([4 / 3 / (800 / 3)] * 3)
    small = years / 100  # steps are not made larger either
    assert TASKS["regression"].for_labels(small).loss(output / 100, small).item() == pytest.approx(4e-4 / 3)
    assert TASKS["regression"].for_labels(torch.tensor([1, math.nan])).loss(output, years).item() == pytest.approx(4 / 3)


def test_segmentation_by_hand():
    task = TASKS["segmentation"]
    labels = torch.tensor([[[0, 0, 1], [1, 255, -1]]])
    told = torch.tensor([[[0, 1, 1], [1, 2, 0]]])
    output = torch.eye(4)[told].movedim(3, 1) * 3
    # class 0: one of two; class 1: two of three; classes 2 and 3 are nowhere that counts
    assert task.measured(task.tally(output, labels)) == pytest.approx((1 / 2 + 2 / 3) / 2)
    right, wrong = math.log(1 + 3 * math.exp(-3)), math.log(math.exp(3) + 3)
    assert task.loss(output, labels).item() == pytest.approx((3 * right + wrong) / 4)
    assert task.loss(output, labels * 0 + 255).item() == 0
    assert task.measured(task.tally(output, labels * 0 + 255)) == 1
    with pytest.raises(FreePruneError, match="there is a label 4, but the network has 4 classes"):
        task.output(output, labels * 0 + 4, training=False)
    with pytest.raises(
        FreePruneError, match=r"float32 tensor of shape \(1, 4, 2, 3\) for labels of shape \(1, 4, 6\); expected"
    ):
        task.output(output, torch.zeros(1, 4, 6).long(), training=False)
    other = Segmentation(ignore=0)
    assert other.tally(output, labels.clamp(0, 1)).tolist()[0] == [0, 2, 0, 0]  # 1 counts alone: two of three right
    single = output[:, :1] - 1  # a logit above 0 where class 0 was told: here it stands for 1
    truth = task.as_labels(torch.tensor([[[[1.0, 1, 0], [0, 0, 0]]]]))
    assert truth.shape == (1, 2, 3)
    # told 1 at two positions, of which one is; it is missed at another: 1 / 3 of class 1, 3 / 5 of class 0
    assert task.measured(task.tally(task.output(single, truth, training=False), truth)) == pytest.approx((1 / 3 + 3 / 5) / 2)
    softplus = [math.log(1 + math.exp(z)) for z in (-2, 1, -1, -1, -1, 2)]
    assert task.loss(single, truth).item() == pytest.approx(sum(softplus) / 6)


def test_a_class_255_counts_where_there_is_one():
    output = torch.eye(256)[torch.tensor([[255, 3]])].movedim(2, 1)
    task = TASKS["segmentation"]
    assert task.measured(task.tally(output, torch.tensor([[255, 4]]))) == pytest.approx(1 / 3)  # of 255, of 3 and of 4


def test_perplexity_by_hand():
    tokens, language = TASKS["tokens"], TASKS["language"]
    labels = torch.tensor([[0, 1, -100]])
    output = torch.tensor([[[math.log(3), 0.0], [math.log(3), 0.0], [5.0, 5.0]]])  # probabilities 3/4 and 1/4
    loss = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert tokens.loss(output, labels).item() == pytest.approx(loss)
    assert tokens.measured(tokens.tally(output, labels)) == pytest.approx(math.exp(loss))
    assert language.loss(output, labels).item() == pytest.approx(-math.log(1 / 4))  # of label 1 by the first output
    assert language.measured(language.tally(output, labels)) == pytest.approx(4)
    assert tokens.loss(output, labels * 0 - 100).item() == 0
    assert tokens.measured(tokens.tally(output, labels * 0 - 100)) == 1
    assert tokens.measured(torch.tensor([1e6, 1.0])) < math.inf
    assert tokens.shown(3.2) == "3.2"
    assert not tokens.larger
    (scored,) = tokens.scored({"logits": output})
    assert scored.shape == (1, 2, 3)
    with pytest.raises(FreePruneError, match="there is a label 2, but the network has 2 classes"):
        tokens.output(output, labels.where(labels < 0, 2), training=False)


def test_cosines_by_hand():
    task = TASKS["embedding"]
    dense, output = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    assert task.measured(task.tally(output, dense)) == pytest.approx(0.5)
    assert task.loss(output, dense).item() == pytest.approx(0.5)
    assert task.divergence(task.tally(output, dense)) is None
    assert task.shown(0.5) == "0.5"


def test_several_outputs_agree_by_their_mean():
    logits, dense = EXAMPLES["agreement"][::-1], (torch.ones(6, 1), torch.full((6, 1), 1.25))
    labels = AGREEMENT.as_labels({"a": logits[1], "b": dense[0]})
    output = AGREEMENT.output({"a": logits[0], "b": dense[1]}, labels, training=False)
    assert AGREEMENT.measured(AGREEMENT.tally(output, labels)) == pytest.approx((0.5 + 0.75) / 2)
    assert AGREEMENT.divergence(AGREEMENT.tally(output, labels)) is None
    more = {"a": logits[0], "b": dense[1], "side": dense[0]}
    assert len(AGREEMENT.output(more, labels, training=True)) == 2
    with pytest.raises(FreePruneError, match=r"returned a dict; expected tensors of shape \(6, 3\), \(6, 1\)"):
        AGREEMENT.output(more, labels, training=False)


# --- one of the user's own --------------------------------------------------------------------------------------------


class Regression(Task):
    """Three numbers for each image, and their squared error."""

    label = "three numbers for each image"
    batch_of_labels = "floats of shape (N, 3)"
    measure = "negative squared error"

    def as_labels(self, given):
        return given.float() if given.is_floating_point() and given.shape[1:] == (3,) else None

    def output(self, given, labels, *, training):
        if not isinstance(given, torch.Tensor) or given.shape != labels.shape:
            raise FreePruneError("the network returned no three numbers")
        return given

    def loss(self, output, labels):
        return (output - labels).square().mean()

    def tally(self, output, labels):
        return torch.tensor([-float((output.cpu() - labels).square().mean(1).sum()), len(labels)], dtype=torch.float64)

    def measured(self, tally):
        return float(tally[0] / tally[1])


REGRESSION = Regression()


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(80, 1, 8, 8, generator=generator)
    made = TensorDataset(images, images.mean((1, 2, 3))[:, None] * torch.tensor([1.0, -2.0, 3.0]))
    return made, made


def regression(pair, recipe, **options):
    asked = settings({"macs": 0.7}, {"calibration_images": 20, "seed": 0, "task": REGRESSION, **options}, trials=2)
    return prepare(GivenModel(network()), pair, asked, recipe)


def test_labels_of_another_task_are_refused(pair):
    with pytest.raises(FreePruneError, match="expected one integer for each image"):
        stack(pair[0], [0], task=CLASSIFICATION)
    stack(pair[0], [0], task=REGRESSION)
    assert load_data(pair).classes == ()
    whole = TensorDataset(torch.zeros(9, 1, 8, 8), torch.zeros(9, 3).long())
    with pytest.raises(FreePruneError, match=r"are an int64 tensor of shape \(1, 3\) in a batch; expected three numbers for"):
        stack(whole, [0], task=REGRESSION)
    with pytest.raises(FreePruneError, match=r"are an int64 tensor of shape \(8, 3\); expected floats of shape \(N, 3\)"):
        train(network(), whole, Recipe(images=8, batch_size=8), seed=0, task=REGRESSION)


def test_the_trainer_learns_another_task(pair):
    before = measured(network(), pair[0], REGRESSION)
    trained = train(network(), pair[0], Recipe(epochs=20, batch_size=16, learning_rate=0.05), seed=0, task=REGRESSION)
    after = measured(trained, pair[0], REGRESSION)
    images, labels = stack(pair[0], range(80), task=REGRESSION)
    with torch.no_grad():
        assert after == pytest.approx(-(trained(*images) - labels).square().mean().item(), rel=1e-5)
    assert before < after < 0
    assert measured(trained, pair[0], REGRESSION, batch_size=30) == pytest.approx(after, rel=1e-5)
    with pytest.raises(FreePruneError, match="labels of a batch are a float32 tensor"):
        accuracy(trained, pair[0])


def test_a_task_without_distillation_says_so(pair):
    recipe = Recipe(images=16, batch_size=16, distill=0.5)
    with pytest.raises(FreePruneError, match="this task has no distillation; use the distillation weight 0"):
        train(network(), pair[0], recipe, seed=0, teacher=network(), task=REGRESSION)


def test_a_job_holds_the_task_from_the_rehearsal_to_fine_tuning(pair):
    job = regression(pair, Recipe(images=32, batch_size=16))
    assert job.batch.labels.shape == (20, 3)
    rehearse(job, job.data.test, exports=False, progress=silent)
    tuned = finetuned(job.network, job.backend.plan(job.space.units), job, 0)
    assert not torch.equal(tuned[0].weight, job.network[0].weight)


def test_the_rehearsal_refuses_what_the_task_refuses(pair):
    job = regression(pair, Recipe(images=32, batch_size=16))

    class Wrong(Regression):
        def output(self, given, labels, *, training):
            raise FreePruneError("no such output")

    wrong = Choice(Wrong(), "wrong")
    for changed in (replace(job, choice=wrong), replace(job, choice=wrong, finetune=None)):
        with pytest.raises(FreePruneError, match="no such output"):
            rehearse(changed, job.data.test, exports=False, progress=silent)


def test_a_whole_run_with_a_task_of_ones_own(pair, tmp_path):
    job, told = regression(pair, Recipe(images=64, batch_size=16)), []
    opening = Opening(tmp_path / "out", Placement(), job.hardware, False, False, progress=lambda *x: told.append(x))
    result = finished_run(job, lambda job: strategy_of(job, "random", 0), opening)
    found = result.summary["accuracy"]
    assert found["dense"] == measured(job.network, pair[1], REGRESSION) < 0
    assert found["finetuned"] == measured(result.network, pair[1], REGRESSION)
    assert any(which == "dense" and "negative squared error on the calibration images -" in note for which, *_, note in told)
    assert any(which == "test" and note.startswith("negative squared error of the") for which, *_, note in told)
    assert isinstance(result.network, nn.Sequential)
