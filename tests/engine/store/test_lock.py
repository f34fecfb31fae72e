import os
import threading

import pytest

from freeprune.engine.store import lock
from freeprune.engine.store.lock import LOCK, leave, occupy

fcntl = pytest.importorskip("fcntl")


def test_the_file_of_a_run_that_leaves_meanwhile_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    locked, opened = fcntl.lockf, []

    def late(file, how):
        opened.append(file)
        if len(opened) == 1:  # the other run leaves between opening and locking
            (tmp_path / LOCK).unlink()
        locked(file, how)

    monkeypatch.setattr(fcntl, "lockf", late)
    occupy(tmp_path)
    assert len(opened) == 2
    held = lock.held[tmp_path.resolve(), threading.get_ident()]
    assert os.path.samestat(os.fstat(held), (tmp_path / LOCK).stat())
    leave(tmp_path)
    assert not (tmp_path / LOCK).exists()
