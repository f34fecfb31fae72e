"""What goes to stdout and to stderr: the result of a command alone, and lines for people."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import click

from ...errors import FreePruneWarning
from .wording import in_options

JSON = "freeprune.json"  # the result of a command, in what click hands from one function to another


def as_json(document: Any) -> None:
    """Print the result of a command with --json."""
    click.get_current_context().meta[JSON] = json.dumps(document)


@contextmanager
def alone_on_stdout(ctx: click.Context) -> Iterator[None]:
    """Has stdout hold the JSON result and nothing else.

    What the user's code prints, or a process that it starts, goes to stderr.
    """
    try:
        with _printed_to_stderr():
            yield
    finally:
        if JSON in ctx.meta:
            click.echo(ctx.meta[JSON])


@contextmanager
def _printed_to_stderr() -> Iterator[None]:
    sys.stdout.flush()
    try:
        out, err = sys.stdout.fileno(), sys.stderr.fileno()
    except OSError:  # replaced by an object without a file
        with redirect_stdout(sys.stderr):
            yield
        return
    before = os.dup(out)
    os.dup2(err, out)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(before, out)
        os.close(before)


def say(sentence: str) -> None:
    """A line on stderr."""
    print(f"freeprune: {sentence}", file=sys.stderr)  # noqa: T201


@contextmanager
def warnings_shown(command: str) -> Iterator[None]:
    """Prints every warning of the library as a line on stderr; other warnings are handled as before."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", FreePruneWarning)
        otherwise, told = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, FreePruneWarning):
                if str(message) in told:  # of the training and of the test data, say
                    return
                told.add(str(message))
                say(f"warning: {in_options(str(message), command)}")
            else:
                otherwise(message, category, *place, **more)

        warnings.showwarning = show
        yield
