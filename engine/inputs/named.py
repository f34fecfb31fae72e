"""Objects that are named by a text: `package.module:callable` or `path/to/file.py:callable`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import FreePruneError, cause, nearest
from ..user_code import FROM_FILE, place_of
from .libraries import closest


def call(spec: str, others: Sequence[str] = ()) -> object:
    """What the callable that `spec` names returns; it takes no argument. `others` is as for `load_object`.

    Raises:
        FreePruneError: as for `load_object`; it needs arguments; calling it failed.
    """
    function = load_object(spec, others)
    _check_no_arguments(spec, function)
    with _importable(_folders(spec)):
        try:
            return function()
        except FreePruneError:
            raise
        except (Exception, SystemExit) as error:
            where = f"{cause(error)}{place_of(error)}"
            raise FreePruneError(f"{spec!r} failed when called ({where}); mend it or name another") from error


def load_object(spec: str, others: Sequence[str] = (), *, kind: str = "callable") -> Any:
    """The callable, or any object, that `spec` names.

    The working directory, and the folder of a file, can be imported from meanwhile; `sys.path` is put back.

    Args:
        spec: `package.module:callable` or `path/to/file.py:callable`.
        others: what else may stand where `spec` does, for the sentence about one that names nothing.
        kind: "callable", or "object" for anything.

    Raises:
        FreePruneError: no such module, file or callable; importing it failed.
    """
    place, colon, name = spec.rpartition(":")
    if not (place and colon and name.isidentifier()):
        hint = f"; {nearest(spec, list(others))}" if others else ""
        raise FreePruneError(f"{spec!r} names no {kind}; expected package.module:{kind} or path/to/file.py:{kind}{hint}")
    with _importable(_folders(spec)):
        try:
            module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        except FreePruneError:
            raise
        except (Exception, SystemExit) as error:  # a script without a main guard may call sys.exit
            absent = isinstance(error, ModuleNotFoundError) and error.name == place.partition(".")[0]
            hint = f"; {nearest(spec, list(others))}" if absent and others else ""
            at = "" if absent or isinstance(error, SyntaxError) else place_of(error)  # which say it, or have none
            raise FreePruneError(
                f"{spec!r} cannot be used, since importing {place!r} failed ({cause(error)}{at}); name an importable module "
                f"or an existing file.py{hint}"
            ) from error
    found = getattr(module, name, None)
    if found is None or (kind == "callable" and not callable(found)):
        known = [
            key for key, value in vars(module).items() if (kind == "object" or callable(value)) and not key.startswith("_")
        ]
        made_there = [key for key in known if str(getattr(vars(module)[key], "__module__", "")).startswith(module.__name__)]
        raise FreePruneError(f"{place!r} has no {kind} {name!r}; {closest(name, made_there or known)}")
    return found


def _folders(spec: str) -> list[str]:
    """Where the modules that a spec names, and those that they import, are looked for."""
    place = spec.rpartition(":")[0]
    return [*([str(Path(place).resolve().parent)] if place.endswith(".py") else []), os.getcwd()]


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
    name = f"{FROM_FILE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
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
