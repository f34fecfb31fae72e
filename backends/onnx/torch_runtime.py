"""PyTorch itself on a CPU, eager or compiled: times the network and not its ONNX file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...common import Inputs
from ...copies import copied
from ...errors import FreePruneError
from ...reading import leaves
from .onnx_runtime import ONNX_RUNTIME
from .quiet import quiet
from .runtime import Arrays, Opened, Runtime, Subject, root_cause, turns


class Torch(Runtime):
    """PyTorch on a CPU: the network in eval mode, without gradients, in its own memory format.

    Args:
        name, place: of `Runtime`.
        compiled: whether networks are compiled by `torch.compile`, for one batch size. Single layers, whose kernels are the
            same, are not.
    """

    networks = True
    # oneDNN keeps channels in blocks, but converts every layer's inputs and outputs; no width of inputs is much slower.
    step = 8
    alignment = 1

    def __init__(self, name: str, place: str, *, compiled: bool) -> None:
        self.name, self.place, self._compiled = name, place, compiled

    @property
    def version(self) -> str:
        return str(torch.__version__)

    @property
    def missing(self) -> str | None:
        compiler = os.environ.get("CXX", "g++")
        if self._compiled and shutil.which(compiler) is None:
            return f"torch.compile needs a C++ compiler and there is no {compiler}; install it, or take runtime 'torch'"
        return None

    @property
    def files(self) -> Runtime:
        return ONNX_RUNTIME

    def open(self, model: str | bytes, threads: int) -> Opened:
        """An ONNX file in ONNX Runtime."""
        return ONNX_RUNTIME.open(model, threads)

    def ready(self, subject: Subject, threads: int) -> Opened:
        if not isinstance(subject, nn.Module):
            return ONNX_RUNTIME.ready(subject, threads)
        return _Network(subject, threads, self.name, compiled=self._compiled)

    def latency_ms(
        self, subjects: Mapping[str, Subject], inputs: Inputs, *, threads: int, repeats: int = 50
    ) -> dict[str, float]:
        if self._compiled:  # it keeps few versions of the same code, and runs further ones uncompiled
            torch.compiler.reset()
        return super().latency_ms(subjects, inputs, threads=threads, repeats=repeats)

    def kernel_ms(self, model: bytes, op: str, threads: int, *, runs: tuple[int, int], seconds: float) -> float:
        """The time of the operator in eager mode."""
        run, clock, times = _operator(model), self.clock(threads), list[float]()
        with _set_threads(threads), torch.no_grad():
            for _ in turns((runs[0] + 1, runs[1] + 1), seconds):  # the first one allocates
                begin = clock()
                run()
                times.append(clock() - begin)
        return min(times[1:]) * 1e3


class _Network:
    """A network with the interface of `Opened`."""

    inputs = batch = None  # it does not say

    def __init__(self, network: nn.Module, threads: int, name: str, *, compiled: bool) -> None:
        own = copied(network).cpu().eval()
        self._compiling = compiled  # at the first run
        with quiet():
            self._run: Callable[..., Any] = torch.compile(own, dynamic=False) if compiled else own
        self._threads, self._name = threads, name

    def run(self, arrays: Arrays) -> Arrays:
        silence = quiet() if self._compiling else nullcontext()
        self._compiling = False
        try:
            with silence, _set_threads(self._threads), torch.no_grad():
                output = self._run(*map(torch.from_numpy, arrays))
        except Exception as error:
            shapes = [array.shape for array in arrays]
            raise FreePruneError(f"{self._name} fails on inputs of shapes {shapes}: {root_cause(error)}") from error
        return tuple(x.numpy() for x in leaves(output))


@contextmanager
def _set_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _operator(model: bytes) -> Callable[[], Tensor]:
    """A function that runs the only operator of an ONNX file, a convolution or a product, on random numbers."""
    import onnx
    from onnx import helper, numpy_helper

    graph = onnx.load_model_from_string(model).graph
    (node,), (given,), (held,) = graph.node, graph.input, graph.initializer
    weight = torch.from_numpy(numpy_helper.to_array(held).copy())
    x = torch.randn([dim.dim_value for dim in given.type.tensor_type.shape.dim], generator=torch.Generator().manual_seed(0))
    if not x.numel() or not weight.numel():
        raise FreePruneError("it is empty")
    if node.op_type == "MatMul":
        weight = weight.T.contiguous()  # as nn.Linear holds it
        return lambda: F.linear(x, weight)
    said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    dims = weight.dim() - 2
    begin, end = said["pads"][:dims], said["pads"][dims:]
    named = {"stride": said["strides"], "dilation": said["dilations"], "groups": said["group"]}
    if node.op_type == "ConvTranspose":
        back = getattr(F, f"conv_transpose{dims}d")
        return lambda: back(x, weight, padding=begin, output_padding=said["output_padding"], **named)
    convolve = getattr(F, f"conv{dims}d")
    if begin == end:
        return lambda: convolve(x, weight, padding=begin, **named)
    around = [size for pair in zip(reversed(begin), reversed(end), strict=True) for size in pair]
    return lambda: convolve(F.pad(x, around), weight, **named)


TORCH = Torch("PyTorch", "PyTorch on this CPU", compiled=False)
TORCH_COMPILE = Torch("compiled PyTorch", "compiled PyTorch on this CPU", compiled=True)
