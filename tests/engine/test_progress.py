"""Who is shown how far a job is."""

import io
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr

import pytest

from freeprune.engine.progress import reported, silent


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(asked):
    with reported(asked) as progress:
        progress("search", 3, 4, "best score 1.5")
    return progress


def drawn(asked):
    """What of it comes to a terminal."""
    with redirect_stderr(Terminal()) as terminal:
        told(asked)
    return terminal.getvalue()


def kept_silent(_):
    sys.stderr = Terminal()
    return told(None) is silent


def test_bars_are_drawn_in_a_terminal_unless_told_otherwise():
    assert "search" in drawn(None)
    assert "3/4" in drawn(None)
    assert drawn(False) == ""


@pytest.mark.parametrize("asked", [None, False])
def test_nothing_is_drawn_where_nobody_looks(asked, capsys):
    assert told(asked) is silent
    assert capsys.readouterr() == ("", "")


def test_bars_are_drawn_anywhere_if_asked_for(capsys):
    told(True)
    assert "best score 1.5" in capsys.readouterr().err


def test_a_function_is_called_instead():
    calls = []
    assert drawn(lambda *stage: calls.append(stage)) == ""
    assert calls == [("search", 3, 4, "best score 1.5")]


def test_a_job_inside_of_another_draws_nothing():
    with redirect_stderr(Terminal()):
        with reported() as outer:
            assert told(None) is silent
        assert outer is not silent
        assert told(None) is not silent


def test_workers_draw_nothing():
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as workers:
        assert list(workers.map(kept_silent, [0])) == [True]
