"""Parts of the training images, and items put into batches."""

from __future__ import annotations

import pytest
import torch
from data_sets import Plain, own
from refusals import raises
from torch.utils.data import Subset

from freeprune.engine.inputs.batches import Data, split, stack
from freeprune.engine.inputs.data import load_data
from freeprune.engine.tasks import AGREEMENT, CLASSIFICATION


def of(count):
    return Data(own(count), own(4), ("0", "1", "2", "3"), (), (), "own", False)


@pytest.mark.parametrize(("count", "aside"), [(100, 10), (10, 1), (99, 10)])
def test_split_is_a_partition(count, aside):
    train, held_out = split(of(count), 0)
    assert len(held_out) == aside
    assert sorted([*train.indices, *held_out.indices]) == list(range(count))


def test_seed_decides_the_split():
    data = of(50)
    torch.manual_seed(11)  # two different global states: neither may leak in
    first = split(data, 1)
    torch.manual_seed(22)
    state = torch.get_rng_state()
    second, other = split(data, 1), split(data, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.indices for part in first] == [part.indices for part in second]
    assert [part.indices for part in first] != [part.indices for part in other]


def test_split_that_cannot_be():
    with raises("there are 9 training images; expected at least 10"):
        split(of(9), 0)
    with raises("there is 1 training image; expected at least 10"):
        split(of(1), 0)


def test_stack_keeps_the_order():
    (images,), labels = stack(Subset(own(), [5, 6, 7]), [2, 0])
    assert images[:, 0, 0].tolist() == [[14, 15], [10, 11]]
    assert labels.tolist() == [3, 1]
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("nested", [False, True])
def test_stack_of_several_inputs(nested):
    first, second = torch.zeros(2), torch.ones(3)
    item = ((first, second), 7) if nested else (first, second, 7)
    inputs, labels = stack(Plain([item] * 4), [0, 3])
    assert [value.shape for value in inputs] == [(2, 2), (2, 3)]
    assert labels.tolist() == [7, 7]


def test_several_inputs_without_labels():
    inputs, labels = stack(Plain([((torch.zeros(2), torch.ones(3)),)] * 4), [0, 3])
    assert [value.shape for value in inputs] == [(2, 2), (2, 3)]
    assert labels is None


@pytest.mark.parametrize(
    "item",
    [(torch.zeros(2), 7, "a/b.png"), ("b", torch.zeros(2), 7), (torch.zeros(2), {"id": "b", "by": ["c"]}, 7, "d")],
)
def test_texts_beside_inputs_and_labels_are_left_out(item):
    (inputs,), labels = stack(Plain([item] * 4), [0, 3])
    assert (inputs.shape, labels.tolist()) == ((2, 2), [7, 7])


@pytest.mark.parametrize("label", ["ant", {"kind": 1, "box": torch.zeros(4)}])
def test_labels_that_are_not_read_may_be_anything(label):
    assert stack(Plain([(torch.zeros(2), label)] * 2), [0, 1], task=AGREEMENT)[1] is None


def test_a_text_in_place_of_the_label_is_the_label():
    assert stack(Plain([(torch.zeros(2), "ant")] * 2), [0, 1], task=None)[1] == ("ant", "ant")


def test_stack_that_cannot_be():
    with raises(
        "2 items of a Plain cannot be read into a batch .*expected items .image tensor, label. of one shape, or DataLoaders"
    ):
        stack(Plain([(torch.zeros(1), 0), (torch.zeros(2), 0)]), [0, 1])
    with raises("0 items of a TensorDataset cannot"):
        stack(own(), [])
    with raises(r"1 item of a TensorDataset cannot be read into a batch \(IndexError"):
        stack(own(), [12])
    with raises("has a float32 tensor .* as input; expected tensors whose first dimension is the batch: let collate_fn"):
        stack(own(), [0, 1], lambda items: (torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64)))


@pytest.mark.parametrize("count", [1, 2])
def test_images_that_a_batch_keeps_apart(count):
    """As detectors of torchvision take them."""
    items = [(torch.zeros(3, 8, 8 + i), {"boxes": torch.zeros(i, 4)}) for i in range(2)]
    with raises(f"keeps its {count} items apart, as detectors take them; expected one tensor of them: stack images"):
        stack(Plain(items), list(range(count)), lambda items: tuple(zip(*items, strict=True)), task=None)


def test_two_inputs_of_two_items_are_not_apart():
    pair = torch.zeros(2, 3), torch.ones(2, 4)
    inputs, _ = stack(own(), [0, 1], lambda items: (pair, torch.zeros(2, dtype=torch.int64)))
    assert [x.shape for x in inputs] == [(2, 3), (2, 4)]


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("cat", "a batch of a Plain has a tuple of texts as label; expected numbers, such as 0 for the first"),
        (0.5, r"labels of a Plain are a float64 tensor of shape \(1,\) in a batch"),
        (torch.zeros(2, 2), "expected one integer"),
    ],
)
def test_labels_of_another_task_than_the_one_that_is_asked_for(label, sentence):
    items = Plain([(torch.zeros(1), label)] * 3)
    with raises(sentence):
        stack(items, [0], task=CLASSIFICATION)
    assert load_data((items, items)).labelled  # which task they are of is told later
