"""Functions and items on their way to the actors of a Ray cluster: pickled, with code that is not installed there."""

from __future__ import annotations

import importlib
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import FreePruneError, cause

PACKAGE = __name__.partition(".")[0]
STANDARD = Path(sysconfig.get_path("stdlib"))


def cloudpickle() -> Any:
    """What Ray pickles by."""
    return importlib.import_module("ray.cloudpickle")


def packed(function: Callable[[Any], Any]) -> bytes:
    """A pickled function, with the code of modules that are not installed, such as the user's own file."""
    pickler = cloudpickle()
    with _by_value(pickler):
        try:
            found: bytes = pickler.dumps(function)
        except Exception as error:
            raise FreePruneError(
                f"the network or the data cannot be sent to Ray actors ({cause(error)}); leave out `ray`, or keep what cannot "
                "be pickled (open files, locks) out of them"
            ) from error
    return found


@contextmanager
def _by_value(pickler: Any) -> Iterator[None]:
    """Has the code of local modules pickled with what refers to it."""
    known = pickler.list_registry_pickle_by_value()
    local = [module for name, module in sys.modules.copy().items() if name not in known and _is_local(name, module)]
    for module in local:
        pickler.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in local:
            pickler.unregister_pickle_by_value(module)


def _is_local(name: str, module: Any) -> bool:
    """Whether a module is the user's own code, which a node may lack, rather than an installed package."""
    if not isinstance(module, ModuleType) or module.__name__ != name or name.partition(".")[0] == PACKAGE:
        return False
    file = module.__dict__.get("__file__")
    if file is None or name == "__main__":
        return False
    path = Path(file)
    return STANDARD not in path.parents and not {"site-packages", "dist-packages"} & set(path.parts)
