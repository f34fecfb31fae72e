"""Common parts of local workers and Ray actors: the pool interface, errors that can be sent, and retries."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, TypeVar

from ...errors import FreePruneError
from ..asked.declaration import Placement as Placement

Item = TypeVar("Item")
Result = TypeVar("Result")
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)

DEATHS = 3  # workers that may die at one item before the run ends


class Pool(Protocol[Taken, Given]):
    """Workers that are kept between calls."""

    def each(self, items: Sequence[Taken]) -> Iterator[tuple[int, Given]]:
        """Yields the position and the result of every item as it is done, in any order.

        Raises:
            FreePruneError: three workers died at the same item, or no worker can be started.
            Exception: what the function raised.
        """


def attempt(function: Callable[[Any], Any], item: Any) -> tuple[bool, Any]:
    """True and the result, or False and the error, which can be sent to another process."""
    try:
        return True, function(item)
    except FreePruneError as error:  # one sentence, which needs no traceback
        return False, error
    except Exception as error:
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))
        except Exception:  # some exceptions, such as those with several arguments, cannot be pickled
            raised: Exception = RuntimeError(f"{type(error).__name__}: {error}")
        else:
            raised = error
        raised.add_note("".join(traceback.format_exception(error)))  # a traceback cannot be pickled
        return False, raised


class Backlog:
    """The positions of items that no worker has, and how many workers died at each."""

    def __init__(self, count: int) -> None:
        self.waiting = deque(range(count))
        self._deaths: Counter[int] = Counter()

    def again(self, position: int) -> None:
        """Put back an item whose worker died.

        Raises:
            FreePruneError: it was the third worker to die at this item.
        """
        self._deaths[position] += 1
        if self._deaths[position] == DEATHS:
            raise FreePruneError(
                f"a worker died {DEATHS} times at the same item, perhaps out of memory; go on with "
                "`resume=True` and fewer `workers`"
            )
        self.waiting.appendleft(position)
