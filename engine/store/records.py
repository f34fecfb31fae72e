"""A file of records, one line of JSON each, written as they are made."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ...disk import DAMAGE, parse_json, unwritable, write_atomically
from ...errors import FreePruneError

Parsed = TypeVar("Parsed")

SYNCED = 1.0  # seconds between two syncs at least; each waits for the disk, as long as a small network takes to be scored


class Records:
    """A file of records that new ones are appended to.

    Args:
        path: the file; made when the first record is added. A last line that a crash cut short is dropped.
        kind: of the records; written to the first line with the version.
        version: of the format of a record.
        mend: whether a last line cut short is dropped from the file as well; False if another process may be writing it.

    Attributes:
        entries: the records, oldest first.

    Raises:
        FreePruneError: the file holds something else, is damaged before its last line, or comes from another version.
    """

    def __init__(self, path: Path, kind: str, version: int = 1, mend: bool = True) -> None:
        self.path, self.kind, self.version = path, kind, version
        self.entries: list[dict[str, Any]] = []
        self._synced = -math.inf  # when what was written had reached the disk
        if path.exists():
            self._read(mend)

    def _read(self, mend: bool) -> None:
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise FreePruneError(
                f"{self.path} cannot be read ({error.strerror}); start the run again with `force=True`"
            ) from None
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines()):
            try:
                entry = parse_json(line)
                if not isinstance(entry, dict):
                    raise TypeError(f"{type(entry).__name__} instead of a record")
                known = number > 0 or entry[self.kind] == self.version
            except DAMAGE:
                raise self._damaged(number) from None
            if not known:
                raise FreePruneError(
                    f"{self.path} was written by another version of freeprune; start the run again with `force=True`"
                )
            if number > 0:
                self.entries.append(entry)
        if mend and len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def read(self, parse: Callable[[dict[str, Any]], Parsed]) -> list[Parsed]:
        """What a function makes of each record, oldest first.

        Raises:
            FreePruneError: it cannot read one.
        """
        found = []
        for number, entry in enumerate(self.entries, start=1):
            try:
                found.append(parse(entry))
            except DAMAGE:
                raise self._damaged(number) from None
        return found

    def _damaged(self, number: int) -> FreePruneError:
        """The error about a damaged line; the header is number 0."""
        return FreePruneError(
            f"line {number + 1} of {self.path} is damaged; remove it and what follows, or start the run again with `force=True`"
        )

    def add(self, entry: dict[str, Any]) -> None:
        """Append a record. It outlives this process; a power failure may take those of the last second.

        Raises:
            FreePruneError: it could not be written; earlier records stay readable.
        """
        try:
            new = not self.path.exists() or self.path.stat().st_size == 0
            with self.path.open("a") as file:
                if new:
                    file.write(json.dumps({self.kind: self.version}) + "\n")
                file.write(json.dumps(entry, separators=(",", ":"), allow_nan=False) + "\n")
                file.flush()
                if time.monotonic() - self._synced > SYNCED:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
        except OSError as error:
            raise unwritable(self.path, error, "make room, and go on with `resume=True`") from None
        self.entries.append(entry)

    def drop(self, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite the file without the unwanted records."""
        self.entries = [entry for entry in self.entries if not unwanted(entry)]
        lines = [{self.kind: self.version}, *self.entries]
        text = "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines)
        write_atomically(self.path, text.encode())
