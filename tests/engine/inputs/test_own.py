"""Data sets, loaders and arrays of one's own."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from data_sets import Plain, own
from refusals import raises
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from freeprune.engine.inputs.batches import stack
from freeprune.engine.inputs.data import load_data
from freeprune.errors import FreePruneError, FreePruneWarning


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1), 0

    def __len__(self):
        return 1


class Flow(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(1), 0


class Sizeless(Dataset):
    def __getitem__(self, index):
        return torch.zeros(1), 0


def doubled(items):
    return torch.stack([image for image, _ in items]) * 2, torch.tensor([label for _, label in items])


def test_a_pair_of_datasets_is_kept_as_it_is():
    train, test = own(), own(4)
    data = load_data((train, test))
    assert data.train is train
    assert data.test is test
    assert (data.mean, data.std, data.augment, data.collate) == ((), (), False, None)
    assert data.classes == ("0", "1", "2", "3")
    assert data.source == "own:TensorDataset"
    assert load_data(data) is data


def test_of_a_pair_of_loaders_the_datasets_and_the_collate_fn_are_kept():
    loaders = [DataLoader(own(), batch_size=3, collate_fn=doubled), DataLoader(own(4), collate_fn=doubled)]
    data = load_data(loaders)
    assert data.train is loaders[0].dataset
    assert data.collate is doubled
    inputs, _ = stack(data.train, [1], data.collate)
    assert torch.equal(inputs[0], torch.tensor([[[[4.0, 6.0]]]]))
    assert load_data((DataLoader(own()), own())).collate is None


def test_loaders_that_divide_one_data_set_by_their_samplers():
    whole = own(8)
    train = DataLoader(whole, batch_size=2, sampler=SubsetRandomSampler([5, 1, 6]))
    test = DataLoader(whole, batch_sampler=BatchSampler(SubsetRandomSampler([0, 7]), 2, drop_last=False))
    data = load_data((train, test))
    assert [item[0].tolist() for item in data.train] == [whole[i][0].tolist() for i in (5, 1, 6)]
    assert [item[0].tolist() for item in data.test] == [whole[i][0].tolist() for i in (0, 7)]
    assert load_data((DataLoader(whole, shuffle=True), whole)).train is whole


class FirstTwo(Sampler):
    def __iter__(self):
        return iter([0, 1])

    def __len__(self):
        return 2

    def indices(self):
        """Nothing of a sampler but its length is known."""


def test_a_sampler_of_ones_own_that_draws_fewer_is_told():
    whole = own(8)
    with pytest.warns(FreePruneWarning, match="the training loader draws 2 of its 8 items by a FirstTwo, and all of them are"):
        assert load_data((DataLoader(whole, sampler=FirstTwo()), whole)).train is whole


@pytest.mark.parametrize(
    "drawing",
    [
        {"batch_sampler": [[5, 1], [6]]},
        {"batch_sampler": (torch.tensor([5, 1]), np.array([6]))},
        {"sampler": [5, 1, 6]},
        {"sampler": torch.tensor([5, 1, 6])},
        {"batch_sampler": BatchSampler([5, 1, 6], 2, drop_last=False)},
    ],
)
def test_loaders_that_list_their_items_have_these_alone(drawing):
    whole = own(8)
    data = load_data((DataLoader(whole, **drawing), whole))
    assert [item[0].tolist() for item in data.train] == [whole[i][0].tolist() for i in (5, 1, 6)]


def test_items_that_are_listed_by_names_keep_them():
    data = load_data((DataLoader({"a": ITEM, "b": ITEM}, sampler=["b"]), own()))
    assert (len(data.train), data.train[0]) == (1, ITEM)


class Endless(Sampler):
    def __iter__(self):
        return iter([0, 1])


class Batches(Sampler):
    """As long as the data set, in batches."""

    def __iter__(self):
        return iter([[0, 1]] * 8)

    def __len__(self):
        return 8


@pytest.mark.parametrize(
    ("drawing", "name"),
    [
        ({"sampler": Endless()}, "an Endless"),
        ({"batch_sampler": BatchSampler(Endless(), 2, drop_last=False)}, "an Endless"),
        ({"batch_sampler": Batches()}, "a Batches"),
        ({"sampler": WeightedRandomSampler([1.0] * 8, 8)}, "a WeightedRandomSampler"),
    ],
)
def test_loaders_that_may_draw_other_items_than_all_are_told(drawing, name):
    whole = own(8)
    with pytest.warns(FreePruneWarning, match=f"draws an unknown part of its 8 items by {name}, and all of them are taken"):
        assert load_data((DataLoader(whole, **drawing), whole)).train is whole


ITEM = (torch.zeros(1, 2, 2), 1)


@pytest.mark.parametrize(
    ("dataset", "classes"),
    [
        (Plain([ITEM], classes=["cat", "dog"]), ("cat", "dog")),
        (Subset(Subset(Plain([ITEM] * 3, classes=["cat", "dog"]), [0, 1]), [0]), ("cat", "dog")),
        (Plain([ITEM], targets=[0, 2, 1]), ("0", "1", "2")),
        (Plain([ITEM], targets=torch.tensor([0, 1])), ("0", "1")),
        (Plain([ITEM], targets=["cat", "dog"]), ()),
        (Plain([ITEM], targets=np.array([3, 10**15])), ()),
        (Plain([ITEM]), ()),
        (Plain([ITEM], classes=np.array(["cat", "dog"])), ("cat", "dog")),
        (Plain([ITEM], classes=4), ()),
        (Plain([ITEM], classes=np.array(4)), ()),
        (Plain([ITEM], classes="cat", targets=[0, 1]), ("0", "1")),
        (Plain([ITEM], targets=[[1, 2], [3]]), ()),
        (Plain([ITEM], targets=torch.zeros(0).long()), ()),
        (Plain([ITEM], targets=lambda: 3), ()),
        (Plain([ITEM], targets=torch.ones(3, requires_grad=True)), ()),
        (TensorDataset(torch.zeros(3, 1, 2, 2), torch.zeros(3).bfloat16()), ()),
        (TensorDataset(torch.zeros(3, 1, 2, 2), torch.zeros(3, 2, requires_grad=True)), ()),
        (Subset(own(), [0, 1]), ("0", "1")),
        (Subset(Subset(Plain([ITEM] * 4, targets=[3, 0, 1, 2]), [1, 2, 3]), [0, 1]), ("0", "1")),
        (Subset(Plain([ITEM] * 4, targets=[0, 1]), [3]), ()),
    ],
)
def test_classes_are_those_that_a_dataset_tells(dataset, classes):
    assert load_data((dataset, dataset)).classes == classes


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (3, "the data are an int; expected a pair"),
        ((own(),), "the data are a tuple of 1; expected a pair"),
        ((Stream(), own()), "the training data are a Stream, which cannot be indexed"),
        ((own(), DataLoader(Stream())), "the test data are a Stream, which cannot be indexed"),
        ((DataLoader(Flow()), own()), "the training data are a Flow, which cannot be indexed"),
        ((DataLoader(Sizeless(), sampler=[0]), own()), "the training data are a Sizeless, which cannot be indexed"),
        ((own(), 3), "the test data are an int, which cannot be indexed"),
        ((own(), Plain([])), "the test dataset is empty"),
        ((DataLoader(own(), batch_size=None), own()), "the training loader has batch_size=None"),
        ((DataLoader(own(), collate_fn=doubled), DataLoader(own())), "different collate_fn"),
        ((Plain([{}]), own()), "items of a Plain are dictionaries that hold no tensor besides the label"),
        ((Plain([{"labels": 1, "name": "a"}]), own()), "dictionaries that hold no tensor besides the label .labels, name."),
        (
            (Plain([torch.zeros(1)]), own()),
            "items of the test data have labels and those of the training data none; give labels",
        ),
        ((own(), torch.zeros(3, 1)), "items of the training data have labels and those of the test data none"),
        ((torch.zeros(3, 1, 2, 2), torch.zeros(3).long()), r"the second are labels, give a pair of `TensorDataset\(inputs"),
        ((torch.zeros(3, 2), torch.zeros(3, 3)), r"are a float32 tensor of shape \(3, 2\) and the test data a .* \(3, 3\);"),
        (torch.tensor(1.0), "the training data are a float32 tensor .*, which cannot be indexed"),
        (torch.zeros(0, 1), "the training dataset is empty"),
        (own(), "the data are one data set with labels, a TensorDataset; expected a pair"),
        (Stream(), "the training data are a Stream, which cannot be indexed"),
        ((Plain([({}, 1)]), own()), "dictionaries that hold no tensor besides the label"),
        ((Plain([(object(), 1)]), own()), "1 item of a Plain cannot be read into a batch .TypeError"),
    ],
)
def test_own_datasets_that_will_not_do(source, sentence):
    with raises(sentence) as caught:
        load_data(source)
    assert "\n" not in str(caught.value)


def alone(count=12):
    """Images of one pixel, each with its number as its value."""
    return torch.arange(float(count)).view(count, 1, 1, 1)


def seen(part, data):
    """The values of all images of a part."""
    (images,), labels = stack(part, range(len(part)), data.collate)
    assert labels is None
    return images.flatten().tolist()


class Numbered(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return alone()[index]


@pytest.mark.parametrize("form", [alone(), TensorDataset(alone()), Numbered(), DataLoader(Numbered(), batch_size=5)])
def test_one_set_without_labels_keeps_a_fifth_for_the_test(form):
    data = load_data(form)
    assert not data.labelled
    assert (data.classes, len(data.train), len(data.test)) == ((), 10, 2)
    assert sorted(seen(data.train, data) + seen(data.test, data)) == list(range(12))
    again = load_data(form)
    assert seen(again.test, again) == seen(data.test, data)


@pytest.mark.parametrize("form", [alone, lambda n=12: TensorDataset(alone(n)), lambda n=12: DataLoader(Plain(list(alone(n))))])
def test_a_pair_without_labels(form):
    data = load_data((form(), form(3)))
    assert not data.labelled
    assert (seen(data.train, data), seen(data.test, data)) == (list(range(12)), [0, 1, 2])


def test_a_loader_without_labels_keeps_its_collate_fn():
    data = load_data(DataLoader(Plain(list(alone())), collate_fn=lambda items: torch.stack(items) * 2))
    assert sorted(seen(data.train, data) + seen(data.test, data)) == list(range(0, 24, 2))


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_inputs_and_labels_side_by_side_are_no_data_sets(kind):
    inputs, labels = kind(np.zeros((20, 3, 4, 4), np.float32)), kind(np.zeros(20, np.int64))
    with pytest.raises(FreePruneError, match="if the second are labels, give a pair of `TensorDataset"):
        load_data((inputs, labels))


def test_columns_and_parts_by_name_are_data():
    x, y = np.zeros((20, 3, 5, 5), np.float32), np.arange(20) % 2
    data = load_data(((x, y), (x[:4], y[:4])))
    assert (len(data.train), len(data.test), data.labelled, data.classes) == (20, 4, True, ("0", "1"))
    data = load_data({"train": TensorDataset(torch.tensor(x), torch.tensor(y)), "validation": (x[:4], y[:4]), "more": None})
    assert (len(data.train), len(data.test)) == (20, 4)
    with raises("an array of the data is a ndarray"):
        load_data(((x, y.astype(str)), (x, y)))
    with raises("the data are a dictionary of train, dev; expected the parts train and test, val, valid or validation"):
        load_data({"train": (x, y), "dev": (x, y)})
    with raises("the data are a tuple of 3; expected a pair"):
        load_data((x, x, x))


def test_arrays_are_taken_in_any_byte_order_and_direction():
    x = np.arange(60, dtype=np.float32).reshape(15, 2, 2)
    locked = x.copy()
    locked.setflags(write=False)  # as the array of a file that is mapped into memory
    for given in (x.astype(">f4"), x[::-1], x[:, :, ::-1], locked):
        data = load_data(((given, np.arange(15)), (given, np.arange(15))))
        np.testing.assert_array_equal(data.train.tensors[0], given)
        assert torch.equal(load_data(given).train.dataset.tensors[0], data.train.tensors[0])


def test_labels_beside_an_array_may_be_a_list():
    x = np.zeros((12, 3, 2, 2), np.float32)
    for labels in ([0, 1] * 6, tuple(np.arange(12)), [torch.tensor(1)] * 12):
        data = load_data(((x, labels), (x, labels)))
        assert (len(data.train), data.labelled, len(data.train.tensors[1])) == (12, True, 12)
    with raises("an array of the data is a list of texts .*; expected numbers"):
        load_data(((x, ["cat"] * 12), (x, ["cat"] * 12)))
    with raises("the arrays of the training data have .12, 11. rows; expected one label for each input"):
        load_data(((x, [0] * 11), (x, [0] * 12)))


def test_loaders_whose_batches_are_made_by_one_line_of_code_are_one_pair():
    items = [(torch.zeros(3, 5, 5), 1)] * 20

    def loader(scale):
        return DataLoader(items, collate_fn=lambda some: (scale * torch.stack([x for x, _ in some]), torch.ones(len(some))))

    assert load_data((loader(2), loader(2))).collate is not None
    with raises("different collate_fn"):
        load_data((loader(2), loader(3)))


@pytest.mark.parametrize("kind", [tuple, dict])
@pytest.mark.parametrize("shape", [(3, 2, 2), (8,), ()])
def test_inputs_and_labels_of_one_shape_are_side_by_side(kind, shape):
    x = np.random.default_rng(0).normal(size=(12, *shape)).astype(np.float32)
    pair = ((x, x + 1), (x[:4], x[:4] + 1))
    data = load_data(dict(zip(("train", "test"), pair, strict=True)) if kind is dict else pair)
    assert (len(data.train), len(data.test), data.labelled) == (12, 4, True)
    np.testing.assert_array_equal(data.test[1][1], x[1] + 1)
    tests = load_data((TensorDataset(*map(torch.tensor, pair[0])), pair[1])).test
    assert len(tests) == 4


def test_tuples_and_lists_of_items_of_one_shape_stay_items():
    images = tuple(torch.randn(12, 3, 2, 2))
    for train, test in ((images, images[:3]), (list(images), images[:3]), (list(images), list(images[:2]))):
        data = load_data((train, test))
        assert (len(data.train), len(data.test), data.labelled) == (12, len(test), False)


def test_labels_beside_an_array_may_be_lists_of_lists():
    x = np.zeros((12, 3, 2, 2), np.float32)
    for labels in ([[0, 1]] * 12, [(0.5, 1.0)] * 12, [[[0, 1], [1, 0]]] * 12):
        data = load_data(((x, labels), (x, labels)))
        assert torch.equal(data.train.tensors[1], torch.tensor(labels))
    with raises("the arrays of the training data have .12, 11. rows"):
        load_data(((x, [[0, 1]] * 11), (x, [[0, 1]] * 11)))


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, items):
        return scaled(items, self.scale)


def scaled(items, scale):
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


@pytest.mark.parametrize("kind", [Scaled, lambda scale: partial(scaled, scale=scale), lambda scale: partial(Scaled(scale))])
def test_collators_of_one_class_and_state_are_one(kind):
    shared = torch.ones(2)
    for one, other in ((2, 2), (shared, shared), (Scaled(1), Scaled(1))):
        load_data((DataLoader(own(), collate_fn=kind(one)), DataLoader(own(), collate_fn=kind(other))))
    for one, other in ((2, 3), (torch.ones(2), torch.zeros(2)), (Scaled(1), Scaled(2))):
        with raises("different collate_fn"):
            load_data((DataLoader(own(), collate_fn=kind(one)), DataLoader(own(), collate_fn=kind(other))))
