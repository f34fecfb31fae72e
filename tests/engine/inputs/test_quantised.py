"""Networks that are ready for quantisation are float networks; those that are prepared or quantised are refused."""

import pytest
import torch
from torch import nn
from toys import network

from freeprune import FreePruneError
from freeprune.engine.inputs.adoption import bare
from freeprune.engine.inspection.groups import inspect

Q = pytest.importorskip("torch.ao.quantization")
quantized = pytest.importorskip("torch.ao.nn.quantized")

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:torch.quantize_per_tensor:UserWarning",
    "ignore:.*reduce_range:UserWarning",
)


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Summed(nn.Module):
    """As a block of a network that is ready for quantisation."""

    def __init__(self, inner):
        super().__init__()
        self.before, self.inner, self.sum, self.after = Q.QuantStub(), inner, quantized.FloatFunctional(), Q.DeQuantStub()

    def forward(self, x):
        x = self.inner(self.before(x))
        return self.after(self.sum.add(x, x))


class OfLibrary(nn.Sequential):
    __module__ = "torchvision.models.quantization.resnet"


@pytest.mark.parametrize("marked", [Q.QuantWrapper, Summed, OfLibrary])
def test_a_float_network_that_is_ready_for_quantisation_is_pruned(marked):
    net = marked(network()).eval()
    assert [group.width for group in inspect(net, IMAGES).groups] == [8, 12]
    assert torch.equal(bare(net)(IMAGES), net(IMAGES))


def of_type(path):
    """A module of a class as another package has it."""
    module, _, name = path.rpartition(".")
    return type(name, (nn.Module,), {"__module__": module, "__qualname__": name})()


def with_bytes(path):
    made = of_type(path)
    made.register_buffer("weight", torch.zeros(3, 3, dtype=torch.int8))
    return made


def prepared(prepare):
    net = Q.QuantWrapper(network().train())
    net.qconfig = Q.get_default_qat_qconfig() if prepare is Q.prepare_qat else Q.default_qconfig
    return prepare(net)


REFUSED = {
    "a layer": (lambda: Q.quantize_dynamic(network()), "module '7' is quantised; prune the network before"),
    "sums": (lambda: nn.Sequential(quantized.QFunctional()), "module '0' is quantised; prune the network before"),
    "torchao": (lambda: nn.Sequential(of_type("torchao.dtypes.Linear")), "module '0' is quantised; prune the network before"),
    "elsewhere": (lambda: nn.Sequential(with_bytes("lib.quantization.Linear")), "module '0' is quantised; prune the network"),
    "observed": (lambda: prepared(Q.prepare), r"'quant.*' \(\w*Observer\) prepares the network for .* before it is prepared"),
    "trained for int8": (lambda: prepared(Q.prepare_qat), r"\(\w*FakeQuantize\w*\) prepares the network for quantisation, by"),
    "fake quantised": (lambda: of_type("torch.ao.nn.qat.modules.conv.Conv2d"), r"'the network' \(Conv2d\) prepares the"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_quantised_or_prepared_is_one_sentence(name):
    make, sentence = REFUSED[name]
    with pytest.raises(FreePruneError, match=sentence) as found:
        bare(make())
    assert "\n" not in str(found.value)
