"""The shapes that are worked out here are those of torch's own meta device."""

import itertools

import pytest
import torch

from freeprune.backends.tracing import meta

aten = torch.ops.aten


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


X, WIDE = empty(2, 6, 5, 4), empty(2, 5, 4, 6).permute(0, 3, 1, 2)
VECTOR = empty(6)
CASES = {
    "relu": (aten.relu.default, X),
    "permuted": (aten.relu.default, WIDE),
    "gaps": (aten.relu.default, empty(2, 6, 10, 4)[:, :, ::2]),
    "in place": (aten.relu_.default, empty(2, 6)),
    "add": (aten.add.Tensor, X, X),
    "add a number": (aten.add.Scalar, X, 2),
    "broadcast": (aten.mul.Tensor, X, empty(2, 6, 1, 1)),
    "broadcast to more dimensions": (aten.mul.Tensor, empty(4), X),
    "other type": (aten.add.Tensor, X, empty(2, 6, 5, 4, dtype=torch.float64)),
    "whole numbers": (aten.div.Tensor, empty(3, dtype=torch.int64), empty(3, dtype=torch.int64)),
    "convolution": (aten.convolution.default, X, empty(8, 3, 3, 3), empty(8), [2, 1], [1, 1], [1, 2], False, [0, 0], 2),
    "1-D": (aten.convolution.default, empty(1, 6, 9), empty(6, 1, 3), None, [1], [1], [1], False, [0], 6),
    "transposed": (aten.convolution.default, X, empty(6, 2, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 2),
    "channels last": (
        aten.convolution.default, WIDE, empty(8, 6, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
    ),
    "mm": (aten.mm.default, empty(3, 4), empty(5, 4).t()),
    "addmm": (aten.addmm.default, empty(5), empty(3, 4), empty(4, 5)),
    "addmm of a matrix": (aten.addmm.default, empty(3, 5), empty(3, 4), empty(4, 5)),
    "layer norm": (aten.native_layer_norm.default, X, [5, 4], empty(5, 4), empty(5, 4), 1e-5),
    "layer norm without a scale": (aten.native_layer_norm.default, X, [4], None, None, 1e-5),
    "mean": (aten.mean.dim, X, [2, 3], True),
    "mean of one": (aten.mean.dim, X, [-1]),
    "mean of all": (aten.mean.default, X),
    "mean of a permutation": (aten.mean.dim, WIDE, [1]),
    "cat": (aten.cat.default, [X, empty(2, 1, 5, 4)], 1),
    "cat from the right": (aten.cat.default, [empty(3, 2), empty(3, 4)], -1),
    "cat with nothing": (aten.cat.default, [empty(0), empty(3, 4)]),
    "cat of types": (aten.cat.default, [empty(3, 2), empty(3, 4, dtype=torch.float64)], 1),
}  # fmt: skip


def layouts(out):
    return [(tuple(t.shape), t.stride(), t.dtype) for t in meta.flat((out,))]


@pytest.mark.parametrize("case", sorted(CASES))
def test_shapes_are_those_of_torch(case):
    func, *arguments = CASES[case]
    expected = layouts(func(*arguments))
    for _ in range(2):  # worked out, then remembered
        assert layouts(meta.run(func, arguments, {})) == expected


def test_batch_norm_in_eval_mode():
    statistics = [VECTOR, VECTOR, VECTOR, VECTOR]
    for x, training in itertools.product((X, WIDE), (False, True)):
        arguments = (x, *statistics, training, 0.1, 1e-5)
        first = meta.run(aten.native_batch_norm.default, arguments, {})[0]
        assert layouts(first) == layouts(aten.native_batch_norm.default(*arguments)[0])


@pytest.mark.parametrize(
    ("func", "arguments"),
    [
        (aten.add.Tensor, (empty(2, 3), empty(2, 4))),
        (aten.add_.Tensor, (empty(1, 3), empty(2, 3))),
        (aten.mm.default, (empty(2, 3), empty(4, 5))),
        (aten.addmm.default, (empty(4), empty(2, 3), empty(3, 5))),
        (aten.cat.default, ([empty(2, 3), empty(3, 3)], 1)),
        (aten.native_layer_norm.default, (empty(2, 6), [5], None, None, 1e-5)),
        (
            aten.convolution.default,
            (empty(1, 5, 4, 4), empty(8, 6, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        ),
        (
            aten.convolution.default,
            (empty(1, 6, 2, 2), empty(8, 6, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        ),
    ],
)
def test_what_torch_refuses_is_refused(func, arguments):
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        func(*arguments)
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        meta.run(func, arguments, {})


def test_an_output_that_is_given_is_the_one_that_is_returned():
    given = empty(2, 3)
    assert meta.run(aten.add.out, (empty(2, 3), empty(2, 3)), {"out": given}) is given
