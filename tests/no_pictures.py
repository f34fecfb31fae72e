"""Studies without their plots, which take as long as the rest of a small study.

For tests that look at what studies find. Those that look at the plots make their study within `pictures`.
"""

from contextlib import contextmanager

import pytest

from freeprune.engine.report import plots

DRAW = plots.draw


@contextmanager
def no_pictures():
    """Within it studies draw nothing."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plots, "draw", lambda *given, **more: None)
        yield


@contextmanager
def pictures():
    """Within it studies draw what users get, whatever is around it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plots, "draw", DRAW)
        yield
