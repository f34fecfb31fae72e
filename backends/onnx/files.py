"""ONNX models on their way to a file: whole, or with the weights in a second file, which are then never all in memory."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...copies import copied
from ...disk import unwritable, write_atomically
from ...errors import FreePruneError
from ...lending import HALVES, given_back
from .runtime import Opened, Runtime

DATA = ".data"  # after the name of a file, for its weights
SMALLEST = 8192  # entries: what is larger does not take part in the exporter's folding of constants


def data_of(path: Path) -> Path:
    """The second file of an ONNX file, whether there is one or not."""
    return path.with_name(f"{path.name}{DATA}")


def bytes_of(path: Path) -> int:
    """The size of an ONNX file, with its second one."""
    return sum(one.stat().st_size for one in (path, data_of(path)) if one.exists())


def is_whole(path: Path) -> bool:
    """Whether there is an ONNX file, and beside it its second one where it names one."""
    if not path.exists() or data_of(path).exists():
        return path.exists()
    return data_of(path).name.encode() not in path.read_bytes()


class Model(ABC):
    """A model that can be run and written.

    Attributes:
        opset: the version of its operators.
    """

    opset: int

    @abstractmethod
    def open(self, runtime: Runtime) -> Opened:
        """Open it with one thread; raises any Exception, as `Runtime.open` does."""

    @abstractmethod
    def save(self, path: Path, metadata: Mapping[str, str]) -> int:
        """Write it atomically with these properties, sorted by key; its size in bytes."""


class Whole(Model):
    """A ModelProto that holds its weights."""

    def __init__(self, proto: Any) -> None:
        import onnx

        self._proto, self.opset = proto, _opset(proto)
        onnx.checker.check_model(proto, full_check=True)

    def open(self, runtime: Runtime) -> Opened:
        return runtime.open(self._proto.SerializeToString(), 1)

    def save(self, path: Path, metadata: Mapping[str, str]) -> int:
        return self.write(self._proto, path, metadata)

    @staticmethod
    def write(proto: Any, path: Path, metadata: Mapping[str, str]) -> int:
        describe(proto, metadata)
        content: bytes = proto.SerializeToString(deterministic=True)
        write_atomically(path, content)
        data_of(path).unlink(missing_ok=True)
        return len(content)


class Beside(Model):
    """A model whose weights lie in a second file while it is made and checked.

    Args:
        program: what the exporter made of `hollow(network)`, without optimising it.
        network: gives the weights, one at a time.
        path: where it is made, on the disk of the file to come.
        apart: whether they stay in a second file.
        finish: changes the ModelProto, which has no weights.
    """

    def __init__(self, program: Any, network: nn.Module, path: Path, apart: bool, finish: Callable[[Any], None]) -> None:
        import onnx
        import onnx_ir

        self._file, self._apart = path, apart
        weights = _taken_out(program.model, network)
        program.optimize()
        _put_in(program.model, weights)
        try:
            onnx_ir.save(program.model, self._file, external_data=data_of(self._file).name)
        except OSError as error:
            raise FreePruneError(
                f"{data_of(path)} cannot be written ({error.strerror or error}); make room, or give another `out`"
            ) from None
        proto = onnx.load(self._file, load_external_data=False)
        finish(proto)
        self.opset = _opset(proto)
        onnx.save(proto, self._file)
        onnx.checker.check_model(str(self._file))

    def open(self, runtime: Runtime) -> Opened:
        return runtime.open(str(self._file), 1)

    def save(self, path: Path, metadata: Mapping[str, str]) -> int:
        """As `Model.save`, as far as two files allow.

        After an error the older file is as it was. After a crash there is the older one, the whole newer one or, where the
        older one had a second file too, neither, but never one with the weights of the other.
        """
        import onnx

        proto = onnx.load(self._file, load_external_data=not self._apart)
        if not self._apart:
            return Whole.write(proto, path, metadata)
        describe(proto, metadata)
        try:
            self._file.write_bytes(proto.SerializeToString(deterministic=True))
            _put(self._file, path)
        except OSError as error:
            raise unwritable(path, error) from None
        return bytes_of(path)


def _put(file: Path, path: Path) -> None:
    """Move a file and its second one to a place on the same disk; after an error there is what there was."""
    for one in (data_of(file), file):
        with one.open("rb+") as written:
            os.fsync(written.fileno())
    # With other weights beside it a file computes something else, so an older one with a second file goes first.
    older = [one for one in (path, data_of(path)) if one.exists()] if data_of(path).exists() else []
    moves = [(one, file.with_name(f"{one.name}.older")) for one in older] + [(data_of(file), data_of(path)), (file, path)]
    done: list[tuple[Path, Path]] = []
    try:
        for move in moves:
            os.replace(*move)
            done.append(move)
    except OSError:
        for source, target in reversed(done):
            os.replace(target, source)
        raise


def hollow(network: nn.Module) -> nn.Module:
    """A copy in float32 whose larger weights take no memory; what it computes means nothing."""
    small = {id(p): nn.Parameter(p.detach().float(), False) for p in network.parameters() if p.dtype in HALVES}
    large = {id(p): nn.Parameter(torch.zeros(1).expand(p.shape), False) for p in network.parameters() if p.numel() > SMALLEST}
    return given_back(copied(network, {**small, **large}))


def _taken_out(model: Any, network: nn.Module) -> dict[str, Tensor]:
    """Take the larger weights out of a model; by their names in it those of the network."""
    initializers = model.graph.initializers
    known = {name: p.detach() for name, p in network.named_parameters(remove_duplicate=False) if p.numel() > SMALLEST}
    found = {name: tensor for name, tensor in known.items() if name in initializers}
    for name in found:
        initializers[name].const_value = None
    return found


def _put_in(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Give a model its weights, those turned that it turns before it reads them, as the exporter does where it folds."""
    import onnx_ir

    graph = model.graph
    for name, tensor in weights.items():
        value = graph.initializers.get(name)
        if value is None:  # nothing reads it
            continue
        uses = value.consumers()
        turn = uses[0] if len(uses) == 1 and uses[0].op_type == "Transpose" and tensor.dim() == 2 else None
        if turn is None:
            value.const_value = _lazy(tensor, name)
            continue
        turned = onnx_ir.Value(name=f"{name}.T", shape=onnx_ir.Shape(tensor.T.shape), type=value.type)
        turned.const_value = _lazy(tensor.T, turned.name)
        graph.initializers[turned.name] = turned
        onnx_ir.convenience.replace_all_uses_with(turn.outputs[0], turned)
        graph.remove(turn, safe=True)
        del graph.initializers[name]


def _lazy(tensor: Tensor, name: str | None) -> Any:
    """A tensor that is made when it is written."""
    import onnx_ir

    def made() -> Any:
        return onnx_ir.Tensor(tensor.float().contiguous().numpy(), name=name)

    return onnx_ir.LazyTensor(made, onnx_ir.DataType.FLOAT, onnx_ir.Shape(tensor.shape), name=name)


def describe(proto: Any, metadata: Mapping[str, str]) -> None:
    """Add properties to a ModelProto, sorted by key."""
    for key in sorted(metadata):
        proto.metadata_props.add(key=key, value=metadata[key])


def _opset(proto: Any) -> int:
    return int(next(one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")))
