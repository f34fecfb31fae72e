"""Exports a network to an ONNX file, which is then run and compared with the network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...common import Inputs, arrangement, attribute
from ...copies import is_large, light
from ...errors import FreePruneError
from ...reading import children, leaves
from ..difference import MAX_DIFFERENCE, relative_difference
from ..surgery.gone import with_zeros
from .files import Beside, Model, Whole, hollow
from .onnx_runtime import ONNX_RUNTIME
from .optimiser import small_constants_kept
from .packed import padded, read_lengths
from .quiet import quiet
from .recurrent import write_out
from .runtime import Runtime, as_arrays, first_rows, root_cause, run_rows
from .sequences import Axes, sequences
from .translations import translations

CHECKED_BATCHES = (1, 3)
LOWEST_OPSET = 18  # what the exporter writes; it turns it into later ones
LARGEST_FILE = 2**30  # bytes of weights in one file: a protobuf message holds 2 GiB, and lies in memory several times


@dataclass(frozen=True)
class Exported:
    """An exported ONNX file.

    Attributes:
        path: the file.
        bytes: its size.
        batch: the only batch size that it takes; None if it takes any.
        dynamic_length: whether it takes sequences of any length, where the network reads some.
        warnings: sentences for the user.
    """

    path: Path
    bytes: int
    batch: int | None
    dynamic_length: bool
    warnings: tuple[str, ...]

    @property
    def dynamic_batch(self) -> bool:
        """Whether it takes any batch size."""
        return self.batch is None


def export_onnx(
    network: nn.Module,
    inputs: Inputs,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    runtime: Runtime = ONNX_RUNTIME,
    opset: int | None = None,
    batch: int | None = None,
) -> Exported:
    """Export a network in eval mode to ONNX, without source paths or times: the same network gives the same file.

    The file is checked by ONNX and compared with the network on batches of 1 and 3, and, where the network reads sequences of
    tokens, on shorter ones. A network with a fixed batch size or length is exported with one, and a warning says so: the length
    of `inputs`, and their batch size unless `batch` is given.

    Args:
        network: left as it is.
        inputs: example inputs, `(N, ...)` each.
        path: the file, replaced atomically after all checks.
        metadata: the file's properties, written sorted by key.
        runtime: runs the file for the comparison.
        opset: the version of ONNX's operators; None for the exporter's own choice.
        batch: of a file that cannot take any batch size; that of `inputs` if None, or if the network does not take it.

    Raises:
        FreePruneError: the network cannot be exported, or the export differs from it.
    """
    path = Path(path)
    if not inputs or any(x.ndim == 0 or len(x) != len(inputs[0]) for x in inputs):
        shapes = [tuple(x.shape) for x in inputs]
        raise FreePruneError(f"the example inputs have shapes {shapes}; give tensors that share their first dimension")
    check_opset(opset)
    apart = 4 * sum(t.numel() for t in (*network.parameters(), *network.buffers())) > LARGEST_FILE
    with ExitStack() as scratch:
        beside = None
        if apart or is_large(network):
            folder = scratch.enter_context(tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent))
            beside = _Place(Path(folder) / path.name, apart)
        inputs = tuple(x.detach().cpu() for x in inputs)
        network = light(network).cpu().eval()
        _say_arguments(network, len(inputs))
        write_out(network)
        written = _Exporter(inputs, opset, runtime, beside, read_lengths(network, inputs), batch).best(network)
        size = written.model.save(path, metadata)
    return Exported(path, size, written.batch, written.dynamic_length, written.notes)


def _say_arguments(network: nn.Module, count: int) -> None:
    """Make a network, a copy, that takes arguments by name alone, all in one, or any number say that it takes so many in order.

    The exporter matches inputs and arguments by what `forward` says, before any hook; a decorator may hide it.
    """
    inner: Any = network.forward
    told, names = signature(inner), _input_names(network)
    rest = next((name for name, p in told.parameters.items() if p.kind is Parameter.VAR_POSITIONAL), None)
    if names is None and rest is not None:
        ordered = [name for name, p in told.parameters.items() if p.kind <= Parameter.POSITIONAL_OR_KEYWORD]
        names = [*ordered, *(f"{rest}_{number}" for number in range(count))][:count]
    if names is None:
        return
    try:
        told.bind(*names)
    except TypeError:
        rest = ""
    if rest is not None:
        forward: Any = lambda *inputs, **options: inner(*inputs, **options)  # noqa: E731
        forward.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
        network.forward = forward


def _input_names(network: nn.Module) -> list[str] | None:
    """What the inputs of a network that does not take them in order are called; None for one that does."""
    found = arrangement(network)
    return None if found is None else list(found.names)


class _Place(NamedTuple):
    """The file to write to at first, and whether its weights stay in a second one."""

    path: Path
    apart: bool


class _Written(NamedTuple):
    """A model that computes what the network does, and what it takes."""

    model: Model
    batch: int | None
    dynamic_length: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Exporter:
    """Makes models of networks, each a copy that may be changed.

    Attributes:
        inputs: example inputs, on the CPU.
        opset: the version of ONNX's operators; None for the exporter's own choice.
        runtime: runs the models, to compare them with the networks.
        beside: where weights are written one after another; None for a network that is not large.
        packs: whether the networks pack sequences.
        batch: of a model that cannot take any batch size, as for `export_onnx`.
    """

    inputs: Inputs
    opset: int | None
    runtime: Runtime
    beside: _Place | None
    packs: bool
    batch: int | None

    def best(self, network: nn.Module) -> _Written:
        """The model of a network, without the branches that are gone where that can be exported."""
        written = None
        if (zeros := with_zeros(network)) is not None:
            with suppress(FreePruneError):  # code between the modules of a branch may need more than a zero
                written = self._written(zeros)
        if written is None or written.batch is not None:
            written = self._written(network)
        return written

    def _written(self, network: nn.Module) -> _Written:
        """The model of a network: for any batch and length where that can be had.

        Raises:
            FreePruneError: it cannot be exported, or the export differs from it.
        """
        names = _named_outputs(network, self.inputs)
        lengths, notes = sequences(network, self.inputs), list[str]()
        model = None
        if lengths is not None:
            try:
                model = self._any_batch(network, names, lengths.axes)
                self._check(model, network, first_rows(lengths.shorter, CHECKED_BATCHES[-1]))
            except Exception as error:
                model = None
                notes.append(f"the ONNX file takes sequences of {lengths.longest} tokens only: {root_cause(error)}")
        dynamic_length, batch = model is not None, None
        try:
            model = model or self._any_batch(network, names, [{0: "batch"} for _ in self.inputs])
        except Exception as error:
            model, batch = self._one_batch(network, names)
            set_by = ", the size that `latency_batch` says" if batch == self.batch else ""
            notes = [f"the ONNX file takes batches of {batch} only{set_by}: {root_cause(error)}"]
        return _Written(model, batch, dynamic_length, tuple(notes))

    def _one_batch(self, network: nn.Module, names: list[str] | None) -> tuple[Model, int]:
        """The model of a network for one batch size, compared with it, and that size.

        Raises:
            FreePruneError: it cannot be exported, or the export differs from it.
        """
        fatal: Exception | None = None
        for batch in dict.fromkeys((self.batch or len(self.inputs[0]), len(self.inputs[0]))):
            inputs = first_rows(self.inputs, batch)
            try:
                model = self._traced(network, names, None, inputs)
                self._check(model, network, inputs)
                return model, batch
            except Exception as error:
                fatal = error
        assert fatal is not None
        raise FreePruneError(f"the network cannot be exported to ONNX: {root_cause(fatal)}") from fatal

    def _any_batch(self, network: nn.Module, names: list[str] | None, axes: list[Axes]) -> Model:
        """The model of a network, compared with it on batches of several sizes."""
        model = self._traced(network, names, axes, self.inputs)
        for batch in CHECKED_BATCHES:
            self._check(model, network, first_rows(self.inputs, batch))
        return model

    def _traced(self, network: nn.Module, names: list[str] | None, axes: list[Axes] | None, inputs: Inputs) -> Model:
        """The model of a network, checked by ONNX, without source paths and stack traces.

        Args:
            names: of the outputs; None for the exporter's own.
            axes: those of any size; None for inputs of fixed sizes.
            inputs: examples.
        """
        import onnx

        def exported(optimize: bool) -> Any:
            with padded() if self.packs else nullcontext():
                return torch.onnx.export(
                    network if self.beside is None else hollow(network),
                    inputs,
                    dynamo=True,
                    verbose=False,
                    optimize=optimize,
                    opset_version=self.opset,
                    input_names=_input_names(network),
                    output_names=names,
                    dynamic_shapes=None if axes is None else tuple(axes),
                    custom_translation_table=translations(),
                )

        def finish(proto: Any) -> None:
            strip(proto)
            if axes is None:
                fix_sizes(proto, inputs)

        def made(optimize: bool) -> Model:
            try:
                program = exported(optimize)
            except Exception:
                if not _attention_written_out(network):
                    raise
                program = exported(optimize)
            if self.beside is not None:
                return Beside(program, network, *self.beside, finish)
            proto = program.model_proto
            finish(proto)
            return Whole(proto)

        with quiet(), small_constants_kept():
            try:
                model = made(self.beside is None)
            except onnx.checker.ValidationError:  # the exporter's optimiser breaks what is clamped twice alike
                model = made(False)
        if self.opset not in (None, model.opset):  # the exporter keeps its own version where the conversion fails
            raise FreePruneError(
                f"its operators cannot be turned into those of opset {self.opset}; leave out `opset`, or give {model.opset}"
            )
        return model

    def _check(self, model: Model, network: nn.Module, inputs: Inputs) -> None:
        """Raise if the model's outputs differ from the network's, in shapes or in values."""
        batch = len(inputs[0])
        with torch.no_grad():
            expected = leaves(network(*inputs))
        try:
            opened = model.open(self.runtime)
        except Exception as error:
            raise FreePruneError(f"{self.runtime.name} cannot run it: {root_cause(error)}") from error
        given = run_rows(opened, as_arrays(inputs))
        shapes = [tuple(x.shape) for x in given]
        if shapes != [tuple(x.shape) for x in expected]:  # which may have the rows elsewhere, as states of a recurrent layer
            raise FreePruneError(f"for a batch of {batch} its outputs have shapes {shapes}")
        difference = relative_difference(expected, given)
        if difference > MAX_DIFFERENCE:
            raise FreePruneError(f"for a batch of {batch} the export differs from the network by {difference:.1e}")


def check_opset(opset: int | None) -> None:
    """Refuse a version of ONNX's operators that the exporter does not write."""
    import onnx

    highest = onnx.defs.onnx_opset_version()
    if opset is not None and not LOWEST_OPSET <= opset <= highest:
        raise FreePruneError(
            f"`opset` is {opset}, which the exporter does not write; give a number from {LOWEST_OPSET} to {highest}"
        )


def _named_outputs(network: nn.Module, inputs: Inputs) -> list[str] | None:
    """The names of the outputs of a network that returns a dictionary or a dataclass; None for others.

    Files hold tensors alone, so that the network, a copy, is made to return those: caches, for one, are left out.
    """
    try:
        with torch.no_grad():
            given = network(*inputs)
    except Exception:  # reported below, where it is exported
        return None
    parts = children(given)
    if parts is None or (isinstance(given, tuple | list) and all(isinstance(part, Tensor) for _, part in parts)):
        return None
    network.register_forward_hook(lambda module, args, output: tuple(leaves(output)))
    if isinstance(given, tuple | list):
        return None
    return [name for key, part in parts for name in _names(key, part)]


def _names(name: str, given: Any) -> list[str]:
    """The names of the tensors in a part of the outputs: `name` if it is one, else `name.0` or `name.key`."""
    if len(leaves(given)) < 2:
        return [name] * len(leaves(given))
    return [inner for key, part in children(given) or () for inner in _names(f"{name}.{key}", part)]


def fix_sizes(model: Any, inputs: Inputs) -> None:
    """State the sizes of the inputs, which the exporter may name as if they were free."""
    for given, x in zip(model.graph.input, inputs, strict=True):
        for dim, size in zip(given.type.tensor_type.shape.dim, x.shape, strict=True):
            dim.dim_value = size


def _attention_written_out(network: nn.Module) -> bool:
    """Make a network of Hugging Face's compute attention by plain operators; whether it did not before.

    The exporter cannot follow the fused operator everywhere, as in T5.
    """
    switch: Any = attribute(network, "set_attn_implementation")
    if switch is None or getattr(attribute(network, "config"), "_attn_implementation", "eager") == "eager":
        return False
    switch("eager")
    return True


def strip(message: Any) -> None:
    """Remove properties and doc strings, which hold source paths and stack traces, at every depth."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                strip(part)
