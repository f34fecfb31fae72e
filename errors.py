"""The error, the warning, and helpers to word them. Does not import torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager

CODES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|.)|[\x00-\x08\x0b-\x1f\x7f]")  # colours and the like


class FreePruneError(Exception):
    """An error that the user can fix. Its text is one sentence: what was given, what was expected, what to do.

    Arguments are named in backticks, as in Python: `trials`, `resume=True`. The command line turns them into `--trials` and
    `--resume`, so that one sentence serves both.
    """


class FreePruneWarning(UserWarning):
    """A warning that the input may be wrong; the run goes on. Worded like an error."""


CLOSE = 0.65  # how alike a name must be to be suggested; `bayes` and `cmaes` are by 0.6


def nearest(name: str, known: list[str]) -> str:
    """Suggests the closest known name, or lists all of them; ends the sentence about an unknown name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=CLOSE)
    if close:
        return f"did you mean {close[0]!r}? (known: {', '.join(known)})"
    return f"known: {', '.join(known)}"


def brief(text: object) -> str:
    """Untrusted text, cut to 200 characters."""
    whole = str(text)
    return whole if len(whole) <= 200 else f"{whole[:200]}..."


def unlike(was: object, now: object) -> str:
    """Two values as a sentence sets them against each other: "1, not 2"; of two dictionaries what differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        was, now = ({name: one.get(name) for name in names} for one in (was, now))
    return f"{brief(repr(was))}, not {brief(repr(now))}"


def with_article(name: str) -> str:
    """The name of a type as a sentence has it: "a list", "an int64 tensor"."""
    return f"{'an' if name[:1] in 'aeioAEIO' else 'a'} {name}"


def cause(error: BaseException) -> str:
    """The type of an error and the first line of its text."""
    line = first_line(error)
    return f"{type(error).__name__}: {brief(line)}" if line else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: of a device, of Python, or of torch on a CPU, which has no class."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def out_of_memory(error: BaseException, way_out: str) -> FreePruneError:
    """The error in place of one that `is_out_of_memory`; `way_out` says what to lower."""
    where = "the device" if type(error).__name__ == "OutOfMemoryError" else "this machine"
    return FreePruneError(f"{where} is out of memory ({first_line(error)}); {way_out}")


@contextmanager
def backward_pass(way_out: str, kind: type[FreePruneError] = FreePruneError) -> Iterator[None]:
    """Around a backward pass through the user's network; what fails there becomes one sentence.

    Args:
        way_out: what to do but give another network.

    Raises:
        FreePruneError: of that kind; an operation has no derivative or a wrong one, or gradients are turned off.
    """
    try:
        yield
    except FreePruneError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise kind(
            f"the network's backward pass failed ({cause(error)}); give one whose operations all have a gradient, or {way_out}"
        ) from error


def first_line(text: object) -> str:
    """The first line of a text, such as that of an error, without codes for a terminal; "" where there is none."""
    return CODES.sub("", str(text)).strip().partition("\n")[0].strip()


def amount(value: float) -> str:
    """Format a cost: 17.9M, 126.0M, 42."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.1f}{suffix}"
    return f"{value:g}"
