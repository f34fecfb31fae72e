import os

import pytest

from freeprune.common import FreePruneError
from freeprune.engine.workers import each


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_gets_its_result(workers):
    offset = 10  # closures need no pickling
    assert dict(each(lambda n: n + offset, range(5), workers)) == {n: n + 10 for n in range(5)}


def test_several_workers_are_other_processes():
    assert os.getpid() not in dict(each(lambda _: os.getpid(), range(3), 2)).values()
    assert set(dict(each(lambda _: os.getpid(), range(3), 1)).values()) == {os.getpid()}


def test_a_worker_that_dies_is_one_sentence():
    with pytest.raises(FreePruneError, match="a worker process died"):
        list(each(lambda _: os._exit(1), range(3), 2))


def test_an_error_in_a_worker_comes_through():
    def refuse(_):
        raise FreePruneError("no")

    with pytest.raises(FreePruneError, match=r"^no$"):
        list(each(refuse, range(3), 2))


def test_no_worker_is_refused():
    with pytest.raises(FreePruneError, match="--workers is 0; give 1 or more"):
        list(each(str, range(3), 0))
