"""Networks whose only argument takes all inputs: a dictionary, or a tuple."""

from collections import namedtuple

import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

import freeprune
from freeprune.common import Values
from freeprune.engine.inputs.batches import stack
from freeprune.engine.inputs.collating import working
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.example import example_of
from freeprune.errors import FreePruneError


class InDictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 16), nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, batch):
        return self.added(batch["left"], batch["right"])

    def added(self, left, right):
        return self.head(torch.relu(self.left(left)) + torch.relu(self.right(right)))


class InTuple(InDictionary):
    def forward(self, pair):
        return self.added(pair[0], pair[1])


class OneOfMany(InDictionary):
    def forward(self, batch, scale=1.0):
        return self.added(batch["left"], batch["left"]) * scale


class AllOfThem(InDictionary):
    def forward(self, batch):
        return self.added(*batch.values())


class EitherWay(InDictionary):
    def forward(self, batch):
        left = batch["left"]
        return self.added(left, batch.get("right", left))


class ByAttribute(InDictionary):
    def forward(self, batch):
        return self.added(batch.left, batch.right)


class OfTheSameName(InDictionary):
    def forward(self, left):
        return self.added(left["left"], left["right"])


class WritesIntoIt(InDictionary):
    def forward(self, batch):
        batch["made"] = self.added(batch["left"], batch["right"])
        return batch["made"]


class Pops(InDictionary):
    def forward(self, batch):
        batch = Values(batch)
        return self.added(batch.pop("left"), batch.pop("right"))


class SomeByPrefix(InDictionary):
    def forward(self, batch):
        return self.added(batch["left"], sum(x for name, x in batch.items() if name.startswith("r")))


class WithMask(InDictionary):
    def forward(self, batch):
        return self.added(batch["left"], batch["mask"])


class Decorated(InDictionary):
    def forward(self, *inputs, **options):
        return InDictionary.forward(self, *inputs, **options)


class WithItsLoss(InDictionary):
    def forward(self, batch):
        return nn.functional.cross_entropy(self.added(batch["left"], batch["right"]), batch["label"])


def items(*names, count=40, label="label"):
    values = torch.randn(count, len(names), 3, generator=torch.Generator().manual_seed(0))
    return [{**dict(zip(names, row, strict=True)), label: i % 2} for i, row in enumerate(values)]


def beside_labels(made, kind):
    """The same items with their inputs, a dictionary or a tuple, beside the label."""
    return [(kind(x for x in item.items() if x[0] != "label"), item["label"]) for item in made]


def tuples(count=40):
    return [((item["left"], item["right"]), item["label"]) for item in items("left", "right", count=count)]


IN_ONE = [
    (InDictionary(), items("left", "right"), ["left", "right"]),
    (InDictionary(), items("right", "other", "left"), ["right", "left"]),
    (InDictionary(), beside_labels(items("left", "right"), dict), ["left", "right"]),
    (OneOfMany(), items("left"), ["left"]),
    (OneOfMany(), items("left", "right"), ["left"]),
    (AllOfThem(), items("a", "b"), ["a", "b"]),
    (EitherWay(), items("left", "right"), ["left", "right"]),
    (ByAttribute(), items("left", "right", "other"), ["left", "right"]),
    (OfTheSameName(), items("left", "right", "other"), ["left", "right"]),
    (OfTheSameName(), items("right", "left"), ["right", "left"]),
    (WritesIntoIt(), items("left", "right"), ["left", "right"]),
    (Pops(), items("left", "right"), ["left", "right"]),
    (SomeByPrefix(), items("left", "right"), ["left", "right"]),
    (Decorated(), items("left", "right", "other"), ["left", "right"]),
    (WithMask(), items("left", "mask"), ["left", "mask"]),
    (WithMask(), items("left", "mask", label="y"), ["left", "mask"]),
]


@pytest.mark.parametrize(("network", "made", "read"), IN_ONE)
def test_a_network_is_given_what_it_reads_in_one_dictionary(network, made, read):
    data = load_data((made, made), network=network)
    inputs, labels = stack(data.train, [0, 1], data.collate, None)
    given = [item if isinstance(item, dict) else item[0] for item in made[:2]]
    rows = Values({name: torch.stack([item[name] for item in given]) for name in read})
    assert labels.tolist() == [0, 1]
    assert all(torch.equal(x, row) for x, row in zip(inputs, rows.values(), strict=True))
    worked = working(network, data.collate)
    assert torch.equal(worked(*inputs), network(rows))
    assert torch.equal(worked(rows), network(rows))  # also as its own code calls it
    assert not network._forward_pre_hooks


def test_hooks_of_its_own_are_given_what_the_network_takes():
    network, made = InDictionary(), items("left", "right")
    given = []
    network.register_forward_pre_hook(lambda module, inputs: given.extend(inputs))
    data = load_data((made, made), network=network)
    working(network, data.collate)(*stack(data.train, [0, 1], data.collate, None)[0])
    assert {*given[-1]} == {"left", "right"}


Pair = namedtuple("Pair", "left right")


class InNamedTuple(InDictionary):
    def forward(self, batch):
        return self.added(batch.left, batch.right)


class InList(InDictionary):
    def forward(self, some):
        return self.added(*(some + some[:1])[:2])


class InTupleOrMore(InTuple):
    def forward(self, pair, scale=None):
        return InTuple.forward(self, pair)


class DecoratedTuple(InTuple):
    def forward(self, *inputs):
        return InTuple.forward(self, *inputs)


@pytest.mark.parametrize(
    ("network", "kind", "names"),
    [
        (InTuple(), tuple, ("pair_0", "pair_1")),
        (InTupleOrMore(), tuple, ("pair_0", "pair_1")),
        (DecoratedTuple(), tuple, ("inputs_0", "inputs_1")),
        (InList(), list, ("some_0", "some_1")),
        (InNamedTuple(), Pair._make, ("left", "right")),
    ],
)
def test_a_network_is_given_its_inputs_in_one_tuple(network, kind, names):
    made = [(kind(inputs), label) for inputs, label in tuples()]
    data = load_data((made, made), network=network)
    inputs, labels = stack(data.train, [0, 1], data.collate, None)
    worked = working(network, data.collate)
    assert labels.tolist() == [0, 1]
    assert data.collate.names == names
    assert torch.equal(worked(*inputs), network(kind(inputs)))
    assert torch.equal(worked(kind(inputs)), network(kind(inputs)))


def test_loaders_that_make_tuples_alike():
    made = tuples()
    loaders = [DataLoader(made, collate_fn=lambda some: default_collate(some)) for _ in range(2)]
    inputs, _ = stack(made, [0, 1], load_data(tuple(loaders), network=InTuple()).collate, None)
    assert len(inputs) == 2


def test_what_the_network_reads_and_is_not_given():
    made = items("left", "other")
    with pytest.raises(FreePruneError, match=r"given left, other in one, the network's forward pass reads 'right'"):
        load_data((made, made), network=InDictionary())
    made = items("left", "right")
    with pytest.raises(FreePruneError, match=r"reads 'label'; .*labels go to the loss"):
        load_data((made, made), network=WithItsLoss())
    with pytest.raises(FreePruneError, match=r"the example is a dictionary; given left in one, .* 'right'"):
        example_of({"left": torch.zeros(1, 3)}, network=InDictionary())


class NamesThemAll(InDictionary):
    def forward(self, batch):
        return self.added(**batch)


def test_arguments_that_the_network_does_not_have():
    made = items("left", "right", "other")
    with pytest.raises(FreePruneError, match=r"given left, right, other in one, .* fails: .*argument '?other"):
        load_data((made, made), network=NamesThemAll())


def test_what_the_network_cannot_compute_of_a_dictionary():
    example = {"left": torch.zeros(1, 3), "right": torch.zeros(1, 4)}
    with pytest.raises(FreePruneError, match=r"given left, right in one, the network's forward pass fails: .*shapes"):
        example_of(example, network=InDictionary())


def test_a_network_that_reads_a_dictionary_is_given_a_tensor():
    made = [(torch.zeros(3), i % 2) for i in range(30)]
    for given in (lambda: load_data((made, made), network=InDictionary()), lambda: example_of("3", network=InDictionary())):
        with pytest.raises(FreePruneError, match="the network's forward pass reads 'left' of a dictionary; give dictionaries"):
            given()


@pytest.mark.parametrize(
    ("network", "example"),
    [
        (InDictionary(), {"left": torch.ones(1, 3), "right": torch.ones(1, 3)}),
        (InDictionary(), ["left:1x3", "right:1x3"]),
        (InTuple(), (torch.ones(1, 3), torch.ones(1, 3))),
        (InTuple(), ["3", "3"]),
    ],
)
def test_groups_of_such_a_network(network, example):
    assert freeprune.inspect(network, example=example).groups[0].name == "left"


@pytest.mark.parametrize(
    ("kind", "made", "names"),
    [(InDictionary, items("left", "right"), ["left", "right"]), (InTuple, tuples(), ["pair_0", "pair_1"])],
)
def test_a_run_with_such_a_network(kind, made, names, tmp_path):
    network = kind()
    recipe = freeprune.Recipe(images=16)
    freeprune.prune(network, (made, made), target={"macs": 0.6}, trials=3, finetune=recipe, out=tmp_path / "r")
    smaller = freeprune.load(tmp_path / "r", kind()).eval()
    assert smaller.left.out_features < 16
    left, right = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    expected = smaller({"left": left, "right": right} if kind is InDictionary else (left, right))
    session = onnxruntime.InferenceSession(tmp_path / "r" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == names
    written = session.run(None, dict(zip(names, (left.numpy(), right.numpy()), strict=True)))[0]
    assert torch.allclose(expected, torch.from_numpy(written), atol=1e-5)
