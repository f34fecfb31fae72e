"""One run at a time in a folder."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from ...errors import FreePruneError

LOCK = ".running"

held: dict[tuple[Path, int], int] = {}  # file descriptors, by folder and thread


def occupy(folder: Path) -> None:
    """Take a folder for this run, until `leave`. A lock of the operating system: that of a process that was killed is gone.

    Raises:
        FreePruneError: another run is writing there.
    """
    key = (folder.resolve(), threading.get_ident())
    if key in held:
        return
    occupied = FreePruneError(f"another run is writing to {folder}; wait for it, or give another `out`")
    if any(path == key[0] for path, _ in held):
        raise occupied
    try:
        import fcntl
    except ImportError:  # on Windows there is no such lock
        return
    while True:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(file)
            raise occupied from None
        except OSError:  # a file system without locks
            os.close(file)
            return
        if _is_at(file, folder / LOCK):
            held[key] = file
            return
        os.close(file)  # of a run that left in between, and took its file away


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that a path leads to."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def occupies(folder: Path) -> bool:
    """Whether this thread has taken the folder."""
    return (folder.resolve(), threading.get_ident()) in held


def leave(folder: Path) -> None:
    """Give a folder back that this thread occupies."""
    file = held.pop((folder.resolve(), threading.get_ident()), None)
    if file is not None:
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        os.close(file)
