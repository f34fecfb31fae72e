"""Outputs are read from any nest of tuples, lists, dictionaries and dataclasses."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from freeprune.reading import PLAIN, leaves, main_output, refilled, rows

A, B, COUNT = torch.zeros(4, 2), torch.ones(4, 3), torch.arange(4)
LOSS = torch.tensor(1.0)
Features = namedtuple("Features", ["features", "logits"])
Named = namedtuple("Named", ["first", "second"])


@dataclass
class Held:
    loss: torch.Tensor | None
    hidden: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    ("given", "tensors", "main"),
    [
        (A, [A], A),
        ((A, B), [A, B], A),
        ([B, (A, None)], [B, A], B),
        (Named(COUNT, B), [COUNT, B], B),
        ((LOSS, A), [LOSS, A], A),
        (Features(B, A), [B, A], A),
        ({"aux": B, "out": A}, [B, A], A),
        (OrderedDict(out=A, aux=B), [A, B], A),
        (UserDict(hidden=B, logits=A), [B, A], A),
        ({"loss": B, "boxes": A}, [B, A], A),
        ({"a": {"deep": [A]}, "n": 3, "text": "x"}, [A], A),
        (Held(LOSS, B, A), [LOSS, B, A], A),
        (Held(None, B, A), [B, A], A),
        ({"logits": A, "encoder_last_hidden_state": B, "hidden_states": (B, B)}, [A], A),
        ({"loss": LOSS, "last_hidden_state": A, "pooler_output": B}, [LOSS, A, B], A),
        ({"logits": A, "mems": (B, B)}, [A], A),
        ({"logits": A, "image_outputs": {"last_hidden_state": B, "pooler_output": B}}, [A], A),
        ({"logits": A, "image_outputs": {"last_hidden_state": B, "boxes": B}}, [A, B], A),
        ({"text_embeds": A, "text_model_output": {"last_hidden_state": B}}, [A], A),
        (COUNT, [COUNT], None),
        (LOSS, [LOSS], None),
        (None, [], None),
        ("text", [], None),
        ({}, [], None),
    ],
)
def test_tensors_and_the_one_that_it_is_about(given, tensors, main):
    assert [id(x) for x in leaves(given)] == [id(x) for x in tensors]
    assert main_output(given) is main


def test_outputs_that_are_compared_have_a_row_for_each_image():
    assert [id(x) for x in rows({"loss": LOSS, "count": COUNT, "a": A, "memory": torch.zeros(9, 4), "b": B})] == [id(A), id(B)]
    assert PLAIN.scored((A, B)) == (A, B)
    assert PLAIN.scored(COUNT) == ()


def test_a_plain_network_is_held_against_classes():
    output = {"logits": torch.tensor([[2.0, 1.0], [0.0, 3.0]])}
    assert PLAIN.quality(output, torch.tensor([0, 0])) == 0.5
    assert PLAIN.loss_of(output, torch.tensor([0, 1])) == torch.nn.functional.cross_entropy(
        output["logits"], torch.tensor([0, 1])
    )


def test_the_main_output_says_how_many_rows_there_are():
    anchors, found = torch.zeros(6, 2), torch.zeros(4, 3)
    assert [x.shape for x in rows({"anchors": anchors, "pred": found, "boxes": torch.zeros(4, 1)})] == [(4, 3), (4, 1)]
    assert [x.shape for x in rows((anchors, found))] == [(6, 2)]
    assert rows({"n": torch.tensor(3)}) == []


@pytest.mark.parametrize(
    "given",
    [
        A,
        (A, [B, COUNT]),
        Named(COUNT, B),
        UserDict(hidden=B, logits=A),
        {"a": {"deep": [A]}, "n": 3},
        Held(None, B, A),
        {"logits": A, "encoder_last_hidden_state": B},
    ],
)
def test_a_nest_is_filled_with_other_tensors(given):
    others = [torch.full_like(x, 7) for x in leaves(given)]
    made = refilled(given, iter(others))
    assert type(made) is type(given)
    assert all(one is other for one, other in zip(leaves(made), others, strict=True))
    assert not isinstance(given, dict) or made.keys() == given.keys()
    assert not isinstance(given, dict) or made.get("encoder_last_hidden_state") is None
    assert not isinstance(given, dict) or made.get("n") == given.get("n")
