"""Where a network comes from: the built-in ones, torchvision, timm, any callable; and the weights that fill it."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ...common import FreePruneError, brief, cause, nearest
from .networks import NETWORKS

# library: (module to import, its builder by name, what the builder is told besides the name)
LIBRARIES: dict[str, tuple[str, str, dict[str, object]]] = {
    "torchvision": ("torchvision.models", "get_model", {"weights": None}),
    "timm": ("timm", "create_model", {"pretrained": False}),
}

# Under which key training scripts put the state dict of a checkpoint.
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")

PREFIXES = ("module.", "_orig_mod.")  # that wrappers put before every key
COUNTER = "n_averaged"  # that `AveragedModel` adds


def load_model(spec: str) -> nn.Module:
    """Builds the network that `spec` names, with fresh (random) weights drawn from PyTorch's global generator.

    Args:
        spec: a built-in name (`cifar:resnet56`, `digits:cnn`), `torchvision:NAME`, `timm:NAME`,
            `package.module:callable` or `path/to/file.py:callable`; the callable takes no argument.

    Raises:
        FreePruneError: there is no such network, or building it failed.
    """
    if spec in NETWORKS:
        return NETWORKS[spec]()
    source, colon, name = spec.partition(":")
    if source in LIBRARIES:
        network = _from_library(source, name)
    elif not colon or any(known.startswith(f"{source}:") for known in NETWORKS):
        raise FreePruneError(
            f"there is no model {spec!r}; give package.module:callable, path/to/file.py:callable, torchvision:NAME, "
            f"timm:NAME or a built-in one; {nearest(spec, sorted(NETWORKS))}"
        )
    else:
        network = call(spec, [*sorted(NETWORKS), *(f"{library}:NAME" for library in LIBRARIES)])
    if not isinstance(network, nn.Module):
        raise FreePruneError(f"{spec!r} returned {_kind(network)}; expected a torch.nn.Module")
    return network


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Fills a network that was just built with the weights of a file, in place, and returns it.

    A key that the file lacks is tolerated when it is a batch norm's `num_batches_tracked`, or tied to a tensor that the
    file has. A checkpoint that holds its state dict under `state_dict`, `model_state_dict` or `model`, and what wrappers put
    before every key (`module.`, `_orig_mod.`), are understood.

    Args:
        network: changed only if everything fits.
        path: `.safetensors`, or a `.pt` or `.pth` file of tensors (read without unpickling code).

    Raises:
        FreePruneError: the file is missing or unreadable, holds something else, does not fit, or has values that are not
            finite.
    """
    expected = network.state_dict(keep_vars=True)
    given = _without_prefixes(_read_state(Path(path)), expected)

    loaded = {id(expected[key]) for key in given.keys() & expected.keys()}
    missing = [
        key
        for key, tensor in expected.items()
        if key not in given and not key.endswith("num_batches_tracked") and id(tensor) not in loaded
    ]
    unexpected = [key for key in given if key not in expected]
    reshaped = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in given and given[key].shape != tensor.shape
    ]
    retyped = [
        f"{key} {given[key].dtype} instead of {tensor.dtype}"
        for key, tensor in expected.items()
        if key in given and given[key].is_floating_point() != tensor.is_floating_point()
    ]
    troubles = [
        f"{len(keys)} {what} ({_shortened(keys)})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
            ("of another type", retyped),
        )
        if keys
    ]
    if troubles:
        raise FreePruneError(
            f"the weights in {str(path)!r} do not fit the network: of its {len(expected)} tensors and the file's "
            f"{len(given)}, {', '.join(troubles)}; give the weights of this very network"
        )
    for key, tensor in given.items():
        if not bool(torch.isfinite(tensor.double() if tensor.is_floating_point() else tensor).all()):  # float8 has no isfinite
            raise FreePruneError(f"tensor {brief(repr(key))} in {str(path)!r} has NaN or infinite values; give sound weights")
    network.load_state_dict(given, strict=False)
    return network


def _without_prefixes(given: dict[str, Tensor], expected: Mapping[str, object]) -> dict[str, Tensor]:
    """A state dict as the bare network has it, from that of a network in `DataParallel`, `AveragedModel` or `torch.compile`."""
    while not given.keys() & expected.keys():
        own = {key: tensor for key, tensor in given.items() if key != COUNTER}
        prefix = next((p for p in PREFIXES if own and all(key.startswith(p) for key in own)), None)
        if prefix is None:
            return given
        given = {key.removeprefix(prefix): tensor for key, tensor in own.items()}
    return given


def call(spec: str, others: Sequence[str] = ()) -> object:
    """What the callable that `spec` names returns; it takes no argument. `others` is as for `resolve`.

    Raises:
        FreePruneError: as for `resolve`; it needs arguments; calling it failed.
    """
    function = resolve(spec, others)
    _check_no_arguments(spec, function)
    with _importable(_folders(spec)):
        try:
            return function()
        except FreePruneError:
            raise
        except (Exception, SystemExit) as error:
            raise FreePruneError(f"{spec!r} failed when called ({cause(error)}); mend it or name another") from error


def resolve(spec: str, others: Sequence[str] = (), *, kind: str = "callable") -> Any:
    """The callable, or any object, that `spec` names.

    The working directory, and the folder of a file, can be imported from meanwhile; `sys.path` is put back.

    Args:
        spec: `package.module:callable` or `path/to/file.py:callable`.
        kind: "callable", or "object" for anything.
        others: what else may stand where `spec` does, for the sentence about a module that does not exist.

    Raises:
        FreePruneError: no such module, file or callable; importing it failed.
    """
    place, colon, name = spec.rpartition(":")
    if not (place and colon and name):
        raise FreePruneError(f"{spec!r} names no {kind}; expected package.module:{kind} or path/to/file.py:{kind}")
    with _importable(_folders(spec)):
        try:
            module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        except FreePruneError:
            raise
        except (Exception, SystemExit) as error:  # a script without a main guard may call sys.exit
            absent = isinstance(error, ModuleNotFoundError) and error.name == place.partition(".")[0]
            hint = f"; {nearest(spec, list(others))}" if absent and others else ""
            raise FreePruneError(
                f"{spec!r} cannot be used, since importing {place!r} failed ({cause(error)}); name an importable module "
                f"or an existing file.py{hint}"
            ) from error
    found = getattr(module, name, None)
    if found is None or (kind == "callable" and not callable(found)):
        known = [
            key for key, value in vars(module).items() if (kind == "object" or callable(value)) and not key.startswith("_")
        ]
        raise FreePruneError(f"{place!r} has no {kind} {name!r}; {_closest(name, known)}")
    return found


def _folders(spec: str) -> list[str]:
    """Where the modules that a spec names, and those that they import, are looked for."""
    place = spec.rpartition(":")[0]
    return [*([str(Path(place).resolve().parent)] if place.endswith(".py") else []), os.getcwd()]


def _from_library(library: str, name: str) -> object:
    module_name, builder, options = LIBRARIES[library]
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == library
        advice = f"pip install 'freeprune[{library}]'" if absent else "install a build that matches this torch"
        raise FreePruneError(
            f"'{library}:{name}' needs {library}, which cannot be imported here ({cause(error)}); {advice}"
        ) from error
    try:
        network: object = getattr(module, builder)(name, **options)
    except Exception as error:
        known: list[str] = module.list_models()
        reason = f"building it failed ({cause(error)})" if name in known else _closest(name, known)
        raise FreePruneError(f"there is no model '{library}:{name}' to be had; {reason}") from error
    return network


@contextmanager
def _importable(folders: list[str]) -> Iterator[None]:
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            with suppress(ValueError):  # the user's module may have taken it out itself
                sys.path.remove(folder)


def _import_file(path: Path) -> ModuleType:
    """The module in a file, executed once per process like any import."""
    path = path.resolve()
    if not path.is_file():
        raise FreePruneError(f"there is no file {str(path)!r}; give the path of an existing Python file")
    name = f"freeprune_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = SourceFileLoader(name, str(path))
    spec = ModuleSpec(name, loader, origin=str(path))
    spec.has_location = True  # gives the module its __file__
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, among others, look their module up
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_no_arguments(spec: str, function: Callable[..., object]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables do not tell theirs
        return
    try:
        signature.bind()
    except TypeError as error:
        raise FreePruneError(
            f"{spec!r} needs arguments {signature} ({error}); name a callable that takes none, such as a function that "
            "fills them in"
        ) from error


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU."""
    readers: dict[str, Callable[[Path], object]] = {
        ".safetensors": safetensors.torch.load_file,
        ".pt": _read_torch,
        ".pth": _read_torch,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise FreePruneError(f"weights {str(path)!r} end in {suffix!r}; expected {', '.join(readers)}")
    if not path.is_file():
        raise FreePruneError(f"there is no weights file {str(path)!r}; give the path of an existing file")
    try:
        content = readers[suffix](path)
    except Exception as error:
        raise FreePruneError(
            f"weights {str(path)!r} cannot be read ({cause(error)}); expected a sound file that holds only tensors, such "
            "as one of network.state_dict()"
        ) from error
    for key in CHECKPOINT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise FreePruneError(f"{str(path)!r} holds {_kind(content)}; expected a state dict with at least one tensor")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise FreePruneError(
                f"{str(path)!r} holds {_kind(value)} under {brief(repr(key))}; expected a state dict: names and tensors only"
            )
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            raise FreePruneError(
                f"tensor {brief(repr(key))} in {str(path)!r} holds no plain numbers; expected dense, unquantised weights"
            )
    return dict(content)


def _read_torch(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _closest(name: str, known: Iterable[str]) -> str:
    """Suggests up to three names close to an unknown one."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.3)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else "no name there is close to it"


def _shortened(keys: list[str]) -> str:
    return ", ".join(map(brief, keys[:3])) + (", ..." if len(keys) > 3 else "")


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
