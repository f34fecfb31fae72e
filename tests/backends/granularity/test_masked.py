"""Each masked granularity on weights small enough to see."""

import networks
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from freeprune.backends import BACKENDS, apply, find_backend, importance, masked
from freeprune.backends.mask import Masked
from freeprune.backends.onnx.export import export_onnx
from freeprune.errors import FreePruneError


def backend_for(granularity, *layers, shape=(1, 4, 3, 3), **options):
    network = nn.Sequential(*layers)
    return network, find_backend(granularity)(network, (torch.zeros(shape),), importance("l1", network), **options)


def conv(values):
    values = torch.as_tensor(values, dtype=torch.float32)
    layer = nn.Conv2d(values.shape[1], values.shape[0], tuple(values.shape[2:]), bias=False)
    with torch.no_grad():
        layer.weight.copy_(values)
    return layer


def pruned_weight(network, backend, *kept):
    return apply(network, backend.plan(np.array(kept)))[0].weight.detach().squeeze().tolist()


def test_two_of_four_keeps_the_two_largest_of_every_four_inputs():
    rows = np.array([[1.0, -4, 2, 3], [-2, 1, 0.5, -1.5]]).reshape(2, 4, 1, 1)
    network, backend = backend_for("nm", conv(rows))
    assert [(g.units, g.minimum) for g in backend.groups] == [(2, 1)]
    assert pruned_weight(network, backend, 1) == [[0, -4, 0, 3], [-2, 0, 0, -1.5]]
    assert pruned_weight(network, backend, 2) == rows.squeeze().tolist()
    assert backend.costs(np.array([[1], [2]]))["nonzero"].tolist() == [4, 8]


def test_any_number_of_four():
    network, backend = backend_for("nm", conv(np.array([1.0, -4, 2, 3]).reshape(1, 4, 1, 1)), nm="4")
    assert [g.units for g in backend.groups] == [4]
    assert pruned_weight(network, backend, 1) == [0, -4, 0, 0]
    assert pruned_weight(network, backend, 3) == [0, -4, 2, 3]


def test_nm_holds_in_every_row_of_every_layer():
    network = networks.build("resnet_a")
    backend = BACKENDS["nm"](network, (networks.images(2),), importance("l2", network))
    pruned = apply(network, backend.plan(np.array([1] * len(backend.groups))))
    treated = {g.tied[0] for g in backend.groups}
    assert len(treated) == 7  # all convolutions but the first, and the linear layer
    for name, weight in pruned.named_parameters():
        if name in treated:
            groups = weight.detach().transpose(0, 1).reshape(weight.shape[1] // 4, 4, -1)
            assert ((groups != 0).sum(dim=1) == 2).all()


def test_layers_that_nm_cannot_treat_stay_dense_with_a_reason():
    _, backend = backend_for("nm", nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1), nn.ConvTranspose2d(4, 4, 1))
    assert [g.name for g in backend.groups] == ["0", "2"]
    assert backend.dense == {"1.weight": "6 inputs are no multiple of 4"}
    assert backend.costs(np.array([[2, 2]]))["nonzero"] == 4 * 6 + 6 * 4 + 4 * 4
    with pytest.raises(FreePruneError, match="nothing to prune: 0: 3 inputs are no multiple of 4"):
        backend_for("nm", nn.Conv2d(3, 4, 1), shape=(1, 3, 3, 3))


def test_blocks_along_the_inputs_end_shorter():
    network, backend = backend_for("block", conv(np.array([[1.0, 1, -3, 2, 4], [0, 1, 0, 0, 1]]).reshape(2, 5, 1, 1)),
                                   shape=(1, 5, 3, 3), block="1x2")  # fmt: skip
    # blocks by their sums: 2 5 4 / 1 0 1
    assert [g.units for g in backend.groups] == [6]
    assert pruned_weight(network, backend, 2) == [[0, 0, -3, 2, 4], [0, 0, 0, 0, 0]]
    assert backend.costs(np.array([[2], [6]]))["nonzero"].tolist() == [3, 10]


def test_blocks_along_the_outputs():
    network, backend = backend_for("block", conv(np.array([[1.0, 2], [1, 2], [5, 0]]).reshape(3, 2, 1, 1)),
                                   shape=(1, 2, 3, 3), block="2x1")  # fmt: skip
    assert pruned_weight(network, backend, 2) == [[0, 2], [0, 2], [5, 0]]


def test_whole_kernels():
    values = torch.tensor([[1.0, 3.0], [2.0, 0.5]])[:, :, None, None] * torch.ones(2, 2, 3, 3)
    network, backend = backend_for("kernel", conv(values), shape=(1, 2, 3, 3))
    assert [g.units for g in backend.groups] == [4]
    weight = torch.tensor(pruned_weight(network, backend, 2))
    assert (weight != 0).sum(dim=(2, 3)).tolist() == [[0, 9], [9, 0]]


def test_patterns_switch_the_kernel_that_loses_least_first_and_remove_kernels_last():
    cross = torch.tensor([[0.1, 2, 0.1], [2, 1, 2], [0.1, 0.1, 0.1]])
    values = torch.stack([cross, 3 * cross + 1]).reshape(1, 2, 3, 3)
    network, backend = backend_for("pattern", conv(values), shape=(1, 2, 3, 3))
    assert [g.units for g in backend.groups] == [4]
    kept = [torch.tensor(pruned_weight(network, backend, k)) for k in (3, 2, 1)]
    shape = (cross >= 1).int()
    assert (kept[0][0] != 0).int().equal(shape)
    assert kept[0][1].equal(values[0, 1])
    assert (kept[1] != 0).int().equal(torch.stack([shape, shape]))
    assert not kept[2][0].any()
    assert (kept[2][1] != 0).int().equal(shape)
    assert backend.costs(np.array([[4], [3], [2], [1]]))["nonzero"].tolist() == [18, 13, 8, 4]


def test_the_library_has_eight_patterns_all_with_the_centre():
    network, backend = backend_for("pattern", nn.Conv2d(8, 16, 3), shape=(1, 8, 3, 3))
    weight = apply(network, backend.plan(np.array([128])))[0].weight.detach()
    masks = (weight != 0).reshape(-1, 9)
    assert (masks.sum(dim=1) == 4).all()
    assert masks[:, 4].all()
    assert len(masks.unique(dim=0)) <= 8


def test_other_kernels_go_whole_under_pattern():
    _, backend = backend_for("pattern", nn.Conv2d(4, 3, 1))
    assert backend.groups[0].units == 12


@pytest.mark.parametrize(
    ("granularity", "options", "message"),
    [
        ("nm", {"nm": "4:4"}, "`nm='4:4'` is no pattern"),
        ("nm", {"nm": "0:4"}, "is no pattern"),
        ("nm", {"nm": "two"}, "is no pattern"),
        ("block", {"block": "2x2"}, "`block='2x2'` is no vector"),
        ("block", {"block": "1x1"}, "is no vector"),
        ("block", {"block": "4"}, "is no vector"),
    ],
)
def test_malformed_layouts_are_sentences(granularity, options, message):
    with pytest.raises(FreePruneError, match=message):
        backend_for(granularity, nn.Conv2d(4, 4, 1), **options)


def test_the_rate_limit_counts_weights():
    _, backend = backend_for("weight", nn.Conv2d(4, 5, 1), max_rate=0.7)
    assert backend.groups[0].minimum == 6
    _, backend = backend_for("nm", nn.Conv2d(4, 5, 1), max_rate=0.4)
    assert backend.groups[0].minimum == 2  # 2:4 would remove half


class Products(nn.Module):
    """Two weights that lie as (inputs, outputs)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(12, 4))

    def forward(self, x):
        return torch.relu(x @ self.first) @ self.second


def test_two_of_four_lie_along_the_sum_in_the_onnx_file_too(tmp_path):
    network, x = Products().eval(), torch.randn(5, 8)
    backend = BACKENDS["nm"](network, (x,), importance("l2", network))
    export_onnx(apply(network, backend.plan(np.array([1, 1]))), (x,), tmp_path / "model.onnx", {})
    graph = onnx.load(tmp_path / "model.onnx").graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 2
    for node in products:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        weight = weights[node.input[1]] if transposed else weights[node.input[1]].T
        assert ((weight.reshape(len(weight), -1, 4) != 0).sum(2) == 2).all()


@pytest.mark.parametrize("granularity", ["channel+weight", "channel+kernel"])
def test_a_transposed_depthwise_layer_of_fewer_channels(granularity):
    network, backend = backend_for(
        granularity, nn.Conv2d(4, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    kept = np.array([group.minimum for group in backend.groups])
    plan = backend.plan(kept)
    compact, images = apply(network, plan), torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert compact[2].groups < 8
    assert not all(mask.all() for mask in plan.masks.values())
    assert torch.allclose(compact(images), masked(network, plan)(images), atol=1e-6)


class Repeated(nn.Module):
    """A weight of which two neighbouring outputs share each row."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return nn.functional.linear(x, self.weight.repeat_interleave(2, 0))


def test_an_entry_that_a_product_holds_twice_is_multiplied_twice():
    _, backend = backend_for("weight", Repeated(), shape=(1, 4))
    costs = backend.costs(np.array([[1], [12]]))
    assert costs["nonzero"].tolist() == [1, 12]
    assert costs["macs"].tolist() == [2, 24]


class Viewed(nn.Module):
    """A convolution whose weight is stored as a matrix."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 36))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight.view(4, 4, 3, 3))


class TiedKernels(nn.Module):
    """A convolution and its transpose share their kernels, of which inputs and outputs change places."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x):
        return nn.functional.conv_transpose2d(nn.functional.conv2d(x, self.weight), self.weight)


@pytest.mark.parametrize("granularity", ["kernel", "pattern"])
@pytest.mark.parametrize("kind", [Viewed, TiedKernels])
def test_kernels_that_lie_elsewhere_stay_dense_rather_than_torn(kind, granularity):
    _, backend = backend_for(granularity, kind(), nn.Conv2d(4, 4, 1))
    assert list(backend.dense) == ["0.weight"]
    assert "its kernels" in backend.dense["0.weight"]


def ranks_of(values):
    return np.arange(values.size).reshape(values.shape)


@pytest.mark.parametrize("where", ["order", "ranks"])
@pytest.mark.parametrize(
    ("order", "message"),
    [
        (lambda values: values, "numbers of type float64"),
        (lambda values: ranks_of(values).ravel(), r"an array of shape \(12,\)"),
        (lambda values: ranks_of(values).tolist(), "a list"),
        (lambda values: ranks_of(values) + 1, "numbers from 1 to 12"),
        (lambda values: ranks_of(values) * 2, "numbers from 0 to 22 with gaps"),
        (lambda values: ranks_of(values) // 2 * 2, "numbers from 0 to 10 with gaps"),
        (lambda values: ranks_of(values) - 1, "numbers from -1 to 10"),
        (None, "nothing"),
    ],
)
def test_what_is_no_order_of_the_weights_is_refused_in_a_sentence(where, order, message):
    class Own(Masked):
        name = "own"

        def _ordered(self, scores, importance):
            return {name: order(values) for name, values in scores.items() if order is not None}

    setattr(Own, where, Own._ordered)
    network = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(
        FreePruneError, match=f"granularity 'own' orders '0.weight' by {message}, where .* expected; mend its `order`"
    ):
        Own(network, (torch.zeros(1, 4),), importance("l2", network))


def test_an_order_is_a_dictionary():
    class Own(Masked):
        name = "own"

        def order(self, matrices, importance):
            return None

    network = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(FreePruneError, match="granularity 'own' orders weights by a NoneType, where a dictionary of ranks"):
        Own(network, (torch.zeros(1, 4),), importance("l2", network))
