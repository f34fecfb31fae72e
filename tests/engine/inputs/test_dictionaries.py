"""Items that are dictionaries: which values are inputs, in which order, and which is the label."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import freeprune
from freeprune.engine.inputs.batches import stack
from freeprune.engine.inputs.collating import Shift, working
from freeprune.engine.inputs.data import load_data
from freeprune.errors import FreePruneError


class Items(Dataset):
    def __init__(self, *names, label="labels", without=(), count=30):
        self.names, self.label, self.without, self.count = names, label, without, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        item = {name: torch.full((3,), float(place + 1)) for place, name in enumerate(self.names)}
        if self.label is not None:
            item[self.label] = i % 2
        return {**item, "id": f"item {i}"} if i not in self.without else {"id": "odd"}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, pixels, mask=None, labels=None):
        return {"logits": self.body(pixels)}


class Two(Net):
    def forward(self, a, b):
        return self.body(a - b)


class Three(Net):
    def forward(self, a, b, c):
        return self.body(a - b + c)


class Alone(Net):
    def forward(self, x):
        return self.body(x)


class Gap(Net):
    def forward(self, pixels, cache=None, mask=None):
        return self.body(pixels)


class ByKeyword(Net):
    def forward(self, *, pixels, mask=None):
        return self.body(pixels)


class AnyKeyword(Net):
    def forward(self, **batch):
        return self.body(batch["pixels"])


class Anything(Net):
    def forward(self, *inputs):
        return self.body(inputs[0])


@pytest.mark.parametrize(
    ("network", "items", "places"),
    [
        (Net(), Items("pixels"), [1]),
        (Net(), Items("mask", "pixels"), [2, 1]),
        (Net(), Items("pixels", "other"), [1]),
        (Net(), Items("pixels", label=None), [1]),
        (Net(), Items("pixels", label="target"), [1]),
        (Two(), Items("b", "a"), [2, 1]),
        (Two(), Items("b", "a", label="y"), [2, 1]),
        (Gap(), Items("mask", "pixels"), [2, 1]),
        (ByKeyword(), Items("pixels"), [1]),
        (AnyKeyword(), Items("mask", "pixels"), [1, 2]),
        (Alone(), Items("image"), [1]),
        (Alone(), Items("image", label="mask"), [1]),
        (Anything(), Items("b", "a"), [1, 2]),
        (None, Items("b", "a"), [1, 2]),
    ],
)
def test_values_go_to_the_arguments_of_their_names(network, items, places):
    data = load_data((items, items), network=network)
    inputs, labels = stack(data.train, [0, 1, 2], data.collate, None)
    assert [int(x[0, 0]) for x in inputs] == places
    assert data.labelled is (items.label is not None)
    assert labels is None or labels.tolist() == [0, 1, 0]
    assert load_data(load_data((items, items)), network=network).collate == data.collate  # once the network is known


@pytest.mark.parametrize(
    ("network", "items", "sentence"),
    [
        (
            Net(),
            Items("image", "other"),
            r"dictionaries with image, other, labels, id, .* takes \(pixels, mask\); .* no 'pixels'",
        ),
        (
            Two(),
            Items("a"),
            r"dictionaries with a, labels, id, and the network's forward pass takes \(a, b\); they hold no 'b'",
        ),
        (Net(), Items(), "hold no tensor besides the label .labels, id."),
    ],
)
def test_what_the_network_wants_and_the_items_do_not_hold(network, items, sentence):
    with pytest.raises(FreePruneError, match=sentence):
        load_data((items, items), network=network)


@dataclass
class Sample:
    image: torch.Tensor
    label: int


class LabelFirst(NamedTuple):
    label: int
    image: torch.Tensor


class LabelLast(NamedTuple):
    a: torch.Tensor
    label: int


@pytest.mark.parametrize("kind", [Sample, LabelFirst])
@pytest.mark.parametrize("loaded", [False, True])
def test_fields_are_taken_by_their_names(kind, loaded):
    items = [kind(image=torch.full((3,), 7.0), label=i % 2) for i in range(12)]
    if loaded:
        items = DataLoader(items, collate_fn=joined)
    data = load_data((items, items), network=Alone())
    inputs, labels = stack(data.train, [0, 1, 2], data.collate)
    assert (inputs[0].shape, float(inputs[0].mean()), labels.tolist()) == ((3, 3), 7.0, [0, 1, 0])


def joined(items):
    image, label = torch.stack([one.image for one in items]), torch.tensor([one.label for one in items])
    return type(items[0])(image=image, label=label)


def test_a_named_tuple_with_its_label_last_goes_by_its_order():
    items = [LabelLast(torch.ones(3), i % 2) for i in range(12)]
    data = load_data((items, items), network=Net())
    assert (data.collate, data.labelled) == (None, True)


def test_an_item_that_lacks_what_the_first_one_has():
    items = Items("pixels", without=range(5, 9))
    data = load_data((items, items), network=Net())
    with pytest.raises(FreePruneError, match=r"an item has no 'pixels' \(it has id\), which the first one has"):
        stack(data.train, [6, 7], data.collate, None)


def test_a_run_on_dictionaries_without_labels(tmp_path):
    class Random(Items):
        def __getitem__(self, i):
            return {"pixels": torch.randn(3, generator=torch.Generator().manual_seed(i))}

    found = freeprune.prune(Net(), (Random(), Random()), target={"macs": 0.7}, trials=2, calibration_images=20, finetune=None,
                            out=tmp_path / "out")  # fmt: skip
    assert found.summary.measure == "agreement with the dense network"


@pytest.mark.parametrize("network", [Gap(), ByKeyword(), AnyKeyword()])
def test_inputs_go_by_keyword_where_they_must(network):
    items = Items("pixels", "mask")
    data = load_data((items, items), network=network)
    inputs, _ = stack(data.train, [0, 1], data.collate, None)
    worked = working(network, data.collate)
    expected = network(**dict(zip(data.collate.inputs, inputs, strict=True)))
    assert torch.equal(worked(*inputs), expected)
    assert torch.equal(
        worked(pixels=inputs[data.collate.inputs.index("pixels")]), expected
    )  # also by the caller's own keywords
    assert not network._forward_pre_hooks


class Tokens(Dataset):
    def __init__(self, *lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        return {"ids": list(range(self.lengths[i])), "text": "two words", "labels": i}


class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, ids):
        return self.table(ids).mean(1)


def test_lists_of_numbers_as_a_tokenizer_gives_them():
    data = load_data((Tokens(3, 3), Tokens(3)), network=Embedder())
    (ids,), labels = stack(data.train, [0, 1], data.collate, None)
    assert ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert labels.tolist() == [0, 1]


def test_sequences_of_several_lengths():
    data = load_data((Tokens(3, 5), Tokens(3)), network=Embedder())
    with pytest.raises(FreePruneError, match="'ids' has 3 entries in one item and 5 in another; let the tokenizer pad"):
        stack(data.train, [0, 1], data.collate, None)


def test_the_tokens_of_a_decoder_are_the_labels_shifted():
    assert Shift(start=7, pad=0)(torch.tensor([[1, 2, 3], [4, -100, -100]])).tolist() == [[7, 1, 2], [7, 4, 0]]


@pytest.mark.parametrize("label", ["gt", "class", "label_ids"])
def test_numbers_beside_an_image_are_no_input(label):
    items = [{"image": torch.zeros(3), "index": i, label: i % 2} for i in range(20)]
    data = load_data((items, items), network=Alone())
    assert data.collate.inputs == ("image",)
    assert data.collate.label == label


class Pairs(Items):
    """(dictionary of inputs, label)"""

    def __getitem__(self, i):
        return super().__getitem__(i), i % 2


def test_a_dictionary_of_inputs_beside_a_label_is_one_dictionary():
    data = load_data((Pairs("b", "a", label=None), Pairs("b", "a", label=None)), network=Two())
    (a, b), labels = stack(data.train, [0, 1], data.collate)
    assert (a[0, 0], b[0, 0], labels.tolist()) == (2, 1, [0, 1])


def test_what_is_neither_an_input_nor_a_label_by_its_name_is_told_where_there_is_no_label():
    items = Items("x", label="score")
    with pytest.warns(freeprune.FreePruneWarning, match="the items hold score beside the inputs, none of which is taken for"):
        data = load_data((items, items), network=Alone())
    assert not data.labelled


class WithLabel(Net):
    def forward(self, a, labels):
        return self.body(a)


class OnceAlone(Net):
    def forward(self, a, b=None):
        return self.body(a)


def tuples(*more):
    return [(torch.zeros(3), torch.ones(3), *more)] * 30


@pytest.mark.parametrize("given", [tuples(), tuples("a.png"), DataLoader(tuples(), collate_fn=default_collate)])
def test_items_of_what_the_network_cannot_do_without_have_no_label(given):
    data = load_data((given, given), network=Two())
    inputs, labels = stack(data.train, [0, 1], data.collate)
    assert not data.labelled
    assert labels is None
    assert [x.tolist() for x in inputs] == [[[0] * 3] * 2, [[1] * 3] * 2]


@pytest.mark.parametrize(
    ("network", "items"), [(Two(), tuples(1)), (OnceAlone(), tuples()), (None, tuples()), (WithLabel(), tuples())]
)
def test_the_last_value_of_others_is_the_label(network, items):
    assert load_data((items, items), network=network).labelled


def test_a_network_of_two_inputs_is_pruned_without_labels(tmp_path):
    generator = torch.Generator().manual_seed(0)
    made = TensorDataset(*torch.randn(2, 60, 3, generator=generator))
    found = freeprune.prune(
        Two(), made, target={"macs": 0.6}, trials=0, finetune=freeprune.Recipe(images=8), out=tmp_path / "r"
    )
    assert found.summary.task == "agreement"


class Keyword(Net):
    def forward(self, a, *, scale):
        return self.body(a) * scale


def test_a_label_is_not_taken_for_what_is_passed_by_its_name_alone(tmp_path):
    made = [(torch.zeros(3), i % 2) for i in range(30)]
    with pytest.raises(FreePruneError, match=r"the items hold 1 input .* a label.* needs \(a, scale\)"):
        freeprune.prune(Keyword(), (made, made), target={"macs": 0.6}, out=tmp_path / "r")


def test_fewer_inputs_than_the_network_needs_are_a_sentence(tmp_path):
    made = [(torch.zeros(3), i % 2) for i in range(30)]
    with pytest.raises(FreePruneError, match=r"the items hold 1 input .* a label.* needs \(a, b, c\)"):
        freeprune.prune(Three(), (made, made), target={"macs": 0.6}, out=tmp_path / "r")


class WithLoss(Net):
    """As many language models are: with targets it returns a loss beside the logits."""

    def forward(self, pixels, target=None):
        logits = self.body(pixels)
        return (logits, None) if target is None else (logits, nn.functional.cross_entropy(logits, target))


class LossAlone(Net):
    def forward(self, pixels, y=None, mask=None):
        return self.body(pixels) if y is None else {"loss": (self.body(pixels)[:, 0] - y).square().mean()}


@pytest.mark.parametrize(
    ("network", "items", "label"),
    [
        (WithLoss(), Items("pixels", label="target"), "target"),
        (LossAlone(), Items("pixels", label="y"), "y"),
        (LossAlone(), Items("pixels", "mask", label="y"), "y"),
    ],
)
def test_what_the_network_makes_a_loss_of_is_the_label(network, items, label):
    data = load_data((items, items), network=network)
    assert (data.collate.label, data.labelled) == (label, True)
    assert label not in data.collate.inputs
    assert stack(data.train, [0, 1], data.collate)[1].tolist() == [0, 1]


@pytest.mark.parametrize("name", ["mask", "y"])
def test_what_may_be_a_label_and_is_taken_for_an_input_is_told(name):
    class Conditioned(Net):
        def forward(self, pixels, y=None, mask=None):
            return self.body(pixels if y is None else pixels + y)

    items = Items("pixels", name, label=None)
    with pytest.warns(freeprune.FreePruneWarning, match=f"the items hold {name}, which the network takes as an input, and no"):
        data = load_data((items, items), network=Conditioned())
    assert data.collate.inputs == ("pixels", name)
    assert not data.labelled
