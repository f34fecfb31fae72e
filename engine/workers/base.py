"""What all workers share: where they are, what they are given and give back, and what becomes of the work of a dead one."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, TypeVar

from ...common import FreePruneError

Item = TypeVar("Item")


Result = TypeVar("Result")


Taken = TypeVar("Taken", contravariant=True)


Given = TypeVar("Given", covariant=True)


DEATHS = 3  # workers that one item may cost before the run ends


@dataclass(frozen=True)
class Placement:
    """Where items are computed.

    Attributes:
        workers: local processes of one thread each, 1 being this process itself; with `ray`, actors: as many as the cluster
            has room for where None. None without `ray`: this process with all its threads.
        ray: the address of a running Ray cluster, such as `10.0.0.1:6379`, `ray://10.0.0.1:10001` or `auto`.
        gpus: GPUs for each actor; a fraction lets actors share one.

    Raises:
        FreePruneError: a number out of range, or GPUs without `ray`.
    """

    workers: int | None = None
    ray: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise FreePruneError(f"--workers is {self.workers}; give 1 or more")
        if not (0 <= self.gpus < float("inf")):
            raise FreePruneError(f"--ray-gpus is {self.gpus}; give 0 or more, such as 0.25 for four actors to a GPU")
        if self.gpus > 1 and self.gpus % 1:
            raise FreePruneError(f"--ray-gpus is {self.gpus}; give a fraction of one GPU or a whole number of them")
        if self.gpus and self.ray is None:
            raise FreePruneError(f"--ray-gpus {self.gpus:g} was given without --ray; give a cluster's address, or neither")


class Pool(Protocol[Taken, Given]):
    """Workers that stay from one call to the next."""

    def each(self, items: Sequence[Taken]) -> Iterator[tuple[int, Given]]:
        """The position and the result of every item, in any order, as they are done.

        Raises:
            FreePruneError: an item has cost three workers, or no worker is to be had.
            Exception: what the function raised.
        """


def attempt(function: Callable[[Any], Any], item: Any) -> tuple[bool, Any]:
    """True and the result, or False and what the function raised, fit to be sent to another process."""
    try:
        return True, function(item)
    except FreePruneError as error:  # one sentence, which needs no traceback
        return False, error
    except Exception as error:
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))
        except Exception:  # some exceptions, such as those with several arguments, survive no pickling
            raised: Exception = RuntimeError(f"{type(error).__name__}: {error}")
        else:
            raised = error
        raised.add_note("".join(traceback.format_exception(error)))  # a traceback does not travel
        return False, raised


class Backlog:
    """The positions of the items that no worker has yet, and how many workers each has cost."""

    def __init__(self, count: int) -> None:
        self.waiting = deque(range(count))
        self._deaths: Counter[int] = Counter()

    def again(self, position: int) -> None:
        """Repeat what a worker died of, or with.

        Raises:
            FreePruneError: it has cost three.
        """
        self._deaths[position] += 1
        if self._deaths[position] == DEATHS:
            raise FreePruneError(
                f"a worker died {DEATHS} times at the same item, perhaps for want of memory; go on with --resume and fewer "
                "--workers"
            )
        self.waiting.appendleft(position)
