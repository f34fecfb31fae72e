"""The interface of metrics: a function of a candidate, the dense network's reference pass and a calibration batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..channels_last import run_for_gradients
from ..common import Batch, Candidate, Skeleton
from ..common import needs_labels as needs_labels  # for metrics, of other packages too
from ..errors import FreePruneError, backward_pass
from ..lending import storage_of, storage_read
from ..reading import leaves

LAYER_IMAGES = 32  # images whose inputs to every layer are kept: few, to save memory


class MetricError(FreePruneError):
    """The metric cannot be computed for this network or this batch."""


class Reference:
    """The dense network's outputs, gradients and layer inputs on the calibration batch, each computed once on first use.

    Attributes:
        dense: the dense network as a candidate without pruning.
        batch: the calibration batch.
    """

    def __init__(self, network: nn.Module, batch: Batch) -> None:
        self.dense = Candidate(Skeleton(network), {})
        self.batch = batch
        self._made: dict[Callable[[Reference], Any], Any] = {}

    @cached_property
    def given(self) -> Any:
        """All that the network returned under batch statistics, as candidates are run."""
        return forward(self.dense, self.batch)

    @cached_property
    def outputs(self) -> Outputs:
        """The scored outputs, `(N, K, ...)` each, under batch statistics."""
        return scored_of(self.given, self.batch)

    def once(self, make: Callable[[Reference], Any]) -> Any:
        """What a metric computes of the dense network, the first time that it is asked for."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    @property
    def output(self) -> Tensor:
        """The scored output, where there is one."""
        return the_one(self.outputs)

    @cached_property
    def stored_outputs(self) -> Outputs:
        """The scored outputs under the stored statistics, as in plain eval mode."""
        with torch.no_grad():
            return scored_of(self.dense.run({}, *self.batch.inputs), self.batch)

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """The gradient of the mean loss by every parameter, under batch statistics."""
        return gradients(self.dense, self.batch)

    @cached_property
    def norms(self) -> dict[str, float]:
        """The L2 norm of every parameter of two or more dimensions, by name."""
        return {name: norm(tensor) for name, (tensor, _) in weights(self.dense).items()}

    @cached_property
    def layers(self) -> dict[str, LayerCall]:
        """By the name of a weight, the layer as a function of that weight, applied to its input for the first images."""
        with torch.no_grad(), _Layers(self.dense.skeleton) as seen:
            self.dense(*(x[:LAYER_IMAGES] for x in self.batch.inputs))
        calls: dict[str, LayerCall] = seen.calls
        return calls


LayerCall = Callable[[Tensor], Tensor]

Outputs = tuple[Tensor, ...]

Metric = Callable[[Candidate, Reference, Batch], float]
"""Larger is better. A metric does not change the candidate and is deterministic."""


def reference(network: nn.Module, batch: Batch) -> Reference:
    """The reference pass of the dense network, checked by one forward pass. The network is left as it is.

    Raises:
        MetricError: the batch is too small or all its images are the same, or the outputs are no finite numbers.
    """
    dense = Reference(network, batch)
    if batch.inputs[0].shape[0] > 1 and all(bool((x == x[:1]).all()) for x in batch.inputs):
        raise MetricError("all calibration images are the same, so no score can tell networks apart; give images that differ")
    if not all(torch.isfinite(x).all() for x in batch.inputs):
        raise MetricError("the calibration images hold NaN or infinite values; mend the data, or take these images out")
    if not all(torch.isfinite(output).all() for output in dense.outputs):
        raise MetricError(
            f"the dense network gives numbers that are not finite on the calibration images{_where(dense.dense, batch)}; check "
            "its weights and the scale of the images"
        )
    return dense


def _where(dense: Candidate, batch: Batch) -> str:
    """The first module that gives such numbers, as a sentence goes on; minus infinity hides tokens in masks and is none."""
    found: list[str] = []

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and any((x.isnan() | x.isposinf()).any() for x in leaves(output) if x.is_floating_point()):
            found.append(f", first in {name!r} ({type(module).__name__})" if name else "")

    modules = dense.skeleton.network.named_modules()
    handles = [module.register_forward_hook(partial(note, name)) for name, module in modules]
    try:
        forward(dense, batch)
    finally:
        for handle in handles:
            handle.remove()
    return "".join(found)


def forward(candidate: Candidate, batch: Batch) -> Any:
    """All that the candidate returns for the calibration images under batch statistics, without gradients."""
    images = batch.inputs[0].shape[0]
    if images < 2:
        raise MetricError(f"{images} calibration image is too few for batch statistics; give 2 or more")
    with torch.no_grad():
        return candidate(*batch.inputs)


def runs(candidate: Candidate, batch: Batch) -> Outputs:
    """The candidate's scored outputs on the calibration images under batch statistics, without gradients."""
    return scored_of(forward(candidate, batch), batch)


def run(candidate: Candidate, batch: Batch) -> Tensor:
    """The candidate's scored output, where there is one; otherwise as `runs`."""
    return the_one(runs(candidate, batch))


def scored_of(given: Any, batch: Batch) -> Outputs:
    """The scored outputs among all that a network returned; raises MetricError if there are none."""
    outputs = batch.reading.scored(given)
    if not outputs:
        raise MetricError(
            f"the network gives {type(given).__name__}, in which there is no tensor of floating numbers with a row for each "
            "image; say with a `task` of your own which outputs are scored"
        )
    return outputs


def the_one(outputs: Outputs) -> Tensor:
    """The only one of the scored outputs; raises MetricError if there are several."""
    if len(outputs) > 1:
        raise MetricError(
            f"{len(outputs)} outputs are scored, and the metric expects one; use `metric='freeprune'`, or a `task` of your own "
            "that says which one is scored"
        )
    return outputs[0]


def finite(outputs: Outputs) -> bool:
    """Whether all outputs are finite numbers."""
    return all(bool(torch.isfinite(output).all()) for output in outputs)


def check_floating(batch: Batch, metric: str) -> None:
    """Raises MetricError if no input is of floating numbers, as of a network that takes tokens."""
    if not any(x.is_floating_point() for x in batch.inputs):
        given = " and ".join(str(x.dtype).removeprefix("torch.") for x in batch.inputs)
        raise MetricError(f"{metric} needs inputs of floating numbers, and the network takes {given}; use `metric='freeprune'`")


def labels_of(batch: Batch) -> Any:
    """The labels of the batch; raises MetricError if it has none."""
    if batch.labels is None:
        raise MetricError("this metric reads labels, and the calibration data has none; use `metric='freeprune'`")
    return batch.labels


def weights(candidate: Candidate) -> dict[str, tuple[Tensor, Tensor]]:
    """Every parameter of two or more dimensions that is there, by name, as (pruned, dense).

    Those of branches that are gone are left out.

    Raises:
        MetricError: the dense network has no parameter of that name.
    """
    own = {**candidate.skeleton.tensors, **candidate.tensors}
    parameters = [
        name
        for name, tensor in candidate.skeleton.tensors.items()
        if isinstance(tensor, nn.Parameter) and tensor.dim() > 1 and name not in candidate.gone
    ]
    unknown = next((n for n in parameters if n not in candidate.dense), None)
    if unknown is not None:
        raise MetricError(
            f"the pruned network's {unknown!r} has no counterpart in the dense one, and this metric compares weights; "
            "use `metric='calibratedkl'`, which compares outputs"
        )
    return {name: (own[name], candidate.dense[name]) for name in parameters}


def is_shift(name: str) -> bool:
    """Whether a parameter or buffer is added and does not multiply, by its name: a bias or a running mean."""
    last = name.rpartition(".")[2]
    return last.endswith("bias") or last.startswith("bias_") or last == "running_mean"


def norm(tensor: Tensor) -> float:
    """The L2 norm, accumulated in double precision without copying the tensor."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def restricted(candidate: Candidate, name: str, tensor: Tensor) -> Tensor:
    """Cut a tensor of the parameter's dense shape to the candidate's shape, with 0 where a mask removes weights.

    Raises:
        MetricError: the candidate does not say which coordinates it kept.
    """
    for dim, ids in candidate.kept.get(name, {}).items():
        tensor = tensor.index_select(dim, torch.from_numpy(ids).to(tensor.device))
    own = candidate.tensors.get(name, candidate.skeleton.tensors[name])
    if own.shape != tensor.shape:
        raise MetricError(
            f"{name!r} has shape {tuple(own.shape)} in the pruned network, and which of {tuple(tensor.shape)} it kept is not "
            "known; give the plan, or use `metric='calibratedkl'`, which compares outputs"
        )
    return tensor if own.dim() < 2 else tensor * (own != 0)


def gradients(candidate: Candidate, batch: Batch) -> dict[str, Tensor]:
    """The gradient of the mean loss by every parameter, under batch statistics; 0 where a mask removes the weight.

    Raises:
        MetricError: the batch has no labels, or there is no way back through the network.
    """
    parameters, loss = parameters_and_loss(candidate, batch)
    found = slopes(loss, list(parameters.values()))
    return {
        name: torch.zeros_like(p) if g is None else g.to_dense() if p.dim() < 2 else g.to_dense() * (p != 0)
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def slopes(of: Tensor, by: Sequence[Tensor], create_graph: bool = False) -> tuple[Tensor | None, ...]:
    """The gradient of one number by each tensor, None where it does not depend on it; to be gone back from if `create_graph`.

    Raises:
        MetricError: there is no way back through the network.
    """
    with backward_pass("use `metric='freeprune'`, which takes none", MetricError):
        return torch.autograd.grad(of, by, allow_unused=True, create_graph=create_graph)


def parameters_and_loss(candidate: Candidate, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """The candidate's parameters with gradients enabled, and the mean loss under batch statistics."""
    labels, skeleton = labels_of(batch), candidate.skeleton
    tensors = candidate.without_statistics
    names = [n for n, t in skeleton.tensors.items() if isinstance(t, nn.Parameter) and t.is_floating_point()]
    parameters = {n: tensors.get(n, skeleton.tensors[n]).detach().requires_grad_() for n in names}
    with torch.enable_grad(), skeleton.batch_statistics():
        given = run_for_gradients(partial(candidate.run, {**tensors, **parameters}), batch.inputs)
        return parameters, batch.reading.loss_of(given, labels)


class _Layers(TorchDispatchMode):
    """Records every convolution and matrix product with a parameter, as a function of that parameter."""

    def __init__(self, skeleton: Skeleton) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, LayerCall] = {}
        self._names = {storage_of(t): (n, t.shape) for n, t in skeleton.tensors.items() if t.dim() > 1}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = func.overloadpacket.__name__
        if kind == "convolution":
            self._keep(args[1], lambda w: func(args[0], w, None, *args[3:]), transposed=False)
        elif kind in ("mm", "addmm"):
            self._keep(args[-1], lambda w: args[-2] @ w.T, transposed=True)
        return func(*args, **(kwargs or {}))

    def _keep(self, weight: Tensor, call: LayerCall, transposed: bool) -> None:
        name, shape = self._names.get(storage_read(weight), ("", None))
        if shape == (weight.T if transposed else weight).shape:
            self.calls[name] = call
