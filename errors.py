"""The error and the warning, and what their sentences are made of; nothing here needs torch."""

from __future__ import annotations

import difflib


class FreePruneError(Exception):
    """Something the user can mend. Its text is one sentence: what was given, what was expected, what to do.

    Arguments stand in it between backticks, as they are written in Python: `trials`, `resume=True`. The command line says
    `--trials` and `--resume` instead, so that one sentence serves both.
    """


class FreePruneWarning(UserWarning):
    """Something that may be wrong with what was given; the run goes on. Its text is a sentence like that of an error."""


def nearest(name: str, known: list[str]) -> str:
    """The end of a sentence about an unknown name: the closest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}? (known: {', '.join(known)})"
    return f"known: {', '.join(known)}"


def brief(text: object) -> str:
    """What a sentence can quote of a text that somebody else decides on."""
    whole = str(text)
    return whole if len(whole) <= 200 else f"{whole[:200]}..."


def cause(error: BaseException) -> str:
    """The type of an error and the first line of its text."""
    line = first_line(error)
    return f"{type(error).__name__}: {brief(line)}" if line else type(error).__name__


def first_line(text: object) -> str:
    """The first line of a text, such as that of an error; "" where there is none."""
    return str(text).strip().partition("\n")[0]
