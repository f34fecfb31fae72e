"""Calls of the user's own functions: an error becomes a sentence with its location, and the traceback is kept."""

from __future__ import annotations

import inspect
import math
import os
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from ..common import Batch, Candidate
from ..errors import FreePruneError, FreePruneWarning, cause, is_out_of_memory, with_article
from ..metrics import Metric, Reference

FROM_FILE = "freeprune_file_"  # begins the name of a module that is a file given by its path
ROOT = Path(__file__).parent.parent
OURS = tuple(f"{ROOT / folder}{os.sep}" for folder in ("engine", "search", "metrics", "backends"))
INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib"))


class UserError(FreePruneError):
    """An error in the user's own code.

    Attributes:
        trace: the whole traceback.
    """

    def __init__(self, sentence: str, trace: str) -> None:
        super().__init__(sentence, trace)  # both arguments, so that it can be pickled by a worker
        self.trace = trace

    def __str__(self) -> str:
        return str(self.args[0])


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Turns an error of the user's code into one sentence.

    Args:
        what: the code that failed, such as "the fine-tuning function 'my:tune'".

    Raises:
        UserError: in place of any error but a FreePruneError and a lack of memory.
    """
    try:
        yield
    except FreePruneError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        trace = "".join(traceback.format_exception(error))
        raise UserError(f"{what} failed ({cause(error)}{place_of(error)}); mend it", trace) from error


def warn(sentence: str) -> None:
    """Gives a warning at the line of the user's code that called the library."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(FreePruneWarning(sentence), stacklevel=level)


def place_of(error: BaseException) -> str:
    """Where in the user's code an error was raised, as ` at file.py:12`; empty if no such code was running.

    The innermost line outside this library and installed packages; if there is none, the innermost of an installed package.
    """
    places = []
    step: TracebackType | None = error.__traceback__
    while step is not None:
        places.append((step.tb_frame.f_code.co_filename, step.tb_lineno))
        step = step.tb_next
    others = [one for one in places if not one[0].startswith((*OURS, "<")) and Path(one[0]).parent != ROOT]
    own = [one for one in others if not one[0].startswith(INSTALLED)] or others
    return f" at {own[-1][0]}:{own[-1][1]}" if own else ""


def called(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a user's function; errors as in `telling`."""
    with telling(f"{what} {shown_name(function)!r}"):
        return function(*arguments)


def check_takes(what: str, function: Any, taken: str, meaning: str = "") -> None:
    """Refuse a function of the user's that cannot be called with these arguments, before anything long begins.

    Args:
        what: the function, as a sentence about it begins.
        taken: the names of the arguments, joined by commas.
        meaning: what they are, as the sentence goes on.
    """
    try:
        signature = inspect.signature(function)
        signature.bind(*taken.split(", "))
    except ValueError:  # some built-in callables do not tell theirs
        return
    except TypeError:
        told = f"takes {inspect.signature(function)}" if callable(function) else f"is {with_article(type(function).__name__)}"
        raise FreePruneError(f"{what} {told}; give a function of ({taken}){meaning}") from None


def scored(metric: Metric, candidate: Candidate, dense: Reference, batch: Batch) -> float:
    """The score that a metric gives, as a float."""
    found = called("the metric", metric, candidate, dense, batch)
    try:
        return float(found)
    except (RuntimeError, TypeError, ValueError):
        raise FreePruneError(
            f"the metric {shown_name(metric)!r} returned {with_article(type(found).__name__)}, where one number was expected; "
            "mend it"
        ) from None


def comparable(score: float) -> float:
    """A score by which networks are ordered: what is not finite never wins."""
    return score if math.isfinite(score) else -math.inf


def shown_name(function: Any) -> str:
    """The name of a function for sentences: `module:name`, or `file.py:name`."""
    place, _, name = name_of(function).rpartition(":")
    return f"{Path(place).name}:{name}"


def name_of(function: Any) -> str:
    """The name of a function as `module:name`; of one in a file that was given by its path, as `path/to/file.py:name`."""
    place = str(getattr(function, "__module__", "?"))
    if place.startswith(FROM_FILE) and place in sys.modules:
        place = os.path.relpath(str(sys.modules[place].__file__))
    return f"{place}:{getattr(function, '__qualname__', type(function).__name__)}"
