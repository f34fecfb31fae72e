"""The task that labels and outputs tell, and sentences where the one that was asked for does not fit."""

import pytest
import torch

from freeprune.engine.run.task import doubt_of
from freeprune.engine.tasks import TASKS, Case, OwnTask
from freeprune.engine.tasks.choice import AUTO, chosen
from freeprune.errors import FreePruneError

N = 6
ZERO_ONE = torch.tensor([0, 1, 1, 0, 1, 0])
TOKENS = torch.arange(30).view(N, 5) % 7


def numbers(*shape):
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(0))


def whole(*shape, most=3):
    return torch.randint(most, (N, *shape), generator=torch.Generator().manual_seed(1))


# By name of the task, labels and outputs that tell it.
TOLD = [
    ("classification", whole(), numbers(4)),
    ("classification", whole(1), numbers(4)),
    ("classification", whole().double(), numbers(4)),
    ("classification", whole().int(), numbers(2 + 1)),
    ("classification", ZERO_ONE, numbers(2)),
    ("classification", ZERO_ONE.bool(), numbers(2)),
    ("binary", ZERO_ONE, numbers(1)),
    ("binary", ZERO_ONE.bool(), numbers()),
    ("binary", ZERO_ONE[:, None].double(), numbers()),
    ("binary", ZERO_ONE.float(), numbers(1)),
    ("multilabel", whole(4, most=2), numbers(4)),
    ("multilabel", whole(4, most=2).double(), numbers(4)),
    ("regression", numbers(), numbers(1)),
    ("regression", numbers(1).double(), numbers()),
    ("regression", numbers(3), numbers(3)),
    ("regression", whole().float(), numbers(1)),
    ("regression", numbers(1, 8, 8), numbers(1, 8, 8)),
    ("segmentation", whole(8, 8), numbers(3, 8, 8)),
    ("segmentation", whole(1, 8, 8).to(torch.uint8), numbers(3, 8, 8)),
    ("segmentation", whole(8, 8, 8), numbers(3, 8, 8, 8)),
    ("segmentation", whole(1, 8, 8, most=2).float(), numbers(1, 8, 8)),
    ("segmentation", whole(8, 8, most=2).where(whole(8, 8) > 0, 255), numbers(1, 8, 8)),
    ("classification", numbers(4).softmax(1), numbers(4)),  # shares of each class, as label smoothing gives them
    ("regression", numbers(4).softmax(1), numbers(4).softmax(1)),
    ("multilabel", whole().unsqueeze(1).eq(torch.arange(4)).long(), numbers(4)),
    ("segmentation", whole(8, 8).unsqueeze(1).eq(torch.arange(3).view(1, 3, 1, 1)).float(), numbers(3, 8, 8)),
    ("multilabel", whole(3, 8, 8, most=2).float(), numbers(3, 8, 8)),  # masks of classes that overlap, and of no class
    ("multilabel", whole(3, 8, 8, most=2).bool(), numbers(3, 8, 8)),
    ("multilabel", whole(8, 8, most=2), numbers(8, 8)),
    ("multilabel", whole(5, 3, most=2), numbers(5, 3)),
    ("regression", whole(3, 8, 8).float(), numbers(3, 8, 8)),
    ("language", TOKENS.where(TOKENS < 5, -100), numbers(5, 7)),
    ("tokens", whole(5), numbers(5, 3)),
    ("agreement", None, numbers(4)),
    ("agreement", {"boxes": numbers(4)}, numbers(4)),
    ("agreement", numbers(3), numbers(4)),
    ("agreement", whole(4, 4), numbers(3, 8, 8)),  # masks of another size
]


@pytest.mark.parametrize(("name", "labels", "output"), TOLD)
def test_labels_and_outputs_tell_the_task(name, labels, output):
    found = chosen(AUTO, Case(labels, output, (TOKENS,)))
    assert found.name == name
    assert type(found.task) is type(TASKS[name])
    assert (found.told is None) == (labels is None)
    if name != "agreement":
        task = found.task
        task.loss(task.output(output, task.as_labels(labels), training=True), task.as_labels(labels))
        asked = chosen(name, Case(labels, output, (TOKENS,)))
        assert (type(asked.task), asked.told) == (type(task), None)


@pytest.mark.parametrize(("doubtful", "named"), [(255, "0, 255"), (-1, "-1, 0, 1")])
def test_numbers_that_may_be_several_classes_are_told(doubtful, named):
    labels = whole(3, 8, 8, most=2)
    labels = labels * 255 if doubtful == 255 else labels.where(labels.cumsum(1) != 1, doubtful)
    found = chosen(AUTO, Case(labels, numbers(3, 8, 8), ()))
    assert found.name == "regression"
    assert f"; they are {named} alone: for several classes at once give zeros and ones" in found.told
    assert "alone" not in chosen(AUTO, Case(numbers(3), numbers(3), ())).told


def test_labels_that_tell_nothing_are_told():
    found = chosen(AUTO, Case(whole(4, 4), numbers(3, 8, 8), ()))
    assert "the labels, int64 (N, 4, 4), and the output, float32 (N, 3, 8, 8), fit no task of the table" in found.told


def test_a_task_that_does_not_fit_names_both_shapes_and_the_one_that_would():
    with pytest.raises(FreePruneError) as caught:
        chosen("classification", Case(whole(8, 8), numbers(3, 8, 8), ()))
    assert str(caught.value) == (
        "the labels are int64 (N, 8, 8) and the network's output is float32 (N, 3, 8, 8), which do not fit the task "
        "'classification' (integers of shape (N,), logits of shape (N, classes)); use `task='segmentation'`"
    )
    with pytest.raises(FreePruneError, match=r"give a task of your own, or use `task='agreement'`"):
        chosen("segmentation", Case(whole(4, 4), numbers(3, 8, 8), ()))
    with pytest.raises(FreePruneError, match=r"float32 \(N,\) and the network's output is no tensor, which do not fit"):
        chosen("regression", Case(numbers(), None, ()))


def test_unknown_names_and_missing_labels():
    with pytest.raises(FreePruneError, match="there is no task 'segmentatoin'; did you mean 'segmentation'"):
        chosen("segmentatoin", Case(None, numbers(4), ()))
    with pytest.raises(FreePruneError, match="the task 'regression' reads labels, and the data have none"):
        chosen("regression", Case(None, numbers(4), ()))


def test_tasks_that_read_no_labels_take_any():
    for name in ("agreement", "embedding"):
        for labels in (None, whole(), {"a": 1}):
            assert chosen(name, Case(labels, numbers(4), ())).name == name


def test_a_task_of_ones_own_takes_whatever_the_data_hold():
    own = OwnTask(loss=lambda output, labels: output.sum())
    found = chosen(own, Case({"boxes": 3}, None, ()), "own:boxes")
    assert (found.task, found.name, found.told) == (own, "own:boxes", None)


def test_one_class_for_each_image_may_be_several_labels_or_classification():
    one_hot = whole().unsqueeze(1).eq(torch.arange(4)).long()
    assert "use `task='classification'`" in chosen(AUTO, Case(one_hot, numbers(4), ())).told
    assert "classification" not in chosen(AUTO, Case(whole(4, most=2), numbers(4), ())).told
    assert torch.equal(chosen("classification", Case(one_hot, numbers(4), ())).task.as_labels(one_hot), whole())
    smoothed = 0.9 * one_hot + 0.025
    assert torch.equal(TASKS["classification"].as_labels(smoothed.half()), whole())


@pytest.mark.parametrize("name", ["binary", "classification", "multilabel"])
def test_outputs_that_are_probabilities_are_doubted(name):
    task = TASKS[name]
    labels, logits = {"binary": (ZERO_ONE, numbers()), "multilabel": (whole(4, most=2), numbers(4))}.get(
        name, (whole(), numbers(4))
    )
    labels = task.as_labels(labels)
    probabilities = logits.softmax(1) if name == "classification" else logits.sigmoid()
    assert "take" in task.doubt(probabilities, labels)
    assert "logits" in task.doubt(probabilities, labels)
    assert "logits" not in (task.doubt(logits, labels) or "")


def test_whole_numbers_for_one_output_are_no_classes():
    task = TASKS["classification"]
    with pytest.raises(
        FreePruneError, match=r"one output, and the labels are whole numbers from -1 to 1; use `task='regression'`"
    ):
        task.output(numbers(1), ZERO_ONE * 2 - 1, training=False)


def test_labels_without_a_number_are_told():
    labels = numbers()
    labels[2] = torch.nan
    with pytest.raises(FreePruneError, match="labels hold NaN or infinite values"):
        TASKS["regression"].check(numbers(1), labels, 0)


@pytest.mark.parametrize(
    "labels", [torch.where(whole(8, 8) > 0, 255, 0), torch.full((N, 8, 8), 255), torch.full((N, 8, 8), -1)]
)
def test_masks_of_which_nothing_or_background_alone_counts_are_told(labels):
    with pytest.raises(FreePruneError, match=r"255 and negative ones do not count; give each class a number"):
        TASKS["segmentation"].check(numbers(2, 8, 8), labels, 0)
    TASKS["segmentation"].check(numbers(2, 8, 8), labels.clone().index_fill_(2, torch.tensor([0]), 1), 0)


@pytest.mark.parametrize(
    ("name", "logits", "labels"),
    [
        ("segmentation", numbers(3, 8, 8), whole(8, 8)),
        ("segmentation", numbers(1, 8, 8), whole(8, 8, most=2)),
        ("tokens", numbers(5, 3), whole(5)),
    ],
)
def test_probabilities_at_every_position_are_doubted(name, logits, labels):
    squash = {"tokens": lambda y: y.softmax(2)}.get(name, lambda y: y.softmax(1) if y.shape[1] > 1 else y.sigmoid())
    assert "logits" in TASKS[name].doubt(squash(logits), labels)
    assert TASKS[name].doubt(logits, labels) is None


def test_an_output_of_another_size_than_the_classes_is_not_taken_where_one_fits():
    labels, task = whole(), TASKS["classification"]
    with pytest.raises(FreePruneError, match="logits has 24 columns, and another one 3, as many as the data have classes"):
        doubt_of(task, (numbers(24), numbers(3)), labels, labels, 3)
    doubt_of(task, (numbers(5), numbers(4)), labels, labels, 3)
    with pytest.raises(FreePruneError, match="logits has 2 columns, and another one 3"):  # and not that 2 is no label
        doubt_of(task, (numbers(2), numbers(3)), labels, labels, 3)
